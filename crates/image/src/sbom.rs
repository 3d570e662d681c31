//! The bill of materials beside each release: SPDX 2.3 JSON in which every file of /usr belongs to
//! the Debian package or the crate that it came from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::deb::Control;
use crate::tree::{Node, Origin, Tree};

pub(crate) struct Subject<'a> {
    pub version: &'a str,
    /// Unix seconds, as RFC 3339.
    pub created: &'a str,
    pub tree: &'a Tree,
    pub packages: &'a [Control],
    /// Crates of the workspace and of its lock file: name, version, and whether it is ours.
    pub crates: &'a [(String, String, bool)],
}

pub(crate) fn document(s: &Subject<'_>) -> Value {
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-Image", "name": "orlop", "versionInfo": s.version,
        "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    })];
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    for p in s.packages {
        let id = package_id(&p.package);
        packages.push(json!({
            "SPDXID": id, "name": p.package, "versionInfo": p.version,
            "supplier": "Organization: Debian", "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false, "sourceInfo": p.source.as_deref().unwrap_or(&p.package),
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                "referenceLocator": format!("pkg:deb/debian/{}@{}?arch={}", p.package,
                    p.version.replace(':', "%3A").replace('+', "%2B"), p.architecture),
            }],
        }));
        relationships.push(relation("SPDXRef-Image", "CONTAINS", &id));
    }
    for (name, version, ours) in s.crates {
        let id = crate_id(name, version);
        let mut package = json!({
            "SPDXID": id, "name": name, "versionInfo": version,
            "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        });
        if !ours {
            package["externalRefs"] = json!([{
                "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                "referenceLocator": format!("pkg:cargo/{name}@{version}"),
            }]);
        }
        packages.push(package);
        let how = if *ours { "CONTAINS" } else { "DEPENDS_ON" };
        relationships.push(relation("SPDXRef-Image", how, &id));
    }
    let ours: BTreeMap<&str, &str> = s
        .crates
        .iter()
        .filter(|c| c.2)
        .map(|c| (c.0.as_str(), c.1.as_str()))
        .collect();

    let mut files = Vec::new();
    let mut by_hash = BTreeMap::<usize, String>::new();
    for (number, (path, entry)) in s.tree.iter().enumerate() {
        let Node::File { data, .. } = &entry.node else {
            continue;
        };
        let id = format!("SPDXRef-File-{number}");
        let sum = by_hash
            .entry(data.as_ptr() as usize)
            .or_insert_with(|| hex::encode(Sha256::digest(data)));
        files.push(json!({
            "SPDXID": id, "fileName": format!("./{path}"),
            "checksums": [{"algorithm": "SHA256", "checksumValue": sum}],
        }));
        let owner = match &entry.origin {
            Origin::Package(name) => package_id(name),
            Origin::Crate(name) => crate_id(name, ours.get(&**name).copied().unwrap_or_default()),
            Origin::Overlay | Origin::Generated => "SPDXRef-Image".to_owned(),
        };
        relationships.push(relation(&owner, "CONTAINS", &id));
    }
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("orlop-{}", s.version),
        "documentNamespace": format!("urn:orlop:sbom:{}:{}", s.version, s.created),
        "creationInfo": {"created": s.created, "creators": ["Tool: orlop"]},
        "packages": packages, "files": files, "relationships": relationships,
    })
}

/// Crates from Cargo.lock: a dependency has a checksum, a crate of the workspace has none.
pub(crate) fn crates_of_lock(text: &str) -> Vec<(String, String, bool)> {
    let mut crates = BTreeSet::new();
    for block in text.split("[[package]]").skip(1) {
        let field = |key: &str| {
            block.lines().find_map(|l| {
                Some(
                    l.strip_prefix(key)?
                        .trim_start()
                        .strip_prefix('=')?
                        .trim()
                        .trim_matches('"')
                        .to_owned(),
                )
            })
        };
        if let (Some(name), Some(version)) = (field("name"), field("version")) {
            crates.insert((name, version, field("checksum").is_none()));
        }
    }
    crates.into_iter().collect()
}

fn relation(from: &str, how: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": how, "relatedSpdxElement": to})
}

fn package_id(name: &str) -> String {
    format!("SPDXRef-deb-{}", spdx_chars(name))
}

fn crate_id(name: &str, version: &str) -> String {
    format!("SPDXRef-crate-{}-{}", spdx_chars(name), spdx_chars(version))
}

/// SPDX identifiers allow letters, digits, `.` and `-`.
fn spdx_chars(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_belongs_to_something_listed() {
        let mut tree = Tree::default();
        tree.file("usr/bin/a", 0o755, "a", Origin::Package("bash".into()));
        tree.file("usr/bin/orlop", 0o755, "b", Origin::Crate("cli".into()));
        tree.file("usr/lib/os-release", 0o644, "c", Origin::Generated);
        let crates = crates_of_lock(
            "[[package]]\nname = \"cli\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\nchecksum = \"ab\"\n",
        );
        assert_eq!(
            crates,
            [
                ("cli".into(), "0.1.0".into(), true),
                ("serde".into(), "1.0.1".into(), false)
            ]
        );
        let packages = [Control {
            package: "bash".into(),
            version: "5:1+b2".into(),
            architecture: "amd64".into(),
            source: None,
        }];
        let doc = document(&Subject {
            version: "1",
            created: "2026-01-01T00:00:00Z",
            tree: &tree,
            packages: &packages,
            crates: &crates,
        });
        let ids: BTreeSet<&str> = ["packages", "files"]
            .iter()
            .flat_map(|k| doc[k].as_array().unwrap())
            .map(|e| e["SPDXID"].as_str().unwrap())
            .collect();
        let relations = doc["relationships"].as_array().unwrap();
        for file in doc["files"].as_array().unwrap() {
            let owner = relations
                .iter()
                .find(|r| r["relatedSpdxElement"] == file["SPDXID"])
                .unwrap();
            assert!(ids.contains(owner["spdxElementId"].as_str().unwrap()));
        }
        assert_eq!(doc["files"].as_array().unwrap().len(), 3);
    }
}
