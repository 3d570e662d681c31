//! Lives of hosts: release after release is staged, counted by the boot loader, marked good or gone
//! back from, with the power cut anywhere. At least 100,000 states of the disk on every run.

use super::*;
use recorder::replay_with;
use std::ops::Range;

/// What the suite promises.
const STATES: usize = 100_000;
const LIVES: usize = 48;
/// Rounds of random subsets at each flush.
const ROUNDS: usize = 24;

/// As our reader says it.
const UNCOUNTED: (u8, u8) = (9, 0);

/// Judges a disk without loading its table for each question: partitions do not move.
pub(crate) struct Judge {
    esp: Range<usize>,
    slots: [(Range<usize>, Range<usize>); 2],
}

/// A boot entry as the boot loader sees it, read by `fatfs`.
pub(crate) struct Found {
    slot: Slot,
    tries: (u8, u8),
    content: Vec<u8>,
}

impl Judge {
    pub(crate) fn of(bytes: &[u8]) -> Judge {
        let parts = |slot: Slot| {
            (
                range(bytes, slot.data_label()),
                range(bytes, slot.verity_label()),
            )
        };
        Judge {
            esp: range(bytes, gpt::ESP),
            slots: [parts(Slot::A), parts(Slot::B)],
        }
    }

    pub(crate) fn entries(&self, bytes: &mut [u8]) -> Vec<Found> {
        let cursor = Cursor::new(&mut bytes[self.esp.clone()]);
        let volume = fatfs::FileSystem::new(cursor, fatfs::FsOptions::new()).unwrap();
        let directory = volume.root_dir().open_dir("EFI/Linux").unwrap();
        let mut found = Vec::new();
        for file in directory.iter().map(Result::unwrap).filter(|f| f.is_file()) {
            let name = file.file_name();
            let digit = |at: usize| name.as_bytes()[at] - b'0';
            assert!(name.starts_with("usr-"), "{name}");
            let tries = match name.len() {
                13 => (digit(6), digit(8)),
                9 => UNCOUNTED,
                _ => panic!("{name}"),
            };
            let mut content = Vec::new();
            let _ = file.to_file().read_to_end(&mut content);
            if content.starts_with(b"MZ") {
                found.push(Found {
                    slot: name[4..5].parse().unwrap(),
                    tries,
                    content,
                });
            }
        }
        found
    }

    /// Every entry that can be started is one of `may` with all of it on the disk, and every
    /// slot of `must` has one.
    pub(crate) fn look(
        &self,
        bytes: &mut [u8],
        may: &[(Slot, &Release)],
        must: &[Slot],
        tries: Option<(Slot, [(u8, u8); 2])>,
    ) -> Result<(), String> {
        let Ok(table) = Table::load(&mut Cursor::new(&*bytes)) else {
            return Err("no partition table".into());
        };
        let entries = self.entries(bytes);
        for entry in &entries {
            let slot = entry.slot;
            let of = may
                .iter()
                .find(|(s, r)| *s == slot && r.uki == entry.content);
            let Some((_, release)) = of else {
                return Err(format!("slot {slot}: a damaged UKI can be started"));
            };
            let (data, hash) = &self.slots[usize::from(slot == Slot::B)];
            if table.slot_of(&release.root) != Some(slot)
                || !bytes[data.clone()].starts_with(&release.usr)
                || !bytes[hash.clone()].starts_with(&release.verity)
            {
                return Err(format!("slot {slot}: the UKI's partitions are not whole"));
            }
            if tries.is_some_and(|(s, known)| s == slot && !known.contains(&entry.tries)) {
                return Err(format!("slot {slot}: counters {:?}", entry.tries));
            }
        }
        for slot in must {
            if !entries.iter().any(|entry| entry.slot == *slot) {
                return Err(format!("slot {slot} cannot be started any more"));
            }
        }
        let mut esp = Esp::open(Cursor::new(&bytes[self.esp.clone()])).unwrap();
        for slot in Slot::BOTH {
            let ours = esp.entry(slot).unwrap().is_some_and(|entry| entry.valid);
            if ours != entries.iter().any(|entry| entry.slot == slot) {
                return Err(format!("slot {slot}: our own reader and fatfs disagree"));
            }
        }
        Ok(())
    }
}

/// A host with a disk, its running slot, and what is known to be in the slots.
struct Host {
    judge: Judge,
    bytes: Vec<u8>,
    running: Slot,
    slots: [Option<Release>; 2],
    random: Random,
    states: usize,
    bad: Vec<String>,
}

impl Host {
    fn new(seed: u64) -> Host {
        let first = Release::new(1, 6, 3000);
        let bytes = first.stage(blank(), Slot::A).bytes;
        Host {
            judge: Judge::of(&bytes),
            bytes,
            running: Slot::A,
            slots: [Some(first), None],
            random: Random(0x9e37_79b9_7f4a_7c15 ^ ((seed + 1) << 20)),
            states: 0,
            bad: Vec::new(),
        }
    }

    fn up_to(&mut self, most: u64) -> usize {
        usize::try_from(self.random.next() % most).unwrap()
    }

    fn at(slot: Slot) -> usize {
        usize::from(slot == Slot::B)
    }

    fn known(&self) -> Vec<(Slot, &Release)> {
        let slots = Slot::BOTH.into_iter().zip(&self.slots);
        slots
            .filter_map(|(slot, r)| Some((slot, r.as_ref()?)))
            .collect()
    }

    /// Judges every cut of an operation. `extra` is a release that may be there besides.
    fn cut(
        &mut self,
        log: &[Event],
        extra: Option<(Slot, &Release)>,
        must: &[Slot],
        tries: Option<(Slot, [(u8, u8); 2])>,
    ) {
        let mut random = Random(self.random.next());
        let mut may = self.known();
        may.extend(extra);
        let mut bad = Vec::new();
        let states = replay_with(&self.bytes, log, &mut random, ROUNDS, &mut |bytes| {
            bad.extend(self.judge.look(bytes, &may, must, tries).err());
        });
        self.states += states;
        self.bad.append(&mut bad);
    }

    /// A release for the other slot, sometimes after a try of another one that was cut off.
    fn stage(&mut self, seed: u8) {
        let target = self.running.other();
        // As the writer does: what runs must outlast the new one.
        self.count(self.running, UNCOUNTED);
        if self.up_to(3) == 0 {
            let lost = self.release(seed ^ 0x80);
            let log = lost.stage(self.bytes.clone(), target).log;
            self.cut(&log, Some((target, &lost)), &[target.other()], None);
            // Everything up to some write was kept; the last write is the commit.
            let keep = self.up_to(log.len() as u64 - 1);
            for event in &log[..keep] {
                if let Event::Write { lba, data, .. } = event {
                    let at = lba * recorder::SECTOR;
                    self.bytes[at..at + recorder::SECTOR].copy_from_slice(&data[..]);
                }
            }
        }
        let release = self.release(seed);
        let done = release.stage(self.bytes.clone(), target);
        self.cut(&done.log, Some((target, &release)), &[self.running], None);
        self.bytes = done.bytes;
        self.slots[Self::at(target)] = Some(release);
        self.finished(&[self.running, target]);
    }

    fn release(&mut self, seed: u8) -> Release {
        let (blocks, uki) = (1 + self.up_to(24), 513 + self.up_to(9000));
        Release::new(seed, blocks, uki)
    }

    /// The boot loader counts a try, mark-good gives them back, a rollback takes them: all three
    /// are one change of a name, and nothing else may change.
    fn count(&mut self, slot: Slot, to: (u8, u8)) {
        let mut devices = Recorder::new(std::mem::take(&mut self.bytes), slot);
        let start = devices.disk.borrow().bytes.clone();
        let mut esp = Esp::open(devices.open(Device::Esp).unwrap()).unwrap();
        let was = esp.entry(slot).unwrap().unwrap();
        match to {
            UNCOUNTED => esp.uncount(slot).unwrap(),
            (left, done) => esp.set_tries(slot, left, done).unwrap(),
        }
        drop(esp);
        let done = devices.finish();
        self.bytes = start;
        let both: Vec<Slot> = self.known().iter().map(|(slot, _)| *slot).collect();
        let names = [(was.tries_left, was.tries_done), to];
        self.cut(&done.log, None, &both, Some((slot, names)));
        self.bytes = done.bytes;
        let mut esp = Esp::open(Cursor::new(&self.bytes[self.judge.esp.clone()])).unwrap();
        let entry = esp.entry(slot).unwrap().unwrap();
        assert_eq!((entry.tries_left, entry.tries_done), to);
    }

    fn finished(&mut self, must: &[Slot]) {
        let mut bytes = std::mem::take(&mut self.bytes);
        self.judge
            .look(&mut bytes, &self.known(), must, None)
            .unwrap();
        self.bytes = bytes;
    }

    fn live(&mut self) {
        for seed in 2..6 {
            self.stage(seed);
            let new = self.running.other();
            self.count(new, (2, 1));
            match self.up_to(3) {
                // It never became healthy: the old one goes on, and stages over it.
                0 => {
                    self.count(new, (1, 2));
                    self.count(new, (0, 3));
                }
                // Good, and the operator goes back all the same.
                1 => {
                    self.count(new, (3, 0));
                    self.count(new, (0, 0));
                }
                _ => {
                    self.count(new, (3, 0));
                    self.running = new;
                }
            }
        }
    }
}

#[test]
fn a_hundred_thousand_power_cuts() {
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    let workers = workers.clamp(1, 4);
    let threads: Vec<_> = (0..workers)
        .map(|worker| {
            std::thread::spawn(move || {
                let (mut states, mut bad) = (0, Vec::new());
                for seed in (worker..LIVES).step_by(workers) {
                    let mut host = Host::new(seed as u64);
                    host.live();
                    states += host.states;
                    bad.append(&mut host.bad);
                }
                (states, bad)
            })
        })
        .collect();
    let (mut states, mut bad) = (0, Vec::new());
    for thread in threads {
        let (more, wrong) = thread.join().unwrap();
        states += more;
        bad.extend(wrong);
    }
    println!("{states} states, {} invalid", bad.len());
    assert_eq!(bad.len(), 0, "of {states}; the first: {:?}", bad.first());
    assert!(states >= STATES, "only {states} states");
}
