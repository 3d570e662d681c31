//! From the tree to values, collecting findings on the way instead of stopping at the first.

use std::collections::HashMap;

use base64::Engine;

use super::Spanned;
use crate::finding::{Finding, Place, Pos};
use crate::suggest::closest;
use crate::yaml::{Node, Value};

/// Keys of other dialects that people do write, and what to do instead.
const ELSEWHERE: [(&str, &str); 12] = [
    ("runcmd", "use a unit in coreos.units"),
    ("bootcmd", "use a unit in coreos.units"),
    ("fqdn", "use hostname"),
    ("ssh_pwauth", "write a file to /etc/ssh/sshd_config.d"),
    ("timezone", "link /etc/localtime with a unit"),
    ("ntp", "write /etc/systemd/timesyncd.conf"),
    ("packages", "there is no package manager"),
    ("package_update", "there is no package manager"),
    ("mounts", "use a .mount unit in coreos.units"),
    ("chpasswd", "use users[].passwd"),
    ("ssh_import_id", "use ssh_authorized_keys"),
    (
        "lock_passwd",
        "leave passwd out: the password is then locked",
    ),
];

#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) findings: Vec<Finding>,
    path: String,
}

impl Reader {
    pub(super) fn error(&mut self, pos: Pos, message: impl Into<String>) -> &mut Finding {
        self.push(Finding::error(pos, self.path.as_str(), message))
    }

    pub(super) fn warning(&mut self, pos: Pos, message: impl Into<String>) -> &mut Finding {
        self.push(Finding::warning(pos, self.path.as_str(), message))
    }

    fn push(&mut self, finding: Finding) -> &mut Finding {
        let index = self.findings.len();
        self.findings.push(finding);
        &mut self.findings[index]
    }

    /// Runs `read` with `part` added to the path that findings carry.
    pub(super) fn within<T>(&mut self, part: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 && !part.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(part);
        let value = read(self);
        self.path.truncate(length);
        value
    }

    /// Calls `read` for each entry whose key is known, `-` and `_` being the same. A key given
    /// twice is read twice: values are replaced and mappings merge, as in the original.
    pub(super) fn fields(
        &mut self,
        node: &Node,
        known: &[&str],
        mut read: impl FnMut(&mut Self, &str, &Node),
    ) {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            _ if node.is_null() => return,
            _ => {
                self.wrong_kind(node, "a mapping of keys to values");
                return;
            }
        };
        let mut seen: HashMap<String, Pos> = HashMap::new();
        for entry in entries {
            let key = entry.key.replace('-', "_");
            if !known.contains(&key.as_str()) {
                self.within(&entry.key, |r| r.unknown(entry.pos, &key, known));
                continue;
            }
            if !entry.merged
                && let Some(first) = seen.insert(key.clone(), entry.pos)
            {
                self.within(&entry.key, |r| {
                    r.warning(
                        entry.pos,
                        format!("given twice, first in line {}", first.line),
                    )
                    .hint = Some("the later one counts".to_owned());
                });
            }
            if !entry.node.is_null() {
                self.within(&entry.key, |r| read(r, &key, &entry.node));
            }
        }
    }

    fn unknown(&mut self, pos: Pos, key: &str, known: &[&str]) {
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| *name == key);
        let (message, hint) = match (elsewhere, closest(key, known.iter().copied())) {
            (Some((_, instead)), _) => ("not supported, ignored", Some((*instead).to_owned())),
            (None, Some(close)) => (
                "unknown key, ignored",
                Some(format!("did you mean {close}?")),
            ),
            (None, None) => ("unknown key, ignored", None),
        };
        self.warning(pos, message).hint = hint;
    }

    /// Each item that `read` makes something of.
    pub(super) fn list<T>(
        &mut self,
        node: &Node,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Vec<T> {
        let Value::Seq(items) = &node.value else {
            if !node.is_null() {
                self.wrong_kind(node, "a list (lines that start with \"- \")");
            }
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| self.within(&format!("[{index}]"), |r| read(r, item)))
            .collect()
    }

    /// The text as written: `0644` stays `0644` and `off` stays `off`.
    pub(super) fn string(&mut self, node: &Node) -> Option<String> {
        let scalar = match &node.value {
            Value::Scalar(scalar) if scalar.is_null() => return None,
            Value::Scalar(scalar) => scalar,
            _ => {
                self.wrong_kind(node, "a single value");
                return None;
            }
        };
        if !scalar.binary {
            return Some(scalar.raw.clone());
        }
        let packed: String = scalar.raw.split_whitespace().collect();
        let bytes = base64::engine::general_purpose::STANDARD.decode(packed);
        match bytes.map(String::from_utf8) {
            Ok(Ok(text)) => Some(text),
            Ok(Err(_)) => {
                self.error(node.pos, "!!binary that is not text").hint =
                    Some("use `encoding: base64` in write_files".to_owned());
                None
            }
            Err(error) => {
                self.error(node.pos, format!("!!binary is not base64: {error}"));
                None
            }
        }
    }

    /// A value that ends up in a line of some file: no line break may hide in it.
    pub(super) fn line(&mut self, node: &Node) -> Option<String> {
        let text = self.string(node)?;
        if text.trim_end_matches('\n').contains(['\n', '\r', '\0']) {
            self.error(node.pos, "must be a single line");
            return None;
        }
        Some(text.trim_end_matches('\n').to_owned())
    }

    /// Where `node`, which is being read, stands.
    pub(super) fn place(&self, node: &Node) -> Place {
        Place::new(node.pos, self.path.as_str())
    }

    pub(super) fn spanned(&mut self, node: &Node) -> Option<Spanned<String>> {
        let value = self.line(node)?;
        let place = self.place(node);
        Some(Spanned { value, place })
    }

    pub(super) fn boolean(&mut self, node: &Node) -> bool {
        if let Value::Scalar(scalar) = &node.value {
            if scalar.is_null() {
                return false;
            }
            if let Some(value) = scalar.boolean() {
                return value;
            }
        }
        self.wrong_kind(node, "true or false");
        false
    }

    fn wrong_kind(&mut self, node: &Node, expected: &str) {
        let found = match node.text() {
            Some(text) if !text.contains('\n') && text.len() <= 40 => format!("{text:?}"),
            _ => node.kind().to_owned(),
        };
        self.error(node.pos, format!("expected {expected}, found {found}"));
    }
}
