//! `locksmith status`: computed with the daemon's own rules, so it needs no running daemon.

use std::fmt;
use std::path::Path;

use host::conf::{RebootStrategy, RebootType};
use jiff::Zoned;
use serde::Serialize;

use crate::machine::{Event, Phase, State, step};
use crate::needed;
use crate::policy::{Policy, Rule};

#[derive(Debug, Serialize)]
pub struct Status {
    /// As configured; null when the configuration cannot be read.
    strategy: Option<RebootStrategy>,
    /// What is done instead of the configured strategy, and why.
    problem: Option<String>,
    window: Option<String>,
    /// The kernel goes on, and userspace alone starts anew.
    soft: bool,
    time_zone: String,
    /// The release that waits for the reboot.
    version: Option<String>,
    plan: Plan,
    /// When the reboot comes, RFC 3339.
    at: Option<String>,
    #[serde(skip)]
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    Idle,
    Stay,
    WaitForWindow,
    RebootNow,
}

pub fn read(root: &Path, now: &Zoned) -> Status {
    let (policy, conf) = Policy::read(root);
    let strategy = conf.map(|conf| conf.reboot_strategy);
    let event = match needed::read(root) {
        Some(version) => Event::Needed { version },
        None => Event::NotNeeded,
    };
    let (State { policy, phase, .. }, _) = step(State::new(policy), event, now);
    let (plan, at) = match &phase {
        Phase::Idle => (Plan::Idle, None),
        Phase::Staying { .. } => (Plan::Stay, None),
        Phase::Waiting { opens, .. } => (Plan::WaitForWindow, Some(opens)),
        Phase::Locking { .. } | Phase::Rebooting { .. } => (Plan::RebootNow, Some(now)),
        Phase::Retrying { at, .. } => (Plan::RebootNow, Some(at)),
    };
    Status {
        strategy,
        problem: policy.problem(strategy).map(str::to_owned),
        window: policy.window.map(|window| window.to_string()),
        soft: Policy::reboot_type(root) == RebootType::Auto,
        // No name: what /etc/localtime is a copy of is unknown, or it is not there, which means UTC.
        time_zone: now
            .time_zone()
            .iana_name()
            .map_or_else(|| now.strftime("%Z").to_string(), str::to_owned),
        version: phase.version().map(str::to_owned),
        plan,
        at: at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()),
        phase,
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strategy = self.strategy.map_or("unknown", RebootStrategy::as_str);
        let window = self.window.as_deref().unwrap_or("any time");
        writeln!(f, "Strategy: {strategy}")?;
        if let Some(problem) = &self.problem {
            writeln!(f, "Problem:  {problem}")?;
        }
        writeln!(f, "Window:   {window} ({})", self.time_zone)?;
        let how = if self.soft { " (soft-reboot)" } else { "" };
        write!(f, "Plan:     {}{how}", self.phase)
    }
}

/// What the rule is called in the log.
pub(crate) fn rule_name(rule: &Rule) -> &'static str {
    match rule {
        Rule::Free => "reboot",
        Rule::LockIfAny => "best-effort",
        Rule::Never { .. } => "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conf: &str, needed: Option<&str>) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = host::under(dir.path(), path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("/etc/coreos/update.conf", conf);
        if let Some(version) = needed {
            write(needed::PATH, &format!("{{\"version\":\"{version}\"}}"));
        }
        let now: Zoned = "2026-11-23T10:00:00[Europe/Berlin]".parse().unwrap();
        let status = read(dir.path(), &now);
        let clean = |text: String| text.replace(dir.path().to_str().unwrap(), "");
        (
            clean(status.to_string()),
            clean(serde_json::to_string(&status).unwrap()),
        )
    }

    #[test]
    fn waiting_for_a_window() {
        let (text, json) = status(
            "REBOOT_WINDOW_START=\"Thu 04:00\"\nREBOOT_WINDOW_LENGTH=1h30m\n",
            Some("2"),
        );
        insta::assert_snapshot!(text, @r#"
        Strategy: reboot
        Window:   Thu 04:00 for 1h30m (Europe/Berlin)
        Plan:     will reboot into 2 at Thu 2026-11-26 04:00 CET
        "#);
        insta::assert_snapshot!(json, @r#"{"strategy":"reboot","problem":null,"window":"Thu 04:00 for 1h30m","soft":false,"time_zone":"Europe/Berlin","version":"2","plan":"wait-for-window","at":"2026-11-26T04:00:00+01:00"}"#);
    }

    #[test]
    fn etcd_lock_never_reboots_and_says_why() {
        let (text, json) = status("REBOOT_STRATEGY=etcd-lock\n", Some("2"));
        insta::assert_snapshot!(text, @r#"
        Strategy: etcd-lock
        Problem:  etcd-lock is not part of this release yet; using off
        Window:   any time (Europe/Berlin)
        Plan:     2 is staged; not rebooting
        "#);
        assert!(json.contains(r#""plan":"stay""#), "{json}");
    }

    #[test]
    fn a_broken_configuration_never_reboots() {
        let (text, json) = status("REBOOT_STRATEGY=noww\n", Some("2"));
        insta::assert_snapshot!(text, @r#"
        Strategy: unknown
        Problem:  /etc/coreos/update.conf:1: REBOOT_STRATEGY=noww: use reboot, off, best-effort or etcd-lock; using off
        Window:   any time (Europe/Berlin)
        Plan:     2 is staged; not rebooting
        "#);
        assert!(json.contains(r#""strategy":null"#), "{json}");
    }

    #[test]
    fn nothing_waits() {
        let (text, json) = status("REBOOT_STRATEGY=off\n", None);
        insta::assert_snapshot!(text, @r#"
        Strategy: off
        Window:   any time (Europe/Berlin)
        Plan:     no release waits for a reboot
        "#);
        insta::assert_snapshot!(json, @r#"{"strategy":"off","problem":null,"window":null,"soft":false,"time_zone":"Europe/Berlin","version":null,"plan":"idle","at":null}"#);
    }
}
