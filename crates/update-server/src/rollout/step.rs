use jiff::{SignedDuration, Timestamp};

use super::policy::later;
use super::{Grant, GrantState, Hold, Policy, Rollout, Status, Tally, Turn, exceeds};

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A host is concerned; `grant` is what the rollout gave it before.
    Host {
        id: &'a str,
        grant: Option<Grant>,
        what: HostEvent<'a>,
    },
    /// Time passes. `hosts` belong to the group, `behind` of them run something older.
    Tick {
        hosts: u64,
        behind: u64,
        canary: Canary,
    },
    Pause {
        by: &'a str,
    },
    /// Goes on, also after a halt: the verdicts so far are accepted.
    Resume,
    /// It was halted in another group, or the release was withdrawn.
    Halt {
        reason: &'a str,
    },
    Supersede,
    /// The policy was changed to the one that comes along.
    Replan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// It suits the host, which asks for it.
    Asks,
    /// An operator at the host has it ask.
    Forces,
    /// It downloads, or has staged the release.
    Started,
    /// It runs the release and is healthy.
    Good,
    /// It left the release again.
    Failed { reason: &'a str },
    /// The grant's time is over. `heard`: the host is still there ([`super::heard`]).
    Expired { heard: bool },
}

/// How the group that goes first does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// There is none to wait for.
    None,
    Running,
    /// Every host of it that began has a verdict, and it went well ([`Rollout::went_well`]).
    Passed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Offer,
    Hold(Hold),
    SaveGrant(Grant),
    /// All that was granted belongs to the first wave now.
    RegroupGrants,
    Tell(Note),
}

/// What the operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    CanaryPassed,
    WaveOpened { number: usize, share: u8 },
    Halted { reason: String },
    Completed,
    Lost,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub rollout: Rollout,
    pub actions: Vec<Action>,
}

/// The one way in which a rollout changes. An event that does not fit changes nothing.
pub fn step(policy: &Policy, mut rollout: Rollout, event: Event<'_>, now: Timestamp) -> Step {
    let mut actions = vec![];
    match event {
        Event::Host { id, grant, what } => {
            host(policy, &mut rollout, id, grant, what, now, &mut actions);
        }
        Event::Tick {
            hosts,
            behind,
            canary,
        } => {
            tick(
                policy,
                &mut rollout,
                (hosts, behind),
                canary,
                now,
                &mut actions,
            );
        }
        Event::Pause { by } => {
            let awaiting_canary = rollout.status == Status::AwaitingCanary;
            if awaiting_canary || matches!(rollout.status, Status::Active | Status::Complete) {
                let elapsed = if awaiting_canary {
                    0
                } else {
                    elapsed(&rollout, now)
                };
                rollout.status = Status::Paused {
                    by: by.into(),
                    elapsed,
                    awaiting_canary,
                };
            }
        }
        Event::Resume => resume(&mut rollout, now),
        Event::Halt { reason } => halt(&mut rollout, reason.into(), now, &mut actions),
        Event::Supersede => rollout.status = Status::Superseded,
        Event::Replan => replan(policy, &mut rollout, now, &mut actions),
    }
    Step { rollout, actions }
}

fn elapsed(rollout: &Rollout, now: Timestamp) -> i64 {
    (now.as_second() - rollout.wave_since.as_second()).max(0)
}

fn resume(rollout: &mut Rollout, now: Timestamp) {
    let (elapsed, awaiting_canary) = match &rollout.status {
        Status::Paused {
            elapsed,
            awaiting_canary,
            ..
        } => (*elapsed, *awaiting_canary),
        Status::Halted {
            elapsed,
            awaiting_canary,
            ..
        } => {
            let went_on = (*elapsed, *awaiting_canary);
            for tally in &mut rollout.tallies {
                tally.accepted = (tally.good, tally.bad());
            }
            went_on
        }
        _ => return,
    };
    if awaiting_canary {
        rollout.status = Status::AwaitingCanary;
        return;
    }
    rollout.status = Status::Active;
    rollout.wave_since = now
        .checked_sub(SignedDuration::from_secs(elapsed))
        .unwrap_or(now);
}

fn halt(rollout: &mut Rollout, reason: String, now: Timestamp, actions: &mut Vec<Action>) {
    let (elapsed, awaiting_canary) = match &rollout.status {
        Status::Halted { .. } | Status::Superseded => return,
        Status::AwaitingCanary => (0, true),
        Status::Paused {
            elapsed,
            awaiting_canary,
            ..
        } => (*elapsed, *awaiting_canary),
        Status::Active | Status::Complete => (elapsed(rollout, now), false),
    };
    rollout.status = Status::Halted {
        reason: reason.clone(),
        elapsed,
        awaiting_canary,
    };
    actions.push(Action::Tell(Note::Halted { reason }));
}

/// Other waves begin with the first of them; whoever has a turn keeps it. A canary that is new is waited for
/// unless somebody was ahead of it already.
fn replan(policy: &Policy, rollout: &mut Rollout, now: Timestamp, actions: &mut Vec<Action>) {
    let waves = policy.waves.len().max(1);
    if rollout.tallies.len() != waves {
        let total = rollout.total();
        rollout.tallies = vec![Tally::default(); waves];
        rollout.wave = 0;
        rollout.wave_since = now;
        rollout.tallies[0] = total;
        actions.push(Action::RegroupGrants);
    }
    rollout.wave = rollout.wave.min(waves - 1);
    let waits = policy.canary.is_some() && rollout.total().granted == 0;
    match &mut rollout.status {
        Status::AwaitingCanary if policy.canary.is_none() => {
            rollout.status = Status::Active;
            rollout.wave_since = now;
        }
        Status::Active | Status::Complete if waits => rollout.status = Status::AwaitingCanary,
        Status::Complete => rollout.status = Status::Active,
        Status::Paused {
            awaiting_canary, ..
        }
        | Status::Halted {
            awaiting_canary, ..
        } => *awaiting_canary = policy.canary.is_some() && (*awaiting_canary || waits),
        _ => {}
    }
}

fn host(
    policy: &Policy,
    rollout: &mut Rollout,
    id: &str,
    grant: Option<Grant>,
    what: HostEvent<'_>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let state = grant.map(|grant| grant.state);
    match what {
        HostEvent::Asks | HostEvent::Forces => {
            let turn = match what {
                HostEvent::Forces => Ok(rollout.forced(policy, id, grant.as_ref())),
                _ => rollout.turn(policy, id, grant.as_ref(), now),
            };
            match turn {
                Err(hold) => actions.push(Action::Hold(hold)),
                Ok(Turn::Standing) => actions.push(Action::Offer),
                Ok(Turn::New { wave }) => {
                    count_in_period(policy, rollout, now);
                    let grant = Grant {
                        wave,
                        state: GrantState::Offered,
                        expires: Some(policy.start_by(now)),
                    };
                    tally(rollout, wave).granted += 1;
                    actions.extend([Action::SaveGrant(grant), Action::Offer]);
                }
            }
        }
        HostEvent::Started => {
            let Some(grant) = grant else { return };
            if matches!(
                grant.state,
                GrantState::Offered | GrantState::Lapsed | GrantState::Lost
            ) {
                settle(rollout, &grant, GrantState::Started);
            } else if grant.state != GrantState::Started {
                return;
            }
            actions.push(Action::SaveGrant(Grant {
                state: GrantState::Started,
                expires: Some(policy.finish_by(now)),
                ..grant
            }));
        }
        HostEvent::Good | HostEvent::Failed { .. } => {
            // A host that was never granted it (it was written by hand) says nothing about the rollout.
            let Some(grant) = grant else { return };
            let (verdict, reason) = match what {
                HostEvent::Failed { reason } => (GrantState::Failed, reason),
                _ => (GrantState::Good, ""),
            };
            if state == Some(verdict) {
                return;
            }
            settle(rollout, &grant, verdict);
            actions.push(Action::SaveGrant(Grant {
                state: verdict,
                expires: None,
                ..grant
            }));
            if verdict == GrantState::Failed {
                brake(policy, rollout, grant.wave, reason, now, actions);
            }
        }
        HostEvent::Expired { heard } => {
            let Some(grant) = grant.filter(|g| g.expires.is_some_and(|at| at <= now)) else {
                return;
            };
            let verdict = match grant.state {
                GrantState::Offered => GrantState::Lapsed,
                GrantState::Started if heard => GrantState::Lapsed,
                GrantState::Started => GrantState::Lost,
                _ => return,
            };
            settle(rollout, &grant, verdict);
            actions.push(Action::SaveGrant(Grant {
                state: verdict,
                expires: None,
                ..grant
            }));
            if verdict == GrantState::Lost {
                actions.push(Action::Tell(Note::Lost));
                brake(
                    policy,
                    rollout,
                    grant.wave,
                    "not heard of again",
                    now,
                    actions,
                );
            }
        }
    }
}

fn tally(rollout: &mut Rollout, wave: usize) -> &mut Tally {
    let last = rollout.tallies.len().saturating_sub(1);
    &mut rollout.tallies[wave.min(last)]
}

/// Takes a grant out of the count it is in and puts it into the one of its new state.
fn settle(rollout: &mut Rollout, grant: &Grant, to: GrantState) {
    let tally = tally(rollout, grant.wave);
    match grant.state {
        GrantState::Good => tally.good = tally.good.saturating_sub(1),
        GrantState::Failed => tally.failed = tally.failed.saturating_sub(1),
        GrantState::Lost => tally.lost = tally.lost.saturating_sub(1),
        GrantState::Lapsed => tally.granted += 1,
        GrantState::Offered | GrantState::Started => {}
    }
    match to {
        GrantState::Good => tally.good += 1,
        GrantState::Failed => tally.failed += 1,
        GrantState::Lost => tally.lost += 1,
        GrantState::Lapsed => tally.granted = tally.granted.saturating_sub(1),
        GrantState::Offered | GrantState::Started => {}
    }
}

fn count_in_period(policy: &Policy, rollout: &mut Rollout, now: Timestamp) {
    let Some(cap) = &policy.cap else {
        rollout.period = None;
        return;
    };
    let length = SignedDuration::from_mins(cap.minutes.into());
    rollout.period = match rollout.period {
        Some((since, hosts)) if now < later(since, length) => Some((since, hosts + 1)),
        _ => Some((now, 1)),
    };
}

/// Stops when this wave, or the whole so far, is worse than the budget.
fn brake(
    policy: &Policy,
    rollout: &mut Rollout,
    wave: usize,
    last_reason: &str,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    if !policy.halt.enabled {
        return;
    }
    let wave = wave.min(rollout.tallies.len().saturating_sub(1));
    let of_wave = rollout.tallies[wave].unaccepted();
    let of_all = rollout.tallies.iter().fold((0, 0), |(good, bad), tally| {
        let (more_good, more_bad) = tally.unaccepted();
        (good + more_good, bad + more_bad)
    });
    let share = policy.share(wave);
    let scopes = [
        (of_wave, format!("in wave {} ({share} %)", wave + 1)),
        (of_all, "in all".to_owned()),
    ];
    for ((good, bad), scope) in scopes {
        let enough = good + bad >= u64::from(policy.halt.minimum_sample);
        if enough && exceeds(policy.halt.failure_budget, good, bad) {
            let budget = policy.halt.failure_budget * 100.0;
            let first_line = last_reason.lines().next().unwrap_or_default();
            let last: String = first_line.chars().take(200).collect();
            let reason = format!(
                "{bad} of {} hosts {scope} did not keep it, the budget is {budget} %; the last: {last}",
                good + bad
            );
            halt(rollout, reason, now, actions);
            return;
        }
    }
}

fn tick(
    policy: &Policy,
    rollout: &mut Rollout,
    (hosts, behind): (u64, u64),
    canary: Canary,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    if rollout.status == Status::AwaitingCanary {
        if canary == Canary::Running {
            return;
        }
        rollout.status = Status::Active;
        rollout.wave_since = now;
        if canary == Canary::Passed {
            actions.push(Action::Tell(Note::CanaryPassed));
        }
        return;
    }
    if rollout.status != Status::Active {
        return;
    }
    if rollout.wave + 1 < rollout.tallies.len() {
        if may_widen(policy, rollout, behind, now) {
            rollout.wave += 1;
            rollout.wave_since = now;
            actions.push(Action::Tell(Note::WaveOpened {
                number: rollout.wave + 1,
                share: policy.share(rollout.wave),
            }));
        }
    } else if hosts > 0 && behind <= rollout.total().bad() && rollout.total().waiting() == 0 {
        rollout.status = Status::Complete;
        actions.push(Action::Tell(Note::Completed));
    }
}

/// The next wave needs time, and evidence from those before.
fn may_widen(policy: &Policy, rollout: &Rollout, behind: u64, now: Timestamp) -> bool {
    let length = policy.wave_length();
    if now < later(rollout.wave_since, length) {
        return false;
    }
    let total = rollout.total();
    if total.settled() * 2 < total.granted {
        return false;
    }
    // Of hosts that are off for long there will be no evidence.
    let patience = length.checked_mul(3).unwrap_or(SignedDuration::MAX);
    if now >= later(rollout.wave_since, patience) {
        return true;
    }
    // Hosts that never needed it cannot say how it went.
    let concerned = behind + total.good;
    let expected = concerned * u64::from(policy.share(rollout.wave)) / 100;
    total.settled() >= u64::from(policy.halt.minimum_sample).min(expected / 2)
}
