//! Config, metadata and facts to a plan. The order is the original's; the corpus of recorded runs
//! holds us to it.

use super::facts::template;
use super::settle::settle;
use super::text;
use super::{Accounts, Call, Facts, FileOp, FileWrite, Owner, Plan};
use crate::config::{Config, DropIn, EnvSection, Spanned, Unit, Verb};
use crate::finding::{Finding, Place, Pos};
use crate::metadata::Metadata;
use crate::network::render;

/// The account that keys without a user are for.
const DEFAULT_USER: &str = "core";

/// What locksmith's unit was called; calls to it reach ours.
const LOCKSMITH_BEFORE: &str = "locksmithd.service";

pub const SCRIPTS: &str = "/var/lib/cloudinit/scripts";

/// What is to be planned.
#[derive(Debug, Default)]
pub struct Request<'a> {
    pub config: Config,
    /// Each with the name that its file and its unit get.
    pub scripts: Vec<(String, &'a [u8])>,
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
    let wanted = config.hostname.as_deref().or(config.fqdn.as_deref());
    builder.plan.own_hostname = wanted.is_some();
    builder.plan.hostname = wanted.or(from_platform).map(str::to_owned);
    builder.plan.key_name = request.metadata.key_name.clone();
    for (index, group) in config.groups.iter().enumerate() {
        builder.group(group, &format!("groups[{index}]"));
    }
    for (index, user) in config.users.iter().enumerate() {
        builder.user(user, &format!("users[{index}]"), &request.metadata);
    }
    let (mut keys, place) = match &config.ssh_authorized_keys {
        Some(Spanned { value, place }) => (value.clone(), place.clone()),
        None => (Vec::new(), Place::new(Pos::START, "ssh_authorized_keys")),
    };
    keys.extend_from_slice(&request.metadata.ssh_keys);
    keys.extend(builder.imported(&config.ssh_imports, &request.metadata));
    builder.keys(DEFAULT_USER, &keys, &place);
    for import in &config.imports {
        builder.import(import);
    }
    builder.plan.accounts = builder.accounts.changed();
    builder.files(request, facts);
    let units = units(config);
    builder.unit_files(&units);
    builder.calls(&units, request.metadata.network.is_some());
    builder.missing_units(config, facts);
    for (name, script) in &request.scripts {
        builder.script(name, script);
    }
    settle(&mut builder.plan.files);
    (builder.plan, builder.findings)
}

pub(super) struct Builder {
    pub(super) accounts: Accounts,
    pub(super) plan: Plan,
    pub(super) findings: Vec<Finding>,
}

impl Builder {
    pub(super) fn error(&mut self, pos: Pos, path: &str, message: String) -> &mut Finding {
        self.findings.push(Finding::error(pos, path, message));
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    fn files(&mut self, request: &Request<'_>, facts: &Facts) {
        let config = &request.config;
        for directory in &config.directories {
            if let Some(owner) = self.owner(directory.owner.as_ref()) {
                let Spanned { value: path, place } = directory.path.clone();
                let mode = directory.mode;
                self.plan.files.push(FileOp::Directory {
                    path,
                    mode,
                    owner,
                    place,
                });
            }
        }
        for file in &config.write_files {
            let Some(owner) = self.owner(file.owner.as_ref()) else {
                continue;
            };
            let Spanned { value: path, place } = &file.path;
            let content = match file.append {
                true => {
                    let planned = self.planned(path).map(|write| write.content.clone());
                    match planned.map_or_else(|| facts.content(path), Ok) {
                        Ok(before) => text::appended(before, &file.content),
                        Err(problem) => {
                            let what = format!("{path} is not written: {problem}");
                            self.findings.push(place.warning(what));
                            continue;
                        }
                    }
                }
                false => file.content.clone(),
            };
            self.write(place, path.clone(), content, file.mode, owner);
        }
        for link in &config.links {
            let Spanned { value: path, place } = link.path.clone();
            // The one link that stands for a choice among what the release has.
            if let Some(zone) = link.target.strip_prefix("../usr/share/zoneinfo/")
                && path == "/etc/localtime"
                && !facts.has(&format!("/usr/share/zoneinfo/{zone}"))
            {
                let message = format!("the time zone {zone:?} is not known here");
                let key = place.key.as_str();
                self.findings
                    .push(Finding::warning(place.pos, key, message));
                continue;
            }
            let target = link.target.clone();
            self.plan.files.push(FileOp::Link {
                path,
                target,
                place,
            });
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
            let line = match &config.fqdn {
                Some(fqdn) if fqdn != name => format!("127.0.0.1 {fqdn} {name}\n"),
                _ => format!("127.0.0.1 {name}\n"),
            };
            self.text(&of("manage_etc_hosts"), "/etc/hosts", line);
        }
        if let Some(env) = text::env_file(&config.flannel) {
            self.text(&of("coreos.flannel"), "/run/flannel/options.env", env);
        }
        if let Some(network) = &request.metadata.network {
            for file in render(network) {
                let path = format!("/run/systemd/network/{}", file.name);
                self.text(&Place::whole(), path, file.text);
            }
        }
        let given = self.planned("/etc/environment").is_some();
        if !given && !request.without_environment {
            let old = facts.environment.as_deref();
            if let Some(new) = text::environment(old, &request.metadata.addresses) {
                self.text(&Place::whole(), "/etc/environment", new);
            }
        }
    }

    /// The owner that was asked for, if there is one of that name.
    fn owner(&mut self, owner: Option<&Spanned<String>>) -> Option<Owner> {
        let Some(Spanned { value, place }) = owner else {
            return Some(Owner::root());
        };
        match self.accounts.owner(value) {
            Ok(owner) => Some(owner),
            Err(unknown) => {
                self.findings
                    .push(place.error(format!("{unknown} does not exist")));
                None
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
    pub(super) fn write(
        &mut self,
        place: &Place,
        path: String,
        content: Vec<u8>,
        mode: u32,
        owner: Owner,
    ) {
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

    fn calls(&mut self, units: &[Unit], network_of_platform: bool) {
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
        if !network.is_empty() || network_of_platform {
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

    /// Services that are asked for, and that nobody brings. What a section says is written all the same: an
    /// extension may bring its service later.
    fn missing_units(&mut self, config: &Config, facts: &Facts) {
        let section = |need: &Spanned<&'static str>| (need.value.to_owned(), need.place.clone());
        let unit = |unit: &Unit| {
            // The rest of the kinds is often made by others: devices, mounts, slices.
            let asked = unit.command.is_some() || unit.enable;
            let kind = [".service", ".socket", ".timer", ".path"];
            let name = &unit.name.value;
            let known = kind.iter().any(|k| name.ends_with(k)) && name != LOCKSMITH_BEFORE;
            (asked && known).then(|| (name.clone(), unit.name.place.clone()))
        };
        let missing = |builder: &Self, name: &str| !facts.has_unit(name) && !builder.brings(name);
        for (name, place) in config.needs.iter().map(section) {
            if missing(self, &name) {
                let what = format!("there is no {name} on this host: this section does nothing");
                self.findings.push(place.warning(what));
            }
        }
        // A directory to try things in has no units at all.
        let units = config.units.iter().filter(|_| facts.has_systemd());
        for (name, place) in units.filter_map(unit) {
            // Those of other keys are not the user's to bring.
            if place.key.contains("units[") && missing(self, &name) {
                let what = format!("there is no {name} on this host, and no content for it here");
                self.findings.push(place.warning(what));
            }
        }
    }

    /// Whether the plan itself has a unit of this name.
    fn brings(&self, unit: &str) -> bool {
        let template = template(unit);
        let is = |path: &str| {
            let (dir, name) = path.rsplit_once('/').unwrap_or_default();
            dir.ends_with("systemd/system") && (name == unit || Some(name) == template.as_deref())
        };
        self.plan.files.iter().any(|op| match op {
            FileOp::Write(write) => is(&write.path),
            FileOp::Link { path, .. } => is(path),
            FileOp::Mask { .. } | FileOp::Directory { .. } | FileOp::Unmask { .. } => false,
        })
    }

    /// The script becomes a service: it has a journal, a state and a cgroup of its own, and it does
    /// not hold up the boot.
    fn script(&mut self, name: &str, script: &[u8]) {
        let place = Place::whole();
        let path = format!("{SCRIPTS}/{name}");
        let unit = match name.strip_prefix("user-data") {
            Some(number) => format!("cloudinit-script{number}.service"),
            None => format!("cloudinit-{name}.service"),
        };
        self.write(&place, path.clone(), script.to_vec(), 0o700, Owner::root());
        let text = format!(
            "[Unit]\nDescription=User-data script\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={path}\n"
        );
        self.text(&place, format!("/run/systemd/system/{unit}"), text);
        if !self.plan.calls.contains(&Call::Reload) {
            self.plan.calls.insert(0, Call::Reload);
        }
        self.plan.calls.push(Call::Unit {
            verb: Verb::Start,
            unit,
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
        (LOCKSMITH_BEFORE, &config.locksmith),
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
            ..named(LOCKSMITH_BEFORE)
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
    let mut unit = Unit::unnamed(Place::whole());
    unit.name.value = name.to_owned();
    unit
}
