//! Users, roles and permissions of v3.
//!
//! [`Auth`] is the replicated part: pure, changed only by [`Auth::apply`], with a revision that rises with every change,
//! so that what was allowed by an older state is asked again. [`Tokens`] is each member's own knowledge of who has
//! logged in. Passwords are hashed by [`hash_password`] before they go into the log, and checked by
//! [`check_password`] outside of the apply path: both are slow on purpose.
//!
//! The way of a request: [`Tokens::caller`] turns the token into an [`Identity`]; [`Auth::permits`] (or
//! [`Auth::permits_admin`]) is asked before the request is proposed, and again when it is applied.

mod jwt;
mod passwords;
mod ranges;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;

pub use passwords::{check_password, hash_password};
pub use tokens::{Issued, Kind, Options, Tokens};

use crate::error::{self, Error};
use crate::pb::authpb::{Permission, Role, User};
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store::auth_command::Op;
use ranges::Ranges;

const ROOT: &str = "root";

/// Who asks, and by which state of the permissions that was established.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub revision: u64,
}

/// What somebody wants to do with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// What can be found out about a login before it goes into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub hash: Vec<u8>,
    pub revision: u64,
}

/// Users and roles.
#[derive(Debug, Default)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
    /// What a user may do, put together when first asked.
    ranges: Mutex<HashMap<String, Arc<Ranges>>>,
}

/// All of it, as a snapshot has it.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(bool, tag = "1")]
    enabled: bool,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, repeated, tag = "3")]
    users: Vec<User>,
    #[prost(message, repeated, tag = "4")]
    roles: Vec<Role>,
}

impl Auth {
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Starts at 1, as etcd's does.
    pub fn revision(&self) -> u64 {
        self.revision.max(1)
    }

    fn changed(&mut self) {
        self.revision = self.revision() + 1;
        self.ranges.lock().clear();
    }

    /// Applies a change from the log. Says whose tokens are void from now on.
    pub fn apply(&mut self, op: &Op) -> Result<Void, Error> {
        match op {
            Op::Enable(_) => self.enable(),
            Op::Disable(_) => {
                if self.enabled {
                    self.enabled = false;
                    self.changed();
                    return Ok(Void::Everybody);
                }
                Ok(Void::Nobody)
            }
            Op::UserAdd(request) => self.user_add(request),
            Op::UserDelete(request) => self.user_delete(&request.name),
            Op::UserChangePassword(request) => self.user_change_password(request),
            Op::UserGrantRole(request) => self.user_grant_role(&request.user, &request.role),
            Op::UserRevokeRole(request) => self.user_revoke_role(&request.name, &request.role),
            Op::RoleAdd(request) => self.role_add(&request.name),
            Op::RoleDelete(request) => self.role_delete(&request.role),
            Op::RoleGrantPermission(request) => {
                self.role_grant(&request.name, request.perm.as_ref())
            }
            Op::RoleRevokePermission(request) => {
                self.role_revoke(&request.role, &request.key, &request.range_end)
            }
            // Tokens are known to `Tokens`, which each member keeps for itself.
            Op::Token(_) => Ok(Void::Nobody),
        }
    }

    fn enable(&mut self) -> Result<Void, Error> {
        if self.enabled {
            return Ok(Void::Nobody);
        }
        let root = self.users.get(ROOT).ok_or(error::ROOT_USER_MISSING)?;
        if !is_root(root) {
            return Err(error::ROOT_ROLE_MISSING);
        }
        self.enabled = true;
        self.revision = self.revision();
        self.ranges.lock().clear();
        Ok(Void::Nobody)
    }

    fn user_add(&mut self, request: &rpc::AuthUserAddRequest) -> Result<Void, Error> {
        if request.name.is_empty() {
            return Err(error::USER_EMPTY);
        }
        if self.users.contains_key(&request.name) {
            return Err(error::USER_EXISTS);
        }
        let user = User {
            name: request.name.clone().into_bytes(),
            password: passwords::stored(&request.hashed_password),
            roles: Vec::new(),
            options: request.options,
        };
        self.users.insert(request.name.clone(), user);
        self.changed();
        Ok(Void::Nobody)
    }

    fn user_delete(&mut self, name: &str) -> Result<Void, Error> {
        if self.enabled && name == ROOT {
            return Err(error::INVALID_AUTH_MGMT);
        }
        self.users.remove(name).ok_or(error::USER_NOT_FOUND)?;
        self.changed();
        Ok(Void::User(name.to_owned()))
    }

    fn user_change_password(
        &mut self,
        request: &rpc::AuthUserChangePasswordRequest,
    ) -> Result<Void, Error> {
        let user = self.user_mut(&request.name)?;
        // Who logs in by certificate has no password to change.
        if !user.options.is_some_and(|options| options.no_password) {
            user.password = passwords::stored(&request.hashed_password);
        }
        self.changed();
        Ok(Void::User(request.name.clone()))
    }

    fn user_grant_role(&mut self, name: &str, role: &str) -> Result<Void, Error> {
        let known = role == ROOT || self.roles.contains_key(role);
        let user = self.user_mut(name)?;
        if !known {
            return Err(error::ROLE_NOT_FOUND);
        }
        if let Err(at) = user.roles.binary_search_by(|has| has.as_str().cmp(role)) {
            user.roles.insert(at, role.to_owned());
            self.changed();
        }
        Ok(Void::Nobody)
    }

    fn user_revoke_role(&mut self, name: &str, role: &str) -> Result<Void, Error> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(error::INVALID_AUTH_MGMT);
        }
        let user = self.user_mut(name)?;
        let before = user.roles.len();
        user.roles.retain(|has| has != role);
        if user.roles.len() == before {
            return Err(error::ROLE_NOT_GRANTED);
        }
        self.changed();
        Ok(Void::Nobody)
    }

    fn role_add(&mut self, name: &str) -> Result<Void, Error> {
        if name.is_empty() {
            return Err(error::ROLE_EMPTY);
        }
        if self.roles.contains_key(name) {
            return Err(error::ROLE_EXISTS);
        }
        let role = Role {
            name: name.as_bytes().to_vec(),
            key_permission: Vec::new(),
        };
        self.roles.insert(name.to_owned(), role);
        self.changed();
        Ok(Void::Nobody)
    }

    fn role_delete(&mut self, name: &str) -> Result<Void, Error> {
        if self.enabled && name == ROOT {
            return Err(error::INVALID_AUTH_MGMT);
        }
        self.roles.remove(name).ok_or(error::ROLE_NOT_FOUND)?;
        for user in self.users.values_mut() {
            user.roles.retain(|role| role != name);
        }
        self.changed();
        Ok(Void::Nobody)
    }

    fn role_grant(&mut self, name: &str, permission: Option<&Permission>) -> Result<Void, Error> {
        let permission = permission.ok_or(error::PERMISSION_NOT_GIVEN)?;
        if !ranges::is_valid(&permission.key, &permission.range_end) {
            return Err(error::INVALID_AUTH_MGMT);
        }
        let role = self.roles.get_mut(name).ok_or(error::ROLE_NOT_FOUND)?;
        let order = |p: &Permission| (p.key.clone(), p.range_end.clone());
        match role
            .key_permission
            .binary_search_by_key(&order(permission), order)
        {
            Ok(at) => {
                if let Some(old) = role.key_permission.get_mut(at) {
                    old.perm_type = permission.perm_type;
                }
            }
            Err(at) => role.key_permission.insert(at, permission.clone()),
        }
        self.changed();
        Ok(Void::Nobody)
    }

    fn role_revoke(&mut self, name: &str, key: &[u8], range_end: &[u8]) -> Result<Void, Error> {
        let role = self.roles.get_mut(name).ok_or(error::ROLE_NOT_FOUND)?;
        let before = role.key_permission.len();
        role.key_permission
            .retain(|p| p.key != key || p.range_end != range_end);
        if role.key_permission.len() == before {
            return Err(error::PERMISSION_NOT_GRANTED);
        }
        self.changed();
        Ok(Void::Nobody)
    }

    fn user_mut(&mut self, name: &str) -> Result<&mut User, Error> {
        self.users.get_mut(name).ok_or(error::USER_NOT_FOUND)
    }

    /// The roles of a user, sorted.
    pub fn user(&self, name: &str) -> Result<Vec<String>, Error> {
        let user = self.users.get(name).ok_or(error::USER_NOT_FOUND)?;
        Ok(user.roles.clone())
    }

    pub fn users(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    /// The permissions of a role, sorted.
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        let role = self.roles.get(name).ok_or(error::ROLE_NOT_FOUND)?;
        Ok(role.key_permission.clone())
    }

    pub fn roles(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// The hash to check a password against, and the revision at which it is the right one: if that has changed when
    /// the login is through, the login is tried again.
    pub fn login(&self, name: &str) -> Result<Login, Error> {
        if !self.enabled {
            return Err(error::AUTH_NOT_ENABLED);
        }
        let user = self.users.get(name).ok_or(error::AUTH_FAILED)?;
        if user.options.is_some_and(|options| options.no_password) {
            return Err(error::AUTH_FAILED);
        }
        Ok(Login {
            hash: user.password.clone(),
            revision: self.revision(),
        })
    }

    /// May they do this to these keys? An empty `range_end` is one key, `\0` is all from there on.
    pub fn permits(
        &self,
        identity: &Identity,
        key: &[u8],
        range_end: &[u8],
        access: Access,
    ) -> Result<(), Error> {
        let Some(user) = self.current(identity)? else {
            return Ok(());
        };
        if is_root(user)
            || self
                .ranges_of(&identity.user, user)
                .cover(key, range_end, access)
        {
            return Ok(());
        }
        Err(error::PERMISSION_DENIED)
    }

    /// May they change users, members, and the server itself?
    pub fn permits_admin(&self, identity: &Identity) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        if identity.user.is_empty() {
            return Err(error::USER_EMPTY);
        }
        match self.users.get(&identity.user) {
            Some(user) if is_root(user) => Ok(()),
            _ => Err(error::PERMISSION_DENIED),
        }
    }

    /// The user, if there is one to check: none when authentication is off.
    fn current(&self, identity: &Identity) -> Result<Option<&User>, Error> {
        if !self.enabled {
            return Ok(None);
        }
        if identity.revision == 0 {
            return Err(error::USER_EMPTY);
        }
        if identity.revision < self.revision() {
            return Err(error::AUTH_OLD_REVISION);
        }
        let user = self.users.get(&identity.user);
        user.map(Some).ok_or(error::PERMISSION_DENIED)
    }

    fn ranges_of(&self, name: &str, user: &User) -> Arc<Ranges> {
        let mut known = self.ranges.lock();
        if let Some(ranges) = known.get(name) {
            return ranges.clone();
        }
        let permissions = user
            .roles
            .iter()
            .filter_map(|role| self.roles.get(role))
            .flat_map(|role| &role.key_permission);
        let ranges = Arc::new(Ranges::of(permissions));
        known.insert(name.to_owned(), ranges.clone());
        ranges
    }

    pub fn snapshot(&self) -> Vec<u8> {
        Saved {
            enabled: self.enabled,
            revision: self.revision,
            users: self.users.values().cloned().collect(),
            roles: self.roles.values().cloned().collect(),
        }
        .encode_to_vec()
    }

    pub fn restore(snapshot: &[u8]) -> Result<Auth, prost::DecodeError> {
        let saved = Saved::decode(snapshot)?;
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Auth {
            enabled: saved.enabled,
            revision: saved.revision,
            users: saved
                .users
                .into_iter()
                .map(|u| (name(&u.name), u))
                .collect(),
            roles: saved
                .roles
                .into_iter()
                .map(|r| (name(&r.name), r))
                .collect(),
            ranges: Mutex::default(),
        })
    }
}

fn is_root(user: &User) -> bool {
    user.roles.iter().any(|role| role == ROOT)
}

/// Whose tokens a change has made void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Void {
    Nobody,
    User(String),
    Everybody,
}

#[cfg(test)]
mod tests;
