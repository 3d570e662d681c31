//! Power cuts: whatever part of the writes reached the disk, the other slot boots, and the slot
//! that was being changed is either not bootable or complete.
//!
//! What a state means is judged by `fatfs`, not by the code that made it.

#![allow(clippy::unwrap_used)]

mod faults;
mod life;
mod planted;
mod recorder;

use disk::esp::{self, Bootloader, Esp};
use disk::gpt::{self, Layout, Table};
use disk::io::Window;
use disk::stage::{Device, Devices, Progress, StageError, StagePlan, Step, stage};
use disk::verity::{BLOCK_SIZE, RootHash, build};
use disk::{Guid, Slot};
use proptest::prelude::*;
use recorder::{Disk, Event, Random, Recorder, range, replay};
use sha2::{Digest, Sha256};
use std::io::{Cursor, Read};

/// The slot that must survive, and the one that is written.
const SAFE: Slot = Slot::A;
const TARGET: Slot = Slot::B;

#[derive(Clone)]
struct Release {
    usr: Vec<u8>,
    root: RootHash,
    verity: Vec<u8>,
    uki: Vec<u8>,
}

impl Release {
    fn new(seed: u8, blocks: usize, uki_len: usize) -> Release {
        let mut random = Random(0x1234_5678_9abc_def1_u64.wrapping_mul(u64::from(seed) + 1));
        let mut bytes = |len: usize| -> Vec<u8> {
            std::iter::repeat_with(|| random.next().to_le_bytes())
                .flatten()
                .take(len)
                .collect()
        };
        let usr = bytes(blocks * BLOCK_SIZE);
        let mut uki = bytes(uki_len);
        uki[..2].copy_from_slice(b"MZ");
        let tree = build(&mut usr.as_slice()).unwrap();
        Release {
            usr,
            root: tree.root,
            verity: tree.image(),
            uki,
        }
    }

    fn plan(&self, slot: Slot) -> StagePlan {
        StagePlan {
            slot,
            booted: Some(slot.other()),
            root_hash: self.root,
            usr_size: self.usr.len() as u64,
            uki_sha256: Sha256::digest(&self.uki).into(),
        }
    }

    fn stage(&self, bytes: Vec<u8>, slot: Slot) -> Disk {
        let mut devices = Recorder::new(bytes, slot);
        let mut usr = self.usr.as_slice();
        stage(
            &self.plan(slot),
            &mut devices,
            &mut usr,
            &self.uki,
            &mut |_| {},
        )
        .unwrap();
        devices.finish()
    }

    /// All of this release is in its slot's partitions.
    fn is_in(&self, bytes: &[u8], slot: Slot) -> bool {
        let table = Table::load(&mut Cursor::new(bytes)).unwrap();
        table.slot_of(&self.root) == Some(slot)
            && bytes[range(bytes, slot.data_label())].starts_with(&self.usr)
            && bytes[range(bytes, slot.verity_label())].starts_with(&self.verity)
    }
}

/// A disk with both slots empty.
fn blank() -> Vec<u8> {
    let layout = Layout::small();
    let size = layout.image_size();
    let mut disk = Cursor::new(vec![0; usize::try_from(size).unwrap()]);
    let table = layout.create(&mut disk, size, Guid([7; 16])).unwrap();
    let esp = table.partition(gpt::ESP).unwrap();
    let mut window = Window::new(&mut disk, esp.start_bytes, esp.size_bytes);
    esp::create(&mut window, esp.size_bytes, "ESP", 1).unwrap();
    let loader = Bootloader {
        systemd_boot: b"MZ",
        loader_conf: "",
    };
    esp::install_bootloader(&mut window, &loader).unwrap();
    disk.into_inner()
}

/// The files that a boot loader would look at: slot and content.
fn boot_files(bytes: &mut [u8]) -> Vec<(Slot, Vec<u8>)> {
    let esp = range(bytes, gpt::ESP);
    let volume = fatfs::FileSystem::new(Cursor::new(&mut bytes[esp]), fatfs::FsOptions::new());
    let volume = volume.unwrap();
    let directory = volume.root_dir().open_dir("EFI/Linux").unwrap();
    let mut files = Vec::new();
    for file in directory.iter().map(Result::unwrap).filter(|f| f.is_file()) {
        let name = file.file_name();
        assert_eq!(name.len(), 13, "{name}");
        assert!(name.starts_with("usr-") && name.ends_with(".efi"), "{name}");
        let mut content = Vec::new();
        // What cannot be read to its end is judged by its beginning.
        let _ = file.to_file().read_to_end(&mut content);
        files.push((name[4..5].parse().unwrap(), content));
    }
    files
}

/// The whole property. `releases` are those that slot TARGET may hold.
fn judge(bytes: &mut Vec<u8>, safe: &Release, releases: &[&Release]) -> Result<(), String> {
    if Table::load(&mut Cursor::new(&bytes)).is_err() {
        return Err("no partition table".into());
    }
    let files = boot_files(bytes);
    let bootable = |slot| {
        files
            .iter()
            .filter(move |(of, content)| *of == slot && content.starts_with(b"MZ"))
            .map(|(_, content)| content)
    };
    if bootable(SAFE).count() == 0 {
        return Err("the safe slot has no bootable entry".into());
    }
    if !bootable(SAFE).all(|content| *content == safe.uki) {
        return Err("the safe slot's UKI is damaged".into());
    }
    if !safe.is_in(bytes, SAFE) {
        return Err("the safe slot's partitions are damaged".into());
    }
    for content in bootable(TARGET) {
        let Some(release) = releases.iter().find(|r| r.uki == *content) else {
            return Err("a half-written UKI is bootable".into());
        };
        if !release.is_in(bytes, TARGET) {
            return Err("a bootable UKI's partitions do not match".into());
        }
    }
    let seen = Esp::open(Cursor::new(&bytes[range(bytes, gpt::ESP)]))
        .unwrap()
        .entry(TARGET)
        .unwrap();
    if seen.is_some_and(|entry| entry.valid) != (bootable(TARGET).count() > 0) {
        return Err("our own reader and fatfs disagree".into());
    }
    Ok(())
}

fn violations(
    start: &[u8],
    log: &[Event],
    safe: &Release,
    releases: &[&Release],
) -> (usize, usize) {
    let mut bad = 0;
    let states = replay(start, log, &mut |bytes| {
        bad += usize::from(judge(bytes, safe, releases).is_err());
    });
    (bad, states)
}

fn never_bad(start: &[u8], log: &[Event], safe: &Release, releases: &[&Release]) -> usize {
    replay(start, log, &mut |bytes| {
        judge(bytes, safe, releases).unwrap();
    })
}

/// The safe release, the old one in the slot that is written, the new one.
fn releases() -> [Release; 3] {
    [
        Release::new(1, 20, 9_000),
        Release::new(2, 30, 12_345),
        Release::new(3, 150, 30_001),
    ]
}

#[test]
fn staging_over_an_old_release() {
    let [safe, old, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let start = old.stage(start, TARGET).bytes;
    let mut done = new.stage(start.clone(), TARGET);
    let states = never_bad(&start, &done.log, &safe, &[&old, &new]);
    assert!(states > 300, "only {states} states");
    println!("{states} states");
    assert!(boot_files(&mut done.bytes).contains(&(TARGET, new.uki.clone())));
    assert!(new.is_in(&done.bytes, TARGET));

    // Back to something shorter: surplus clusters are freed.
    let start = done.bytes;
    let done = old.stage(start.clone(), TARGET);
    never_bad(&start, &done.log, &safe, &[&old, &new]);
    assert!(old.is_in(&done.bytes, TARGET));
}

#[test]
fn staging_into_an_empty_slot() {
    let [safe, _, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let done = new.stage(start.clone(), TARGET);
    never_bad(&start, &done.log, &safe, &[&new]);
    assert!(new.is_in(&done.bytes, TARGET));
}

/// Enlarged while the host was running: the backup of the table is in the middle, where nobody looks for it.
#[test]
fn staging_on_a_disk_that_has_grown() {
    let [safe, old, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let mut start = old.stage(start, TARGET).bytes;
    let grown = start.len() + (8 << 20);
    start.resize(grown, 0);
    let mut done = new.stage(start.clone(), TARGET);
    never_bad(&start, &done.log, &safe, &[&old, &new]);
    assert!(new.is_in(&done.bytes, TARGET));

    // The next boot finds the room, and the backup.
    done.bytes[512..1024].fill(0);
    let mut table = Table::load(&mut Cursor::new(&done.bytes)).unwrap();
    assert_eq!(table.disk_size(), grown as u64);
    let end = table
        .partitions()
        .iter()
        .map(|p| p.start_bytes + p.size_bytes)
        .max()
        .unwrap();
    let state = table.add_state().or_else(|| table.grow_state());
    assert!(state.is_none_or(|state| state.start_bytes + state.size_bytes > end));
}

#[test]
fn staging_again_after_a_power_cut() {
    let [safe, old, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let start = old.stage(start, TARGET).bytes;
    let log = new.stage(start.clone(), TARGET).log;
    let third = Release::new(4, 40, 20_000);
    let mut count = 0;
    replay(&start, &log, &mut |bytes| {
        count += 1;
        if count % 23 == 0 {
            let mut done = third.stage(bytes.clone(), TARGET);
            judge(&mut done.bytes, &safe, &[&third]).unwrap();
            assert!(boot_files(&mut done.bytes).contains(&(TARGET, third.uki.clone())));
        }
    });
    assert!(count > 300);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn staging_any_sizes(
        old_uki in 513usize..20_000,
        new_uki in 513usize..20_000,
        blocks in 1usize..140,
    ) {
        let safe = Release::new(1, 3, 700);
        let old = Release::new(2, 7, old_uki);
        let new = Release::new(3, blocks, new_uki);
        let start = old.stage(safe.stage(blank(), SAFE).bytes, TARGET).bytes;
        let done = new.stage(start.clone(), TARGET);
        never_bad(&start, &done.log, &safe, &[&old, &new]);
        prop_assert!(new.is_in(&done.bytes, TARGET));
    }
}

/// The model is worth something only if it finds what is wrong.
#[test]
fn the_model_finds_wrong_orders() {
    let [safe, old, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let start = old.stage(start, TARGET).bytes;
    let log = new.stage(start.clone(), TARGET).log;
    let known = [&old, &new];

    let no_sync: Vec<Event> = log
        .iter()
        .filter(|event| matches!(event, Event::Write { .. }))
        .cloned()
        .collect();
    let (bad, states) = violations(&start, &no_sync, &safe, &known);
    assert!(bad > 0, "none of {states} states without a sync");

    let first_sync = log
        .iter()
        .position(|event| matches!(event, Event::Sync { .. }))
        .unwrap();
    let (bad, states) = violations(&start, &log[first_sync + 1..], &safe, &known);
    assert!(bad > states / 2, "{bad} of {states} without disabling");
}

/// Runs a change of the ESP on a disk with both slots and looks at every power cut.
fn esp_change(
    prepare: impl Fn(&mut [u8]),
    change: impl Fn(&mut Esp<recorder::Handle>),
    must_boot: bool,
) {
    let [safe, old, _] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let mut start = old.stage(start, TARGET).bytes;
    prepare(&mut start);
    let mut devices = Recorder::new(start.clone(), TARGET);
    let mut esp = Esp::open(devices.open(Device::Esp).unwrap()).unwrap();
    change(&mut esp);
    drop(esp);
    let done = devices.finish();
    replay(&start, &done.log, &mut |bytes| {
        judge(bytes, &safe, &[&old]).unwrap();
        let boots = boot_files(bytes).contains(&(TARGET, old.uki.clone()));
        assert!(boots || !must_boot, "the target slot's entry is gone");
    });
}

/// Where the target's pair of directory entries is.
fn target_pair(bytes: &[u8]) -> usize {
    let long = b"\x41u\0s\0r\0-\0b\0";
    bytes.windows(long.len()).position(|w| w == long).unwrap()
}

#[test]
fn counting_tries() {
    esp_change(|_| {}, |esp| esp.set_tries(TARGET, 0, 3).unwrap(), true);
    esp_change(|_| {}, |esp| esp.set_tries(SAFE, 2, 1).unwrap(), true);
}

#[test]
fn counting_tries_of_an_entry_that_a_torn_rename_doubled() {
    let doubled = |bytes: &mut [u8]| {
        let at = target_pair(bytes);
        let mut pair = bytes[at..at + 64].to_vec();
        // "usr-b+2-1.efi", as the firmware's second entry.
        pair[14 + 2] = b'2';
        pair[14 + 6] = b'1';
        bytes[at + 64..at + 128].copy_from_slice(&pair);
    };
    esp_change(doubled, |esp| esp.set_tries(TARGET, 3, 0).unwrap(), true);
    esp_change(doubled, |esp| esp.disable(TARGET).unwrap(), false);
}

#[test]
fn counting_tries_of_an_entry_across_two_sectors() {
    let across = |bytes: &mut [u8]| link_second_cluster(bytes, target_pair(bytes));
    esp_change(across, |esp| esp.set_tries(TARGET, 2, 1).unwrap(), true);
}

/// Gives `EFI/Linux` a second cluster and puts the target's entry across the two.
fn link_second_cluster(bytes: &mut [u8], pair: usize) {
    let esp = range(bytes, gpt::ESP);
    let word = |at: usize, len: usize| {
        bytes[esp.start + at..esp.start + at + len]
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    let (reserved, table) = (word(14, 2) * 512, word(36, 4) * 512);
    let data = esp.start + reserved + 2 * table;
    assert_eq!(word(13, 1), 1, "clusters are sectors here");
    let first = (pair - data) / 512 + 2;
    let second = (2..)
        .find(|cluster| word(reserved + cluster * 4, 4) == 0)
        .unwrap();
    for copy in 0..2 {
        let fat = esp.start + reserved + copy * table;
        let entry = u32::try_from(second).unwrap().to_le_bytes();
        bytes[fat + first * 4..fat + first * 4 + 4].copy_from_slice(&entry);
        bytes[fat + second * 4..fat + second * 4 + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0x0f]);
    }
    let entries = bytes[pair..pair + 64].to_vec();
    let (sector, next) = (pair / 512 * 512, data + (second - 2) * 512);
    for at in (pair..sector + 512).step_by(32) {
        bytes[at] = 0xe5;
    }
    bytes[sector + 480..sector + 512].copy_from_slice(&entries[..32]);
    bytes[next..next + 512].fill(0);
    bytes[next..next + 32].copy_from_slice(&entries[32..]);
}

#[test]
fn disabling() {
    esp_change(|_| {}, |esp| esp.disable(TARGET).unwrap(), false);
}

#[test]
fn refusals_write_nothing() {
    let [safe, old, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let start = old.stage(start, TARGET).bytes;
    let check = |plan: &StagePlan, usr: &[u8], uki: &[u8]| -> StageError {
        let mut devices = Recorder::new(start.clone(), plan.slot);
        let mut usr = usr;
        let error = stage(plan, &mut devices, &mut usr, uki, &mut |_| {}).unwrap_err();
        assert!(devices.finish().log.is_empty(), "{error}");
        error
    };
    let plan = new.plan(TARGET);
    let uki = &new.uki;

    let booted = StagePlan {
        booted: Some(TARGET),
        ..plan.clone()
    };
    let error = check(&booted, &new.usr, uki);
    assert!(matches!(error, StageError::Booted { slot: TARGET }));

    let twice = safe.plan(TARGET);
    let error = check(&twice, &safe.usr, &safe.uki);
    assert!(matches!(error, StageError::AlreadyIn { slot: SAFE }));

    let error = check(&plan, &new.usr, &old.uki);
    assert!(matches!(error, StageError::WrongUki) && error.blames_release());

    let uneven = StagePlan {
        usr_size: 4097,
        ..plan.clone()
    };
    let error = check(&uneven, &new.usr, uki);
    assert!(matches!(error, StageError::UsrSize { size: 4097 }));

    let huge = StagePlan {
        usr_size: Layout::small().usr + 4096,
        ..plan.clone()
    };
    let error = check(&huge, &new.usr, uki);
    assert!(matches!(
        error,
        StageError::TooSmall {
            device: Device::Data,
            ..
        }
    ));
    assert!(!error.blames_release());
}

/// The payload is not trusted: after any of these the slot is disabled, the other one boots.
#[test]
fn bad_payloads_leave_the_slot_disabled() {
    let [safe, old, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let start = old.stage(start, TARGET).bytes;
    let check = |usr: &[u8]| -> StageError {
        let mut devices = Recorder::new(start.clone(), TARGET);
        let mut usr = usr;
        let plan = new.plan(TARGET);
        let error = stage(&plan, &mut devices, &mut usr, &new.uki, &mut |_| {}).unwrap_err();
        let mut bytes = devices.finish().bytes;
        judge(&mut bytes, &safe, &[]).unwrap();
        error
    };
    let mut changed = new.usr.clone();
    changed[5000] ^= 1;
    assert!(matches!(check(&changed), StageError::WrongUsr { .. }));
    assert!(matches!(
        check(&new.usr[1..]),
        StageError::PayloadShort { .. }
    ));
    let longer = [&new.usr[..], b"x"].concat();
    let error = check(&longer);
    assert!(matches!(error, StageError::PayloadLong { .. }) && error.blames_release());
}

/// A disk that acknowledges writes and keeps something else is found out before the commit.
#[test]
fn what_the_disk_did_not_keep_is_noticed() {
    struct Lying {
        disk: Recorder,
        device: Device,
        opened: usize,
    }
    impl Devices for Lying {
        type Io = recorder::Handle;
        fn open(&mut self, device: Device) -> std::io::Result<recorder::Handle> {
            self.opened += usize::from(device == self.device);
            // Once to measure, once to write, once to read back.
            if device == self.device && self.opened == 3 {
                let label = match device {
                    Device::Data => TARGET.data_label(),
                    _ => TARGET.verity_label(),
                };
                let mut disk = self.disk.disk.borrow_mut();
                let at = range(&disk.bytes, label).start + 4096 + 5;
                disk.bytes[at] ^= 1;
            }
            self.disk.open(device)
        }
    }
    let [safe, _, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    for device in [Device::Data, Device::Hash] {
        let mut devices = Lying {
            disk: Recorder::new(start.clone(), TARGET),
            device,
            opened: 0,
        };
        let mut usr = new.usr.as_slice();
        let plan = new.plan(TARGET);
        let error = stage(&plan, &mut devices, &mut usr, &new.uki, &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, StageError::ReadBack { device: d } if d == device),
            "{error}"
        );
        let mut bytes = devices.disk.finish().bytes;
        judge(&mut bytes, &safe, &[]).unwrap();
    }
}

#[test]
fn progress_goes_through_all_steps_in_order() {
    let [safe, _, new] = releases();
    let start = safe.stage(blank(), SAFE).bytes;
    let mut devices = Recorder::new(start, TARGET);
    let mut usr = new.usr.as_slice();
    let mut steps = Vec::new();
    let mut last: Option<Progress> = None;
    stage(
        &new.plan(TARGET),
        &mut devices,
        &mut usr,
        &new.uki,
        &mut |p| {
            if steps.last() != Some(&p.step) {
                assert!(last.is_none_or(|l| l.done == l.total), "{last:?}");
                steps.push(p.step);
            }
            last = Some(p);
        },
    )
    .unwrap();
    use Step::*;
    assert_eq!(
        steps,
        [
            Disable, WriteData, VerifyData, Table, WriteUki, VerifyUki, Commit
        ]
    );
}
