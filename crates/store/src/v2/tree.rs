//! The tree of keys. A node knows its content and its indices; its name is its place in the tree.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::event::NodeView;
use super::path;

const SECOND: i64 = 1_000_000_000;

/// How many components a path may have. Work on the tree recurses, and a URL has room for enough to end any stack.
pub(crate) const MAX_DEPTH: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    File(String),
    Dir(BTreeMap<String, Node>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) created: u64,
    pub(crate) modified: u64,
    /// Nanoseconds since 1970.
    pub(crate) expires: Option<i64>,
    pub(crate) content: Content,
}

/// Why a path leads nowhere, and to which component it was followed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Missing(String),
    NotDir(String),
}

impl Node {
    pub(crate) fn new(content: Content, index: u64, expires: Option<i64>) -> Node {
        Node {
            created: index,
            modified: index,
            expires,
            content,
        }
    }

    pub(crate) fn dir(index: u64) -> Node {
        Node::new(Content::Dir(BTreeMap::new()), index, None)
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.content, Content::Dir(_))
    }

    /// The value of a file; a directory has none.
    pub(crate) fn value(&self) -> &str {
        match &self.content {
            Content::File(value) => value,
            Content::Dir(_) => "",
        }
    }

    pub(crate) fn children(&self) -> Option<&BTreeMap<String, Node>> {
        match &self.content {
            Content::Dir(children) => Some(children),
            Content::File(_) => None,
        }
    }

    /// The node at a clean path below this one.
    pub(crate) fn find(&self, path: &str) -> Result<&Node, Lost> {
        let mut node = self;
        let mut at = String::from("/");
        for name in path::parts(path) {
            let Content::Dir(children) = &node.content else {
                return Err(Lost::NotDir(at));
            };
            at = path::join(&at, name);
            node = children
                .get(name)
                .ok_or_else(|| Lost::Missing(at.clone()))?;
        }
        Ok(node)
    }

    /// As [`Node::find`], for a path that is known to lead somewhere.
    pub(crate) fn find_mut(&mut self, path: &str) -> Option<&mut Node> {
        let mut node = self;
        for name in path::parts(path) {
            let Content::Dir(children) = &mut node.content else {
                return None;
            };
            node = children.get_mut(name)?;
        }
        Some(node)
    }

    /// The directory at a clean path; what is missing of it is made.
    pub(crate) fn make_dirs(
        &mut self,
        path: &str,
        index: u64,
    ) -> Result<&mut BTreeMap<String, Node>, Lost> {
        let mut node = self;
        let mut at = String::from("/");
        for name in path::parts(path) {
            let Content::Dir(children) = &mut node.content else {
                return Err(Lost::NotDir(at));
            };
            at = path::join(&at, name);
            node = children
                .entry(name.to_owned())
                .or_insert_with(|| Node::dir(index));
        }
        match &mut node.content {
            Content::Dir(children) => Ok(children),
            Content::File(_) => Err(Lost::NotDir(at)),
        }
    }

    /// When it expires, and the seconds until then, rounded up.
    pub(crate) fn expiration(&self, now: i64) -> (Option<Timestamp>, i64) {
        let Some(expires) = self.expires else {
            return (None, 0);
        };
        let left = expires.saturating_sub(now);
        let mut ttl = left / SECOND;
        if left % SECOND > 0 {
            ttl += 1;
        }
        (Timestamp::from_nanosecond(expires.into()).ok(), ttl)
    }

    /// The node alone; of a directory, with `levels` of what is in it and not hidden.
    pub(crate) fn view(&self, path: &str, levels: usize, now: i64) -> NodeView {
        let (expiration, ttl) = self.expiration(now);
        let mut view = NodeView {
            key: path.to_owned(),
            expiration,
            ttl,
            modified_index: self.modified,
            created_index: self.created,
            ..NodeView::default()
        };
        match &self.content {
            Content::File(value) => view.value = Some(value.clone()),
            Content::Dir(children) => {
                view.dir = true;
                if levels > 0 {
                    view.nodes = children
                        .iter()
                        .filter(|(name, _)| !name.starts_with('_'))
                        .map(|(name, child)| child.view(&path::join(path, name), levels - 1, now))
                        .collect();
                }
            }
        }
        view
    }

    /// Calls `each` for what is below, children before their parents, and for the node itself last.
    pub(crate) fn visit(&self, path: &str, each: &mut dyn FnMut(&str, &Node)) {
        if let Content::Dir(children) = &self.content {
            for (name, child) in children {
                child.visit(&path::join(path, name), each);
            }
        }
        each(path, self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_component_is_named() {
        let mut root = Node::dir(0);
        root.make_dirs("/a/b", 1)
            .unwrap()
            .insert("f".into(), Node::new(Content::File("x".into()), 1, None));
        assert_eq!(
            root.find("/a/c/d").unwrap_err(),
            Lost::Missing("/a/c".into())
        );
        assert_eq!(
            root.find("/a/b/f/g").unwrap_err(),
            Lost::NotDir("/a/b/f".into())
        );
        assert_eq!(
            root.make_dirs("/a/b/f/g", 2).unwrap_err(),
            Lost::NotDir("/a/b/f".into())
        );
        assert_eq!(root.find("/a/b/f").unwrap().value(), "x");
    }

    #[test]
    fn seconds_left_are_rounded_up() {
        let node = Node::new(Content::File(String::new()), 1, Some(10 * SECOND));
        assert_eq!(node.expiration(7 * SECOND).1, 3);
        assert_eq!(node.expiration(7 * SECOND + 1).1, 3);
        assert_eq!(node.expiration(10 * SECOND - 1).1, 1);
        assert_eq!(node.expiration(10 * SECOND).1, 0);
        assert_eq!(node.expiration(12 * SECOND).1, -2);
    }
}
