//! Logging of daemons: to standard error, no timestamps (journald has its own), level from `RUST_LOG`.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging for this process; a second call does nothing.
///
/// `RUST_LOG` is a level or `target=level`, several with commas. Filters by span and field would need a
/// regex engine, which is more than all the rest of some daemon.
pub fn init() {
    let wanted = std::env::var("RUST_LOG").ok();
    let (targets, problem) = targets(wanted.as_deref());
    // journald reads the level from the prefix (sd-daemon(3)); for a person it would be noise.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .event_format(Plain { journal });
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(targets)
        .try_init();
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
}

fn targets(wanted: Option<&str>) -> (Targets, Option<String>) {
    let default = Targets::new().with_default(Level::INFO);
    match wanted.filter(|text| !text.is_empty()) {
        None => (default, None),
        Some(text) => match text.parse() {
            Ok(targets) => (targets, None),
            Err(error) => (default, Some(format!("RUST_LOG={text}: {error}"))),
        },
    }
}

struct Plain {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        match self.journal {
            true => write!(out, "{}", prefix(level))?,
            false => write!(out, "{level:>5} ")?,
        }
        ctx.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged() {
        let check = |wanted: Option<&str>, target: &str, level: Level, expect: bool| {
            let (targets, problem) = targets(wanted);
            assert_eq!(targets.would_enable(target, &level), expect, "{wanted:?}");
            assert!(problem.is_none(), "{wanted:?}");
        };
        for unset in [None, Some("")] {
            check(unset, "locksmith", Level::INFO, true);
            check(unset, "locksmith", Level::DEBUG, false);
        }
        check(Some("off"), "locksmith", Level::ERROR, false);
        check(Some("debug"), "locksmith", Level::DEBUG, true);
        let mixed = Some("warn,locksmith::lock=trace");
        check(mixed, "locksmith", Level::INFO, false);
        check(mixed, "locksmith::lock", Level::TRACE, true);
        let (default, problem) = targets(Some("locksmith=loud"));
        assert!(default.would_enable("locksmith", &Level::INFO));
        assert!(problem.is_some_and(|text| text.starts_with("RUST_LOG=locksmith=loud: ")));
    }
}
