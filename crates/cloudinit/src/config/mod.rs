//! A cloud-config, checked: what is in here can be planned.
//!
//! `text → tree → Config + findings`. Reading and checking are one pass, so that every value that
//! makes it into [`Config`] is valid and every one that does not has a finding with its place.

mod files;
mod reader;
mod sections;
mod units;
mod update;
mod users;

use crate::finding::{Finding, Place, Pos, has_errors};
use crate::substitute::{Variables, substitute};
use crate::yaml;
use reader::Reader;

pub use files::File;
pub use sections::{EnvSection, Oem};
pub use units::{DropIn, Unit, Verb};
pub use update::Update;
pub use users::User;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    pub value: T,
    pub place: Place,
}

impl<T> Spanned<T> {
    pub fn pos(&self) -> Pos {
        self.place.pos
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Config {
    pub hostname: Option<String>,
    pub ssh_authorized_keys: Option<Spanned<Vec<String>>>,
    pub users: Vec<User>,
    pub write_files: Vec<File>,
    /// `manage_etc_hosts: localhost`, the only value there is.
    pub manage_etc_hosts: bool,
    pub units: Vec<Unit>,
    pub update: Update,
    pub oem: Option<Oem>,
    pub etcd: EnvSection,
    pub etcd2: EnvSection,
    pub fleet: EnvSection,
    pub flannel: EnvSection,
    pub locksmith: EnvSection,
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// Errors first to last as they stand in the file.
    pub findings: Vec<Finding>,
    /// The text is not YAML at all. The original then goes on with the metadata, but stops
    /// everything at a bad value; callers keep that difference.
    pub syntax_error: bool,
}

impl Loaded {
    pub fn has_errors(&self) -> bool {
        has_errors(&self.findings)
    }
}

/// Reads the text of a cloud-config, header included.
pub fn load(text: &str, variables: &Variables) -> Loaded {
    let substituted = substitute(text, variables);
    let mut loaded = Loaded {
        config: Config::default(),
        findings: Vec::new(),
        syntax_error: false,
    };
    match yaml::parse(&substituted.text) {
        Ok(None) => {}
        Ok(Some(mut tree)) => {
            tree.relocate(&|pos| substituted.original(pos));
            let mut reader = Reader::default();
            read(&mut reader, &tree, &mut loaded.config);
            loaded.findings = reader.findings;
        }
        Err(error) => {
            loaded.syntax_error = true;
            let pos = substituted.original(error.pos);
            loaded.findings = vec![Finding::error(pos, "", error.message)];
        }
    }
    loaded.findings.extend(substituted.findings);
    loaded.findings.sort_by_key(|finding| finding.pos);
    loaded
}

const KEYS: &[&str] = &[
    "coreos",
    "hostname",
    "manage_etc_hosts",
    "ssh_authorized_keys",
    "users",
    "write_files",
];

fn read(r: &mut Reader, tree: &yaml::Node, config: &mut Config) {
    r.fields(tree, KEYS, |r, key, node| match key {
        "coreos" => read_coreos(r, node, config),
        "hostname" => config.hostname = r.string(node).and_then(|name| hostname(r, node, name)),
        "manage_etc_hosts" => config.manage_etc_hosts = etc_hosts(r, node),
        "ssh_authorized_keys" => {
            let value = users::ssh_keys(r, node);
            let place = r.place(node);
            config.ssh_authorized_keys = Some(Spanned { value, place });
        }
        "users" => config.users = r.list(node, users::user),
        "write_files" => config.write_files = r.list(node, files::file),
        _ => {}
    });
}

const COREOS_KEYS: &[&str] = &[
    "etcd",
    "etcd2",
    "flannel",
    "fleet",
    "locksmith",
    "oem",
    "units",
    "update",
];

fn read_coreos(r: &mut Reader, node: &yaml::Node, config: &mut Config) {
    r.fields(node, COREOS_KEYS, |r, key, node| match key {
        "etcd" => sections::read(r, node, sections::ETCD, &mut config.etcd),
        "etcd2" => sections::read(r, node, sections::ETCD2, &mut config.etcd2),
        "flannel" => sections::read(r, node, sections::FLANNEL, &mut config.flannel),
        "fleet" => sections::read(r, node, sections::FLEET, &mut config.fleet),
        "locksmith" => sections::read(r, node, sections::LOCKSMITH, &mut config.locksmith),
        "oem" => config.oem = sections::oem(r, node),
        "units" => config.units = r.list(node, units::unit),
        "update" => update::read(r, node, &mut config.update),
        _ => {}
    });
}

/// The kernel takes anything of up to 64 bytes. What DNS would not take is applied, because old
/// configs have names with underscores; what would break files that hold the name is not.
fn hostname(r: &mut Reader, node: &yaml::Node, name: String) -> Option<String> {
    if name.len() > 64 {
        r.error(
            node.pos,
            format!("{} characters; a host name has at most 64", name.len()),
        );
        return None;
    }
    if name.contains(|c: char| c.is_whitespace() || c == '/') {
        r.error(node.pos, format!("{name:?} is not a host name"));
        return None;
    }
    if name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.') {
        r.warning(node.pos, format!("{name:?} is not a valid DNS name"))
            .hint = Some("use letters, digits and hyphens".to_owned());
    }
    Some(name).filter(|name| !name.is_empty())
}

fn etc_hosts(r: &mut Reader, node: &yaml::Node) -> bool {
    match r.string(node).as_deref() {
        None | Some("") => false,
        Some("localhost") => true,
        Some(other) => {
            r.error(node.pos, format!("{other:?} is not supported"))
                .hint = Some("the only value is localhost".to_owned());
            false
        }
    }
}
