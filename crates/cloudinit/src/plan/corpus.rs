//! The plan in the form of recorded runs of the original: `{"exit", "calls", "files"}`, so that any
//! collection of configs can be compared by a script.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Call, FileOp, FileWrite, Plan, is_already, links_to};

/// Longer texts are told by their hash alone.
const MAX_TEXT: usize = 16 * 1024;

impl Plan {
    /// Files are those that would appear or change under `root`.
    pub fn to_json(&self, exit: u8, root: &Path) -> Value {
        let files: serde_json::Map<String, Value> = self
            .results(root)
            .into_iter()
            .map(|(path, result)| (path.to_owned(), result))
            .collect();
        json!({ "exit": exit, "calls": self.calls_json(), "files": files })
    }

    fn calls_json(&self) -> Vec<Value> {
        let mut calls = Vec::new();
        if let Some(name) = &self.hostname {
            calls.push(json!(["exec", "hostnamectl", ["set-hostname", name]]));
        }
        for keys in &self.keys {
            let name = self.key_name.as_deref().unwrap_or(crate::apply::KEY_NAME);
            let arguments = ["-u", &keys.user, "-a", name];
            let stdin = json!({ "stdin": keys.keys.join("\n") });
            calls.push(json!(["exec", "update-ssh-keys", arguments, stdin]));
        }
        calls.extend(self.calls.iter().map(|call| match call {
            Call::Enable { unit, runtime } => json!(["EnableUnitFiles", [unit], runtime, true]),
            Call::Reload => json!(["Reload"]),
            Call::Unit { verb, unit } => json!([verb.method(), unit, "replace"]),
        }));
        calls
    }

    /// What each touched path ends up as, leaving out what is so already.
    fn results(&self, root: &Path) -> BTreeMap<&str, Value> {
        let mut results: BTreeMap<&str, Option<Value>> = BTreeMap::new();
        for write in &self.accounts {
            results.insert(&write.path, (!is_already(write, root)).then(|| file(write)));
        }
        for op in &self.files {
            match op {
                FileOp::Write(write) => {
                    results.insert(&write.path, (!is_already(write, root)).then(|| file(write)));
                }
                FileOp::Mask { path, .. } => {
                    let masked = links_to(path, "/dev/null", root);
                    results.insert(path, (!masked).then(|| json!({ "link": "/dev/null" })));
                }
                FileOp::Directory { .. } => {}
                FileOp::Link { path, target, .. } => {
                    let there = links_to(path, target, root);
                    results.insert(path, (!there).then(|| json!({ "link": target })));
                }
                FileOp::Unmask { path } => {
                    let masked = |result: &mut Option<Value>| {
                        result
                            .as_ref()
                            .is_some_and(|value| value.get("link").is_some())
                    };
                    if results.get_mut(path.as_str()).is_some_and(masked) {
                        results.remove(path.as_str());
                    }
                }
            }
        }
        results
            .into_iter()
            .filter_map(|(path, result)| Some((path, result?)))
            .collect()
    }
}

fn file(write: &FileWrite) -> Value {
    let mut value = json!({
        "mode": format!("{:o}", write.mode),
        "owner": write.owner.name,
        "sha256": sha256(&write.content),
        "size": write.content.len(),
    });
    if let Ok(text) = std::str::from_utf8(&write.content)
        && text.len() <= MAX_TEXT
    {
        value["text"] = json!(text);
    }
    value
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
