//! A cloud-config, checked: what is in here can be planned.
//!
//! `text → tree → Config + findings`. Reading and checking are one pass, so that every value that
//! makes it into [`Config`] is valid and every one that does not has a finding with its place.

mod elsewhere;
mod files;
mod ignition;
mod merge;
mod reader;
mod schema;
mod sections;
mod units;
mod update;
mod users;

use crate::finding::{Finding, Place, Pos, has_errors};
use crate::imports::{Import, Imported};
use crate::substitute::{Variables, substitute};
use crate::yaml;
use reader::Reader;

pub(crate) use elsewhere::DONE;
pub use files::{Directory, File, Link};
pub(crate) use reader::is_url;
pub use schema::schema;
pub use sections::{EnvSection, Oem};
pub use units::{DropIn, Unit, Verb};
pub use update::Update;
pub use users::{Group, User};

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

    pub fn map<U>(self, to: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned {
            value: to(self.value),
            place: self.place,
        }
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Config {
    pub hostname: Option<String>,
    /// The host name with its domain: cloud-init's.
    pub fqdn: Option<String>,
    pub ssh_authorized_keys: Option<Spanned<Vec<String>>>,
    /// Where more keys for the default user come from.
    pub ssh_imports: Vec<Spanned<String>>,
    /// What else is at a URL. Of a file whose content has not been fetched, nothing is in here but this.
    pub imports: Vec<Spanned<Import>>,
    pub groups: Vec<Group>,
    pub users: Vec<User>,
    pub directories: Vec<Directory>,
    pub write_files: Vec<File>,
    pub links: Vec<Link>,
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
    /// Sections that a service has to be there for: its unit, and where the section stands.
    pub needs: Vec<Spanned<&'static str>>,
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
pub fn load(text: &str, variables: &Variables, imported: &Imported) -> Loaded {
    load_as(text, variables, imported, read)
}

/// Reads an Ignition config: JSON, and therefore YAML.
pub fn load_ignition(text: &str, variables: &Variables, imported: &Imported) -> Loaded {
    load_as(text, variables, imported, ignition::read)
}

fn load_as(
    text: &str,
    variables: &Variables,
    imported: &Imported,
    read: fn(&mut Reader, &yaml::Node, &mut Config),
) -> Loaded {
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
            let mut reader = Reader::new(imported.clone());
            read(&mut reader, &tree, &mut loaded.config);
            loaded.config.imports = reader.imports;
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

pub(crate) const KEYS: &[&str] = &[
    "coreos",
    "hostname",
    "manage_etc_hosts",
    "ssh_authorized_keys",
    "users",
    "write_files",
];

fn read(r: &mut Reader, tree: &yaml::Node, config: &mut Config) {
    let known = [KEYS, elsewhere::KEYS].concat();
    let mut more = Config::default();
    r.fields(tree, &known, |r, key, node| match key {
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
        key => elsewhere::read(r, key, node, &mut more),
    });
    // What cloud-init would do first comes first.
    let boot = more.units.iter().position(elsewhere::is_first);
    let first: Vec<Unit> = boot
        .map(|index| more.units.remove(index))
        .into_iter()
        .collect();
    config.units.splice(..0, first);
    config.merge(more);
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
    r.fields(node, COREOS_KEYS, |r, key, node| {
        if let Some((_, unit)) = SERVICES.iter().find(|(section, _)| *section == key) {
            let place = r.place(node);
            config.needs.push(Spanned { value: unit, place });
        }
        read_section(r, key, node, config);
    });
}

/// Sections, and the services that are to read them.
const SERVICES: [(&str, &str); 4] = [
    ("etcd", "etcd.service"),
    ("etcd2", "etcd2.service"),
    ("flannel", "flanneld.service"),
    ("fleet", "fleet.service"),
];

fn read_section(r: &mut Reader, key: &str, node: &yaml::Node, config: &mut Config) {
    match key {
        "etcd" => sections::read(r, node, sections::ETCD, &mut config.etcd),
        "etcd2" => sections::read(r, node, sections::ETCD2, &mut config.etcd2),
        "flannel" => sections::read(r, node, sections::FLANNEL, &mut config.flannel),
        "fleet" => sections::read(r, node, sections::FLEET, &mut config.fleet),
        "locksmith" => sections::read(r, node, sections::LOCKSMITH, &mut config.locksmith),
        "oem" => config.oem = sections::oem(r, node),
        "units" => config.units = r.list(node, units::unit),
        "update" => update::read(r, node, &mut config.update),
        _ => {}
    }
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
