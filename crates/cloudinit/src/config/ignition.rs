//! Ignition 3.0 to 3.6, as far as a running system can do it: files, directories, links, accounts and
//! units. What Ignition does to disks is an error, by name.

use base64::Engine;
use sha2::{Digest, Sha256, Sha512};

use super::files::{self, Directory, File, Link};
use super::reader::{Reader, is_url};
use super::users::{self, Group, User};
use super::{Config, DropIn, Spanned, Unit, Verb};
use crate::imports::{Import, Purpose};
use crate::userdata::gunzip;
use crate::yaml::{Node, Value};

pub(super) fn read(r: &mut Reader, tree: &Node, config: &mut Config) {
    let mut versioned = false;
    let known = &[
        "ignition",
        "kernelArguments",
        "passwd",
        "storage",
        "systemd",
    ];
    r.fields(tree, known, |r, key, node| match key {
        "ignition" => versioned = ignition(r, node),
        "passwd" => passwd(r, node, config),
        "storage" => storage(r, node, config),
        "systemd" => r.fields(node, &["units"], |r, _, node| {
            config.units = r.list(node, unit);
        }),
        _ => unsupported(r, node, "kernel arguments belong to the release here"),
    });
    if !versioned && !r.findings.iter().any(|f| f.is_error()) {
        r.error(tree.pos, "ignition.version is missing").hint = Some("e.g. 3.4.0".to_owned());
    }
}

/// Something that changes nothing when it is empty, and that we cannot do when it is not.
fn unsupported(r: &mut Reader, node: &Node, why: &str) {
    let empty = match &node.value {
        Value::Seq(items) => items.is_empty(),
        Value::Map(entries) => entries.iter().all(|entry| match &entry.node.value {
            Value::Seq(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            Value::Scalar(scalar) => scalar.is_null(),
        }),
        Value::Scalar(scalar) => scalar.is_null(),
    };
    if !empty {
        r.error(node.pos, "not supported").hint = Some(why.to_owned());
    }
}

fn ignition(r: &mut Reader, node: &Node) -> bool {
    let mut versioned = false;
    let known = &["config", "proxy", "security", "timeouts", "version"];
    r.fields(node, known, |r, key, node| match key {
        "version" => {
            versioned = true;
            let text = r.string(node).unwrap_or_default();
            let mut numbers = text.split('.').map(str::parse::<u32>);
            let version = (numbers.next(), numbers.next());
            if !matches!(version, (Some(Ok(3)), Some(Ok(0..=6)))) {
                r.error(node.pos, format!("version {text:?} is not supported"))
                    .hint = Some("3.0.0 to 3.6.0 are".to_owned());
            }
        }
        "config" => unsupported(r, node, "put all into one file"),
        "security" | "proxy" => unsupported(r, node, "certificates and proxy are the host's"),
        _ => {}
    });
    versioned
}

fn passwd(r: &mut Reader, node: &Node, config: &mut Config) {
    r.fields(node, &["groups", "users"], |r, key, node| match key {
        "groups" => config.groups = r.list(node, group),
        _ => config.users = r.list(node, user),
    });
}

fn should_exist(r: &mut Reader, node: &Node) {
    if !r.boolean(node) {
        r.error(node.pos, "accounts are not removed");
    }
}

fn group(r: &mut Reader, node: &Node) -> Option<Group> {
    let (mut name, mut gid, mut system) = (None, None, false);
    let known = &["gid", "name", "passwordHash", "shouldExist", "system"];
    r.fields(node, known, |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|name| users::account_name(r, name)),
        "gid" => gid = users::number(r, node),
        "system" => system = r.boolean(node),
        "shouldExist" => should_exist(r, node),
        _ => unsupported(r, node, "groups have no passwords"),
    });
    if name.is_none() && !r.findings.iter().any(|f| f.is_error()) {
        r.error(node.pos, "a group without a name");
    }
    let name = name?;
    Some(Group { name, gid, system })
}

fn user(r: &mut Reader, node: &Node) -> Option<User> {
    let mut name = None;
    let mut user = User::unnamed(r.place(node));
    let known = &[
        "gecos",
        "groups",
        "homeDir",
        "name",
        "noCreateHome",
        "noLogInit",
        "noUserGroup",
        "passwordHash",
        "primaryGroup",
        "shell",
        "shouldExist",
        "sshAuthorizedKeys",
        "system",
        "uid",
    ];
    r.fields(node, known, |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|name| users::account_name(r, name)),
        "gecos" => user.gecos = users::field(r, node),
        "groups" => {
            user.groups = r.list(node, |r, n| {
                r.spanned(n).filter(|name| users::account_name(r, name))
            })
        }
        "homeDir" => user.homedir = users::absolute(r, node),
        "noCreateHome" => user.no_create_home = r.boolean(node),
        "noUserGroup" => user.no_user_group = r.boolean(node),
        "passwordHash" => user.passwd = users::field(r, node),
        "primaryGroup" => {
            user.primary_group = r.spanned(node).filter(|g| users::account_name(r, g));
        }
        "shell" => user.shell = users::absolute(r, node),
        "shouldExist" => should_exist(r, node),
        "sshAuthorizedKeys" => user.ssh_authorized_keys = users::ssh_keys(r, node),
        "system" => user.system = r.boolean(node),
        "uid" => user.uid = users::number(r, node),
        _ => {}
    });
    if name.is_none() && !r.findings.iter().any(|f| f.is_error()) {
        r.error(node.pos, "a user without a name");
    }
    Some(User {
        name: name?,
        ..user
    })
}

fn storage(r: &mut Reader, node: &Node, config: &mut Config) {
    let known = &[
        "directories",
        "disks",
        "files",
        "filesystems",
        "links",
        "luks",
        "raid",
    ];
    r.fields(node, known, |r, key, node| match key {
        "directories" => config.directories = r.list(node, directory),
        "files" => config.write_files = r.list(node, file),
        "links" => config.links = r.list(node, link),
        _ => unsupported(
            r,
            node,
            "the system is running already; use units for other disks",
        ),
    });
}

/// What files, directories and links have in common.
#[derive(Default)]
struct Common {
    path: Option<Spanned<String>>,
    owner: (Option<String>, Option<String>),
    mode: Option<u32>,
}

impl Common {
    fn read(&mut self, r: &mut Reader, key: &str, node: &Node) {
        match key {
            "path" => match node.text() {
                Some(text) if !text.starts_with('/') => {
                    r.error(node.pos, format!("{text:?} is not an absolute path"));
                }
                _ => self.path = files::absolute(r, node),
            },
            "user" => self.owner.0 = account(r, node),
            "group" => self.owner.1 = account(r, node),
            "mode" => {
                self.mode = users::number(r, node);
                if self.mode.is_some_and(|mode| mode > 0o7777) {
                    r.error(node.pos, "not a mode").hint =
                        Some("modes are decimal in JSON: 0644 is 420".to_owned());
                }
            }
            // Files are made what the config says at every boot.
            _ => drop(r.boolean(node)),
        }
    }

    fn owner(&self) -> Option<Spanned<String>> {
        let path = self.path.as_ref()?;
        let value = match &self.owner {
            (None, None) => return None,
            (user, group) => format!(
                "{}:{}",
                user.as_deref().unwrap_or("root"),
                group.as_deref().unwrap_or("root")
            ),
        };
        Some(Spanned {
            value,
            place: path.place.clone(),
        })
    }

    /// The path; a complaint when there is none.
    fn path(&self, r: &mut Reader, node: &Node) -> Option<Spanned<String>> {
        if self.path.is_none() && !r.findings.iter().any(|f| f.is_error()) {
            r.error(node.pos, "a path is missing");
        }
        self.path.clone()
    }
}

fn account(r: &mut Reader, node: &Node) -> Option<String> {
    let mut value = None;
    r.fields(node, &["id", "name"], |r, key, node| {
        value = match key {
            "id" => users::number(r, node).map(|id| id.to_string()),
            _ => r.line(node),
        };
    });
    value.filter(|value| !value.is_empty())
}

fn directory(r: &mut Reader, node: &Node) -> Option<Directory> {
    let mut common = Common::default();
    let known = &["group", "mode", "overwrite", "path", "user"];
    r.fields(node, known, |r, key, node| common.read(r, key, node));
    Some(Directory {
        path: common.path(r, node)?,
        mode: common.mode.unwrap_or(0o755),
        owner: common.owner(),
    })
}

fn link(r: &mut Reader, node: &Node) -> Option<Link> {
    let (mut common, mut target) = (Common::default(), None);
    let known = &["group", "hard", "overwrite", "path", "target", "user"];
    r.fields(node, known, |r, key, node| match key {
        "target" => target = r.line(node).filter(|text| !text.is_empty()),
        "hard" => {
            if r.boolean(node) {
                r.error(node.pos, "hard links are not supported");
            }
        }
        key => common.read(r, key, node),
    });
    if target.is_none() {
        r.error(node.pos, "a link without a target");
    }
    Some(Link {
        path: common.path(r, node)?,
        target: target?,
    })
}

fn file(r: &mut Reader, node: &Node) -> Option<File> {
    let mut common = Common::default();
    let (mut whole, mut more) = (None, None);
    let missing = r.missing;
    let known = &[
        "append",
        "contents",
        "group",
        "mode",
        "overwrite",
        "path",
        "user",
    ];
    r.fields(node, known, |r, key, node| match key {
        "contents" => whole = contents(r, node),
        "append" => more = Some(r.list(node, contents).concat()),
        key => common.read(r, key, node),
    });
    let append = whole.is_none() && more.is_some();
    let mut content = whole.unwrap_or_default();
    content.extend(more.unwrap_or_default());
    let path = common.path(r, node)?;
    // A part of a file would be worse than none.
    if r.missing > missing {
        return None;
    }
    Some(File {
        path,
        content,
        mode: common.mode.unwrap_or(0o644),
        owner: common.owner(),
        append,
    })
}

fn contents(r: &mut Reader, node: &Node) -> Option<Vec<u8>> {
    let (mut origin, mut gzip, mut hash) = (None, false, None);
    let mut headers = Vec::new();
    let known = &["compression", "httpHeaders", "source", "verification"];
    r.fields(node, known, |r, key, node| match key {
        "source" => origin = source(r, node),
        "httpHeaders" => headers = r.list(node, header),
        "compression" => match r.string(node).as_deref() {
            Some("gzip") => gzip = true,
            Some("") | None => {}
            Some(other) => drop(
                r.error(node.pos, format!("unknown compression {other:?}"))
                    .hint
                    .insert("gzip is the only one".to_owned()),
            ),
        },
        "verification" => r.fields(node, &["hash"], |r, _, node| hash = r.spanned(node)),
        _ => {}
    });
    let mut data = match origin? {
        Source::Here(data) => data,
        Source::At(url) => {
            let mut import = url.map(|url| Import::new(url, Purpose::File));
            import.value.headers = headers;
            r.content(import)?.bytes().to_vec()
        }
    };
    // The hash is that of what comes over the network, packed or not.
    if let Some(hash) = hash {
        verify(r, &data, &hash);
    }
    if gzip {
        match gunzip(&data) {
            Ok(unpacked) => data = unpacked,
            Err(problem) => {
                r.error(node.pos, format!("not gzip: {problem}"));
                return None;
            }
        }
    }
    Some(data)
}

fn verify(r: &mut Reader, data: &[u8], hash: &Spanned<String>) {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (name, expected) = hash.value.split_once('-').unwrap_or(("", ""));
    let found = match name {
        "sha256" => hex(&Sha256::digest(data)),
        "sha512" => hex(&Sha512::digest(data)),
        _ => {
            let message = format!("{:?} is not a hash", hash.value);
            let finding = hash.place.error(message);
            r.findings.push(finding.hint("sha256-… or sha512-…"));
            return;
        }
    };
    if found != expected.to_ascii_lowercase() {
        let message = format!("the content has {name}-{found}");
        r.findings.push(hash.place.error(message));
    }
}

fn header(r: &mut Reader, node: &Node) -> Option<(String, String)> {
    let (mut name, mut value) = (None, None);
    r.fields(node, &["name", "value"], |r, key, node| match key {
        "name" => name = r.line(node),
        _ => value = r.line(node),
    });
    Some((name?, value.unwrap_or_default()))
}

enum Source {
    Here(Vec<u8>),
    At(Spanned<String>),
}

/// A `data:` URL (RFC 2397), or one that is fetched.
fn source(r: &mut Reader, node: &Node) -> Option<Source> {
    let url = r.spanned(node)?;
    if url.value.is_empty() {
        return Some(Source::Here(Vec::new()));
    }
    if is_url(&url.value) {
        return Some(Source::At(url));
    }
    let rest = url.value.strip_prefix("data:");
    let Some((kind, data)) = rest.and_then(|rest| rest.split_once(',')) else {
        r.error(node.pos, format!("{:?} cannot be fetched", url.value))
            .hint = Some("data:, http:// and https:// are supported".to_owned());
        return None;
    };
    let Some(bytes) = percent_decoded(data) else {
        r.error(node.pos, "a % without two hexadecimal digits");
        return None;
    };
    if !kind.ends_with(";base64") {
        return Some(Source::Here(bytes));
    }
    let engine = base64::engine::general_purpose::STANDARD;
    match engine.decode(bytes.trim_ascii()) {
        Ok(bytes) => Some(Source::Here(bytes)),
        Err(error) => {
            r.error(node.pos, format!("not base64: {error}"));
            None
        }
    }
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            byte => out.push(byte),
        }
    }
    Some(out)
}

/// Ignition enables units before the first boot's systemd starts; here it runs, so what is enabled is
/// started as well.
fn unit(r: &mut Reader, node: &Node) -> Option<Unit> {
    let mut name = None;
    let mut unit = Unit::unnamed(r.place(node));
    let known = &["contents", "dropins", "enabled", "mask", "name"];
    r.fields(node, known, |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|n| super::units::file_name(r, n)),
        "contents" => unit.content = r.string(node).filter(|text| !text.is_empty()),
        "enabled" => unit.enable = r.boolean(node),
        "mask" => unit.mask = r.boolean(node),
        _ => unit.drop_ins = r.list(node, drop_in),
    });
    if name.is_none() && !r.findings.iter().any(|f| f.is_error()) {
        r.error(node.pos, "a unit without a name");
    }
    unit.command = unit.enable.then_some(Verb::Start);
    Some(Unit {
        name: name?,
        ..unit
    })
}

fn drop_in(r: &mut Reader, node: &Node) -> Option<DropIn> {
    let (mut name, mut content) = (None, None);
    r.fields(node, &["contents", "name"], |r, key, node| match key {
        "name" => name = r.spanned(node).filter(|n| super::units::file_name(r, n)),
        _ => content = r.string(node).filter(|text| !text.is_empty()),
    });
    Some(DropIn {
        name: name?.value,
        content: content?,
    })
}
