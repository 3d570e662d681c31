//! The values of `update.conf`.

use std::fmt;
use std::time::Duration;

use release::{Channel, ChannelError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootStrategy {
    /// Reboot as soon as a release is staged (within the window, if there is one).
    Reboot,
    /// Never reboot by itself.
    Off,
    /// Take the fleet's lock first.
    EtcdLock,
    /// Take the lock where there is a lock service, else just reboot.
    BestEffort,
}

impl RebootStrategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Off => "off",
            Self::EtcdLock => "etcd-lock",
            Self::BestEffort => "best-effort",
        }
    }
}

impl fmt::Display for RebootStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pub(super) fn parse_strategy(text: &str) -> Result<RebootStrategy, String> {
    use RebootStrategy::{BestEffort, EtcdLock, Off, Reboot};
    [Reboot, Off, EtcdLock, BestEffort]
        .into_iter()
        .find(|strategy| strategy.as_str() == text)
        .ok_or_else(|| "use reboot, off, best-effort or etcd-lock".to_owned())
}

/// What a reboot into a staged release is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RebootType {
    /// Of the whole machine.
    #[default]
    Hard,
    /// Of userspace alone where the kernel part is the same.
    Auto,
}

pub(super) fn parse_type(text: &str) -> Result<RebootType, String> {
    match text {
        "hard" => Ok(RebootType::Hard),
        "auto" => Ok(RebootType::Auto),
        _ => Err("use hard, or auto for a soft-reboot where the kernel stays the same".to_owned()),
    }
}

pub(super) fn parse_group(text: &str) -> Result<String, String> {
    let channel: Channel = text.parse().map_err(|e: ChannelError| e.to_string())?;
    Ok(channel.to_string())
}

/// Empty: as if there were no line.
pub(super) fn parse_channel(text: &str) -> Result<Option<Channel>, String> {
    match text {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|e: ChannelError| e.to_string()),
    }
}

/// `500K`, `2M` (powers of 1024) or plain bytes, each per second.
pub(super) fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    if matches!(text, "" | "unlimited") {
        return Ok(None);
    }
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) if text.ends_with('K') => (number, 1 << 10),
        Some(number) if text.ends_with('M') => (number, 1 << 20),
        Some(number) => (number, 1 << 30),
        None => (text, 1),
    };
    let rate = number.parse().ok().and_then(|n: u64| n.checked_mul(unit));
    match rate {
        // Slower than this, no release would ever arrive.
        Some(rate) if rate >= 4096 => Ok(Some(rate)),
        _ => Err("use bytes per second, such as 500K or 2M (at least 4K), or unlimited".into()),
    }
}

pub(super) fn parse_server(text: &str) -> Result<Option<String>, String> {
    if matches!(text, "" | "disabled") {
        return Ok(None);
    }
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest)
            if !rest.is_empty()
                && !rest.starts_with('/')
                && !text.contains(char::is_whitespace) =>
        {
            Ok(Some(text.to_owned()))
        }
        _ => Err("must be a URL like http://10.0.2.2:8090/v1/update/, or disabled".to_owned()),
    }
}

/// `90`, `10s`, `5m`, `1h30m`, `2d`: bare numbers are seconds, units may follow each other.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || "use seconds, or a duration like 10s, 5m or 1h30m".to_owned();
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| problem())?;
        rest = &rest[digits..];
        let unit = match rest.bytes().next() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 86400,
            _ => return Err(problem()),
        };
        rest = &rest[1..];
        total = number
            .checked_mul(unit)
            .and_then(|n| total.checked_add(n))
            .ok_or_else(problem)?;
    }
    match text {
        "" => Err(problem()),
        _ => Ok(Duration::from_secs(total)),
    }
}

/// The inverse of [`parse_duration`], e.g. `1h30m`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 86400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let text: String = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect();
    match text.is_empty() {
        true => "0s".to_owned(),
        false => text,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Weekday {
    pub const ALL: [Self; 7] = [
        Self::Mon,
        Self::Tue,
        Self::Wed,
        Self::Thu,
        Self::Fri,
        Self::Sat,
        Self::Sun,
    ];

    /// Monday is 1, as in ISO 8601.
    pub fn number(self) -> i8 {
        self as i8 + 1
    }
}

/// When a reboot window opens, in the host's time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowStart {
    /// `None`: every day.
    pub weekday: Option<Weekday>,
    pub hour: i8,
    pub minute: i8,
}

impl fmt::Display for WindowStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(day) = self.weekday {
            write!(f, "{day:?} ")?;
        }
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

/// `04:00`, `Thu 04:00`.
pub fn parse_window_start(text: &str) -> Result<WindowStart, String> {
    let problem = || "use \"04:00\" or \"Thu 04:00\"".to_owned();
    let mut words = text.split_whitespace();
    let (day, time) = match (words.next(), words.next(), words.next()) {
        (Some(time), None, _) => (None, time),
        (Some(day), Some(time), None) => (Some(day), time),
        _ => return Err(problem()),
    };
    let weekday = match day {
        None => None,
        Some(day) => Some(
            Weekday::ALL
                .into_iter()
                .find(|known| format!("{known:?}").eq_ignore_ascii_case(day))
                .ok_or_else(problem)?,
        ),
    };
    let (hour, minute) = time.split_once(':').ok_or_else(problem)?;
    let number = |text: &str, below: i8| match text.parse::<i8>() {
        Ok(n) if n < below && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(problem()),
    };
    let minute = match minute.len() {
        2 => number(minute, 60)?,
        _ => return Err(problem()),
    };
    Ok(WindowStart {
        weekday,
        hour: number(hour, 24)?,
        minute,
    })
}

/// When the host may reboot: from `start` for `length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    start: WindowStart,
    length: Duration,
}

impl Window {
    /// A window must be open some time, and closed before it opens again.
    pub fn new(start: WindowStart, length: Duration) -> Result<Self, String> {
        let (kind, most) = match start.weekday {
            None => ("daily", Duration::from_secs(86400)),
            Some(_) => ("weekly", Duration::from_secs(7 * 86400)),
        };
        match length {
            Duration::ZERO => Err("a window must be longer than nothing".to_owned()),
            length if length > most => Err(format!(
                "a {kind} window is at most {}h long",
                most.as_secs() / 3600
            )),
            length => Ok(Self { start, length }),
        }
    }

    pub fn start(self) -> WindowStart {
        self.start
    }

    pub fn length(self) -> Duration {
        self.length
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.start, format_duration(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for (text, seconds, back) in [
            ("90", 90, "1m30s"),
            ("10s", 10, "10s"),
            ("1h30m", 5400, "1h30m"),
            ("2d", 172_800, "2d"),
            ("0", 0, "0s"),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
            assert_eq!(format_duration(Duration::from_secs(seconds)), back);
        }
        for bad in [
            "",
            "h",
            "1x",
            "1h30",
            "-1",
            "1.5h",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn window_starts() {
        for (text, shown) in [
            ("04:00", "04:00"),
            ("4:05", "04:05"),
            ("thu 23:59", "Thu 23:59"),
            ("Sun  00:00", "Sun 00:00"),
        ] {
            assert_eq!(parse_window_start(text).unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "24:00",
            "04:60",
            "4",
            "04:0",
            "Thursday 04:00",
            "Thu",
            "Thu 04:00 x",
            "+4:00",
            "04:+1",
        ] {
            assert!(parse_window_start(bad).is_err(), "{bad}");
        }
    }
}
