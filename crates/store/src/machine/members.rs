//! Who belongs to the cluster, and the numbers that name clusters and members.

use std::collections::{BTreeMap, BTreeSet};

use sha1::{Digest, Sha1};

use crate::error::{self, Error};
use crate::pb::etcdserverpb::Member;

#[derive(Debug, Default, Clone, PartialEq)]
pub struct Members {
    pub all: BTreeMap<u64, Member>,
    /// A member that was removed never comes back under the same number.
    pub removed: BTreeSet<u64>,
}

fn number(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha1::new();
    for part in parts {
        hash.update(part);
    }
    let hash = hash.finalize();
    hash.iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// etcd's number of a member: from its peer URLs and the cluster's token, and for one that is added later, the time.
pub fn member_id(peer_urls: &[String], token: &str, added: Option<i64>) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    let time = added.map(|t| t.to_string()).unwrap_or_default();
    number(&[urls.concat().as_bytes(), token.as_bytes(), time.as_bytes()])
}

/// etcd's number of a cluster: from those of its first members.
pub fn cluster_id(members: impl IntoIterator<Item = u64>) -> u64 {
    let mut ids: Vec<u64> = members.into_iter().collect();
    ids.sort_unstable();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    number(&[&bytes])
}

impl Members {
    pub fn of(members: impl IntoIterator<Item = Member>) -> Self {
        Self {
            all: members.into_iter().map(|m| (m.id, m)).collect(),
            removed: BTreeSet::new(),
        }
    }

    /// In the order in which clients see them.
    pub fn list(&self) -> Vec<Member> {
        self.all.values().cloned().collect()
    }

    pub fn voters(&self) -> usize {
        self.all.values().filter(|m| !m.is_learner).count()
    }

    fn known(&self, id: u64) -> Result<&Member, Error> {
        self.all.get(&id).ok_or(error::MEMBER_NOT_FOUND)
    }

    fn urls_are_free(&self, id: u64, urls: &[String]) -> Result<(), Error> {
        let taken = self
            .all
            .values()
            .filter(|m| m.id != id)
            .any(|m| m.peer_ur_ls.iter().any(|url| urls.contains(url)));
        if taken {
            Err(error::PEER_URL_EXISTS)
        } else {
            Ok(())
        }
    }

    pub fn check_add(&self, member: &Member) -> Result<(), Error> {
        if self.all.contains_key(&member.id) || self.removed.contains(&member.id) {
            return Err(error::MEMBER_EXISTS);
        }
        self.urls_are_free(member.id, &member.peer_ur_ls)?;
        if member.is_learner && self.all.values().any(|m| m.is_learner) {
            return Err(error::TOO_MANY_LEARNERS);
        }
        Ok(())
    }

    pub fn check_remove(&self, id: u64) -> Result<(), Error> {
        if self.removed.contains(&id) {
            return Err(error::MEMBER_NOT_FOUND);
        }
        self.known(id).map(|_| ())
    }

    pub fn check_update(&self, id: u64, urls: &[String]) -> Result<(), Error> {
        self.known(id)?;
        self.urls_are_free(id, urls)
    }

    pub fn check_promote(&self, id: u64) -> Result<(), Error> {
        if self.known(id)?.is_learner {
            Ok(())
        } else {
            Err(error::MEMBER_NOT_LEARNER)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_etcd() {
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster", None);
        assert_eq!(format!("{member:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id([member])), "cdf818194e3a8c32");
    }
}
