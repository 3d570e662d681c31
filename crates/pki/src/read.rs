//! Looking at what is there.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

use super::Error;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Authority,
    Member,
    Client,
}

/// A certificate.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub kind: Kind,
    /// The common name.
    pub name: String,
    pub hosts: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub file: PathBuf,
    /// Is it signed by the authority next to it?
    pub trusted: bool,
}

impl Entry {
    /// May it be used now?
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.trusted && self.not_before <= now && now < self.not_after
    }
}

pub(crate) fn text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        what: "read",
        source,
    })
}

/// All certificates of a directory, the authority first.
pub fn list(dir: &Path) -> Result<Vec<Entry>, Error> {
    let authority = dir.join("ca.crt");
    if !authority.exists() {
        return Err(Error::NoAuthority(dir.to_owned()));
    }
    let ca = text(&authority)?;
    let mut entries = vec![entry(&authority, Kind::Authority, &ca)?];
    for (kind, folder) in [(Kind::Member, "members"), (Kind::Client, "clients")] {
        for file in certificates(&dir.join(folder))? {
            let pem = text(&file)?;
            let mut entry = entry(&file, kind, &pem)?;
            entry.trusted = is_signed_by(&pem, &ca);
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// The certificates of all members, or clients, in order.
fn certificates(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io {
            path,
            what: "read",
            source,
        }
    };
    let mut files = Vec::new();
    if !folder.exists() {
        return Ok(files);
    }
    for dir in fs::read_dir(folder).map_err(io(folder))? {
        let dir = dir.map_err(io(folder))?;
        // Half-made directories begin with a dot.
        if dir.file_name().to_string_lossy().starts_with('.') || !dir.path().is_dir() {
            continue;
        }
        for file in fs::read_dir(dir.path()).map_err(io(&dir.path()))? {
            let file = file.map_err(io(&dir.path()))?.path();
            let is_certificate = file.extension().is_some_and(|kind| kind == "crt");
            if is_certificate && file.file_name().is_some_and(|name| name != "ca.crt") {
                files.push(file);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn parsed<T>(pem: &str, with: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, String> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    Ok(with(&certificate))
}

pub(crate) fn entry(file: &Path, kind: Kind, pem: &str) -> Result<Entry, Error> {
    let made = parsed(pem, |certificate| {
        let name = certificate.subject().iter_common_name().next();
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| &names.value.general_names);
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
        let validity = certificate.validity();
        Ok::<_, jiff::Error>(Entry {
            kind,
            name: name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            hosts: names.into_iter().flatten().filter_map(host).collect(),
            not_before: at(validity.not_before)?,
            not_after: at(validity.not_after)?,
            file: file.to_owned(),
            trusted: kind == Kind::Authority && certificate.is_ca(),
        })
    });
    let unusable = |reason: String| Error::Unusable(file.to_owned(), reason);
    let entry = made
        .map_err(unusable)?
        .map_err(|error| unusable(error.to_string()))?;
    if kind == Kind::Authority && !entry.trusted {
        return Err(unusable("it is no authority's certificate".into()));
    }
    Ok(entry)
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            if let Ok(bytes) = <[u8; 4]>::try_from(*bytes) {
                return Some(std::net::Ipv4Addr::from(bytes).to_string());
            }
            let bytes = <[u8; 16]>::try_from(*bytes).ok()?;
            Some(std::net::Ipv6Addr::from(bytes).to_string())
        }
        _ => None,
    }
}

fn is_signed_by(pem: &str, ca: &str) -> bool {
    let verified = parsed(ca, |ca| {
        parsed(pem, |certificate| {
            certificate.verify_signature(Some(ca.public_key())).is_ok()
        })
    });
    matches!(verified, Ok(Ok(true)))
}

/// Does the key's public half stand in the certificate?
pub(crate) fn is_key_of(pem: &str, public: &[u8]) -> bool {
    let same = parsed(pem, |certificate| {
        certificate.public_key().subject_public_key.data.as_ref() == public
    });
    same == Ok(true)
}
