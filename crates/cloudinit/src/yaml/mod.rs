//! YAML as the config needs it: scalars as they were written, with their places.
//!
//! Layers that resolve values lose what matters here: `permissions: 0644` would become 420 or 644,
//! `reboot-strategy: off` false, and the second of two equal keys would silently win. So the tree
//! holds raw text, and the reader of a key decides what it means.

mod parse;

pub(crate) use parse::parse;

use crate::finding::Pos;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) pos: Pos,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Scalar),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) pos: Pos,
    pub(crate) key: String,
    pub(crate) node: Node,
    /// Came in by `<<`: overriding it is the purpose, not a mistake.
    pub(crate) merged: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) raw: String,
    /// Neither quoted nor a block: only then can it be a null or a boolean.
    pub(crate) plain: bool,
    /// `!!binary`: the text is base64.
    pub(crate) binary: bool,
}

impl Scalar {
    pub(crate) fn is_null(&self) -> bool {
        self.plain && matches!(self.raw.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// YAML 1.1's booleans, in the spellings that the original reads.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match self.raw.as_str() {
            "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
                Some(true)
            }
            "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off"
            | "OFF" => Some(false),
            _ => None,
        }
    }
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.is_null())
    }

    /// Moves every place in the tree to where `original` says it was.
    pub(crate) fn relocate(&mut self, original: &impl Fn(Pos) -> Pos) {
        self.pos = original(self.pos);
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::Seq(items) => items.iter_mut().for_each(|item| item.relocate(original)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.pos = original(entry.pos);
                entry.node.relocate(original);
            }),
        }
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(scalar) if scalar.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The entry of a mapping; for documents that are read without complaint, such as metadata.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().rev().find(|e| e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) if !scalar.is_null() => Some(&scalar.raw),
            _ => None,
        }
    }
}
