//! Who is offered what. Pure, so that the rules read top to bottom and can be tested as such.

use std::collections::BTreeMap;
use std::sync::Arc;

use release::{Sha256, Version};

use super::catalog::{Content, Published};

/// What matters about the host that asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub(super) host: &'a str,
    pub(super) version: &'a str,
    pub(super) board: Option<&'a str>,
    /// What it tried and left again: release id (none if unknown) and version.
    pub(super) failed: &'a [(Option<Sha256>, Version)],
    /// The operator takes what failed, and what is older.
    pub(super) force: bool,
    /// It says of itself what only a host of ours says.
    pub(super) orlop: bool,
}

/// Why a host stays with what it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// Its channel is unknown here, or has no release.
    NothingOnChannel,
    UnknownVersion,
    NotNewer,
    OtherArchitecture,
    /// It is Flatcar's, and the host is ours.
    OtherSystem,
    /// It has to stop over at another release first.
    BelowFloor(Version),
    FailedHere,
    Withdrawn(Version),
}

impl std::fmt::Display for Stay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NothingOnChannel => f.write_str("its channel has no release"),
            Self::UnknownVersion => f.write_str("its version cannot be compared"),
            Self::NotNewer => f.write_str("it runs what its channel has"),
            Self::OtherArchitecture => f.write_str("the release is for another architecture"),
            Self::OtherSystem => f.write_str("the release is one of Flatcar's"),
            Self::BelowFloor(floor) => write!(f, "it has to run {floor} first"),
            Self::FailedHere => f.write_str("it already tried that release and left it"),
            Self::Withdrawn(version) => write!(f, "release {version} was withdrawn"),
        }
    }
}

/// More stops on the way would be a mistake in the releases.
const MAX_HOPS: usize = 32;

/// What brings the host nearer to `target`: the target, or else the first stop on the way. A floor
/// says which release has to run first; if that one is not here, or the host would not believe it
/// (`signed`), the next above it will do.
pub(super) fn choose(
    asking: Asking<'_>,
    target: &Arc<Published>,
    shelf: &BTreeMap<Version, Arc<Published>>,
    signed: &dyn Fn(&Published) -> bool,
) -> Result<Arc<Published>, Stay> {
    let allowed = |release: &Published| release.withdrawn.is_none() && signed(release);
    let mut candidate = target;
    for _ in 0..MAX_HOPS {
        if candidate.withdrawn.is_some() {
            return Err(Stay::Withdrawn(candidate.manifest.version().clone()));
        }
        let floor = match decide(asking, Some((&candidate.manifest, candidate.id))) {
            Ok(()) => return Ok(Arc::clone(candidate)),
            Err(Stay::BelowFloor(floor)) => floor,
            Err(stay) => return Err(stay),
        };
        candidate = stop_before(candidate, shelf, &allowed).ok_or(Stay::BelowFloor(floor))?;
    }
    Err(Stay::NothingOnChannel)
}

/// Where hosts below the floor of a release go first.
fn stop_before<'a>(
    release: &Published,
    shelf: &'a BTreeMap<Version, Arc<Published>>,
    allowed: &dyn Fn(&Published) -> bool,
) -> Option<&'a Arc<Published>> {
    let (of, version) = (&release.manifest, release.manifest.version());
    // A range must not end before it begins.
    let floor = of.minimum_source_version().filter(|it| *it < version)?;
    let suits = |stop: &&Arc<Published>| {
        stop.manifest.architecture() == of.architecture()
            && stop.manifest.is_flatcar() == of.is_flatcar()
            && allowed(stop)
    };
    let above = shelf.range(floor..version);
    above.map(|(_, stop)| stop).find(suits)
}

/// Every stop on the way to `target`, the last one first. They are the same for all hosts.
pub(super) fn stops<'a>(
    target: &'a Arc<Published>,
    shelf: &'a BTreeMap<Version, Arc<Published>>,
    allowed: &'a dyn Fn(&Published) -> bool,
) -> impl Iterator<Item = &'a Arc<Published>> {
    let before = move |release: &&'a Arc<Published>| stop_before(release, shelf, allowed);
    std::iter::successors(before(&target), before).take(MAX_HOPS)
}

/// `candidate` is what the host's channel points at. `Ok` means: offer it.
pub(super) fn decide(
    asking: Asking<'_>,
    candidate: Option<(&Content, Sha256)>,
) -> Result<(), Stay> {
    let (manifest, id) = candidate.ok_or(Stay::NothingOnChannel)?;
    if manifest.is_flatcar() && asking.orlop {
        return Err(Stay::OtherSystem);
    }
    let running: Version = asking.version.parse().map_err(|_| Stay::UnknownVersion)?;
    let older = *manifest.version() < running && !asking.force;
    if older || *manifest.version() == running {
        return Err(Stay::NotNewer);
    }
    if architecture(asking.board).is_some_and(|arch| arch != manifest.architecture()) {
        return Err(Stay::OtherArchitecture);
    }
    if let Some(floor) = manifest
        .minimum_source_version()
        .filter(|floor| running < **floor)
    {
        return Err(Stay::BelowFloor(floor.clone()));
    }
    let failed = asking
        .failed
        .iter()
        .any(|(failed_id, version)| match failed_id {
            Some(failed_id) => *failed_id == id,
            None => version == manifest.version(),
        });
    if failed && !asking.force {
        Err(Stay::FailedHere)
    } else {
        Ok(())
    }
}

/// Omaha's board names to systemd's architectures; none when it says nothing.
fn architecture(board: Option<&str>) -> Option<&'static str> {
    match board {
        Some("amd64-usr") => Some("x86-64"),
        Some("arm64-usr") => Some("arm64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use release::{Compression, File, Manifest, Payload, Usr};

    fn manifest(version: &str) -> Manifest {
        let file = |name: &str| File {
            name: name.parse().unwrap(),
            size: 1,
            sha256: Sha256::of(name),
        };
        Manifest {
            format: Manifest::FORMAT,
            version: version.parse().unwrap(),
            epoch: 0,
            minimum_source_version: None,
            architecture: "x86-64".into(),
            created: 0,
            usr: Usr {
                root_hash: Sha256::of("root"),
                size: 4096,
                payload: Payload {
                    file: file("usr"),
                    compression: Compression::Zstd,
                },
                index: None,
            },
            uki: file("uki"),
            kernel: None,
            deltas: Vec::new(),
            extensions: Vec::new(),
            sbom: None,
        }
    }

    /// A host at `running` asks while its channel is at `offered`, whose id is the digest of its
    /// version.
    fn check(running: &str, offered: &str, failed: &[(Option<&str>, &str)], expect: &str) {
        check_with(
            running,
            manifest(offered),
            Some("amd64-usr"),
            failed,
            false,
            expect,
        );
    }

    fn check_forced(
        running: &str,
        offered: Manifest,
        failed: &[(Option<&str>, &str)],
        expect: &str,
    ) {
        check_with(running, offered, Some("amd64-usr"), failed, true, expect);
    }

    fn check_with(
        running: &str,
        manifest: Manifest,
        board: Option<&str>,
        failed: &[(Option<&str>, &str)],
        force: bool,
        expect: &str,
    ) {
        let failed: Vec<_> = failed
            .iter()
            .map(|(id, version)| (id.map(Sha256::of), version.parse().unwrap()))
            .collect();
        let asking = Asking {
            host: "h",
            version: running,
            board,
            failed: &failed,
            force,
            orlop: true,
        };
        let id = Sha256::of(manifest.version.to_string());
        let content = Content::Orlop(Box::new(manifest));
        let got = match decide(asking, Some((&content, id))) {
            Ok(()) => "offer".to_owned(),
            Err(stay) => stay.to_string(),
        };
        assert_eq!(
            got,
            expect,
            "{running} -> {} with {failed:?}",
            content.version()
        );
    }

    #[test]
    fn only_newer_is_offered() {
        check("1", "2", &[], "offer");
        check("9", "10", &[], "offer");
        check("2", "2", &[], "it runs what its channel has");
        check("3", "2", &[], "it runs what its channel has");
        check("trunk", "2", &[], "its version cannot be compared");
        let asking = Asking {
            host: "h",
            version: "1",
            board: None,
            failed: &[],
            force: true,
            orlop: true,
        };
        assert_eq!(decide(asking, None), Err(Stay::NothingOnChannel));
    }

    #[test]
    fn what_failed_here_is_not_offered_again() {
        check(
            "1",
            "3",
            &[(Some("3"), "3")],
            "it already tried that release and left it",
        );
        check(
            "1",
            "3",
            &[(None, "3")],
            "it already tried that release and left it",
        );
        check("1", "4", &[(Some("3"), "3"), (None, "2")], "offer");
        // The same version built anew is another release.
        check("1", "3", &[(Some("the first build of 3"), "3")], "offer");
    }

    #[test]
    fn floors_and_architectures_hold() {
        let floor = Manifest {
            minimum_source_version: Some("2".parse().unwrap()),
            ..manifest("5")
        };
        check_with(
            "1",
            floor.clone(),
            None,
            &[],
            false,
            "it has to run 2 first",
        );
        check_with("2", floor, None, &[], false, "offer");
        let elsewhere = Manifest {
            architecture: "arm64".into(),
            ..manifest("2")
        };
        check_with(
            "1",
            elsewhere.clone(),
            Some("amd64-usr"),
            &[],
            false,
            "the release is for another architecture",
        );
        check_with("1", elsewhere, Some("arm64-usr"), &[], false, "offer");
    }

    #[test]
    fn force_is_about_older_and_failed_only() {
        check_forced("3", manifest("2"), &[], "offer");
        check_forced("1", manifest("3"), &[(Some("3"), "3")], "offer");
        check_forced("3", manifest("2"), &[(None, "2")], "offer");
        check_forced("2", manifest("2"), &[], "it runs what its channel has");
        check_forced(
            "trunk",
            manifest("2"),
            &[],
            "its version cannot be compared",
        );
        let floor = Manifest {
            minimum_source_version: Some("2".parse().unwrap()),
            ..manifest("5")
        };
        check_forced("1", floor, &[], "it has to run 2 first");
        let elsewhere = Manifest {
            architecture: "arm64".into(),
            ..manifest("2")
        };
        let expect = "the release is for another architecture";
        check_forced("1", elsewhere, &[], expect);
    }

    /// A shelf of releases `version` or `version>floor`, `!` before what was withdrawn, `?` before what
    /// the channel does not sign; the last is what the channel points at. Each host says what it is offered.
    fn check_hops(shelf: &[&str], running: &str, expect: &str) {
        let (shelf, target) = shelved(shelf);
        let asking = Asking {
            host: "h",
            version: running,
            board: None,
            failed: &[],
            force: false,
            orlop: true,
        };
        let got = match choose(asking, &target, &shelf, &is_signed) {
            Ok(release) => release.manifest.version().to_string(),
            Err(stay) => stay.to_string(),
        };
        assert_eq!(got, expect, "from {running}");
    }

    fn is_signed(stop: &Published) -> bool {
        stop.envelope_sha256 == Sha256::of("envelope")
    }

    type Shelf = BTreeMap<Version, Arc<Published>>;

    fn shelved(shelf: &[&str]) -> (Shelf, Arc<Published>) {
        let published = |text: &&str| {
            let (text, withdrawn) = match text.strip_prefix('!') {
                Some(text) => (text, Some((jiff::Timestamp::UNIX_EPOCH, "bad".to_owned()))),
                None => (*text, None),
            };
            let (text, envelope) = match text.strip_prefix('?') {
                Some(text) => (text, "of another channel"),
                None => (text, "envelope"),
            };
            let (version, floor) = text.split_once('>').unwrap_or((text, ""));
            let manifest = Manifest {
                minimum_source_version: floor.parse().ok(),
                ..manifest(version)
            };
            Arc::new(Published {
                id: Sha256::of(version),
                envelope_size: 1,
                envelope_sha256: Sha256::of(envelope),
                published: jiff::Timestamp::UNIX_EPOCH,
                withdrawn,
                manifest: Content::Orlop(Box::new(manifest)),
            })
        };
        let all: Vec<_> = shelf.iter().map(published).collect();
        let target = all.last().unwrap().clone();
        let shelf = all
            .into_iter()
            .map(|release| (release.manifest.version().clone(), release))
            .collect();
        (shelf, target)
    }

    fn check_stops(shelf: &[&str], expect: &[&str]) {
        let (shelf, target) = shelved(shelf);
        let allowed = |stop: &Published| stop.withdrawn.is_none() && is_signed(stop);
        let got: Vec<_> = stops(&target, &shelf, &allowed)
            .map(|stop| stop.manifest.version().to_string())
            .collect();
        assert_eq!(got, expect, "on the way to {:?}", target.manifest.version());
    }

    #[test]
    fn stops_are_the_same_whoever_asks() {
        check_stops(&["2", "3", "4>3", "5", "6>4"], &["4", "3"]);
        check_stops(&["2", "!3", "3.1", "4>3", "?5", "6>5"], &[]);
        check_stops(&["2", "!3", "3.1", "4>3", "6>4"], &["4", "3.1"]);
        check_stops(&["2", "3"], &[]);
        // A release above itself would be a mistake of whoever built it.
        check_stops(&["2", "3>4"], &[]);
        check_stops(&["2", "3>3"], &[]);
    }

    #[test]
    fn floors_are_passed_one_hop_at_a_time() {
        let shelf = ["2", "3", "4>3", "5", "6>4"];
        for (running, next) in [("1", "3"), ("2", "3"), ("3", "4"), ("4", "6"), ("5", "6")] {
            check_hops(&shelf, running, next);
        }
        check_hops(&shelf, "6", "it runs what its channel has");
        // The floor itself is not here, or was withdrawn: the next above it.
        check_hops(&["2", "!3", "3.1", "6>3"], "1", "3.1");
        check_hops(&["2", "?3", "3.1", "6>3"], "1", "3.1");
        check_hops(&["2", "?3", "6>3"], "1", "it has to run 3 first");
        check_hops(&["2", "6>3"], "1", "it has to run 3 first");
        check_hops(&["2", "!3"], "1", "release 3 was withdrawn");
    }
}
