//! `coreos.units`.

use std::str::FromStr;

use super::Spanned;
use super::reader::Reader;
use crate::finding::Place;
use crate::suggest::closest;
use crate::yaml::Node;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub name: Spanned<String>,
    /// Non-empty.
    pub content: Option<String>,
    pub drop_ins: Vec<DropIn>,
    pub enable: bool,
    pub mask: bool,
    pub runtime: bool,
    pub command: Option<Verb>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropIn {
    pub name: String,
    /// Non-empty.
    pub content: String,
}

impl Unit {
    /// Says nothing yet.
    pub(crate) fn unnamed(place: Place) -> Self {
        Self {
            name: Spanned {
                value: String::new(),
                place,
            },
            content: None,
            drop_ins: Vec::new(),
            enable: false,
            mask: false,
            runtime: false,
            command: None,
        }
    }

    /// Units of networkd live in their own directory and cannot be enabled or started.
    pub fn is_network(&self) -> bool {
        [".network", ".netdev", ".link"]
            .iter()
            .any(|suffix| self.name.value.ends_with(suffix))
    }
}

/// What can be asked of a unit. The names are those of the user's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    Start,
    Stop,
    Restart,
    Reload,
    TryRestart,
    ReloadOrRestart,
    ReloadOrTryRestart,
}

impl Verb {
    const ALL: [(&'static str, Self); 7] = [
        ("start", Self::Start),
        ("stop", Self::Stop),
        ("restart", Self::Restart),
        ("reload", Self::Reload),
        ("try-restart", Self::TryRestart),
        ("reload-or-restart", Self::ReloadOrRestart),
        ("reload-or-try-restart", Self::ReloadOrTryRestart),
    ];

    pub(super) fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|(name, _)| *name).collect()
    }

    /// The method of systemd's D-Bus manager.
    pub fn method(self) -> &'static str {
        match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
            Self::Restart => "RestartUnit",
            Self::Reload => "ReloadUnit",
            Self::TryRestart => "TryRestartUnit",
            Self::ReloadOrRestart => "ReloadOrRestartUnit",
            Self::ReloadOrTryRestart => "ReloadOrTryRestartUnit",
        }
    }
}

impl FromStr for Verb {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, verb)| *verb).ok_or(())
    }
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::ALL.iter().find(|(_, verb)| verb == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

pub(super) const KEYS: &[&str] = &[
    "command", "content", "drop_ins", "enable", "mask", "name", "runtime",
];

pub(super) fn unit(r: &mut Reader, node: &Node) -> Option<Unit> {
    let before = r.findings.len();
    let mut name = None;
    let mut unit = Unit::unnamed(r.place(node));
    r.fields(node, KEYS, |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|name| file_name(r, name)),
        "content" => unit.content = r.string(node).filter(|text| !text.is_empty()),
        "drop_ins" => unit.drop_ins = r.list(node, drop_in),
        "enable" => unit.enable = r.boolean(node),
        "mask" => unit.mask = r.boolean(node),
        "runtime" => unit.runtime = r.boolean(node),
        "command" => unit.command = command(r, node),
        _ => {}
    });
    let Some(name) = name else {
        if !r.findings[before..].iter().any(|f| f.is_error()) {
            r.warning(node.pos, "a unit without a name is skipped");
        }
        return None;
    };
    unit.name = name;
    check(r, &unit);
    Some(unit)
}

/// systemd.unit(5), and networkd's files beside them.
const SUFFIXES: [&str; 14] = [
    ".service",
    ".socket",
    ".device",
    ".mount",
    ".automount",
    ".swap",
    ".target",
    ".path",
    ".timer",
    ".slice",
    ".scope",
    ".network",
    ".netdev",
    ".link",
];

fn check(r: &mut Reader, unit: &Unit) {
    let name = &unit.name;
    if !SUFFIXES.iter().any(|suffix| name.value.ends_with(suffix)) {
        r.warning(name.pos(), format!("{:?} has no unit type", name.value))
            .hint = Some(format!("did you mean {}.service?", name.value));
    }
    if unit.mask && matches!(unit.command, Some(Verb::Start | Verb::Restart)) {
        r.warning(
            name.pos(),
            format!("{} is masked and cannot be started", name.value),
        );
    }
    if unit.is_network() && unit.command.is_some() {
        r.warning(
            name.pos(),
            "networkd is restarted instead of running the command",
        );
    }
}

/// A name is the last part of a path; a slash would lead out of the directory.
pub(super) fn file_name(r: &mut Reader, name: &Spanned<String>) -> bool {
    let text = name.value.as_str();
    let valid = text.len() <= 255
        && !text.starts_with('.')
        && !text.contains(|c: char| c == '/' || c.is_whitespace());
    if !valid {
        r.error(name.pos(), format!("{text:?} is not a unit's name"));
    }
    valid && !text.is_empty()
}

fn drop_in(r: &mut Reader, node: &Node) -> Option<DropIn> {
    let before = r.findings.len();
    let (mut name, mut content) = (None, None);
    r.fields(node, &["content", "name"], |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|name| file_name(r, name)),
        _ => content = r.string(node).filter(|text| !text.is_empty()),
    });
    if let (Some(name), Some(content)) = (name, content) {
        if !name.value.ends_with(".conf") {
            r.warning(name.pos(), format!("systemd ignores {:?}", name.value))
                .hint = Some("a drop-in's name ends in .conf".to_owned());
        }
        return Some(DropIn {
            name: name.value,
            content,
        });
    }
    if !r.findings[before..].iter().any(|f| f.is_error()) {
        r.warning(node.pos, "a drop-in without name or content is skipped");
    }
    None
}

fn command(r: &mut Reader, node: &Node) -> Option<Verb> {
    let text = r.string(node).filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(verb) => Some(verb),
        Err(()) => {
            let names = Verb::ALL.map(|(name, _)| name);
            let hint = match closest(&text, names) {
                Some(close) => format!("did you mean {close}?"),
                None => format!("one of {}", names.join(", ")),
            };
            r.error(node.pos, format!("unknown command {text:?}")).hint = Some(hint);
            None
        }
    }
}
