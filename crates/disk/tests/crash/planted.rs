//! Wrong orders, planted: a model that finds none of them proves nothing.

use super::life::Judge;
use super::*;

struct Planted {
    start: Vec<u8>,
    log: Vec<Event>,
    releases: [Release; 3],
    judge: Judge,
}

impl Planted {
    fn new() -> Planted {
        let [safe, old, new] = releases();
        let start = old.stage(safe.stage(blank(), SAFE).bytes, TARGET).bytes;
        let log = new.stage(start.clone(), TARGET).log;
        Planted {
            judge: Judge::of(&start),
            start,
            log,
            releases: [safe, old, new],
        }
    }

    /// Both judges, so that neither is blind.
    fn wrong(&self, log: &[Event]) -> usize {
        let [safe, old, new] = &self.releases;
        let may = [(SAFE, safe), (TARGET, old), (TARGET, new)];
        let mut bad = 0;
        replay(&self.start, log, &mut |bytes| {
            bad += usize::from(self.judge.look(bytes, &may, &[SAFE], None).is_err());
        });
        let (other, _) = violations(&self.start, log, safe, &[old, new]);
        assert_eq!(other > 0, bad > 0, "the judges disagree: {other}, {bad}");
        bad
    }

    fn syncs(&self) -> Vec<(usize, Device)> {
        let syncs = self.log.iter().enumerate();
        syncs
            .filter_map(|(at, event)| match event {
                Event::Sync { device } => Some((at, *device)),
                Event::Write { .. } => None,
            })
            .collect()
    }
}

fn device(event: &Event) -> Device {
    match event {
        Event::Write { device, .. } | Event::Sync { device } => *device,
    }
}

#[test]
fn the_right_order_is_right() {
    let planted = Planted::new();
    assert_eq!(planted.wrong(&planted.log), 0);
}

#[test]
fn the_uki_before_the_data() {
    let planted = Planted::new();
    let (mut order, rest): (Vec<Event>, Vec<Event>) = planted
        .log
        .iter()
        .cloned()
        .partition(|event| device(event) == Device::Esp);
    order.extend(rest);
    assert!(planted.wrong(&order) > 0);
}

#[test]
fn the_table_before_the_data() {
    let planted = Planted::new();
    let (mut order, rest): (Vec<Event>, Vec<Event>) = planted
        .log
        .iter()
        .cloned()
        .partition(|event| device(event) == Device::Disk);
    order.extend(rest);
    assert!(planted.wrong(&order) > 0);
}

#[test]
fn the_commit_before_the_rest_of_the_uki() {
    let planted = Planted::new();
    let mut order = planted.log.clone();
    let commit = order
        .iter()
        .rposition(|event| matches!(event, Event::Write { .. }))
        .unwrap();
    let commit = order.remove(commit);
    // After the table, and before the UKI's data are durable.
    let table = planted
        .syncs()
        .into_iter()
        .rfind(|(_, device)| *device == Device::Disk)
        .unwrap();
    let first = order[table.0..]
        .iter()
        .position(|event| device(event) == Device::Esp)
        .unwrap();
    order.insert(table.0 + first, commit);
    assert!(planted.wrong(&order) > 0);
}

/// Each flush, left out by itself. The promise rests on the first one of the ESP and on all of the
/// others' devices; what the ESP's next flush makes durable anyway is not missed.
#[test]
fn a_missing_flush() {
    let planted = Planted::new();
    let syncs = planted.syncs();
    let mut found = Vec::new();
    for (at, device) in &syncs {
        let mut log = planted.log.clone();
        log.remove(*at);
        if planted.wrong(&log) > 0 {
            found.push(*device);
        }
    }
    println!(
        "{} of {} flushes are missed: {found:?}",
        found.len(),
        syncs.len()
    );
    for (device, least) in [
        (Device::Esp, 1),
        (Device::Data, 1),
        (Device::Hash, 1),
        (Device::Disk, 2),
    ] {
        let count = found.iter().filter(|d| **d == device).count();
        assert!(count >= least, "{count} of {device}");
    }
}
