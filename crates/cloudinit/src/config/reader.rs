//! From the tree to values, collecting findings on the way instead of stopping at the first.

use std::collections::HashMap;

use base64::Engine;

use super::Spanned;
use crate::finding::{Finding, Place, Pos};
use crate::imports::{Content, Import, Imported};
use crate::suggest::closest;
use crate::yaml::{Node, Value};

/// Keys of other dialects that people do write, and what to do instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("packages", "there is no package manager"),
    ("package_update", "there is no package manager"),
    ("package_upgrade", "there is no package manager"),
    ("apt", "there is no package manager"),
    ("yum_repos", "there is no package manager"),
    ("snap", "there is no package manager"),
    ("mounts", "use a .mount unit in coreos.units"),
    ("swap", "use a .swap unit in coreos.units"),
    ("fs_setup", "use a unit in coreos.units"),
    ("disk_setup", "use a unit in coreos.units"),
    ("chpasswd", "use users[].passwd"),
    ("password", "use users[].passwd"),
    ("plain_text_passwd", "use passwd, with a hash"),
    ("disable_root", "root has no password and no keys"),
    ("ssh_keys", "write the files with write_files"),
    ("growpart", "the disk is grown at the first boot"),
    ("resize_rootfs", "the disk is grown at the first boot"),
    ("locale", "write /etc/locale.conf"),
    ("power_state", "use a unit in coreos.units"),
    ("phone_home", "use a unit in coreos.units"),
    ("final_message", "see `cloudinit status`"),
    ("ca_certs", "write the files with write_files"),
    ("preserve_hostname", "a host name that nobody sets stays"),
    (
        "prefer_fqdn_over_hostname",
        "hostname counts more than fqdn",
    ),
    ("create_hostname_file", "/etc/hostname is always written"),
    (
        "manage_resolv_conf",
        "write a .network unit in coreos.units",
    ),
    ("resolv_conf", "write a .network unit in coreos.units"),
    (
        "wireguard",
        "write .netdev and .network units in coreos.units",
    ),
    ("device_aliases", "use a unit in coreos.units"),
    ("mount_default_fields", "use a .mount unit in coreos.units"),
    ("rsyslog", "the log is in the journal"),
    ("output", "the log is in the journal"),
    ("reporting", "see `cloudinit status`"),
    ("keyboard", "write /etc/vconsole.conf"),
    ("random_seed", "systemd keeps one"),
    ("ssh", ""),
    ("ssh_deletekeys", "each host makes keys of its own"),
    (
        "ssh_genkeytypes",
        "write sshd's configuration with write_files",
    ),
    ("ssh_fp_console_blacklist", ""),
    ("ssh_key_console_blacklist", ""),
    ("ssh_publish_hostkeys", ""),
    ("ssh_quiet_keygen", ""),
    ("no_ssh_fingerprints", ""),
    (
        "allow_public_ssh_keys",
        "keys of the platform are always taken",
    ),
    ("disable_root_opts", "root has no password and no keys"),
    ("disable_ec2_metadata", "use a unit in coreos.units"),
    ("vendor_data", "it is never used"),
    (
        "merge_how",
        "parts add up: lists grow, of single values the last counts",
    ),
    (
        "merge_type",
        "parts add up: lists grow, of single values the last counts",
    ),
    ("package_reboot_if_required", "there is no package manager"),
    ("apk_repos", "there is no package manager"),
    ("yum_repo_dir", "there is no package manager"),
    ("zypper", "there is no package manager"),
    ("rh_subscription", "there is no package manager"),
    ("spacewalk", "there is no package manager"),
    ("ubuntu_pro", "there is no package manager"),
    ("ubuntu_advantage", "there is no package manager"),
    ("autoinstall", "there is no installer"),
    ("grub_dpkg", "there is no GRUB"),
    ("migrate", ""),
    ("byobu_by_default", ""),
    ("locale_configfile", "write /etc/locale.conf"),
    ("landscape", ""),
    ("drivers", ""),
    ("fan", ""),
    ("system_info", ""),
    ("ansible", RUN_IT),
    ("chef", RUN_IT),
    ("lxd", RUN_IT),
    ("mcollective", RUN_IT),
    ("puppet", RUN_IT),
    ("salt_minion", RUN_IT),
    // In users.
    ("create_groups", "a group that does not exist is made"),
    ("doas", "use sudo"),
    ("expiredate", ""),
    ("inactive", ""),
    ("selinux_user", ""),
    ("snapuser", ""),
    ("ssh_redirect_user", ""),
];

const RUN_IT: &str = "use a unit in coreos.units that runs it in a container";

#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) findings: Vec<Finding>,
    /// Contents that the text has at a URL.
    pub(super) imports: Vec<Spanned<Import>>,
    /// How many of them are not here yet.
    pub(super) missing: usize,
    imported: Imported,
    path: String,
}

impl Reader {
    pub(super) fn new(imported: Imported) -> Self {
        Self {
            imported,
            ..Self::default()
        }
    }

    /// What has been fetched for `import`, which is noted down in any case.
    pub(super) fn content(&mut self, import: Spanned<Import>) -> Option<Content> {
        let content = self.imported.contents.get(&import.value.url).cloned();
        self.missing += usize::from(content.is_none());
        self.imports.push(import);
        content
    }

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
            (Some((_, "")), _) => ("not supported, ignored", None),
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
        match String::from_utf8(self.bytes(node)?) {
            Ok(text) => Some(text),
            Err(_) => {
                self.error(node.pos, "!!binary that is not text");
                None
            }
        }
    }

    /// As [`Self::string`]; `!!binary` may stand for anything.
    pub(super) fn bytes(&mut self, node: &Node) -> Option<Vec<u8>> {
        let scalar = match &node.value {
            Value::Scalar(scalar) if scalar.is_null() => return None,
            Value::Scalar(scalar) => scalar,
            _ => {
                self.wrong_kind(node, "a single value");
                return None;
            }
        };
        if !scalar.binary {
            return Some(scalar.raw.clone().into_bytes());
        }
        let packed: String = scalar.raw.split_whitespace().collect();
        match base64::engine::general_purpose::STANDARD.decode(packed) {
            Ok(bytes) => Some(bytes),
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

    pub(super) fn url(&mut self, node: &Node) -> Option<Spanned<String>> {
        let url = self.spanned(node).filter(|url| !url.value.is_empty())?;
        if !is_url(&url.value) {
            self.error(node.pos, format!("{:?} is not a URL", url.value))
                .hint = Some("http://… or https://…".to_owned());
            return None;
        }
        Some(url)
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

/// One that we can fetch.
pub(crate) fn is_url(text: &str) -> bool {
    let known = ["http://", "https://"].iter().any(|s| text.starts_with(s));
    known && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}
