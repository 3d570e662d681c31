//! Scripts: a policy, then lines of `time event`; the snapshot is what the machine does.

use std::fmt::Write;

use host::conf::{Window, WindowStart};

use super::*;

fn free() -> Policy {
    Policy {
        rule: Rule::Free,
        window: None,
    }
}

fn off() -> Policy {
    Policy {
        rule: Rule::Never {
            why: "the strategy is off".into(),
        },
        window: None,
    }
}

fn best_effort() -> Policy {
    Policy {
        rule: Rule::LockIfAny,
        window: None,
    }
}

/// Every day from 04:00 to 05:00.
fn windowed(policy: Policy) -> Policy {
    let start = WindowStart {
        weekday: None,
        hour: 4,
        minute: 0,
    };
    Policy {
        window: Some(Window::new(start, std::time::Duration::from_secs(3600)).unwrap()),
        ..policy
    }
}

fn needed(version: &str) -> Event {
    Event::Needed {
        version: version.into(),
    }
}

fn run(policy: Policy, script: &[(&str, Event)]) -> String {
    let mut state = State::new(policy);
    let mut out = String::new();
    for (time, event) in script {
        let now: Zoned = format!("2026-11-23T{time}[UTC]").parse().unwrap();
        let (next, actions) = step(state, event.clone(), &now);
        state = next;
        writeln!(out, "{time} {event:?} → {}", state.phase).unwrap();
        for action in actions {
            writeln!(out, "    {action:?}").unwrap();
        }
    }
    out
}

#[test]
fn reboots_at_once_and_only_once() {
    insta::assert_snapshot!(run(free(), &[
        ("10:00:00", needed("2")),
        ("10:00:05", Event::Tick),
        ("10:00:06", Event::NotNeeded),
        ("10:00:07", Event::Policy(off())),
        ("10:10:00", Event::Tick),
    ]), @r#"
    10:00:00 Needed { version: "2" } → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    10:00:05 Tick → rebooting into 2 now
    10:00:06 NotNeeded → rebooting into 2 now
    10:00:07 Policy(Policy { rule: Never { why: "the strategy is off" }, window: None }) → rebooting into 2 now
    10:10:00 Tick → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    "#);
}

#[test]
fn a_failed_reboot_is_tried_again() {
    insta::assert_snapshot!(run(free(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", Event::RebootFailed { reason: "no bus".into() }),
        ("10:00:29", Event::Tick),
        ("10:00:30", Event::Tick),
    ]), @r#"
    10:00:00 Needed { version: "2" } → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    10:00:00 RebootFailed { reason: "no bus" } → rebooting into 2 failed; tried again at 10:00:30 UTC
        Complain("cannot reboot: no bus; trying again in 30 s")
    10:00:29 Tick → rebooting into 2 failed; tried again at 10:00:30 UTC
    10:00:30 Tick → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    "#);
}

fn reboot_failed() -> Event {
    Event::RebootFailed {
        reason: "no bus".into(),
    }
}

#[test]
fn after_a_failed_reboot_it_is_decided_anew() {
    insta::assert_snapshot!(run(free(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", reboot_failed()),
        ("10:00:05", needed("2")),
        ("10:00:10", Event::NotNeeded),
    ]), @r#"
    10:00:00 Needed { version: "2" } → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    10:00:00 RebootFailed { reason: "no bus" } → rebooting into 2 failed; tried again at 10:00:30 UTC
        Complain("cannot reboot: no bus; trying again in 30 s")
    10:00:05 Needed { version: "2" } → rebooting into 2 failed; tried again at 10:00:30 UTC
    10:00:10 NotNeeded → no release waits for a reboot
        Say("no release waits any more: not rebooting")
        Exit
    "#);
    insta::assert_snapshot!(run(free(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", reboot_failed()),
        ("10:00:05", needed("3")),
        ("10:00:10", Event::Policy(off())),
        ("10:00:30", Event::Tick),
    ]), @r#"
    10:00:00 Needed { version: "2" } → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    10:00:00 RebootFailed { reason: "no bus" } → rebooting into 2 failed; tried again at 10:00:30 UTC
        Complain("cannot reboot: no bus; trying again in 30 s")
    10:00:05 Needed { version: "3" } → rebooting into 3 failed; tried again at 10:00:30 UTC
    10:00:10 Policy(Policy { rule: Never { why: "the strategy is off" }, window: None }) → 3 is staged; not rebooting
        Say("3 is staged; not rebooting: the strategy is off")
    10:00:30 Tick → 3 is staged; not rebooting
    "#);
    // The window closed meanwhile, and the lock is for others now.
    insta::assert_snapshot!(run(windowed(best_effort()), &[
        ("04:59:50", needed("2")),
        ("04:59:50", Event::Lock(lock::Event::Granted { revision: 1 })),
        ("04:59:50", reboot_failed()),
        ("05:00:20", Event::Tick),
    ]), @r#"
    04:59:50 Needed { version: "2" } → 2 is staged; waiting for the lock
        Lock(Acquire)
    04:59:50 Lock(Granted { revision: 1 }) → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    04:59:50 RebootFailed { reason: "no bus" } → rebooting into 2 failed; tried again at 05:00:20 UTC
        Complain("cannot reboot: no bus; trying again in 30 s")
    05:00:20 Tick → will reboot into 2 at Tue 2026-11-24 04:00 UTC
        Lock(Release { revision: 1 })
        Say("will reboot into 2 at Tue 2026-11-24 04:00 UTC")
        Lock(Release { revision: 1 })
    "#);
    // The lock that is held already is not asked for again.
    insta::assert_snapshot!(run(best_effort(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", Event::Lock(lock::Event::Granted { revision: 1 })),
        ("10:00:00", reboot_failed()),
        ("10:00:30", Event::Tick),
    ]), @r#"
    10:00:00 Needed { version: "2" } → 2 is staged; waiting for the lock
        Lock(Acquire)
    10:00:00 Lock(Granted { revision: 1 }) → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    10:00:00 RebootFailed { reason: "no bus" } → rebooting into 2 failed; tried again at 10:00:30 UTC
        Complain("cannot reboot: no bus; trying again in 30 s")
    10:00:30 Tick → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    "#);
}

#[test]
fn off_stays_until_the_configuration_changes() {
    insta::assert_snapshot!(run(off(), &[
        ("10:00:00", needed("2")),
        ("10:01:00", Event::Tick),
        ("10:01:01", needed("3")),
        ("10:02:00", Event::Policy(free())),
    ]), @r#"
    10:00:00 Needed { version: "2" } → 2 is staged; not rebooting
        Say("2 is staged; not rebooting: the strategy is off")
    10:01:00 Tick → 2 is staged; not rebooting
    10:01:01 Needed { version: "3" } → 3 is staged; not rebooting
        Say("3 is staged; not rebooting: the strategy is off")
    10:02:00 Policy(Policy { rule: Free, window: None }) → rebooting into 3 now
        Say("rebooting into 3 now")
        Reboot
    "#);
}

#[test]
fn waits_for_the_window_and_says_so_once() {
    insta::assert_snapshot!(run(windowed(free()), &[
        ("03:00:00", needed("2")),
        ("03:30:00", Event::Tick),
        ("04:00:00", Event::Tick),
    ]), @r#"
    03:00:00 Needed { version: "2" } → will reboot into 2 at Mon 2026-11-23 04:00 UTC
        Say("will reboot into 2 at Mon 2026-11-23 04:00 UTC")
    03:30:00 Tick → will reboot into 2 at Mon 2026-11-23 04:00 UTC
    04:00:00 Tick → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    "#);
}

#[test]
fn nothing_to_do_means_exit() {
    insta::assert_snapshot!(run(windowed(free()), &[
        ("03:00:00", Event::NotNeeded),
        ("03:00:00", needed("2")),
        ("03:30:00", Event::NotNeeded),
        ("03:30:00", Event::RebootFailed { reason: "?".into() }),
    ]), @r#"
    03:00:00 NotNeeded → no release waits for a reboot
        Exit
    03:00:00 Needed { version: "2" } → will reboot into 2 at Mon 2026-11-23 04:00 UTC
        Say("will reboot into 2 at Mon 2026-11-23 04:00 UTC")
    03:30:00 NotNeeded → no release waits for a reboot
        Say("no release waits any more: not rebooting")
        Exit
    03:30:00 RebootFailed { reason: "?" } → no release waits for a reboot
        Complain("did not expect RebootFailed { reason: \"?\" } while: no release waits for a reboot; ignored")
    "#);
}

#[test]
fn best_effort_without_a_service_reboots() {
    insta::assert_snapshot!(run(best_effort(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", Event::Lock(lock::Event::Unavailable)),
    ]), @r#"
    10:00:00 Needed { version: "2" } → 2 is staged; waiting for the lock
        Lock(Acquire)
    10:00:00 Lock(Unavailable) → rebooting into 2 now
        Say("no lock service: rebooting without a lock")
        Say("rebooting into 2 now")
        Reboot
    "#);
}

#[test]
fn a_lock_is_awaited_within_the_window_only() {
    let denied = || {
        Event::Lock(lock::Event::Denied {
            holders: vec!["node-2".into()],
        })
    };
    insta::assert_snapshot!(run(windowed(best_effort()), &[
        ("04:59:00", needed("2")),
        ("04:59:00", denied()),
        ("04:59:05", Event::Tick),
        ("04:59:55", denied()),
        ("05:00:05", Event::Tick),
        ("05:00:06", Event::Lock(lock::Event::Granted { revision: 1 })),
    ]), @r#"
    04:59:00 Needed { version: "2" } → 2 is staged; waiting for the lock
        Lock(Acquire)
    04:59:00 Lock(Denied { holders: ["node-2"] }) → 2 is staged; waiting for the lock
        Say("2 is staged; waiting for the lock, held by node-2")
    04:59:05 Tick → 2 is staged; waiting for the lock
        Lock(Acquire)
    04:59:55 Lock(Denied { holders: ["node-2"] }) → 2 is staged; waiting for the lock
        Say("2 is staged; waiting for the lock, held by node-2")
    05:00:05 Tick → will reboot into 2 at Tue 2026-11-24 04:00 UTC
        Say("will reboot into 2 at Tue 2026-11-24 04:00 UTC")
    05:00:06 Lock(Granted { revision: 1 }) → will reboot into 2 at Tue 2026-11-24 04:00 UTC
        Lock(Release { revision: 1 })
    "#);
}

#[test]
fn a_lock_is_kept_over_the_reboot_and_else_given_back_before_exit() {
    insta::assert_snapshot!(run(best_effort(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", Event::Lock(lock::Event::Granted { revision: 4 })),
        ("10:00:05", Event::NotNeeded),
    ]), @r#"
    10:00:00 Needed { version: "2" } → 2 is staged; waiting for the lock
        Lock(Acquire)
    10:00:00 Lock(Granted { revision: 4 }) → rebooting into 2 now
        Say("rebooting into 2 now")
        Reboot
    10:00:05 NotNeeded → rebooting into 2 now
    "#);
    insta::assert_snapshot!(run(best_effort(), &[
        ("10:00:00", needed("2")),
        ("10:00:00", Event::NotNeeded),
        ("10:00:01", Event::Lock(lock::Event::Granted { revision: 5 })),
        ("10:00:02", Event::NotNeeded),
        ("10:00:03", Event::Tick),
        ("10:00:03", Event::Lock(lock::Event::Released)),
        ("10:00:04", Event::NotNeeded),
    ]), @r#"
    10:00:00 Needed { version: "2" } → 2 is staged; waiting for the lock
        Lock(Acquire)
    10:00:00 NotNeeded → no release waits for a reboot
        Say("no release waits any more: not rebooting")
        Exit
    10:00:01 Lock(Granted { revision: 5 }) → no release waits for a reboot
        Lock(Release { revision: 5 })
    10:00:02 NotNeeded → no release waits for a reboot
    10:00:03 Tick → no release waits for a reboot
        Lock(Release { revision: 5 })
    10:00:03 Lock(Released) → no release waits for a reboot
    10:00:04 NotNeeded → no release waits for a reboot
        Exit
    "#);
}
