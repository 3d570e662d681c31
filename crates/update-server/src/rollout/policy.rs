use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::window::Window;

/// How a group takes a release. What is left out is as harmless as it can be: everybody at once,
/// at any time, and a brake.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Shares of the group in percent, rising to 100: whose turn it is after how many waves.
    pub waves: Vec<u8>,
    /// Over how many days the waves are spread; the last opens one wave before the end.
    pub days: f64,
    /// At most so many new hosts in so much time, whatever the waves allow.
    pub cap: Option<Cap>,
    /// When hosts may start. None: at any time.
    pub window: Option<Window>,
    /// A group on the same channel that has to do well first.
    pub canary: Option<String>,
    pub halt: Halt,
    /// A host that was offered a release and does not begin with it loses its turn after this.
    pub start_within_minutes: u32,
    /// A host that began has this long until it has to be heard of again, reboot window included.
    pub finish_within_days: u32,
}

/// At most `hosts` in `minutes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Cap {
    pub hosts: u32,
    pub minutes: u32,
}

/// When a rollout stops by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Halt {
    /// Off: it never does.
    pub enabled: bool,
    /// The share of failures (0 to 1) that is still all right.
    pub failure_budget: f64,
    /// Before so many hosts have a verdict, nothing is concluded.
    pub minimum_sample: u32,
}

impl Default for Halt {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_budget: 0.02,
            minimum_sample: 10,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            waves: vec![100],
            days: 0.0,
            cap: None,
            window: None,
            canary: None,
            halt: Halt::default(),
            start_within_minutes: 240,
            finish_within_days: 8,
        }
    }
}

/// Why a policy cannot be used; names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("waves: {0:?} has to rise from at least 1 to 100")]
    Waves(Vec<u8>),
    #[error("days: several waves need a time from 0.01 to 365 days")]
    Days,
    #[error("cap: hosts and minutes have to be at least 1, and minutes at most 10080 (a week)")]
    Cap,
    #[error("window: {0}")]
    Window(String),
    #[error("canary: {0:?} is the group itself")]
    OwnCanary(String),
    #[error("halt: failure_budget has to be more than 0 and at most 0.5")]
    Budget,
    #[error("halt: minimum_sample has to be from 1 to 100000")]
    Sample,
    #[error("start_within_minutes has to be from 5 to 10080 (a week)")]
    Start,
    #[error("finish_within_days has to be from 1 to 60")]
    Finish,
}

impl Policy {
    /// The usual stages.
    pub const WAVES: [u8; 7] = [1, 5, 15, 40, 60, 90, 100];

    /// The usual stages over `days`.
    pub fn staged(days: f64) -> Self {
        Self {
            waves: Self::WAVES.into(),
            days,
            ..Self::default()
        }
    }

    pub fn is_immediate(&self) -> bool {
        self.waves.len() <= 1
            && self.cap.is_none()
            && self.window.is_none()
            && self.canary.is_none()
    }

    /// For people, one thing after the other; of the deadlines only those that are not as usual.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![];
        if self.waves.len() > 1 {
            let shares: Vec<_> = self.waves.iter().map(u8::to_string).collect();
            words.push(format!(
                "waves of {} % over {} days",
                shares.join(", "),
                self.days
            ));
        } else {
            words.push("all hosts at once".into());
        }
        if let Some(cap) = self.cap {
            words.push(format!(
                "at most {} hosts in {} minutes",
                cap.hosts, cap.minutes
            ));
        }
        if let Some(window) = &self.window {
            words.push(format!("only {window}"));
        }
        if let Some(canary) = &self.canary {
            words.push(format!("after group {canary}"));
        }
        words.push(match self.halt.enabled {
            true => format!(
                "halts when clearly more than {} % fail, from {} hosts on",
                self.halt.failure_budget * 100.0,
                self.halt.minimum_sample
            ),
            false => "never halts by itself".into(),
        });
        let usual = Self::default();
        if self.start_within_minutes != usual.start_within_minutes {
            words.push(format!(
                "a turn is lost after {} minutes",
                self.start_within_minutes
            ));
        }
        if self.finish_within_days != usual.finish_within_days {
            words.push(format!(
                "a host that began is given up after {} days",
                self.finish_within_days
            ));
        }
        words
    }

    /// Looks at everything that the types do not say. `group` is whose policy it is.
    pub fn check(&self, group: &str) -> Result<(), PolicyError> {
        let rising = self.waves.windows(2).all(|pair| pair[0] < pair[1]);
        let ends = self.waves.first().is_some_and(|first| *first >= 1);
        if !rising || !ends || self.waves.last() != Some(&100) {
            return Err(PolicyError::Waves(self.waves.clone()));
        }
        if !(0.0..=365.0).contains(&self.days) || (self.waves.len() > 1 && self.days < 0.01) {
            return Err(PolicyError::Days);
        }
        if self
            .cap
            .is_some_and(|cap| cap.hosts == 0 || !(1..=10_080).contains(&cap.minutes))
        {
            return Err(PolicyError::Cap);
        }
        if let Some(window) = &self.window {
            window
                .check()
                .map_err(|error| PolicyError::Window(error.to_string()))?;
        }
        if let Some(canary) = self.canary.as_ref().filter(|canary| *canary == group) {
            return Err(PolicyError::OwnCanary(canary.clone()));
        }
        let budget = self.halt.failure_budget;
        if !(budget > 0.0 && budget <= 0.5) {
            return Err(PolicyError::Budget);
        }
        if !(1..=100_000).contains(&self.halt.minimum_sample) {
            return Err(PolicyError::Sample);
        }
        if !(5..=10_080).contains(&self.start_within_minutes) {
            return Err(PolicyError::Start);
        }
        if !(1..=60).contains(&self.finish_within_days) {
            return Err(PolicyError::Finish);
        }
        Ok(())
    }

    /// How long a wave stays the newest at least.
    pub(super) fn wave_length(&self) -> SignedDuration {
        SignedDuration::from_secs_f64(self.days * 86_400.0 / self.waves.len().max(1) as f64)
    }

    pub(super) fn share(&self, wave: usize) -> u8 {
        self.waves.get(wave).copied().unwrap_or(100)
    }

    /// The wave that a position (0 to 1) belongs to.
    pub(super) fn wave_of(&self, position: f64) -> usize {
        let inside = |share: &u8| position * 100.0 < f64::from(*share);
        let last = self.waves.len().saturating_sub(1);
        self.waves.iter().position(inside).unwrap_or(last)
    }

    pub(super) fn start_by(&self, now: Timestamp) -> Timestamp {
        later(
            now,
            SignedDuration::from_mins(self.start_within_minutes.into()),
        )
    }

    pub(super) fn finish_by(&self, now: Timestamp) -> Timestamp {
        later(
            now,
            SignedDuration::from_hours(24 * i64::from(self.finish_within_days)),
        )
    }
}

pub(super) fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_in_words() {
        let json = r#"{"waves":[10,100],"days":2,"cap":{"hosts":50,"minutes":60},"canary":"lab",
            "window":{"days":["tue"],"start":"22:00","minutes":90,"zone":"Europe/Berlin"},
            "start_within_minutes":60,"finish_within_days":2}"#;
        let policy: Policy = serde_json::from_str(json).unwrap();
        assert_eq!(
            policy.words(),
            [
                "waves of 10, 100 % over 2 days",
                "at most 50 hosts in 60 minutes",
                "only tue from 22:00 for 90 min (Europe/Berlin)",
                "after group lab",
                "halts when clearly more than 2 % fail, from 10 hosts on",
                "a turn is lost after 60 minutes",
                "a host that began is given up after 2 days"
            ]
        );
        assert_eq!(Policy::default().words().len(), 2);
    }

    fn check(json: &str, expect: &str) {
        let got = match serde_json::from_str::<Policy>(json) {
            Ok(policy) => match policy.check("web") {
                Ok(()) => "good".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => format!("{error}")
                .split(", expected")
                .next()
                .unwrap_or_default()
                .to_owned(),
        };
        assert_eq!(got, expect, "for {json}");
    }

    #[test]
    fn nonsense_is_named() {
        check("{}", "good");
        check(r#"{"waves":[1,5,15,40,60,90,100],"days":7}"#, "good");
        check(
            r#"{"waves":[5,1,100],"days":7}"#,
            "waves: [5, 1, 100] has to rise from at least 1 to 100",
        );
        check(
            r#"{"waves":[]}"#,
            "waves: [] has to rise from at least 1 to 100",
        );
        check(
            r#"{"waves":[1,50],"days":1}"#,
            "waves: [1, 50] has to rise from at least 1 to 100",
        );
        check(
            r#"{"waves":[1,100]}"#,
            "days: several waves need a time from 0.01 to 365 days",
        );
        check(
            r#"{"cap":{"hosts":0,"minutes":5}}"#,
            "cap: hosts and minutes have to be at least 1, and minutes at most 10080 (a week)",
        );
        check(r#"{"canary":"web"}"#, "canary: \"web\" is the group itself");
        check(
            r#"{"halt":{"failure_budget":0}}"#,
            "halt: failure_budget has to be more than 0 and at most 0.5",
        );
        check(r#"{"wave":[100]}"#, "unknown field `wave`");
        assert!(Policy::staged(7.0).check("web").is_ok());
        assert!(Policy::default().is_immediate() && !Policy::staged(7.0).is_immediate());
    }

    #[test]
    fn positions_fall_into_waves() {
        let policy = Policy::staged(7.0);
        let waves = [0.0, 0.0099, 0.01, 0.049, 0.05, 0.899, 0.9, 0.9999].map(|p| policy.wave_of(p));
        assert_eq!(waves, [0, 0, 1, 1, 2, 5, 6, 6]);
        assert_eq!(policy.wave_length(), SignedDuration::from_hours(24));
    }
}
