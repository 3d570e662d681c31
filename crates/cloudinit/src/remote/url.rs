//! A file at a URL, and NoCloud's directory at one.

use anyhow::{Context, bail};

use super::http::Http;
use super::shown;
use crate::datasource::{Found, meta_data};
use crate::finding::Finding;
use crate::network::Format;
use crate::plan::sha256;

pub(super) fn fetch(http: &Http, url: &str, pin: Option<&str>) -> anyhow::Result<Found> {
    // A pin may stand in the URL itself, where nothing else can get between the two.
    let (url, fragment) = match url.split_once("#sha256=") {
        Some((url, pin)) => (url, Some(pin)),
        None => (url, None),
    };
    let Some(bytes) = http.get(url, &[])? else {
        bail!("not found");
    };
    for pin in [pin, fragment].into_iter().flatten() {
        let found = sha256(&bytes);
        if !found.eq_ignore_ascii_case(pin.trim()) {
            bail!("its SHA-256 is {found}, but {pin} was asked for");
        }
    }
    Ok(Found {
        origin: format!("url {}", shown(url)),
        user_data: Some(bytes),
        ..Found::default()
    })
}

pub(super) fn seed(http: &Http, seed: &str) -> anyhow::Result<Found> {
    let file = |name: &str| http.get(&format!("{seed}{name}"), &[]);
    // cloud-init wants this one to be there, so its absence means a wrong address.
    let meta = file("meta-data")?.context("there is no meta-data")?;
    let mut found = Found {
        origin: format!("nocloud {}", shown(seed)),
        user_data: file("user-data")?,
        ..Found::default()
    };
    match meta_data(&meta) {
        Ok(metadata) => found.metadata = metadata,
        Err(finding) => found.findings.push(finding),
    }
    if let Some(bytes) = file("network-config")? {
        found.network("network-config", Format::NoCloud, &bytes);
    }
    Ok(found)
}

impl Found {
    /// Takes in a description of the networks; one that cannot be read is only a warning.
    pub(crate) fn network(&mut self, name: &str, format: Format, bytes: &[u8]) {
        let warning = |finding: Finding| {
            let path = match finding.path.as_str() {
                "" => name.to_owned(),
                key => format!("{name}: {key}"),
            };
            Finding {
                path,
                severity: crate::finding::Severity::Warning,
                ..finding
            }
        };
        match format.convert(&String::from_utf8_lossy(bytes)) {
            Ok(converted) => {
                self.findings
                    .extend(converted.notes.into_iter().map(warning));
                let network = Some(converted.network);
                self.metadata.network = network.filter(|network| !network.links.is_empty());
            }
            Err(finding) => self.findings.push(warning(finding)),
        }
    }
}
