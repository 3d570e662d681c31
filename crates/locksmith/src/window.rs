//! When a reboot window is open, in the host's time zone.

use std::time::Duration;

use host::conf::Window;
use jiff::civil::Time;
use jiff::{SignedDuration, Zoned};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    Open,
    ClosedUntil(Zoned),
}

/// Where `now` falls in `window`.
///
/// The start is a time on the clock on the wall, the length is time that passes. So where the clock
/// jumps over the start, the window opens as much later; where the start comes twice, it opens the
/// first time. Both are what RFC 5545 prescribes for recurring events.
pub fn opening(window: Window, now: &Zoned) -> Opening {
    let start = window.start();
    let time = Time::constant(start.hour, start.minute, 0, 0);
    let length = signed(window.length());
    // A window is at most a week long and opens at least once a week.
    let openings = (-8..=8).filter_map(|days: i64| {
        let date = now
            .date()
            .checked_add(SignedDuration::from_hours(24 * days))
            .ok()?;
        let on_day = start
            .weekday
            .is_none_or(|day| day.number() == date.weekday().to_monday_one_offset());
        let opens = on_day
            .then(|| date.to_datetime(time).to_zoned(now.time_zone().clone()))?
            .ok()?;
        let closes = opens.checked_add(length).ok()?;
        Some((opens, closes))
    });
    match openings.into_iter().find(|(_, closes)| closes > now) {
        Some((opens, _)) if opens <= *now => Opening::Open,
        Some((opens, _)) => Opening::ClosedUntil(opens),
        // Only at the end of the calendar; rebooting beats waiting for ever.
        None => Opening::Open,
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use host::conf::{Weekday, WindowStart, parse_duration};

    use super::*;

    fn check(window: &str, now: &str, expect: &str) {
        let (start, length) = window.split_once(" for ").unwrap();
        let (day, time) = start
            .split_once(' ')
            .map_or((None, start), |(d, t)| (Some(d), t));
        let weekday = day.map(|d| {
            Weekday::ALL
                .into_iter()
                .find(|w| format!("{w:?}") == d)
                .unwrap()
        });
        let (hour, minute) = time.split_once(':').unwrap();
        let start = WindowStart {
            weekday,
            hour: hour.parse().unwrap(),
            minute: minute.parse().unwrap(),
        };
        let window = Window::new(start, parse_duration(length).unwrap()).unwrap();
        let now: Zoned = now.parse().unwrap();
        let got = match opening(window, &now) {
            Opening::Open => "open".to_owned(),
            Opening::ClosedUntil(at) => at.strftime("%a %F %R %Z").to_string(),
        };
        assert_eq!(got, expect, "{window} at {now}");
    }

    #[test]
    fn weekly() {
        let check = |now, expect| check("Thu 04:00 for 1h30m", now, expect);
        // 2026-11-26 is a Thursday.
        check(
            "2026-11-26T03:59:59[Europe/Berlin]",
            "Thu 2026-11-26 04:00 CET",
        );
        check("2026-11-26T04:00:00[Europe/Berlin]", "open");
        check("2026-11-26T05:29:59[Europe/Berlin]", "open");
        check(
            "2026-11-26T05:30:00[Europe/Berlin]",
            "Thu 2026-12-03 04:00 CET",
        );
        check(
            "2026-11-27T04:30:00[Europe/Berlin]",
            "Thu 2026-12-03 04:00 CET",
        );
        check("2026-12-31T12:00:00[UTC]", "Thu 2027-01-07 04:00 UTC");
    }

    #[test]
    fn daily_and_across_midnight() {
        let check = |now, expect| check("23:00 for 2h", now, expect);
        check("2026-11-23T22:59:00[UTC]", "Mon 2026-11-23 23:00 UTC");
        check("2026-11-23T23:30:00[UTC]", "open");
        check("2026-11-24T00:59:59[UTC]", "open");
        check("2026-11-24T01:00:00[UTC]", "Tue 2026-11-24 23:00 UTC");
    }

    #[test]
    fn weekly_across_midnight_into_monday_and_a_whole_week() {
        check("Sun 22:00 for 4h", "2026-11-23T01:59:00[UTC]", "open");
        check(
            "Sun 22:00 for 4h",
            "2026-11-23T02:00:00[UTC]",
            "Sun 2026-11-29 22:00 UTC",
        );
        check("Wed 10:00 for 7d", "2026-11-25T09:59:59[UTC]", "open");
        check("Wed 10:00 for 7d", "2026-11-25T10:00:00[UTC]", "open");
        check("00:00 for 1d", "2026-11-25T10:00:00[UTC]", "open");
    }

    #[test]
    fn the_clock_jumps_over_the_start() {
        // 02:00 CET is followed by 03:00 CEST.
        check(
            "02:30 for 1h",
            "2026-03-29T01:59:59[Europe/Berlin]",
            "Sun 2026-03-29 03:30 CEST",
        );
        check("02:30 for 1h", "2026-03-29T04:29:59[Europe/Berlin]", "open");
        check(
            "02:30 for 1h",
            "2026-03-29T04:30:00[Europe/Berlin]",
            "Mon 2026-03-30 02:30 CEST",
        );
    }

    #[test]
    fn the_start_comes_twice() {
        // 03:00 CEST is followed by 02:00 CET.
        check(
            "02:30 for 1h",
            "2026-10-25T02:29:59+02:00[Europe/Berlin]",
            "Sun 2026-10-25 02:30 CEST",
        );
        check(
            "02:30 for 1h",
            "2026-10-25T02:29:59+01:00[Europe/Berlin]",
            "open",
        );
        check(
            "02:30 for 1h",
            "2026-10-25T02:30:00+01:00[Europe/Berlin]",
            "Mon 2026-10-26 02:30 CET",
        );
        // A window over the change is as long as it says, not as the clock shows.
        check(
            "Sun 01:00 for 3h",
            "2026-10-25T02:59:59+01:00[Europe/Berlin]",
            "open",
        );
        check(
            "Sun 01:00 for 3h",
            "2026-10-25T03:00:00+01:00[Europe/Berlin]",
            "Sun 2026-11-01 01:00 CET",
        );
    }
}
