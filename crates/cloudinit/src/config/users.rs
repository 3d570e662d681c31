//! `users` and `ssh_authorized_keys`.

use super::Spanned;
use super::reader::Reader;
use crate::finding::{Finding, Place};
use crate::yaml::{Node, Value};

/// A login. `Debug` leaves the hash out: it must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub name: Spanned<String>,
    pub passwd: Option<String>,
    pub ssh_authorized_keys: Vec<String>,
    pub gecos: Option<String>,
    pub homedir: Option<String>,
    pub no_create_home: bool,
    pub primary_group: Option<Spanned<String>>,
    pub groups: Vec<Spanned<String>>,
    pub no_user_group: bool,
    pub system: bool,
    pub shell: Option<String>,
    /// A line for sudoers without the name, e.g. `ALL=(ALL) NOPASSWD:ALL`.
    pub sudo: Vec<String>,
    pub uid: Option<u32>,
    /// Where more keys are to be fetched from.
    pub imports: Vec<Spanned<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: Spanned<String>,
    pub gid: Option<u32>,
    pub system: bool,
}

impl User {
    pub(super) fn unnamed(place: Place) -> Self {
        Self {
            name: Spanned {
                value: String::new(),
                place,
            },
            passwd: None,
            ssh_authorized_keys: Vec::new(),
            gecos: None,
            homedir: None,
            no_create_home: false,
            primary_group: None,
            groups: Vec::new(),
            no_user_group: false,
            system: false,
            shell: None,
            sudo: Vec::new(),
            uid: None,
            imports: Vec::new(),
        }
    }
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name.value)
            .field("passwd", &self.passwd.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

pub(super) const KEYS: &[&str] = &[
    "coreos_ssh_import_github",
    "coreos_ssh_import_github_users",
    "coreos_ssh_import_url",
    "gecos",
    "groups",
    "hashed_passwd",
    "homedir",
    "lock_passwd",
    "name",
    "no_create_home",
    "no_log_init",
    "no_user_group",
    "passwd",
    "primary_group",
    "shell",
    "ssh_authorized_keys",
    "ssh_import_id",
    "sudo",
    "system",
    "uid",
];

pub(super) fn user(r: &mut Reader, node: &Node) -> Option<User> {
    // cloud-init's word for the account that the image brings along: here it is always there.
    if node.text() == Some("default") {
        return None;
    }
    let (mut name, mut lock) = (None, false);
    let before = r.findings.len();
    let mut user = User::unnamed(r.place(node));
    r.fields(node, KEYS, |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|name| account_name(r, name)),
        "passwd" | "hashed_passwd" => user.passwd = field(r, node),
        "lock_passwd" => lock = r.boolean(node),
        "uid" => user.uid = number(r, node),
        "ssh_import_id" => user.imports.extend(import_ids(r, node)),
        "coreos_ssh_import_github" => user.imports.extend(github(r, node)),
        "coreos_ssh_import_github_users" => {
            let all = r.list(node, github);
            user.imports.extend(all);
        }
        "coreos_ssh_import_url" => user.imports.extend(r.url(node)),
        "ssh_authorized_keys" => user.ssh_authorized_keys = ssh_keys(r, node),
        "gecos" => user.gecos = field(r, node),
        "homedir" => user.homedir = absolute(r, node),
        "no_create_home" => user.no_create_home = r.boolean(node),
        "primary_group" => {
            user.primary_group = r.spanned(node).filter(|group| account_name(r, group));
        }
        "groups" => user.groups = groups(r, node),
        "no_user_group" => user.no_user_group = r.boolean(node),
        "system" => user.system = r.boolean(node),
        "shell" => user.shell = absolute(r, node),
        "sudo" => user.sudo = sudo(r, node),
        // There is no lastlog to initialise.
        "no_log_init" => drop(r.boolean(node)),
        _ => {}
    });
    if lock && let Some(hash) = user.passwd.take() {
        user.passwd = Some(format!("!{hash}"));
    }
    match name {
        Some(name) => Some(User { name, ..user }),
        None => {
            // A bad name was said to be one.
            if !r.findings[before..].iter().any(Finding::is_error) {
                r.warning(node.pos, "a user without a name is skipped");
            }
            None
        }
    }
}

/// One key per item. A mistyped key locks its owner out, so a shape that sshd cannot read is reported.
pub(super) fn ssh_keys(r: &mut Reader, node: &Node) -> Vec<String> {
    r.list(node, |r, node| {
        let key = r.line(node)?.trim().to_owned();
        if key.is_empty() {
            return None;
        }
        const TYPES: [&str; 4] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
        if !key
            .split_whitespace()
            .any(|word| TYPES.iter().any(|t| word.starts_with(t)))
        {
            r.warning(node.pos, "does not look like a public SSH key")
                .hint = Some("expected e.g. \"ssh-ed25519 AAAA… comment\"".to_owned());
        }
        Some(key)
    })
}

/// `gh:NAME`, `lp:NAME` or `NAME`, which is Launchpad's, as ssh-import-id has it.
pub(super) fn import_ids(r: &mut Reader, node: &Node) -> Vec<Spanned<String>> {
    let read = |r: &mut Reader, node: &Node| {
        let id = r.spanned(node)?;
        let (service, name) = id.value.split_once(':').unwrap_or(("lp", &id.value));
        let value = match service {
            _ if !is_remote_name(name) => None,
            "gh" => Some(format!("https://github.com/{name}.keys")),
            "lp" => Some(format!("https://launchpad.net/~{name}/+sshkeys")),
            _ => None,
        };
        if value.is_none() {
            r.error(node.pos, format!("{:?} names no account", id.value))
                .hint = Some("gh:NAME for GitHub, lp:NAME for Launchpad".to_owned());
        }
        Some(Spanned {
            value: value?,
            place: id.place,
        })
    };
    match &node.value {
        Value::Scalar(_) => read(r, node).into_iter().collect(),
        _ => r.list(node, read),
    }
}

fn github(r: &mut Reader, node: &Node) -> Option<Spanned<String>> {
    let name = r.spanned(node).filter(|name| !name.value.is_empty())?;
    if !is_remote_name(&name.value) {
        r.error(node.pos, format!("{:?} names no account", name.value));
        return None;
    }
    Some(Spanned {
        value: format!("https://github.com/{}.keys", name.value),
        place: name.place,
    })
}

fn is_remote_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    !name.is_empty() && name.chars().all(plain)
}

pub(super) fn number(r: &mut Reader, node: &Node) -> Option<u32> {
    let text = r.line(node).filter(|text| !text.is_empty())?;
    let number = text.parse().ok();
    if number.is_none() {
        r.error(node.pos, format!("expected a number, found {text:?}"));
    }
    number
}

/// What shadow's tools accept, capitals included because old hosts have them.
pub(super) fn account_name(r: &mut Reader, name: &Spanned<String>) -> bool {
    let text = name.value.as_str();
    let body = text.strip_suffix('$').unwrap_or(text);
    let valid = text.len() <= 32
        && body.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && body
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if !valid && !text.is_empty() {
        r.error(name.pos(), format!("{text:?} is not a valid name"))
            .hint =
            Some("at most 32 letters, digits, \"_\" and \"-\", starting with a letter".to_owned());
    }
    valid
}

/// A field of passwd(5) or shadow(5).
pub(super) fn field(r: &mut Reader, node: &Node) -> Option<String> {
    let text = r.line(node)?;
    if text.contains(':') {
        // Not quoted: this may be a password hash.
        r.error(node.pos, "must not contain a colon");
        return None;
    }
    Some(text).filter(|text| !text.is_empty())
}

pub(super) fn absolute(r: &mut Reader, node: &Node) -> Option<String> {
    let text = field(r, node)?;
    if !text.starts_with('/') || text.split('/').any(|part| part == "..") {
        r.error(node.pos, format!("{text:?} is not an absolute path"));
        return None;
    }
    Some(text)
}

/// A list, or one comma-separated line as cloud-init takes it.
fn groups(r: &mut Reader, node: &Node) -> Vec<Spanned<String>> {
    let names = match &node.value {
        Value::Scalar(_) => r.line(node).map_or_else(Vec::new, |line| {
            line.split(',')
                .map(|name| Spanned {
                    value: name.trim().to_owned(),
                    place: r.place(node),
                })
                .collect()
        }),
        _ => r.list(node, Reader::spanned),
    };
    names
        .into_iter()
        .filter(|name| account_name(r, name))
        .collect()
}

fn sudo(r: &mut Reader, node: &Node) -> Vec<String> {
    let lines = match &node.value {
        Value::Scalar(_) => r.line(node).into_iter().collect(),
        _ => r.list(node, Reader::line),
    };
    // cloud-init's way to say "no rule".
    lines
        .into_iter()
        .filter(|line| !matches!(line.to_ascii_lowercase().as_str(), "false" | "none" | ""))
        .collect()
}
