//! Users and groups, by editing the text of passwd(5), group(5) and their shadows as useradd would.
//!
//! No external tools: they cost some 100 ms each in emulation, and half a dozen set-id programs would
//! have to be in the image. Everything here is pure; writing the result is apply's business.

use std::path::Path;

use super::facts::read;
use super::table::Table;
use super::{FactsError, FileWrite, Home, Owner};
use crate::config::User;
use crate::finding::{Place, Pos};

#[derive(Debug, Clone, Default)]
pub struct Accounts {
    files: Files,
    /// What was read, to tell what changed.
    original: Files,
    defaults: Defaults,
    /// Days since 1970, for shadow.
    today: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Files {
    passwd: Table,
    group: Table,
    /// The rest only where the host has them.
    shadow: Option<Table>,
    gshadow: Option<Table>,
    subuid: Option<Table>,
    subgid: Option<Table>,
}

/// useradd(8)'s and login.defs(5)'s.
#[derive(Debug, Clone)]
struct Defaults {
    shell: String,
    home: String,
    uids: (u32, u32),
    system_uids: (u32, u32),
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            shell: "/bin/bash".to_owned(),
            home: "/home".to_owned(),
            uids: (1000, 60_000),
            system_uids: (101, 999),
        }
    }
}

/// An entry of passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

const SUBORDINATES: u32 = 65_536;

impl Accounts {
    pub(super) fn read(root: &Path, today: u64) -> Result<Self, FactsError> {
        let table = |path| Ok(read(root, path)?.map(|text| Table::parse(&text)));
        let files = Files {
            passwd: table("/etc/passwd")?.unwrap_or_default(),
            group: table("/etc/group")?.unwrap_or_default(),
            shadow: table("/etc/shadow")?,
            gshadow: table("/etc/gshadow")?,
            subuid: table("/etc/subuid")?,
            subgid: table("/etc/subgid")?,
        };
        let mut defaults = Defaults::default();
        if let Some(text) = read(root, "/etc/default/useradd")? {
            defaults.shell = setting(&text, "SHELL").unwrap_or(defaults.shell);
            defaults.home = setting(&text, "HOME").unwrap_or(defaults.home);
        }
        if let Some(text) = read(root, "/etc/login.defs")? {
            let number = |key, default| {
                let text = setting(&text, key);
                text.and_then(|text| text.parse().ok()).unwrap_or(default)
            };
            defaults.uids = (number("UID_MIN", 1000), number("UID_MAX", 60_000));
        }
        Ok(Self {
            original: files.clone(),
            files,
            defaults,
            today,
        })
    }

    pub fn login(&self, name: &str) -> Option<Login> {
        let fields = self.files.passwd.get(name)?;
        Some(Login {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: (*fields.get(5)?).to_owned(),
        })
    }

    pub fn gid(&self, group: &str) -> Option<u32> {
        self.files.group.get(group)?.get(2)?.parse().ok()
    }

    /// An owner as chown(1) takes it: `user`, `user:group`, `user.group`, `:group`, numbers.
    /// The error is the part that nobody knows. A user alone leaves the group root's, as chown does
    /// with a new file of root's.
    pub fn owner(&self, text: &str) -> Result<Owner, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, group),
            None if self.uid(text).is_none() => text.split_once('.').unwrap_or((text, "")),
            None => (text, ""),
        };
        let uid = match user {
            "" => 0,
            user => self.uid(user).ok_or_else(|| format!("user {user:?}"))?,
        };
        let gid = match group {
            "" if text.ends_with(':') && !user.is_empty() => {
                self.login(user).map_or(0, |login| login.gid)
            }
            "" => 0,
            group => {
                let gid = self.gid(group).or_else(|| group.parse().ok());
                gid.ok_or_else(|| format!("group {group:?}"))?
            }
        };
        Ok(self.named(uid, gid))
    }

    pub fn named(&self, uid: u32, gid: u32) -> Owner {
        let or_number = |name: Option<&str>, id: u32| match (name, id) {
            (Some(name), _) => name.to_owned(),
            (None, 0) => "root".to_owned(),
            (None, id) => id.to_string(),
        };
        let user = or_number(self.files.passwd.name_of(2, uid), uid);
        let group = or_number(self.files.group.name_of(2, gid), gid);
        Owner {
            uid,
            gid,
            name: format!("{user}:{group}"),
        }
    }

    fn uid(&self, name: &str) -> Option<u32> {
        match name {
            "root" => Some(0),
            _ => self
                .login(name)
                .map(|l| l.uid)
                .or_else(|| name.parse().ok()),
        }
    }

    /// Gives an existing user this hash. `false` when it has it already.
    pub(super) fn set_password(&mut self, name: &str, hash: &str) -> bool {
        let today = self.today.to_string();
        let Some(shadow) = &mut self.files.shadow else {
            return false;
        };
        if !shadow.has(name) {
            shadow.push(format!("{name}:{hash}:{today}:0:99999:7:::"));
            return true;
        }
        let mut changed = false;
        shadow.set(name, 1, |old| {
            changed = old != hash;
            hash.to_owned()
        });
        if changed {
            shadow.set(name, 2, |_| today);
        }
        changed
    }

    /// Adds `user`, its own group and its memberships; the home directory is to be made afterwards.
    /// Its supplementary groups must exist.
    pub(super) fn create(&mut self, user: &User) -> Result<Option<Home>, String> {
        let name = user.name.value.as_str();
        let uids: Vec<u32> = self.files.passwd.numbers(2).collect();
        let uid = match user.uid {
            Some(uid) if uids.contains(&uid) => return Err(format!("user id {uid} is taken")),
            Some(uid) => uid,
            None => self.free(&uids, user.system).ok_or("no user id is free")?,
        };
        let gid = match &user.primary_group {
            Some(group) => self
                .gid(&group.value)
                .or_else(|| group.value.parse().ok())
                .ok_or_else(|| format!("group {:?} does not exist", group.value))?,
            None if user.no_user_group => self.gid("users").unwrap_or(100),
            None => match self.gid(name) {
                Some(gid) => gid,
                None => self.create_group(name, Some(uid), user.system)?,
            },
        };
        let home = match &user.homedir {
            Some(home) => home.clone(),
            None => format!("{}/{name}", self.defaults.home),
        };
        let gecos = user.gecos.as_deref().unwrap_or_default();
        let shell = user.shell.as_deref().unwrap_or(&self.defaults.shell);
        let line = format!("{name}:x:{uid}:{gid}:{gecos}:{home}:{shell}");
        self.files.passwd.push(line);
        let hash = user.passwd.as_deref().unwrap_or("*");
        let today = self.today;
        if let Some(shadow) = &mut self.files.shadow {
            shadow.push(match user.system {
                true => format!("{name}:{hash}:{today}::::::"),
                false => format!("{name}:{hash}:{today}:0:99999:7:::"),
            });
        }
        for group in &user.groups {
            self.join(name, &group.value);
        }
        if !user.system {
            self.subordinates(name);
        }
        Ok((!user.no_create_home).then_some(Home {
            path: home,
            uid,
            gid,
            place: user.name.place.clone(),
        }))
    }

    /// Adds a group; `wish` is taken when it is free, so that a user and its group share a number.
    pub(super) fn create_group(
        &mut self,
        name: &str,
        wish: Option<u32>,
        system: bool,
    ) -> Result<u32, String> {
        let gids: Vec<u32> = self.files.group.numbers(2).collect();
        let gid = wish
            .filter(|gid| !gids.contains(gid))
            .or_else(|| self.free(&gids, system))
            .ok_or("no group id is free")?;
        self.files.group.push(format!("{name}:x:{gid}:"));
        if let Some(gshadow) = &mut self.files.gshadow {
            gshadow.push(format!("{name}:!::"));
        }
        Ok(gid)
    }

    /// The id after the highest, as useradd takes it: a number that was somebody's is not given to
    /// another right away. System ids grow downwards.
    fn free(&self, used: &[u32], system: bool) -> Option<u32> {
        let (low, high) = match system {
            true => self.defaults.system_uids,
            false => self.defaults.uids,
        };
        let inside = used.iter().copied().filter(|id| (low..=high).contains(id));
        let next = match system {
            true => inside.min().map_or(Some(high), |id| id.checked_sub(1)),
            false => inside.max().map_or(Some(low), |id| id.checked_add(1)),
        };
        let mut gaps: Box<dyn Iterator<Item = u32>> = match system {
            true => Box::new((low..=high).rev()),
            false => Box::new(low..=high),
        };
        next.filter(|id| (low..=high).contains(id))
            .or_else(|| gaps.find(|id| !used.contains(id)))
    }

    fn join(&mut self, user: &str, group: &str) {
        let add = |members: &str| match members.split(',').any(|member| member == user) {
            true => members.to_owned(),
            false if members.is_empty() => user.to_owned(),
            false => format!("{members},{user}"),
        };
        self.files.group.set(group, 3, add);
        if let Some(gshadow) = &mut self.files.gshadow {
            gshadow.set(group, 3, add);
        }
    }

    /// subuid(5): the next free block, for user namespaces.
    fn subordinates(&mut self, name: &str) {
        for table in [&mut self.files.subuid, &mut self.files.subgid] {
            let Some(table) = table.as_mut().filter(|table| !table.has(name)) else {
                continue;
            };
            let ends = table.numbers(1).zip(table.numbers(2));
            let next = ends.map(|(start, count)| start.saturating_add(count)).max();
            let start = next.unwrap_or(0).max(100_000);
            table.push(format!("{name}:{start}:{SUBORDINATES}"));
        }
    }

    /// The files that differ from what was read. `passwd` last: it is what makes an account exist.
    pub(super) fn changed(&self) -> Vec<FileWrite> {
        let (new, old) = (&self.files, &self.original);
        let shadow_gid = self.gid("shadow").unwrap_or(0);
        let pairs = [
            ("/etc/group", Some(&new.group), Some(&old.group)),
            ("/etc/gshadow", new.gshadow.as_ref(), old.gshadow.as_ref()),
            ("/etc/subgid", new.subgid.as_ref(), old.subgid.as_ref()),
            ("/etc/subuid", new.subuid.as_ref(), old.subuid.as_ref()),
            ("/etc/shadow", new.shadow.as_ref(), old.shadow.as_ref()),
            ("/etc/passwd", Some(&new.passwd), Some(&old.passwd)),
        ];
        pairs
            .into_iter()
            .filter(|(_, new, old)| new != old)
            .filter_map(|(path, new, _)| {
                let secret = path.ends_with("shadow");
                Some(FileWrite {
                    path: path.to_owned(),
                    content: new?.text().into_bytes(),
                    mode: if secret { 0o640 } else { 0o644 },
                    owner: self.named(0, if secret { shadow_gid } else { 0 }),
                    place: Place::new(Pos::START, "users"),
                })
            })
            .collect()
    }
}

/// `KEY=value` or `KEY value`, as both files have it.
fn setting(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(key))
        .find(|rest| rest.starts_with(['=', ' ', '\t']))
        .map(|rest| {
            rest.trim_matches(|c: char| c == '=' || c == '"' || c.is_whitespace())
                .to_owned()
        })
        .filter(|value| !value.is_empty())
}
