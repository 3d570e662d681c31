//! The certificates of a cluster, in one directory:
//!
//! ```text
//! ca.crt  ca.key                       the authority; the key stays here
//! members/NAME/ca.crt                  what a member needs, to be carried there as it is
//! members/NAME/server.crt  server.key  shown to clients
//! members/NAME/peer.crt    peer.key    shown to other members
//! clients/NAME/ca.crt  client.crt  client.key
//! ```
//!
//! A directory of a member or client appears whole or not at all. Nothing is overwritten unless that is asked for.
//! The clock is passed in.

mod error;
mod names;
mod read;
mod write;

pub use error::Error;
pub use read::{Entry, Kind, list};

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// How long an authority lasts.
pub const AUTHORITY_DAYS: u32 = 3650;
/// How long everything else lasts.
pub const LEAF_DAYS: u32 = 365;

/// Clocks differ, and a certificate of the future is refused.
const BACKDATED: SignedDuration = SignedDuration::from_hours(1);

/// What was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Made {
    pub kind: Kind,
    pub name: String,
    /// The directory with all that is needed on the machine it is for.
    pub dir: PathBuf,
    pub files: Vec<PathBuf>,
    /// The names and addresses that it is good for.
    pub hosts: Vec<String>,
    pub not_after: Timestamp,
}

/// The directory of an authority.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    not_after: Timestamp,
}

/// Makes a new authority.
pub fn init(dir: &Path, name: &str, days: u32, now: Timestamp) -> Result<Made, Error> {
    names::check(name)?;
    let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    for path in [&certificate, &key] {
        if path.exists() {
            return Err(Error::Exists(path.clone()));
        }
    }
    let pair = KeyPair::generate().map_err(Error::Making)?;
    let (mut params, not_after) = params(name, days, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let made = params.self_signed(&pair).map_err(Error::Making)?;

    write::directory(dir)?;
    write::private(&key, &pair.serialize_pem())?;
    if let Err(error) = write::public(&certificate, &made.pem()) {
        // A key without its certificate would be in the way of the next try.
        let _ = std::fs::remove_file(&key);
        return Err(error);
    }
    Ok(Made {
        kind: Kind::Authority,
        name: name.to_owned(),
        dir: dir.to_owned(),
        files: vec![certificate, key],
        hosts: Vec::new(),
        not_after,
    })
}

/// What is wanted of a new certificate.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub name: &'a str,
    /// Addresses and DNS names; a client has none.
    pub hosts: &'a [String],
    pub days: u32,
    /// In place of one that is there.
    pub replace: bool,
}

impl Pki {
    /// The authority in a directory, checked to be one.
    pub fn open(dir: &Path) -> Result<Pki, Error> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !certificate.exists() && !key.exists() {
            return Err(Error::NoAuthority(dir.to_owned()));
        }
        let pem = read::text(&certificate)?;
        let entry = read::entry(&certificate, Kind::Authority, &pem)?;
        let bad = |reason: rcgen::Error| Error::Unusable(key.clone(), reason.to_string());
        let pair = KeyPair::from_pem(&read::text(&key)?).map_err(bad)?;
        if !read::is_key_of(&pem, pair.public_key_raw()) {
            return Err(Error::Unusable(key, "it is not the key of ca.crt".into()));
        }
        let unusable =
            |reason: rcgen::Error| Error::Unusable(certificate.clone(), reason.to_string());
        let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(unusable)?;
        Ok(Pki {
            dir: dir.to_owned(),
            issuer,
            certificate: pem,
            not_after: entry.not_after,
        })
    }

    /// Certificates for a member: one for clients, one for other members. Both are good for both ends of a connection,
    /// because a member is a client of its peers, and of itself through the gateway.
    pub fn member(&self, wanted: &Wanted<'_>, now: Timestamp) -> Result<Made, Error> {
        if wanted.hosts.is_empty() {
            return Err(Error::NoHosts(wanted.name.to_owned()));
        }
        let mut hosts = wanted.hosts.to_vec();
        // Who logs in on the machine asks there.
        for local in ["localhost", "127.0.0.1", "::1"] {
            if !hosts.iter().any(|host| host == local) {
                hosts.push(local.into());
            }
        }
        let usages = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue(Kind::Member, wanted, hosts, &usages, now)
    }

    /// A certificate for a client. Its name is the user that it logs in as.
    pub fn client(&self, wanted: &Wanted<'_>, now: Timestamp) -> Result<Made, Error> {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(Kind::Client, wanted, Vec::new(), &usages, now)
    }

    /// Whole days until the authority ends. Certificates count in seconds, so parts of one do not count.
    fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).max(0) / (24 * 3600)
    }

    fn issue(
        &self,
        kind: Kind,
        wanted: &Wanted<'_>,
        hosts: Vec<String>,
        usages: &[ExtendedKeyUsagePurpose],
        now: Timestamp,
    ) -> Result<Made, Error> {
        names::check(wanted.name)?;
        let (mut params, not_after) = params(wanted.name, wanted.days, now)?;
        if not_after > self.not_after {
            return Err(Error::Outlives {
                authority: self.not_after,
                days: self.days_left(now),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = hosts
            .iter()
            .map(|host| names::host(host))
            .collect::<Result<Vec<SanType>, Error>>()?;

        let (parent, stems): (_, &[&str]) = match kind {
            Kind::Client => (self.dir.join("clients"), &["client"]),
            _ => (self.dir.join("members"), &["server", "peer"]),
        };
        let dir = parent.join(wanted.name);
        if dir.exists() && !wanted.replace {
            return Err(Error::Exists(dir));
        }
        let staged = write::Staged::new(&parent, wanted.name)?;
        let mut files = vec![dir.join("ca.crt")];
        write::public(&staged.path().join("ca.crt"), &self.certificate)?;
        for stem in stems {
            let pair = KeyPair::generate().map_err(Error::Making)?;
            let made = params
                .signed_by(&pair, &self.issuer)
                .map_err(Error::Making)?;
            let (certificate, key) = (format!("{stem}.crt"), format!("{stem}.key"));
            write::public(&staged.path().join(&certificate), &made.pem())?;
            write::private(&staged.path().join(&key), &pair.serialize_pem())?;
            files.extend([dir.join(certificate), dir.join(key)]);
        }
        staged.become_dir(&dir, wanted.replace)?;
        Ok(Made {
            kind,
            name: wanted.name.to_owned(),
            dir,
            files,
            hosts,
            not_after,
        })
    }
}

fn params(name: &str, days: u32, now: Timestamp) -> Result<(CertificateParams, Timestamp), Error> {
    if days == 0 {
        return Err(Error::Days(days));
    }
    let lifetime = SignedDuration::from_hours(24 * i64::from(days));
    let not_after = now.checked_add(lifetime).map_err(|_| Error::Days(days))?;
    // Certificates count in seconds.
    let not_after = Timestamp::from_second(not_after.as_second()).map_err(|_| Error::Days(days))?;
    let not_before = now.checked_sub(BACKDATED).map_err(|_| Error::Days(days))?;
    let date = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| Error::Days(days))
    };
    let mut params = CertificateParams::default();
    params.not_before = date(not_before)?;
    params.not_after = date(not_after)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok((params, not_after))
}
