//! The writer is killed at random moments. (Power cuts, which also lose what was not flushed, are
//! modelled where the order of writes is: in the crate `disk`.)

use std::time::{Duration, Instant};

use disk::Slot;

use crate::host::{Host, Release};
use crate::server::Server;

const KILLS: u32 = 25;

#[test]
fn the_other_slot_survives_a_writer_that_dies_anywhere() {
    let server = Server::start();
    let (one, two, three) = (Release::new("1"), Release::new("2"), Release::new("3"));
    let mut host = Host::new(&server, &[&one, &two, &three]);
    host.run(&["mark-good"]);
    let start = Instant::now();
    host.stage(&two).unwrap();
    let whole = start.elapsed();

    let (mut before, mut cut, mut after) = (0, 0, 0);
    let (mut old, mut new) = (&two, &three);
    for n in 0..KILLS {
        let moment = whole.mul_f64(f64::from(random()) / f64::from(u16::MAX) * 1.4);
        kill_after(&host, new, moment);
        assert!(host.is_intact(Slot::A, &one), "kill {n} after {moment:?}");
        match host.entry(Slot::B).is_some_and(|e| e.is_bootable()) {
            false => cut += 1,
            true if host.is_intact(Slot::B, old) => before += 1,
            true if host.is_intact(Slot::B, new) => after += 1,
            true => panic!("kill {n} after {moment:?} left half a release bootable"),
        }
        // A retry succeeds whatever was left, and gives the next one something to replace.
        host.stage(new).unwrap();
        assert!(
            host.is_intact(Slot::A, &one) && host.is_intact(Slot::B, new),
            "after kill {n}"
        );
        std::mem::swap(&mut old, &mut new);
    }
    println!(
        "{KILLS} kills within {whole:?}: {before} before, {cut} during, {after} after the write"
    );
    assert!(cut > 0, "no kill hit the write");

    host.stage(&three).unwrap();
    assert!(host.is_intact(Slot::A, &one) && host.is_intact(Slot::B, &three));
    assert_eq!(host.boot(), Slot::B);
}

fn kill_after(host: &Host, release: &Release, moment: Duration) {
    let call = release.call(host);
    let mut writer = host.writer();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(moment);
            let mut writers = host.writers.lock().unwrap();
            if let Some(child) = writers.last_mut() {
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        // Either it came through before, or the connection broke.
        let _ = writer.call("io.orlop.UpdateWriter.Stage", call);
    });
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}
