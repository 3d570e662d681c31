//! The keys of today's cloud-init that mean something here: each becomes what the CoreOS dialect has
//! for it already, files and units.

use super::reader::Reader;
use super::{Config, File, Link, Spanned, Unit, Verb, users};
use crate::finding::Place;
use crate::plan::sha256;
use crate::yaml::{Node, Value};

/// Marks of what is to run once.
pub(crate) const DONE: &str = "/var/lib/cloudinit/done";

pub(super) const KEYS: &[&str] = &[
    "bootcmd",
    "fqdn",
    "groups",
    "ntp",
    "runcmd",
    "ssh_import_id",
    "ssh_pwauth",
    "timezone",
];

pub(super) const NTP_KEYS: &[&str] = &["enabled", "ntp_client", "pools", "servers"];

pub(super) fn read(r: &mut Reader, key: &str, node: &Node, config: &mut Config) {
    match key {
        "bootcmd" => {
            if let Some(script) = script(r, node) {
                let (file, unit) = command("bootcmd", &script, false, r.place(node));
                config.write_files.push(file);
                config.units.push(unit);
            }
        }
        "runcmd" => {
            if let Some(script) = script(r, node) {
                let (file, unit) = command("runcmd", &script, true, r.place(node));
                config.write_files.push(file);
                config.units.push(unit);
            }
        }
        "fqdn" => config.fqdn = r.line(node).filter(|name| !name.is_empty()),
        "groups" => groups(r, node, config),
        "ntp" => ntp(r, node, config),
        "ssh_import_id" => config.ssh_imports.extend(users::import_ids(r, node)),
        "ssh_pwauth" => {
            let answer = if r.boolean(node) { "yes" } else { "no" };
            let text = format!("PasswordAuthentication {answer}\n");
            let path = "/etc/ssh/sshd_config.d/50-cloudinit.conf";
            config.write_files.push(file(path, text, r.place(node)));
        }
        _ => timezone(r, node, config),
    }
}

pub(super) fn is_first(unit: &Unit) -> bool {
    unit.name.value == "cloudinit-bootcmd.service"
}

fn file(path: &str, text: String, place: Place) -> File {
    File {
        path: Spanned {
            value: path.to_owned(),
            place,
        },
        content: text.into_bytes(),
        mode: 0o644,
        owner: None,
        append: false,
    }
}

/// A line of shell each: text as it is, a list quoted word by word.
fn script(r: &mut Reader, node: &Node) -> Option<String> {
    let lines = r.list(node, |r, item| match &item.value {
        Value::Seq(_) => {
            let words = r.list(item, Reader::string);
            let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
            let words: Vec<String> = words.iter().map(quote).collect();
            Some(words.join(" "))
        }
        _ => r.string(item),
    });
    (!lines.is_empty()).then(|| lines.join("\n") + "\n")
}

/// A script and the service that runs it, at every boot or once. What ran once leaves a mark named
/// after its content, so a changed list runs again.
fn command(name: &str, body: &str, once: bool, place: Place) -> (File, Unit) {
    let path = format!("/var/lib/cloudinit/scripts/{name}");
    let digest = sha256(body.as_bytes());
    let mark = format!("{DONE}/{name}-{}", &digest[..16]);
    // First of all: a list that ends in the middle, by `exit`, an error or a reboot, has run, and what it did may not
    // be done twice.
    let (condition, begin) = match once {
        true => (
            format!("ConditionPathExists=!{mark}\n"),
            format!("mkdir -p {DONE} && : >{mark} && sync {DONE} || exit\n"),
        ),
        false => (String::new(), String::new()),
    };
    let script = File {
        mode: 0o700,
        ..file(&path, format!("#!/bin/sh\n{begin}{body}"), place.clone())
    };
    let content = format!(
        "[Unit]\nDescription={name} of the user-data\n{condition}\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={path}\n"
    );
    let unit = Unit {
        name: Spanned {
            value: format!("cloudinit-{name}.service"),
            place: place.clone(),
        },
        content: Some(content),
        runtime: true,
        command: Some(Verb::Start),
        ..Unit::unnamed(place)
    };
    (script, unit)
}

/// Names, or names with their members.
fn groups(r: &mut Reader, node: &Node, config: &mut Config) {
    let names: Vec<Spanned<String>> = match &node.value {
        Value::Scalar(_) => r.line(node).map_or_else(Vec::new, |line| {
            let place = r.place(node);
            let name = |name: &str| Spanned {
                value: name.trim().to_owned(),
                place: place.clone(),
            };
            line.split(',').map(name).collect()
        }),
        _ => r.list(node, |r, item| {
            if matches!(item.value, Value::Map(_)) {
                r.warning(item.pos, "members of a group are not supported, ignored")
                    .hint = Some("use users[].groups".to_owned());
                return None;
            }
            r.spanned(item)
        }),
    };
    for name in names {
        if users::account_name(r, &name) {
            config.groups.push(users::Group {
                name,
                gid: None,
                system: false,
            });
        }
    }
}

fn ntp(r: &mut Reader, node: &Node, config: &mut Config) {
    let (mut servers, mut enabled) = (Vec::new(), true);
    r.fields(node, NTP_KEYS, |r, key, node| match key {
        "enabled" => enabled = r.boolean(node),
        "servers" | "pools" => servers.extend(r.list(node, Reader::line)),
        _ => drop(
            r.warning(node.pos, "the time comes from systemd-timesyncd")
                .hint
                .insert("leave it out".to_owned()),
        ),
    });
    if enabled && !servers.is_empty() {
        let text = format!("[Time]\nNTP={}\n", servers.join(" "));
        let path = "/etc/systemd/timesyncd.conf.d/50-cloudinit.conf";
        config.write_files.push(file(path, text, r.place(node)));
    }
    config.units.push(Unit {
        name: Spanned {
            value: "systemd-timesyncd.service".to_owned(),
            place: r.place(node),
        },
        command: Some(if enabled {
            Verb::TryRestart
        } else {
            Verb::Stop
        }),
        ..Unit::unnamed(r.place(node))
    });
}

fn timezone(r: &mut Reader, node: &Node, config: &mut Config) {
    let Some(name) = r.spanned(node).filter(|name| !name.value.is_empty()) else {
        return;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-_/".contains(c);
    if name.value.starts_with('/') || !name.value.chars().all(plain) {
        r.error(node.pos, format!("{:?} is not a time zone", name.value))
            .hint = Some("e.g. Europe/Berlin".to_owned());
        return;
    }
    config.links.push(Link {
        path: Spanned {
            value: "/etc/localtime".to_owned(),
            place: name.place,
        },
        target: format!("../usr/share/zoneinfo/{}", name.value),
    });
}
