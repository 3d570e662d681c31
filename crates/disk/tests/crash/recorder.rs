//! A disk that remembers every sector written and every sync, and can be cut off anywhere.

use disk::gpt::Table;
use disk::io::SyncIo;
use disk::stage::{Device, Devices};
use disk::{Slot, gpt};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

pub(crate) const SECTOR: usize = 512;

#[derive(Clone)]
pub(crate) enum Event {
    Write {
        device: Device,
        lba: usize,
        data: Box<[u8; SECTOR]>,
    },
    /// Only what was written through the same device is durable then: the kernel keeps a cache
    /// for each.
    Sync { device: Device },
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) log: Vec<Event>,
}

/// The devices of one slot on a recorded disk.
pub(crate) struct Recorder {
    pub(crate) disk: Rc<RefCell<Disk>>,
    slot: Slot,
}

impl Recorder {
    pub(crate) fn new(bytes: Vec<u8>, slot: Slot) -> Recorder {
        let disk = Disk {
            bytes,
            log: Vec::new(),
        };
        Recorder {
            disk: Rc::new(RefCell::new(disk)),
            slot,
        }
    }

    pub(crate) fn finish(self) -> Disk {
        self.disk.take()
    }
}

/// Byte range of a partition.
pub(crate) fn range(bytes: &[u8], label: &str) -> std::ops::Range<usize> {
    let table = Table::load(&mut Cursor::new(bytes)).unwrap();
    let partition = table.partition(label).unwrap();
    let start = usize::try_from(partition.start_bytes).unwrap();
    start..start + usize::try_from(partition.size_bytes).unwrap()
}

impl Devices for Recorder {
    type Io = Handle;

    fn open(&mut self, device: Device) -> io::Result<Handle> {
        let disk = self.disk.borrow();
        let range = match device {
            Device::Disk => 0..disk.bytes.len(),
            Device::Data => range(&disk.bytes, self.slot.data_label()),
            Device::Hash => range(&disk.bytes, self.slot.verity_label()),
            Device::Esp => range(&disk.bytes, gpt::ESP),
        };
        drop(disk);
        Ok(Handle {
            disk: Rc::clone(&self.disk),
            device,
            start: range.start,
            len: range.len(),
            pos: 0,
        })
    }
}

pub(crate) struct Handle {
    disk: Rc<RefCell<Disk>>,
    device: Device,
    start: usize,
    len: usize,
    pos: usize,
}

impl Read for Handle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.len.saturating_sub(self.pos));
        let from = self.start + self.pos;
        buf[..len].copy_from_slice(&self.disk.borrow().bytes[from..from + len]);
        self.pos += len;
        Ok(len)
    }
}

impl Write for Handle {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        assert!(
            self.pos.is_multiple_of(SECTOR) && buf.len().is_multiple_of(SECTOR),
            "a part of a sector would be read, changed and written by the kernel"
        );
        assert!(self.pos + buf.len() <= self.len, "outside of the device");
        let from = self.start + self.pos;
        let mut disk = self.disk.borrow_mut();
        disk.bytes[from..from + buf.len()].copy_from_slice(buf);
        for (index, data) in buf.chunks(SECTOR).enumerate() {
            disk.log.push(Event::Write {
                device: self.device,
                lba: from / SECTOR + index,
                data: Box::new(data.try_into().unwrap()),
            });
        }
        self.pos += buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Handle {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.pos = match to {
            SeekFrom::Start(pos) => usize::try_from(pos).unwrap(),
            SeekFrom::End(by) => self.len.checked_add_signed(by.try_into().unwrap()).unwrap(),
            SeekFrom::Current(by) => self.pos.checked_add_signed(by.try_into().unwrap()).unwrap(),
        };
        Ok(self.pos as u64)
    }
}

impl SyncIo for Handle {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.borrow_mut().log.push(Event::Sync {
            device: self.device,
        });
        Ok(())
    }
}

/// xorshift64*: the same states in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Calls `look` with the disk as a power cut may leave it: at every sync, what was durable and
/// some of what was not. Between two syncs no more can happen than just before the second.
/// Returns how many states there were.
pub(crate) fn replay(start: &[u8], log: &[Event], look: &mut dyn FnMut(&mut Vec<u8>)) -> usize {
    let random = &mut Random(0x9e37_79b9_7f4a_7c15);
    replay_with(start, log, random, 15, look)
}

/// The same, with a choice of how many random subsets: five of each round.
pub(crate) fn replay_with(
    start: &[u8],
    log: &[Event],
    random: &mut Random,
    rounds: usize,
    look: &mut dyn FnMut(&mut Vec<u8>),
) -> usize {
    let mut bytes = start.to_vec();
    let mut pending: Vec<(Device, usize, &[u8; SECTOR])> = Vec::new();
    let mut states = 0;
    for event in log.iter().map(Some).chain([None]) {
        match event {
            Some(Event::Write { device, lba, data }) => pending.push((*device, *lba, data)),
            Some(Event::Sync { .. }) | None => {
                for chosen in choices(pending.len(), random, rounds) {
                    let mut undo = Vec::new();
                    for (_, (_, lba, data)) in chosen.iter().zip(&pending).filter(|(c, _)| **c) {
                        let sector = &mut bytes[lba * SECTOR..(lba + 1) * SECTOR];
                        undo.push((*lba, sector.to_vec()));
                        sector.copy_from_slice(&data[..]);
                    }
                    look(&mut bytes);
                    states += 1;
                    for (lba, old) in undo.into_iter().rev() {
                        bytes[lba * SECTOR..(lba + 1) * SECTOR].copy_from_slice(&old);
                    }
                }
                let synced = match event {
                    Some(Event::Sync { device }) => Some(*device),
                    _ => None,
                };
                pending.retain(|(device, lba, data)| {
                    let durable = Some(*device) == synced;
                    if durable {
                        bytes[lba * SECTOR..(lba + 1) * SECTOR].copy_from_slice(&data[..]);
                    }
                    !durable
                });
            }
        }
    }
    states
}

/// Which of the writes made it: none, all, prefixes, all but one, only one, random ones; every
/// subset if there are few writes. No choice comes twice.
fn choices(len: usize, random: &mut Random, rounds: usize) -> BTreeSet<Vec<bool>> {
    if len <= 5 {
        return (0..1usize << len)
            .map(|set| (0..len).map(|i| set >> i & 1 == 1).collect())
            .collect();
    }
    let mut choices = BTreeSet::from([vec![false; len], vec![true; len]]);
    for _ in 0..rounds {
        let cut = usize::try_from(random.next() % len as u64).unwrap();
        choices.insert((0..len).map(|i| i < cut).collect());
        choices.insert((0..len).map(|i| i >= cut).collect());
        choices.insert((0..len).map(|i| i != cut).collect());
        choices.insert((0..len).map(|i| i == cut).collect());
        choices.insert((0..len).map(|_| random.next() >> 40 & 1 == 1).collect());
    }
    choices
}
