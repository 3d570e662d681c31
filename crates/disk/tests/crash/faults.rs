//! Disks that fail: at every single operation of the writer, one after the other.

use super::*;
use std::cell::Cell;
use std::io::{Seek, SeekFrom, Write};
use std::rc::Rc;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The medium cannot do it: any operation.
    Eio,
    /// No room: writes only, as from a thin volume.
    Enospc,
    /// One write takes its first sector only, which is no error.
    Short,
    /// It takes its first sector, and the next operation fails.
    ShortThenEio,
}

/// Counts down to the fault.
struct Plan {
    fault: Fault,
    left: Cell<i64>,
    hit: Cell<bool>,
    /// What was asked for then must not be taken for done.
    changes: Cell<bool>,
}

impl Plan {
    /// Whether it is this operation's turn.
    fn now(&self, is_write: bool) -> bool {
        let counts = is_write || self.fault == Fault::Eio;
        if counts {
            self.left.set(self.left.get() - 1);
        }
        let now = counts && self.left.get() == 0;
        self.hit.set(self.hit.get() || now);
        self.changes.set(self.changes.get() || now && is_write);
        now
    }

    fn check(&self, is_write: bool) -> std::io::Result<()> {
        if self.fault == Fault::ShortThenEio && self.hit.get() && self.left.replace(-1) == 0 {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        match self.fault {
            Fault::Eio if self.now(is_write) => Err(std::io::Error::from_raw_os_error(5)),
            Fault::Enospc if self.now(is_write) => Err(std::io::Error::from_raw_os_error(28)),
            _ => Ok(()),
        }
    }
}

struct Failing {
    disk: Recorder,
    plan: Rc<Plan>,
}

struct FailingHandle {
    handle: recorder::Handle,
    plan: Rc<Plan>,
}

impl Devices for Failing {
    type Io = FailingHandle;

    fn open(&mut self, device: Device) -> std::io::Result<FailingHandle> {
        self.plan.check(false)?;
        Ok(FailingHandle {
            handle: self.disk.open(device)?,
            plan: Rc::clone(&self.plan),
        })
    }
}

impl Read for FailingHandle {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.plan.check(false)?;
        self.handle.read(buf)
    }
}

impl Write for FailingHandle {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.plan.check(true)?;
        let short = matches!(self.plan.fault, Fault::Short | Fault::ShortThenEio);
        if short && self.plan.now(true) {
            return self.handle.write(&buf[..recorder::SECTOR.min(buf.len())]);
        }
        self.handle.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.handle.flush()
    }
}

impl Seek for FailingHandle {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.handle.seek(to)
    }
}

impl disk::io::SyncIo for FailingHandle {
    fn sync(&mut self) -> std::io::Result<()> {
        self.plan.check(true)?;
        self.handle.sync()
    }
}

/// Puts back what a log changed: cheaper than another copy of the disk.
fn put_back(done: Disk, start: &[u8]) -> Vec<u8> {
    let mut bytes = done.bytes;
    for event in done.log {
        if let Event::Write { lba, .. } = event {
            let sector = lba * recorder::SECTOR..(lba + 1) * recorder::SECTOR;
            bytes[sector.clone()].copy_from_slice(&start[sector]);
        }
    }
    bytes
}

fn room(bytes: &[u8]) -> u64 {
    let esp = Cursor::new(&bytes[range(bytes, gpt::ESP)]);
    Esp::open(esp).unwrap().room_for(TARGET).unwrap()
}

/// Fails the Nth operation of `change`, for each N until there is none; returns how many.
fn each(
    fault: Fault,
    start: &[u8],
    change: &dyn Fn(&mut Failing) -> Result<(), String>,
    after: &dyn Fn(&mut Vec<u8>),
    retried: &dyn Fn(&mut Vec<u8>),
) -> i64 {
    let mut bytes = start.to_vec();
    for nth in 1.. {
        let plan = |left| Plan {
            fault,
            left: Cell::new(left),
            hit: Cell::new(false),
            changes: Cell::new(false),
        };
        let mut failing = Failing {
            disk: Recorder::new(bytes, TARGET),
            plan: Rc::new(plan(nth)),
        };
        let result = change(&mut failing);
        let (hit, changes) = (failing.plan.hit.get(), failing.plan.changes.get());
        let disk = std::rc::Rc::clone(&failing.disk.disk);
        after(&mut disk.borrow_mut().bytes);
        match (fault, &result) {
            (Fault::Short, Err(error)) => panic!("{nth}: {error}"),
            // A read that fails may have a second source: the backup of the partition table.
            (Fault::Eio | Fault::Enospc, Ok(())) if changes => {
                panic!("{nth}: nobody saw {fault:?}")
            }
            (_, Err(error)) => assert!(hit && !error.is_empty(), "{nth}: {error}"),
            _ => {}
        }
        failing.plan = Rc::new(plan(-1));
        change(&mut failing).unwrap_or_else(|e| panic!("{fault:?} at {nth}: no retry: {e}"));
        retried(&mut disk.borrow_mut().bytes);
        drop(failing);
        bytes = put_back(disk.take(), start);
        if !hit {
            return nth - 1;
        }
    }
    0
}

fn three() -> [Release; 3] {
    [
        Release::new(1, 3, 900),
        Release::new(2, 5, 2000),
        Release::new(3, 9, 4000),
    ]
}

#[test]
fn staging_on_a_disk_that_fails() {
    let [safe, old, new] = three();
    let start = old.stage(safe.stage(blank(), SAFE).bytes, TARGET).bytes;
    let free = room(&new.stage(start.clone(), TARGET).bytes);
    let change = |devices: &mut Failing| {
        let mut usr = new.usr.as_slice();
        let plan = new.plan(TARGET);
        stage(&plan, devices, &mut usr, &new.uki, &mut |_| {}).map_err(|e| {
            assert!(!e.blames_release(), "the disk failed, not the release: {e}");
            e.to_string()
        })
    };
    for fault in [Fault::Eio, Fault::Enospc, Fault::Short, Fault::ShortThenEio] {
        let count = each(
            fault,
            &start,
            &change,
            &|bytes| judge(bytes, &safe, &[&old, &new]).unwrap(),
            &|bytes| {
                assert!(safe.is_in(bytes, SAFE) && new.is_in(bytes, TARGET));
                assert!(boot_files(bytes).contains(&(TARGET, new.uki.clone())));
                assert_eq!(room(bytes), free, "clusters were lost");
            },
        );
        println!("{fault:?}: {count} operations");
        assert!(count > 10, "{fault:?}: only {count}");
    }
}

#[test]
fn counting_tries_on_a_disk_that_fails() {
    let [safe, old, _] = three();
    let start = old.stage(safe.stage(blank(), SAFE).bytes, TARGET).bytes;
    for (slot, left) in [(SAFE, 2), (TARGET, 0)] {
        let change = |devices: &mut Failing| {
            let io = devices.open(Device::Esp).map_err(|e| e.to_string())?;
            let mut esp = Esp::open(io).map_err(|e| e.to_string())?;
            esp.set_tries(slot, left, 1).map_err(|e| e.to_string())
        };
        let both = |bytes: &mut Vec<u8>| {
            judge(bytes, &safe, &[&old]).unwrap();
            assert!(boot_files(bytes).contains(&(TARGET, old.uki.clone())));
        };
        for fault in [Fault::Eio, Fault::Enospc] {
            let count = each(fault, &start, &change, &both, &both);
            assert!(count > 0);
        }
    }
}
