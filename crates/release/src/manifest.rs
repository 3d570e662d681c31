use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Sha256, Version};

/// What a release consists of. Its JSON is what gets signed; unknown fields are ignored, so that
/// an old host can read what a newer builder wrote as long as `format` stays the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::FORMAT`]; raised when an old host must not even try.
    pub format: u32,
    pub version: Version,
    /// Raised to make every release of earlier epochs unacceptable.
    #[serde(default)]
    pub epoch: u64,
    /// Hosts older than this have to stop over at another release.
    #[serde(default)]
    pub minimum_source_version: Option<Version>,
    /// systemd's name for it, such as `x86-64`.
    pub architecture: String,
    /// Unix seconds.
    pub created: u64,
    pub usr: Usr,
    pub uki: File,
    /// Names kernel, initrd and command line. Hosts on which the same runs can go over to this release
    /// without starting the kernel anew. None: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Sha256>,
    /// Smaller downloads for hosts that run one of these releases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<Delta>,
    /// What hosts can lay over `/usr`, if they are told to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<File>,
}

/// The operating system: an erofs image whose bytes hang on `root_hash`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usr {
    /// dm-verity's root hash, the same as `usrhash=` in the UKI's command line.
    pub root_hash: Sha256,
    /// Bytes of the image as it lies in the slot.
    pub size: u64,
    pub payload: Payload,
    /// The hash of every block of the image and the length of every frame of the payload, so that
    /// a host can fetch only what it does not have. None: the payload is not made of frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<File>,
}

/// A system extension that was built with the release and fits no other: an image of erofs with a part of `/usr`,
/// as systemd-sysext takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    pub name: ExtensionName,
    /// dm-verity's root hash of the image.
    pub root_hash: Sha256,
    /// Bytes of the image.
    pub size: u64,
    pub payload: Payload,
}

/// Up to 64 small letters, digits and `-`, not at either end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtensionName(String);

/// Why a text does not name an extension.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name an extension: use up to 64 small letters, digits and '-', not at either end"
)]
pub struct ExtensionNameError(String);

/// The downloadable form of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    #[serde(flatten)]
    pub file: File,
    pub compression: Compression,
}

/// The way from one particular release. Hosts that do not know deltas take the payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// For people; what decides is the root hash.
    pub from_version: Version,
    pub from_root_hash: Sha256,
    pub usr: File,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uki: Option<UkiDelta>,
}

/// From the UKI that was published with the other release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UkiDelta {
    #[serde(flatten)]
    pub file: File,
    pub from_sha256: Sha256,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    Zstd,
}

/// A published file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    #[serde(rename = "file")]
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
}

/// A plain file name: it can be joined to a directory or a URL without leaving it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

/// Why a text is not a file name of a release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a file of a release: use up to 100 letters, digits, '.', '_', '-', not starting with '.'"
)]
pub struct FileNameError(String);

/// Why a manifest makes no sense, whoever signed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has format {0}, this program reads format {want}: update it first", want = Manifest::FORMAT)]
    Format(u32),
    #[error("usr.size is {0}: it has to be a positive multiple of 4096, verity's block")]
    UsrSize(u64),
    #[error("the file name {0:?} is used twice")]
    DuplicateFile(String),
    #[error("the manifest has no architecture")]
    NoArchitecture,
    #[error("the manifest has {0} deltas, at most {most} are allowed", most = Manifest::MOST_DELTAS)]
    TooManyDeltas(usize),
    #[error(
        "the extension {name} has {size} bytes: it has to be a positive multiple of 4096, verity's block"
    )]
    ExtensionSize { name: ExtensionName, size: u64 },
    #[error("there are two extensions {0}")]
    DuplicateExtension(ExtensionName),
    #[error("two deltas start from the same root hash, one of them from version {0}")]
    DuplicateDelta(Version),
}

impl Manifest {
    pub const FORMAT: u32 = 1;

    /// Every host reads them all.
    pub const MOST_DELTAS: usize = 64;

    /// Every file that is published beside the manifest itself.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        [&self.usr.payload.file, &self.uki]
            .into_iter()
            .chain(&self.usr.index)
            .chain(self.deltas.iter().flat_map(Delta::files))
            .chain(self.extensions.iter().map(|it| &it.payload.file))
            .chain(&self.sbom)
    }

    pub fn extension(&self, name: &ExtensionName) -> Option<&Extension> {
        self.extensions.iter().find(|it| it.name == *name)
    }

    /// The delta for a host that runs the release with this root hash.
    pub fn delta_from(&self, root_hash: Sha256) -> Option<&Delta> {
        self.deltas
            .iter()
            .find(|delta| delta.from_root_hash == root_hash)
    }

    /// Bytes that a host downloads to install this release in full.
    pub fn download_size(&self) -> u64 {
        self.usr.payload.file.size.saturating_add(self.uki.size)
    }

    /// Rules that the types cannot hold.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format != Self::FORMAT {
            return Err(ManifestError::Format(self.format));
        }
        if self.usr.size == 0 || !self.usr.size.is_multiple_of(4096) {
            return Err(ManifestError::UsrSize(self.usr.size));
        }
        if self.architecture.is_empty() {
            return Err(ManifestError::NoArchitecture);
        }
        if self.deltas.len() > Self::MOST_DELTAS {
            return Err(ManifestError::TooManyDeltas(self.deltas.len()));
        }
        let mut sources: Vec<_> = self
            .deltas
            .iter()
            .map(|delta| (delta.from_root_hash, &delta.from_version))
            .collect();
        sources.sort_unstable();
        if let Some(pair) = sources.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(ManifestError::DuplicateDelta(pair[1].1.clone()));
        }
        for (number, extension) in self.extensions.iter().enumerate() {
            let Extension { name, size, .. } = extension;
            if *size == 0 || !size.is_multiple_of(4096) {
                let name = name.clone();
                return Err(ManifestError::ExtensionSize { name, size: *size });
            }
            if self.extensions[..number].iter().any(|it| it.name == *name) {
                return Err(ManifestError::DuplicateExtension(name.clone()));
            }
        }
        let mut names: Vec<&str> = self.files().map(|f| f.name.as_str()).collect();
        names.push(crate::MANIFEST_FILE);
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ManifestError::DuplicateFile(pair[0].into())),
            None => Ok(()),
        }
    }
}

impl Delta {
    pub fn files(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.usr).chain(self.uki.as_ref().map(|uki| &uki.file))
    }
}

impl FileName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = FileNameError;

    fn from_str(text: &str) -> Result<Self, FileNameError> {
        let good = (1..=100).contains(&text.len())
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if good {
            Ok(Self(text.into()))
        } else {
            Err(FileNameError(text.chars().take(120).collect()))
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for FileName {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

crate::serde_as_text!(FileName);

impl ExtensionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExtensionName {
    type Err = ExtensionNameError;

    fn from_str(text: &str) -> Result<Self, ExtensionNameError> {
        let good = (1..=64).contains(&text.len())
            && !text.starts_with('-')
            && !text.ends_with('-')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if good {
            Ok(Self(text.into()))
        } else {
            Err(ExtensionNameError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for ExtensionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::serde_as_text!(ExtensionName);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Manifest {
        let file = |name: &str, bytes: &str| File {
            name: name.parse().unwrap(),
            size: bytes.len() as u64,
            sha256: Sha256::of(bytes),
        };
        Manifest {
            format: Manifest::FORMAT,
            version: "2".parse().unwrap(),
            epoch: 0,
            minimum_source_version: None,
            architecture: "x86-64".into(),
            created: 1_795_000_000,
            usr: Usr {
                root_hash: Sha256::of("root"),
                size: 8192,
                payload: Payload {
                    file: file("usr.erofs.zst", "compressed"),
                    compression: Compression::Zstd,
                },
                index: None,
            },
            uki: file("uki.efi", "kernel"),
            kernel: None,
            deltas: Vec::new(),
            extensions: Vec::new(),
            sbom: Some(file("sbom.spdx.json", "{}")),
        }
    }

    #[test]
    fn the_json_that_is_signed() {
        let json = serde_json::to_string_pretty(&example()).unwrap();
        insta::assert_snapshot!(json, @r#"
            {
              "format": 1,
              "version": "2",
              "epoch": 0,
              "minimum_source_version": null,
              "architecture": "x86-64",
              "created": 1795000000,
              "usr": {
                "root_hash": "4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2",
                "size": 8192,
                "payload": {
                  "file": "usr.erofs.zst",
                  "size": 10,
                  "sha256": "9da308c2e4bc33afa72df5c088b5fc5673c477f3ef21d6bdaa358393834f9804",
                  "compression": "zstd"
                }
              },
              "uki": {
                "file": "uki.efi",
                "size": 6,
                "sha256": "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c"
              },
              "sbom": {
                "file": "sbom.spdx.json",
                "size": 2,
                "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
              }
            }
            "#);
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), example());
    }

    fn with_delta() -> Manifest {
        let file = |name: &str| File {
            name: name.parse().unwrap(),
            size: 3,
            sha256: Sha256::of(name),
        };
        let mut manifest = example();
        manifest.usr.index = Some(file("usr.index"));
        manifest.deltas.push(Delta {
            from_version: "1".parse().unwrap(),
            from_root_hash: Sha256::of("old root"),
            usr: file("usr-from-1.delta"),
            uki: Some(UkiDelta {
                file: file("uki-from-1.delta"),
                from_sha256: Sha256::of("old kernel"),
            }),
        });
        manifest
    }

    #[test]
    fn deltas_are_files_of_the_release() {
        let manifest = with_delta();
        assert_eq!(manifest.check(), Ok(()));
        let names: Vec<&str> = manifest.files().map(|f| f.name.as_str()).collect();
        let expect = [
            "usr.erofs.zst",
            "uki.efi",
            "usr.index",
            "usr-from-1.delta",
            "uki-from-1.delta",
            "sbom.spdx.json",
        ];
        assert_eq!(names, expect);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        let delta = manifest.delta_from(Sha256::of("old root")).unwrap();
        assert_eq!(delta.usr.name.as_str(), "usr-from-1.delta");
        assert_eq!(manifest.delta_from(Sha256::of("root")), None);
    }

    #[test]
    fn nonsensical_deltas_are_named() {
        let twice = |m: &mut Manifest| {
            *m = with_delta();
            let mut delta = m.deltas[0].clone();
            delta.usr.name = "other.delta".parse().unwrap();
            delta.uki = None;
            m.deltas.push(delta);
        };
        check(
            twice,
            "two deltas start from the same root hash, one of them from version 1",
        );
        check(
            |m| {
                *m = with_delta();
                m.deltas[0].usr.name = "uki.efi".parse().unwrap();
            },
            r#"the file name "uki.efi" is used twice"#,
        );
        check(
            |m| m.deltas = vec![with_delta().deltas[0].clone(); 65],
            "the manifest has 65 deltas, at most 64 are allowed",
        );
    }

    fn with_extension() -> Manifest {
        let mut manifest = example();
        manifest.extensions.push(Extension {
            name: "debug".parse().unwrap(),
            root_hash: Sha256::of("debug root"),
            size: 4096,
            payload: Payload {
                file: File {
                    name: "debug.sysext.zst".parse().unwrap(),
                    size: 3,
                    sha256: Sha256::of("debug"),
                },
                compression: Compression::Zstd,
            },
        });
        manifest
    }

    #[test]
    fn extensions_are_files_of_the_release() {
        let manifest = with_extension();
        assert_eq!(manifest.check(), Ok(()));
        assert!(
            manifest
                .files()
                .any(|f| f.name.as_str() == "debug.sysext.zst")
        );
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        let found = manifest.extension(&"debug".parse().unwrap());
        assert_eq!(found, manifest.extensions.first());
        assert_eq!(manifest.extension(&"docker".parse().unwrap()), None);
        // Nobody downloads what nobody asked for.
        assert_eq!(manifest.download_size(), example().download_size());
        check(
            |m| {
                *m = with_extension();
                m.extensions[0].size = 5000;
            },
            "the extension debug has 5000 bytes: it has to be a positive multiple of 4096, verity's block",
        );
        check(
            |m| {
                *m = with_extension();
                m.extensions.push(m.extensions[0].clone());
            },
            "there are two extensions debug",
        );
        for bad in ["", "-a", "a-", "Debug", "a/b", "a.b", "a_b", "../x"] {
            assert!(
                bad.parse::<ExtensionName>().is_err(),
                "{bad:?} was accepted"
            );
        }
    }

    #[test]
    fn unknown_fields_are_for_newer_readers() {
        let mut json = serde_json::to_value(example()).unwrap();
        json["firmware"] = serde_json::json!(["nic"]);
        json["usr"]["payload"]["segments"] = serde_json::json!(3);
        assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), example());
    }

    fn check(change: impl FnOnce(&mut Manifest), expect: &str) {
        let mut manifest = example();
        change(&mut manifest);
        assert_eq!(manifest.check().unwrap_err().to_string(), expect);
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(example().check(), Ok(()));
        check(
            |m| m.format = 2,
            "the manifest has format 2, this program reads format 1: update it first",
        );
        check(
            |m| m.usr.size = 4097,
            "usr.size is 4097: it has to be a positive multiple of 4096, verity's block",
        );
        check(
            |m| m.usr.size = 0,
            "usr.size is 0: it has to be a positive multiple of 4096, verity's block",
        );
        check(
            |m| m.uki.name = m.usr.payload.file.name.clone(),
            r#"the file name "usr.erofs.zst" is used twice"#,
        );
        check(
            |m| m.uki.name = "manifest.dsse.json".parse().unwrap(),
            r#"the file name "manifest.dsse.json" is used twice"#,
        );
        check(
            |m| m.architecture.clear(),
            "the manifest has no architecture",
        );
    }

    #[test]
    fn a_file_name_stays_in_its_directory() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            ".hidden",
            "a\0b",
            "a%2fb",
            "ä",
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(
            "usr.erofs.zst".parse::<FileName>().unwrap().as_str(),
            "usr.erofs.zst"
        );
    }
}
