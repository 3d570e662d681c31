use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

/// When hosts may start an update: on which days, from when, for how long, on whose clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// `mon` to `sun`: the days on which it opens; it may reach into the next. None: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// `22:00`
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub start: Time,
    pub minutes: u32,
    /// An IANA name such as `Europe/Berlin`, or `UTC`.
    #[serde(default = "utc")]
    pub zone: String,
}

fn utc() -> String {
    "UTC".into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    pub const ALL: [Self; 7] = [
        Self::Mon,
        Self::Tue,
        Self::Wed,
        Self::Thu,
        Self::Fri,
        Self::Sat,
        Self::Sun,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mon => "mon",
            Self::Tue => "tue",
            Self::Wed => "wed",
            Self::Thu => "thu",
            Self::Fri => "fri",
            Self::Sat => "sat",
            Self::Sun => "sun",
        }
    }

    fn weekday(self) -> Weekday {
        match self {
            Self::Mon => Weekday::Monday,
            Self::Tue => Weekday::Tuesday,
            Self::Wed => Weekday::Wednesday,
            Self::Thu => Weekday::Thursday,
            Self::Fri => Weekday::Friday,
            Self::Sat => Weekday::Saturday,
            Self::Sun => Weekday::Sunday,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("minutes has to be from 5 to 1440 (a day)")]
    Length,
    #[error("zone {0:?} is not a time zone such as Europe/Berlin or UTC")]
    Zone(String),
}

/// Whether it is open, and until or from when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    Until(Timestamp),
    NotBefore(Timestamp),
}

impl Window {
    pub fn check(&self) -> Result<(), WindowError> {
        if !(5..=1440).contains(&self.minutes) {
            return Err(WindowError::Length);
        }
        TimeZone::get(&self.zone)
            .map(|_| ())
            .map_err(|_| WindowError::Zone(self.zone.clone()))
    }

    /// A zone that is gone from the system counts as UTC: an update at the wrong hour beats none.
    fn time_zone(&self) -> TimeZone {
        TimeZone::get(&self.zone).unwrap_or(TimeZone::UTC)
    }

    pub fn at(&self, now: Timestamp) -> Open {
        let zone = self.time_zone();
        let today = now.to_zoned(zone.clone()).date();
        // The one of yesterday may still be open; a week has every day there is.
        let openings = (-1..=7).filter_map(|offset| {
            let date = today.checked_add(offset.days()).ok()?;
            let opens = self.opening(date, &zone)?;
            let length = SignedDuration::from_mins(self.minutes.into());
            Some((opens, opens.checked_add(length).ok()?))
        });
        for (opens, closes) in openings {
            if opens <= now && now < closes {
                return Open::Until(closes);
            }
            if opens > now {
                return Open::NotBefore(opens);
            }
        }
        Open::NotBefore(now)
    }

    /// In a gap of the clocks it opens when they have jumped.
    fn opening(&self, date: Date, zone: &TimeZone) -> Option<Timestamp> {
        let today = |day: &Day| day.weekday() == date.weekday();
        if !self.days.is_empty() && !self.days.iter().any(today) {
            return None;
        }
        let opens = date.to_datetime(self.start).to_zoned(zone.clone()).ok()?;
        Some(opens.timestamp())
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let days = if self.days.is_empty() {
            "every day".into()
        } else {
            let names: Vec<_> = self.days.iter().map(|day| day.as_str()).collect();
            names.join(" ")
        };
        let start = self.start.strftime("%H:%M");
        write!(
            f,
            "{days} from {start} for {} min ({})",
            self.minutes, self.zone
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(window: &Window, now: &str, expect: &str) {
        let got = match window.at(now.parse().unwrap()) {
            Open::Until(at) => format!("open until {at}"),
            Open::NotBefore(at) => format!("closed until {at}"),
        };
        assert_eq!(got, expect, "at {now}");
    }

    fn window(days: &[Day], start: &str, minutes: u32, zone: &str) -> Window {
        Window {
            days: days.into(),
            start: start.parse().unwrap(),
            minutes,
            zone: zone.into(),
        }
    }

    #[test]
    fn a_night_reaches_into_the_next_day() {
        let nights = window(&[Day::Tue, Day::Sat], "22:00", 360, "Europe/Berlin");
        // 24 November 2026 is a Tuesday; Berlin is an hour ahead.
        check(
            &nights,
            "2026-11-24T20:59:59Z",
            "closed until 2026-11-24T21:00:00Z",
        );
        check(
            &nights,
            "2026-11-24T21:00:00Z",
            "open until 2026-11-25T03:00:00Z",
        );
        check(
            &nights,
            "2026-11-25T02:59:59Z",
            "open until 2026-11-25T03:00:00Z",
        );
        check(
            &nights,
            "2026-11-25T03:00:00Z",
            "closed until 2026-11-28T21:00:00Z",
        );
        check(
            &nights,
            "2026-11-29T12:00:00Z",
            "closed until 2026-12-01T21:00:00Z",
        );
    }

    #[test]
    fn clocks_that_jump() {
        // On 29 March 2026 there is no 02:30 in Berlin.
        let gap = window(&[], "02:30", 60, "Europe/Berlin");
        check(
            &gap,
            "2026-03-29T01:00:00Z",
            "closed until 2026-03-29T01:30:00Z",
        );
        check(
            &gap,
            "2026-03-29T01:30:00Z",
            "open until 2026-03-29T02:30:00Z",
        );
        check(
            &gap,
            "2026-03-30T00:29:00Z",
            "closed until 2026-03-30T00:30:00Z",
        );
        let all_day = window(&[Day::Mon], "00:00", 1440, "UTC");
        check(
            &all_day,
            "2026-11-23T23:59:59Z",
            "open until 2026-11-24T00:00:00Z",
        );
        check(
            &all_day,
            "2026-11-24T00:00:00Z",
            "closed until 2026-11-30T00:00:00Z",
        );
    }

    #[test]
    fn what_it_is_not() {
        let zone = window(&[], "02:00", 60, "Berlin").check().unwrap_err();
        assert_eq!(
            zone.to_string(),
            "zone \"Berlin\" is not a time zone such as Europe/Berlin or UTC"
        );
        assert_eq!(
            window(&[], "02:00", 4, "UTC").check(),
            Err(WindowError::Length)
        );
        let text = r#"{"days":["mon","fri"],"start":"22:00","minutes":90}"#;
        let window: Window = serde_json::from_str(text).unwrap();
        assert_eq!(window.to_string(), "mon fri from 22:00 for 90 min (UTC)");
    }
}
