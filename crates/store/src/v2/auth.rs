//! Users and roles of the v2 API. They are keys below `/2`, so they need no state of their own.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use axum::http::{Extensions, HeaderMap, StatusCode, header};
use base64::Engine;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::AUTH;
use super::error::Code;
use super::http::CommonName;
use super::proposer::{Failure, Proposer};
use super::request::Request;
use super::store::Shared;

pub(crate) const ROOT: &str = "root";
pub(crate) const GUEST: &str = "guest";

/// A user as stored, and as sent by clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    #[serde(default)]
    pub(crate) user: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) password: String,
    #[serde(default)]
    pub(crate) roles: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) grant: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) revoke: Option<Vec<String>>,
}

/// A role as stored, and as sent by clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Role {
    #[serde(default)]
    pub(crate) role: String,
    #[serde(default)]
    pub(crate) permissions: Permissions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grant: Option<Permissions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoke: Option<Permissions>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Permissions {
    #[serde(default)]
    pub(crate) kv: ReadWrite,
}

/// Patterns: a key, or a prefix with an asterisk at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadWrite {
    #[serde(default)]
    pub(crate) read: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) write: Option<Vec<String>>,
}

fn is_empty(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

impl Permissions {
    pub(crate) fn is_empty(&self) -> bool {
        is_empty(&self.kv.read) && is_empty(&self.kv.write)
    }
}

impl Role {
    /// A role that may do everything with keys.
    pub(crate) fn all(name: &str) -> Role {
        Role {
            role: name.to_owned(),
            permissions: Permissions {
                kv: ReadWrite {
                    read: Some(vec!["/*".into()]),
                    write: Some(vec!["/*".into()]),
                },
            },
            ..Role::default()
        }
    }

    fn allows(&self, key: &str, recursive: bool, write: bool) -> bool {
        if self.role == ROOT {
            return true;
        }
        let kv = &self.permissions.kv;
        let patterns = if write { &kv.write } else { &kv.read };
        patterns
            .iter()
            .flatten()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => key.starts_with(prefix),
                None => !recursive && key == pattern,
            })
    }
}

/// What a request brings to prove who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    /// A header that cannot be read.
    Malformed,
    Basic(String, String),
    Certificate(String),
}

impl Credentials {
    pub(crate) fn of(headers: &HeaderMap, extensions: &Extensions) -> Credentials {
        let value = headers
            .get(header::AUTHORIZATION)
            .filter(|value| !value.is_empty());
        let Some(value) = value else {
            return match extensions.get::<CommonName>() {
                Some(CommonName(name)) => Credentials::Certificate(name.clone()),
                None => Credentials::None,
            };
        };
        value
            .to_str()
            .ok()
            .and_then(|value| {
                let (scheme, encoded) = value.split_at_checked("Basic ".len())?;
                let decoded = scheme.eq_ignore_ascii_case("Basic ").then(|| {
                    base64::engine::general_purpose::STANDARD
                        .decode(encoded)
                        .ok()
                })??;
                let text = String::from_utf8(decoded).ok()?;
                let (user, password) = text.split_once(':')?;
                Some(Credentials::Basic(user.to_owned(), password.to_owned()))
            })
            .unwrap_or(Credentials::Malformed)
    }
}

/// Pairs of hash and password that were found to match: bcrypt is slow on purpose, and every request of v2 carries its
/// password.
#[derive(Debug, Default)]
pub(crate) struct Passwords(Mutex<HashSet<[u8; 32]>>);

impl Passwords {
    const KEPT: usize = 1024;

    async fn matches(&self, hash: String, password: String) -> bool {
        let mut digest = Sha256::new();
        digest.update(hash.as_bytes());
        digest.update([0]);
        digest.update(password.as_bytes());
        let pair: [u8; 32] = digest.finalize().into();
        let known = |passwords: &Passwords| {
            let pairs = passwords.0.lock().unwrap_or_else(PoisonError::into_inner);
            pairs.contains(&pair)
        };
        if known(self) {
            return true;
        }
        let checked =
            tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
        let matches = checked.await.unwrap_or(false);
        if matches {
            let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if pairs.len() >= Self::KEPT {
                pairs.clear();
            }
            pairs.insert(pair);
        }
        matches
    }
}

async fn hashed(password: String) -> Result<String, AuthError> {
    let hash = tokio::task::spawn_blocking(move || bcrypt::hash(password, 10)).await;
    match hash {
        Ok(Ok(hash)) => Ok(hash),
        _ => Err(AuthError::internal("cannot hash the password")),
    }
}

/// Who may do what, by what this member has applied.
pub(crate) struct Access<'a> {
    pub(crate) store: &'a Shared,
    pub(crate) passwords: &'a Passwords,
}

impl Access<'_> {
    pub(crate) fn enabled(&self) -> bool {
        self.value("/enabled").as_deref() == Some("true")
    }

    pub(crate) fn user(&self, name: &str) -> Result<User, AuthError> {
        let user: Option<User> = self.document(&format!("/users/{name}"));
        let mut user = user.ok_or_else(|| {
            AuthError::new(
                StatusCode::NOT_FOUND,
                format!("User {name} does not exist."),
            )
        })?;
        attach_root(&mut user);
        Ok(user)
    }

    pub(crate) fn role(&self, name: &str) -> Result<Role, AuthError> {
        if name == ROOT {
            return Ok(Role::all(ROOT));
        }
        self.document(&format!("/roles/{name}")).ok_or_else(|| {
            AuthError::new(
                StatusCode::NOT_FOUND,
                format!("Role {name} does not exist."),
            )
        })
    }

    /// The names below `/users` or `/roles`.
    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        let found = self.store.read().get(&format!("{AUTH}/{kind}"), false, 0);
        let nodes = found.ok().and_then(|event| event.node).map(|dir| dir.nodes);
        nodes
            .iter()
            .flatten()
            .filter_map(|node| node.key.rsplit('/').next())
            .map(str::to_owned)
            .collect()
    }

    pub(crate) async fn is_root(&self, credentials: &Credentials) -> bool {
        if !self.enabled() {
            return true;
        }
        let user = self.authenticated(credentials).await;
        user.is_some_and(|user| user.roles.iter().flatten().any(|role| role == ROOT))
    }

    pub(crate) async fn may_use_key(
        &self,
        credentials: &Credentials,
        key: &str,
        recursive: bool,
        write: bool,
    ) -> bool {
        if !self.enabled() {
            return true;
        }
        let Some(user) = self.authenticated(credentials).await else {
            // A certificate of an unknown user is as good as none; a wrong password is worse.
            return matches!(credentials, Credentials::None | Credentials::Certificate(_))
                && self
                    .role(GUEST)
                    .is_ok_and(|role| role.allows(key, false, write));
        };
        user.roles
            .iter()
            .flatten()
            .filter_map(|name| self.role(name).ok())
            .any(|role| role.allows(key, recursive, write))
    }

    async fn authenticated(&self, credentials: &Credentials) -> Option<User> {
        match credentials {
            Credentials::None | Credentials::Malformed => None,
            Credentials::Certificate(name) => self.user(name).ok(),
            Credentials::Basic(name, password) => {
                let user = self.user(name).ok()?;
                let matches = self
                    .passwords
                    .matches(user.password.clone(), password.clone())
                    .await;
                if !matches {
                    tracing::warn!(user = name, "wrong password");
                }
                matches.then_some(user)
            }
        }
    }

    fn value(&self, resource: &str) -> Option<String> {
        let path = format!("{AUTH}{resource}");
        let event = self.store.read().get(&path, false, 0).ok()?;
        event.node?.value
    }

    fn document<T: for<'de> Deserialize<'de>>(&self, resource: &str) -> Option<T> {
        serde_json::from_str(&self.value(resource)?).ok()
    }
}

fn attach_root(user: &mut User) {
    if user.user == ROOT {
        let roles = user.roles.get_or_insert_default();
        if !roles.iter().any(|role| role == ROOT) {
            roles.push(ROOT.into());
        }
    }
}

/// A refusal, as `/v2/auth` answers it.
#[derive(Debug)]
pub(crate) struct AuthError {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl AuthError {
    fn new(status: StatusCode, text: impl std::fmt::Display) -> AuthError {
        AuthError {
            status,
            text: format!("auth: {text}"),
        }
    }

    fn internal(reason: impl std::fmt::Display) -> AuthError {
        tracing::error!(%reason, "v2 authentication");
        AuthError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            text: "Internal Server Error".into(),
        }
    }
}

impl From<Failure> for AuthError {
    fn from(failure: Failure) -> Self {
        AuthError::internal(failure)
    }
}

/// Changes of users and roles, each a request through the log.
pub(crate) struct Admin<'a, P> {
    pub(crate) server: &'a P,
    pub(crate) access: Access<'a>,
}

impl<P: Proposer> Admin<'_, P> {
    pub(crate) async fn create_user(&self, mut user: User) -> Result<User, AuthError> {
        attach_root(&mut user);
        if user.password.is_empty() {
            return Err(AuthError::new(
                StatusCode::BAD_REQUEST,
                format!("Cannot create user {} with an empty password", user.user),
            ));
        }
        user.password = hashed(user.password).await?;
        match self
            .put(&format!("/users/{}", user.user), &user, false)
            .await?
        {
            Ok(()) => Ok(user),
            Err(Code::NodeExist) => Err(AuthError::new(
                StatusCode::CONFLICT,
                format!("User {} already exists.", user.user),
            )),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    pub(crate) async fn update_user(&self, change: User) -> Result<User, AuthError> {
        self.server.linearize().await?;
        let old = self.access.user(&change.user)?;
        let mut new = User {
            user: old.user.clone(),
            password: old.password.clone(),
            ..User::default()
        };
        if !change.password.is_empty() {
            new.password = hashed(change.password).await?;
        }
        let mut roles: BTreeSet<String> = old.roles.iter().flatten().cloned().collect();
        for role in change.grant.into_iter().flatten() {
            if !roles.insert(role.clone()) {
                return Err(AuthError::new(
                    StatusCode::CONFLICT,
                    format!("Granting duplicate role {role} for user {}", old.user),
                ));
            }
        }
        for role in change.revoke.iter().flatten() {
            if !roles.remove(role) {
                return Err(AuthError::new(
                    StatusCode::CONFLICT,
                    format!("Revoking ungranted role {role} for user {}", old.user),
                ));
            }
        }
        new.roles = Some(roles.into_iter().collect());
        if new == old {
            return Err(AuthError::new(
                StatusCode::BAD_REQUEST,
                "User not updated. Use grant/revoke/password to update the user.",
            ));
        }
        match self
            .put(&format!("/users/{}", new.user), &new, true)
            .await?
        {
            Ok(()) => Ok(new),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    pub(crate) async fn delete_user(&self, name: &str) -> Result<(), AuthError> {
        if self.access.enabled() && name == ROOT {
            return Err(AuthError::new(
                StatusCode::FORBIDDEN,
                "Cannot delete root user while auth is enabled.",
            ));
        }
        match self.delete(&format!("/users/{name}")).await? {
            Ok(()) => Ok(()),
            Err(Code::KeyNotFound) => Err(AuthError::new(
                StatusCode::NOT_FOUND,
                format!("User {name} does not exist"),
            )),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    fn not_root(name: &str) -> Result<(), AuthError> {
        if name == ROOT {
            return Err(AuthError::new(
                StatusCode::FORBIDDEN,
                format!("Cannot modify role {name}: is root role."),
            ));
        }
        Ok(())
    }

    pub(crate) async fn create_role(&self, role: &Role) -> Result<(), AuthError> {
        Self::not_root(&role.role)?;
        match self
            .put(&format!("/roles/{}", role.role), role, false)
            .await?
        {
            Ok(()) => Ok(()),
            Err(Code::NodeExist) => Err(AuthError::new(
                StatusCode::CONFLICT,
                format!("Role {} already exists.", role.role),
            )),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    pub(crate) async fn update_role(&self, change: Role) -> Result<Role, AuthError> {
        Self::not_root(&change.role)?;
        self.server.linearize().await?;
        let old = self.access.role(&change.role)?;
        let mut new = Role {
            role: old.role.clone(),
            permissions: old.permissions.clone(),
            ..Role::default()
        };
        if let Some(grant) = change.grant {
            let kv = &mut new.permissions.kv;
            kv.read = granted(&kv.read, grant.kv.read, "read")?;
            kv.write = granted(&kv.write, grant.kv.write, "write")?;
        }
        if let Some(revoke) = change.revoke {
            let kv = &mut new.permissions.kv;
            kv.read = revoked(&kv.read, &revoke.kv.read);
            kv.write = revoked(&kv.write, &revoke.kv.write);
        }
        if new == old {
            return Err(AuthError::new(
                StatusCode::BAD_REQUEST,
                "Role not updated. Use grant/revoke to update the role.",
            ));
        }
        match self
            .put(&format!("/roles/{}", new.role), &new, true)
            .await?
        {
            Ok(()) => Ok(new),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    pub(crate) async fn delete_role(&self, name: &str) -> Result<(), AuthError> {
        Self::not_root(name)?;
        match self.delete(&format!("/roles/{name}")).await? {
            Ok(()) => Ok(()),
            Err(Code::KeyNotFound) => Err(AuthError::new(
                StatusCode::NOT_FOUND,
                format!("Role {name} doesn't exist."),
            )),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    pub(crate) async fn enable(&self) -> Result<(), AuthError> {
        if self.access.enabled() {
            return Err(AuthError::new(StatusCode::CONFLICT, "already enabled"));
        }
        self.server.linearize().await?;
        if self.access.user(ROOT).is_err() {
            return Err(AuthError::new(
                StatusCode::CONFLICT,
                "No root user available, please create one",
            ));
        }
        if self.access.role(GUEST).is_err() {
            self.create_role(&Role::all(GUEST)).await?;
        }
        self.switch(true).await
    }

    pub(crate) async fn disable(&self) -> Result<(), AuthError> {
        if !self.access.enabled() {
            return Err(AuthError::new(StatusCode::CONFLICT, "already disabled"));
        }
        self.switch(false).await
    }

    async fn switch(&self, on: bool) -> Result<(), AuthError> {
        match self.put("/enabled", &on, true).await? {
            Ok(()) => Ok(()),
            Err(code) => Err(AuthError::internal(code.text())),
        }
    }

    async fn put<T: Serialize>(
        &self,
        resource: &str,
        value: &T,
        exists: bool,
    ) -> Result<Result<(), Code>, Failure> {
        self.make_directories().await?;
        self.send(
            "PUT",
            resource,
            super::gojson::text(value),
            false,
            Some(exists),
        )
        .await
    }

    async fn delete(&self, resource: &str) -> Result<Result<(), Code>, Failure> {
        self.make_directories().await?;
        self.send("DELETE", resource, String::new(), false, None)
            .await
    }

    async fn make_directories(&self) -> Result<(), Failure> {
        // The switch is made last, so when it is there, all is there.
        if self.access.value("/enabled").is_some() {
            return Ok(());
        }
        for dir in ["", "/users", "/roles"] {
            let _ = self
                .send("PUT", dir, String::new(), true, Some(false))
                .await?;
        }
        let _ = self
            .send("PUT", "/enabled", "false".into(), false, Some(false))
            .await?;
        Ok(())
    }

    async fn send(
        &self,
        method: &str,
        resource: &str,
        val: String,
        dir: bool,
        prev_exist: Option<bool>,
    ) -> Result<Result<(), Code>, Failure> {
        let request = Request {
            method: method.to_owned(),
            path: format!("{AUTH}{resource}"),
            val,
            dir,
            prev_exist,
            time: self.server.now(),
            ..Request::default()
        };
        let outcome = self.server.propose(request).await?;
        Ok(outcome.map(drop).map_err(|error| error.code))
    }
}

fn granted(
    old: &Option<Vec<String>>,
    new: Option<Vec<String>>,
    what: &str,
) -> Result<Option<Vec<String>>, AuthError> {
    let mut set: BTreeSet<String> = old.iter().flatten().cloned().collect();
    for pattern in new.into_iter().flatten() {
        if !set.insert(pattern.clone()) {
            return Err(AuthError::new(
                StatusCode::CONFLICT,
                format!("Granting duplicate {what} permission {pattern}"),
            ));
        }
    }
    Ok(Some(set.into_iter().collect()))
}

fn revoked(old: &Option<Vec<String>>, gone: &Option<Vec<String>>) -> Option<Vec<String>> {
    let mut set: BTreeSet<String> = old.iter().flatten().cloned().collect();
    for pattern in gone.iter().flatten() {
        set.remove(pattern);
    }
    Some(set.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_key_or_a_prefix() {
        let role = |patterns: &[&str]| Role {
            role: "r".into(),
            permissions: Permissions {
                kv: ReadWrite {
                    read: Some(patterns.iter().map(|&p| p.to_owned()).collect()),
                    write: None,
                },
            },
            ..Role::default()
        };
        assert!(role(&["/a"]).allows("/a", false, false));
        assert!(!role(&["/a"]).allows("/a", true, false));
        assert!(!role(&["/a"]).allows("/a/b", false, false));
        assert!(role(&["/a/*"]).allows("/a/b", true, false));
        assert!(!role(&["/a/*"]).allows("/a/b", false, true));
        assert!(!role(&[""]).allows("/a", false, false));
    }

    #[test]
    fn credentials_are_read_from_the_header() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            Credentials::of(&headers, &Extensions::new())
        };
        assert_eq!(
            of("basic cm9vdDphOmI="),
            Credentials::Basic("root".into(), "a:b".into())
        );
        for bad in ["Basic", "Basic ?", "Basic cm9vdA==", "Bearer x", "Basicé"] {
            assert_eq!(of(bad), Credentials::Malformed, "{bad}");
        }
    }
}
