//! `coreos.update`: the host's lines of update.conf.

use super::reader::Reader;
use crate::suggest::closest;
use crate::yaml::Node;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    pub group: Option<String>,
    pub server: Option<String>,
    pub reboot_strategy: Option<String>,
    /// Ours: how often to ask, e.g. `10s`.
    pub interval: Option<String>,
}

impl Update {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `KEY`, value, by key.
    pub fn lines(&self) -> Vec<(&'static str, &str)> {
        [
            ("GROUP", &self.group),
            ("POLL_INTERVAL", &self.interval),
            ("REBOOT_STRATEGY", &self.reboot_strategy),
            ("SERVER", &self.server),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.as_deref().map(|value| (key, value)))
        .collect()
    }
}

pub(super) const KEYS: &[&str] = &["group", "interval", "reboot_strategy", "server"];
pub(super) const STRATEGIES: [&str; 4] = ["best-effort", "etcd-lock", "off", "reboot"];

pub(super) fn read(r: &mut Reader, node: &Node, update: &mut Update) {
    r.fields(node, KEYS, |r, key, node| {
        let value = r.line(node).filter(|value| !value.is_empty());
        match key {
            "group" => update.group = value,
            "server" => update.server = value,
            "interval" => update.interval = value.and_then(|text| interval(r, node, text)),
            _ => update.reboot_strategy = value.and_then(|text| strategy(r, node, text)),
        }
    });
}

fn strategy(r: &mut Reader, node: &Node, text: String) -> Option<String> {
    if STRATEGIES.contains(&text.as_str()) {
        return Some(text);
    }
    let hint = match closest(&text, STRATEGIES) {
        Some(close) => format!("did you mean {close}?"),
        None => format!("one of {}", STRATEGIES.join(", ")),
    };
    r.error(node.pos, format!("unknown strategy {text:?}")).hint = Some(hint);
    None
}

fn interval(r: &mut Reader, node: &Node, text: String) -> Option<String> {
    match host::conf::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() => Some(text),
        Ok(_) => {
            r.error(node.pos, "must be at least 1s");
            None
        }
        Err(problem) => {
            r.error(node.pos, format!("{text:?}: {problem}"));
            None
        }
    }
}
