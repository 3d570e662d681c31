//! Several configs as one, as the parts of an archive are.

use super::{Config, EnvSection};
use crate::finding::Place;

impl Config {
    /// Adds `later`: lists grow, single values are replaced.
    pub fn merge(&mut self, later: Self) {
        replace(&mut self.hostname, later.hostname);
        replace(&mut self.fqdn, later.fqdn);
        match (&mut self.ssh_authorized_keys, later.ssh_authorized_keys) {
            (Some(ours), Some(theirs)) => ours.value.extend(theirs.value),
            (ours, theirs) => replace(ours, theirs),
        }
        self.ssh_imports.extend(later.ssh_imports);
        self.imports.extend(later.imports);
        self.groups.extend(later.groups);
        self.users.extend(later.users);
        self.directories.extend(later.directories);
        self.write_files.extend(later.write_files);
        self.links.extend(later.links);
        self.manage_etc_hosts |= later.manage_etc_hosts;
        self.units.extend(later.units);
        replace(&mut self.update.group, later.update.group);
        replace(&mut self.update.server, later.update.server);
        replace(
            &mut self.update.reboot_strategy,
            later.update.reboot_strategy,
        );
        replace(&mut self.update.interval, later.update.interval);
        replace(&mut self.oem, later.oem);
        section(&mut self.etcd, later.etcd);
        section(&mut self.etcd2, later.etcd2);
        section(&mut self.fleet, later.fleet);
        section(&mut self.flannel, later.flannel);
        section(&mut self.locksmith, later.locksmith);
        self.needs.extend(later.needs);
    }
}

impl Config {
    /// Every place in it: those of a part become places in the whole.
    pub(crate) fn relocate(&mut self, to: &dyn Fn(&mut Place)) {
        let keys = self.ssh_authorized_keys.iter_mut().map(|k| &mut k.place);
        keys.for_each(to);
        self.ssh_imports.iter_mut().for_each(|i| to(&mut i.place));
        self.imports.iter_mut().for_each(|i| to(&mut i.place));
        self.groups.iter_mut().for_each(|g| to(&mut g.name.place));
        for user in &mut self.users {
            let lists = user.groups.iter_mut().chain(&mut user.imports);
            let lists = lists.chain(&mut user.primary_group);
            lists.for_each(|value| to(&mut value.place));
            to(&mut user.name.place);
        }
        for directory in &mut self.directories {
            to(&mut directory.path.place);
            directory.owner.iter_mut().for_each(|o| to(&mut o.place));
        }
        for file in &mut self.write_files {
            to(&mut file.path.place);
            file.owner.iter_mut().for_each(|o| to(&mut o.place));
        }
        self.links.iter_mut().for_each(|l| to(&mut l.path.place));
        self.units.iter_mut().for_each(|u| to(&mut u.name.place));
        self.needs.iter_mut().for_each(|n| to(&mut n.place));
    }
}

fn replace<T>(ours: &mut Option<T>, theirs: Option<T>) {
    if theirs.is_some() {
        *ours = theirs;
    }
}

fn section(ours: &mut EnvSection, theirs: EnvSection) {
    for (name, value) in theirs {
        match ours.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => ours.push((name, value)),
        }
    }
}
