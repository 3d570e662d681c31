//! What happened to a key, as clients and watchers see it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    Get,
    Create,
    Set,
    Update,
    Delete,
    CompareAndSwap,
    CompareAndDelete,
    Expire,
}

/// A node as it is shown: not the whole tree, but what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeView {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Timestamp>,
    /// Seconds left, rounded up, when the answer was made.
    #[serde(skip_serializing_if = "is_zero_ttl")]
    pub ttl: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeView>,
    #[serde(skip_serializing_if = "is_zero")]
    pub modified_index: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub created_index: u64,
}

/// One change, or one look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_node: Option<NodeView>,
    /// Only the time to live was renewed: watchers are not told.
    #[serde(skip)]
    pub refresh: bool,
    /// The store's index when it happened, for the header.
    #[serde(skip)]
    pub etcd_index: u64,
}

impl Event {
    /// The index of the change.
    pub fn index(&self) -> u64 {
        self.node.as_ref().map_or(0, |node| node.modified_index)
    }

    /// The key that was changed.
    pub fn key(&self) -> &str {
        self.node.as_ref().map_or("", |node| node.key.as_str())
    }

    /// Has the key come into being by this?
    pub fn is_created(&self) -> bool {
        match self.action {
            Action::Create => true,
            Action::Set => self.prev_node.is_none(),
            _ => false,
        }
    }

    /// Was it a directory that went away?
    pub fn removes_directory(&self) -> bool {
        matches!(self.action, Action::Delete | Action::Expire)
            && self.prev_node.as_ref().is_some_and(|node| node.dir)
    }

    /// The event with keys as the client knows them, without the name space.
    #[must_use]
    pub fn without_prefix(&self, prefix: &str) -> Event {
        let mut event = self.clone();
        for node in event.node.iter_mut().chain(event.prev_node.iter_mut()) {
            node.trim(prefix);
        }
        event
    }

    /// The line that is answered.
    pub fn line(&self) -> String {
        super::gojson::line(self)
    }
}

impl NodeView {
    fn trim(&mut self, prefix: &str) {
        if let Some(rest) = self.key.strip_prefix(prefix) {
            self.key = rest.to_owned();
        }
        for node in &mut self.nodes {
            node.trim(prefix);
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_zero_ttl(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_no_key_and_fields_come_in_order() {
        let event = Event {
            action: Action::CompareAndSwap,
            node: Some(NodeView {
                key: "/1".into(),
                dir: true,
                nodes: vec![NodeView {
                    key: "/1/a".into(),
                    value: Some(String::new()),
                    modified_index: 3,
                    created_index: 2,
                    ..NodeView::default()
                }],
                ..NodeView::default()
            }),
            prev_node: None,
            refresh: false,
            etcd_index: 9,
        };
        assert_eq!(
            event.without_prefix("/1").line(),
            "{\"action\":\"compareAndSwap\",\"node\":{\"dir\":true,\"nodes\":[\
             {\"key\":\"/a\",\"value\":\"\",\"modifiedIndex\":3,\"createdIndex\":2}]}}\n"
        );
    }
}
