//! Config, metadata and facts to a plan. The order is the original's; the corpus of recorded runs
//! holds us to it.

use super::accounts::Login;
use super::text;
use super::{Accounts, Call, Facts, FileOp, FileWrite, Home, Keys, Owner, Plan};
use crate::config::{Config, DropIn, EnvSection, Spanned, Unit, User, Verb};
use crate::finding::{Finding, Place, Pos};
use crate::metadata::Metadata;

/// The account that keys without a user are for.
const DEFAULT_USER: &str = "core";

pub const SCRIPT_PATH: &str = "/var/lib/cloudinit/scripts/user-data";
const SCRIPT_UNIT: &str = "cloudinit-script.service";

/// What is to be planned.
#[derive(Debug, Default)]
pub struct Request<'a> {
    pub config: Config,
    pub script: Option<&'a [u8]>,
    pub metadata: Metadata,
    /// Leaves `/etc/environment` alone: a config with a bad value stops there in the original.
    pub without_environment: bool,
}

/// What has to be found out about the host may still be wrong: such findings are in the second part,
/// and a plan with errors is not to be applied.
pub fn build(request: &Request<'_>, facts: &Facts) -> (Plan, Vec<Finding>) {
    let mut builder = Builder {
        accounts: facts.accounts.clone(),
        plan: Plan::default(),
        findings: Vec::new(),
    };
    let config = &request.config;
    let from_platform = request.metadata.usable_hostname();
    let hostname = config.hostname.as_ref().or(from_platform);
    builder.plan.hostname = hostname.cloned();
    for (index, user) in config.users.iter().enumerate() {
        builder.user(user, &format!("users[{index}]"));
    }
    let (mut keys, place) = match &config.ssh_authorized_keys {
        Some(Spanned { value, place }) => (value.clone(), place.clone()),
        None => (Vec::new(), Place::new(Pos::START, "ssh_authorized_keys")),
    };
    keys.extend_from_slice(&request.metadata.ssh_keys);
    builder.keys(DEFAULT_USER, &keys, &place);
    builder.plan.accounts = builder.accounts.changed();
    builder.files(request, facts);
    let units = units(config);
    builder.unit_files(&units);
    builder.calls(&units);
    if let Some(script) = request.script {
        builder.script(script);
    }
    (builder.plan, builder.findings)
}

struct Builder {
    accounts: Accounts,
    plan: Plan,
    findings: Vec<Finding>,
}

impl Builder {
    fn error(&mut self, pos: Pos, path: &str, message: String) -> &mut Finding {
        self.findings.push(Finding::error(pos, path, message));
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    fn user(&mut self, user: &User, path: &str) {
        let name = user.name.value.as_str();
        let changes = &mut self.plan.account_changes;
        if self.accounts.login(name).is_some() {
            // Everything else counts at creation only.
            if let Some(hash) = &user.passwd
                && self.accounts.set_password(name, hash)
            {
                changes.push(format!("set the password of {name}"));
            }
        } else {
            self.missing_groups(user, path);
            match self.accounts.create(user) {
                Ok(home) => {
                    let id = self.accounts.login(name).map_or(0, |login| login.uid);
                    let changes = &mut self.plan.account_changes;
                    changes.push(format!("create user {name} ({id})"));
                    self.plan.homes.extend(home);
                }
                Err(problem) => {
                    self.error(user.name.pos(), path, problem);
                    return;
                }
            }
        }
        let place = Place::new(user.name.pos(), path);
        self.keys(name, &user.ssh_authorized_keys, &place);
        self.sudo(user, &place);
    }

    /// The original stops here, after half of its work. Groups that came with CoreOS, such as docker,
    /// may come with an extension here: make them, and say so.
    fn missing_groups(&mut self, user: &User, path: &str) {
        for group in &user.groups {
            let (name, pos) = (&group.value, group.pos());
            if self.accounts.gid(name).is_some() {
                continue;
            }
            match self.accounts.create_group(name, None, true) {
                Ok(_) => self.findings.push(Finding::warning(
                    pos,
                    format!("{path}.groups"),
                    format!("there is no group {name:?}; it is created"),
                )),
                Err(problem) => drop(self.error(pos, path, problem)),
            }
        }
    }

    fn keys(&mut self, user: &str, keys: &[String], place: &Place) {
        if keys.is_empty() {
            return;
        }
        let Some(Login { uid, gid, home }) = self.accounts.login(user) else {
            let message = format!("keys for {user}, but there is no such user");
            let key = place.key.as_str();
            self.findings
                .push(Finding::warning(place.pos, key, message));
            return;
        };
        if !self.plan.homes.iter().any(|made| made.path == home) {
            let path = home.clone();
            self.plan.homes.push(Home { path, uid, gid });
        }
        self.plan.keys.push(Keys {
            user: user.to_owned(),
            uid,
            gid,
            home,
            keys: keys.to_vec(),
            place: place.clone(),
        });
    }

    fn sudo(&mut self, user: &User, place: &Place) {
        if user.sudo.is_empty() {
            return;
        }
        let name = &user.name.value;
        let rules: String = user
            .sudo
            .iter()
            .map(|rule| format!("{name} {rule}\n"))
            .collect();
        // sudo skips files with a dot in their name.
        let path = format!("/etc/sudoers.d/cloudinit-{}", name.replace('.', "_"));
        self.write(place, path, rules.into_bytes(), 0o440, Owner::root());
    }

    fn files(&mut self, request: &Request<'_>, facts: &Facts) {
        let config = &request.config;
        for file in &config.write_files {
            let owner = match &file.owner {
                None => Owner::root(),
                Some(Spanned { value, place }) => match self.accounts.owner(value) {
                    Ok(owner) => owner,
                    Err(unknown) => {
                        self.findings
                            .push(place.error(format!("{unknown} does not exist")));
                        continue;
                    }
                },
            };
            let Spanned { value: path, place } = &file.path;
            self.write(place, path.clone(), file.content.clone(), file.mode, owner);
        }
        let of = |key| Place::new(Pos::START, key);
        if let Some(oem) = &config.oem {
            self.text(
                &of("coreos.oem"),
                "/etc/oem-release",
                text::oem_release(oem),
            );
        }
        if !config.update.is_empty() {
            let change = |old: Option<&str>| {
                text::update_conf(old.unwrap_or(&facts.update_conf), &config.update)
            };
            self.change(&of("coreos.update"), "/etc/coreos/update.conf", change);
        }
        if config.manage_etc_hosts {
            let name = self.plan.hostname.as_ref().unwrap_or(&facts.hostname);
            let line = format!("127.0.0.1 {name}\n");
            self.text(&of("manage_etc_hosts"), "/etc/hosts", line);
        }
        if let Some(env) = text::env_file(&config.flannel) {
            self.text(&of("coreos.flannel"), "/run/flannel/options.env", env);
        }
        let given = self.planned("/etc/environment").is_some();
        if !given && !request.without_environment {
            let old = facts.environment.as_deref();
            if let Some(new) = text::environment(old, &request.metadata.addresses) {
                self.text(&Place::whole(), "/etc/environment", new);
            }
        }
    }

    /// The write of `path` that is in the plan already.
    fn planned(&mut self, path: &str) -> Option<&mut FileWrite> {
        self.plan.files.iter_mut().find_map(|op| match op {
            FileOp::Write(write) if write.path == path => Some(write),
            _ => None,
        })
    }

    /// A path is written once, with what was last said about it: writing the one and then the other would
    /// change the file at every boot.
    fn write(&mut self, place: &Place, path: String, content: Vec<u8>, mode: u32, owner: Owner) {
        self.plan
            .files
            .retain(|op| !matches!(op, FileOp::Write(write) if write.path == path));
        self.plan.files.push(FileOp::Write(FileWrite {
            path,
            content,
            mode,
            owner,
            place: place.clone(),
        }));
    }

    fn text(&mut self, place: &Place, path: impl Into<String>, text: String) {
        let content = text.into_bytes();
        self.write(place, path.into(), content, 0o644, Owner::root());
    }

    /// Writes what `change` makes of the planned content, keeping mode and owner; it gets `None` where the
    /// file is not in the plan.
    fn change(&mut self, place: &Place, path: &str, change: impl FnOnce(Option<&str>) -> String) {
        match self.planned(path) {
            Some(write) => {
                let old = String::from_utf8_lossy(&write.content);
                write.content = change(Some(&old)).into_bytes();
            }
            None => self.text(place, path, change(None)),
        }
    }

    fn unit_files(&mut self, units: &[Unit]) {
        for unit in units {
            let (path, place) = (destination(unit), &unit.name.place);
            if let Some(content) = &unit.content {
                self.text(place, path.clone(), content.clone());
            }
            for DropIn { name, content } in &unit.drop_ins {
                self.text(place, format!("{path}.d/{name}"), content.clone());
            }
            if unit.mask {
                let place = place.clone();
                self.plan.files.push(FileOp::Mask { path, place });
            } else if unit.runtime {
                self.plan.files.push(FileOp::Unmask { path });
            }
        }
    }

    fn calls(&mut self, units: &[Unit]) {
        let calls = &mut self.plan.calls;
        let (network, services): (Vec<&Unit>, Vec<&Unit>) =
            units.iter().partition(|unit| unit.is_network());
        for unit in services.iter().filter(|unit| unit.enable) {
            calls.push(Call::Enable {
                unit: unit.name.value.clone(),
                runtime: unit.runtime,
            });
        }
        if units
            .iter()
            .any(|unit| unit.content.is_some() || !unit.drop_ins.is_empty())
        {
            calls.push(Call::Reload);
        }
        if !network.is_empty() {
            calls.push(Call::Unit {
                verb: Verb::Restart,
                unit: "systemd-networkd.service".to_owned(),
            });
        }
        for unit in services {
            if let Some(verb) = unit.command {
                calls.push(Call::Unit {
                    verb,
                    unit: unit.name.value.clone(),
                });
            }
        }
    }

    /// The script becomes a service: it has a journal, a state and a cgroup of its own, and it does
    /// not hold up the boot.
    fn script(&mut self, script: &[u8]) {
        let place = Place::whole();
        self.write(
            &place,
            SCRIPT_PATH.to_owned(),
            script.to_vec(),
            0o700,
            Owner::root(),
        );
        let unit = format!(
            "[Unit]\nDescription=User-data script\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={SCRIPT_PATH}\n"
        );
        self.text(&place, format!("/run/systemd/system/{SCRIPT_UNIT}"), unit);
        self.plan.calls.push(Call::Reload);
        self.plan.calls.push(Call::Unit {
            verb: Verb::Start,
            unit: SCRIPT_UNIT.to_owned(),
        });
    }
}

fn destination(unit: &Unit) -> String {
    let dir = if unit.runtime { "run" } else { "etc" };
    let group = if unit.is_network() {
        "network"
    } else {
        "system"
    };
    format!("/{dir}/systemd/{group}/{}", unit.name.value)
}

/// The user's units, then those that the sections stand for.
fn units(config: &Config) -> Vec<Unit> {
    let mut units = config.units.clone();
    for (name, section) in [
        ("etcd.service", &config.etcd),
        ("etcd2.service", &config.etcd2),
        ("fleet.service", &config.fleet),
        ("locksmithd.service", &config.locksmith),
    ] {
        // The original adds these even if they say nothing. All that then comes of it is that a runtime
        // mask on a unit of this name is taken away again.
        if !section.is_empty() || config.units.iter().any(|unit| unit.name.value == name) {
            units.push(section_unit(name, section));
        }
    }
    if let Some(strategy) = &config.update.reboot_strategy {
        let off = strategy == "off";
        units.push(Unit {
            mask: off,
            runtime: true,
            command: Some(if off { Verb::Stop } else { Verb::Restart }),
            ..named("locksmithd.service")
        });
    }
    let update = &config.update;
    if update.group.is_some() || update.server.is_some() || update.interval.is_some() {
        units.push(Unit {
            command: Some(Verb::Restart),
            ..named("update-engine.service")
        });
    }
    units
}

fn section_unit(name: &str, section: &EnvSection) -> Unit {
    let drop_in = text::drop_in(section).map(|content| DropIn {
        name: "20-cloudinit.conf".to_owned(),
        content,
    });
    Unit {
        runtime: true,
        drop_ins: drop_in.into_iter().collect(),
        ..named(name)
    }
}

fn named(name: &str) -> Unit {
    Unit {
        name: Spanned {
            value: name.to_owned(),
            place: Place::whole(),
        },
        content: None,
        drop_ins: Vec::new(),
        enable: false,
        mask: false,
        runtime: false,
        command: None,
    }
}
