//! The EFI system partition, in memory; looked at with mtools where another pair of eyes counts.

#![allow(clippy::unwrap_used)]

use disk::Slot;
use disk::esp::{self, Bootloader, Esp, EspError, FirstSector};
use sha2::{Digest, Sha256};
use std::io::{Cursor, Write};
use std::process::Command;

type Mem = Cursor<Vec<u8>>;

const SIZE: usize = 36 << 20;

fn empty() -> Mem {
    let mut io = Cursor::new(vec![0; SIZE]);
    esp::create(&mut io, SIZE as u64, "ESP", 0x1234_5678).unwrap();
    let loader = Bootloader {
        systemd_boot: b"MZ systemd-boot",
        loader_conf: "timeout 0\n",
    };
    esp::install_bootloader(&mut io, &loader).unwrap();
    io
}

fn uki(len: usize, seed: u8) -> Vec<u8> {
    let mut uki: Vec<u8> = (0..len)
        .map(|i| (i * 7 + i / 251).to_le_bytes()[0] ^ seed | 1)
        .collect();
    uki[..2].copy_from_slice(b"MZ");
    uki
}

/// Everything a new UKI goes through.
fn replace(esp: &mut Esp<&mut Mem>, slot: Slot, uki: &[u8]) {
    let first = FirstSector::of(uki).unwrap();
    esp.disable(slot).unwrap();
    esp.write_uki(slot, uki).unwrap();
    let entry = esp.entry(slot).unwrap().unwrap();
    assert!(!entry.valid, "not bootable before the commit");
    esp.verify_uki(slot, &Sha256::digest(uki).into(), &first)
        .unwrap();
    esp.commit_uki(slot, &first).unwrap();
    let name = format!("{}/usr-{slot}+3-0.efi", esp::LINUX_DIR);
    assert!(esp.read_file(&name).unwrap() == uki);
}

fn state(esp: &mut Esp<&mut Mem>) -> Vec<String> {
    esp.entries()
        .unwrap()
        .iter()
        .map(|e| {
            let valid = if e.valid { "" } else { " invalid" };
            let copies = if e.copies == 1 { "" } else { " copies" };
            format!(
                "{}+{}-{}{valid}{copies}",
                e.slot, e.tries_left, e.tries_done
            )
        })
        .collect()
}

/// What mtools sees; it fails on a volume that it finds inconsistent.
fn mtools(io: &Mem, program: &str, args: &[&str]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(io.get_ref()).unwrap();
    let output = Command::new(program)
        .env("MTOOLS_SKIP_CHECK", "0")
        .arg("-i")
        .arg(file.path())
        .args(args)
        .output()
        .expect("mtools is needed: apt install mtools");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_new_partition_is_reproducible_and_readable() {
    let mut io = empty();
    assert!(io.get_ref() == empty().get_ref());
    let mut esp = Esp::open(&mut io).unwrap();
    assert_eq!(esp.entries().unwrap(), []);
    assert_eq!(
        esp.read_file("EFI/BOOT/BOOTX64.EFI").unwrap(),
        b"MZ systemd-boot"
    );
    assert_eq!(esp.read_file("loader/loader.conf").unwrap(), b"timeout 0\n");
    assert!(matches!(
        esp.read_file("EFI/nothing"),
        Err(EspError::NotFound { .. })
    ));
    assert!(mtools(&io, "mdir", &["-b", "-/", "::"]).contains("::/EFI/Linux/"));
    // "." and ".." are the first two entries and have no long names.
    let dots = io
        .get_ref()
        .chunks(512)
        .filter(|s| s.starts_with(b".          \x10") && s[32..].starts_with(b"..         \x10"));
    assert_eq!(dots.count(), 5, "EFI, its three directories and loader");
}

#[test]
fn ukis_come_and_go() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    let room = esp.room_for(Slot::A).unwrap();
    let a = uki(100_000, 1);
    replace(&mut esp, Slot::A, &a);
    // Longer, shorter, by a little, to the cluster.
    for len in [50_000, 200_000, 513, 51_200, 51_201, 150_000] {
        let b = uki(len, 2);
        replace(&mut esp, Slot::B, &b);
        assert!(esp.read_file("EFI/Linux/usr-a+3-0.efi").unwrap() == a);
    }
    assert_eq!(state(&mut esp), ["a+3-0", "b+3-0"]);
    // Nothing leaked on the way.
    let used = 100_000u64.next_multiple_of(512) + 150_000u64.next_multiple_of(512);
    assert_eq!(
        esp.room_for(Slot::A).unwrap(),
        room - used + 100_000u64.next_multiple_of(512)
    );

    let listing = mtools(&io, "mdir", &["-b", "-/", "::EFI/Linux"]);
    assert_eq!(
        listing.lines().collect::<Vec<_>>(),
        ["::/EFI/Linux/usr-a+3-0.efi", "::/EFI/Linux/usr-b+3-0.efi"]
    );
    let theirs = tempfile::NamedTempFile::new().unwrap();
    let to = theirs.path().to_str().unwrap();
    mtools(&io, "mcopy", &["-n", "-o", "::EFI/Linux/usr-b+3-0.efi", to]);
    assert!(std::fs::read(to).unwrap() == uki(150_000, 2));
}

#[test]
fn counters_change_in_place() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    replace(&mut esp, Slot::B, &uki(5000, 2));
    let before = io.get_ref().clone();

    let mut esp = Esp::open(&mut io).unwrap();
    esp.set_tries(Slot::B, 0, 3).unwrap();
    assert_eq!(state(&mut esp), ["a+3-0", "b+0-3"]);
    assert!(!esp.entry(Slot::B).unwrap().unwrap().is_bootable());
    let changed: Vec<usize> = before
        .chunks(512)
        .zip(io.get_ref().chunks(512))
        .enumerate()
        .filter(|(_, (old, new))| old != new)
        .map(|(sector, _)| sector)
        .collect();
    assert_eq!(changed.len(), 1, "one sector: {changed:?}");
    assert!(mtools(&io, "mdir", &["-b", "::EFI/Linux"]).contains("usr-b+0-3.efi"));

    let mut esp = Esp::open(&mut io).unwrap();
    esp.set_tries(Slot::B, 3, 0).unwrap();
    assert!(&before == esp.into_inner().get_ref(), "and back to the bit");
}

#[test]
fn disabling_is_one_sector_and_lasts() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    esp.disable(Slot::A).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    esp.disable(Slot::A).unwrap();
    assert_eq!(state(&mut esp), ["a+3-0 invalid"]);
    esp.set_tries(Slot::A, 2, 1).unwrap();
    assert_eq!(state(&mut esp), ["a+2-1 invalid"]);
    let first = FirstSector::of(&uki(5000, 1)).unwrap();
    esp.commit_uki(Slot::A, &first).unwrap();
    assert_eq!(state(&mut esp), ["a+2-1"]);
}

#[test]
fn refusals() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    let uki = uki(5000, 1);
    let first = FirstSector::of(&uki).unwrap();
    let b = Slot::B;
    assert!(matches!(
        esp.set_tries(b, 3, 0),
        Err(EspError::NoEntry { slot: Slot::B })
    ));
    assert!(matches!(
        esp.commit_uki(b, &first),
        Err(EspError::NoEntry { .. })
    ));
    replace(&mut esp, b, &uki);
    assert!(matches!(
        esp.set_tries(b, 10, 0),
        Err(EspError::Tries { tries: 10 })
    ));
    assert!(matches!(
        esp.write_uki(b, &uki),
        Err(EspError::NotDisabled { .. })
    ));
    assert!(matches!(
        esp.commit_uki(b, &first),
        Err(EspError::NotDisabled { .. })
    ));
    assert!(matches!(
        esp.verify_uki(b, &[0; 32], &first),
        Err(EspError::NotDisabled { .. })
    ));
    esp.disable(b).unwrap();
    assert!(matches!(
        esp.verify_uki(b, &[0; 32], &first),
        Err(EspError::ReadBack { .. })
    ));
    for not in [&uki[..512], b"MZ", &[0; 5000]] {
        assert!(matches!(esp.write_uki(b, not), Err(EspError::NotPe)));
    }
    let room = usize::try_from(esp.room_for(b).unwrap()).unwrap();
    let mut huge = vec![1; room + 4096];
    huge[..2].copy_from_slice(b"MZ");
    assert!(matches!(
        esp.write_uki(b, &huge),
        Err(EspError::NoSpace { .. })
    ));
    huge.truncate(room);
    esp.write_uki(b, &huge).unwrap();

    let mut not_fat = Cursor::new(vec![0; 1 << 20]);
    assert!(matches!(
        Esp::open(&mut not_fat),
        Err(EspError::NotFat32 { .. })
    ));
}

/// Where the directory entries of `EFI/Linux` begin.
fn linux_dir(io: &Mem) -> usize {
    // The long name of "usr-a…": u, s, r, -, a in UTF-16 behind the sequence number.
    let long = b"\x41u\0s\0r\0-\0a\0";
    io.get_ref()
        .windows(long.len())
        .position(|w| w == long)
        .expect("an entry for slot a")
}

#[test]
fn two_entries_after_a_torn_rename() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    let before_dir = linux_dir(&io);
    let pair = io.get_ref()[before_dir..before_dir + 64].to_vec();

    let mut esp = Esp::open(&mut io).unwrap();
    esp.set_tries(Slot::A, 2, 1).unwrap();
    // Firmware writes the new entry behind and then loses power.
    io.get_mut()[before_dir + 64..before_dir + 128].copy_from_slice(&pair);
    let mut esp = Esp::open(&mut io).unwrap();
    assert_eq!(
        state(&mut esp),
        ["a+2-1 copies"],
        "the later count is believed"
    );
    esp.disable(Slot::A).unwrap();
    assert_eq!(state(&mut esp), ["a+2-1 invalid copies"]);
    esp.set_tries(Slot::A, 3, 0).unwrap();
    assert_eq!(state(&mut esp), ["a+3-0 invalid"]);
    replace(&mut esp, Slot::A, &uki(9000, 3));
    assert_eq!(state(&mut esp), ["a+3-0"]);
}

#[test]
fn names_that_firmware_wrote_in_capitals() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    let at = linux_dir(&io);
    io.get_mut()[at + 1] = b'U';
    io.get_mut()[at + 9] = b'A';
    let mut esp = Esp::open(&mut io).unwrap();
    assert_eq!(state(&mut esp), ["a+3-0"]);
    esp.set_tries(Slot::A, 1, 2).unwrap();
    assert_eq!(state(&mut esp), ["a+1-2"]);
}

#[test]
fn an_entry_across_two_sectors_moves_into_one() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    // ".", "..", the entry's two places and four names of three fill the first cluster, which
    // is one sector; the fifth name begins the second.
    let dir = linux_dir(&io) / 512 * 512;
    for n in 0..5 {
        esp::write_file(&mut io, &format!("EFI/Linux/a name like this {n}"), b"x").unwrap();
    }
    let next = io
        .get_ref()
        .chunks(512)
        .position(|sector| sector[0] == 0x42 && sector[11] == 0x0f)
        .expect("a sector that begins with a name of two parts")
        * 512;
    let at = linux_dir(&io);
    let pair = io.get_ref()[at..at + 64].to_vec();
    for gone in [at, at + 32, dir + 416, dir + 448, next + 32, next + 64] {
        io.get_mut()[gone] = 0xe5;
    }
    io.get_mut()[dir + 480..dir + 512].copy_from_slice(&pair[..32]);
    io.get_mut()[next..next + 32].copy_from_slice(&pair[32..]);

    let mut esp = Esp::open(&mut io).unwrap();
    assert_eq!(state(&mut esp), ["a+3-0"]);
    esp.set_tries(Slot::A, 2, 1).unwrap();
    assert_eq!(state(&mut esp), ["a+2-1"]);
    assert!(esp.read_file("EFI/Linux/usr-a+2-1.efi").unwrap() == uki(5000, 1));
    assert!(mtools(&io, "mdir", &["-b", "::EFI/Linux"]).contains("usr-a+2-1.efi"));
}

#[test]
fn a_full_directory_grows() {
    let mut io = empty();
    // 16 places: ".", "..", and seven names of two.
    for n in 0..7 {
        esp::write_file(&mut io, &format!("EFI/Linux/long name {n}"), b"x").unwrap();
    }
    let mut esp = Esp::open(&mut io).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    replace(&mut esp, Slot::B, &uki(5000, 2));
    assert_eq!(state(&mut esp), ["a+3-0", "b+3-0"]);
    assert_eq!(
        mtools(&io, "mdir", &["-b", "::EFI/Linux"]).lines().count(),
        9
    );
}

#[test]
fn lost_clusters_are_found_again() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    let room = usize::try_from(esp.room_for(Slot::A).unwrap()).unwrap();
    let big = uki(room / 2 + 10_000, 1);
    replace(&mut esp, Slot::A, &big);
    // The firmware's rename stopped after it had deleted the old name.
    let at = linux_dir(&io);
    io.get_mut()[at] = 0xe5;
    io.get_mut()[at + 32] = 0xe5;
    let mut esp = Esp::open(&mut io).unwrap();
    assert_eq!(state(&mut esp), [] as [&str; 0]);
    replace(&mut esp, Slot::A, &big);
    assert_eq!(state(&mut esp), ["a+3-0"]);
}

#[test]
fn slots_that_share_clusters_are_not_touched() {
    let mut io = empty();
    let mut esp = Esp::open(&mut io).unwrap();
    replace(&mut esp, Slot::A, &uki(5000, 1));
    replace(&mut esp, Slot::B, &uki(5000, 2));
    let at = linux_dir(&io);
    let cluster = io.get_ref()[at + 32 + 26..at + 32 + 28].to_vec();
    io.get_mut()[at + 64 + 32 + 26..at + 64 + 32 + 28].copy_from_slice(&cluster);
    let mut esp = Esp::open(&mut io).unwrap();
    assert!(matches!(esp.disable(Slot::B), Err(EspError::CrossLinked)));
    assert!(esp.entry(Slot::A).unwrap().unwrap().is_bootable());
}
