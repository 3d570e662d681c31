//! Imports of generated archives into a temporary root.

#![allow(clippy::unwrap_used, reason = "a test")]

mod rootfs;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use container::store::{Imported, Request, Source, StoreError};
use container::{Name, Store};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

struct Fixture {
    dir: TempDir,
    store: Store,
}

fn name() -> Name {
    "tiny".parse().unwrap()
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("root"));
        Self { dir, store }
    }

    fn source(&self, bytes: &[u8]) -> Source {
        let path = self.dir.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        Source::File(path)
    }

    fn import(&self, bytes: &[u8]) -> Result<Imported, StoreError> {
        self.import_expecting(bytes, None)
    }

    fn import_expecting(
        &self,
        bytes: &[u8],
        sha256: Option<String>,
    ) -> Result<Imported, StoreError> {
        let request = Request {
            name: name(),
            source: self.source(bytes),
            sha256,
        };
        self.store
            .import(&request, "2026-11-23T10:00:00Z".parse().unwrap())
    }

    /// Nothing of a failed import is left that anybody could take for an image.
    fn is_clean(&self) {
        assert_eq!(self.store.list().unwrap(), []);
        let dir = self.dir.path().join("root/var/lib/machines");
        let left: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [".tiny.lock"]);
    }
}

fn tiny() -> Vec<u8> {
    let mut bytes = Vec::new();
    rootfs::write_tar(b"\x7fELF and so on", &mut bytes).unwrap();
    bytes
}

/// An archive with `usr` and one more entry, whose name is written as it stands.
fn with_entry(kind: EntryType, path: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, link, data) in [
        (EntryType::Directory, "usr", "", &b""[..]),
        (kind, path, link, data),
    ] {
        let mut header = Header::new_gnu();
        // The checked setters refuse what we want to see refused by the import.
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast())
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_compression_makes_the_same_image() {
    let tar = tiny();
    let zst = zstd::encode_all(&tar[..], 1).unwrap();
    for archive in [tar.clone(), gzip(&tar), xz(&tar), zst] {
        let fixture = Fixture::new();
        let done = fixture.import(&archive).unwrap();
        assert_eq!(done.sha256, Some(hex::encode(Sha256::digest(&archive))));
        assert_eq!(done.skipped, 0);
        let path = fixture.store.path(&name());
        assert_eq!(
            std::fs::read(path.join("bin/tiny")).unwrap(),
            b"\x7fELF and so on"
        );
        assert_eq!(
            std::fs::read_link(path.join("bin/echo")).unwrap(),
            Path::new("tiny")
        );
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (
                mode(&path),
                mode(&path.join("tmp")),
                mode(&path.join("bin/tiny"))
            ),
            (0o755, 0o1777, 0o755)
        );
        let mtime = std::fs::metadata(path.join("bin/tiny")).unwrap().mtime();
        assert_eq!(mtime, 1_700_000_000);
        let image = fixture.store.get(&name()).unwrap();
        assert_eq!(image.os.as_deref(), Some("Tiny test image"));
        assert_eq!(image.origin.unwrap().imported, "2026-11-23T10:00:00Z");
    }
}

#[test]
fn a_hash_is_checked_before_the_image_is_there() {
    let fixture = Fixture::new();
    let tar = tiny();
    let error = fixture
        .import_expecting(&tar, Some("00".repeat(32)))
        .unwrap_err();
    assert!(matches!(error, StoreError::WrongHash { .. }), "{error}");
    fixture.is_clean();
    fixture
        .import_expecting(&tar, Some(hex::encode(Sha256::digest(&tar))))
        .unwrap();
}

#[test]
fn nothing_is_written_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let archives = [
        with_entry(EntryType::Regular, "../evil", "", b"x"),
        with_entry(EntryType::Regular, "usr/../../evil", "", b"x"),
        with_entry(EntryType::Regular, &format!("{target}/evil"), "", b"x"),
        with_entry(EntryType::Directory, "usr/../../evil", "", b""),
        with_entry(EntryType::Symlink, "../evil", "usr", b""),
        with_entry(EntryType::Link, "usr/passwd", "/etc/passwd", b""),
        with_entry(
            EntryType::Link,
            "usr/passwd",
            "../../../../../../../../../etc/passwd",
            b"",
        ),
    ];
    for archive in archives {
        let fixture = Fixture::new();
        let error = fixture.import(&archive).unwrap_err();
        assert!(matches!(error, StoreError::Traversal { .. }), "{error:?}");
        fixture.is_clean();
        assert!(!fixture.dir.path().join("root/var/lib/evil").exists());
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_link_is_not_followed_out() {
    let outside = tempfile::tempdir().unwrap();
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    tar.append_data(&mut header.clone(), "usr", &b""[..])
        .unwrap();
    header.set_entry_type(EntryType::Symlink);
    tar.append_link(&mut header.clone(), "usr/out", outside.path())
        .unwrap();
    header.set_entry_type(EntryType::Regular);
    header.set_size(1);
    tar.append_data(&mut header, "usr/out/evil", &b"x"[..])
        .unwrap();
    let fixture = Fixture::new();
    let error = fixture.import(&tar.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Traversal { .. }), "{error:?}");
    fixture.is_clean();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// A link is only followed by who runs inside, so it may point wherever it likes.
#[test]
fn absolute_links_stay_as_they_are() {
    let fixture = Fixture::new();
    fixture
        .import(&with_entry(EntryType::Symlink, "usr/run", "/run", b""))
        .unwrap();
    assert_eq!(
        std::fs::read_link(fixture.store.path(&name()).join("usr/run")).unwrap(),
        Path::new("/run")
    );
}

#[test]
fn devices_are_left_out() {
    let fixture = Fixture::new();
    let done = fixture
        .import(&with_entry(EntryType::Char, "usr/null", "", b""))
        .unwrap();
    assert_eq!((done.entries, done.skipped), (1, 1));
    assert!(!fixture.store.path(&name()).join("usr/null").exists());
}

#[test]
fn an_archive_cut_off_anywhere_is_refused() {
    let tar = tiny();
    // The generator's archive ends with two zero blocks; its last file ends before them.
    let whole = tar.len() - 1024;
    let gz = gzip(&tar);
    for cut in [
        &tar[..whole],
        &tar[..whole - 512],
        &tar[..700],
        &gz[..gz.len() - 9],
        &gz[..gz.len() / 2],
    ] {
        let fixture = Fixture::new();
        fixture.import(cut).unwrap_err();
        fixture.is_clean();
    }
}

#[test]
fn what_is_no_root_file_system_is_refused() {
    let check = |archive: &[u8], expect: &str| {
        let fixture = Fixture::new();
        let error = fixture.import(archive).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        fixture.is_clean();
    };
    check(b"", "ends too early");
    check(&[7; 4096], "cannot read the archive");
    check(
        &with_entry(EntryType::Regular, "hello", "", b"x")[1024 - 512..],
        "neither usr nor bin",
    );
}

/// Owners and attributes are for root to give; anybody else gets what is theirs.
#[test]
fn owners_and_attributes_as_root() {
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o4755);
    header.set_uid(1234);
    header.set_gid(5678);
    header.set_mtime(0);
    header.set_size(1);
    tar.append_pax_extensions([("SCHILY.xattr.user.orlop", &b"kept"[..])])
        .unwrap();
    tar.append_data(&mut header, "usr/x", &b"x"[..]).unwrap();
    let fixture = Fixture::new();
    fixture.import(&tar.into_inner().unwrap()).unwrap();
    let path = fixture.store.path(&name()).join("usr/x");
    let found = std::fs::metadata(&path).unwrap();
    let mut value = [0; 16];
    let attribute =
        rustix::fs::getxattr(&path, "user.orlop", &mut value).map(|n| value[..n].to_vec());
    assert_eq!(found.mode() & 0o7777, 0o4755);
    match rustix::process::geteuid().is_root() {
        true => {
            assert_eq!((found.uid(), found.gid()), (1234, 5678));
            assert_eq!(attribute.unwrap(), b"kept");
        }
        false => {
            assert_eq!(found.uid(), rustix::process::geteuid().as_raw());
            attribute.unwrap_err();
        }
    }
}

#[test]
fn a_name_is_taken_once_and_a_killed_import_is_cleared_away() {
    let fixture = Fixture::new();
    let part = fixture
        .dir
        .path()
        .join("root/var/lib/machines/.tiny.part/usr/old");
    std::fs::create_dir_all(&part).unwrap();
    assert_eq!(fixture.store.list().unwrap(), []);
    fixture.import(&tiny()).unwrap();
    assert!(!fixture.store.path(&name()).join("usr/old").exists());
    assert!(matches!(
        fixture.import(&tiny()).unwrap_err(),
        StoreError::Exists { .. }
    ));
    fixture.store.remove(&name()).unwrap();
    fixture.is_clean();
    assert!(matches!(
        fixture.store.remove(&name()).unwrap_err(),
        StoreError::NoSuchImage { .. }
    ));
}

#[test]
fn a_directory_is_copied() {
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    std::fs::create_dir_all(from.join("bin")).unwrap();
    std::fs::write(from.join("bin/hello"), "x").unwrap();
    let request = Request {
        name: name(),
        source: Source::parse(from.to_str().unwrap()),
        sha256: None,
    };
    fixture
        .store
        .import(&request, "2026-11-23T10:00:00Z".parse().unwrap())
        .unwrap();
    let path = fixture.store.path(&name());
    assert_eq!(std::fs::read(path.join("bin/hello")).unwrap(), b"x");
    // systemd-nspawn wants one.
    assert!(path.join("usr").is_dir());
}

#[test]
fn a_missing_file_is_named() {
    let fixture = Fixture::new();
    let request = Request {
        name: name(),
        source: Source::parse("/no/such.tar"),
        sha256: None,
    };
    let error = fixture
        .store
        .import(&request, "2026-11-23T10:00:00Z".parse().unwrap())
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot open /no/such.tar");
    fixture.is_clean();
}

#[test]
fn the_generated_program_is_static_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tiny");
    rootfs::build_program(&program).unwrap();
    let output = std::process::Command::new(&program)
        .args(["echo", "a", "b"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"a b\n");
    // No PT_INTERP: the image has no loader. ELF-64: e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let elf = std::fs::read(&program).unwrap();
    let number = |at: usize, n: usize| {
        elf[at..at + n]
            .iter()
            .rev()
            .fold(0, |sum, b| sum << 8 | usize::from(*b))
    };
    let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let types: Vec<_> = (0..count).map(|n| number(offset + n * size, 4)).collect();
    assert!(types.contains(&1) && !types.contains(&3), "{types:?}");
}
