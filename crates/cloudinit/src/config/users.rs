//! `users` and `ssh_authorized_keys`.

use super::Spanned;
use super::reader::Reader;
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
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name.value)
            .field("passwd", &self.passwd.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

const KEYS: &[&str] = &[
    "coreos_ssh_import_github",
    "coreos_ssh_import_github_users",
    "coreos_ssh_import_url",
    "gecos",
    "groups",
    "homedir",
    "name",
    "no_create_home",
    "no_log_init",
    "no_user_group",
    "passwd",
    "primary_group",
    "shell",
    "ssh_authorized_keys",
    "sudo",
    "system",
];

pub(super) fn user(r: &mut Reader, node: &Node) -> Option<User> {
    let mut name = None;
    let mut user = User {
        name: Spanned {
            value: String::new(),
            place: r.place(node),
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
    };
    r.fields(node, KEYS, |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|name| account_name(r, name)),
        "passwd" => user.passwd = field(r, node),
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
        "no_log_init" => {}
        _ => {
            r.warning(
                node.pos,
                "importing keys over the network is not supported yet",
            )
            .hint = Some("use ssh_authorized_keys".to_owned());
        }
    });
    match name {
        Some(name) => Some(User { name, ..user }),
        None => {
            let explained = r.findings.last().is_some_and(|f| f.is_error());
            if !explained {
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

/// What shadow's tools accept, capitals included because old hosts have them.
fn account_name(r: &mut Reader, name: &Spanned<String>) -> bool {
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
fn field(r: &mut Reader, node: &Node) -> Option<String> {
    let text = r.line(node)?;
    if text.contains(':') {
        // Not quoted: this may be a password hash.
        r.error(node.pos, "must not contain a colon");
        return None;
    }
    Some(text).filter(|text| !text.is_empty())
}

fn absolute(r: &mut Reader, node: &Node) -> Option<String> {
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
