//! The partition table, in memory.

#![allow(clippy::unwrap_used)]

use disk::gpt::{GptError, Layout, MIB, MIN_STATE, Table, empty_uuids, types};
use disk::io::SyncIo;
use disk::verity::RootHash;
use disk::{Guid, Slot};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

const DISK_GUID: Guid = Guid([0xd1; 16]);
const ROOT: RootHash = RootHash([
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
    26, 27, 28, 29, 30, 31,
]);

fn small() -> Cursor<Vec<u8>> {
    let size = Layout::small().image_size();
    let mut disk = Cursor::new(vec![0; usize::try_from(size).unwrap()]);
    Layout::small()
        .create(&mut disk, size, DISK_GUID)
        .expect("create");
    disk
}

#[test]
fn the_standard_layout() {
    let size = Layout::standard().image_size();
    assert_eq!(size, (2 + 1 + 512 + 2 * (2048 + 32)) * MIB);
    let table = Layout::standard().table(size, DISK_GUID).unwrap();
    let rows: Vec<_> = table
        .partitions()
        .iter()
        .map(|p| {
            assert_eq!(p.start_bytes % MIB, 0);
            format!(
                "{} {} {} {}+{}",
                p.number,
                p.label,
                p.kind,
                p.start_bytes / MIB,
                p.size_bytes / MIB
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            "1 bios 21686148-6449-6e6f-744e-656564454649 1+1",
            "2 esp c12a7328-f81f-11d2-ba4b-00a0c93ec93b 2+512",
            "3 usr-a 8484680c-9521-48c6-9c11-b0720656f69e 514+2048",
            "4 usr-a-verity 77ff5f63-e7b6-4633-acf4-1565b864c0e6 2562+32",
            "5 usr-b 8484680c-9521-48c6-9c11-b0720656f69e 2594+2048",
            "6 usr-b-verity 77ff5f63-e7b6-4633-acf4-1565b864c0e6 4642+32",
        ]
    );
    assert!(matches!(
        Layout::standard().table(size - 1, DISK_GUID),
        Err(GptError::TooSmall { .. })
    ));
}

#[test]
fn the_same_input_gives_the_same_bytes_and_keeps_boot_code() {
    assert!(small().into_inner() == small().into_inner());

    let size = Layout::small().image_size();
    let mut disk = Cursor::new(vec![0xeb; usize::try_from(size).unwrap()]);
    Layout::small().create(&mut disk, size, DISK_GUID).unwrap();
    let bytes = disk.into_inner();
    assert_eq!(bytes[..446], [0xeb; 446]);
    assert_eq!(bytes[450], 0xee, "a protective MBR entry");
    assert_eq!(bytes[510..512], [0x55, 0xaa]);
}

#[test]
fn a_root_hash_names_its_slot() {
    let mut disk = small();
    let mut table = Table::load(&mut disk).unwrap();
    assert_eq!(table.disk_guid(), DISK_GUID);
    assert_eq!(table.slot_of(&ROOT), None);
    assert_eq!(table.root_hash_of(Slot::B).unwrap(), None);
    assert_eq!(
        table.partition("usr-b").unwrap().uuid,
        empty_uuids(Slot::B).0
    );

    table.set_root_hash(Slot::B, &ROOT).unwrap();
    assert_eq!(
        Table::load(&mut disk).unwrap().slot_of(&ROOT),
        None,
        "nothing is written yet"
    );
    table.write(&mut disk).unwrap();

    let table = Table::load(&mut disk).unwrap();
    assert_eq!(table.slot_of(&ROOT), Some(Slot::B));
    assert_eq!(table.root_hash_of(Slot::B).unwrap(), Some(ROOT));
    assert_eq!(
        table.partition("usr-b").unwrap().uuid.to_string(),
        "00010203-0405-0607-0809-0a0b0c0d0e0f"
    );
    assert_eq!(
        table.partition("usr-b-verity").unwrap().uuid.to_string(),
        "10111213-1415-1617-1819-1a1b1c1d1e1f"
    );
    assert!(matches!(
        table.partition("nope"),
        Err(GptError::NoPartition { .. })
    ));
}

#[test]
fn two_slots_cannot_claim_the_same_release() {
    let mut disk = small();
    let mut table = Table::load(&mut disk).unwrap();
    table.set_root_hash(Slot::A, &ROOT).unwrap();
    table.set_root_hash(Slot::B, &ROOT).unwrap();
    let before = disk.get_ref().clone();
    assert!(matches!(table.write(&mut disk), Err(GptError::Invalid(_))));
    assert!(&before == disk.get_ref());
}

#[test]
fn a_damaged_primary_is_read_from_the_backup_and_repaired() {
    for damaged in [512, 1024] {
        let mut disk = small();
        let whole = disk.get_ref().clone();
        disk.get_mut()[damaged + 16] ^= 0xff;
        let mut table = Table::load(&mut disk).unwrap();
        assert!(table.primary_damaged());
        assert_eq!(table.partitions().len(), 6);
        table.write(&mut disk).unwrap();
        assert!(disk.get_ref() == &whole, "repaired to the bit");
        assert!(!Table::load(&mut disk).unwrap().primary_damaged());
    }

    let mut disk = small();
    let end = disk.get_ref().len() - 512;
    disk.get_mut()[512] = 0;
    disk.get_mut()[end] = 0;
    assert!(matches!(Table::load(&mut disk), Err(GptError::Read(_))));
}

#[test]
fn a_disk_that_grew_gets_a_state_partition_that_grows_again() {
    let mut disk = small();
    let small_size = disk.get_ref().len() as u64;
    assert_eq!(Table::load(&mut disk).unwrap().add_state(), None);

    let bigger = small_size + MIN_STATE + MIB;
    disk.get_mut().resize(usize::try_from(bigger).unwrap(), 0);
    let mut table = Table::load(&mut disk).unwrap();
    assert_eq!(table.add_state(), None, "the table still ends where it did");
    assert!(table.grow_to(bigger).unwrap());
    assert!(!table.grow_to(bigger).unwrap());
    let state = table.add_state().unwrap();
    assert_eq!((state.number, state.kind), (7, types::ROOT));
    assert_eq!(state.size_bytes, MIN_STATE + MIB);
    assert_eq!(state.start_bytes, small_size - MIB);
    assert_eq!(table.add_state(), None, "one is enough");
    table.write(&mut disk).unwrap();

    let mut table = Table::load(&mut disk).unwrap();
    assert_eq!(table.partition("state").unwrap(), state);
    assert_eq!(table.grow_state(), None);
    // 33 sectors are the backup table's, so this does not free a whole MiB.
    table.grow_to(bigger + 16 * 512).unwrap();
    assert_eq!(table.grow_state(), None);
    table.grow_to(bigger + 10 * MIB).unwrap();
    assert_eq!(
        table.grow_state().unwrap().size_bytes,
        state.size_bytes + 10 * MIB
    );
    assert!(matches!(
        table.grow_to(small_size),
        Err(GptError::Shrunk { .. })
    ));
}

#[test]
fn state_uuids_differ_between_disks() {
    let size = Layout::small().image_size() + MIN_STATE;
    let uuid = |guid| {
        let mut table = Layout::small().table(size, guid).unwrap();
        table.add_state().unwrap().uuid
    };
    assert_ne!(uuid(DISK_GUID), uuid(Guid([0xd2; 16])));
    assert_eq!(uuid(DISK_GUID), uuid(DISK_GUID));
}

#[test]
fn a_foreign_table_with_large_entries_is_refused_not_fatal() {
    let mut disk = small();
    let bytes = disk.get_mut();
    bytes[512 + 84..512 + 88].copy_from_slice(&256u32.to_le_bytes());
    bytes[512 + 16..512 + 20].fill(0);
    let crc = crc32(&bytes[512..512 + 92]);
    bytes[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(
        Table::load(&mut disk),
        Err(GptError::Unsupported { size: 256, .. })
    ));
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
        })
    })
}

#[derive(Debug, PartialEq)]
enum Did {
    Write(u64),
    Sync,
}

struct Log(Cursor<Vec<u8>>, Vec<Did>);

impl Read for Log {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Log {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.push(Did::Write(self.0.position() / 512));
        self.0.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Log {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl SyncIo for Log {
    fn sync(&mut self) -> io::Result<()> {
        self.1.push(Did::Sync);
        Ok(())
    }
}

#[test]
fn the_copy_that_was_good_is_written_last() {
    let mut disk = Log(small(), Vec::new());
    let last = disk.0.get_ref().len() as u64 / 512 - 1;
    let backup = [Did::Write(last - 32), Did::Write(last), Did::Sync];
    let primary = [Did::Write(2), Did::Write(1), Did::Sync];

    let mut table = Table::load(&mut disk).unwrap();
    table.set_root_hash(Slot::A, &ROOT).unwrap();
    table.write(&mut disk).unwrap();
    assert_eq!(disk.1[..3], backup);
    assert_eq!(disk.1[3..], primary);

    disk.1.clear();
    disk.0.get_mut()[512] = 0;
    let mut table = Table::load(&mut disk).unwrap();
    table.write(&mut disk).unwrap();
    assert_eq!(disk.1[..3], primary);
    assert_eq!(disk.1[3..], backup);
}
