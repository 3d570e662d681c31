//! Who is offered what. Pure, so that the rules read top to bottom and can be tested as such.

use release::{Manifest, Sha256, Version};

/// What matters about the host that asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub(super) version: &'a str,
    pub(super) board: Option<&'a str>,
    /// What it tried and left again: release id (none if unknown) and version.
    pub(super) failed: &'a [(Option<Sha256>, Version)],
    /// The operator takes what failed, and what is older.
    pub(super) force: bool,
}

/// Why a host stays with what it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// Its channel is unknown here, or has no release.
    NothingOnChannel,
    UnknownVersion,
    NotNewer,
    OtherArchitecture,
    /// It has to stop over at another release first.
    BelowFloor(Version),
    FailedHere,
}

impl std::fmt::Display for Stay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NothingOnChannel => f.write_str("its channel has no release"),
            Self::UnknownVersion => f.write_str("its version cannot be compared"),
            Self::NotNewer => f.write_str("it runs what its channel has"),
            Self::OtherArchitecture => f.write_str("the release is for another architecture"),
            Self::BelowFloor(floor) => write!(f, "it has to run {floor} first"),
            Self::FailedHere => f.write_str("it already tried that release and left it"),
        }
    }
}

/// `candidate` is what the host's channel points at. `Ok` means: offer it.
pub(super) fn decide(
    asking: Asking<'_>,
    candidate: Option<(&Manifest, Sha256)>,
) -> Result<(), Stay> {
    let (manifest, id) = candidate.ok_or(Stay::NothingOnChannel)?;
    let running: Version = asking.version.parse().map_err(|_| Stay::UnknownVersion)?;
    let older = manifest.version < running && !asking.force;
    if older || manifest.version == running {
        return Err(Stay::NotNewer);
    }
    if architecture(asking.board).is_some_and(|arch| arch != manifest.architecture) {
        return Err(Stay::OtherArchitecture);
    }
    if let Some(floor) = manifest
        .minimum_source_version
        .as_ref()
        .filter(|floor| running < **floor)
    {
        return Err(Stay::BelowFloor(floor.clone()));
    }
    let failed = asking
        .failed
        .iter()
        .any(|(failed_id, version)| match failed_id {
            Some(failed_id) => *failed_id == id,
            None => *version == manifest.version,
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
    use release::{Compression, File, Payload, Usr};

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
            },
            uki: file("uki"),
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
            version: running,
            board,
            failed: &failed,
            force,
        };
        let id = Sha256::of(manifest.version.to_string());
        let got = match decide(asking, Some((&manifest, id))) {
            Ok(()) => "offer".to_owned(),
            Err(stay) => stay.to_string(),
        };
        assert_eq!(
            got, expect,
            "{running} -> {} with {failed:?}",
            manifest.version
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
            version: "1",
            board: None,
            failed: &[],
            force: true,
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
}
