//! The part of the plan that is about people: groups, users, their keys and sudo rules.

use super::accounts::Login;
use super::build::Builder;
use super::{Home, Keys, Owner};
use crate::config::{Group, Spanned, User};
use crate::finding::{Finding, Place};
use crate::imports::{Import, Purpose};
use crate::metadata::Metadata;

impl Builder {
    pub(super) fn group(&mut self, group: &Group, path: &str) {
        let name = group.name.value.as_str();
        if self.accounts.gid(name).is_some() {
            return;
        }
        match self.accounts.create_group(name, group.gid, group.system) {
            Ok(gid) if group.gid.is_some_and(|wish| wish != gid) => {
                let message = format!("the group id is taken; {name} gets {gid}");
                self.findings
                    .push(Finding::warning(group.name.pos(), path, message));
            }
            Ok(gid) => {
                let change = format!("create group {name} ({gid})");
                self.plan.account_changes.push(change);
            }
            Err(problem) => drop(self.error(group.name.pos(), path, problem)),
        }
    }

    /// The keys from elsewhere that are known; what is not is asked for.
    pub(super) fn imported(
        &mut self,
        imports: &[Spanned<String>],
        metadata: &Metadata,
    ) -> Vec<String> {
        let mut keys = Vec::new();
        for import in imports {
            let url = &import.value;
            self.import(&Spanned {
                value: Import::new(url, Purpose::Keys),
                place: import.place.clone(),
            });
            if let Some(known) = metadata.imported.keys.get(url) {
                keys.extend_from_slice(known);
            }
        }
        keys
    }

    pub(super) fn import(&mut self, import: &Spanned<Import>) {
        let imports = &mut self.plan.imports;
        if !imports.iter().any(|other| other.value == import.value) {
            imports.push(import.clone());
        }
    }

    pub(super) fn user(&mut self, user: &User, path: &str, metadata: &Metadata) {
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
        let mut keys = user.ssh_authorized_keys.clone();
        keys.extend(self.imported(&user.imports, metadata));
        self.keys(name, &keys, &place);
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

    pub(super) fn keys(&mut self, user: &str, keys: &[String], place: &Place) {
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
            let place = place.clone();
            self.plan.homes.push(Home {
                path,
                uid,
                gid,
                place,
            });
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
}
