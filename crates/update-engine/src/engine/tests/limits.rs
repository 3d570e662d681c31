//! What holds in every state.

use super::*;

#[test]
fn events_out_of_place_change_nothing() {
    check!(TO_IDLE, @r#"
    progress 3
        idle (first)
    downloaded
        idle (first)
    staged b
        idle (first)
    good
        idle (first)
    offer 2
        idle (first)
    nothing
        idle (first)
    rolled-back b
        idle (first): ReadSlots
    "#);
}

#[test]
fn waiting_is_a_function_of_the_state() {
    let mut engine = engine("1", 1, Memory::default());
    let mut check = |phase: Phase, expect: [u64; 2]| {
        engine.phase = phase;
        let got = [0.0, 1.0].map(|luck| engine.delay(luck).map_or(0, |d| d.as_secs()));
        assert_eq!(got, expect, "{}", show_phase(&engine));
    };
    check(Phase::Starting, [0, 0]);
    check(Phase::Proving, [1, 1]);
    check(
        Phase::Idle {
            failures: 0,
            first: true,
        },
        [48, 72],
    );
    check(
        Phase::Idle {
            failures: 0,
            first: false,
        },
        [2430, 2970],
    );
    check(
        Phase::Idle {
            failures: 1,
            first: false,
        },
        [18, 30],
    );
    check(
        Phase::Idle {
            failures: 3,
            first: false,
        },
        [72, 120],
    );
    check(
        Phase::Idle {
            failures: 4_000_000_000,
            first: false,
        },
        [1620, 2700],
    );
    engine.settings.interval = Duration::from_secs(10);
    engine.phase = Phase::Idle {
        failures: 0,
        first: true,
    };
    assert_eq!(engine.delay(0.5), Some(Duration::from_secs(5)));
    engine.settings.server = None;
    assert_eq!(engine.delay(0.5), None);
}

#[test]
fn the_memory_stays_small() {
    let mut memory = Memory::default();
    for n in 0..100 {
        let version: Version = n.to_string().parse().unwrap();
        let id = Some(Sha256::of(n.to_string()));
        for _ in 0..2 {
            let failed = FailedRelease {
                version: version.clone(),
                id,
                reason: "x".into(),
                at: Timestamp::UNIX_EPOCH,
            };
            memory.remember_failure(failed);
        }
        memory.report(Report::Staged { version });
    }
    assert_eq!((memory.failed.len(), memory.reports.len()), (32, 32));
    assert_eq!(memory.failed.last().unwrap().version, "99".parse().unwrap());
    assert_eq!(memory.failed[0].version, "68".parse().unwrap());
}
