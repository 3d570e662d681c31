//! The walk from `os/` to a signed release. Everything is made in `<version>.part` and renamed in
//! the end, so a release directory is complete or absent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use disk::verity;
use release::dsse::Envelope;
use release::{Manifest, Sha256, Version};

use crate::fetch::{self, Fetched, Policy};
use crate::repository::{Lifetimes, Repository};
use crate::tools::Tools;
use crate::tree::{Origin, Tree};
use crate::{binaries, compose, cpio, diskimg, extension, lists, modules, sbom, tools, uki};

#[derive(Clone, Debug)]
pub struct BuildOptions {
    pub repo: PathBuf,
    /// The lab's directory, `.orlop`.
    pub lab: PathBuf,
    pub version: Version,
    pub policy: Policy,
    /// Directories laid over `os/rootfs`, in order.
    pub overlays: Vec<PathBuf>,
    /// Added to the kernel command line.
    pub cmdline: Vec<String>,
    pub minimum_source_version: Option<Version>,
    /// Instead of what `os/epoch` says.
    pub epoch: Option<u64>,
    /// Level of zstd for the payload: 19 for what is published, less for a quick local build.
    pub level: i32,
    /// Build even if nothing changed.
    pub force: bool,
    /// Name of the release directory, if it is not the version.
    pub directory: Option<String>,
    /// Signing key (PEM); the lab's own by default, made on first use.
    pub key: Option<PathBuf>,
    /// The TUF repository whose root hosts start from; the lab's own by default, made on first use.
    pub tuf: Option<PathBuf>,
}

/// What a finished release weighs.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    pub version: Version,
    #[serde(default)]
    pub epoch: u64,
    pub path: PathBuf,
    pub usr_bytes: u64,
    pub download_bytes: u64,
    pub uki_bytes: u64,
    pub root_hash: String,
    pub packages: usize,
    #[serde(default)]
    pub extensions: Vec<ExtensionSummary>,
    pub kernel: String,
    /// Nothing had to be done.
    pub unchanged: bool,
    pub seconds: f64,
}

/// What an extension weighs.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ExtensionSummary {
    pub name: String,
    pub bytes: u64,
    pub download_bytes: u64,
}

impl ExtensionSummary {
    fn of(extension: &release::Extension) -> Self {
        Self {
            name: extension.name.to_string(),
            bytes: extension.size,
            download_bytes: extension.payload.file.size,
        }
    }
}

/// Called with each step as it begins.
pub type Say<'a> = &'a dyn Fn(&str);

/// Packages, the build tools' tree, and a release with its disk image.
const SPACE: u64 = 2 << 30;

/// Says so at the start, and not when apt or mkfs meets the end of the disk.
fn enough_space(lab: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(lab)
        .with_context(|| format!("cannot ask how much room there is in {}", lab.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    anyhow::ensure!(
        free >= SPACE,
        "{} has {} MB free, a build needs {} MB: make room (./orlop down --wipe deletes the nodes' disks), \
         or build elsewhere with --lab",
        lab.display(),
        free / 1_000_000,
        SPACE / 1_000_000
    );
    Ok(())
}

pub fn build(options: &BuildOptions, say: Say<'_>) -> Result<Summary> {
    let start = Instant::now();
    let os = options.repo.join("os");
    let cache = options.lab.join("cache");
    let releases = options.lab.join("releases");
    fs::create_dir_all(&releases)
        .with_context(|| format!("cannot create {}", releases.display()))?;

    enough_space(&options.lab)?;
    let epoch = match options.epoch {
        Some(epoch) => epoch,
        None => lists::epoch(&os.join("epoch"))?,
    };

    say("building Orlop's own programs");
    let programs = binaries::build(&options.repo)?;
    let key = crate::keys::load_or_create(&options.lab, options.key.as_deref())?;
    let root = tuf_root(options)?;
    let fetched = fetch::fetch(&os, &cache, options.policy, say)?;

    let name = options
        .directory
        .clone()
        .unwrap_or_else(|| options.version.to_string());
    let out = releases.join(&name);
    let inputs = crate::inputs::digest(options, &programs, &key, &root)?;
    if !options.force && fs::read_to_string(out.join("inputs")).is_ok_and(|i| i == inputs) {
        let mut summary = summary(&out)?;
        summary.unchanged = true;
        summary.seconds = start.elapsed().as_secs_f64();
        return Ok(summary);
    }
    let work = Part::new(&releases, &name)?;
    let dir = work.path.as_path();
    let tools = unpack_tools(&cache, &fetched, say)?;

    say("composing /usr");
    let packages = compose::read_packages(&os, &fetched.image)?;
    let mut tree = packages.tree;
    let kernel = modules::kernel_version(&tree)?;
    let vmlinuz = tree.read(&format!("boot/vmlinuz-{kernel}"))?;
    compose::merge_certificates(&mut tree)?;
    compose::remove_unwanted(&os, &mut tree)?;
    compose::strip_setuid(&os, &mut tree)?;
    compose::alternatives(&mut tree);
    modules::decompress(&mut tree)?;
    modules::index(&mut tree, &tools, &kernel, dir)?;
    let aliases = String::from_utf8_lossy(&tree.read("modules.alias")?).into_owned();
    compose::overlay(&mut tree, &os.join("rootfs"))?;
    for (package, binary, path) in binaries::HOST {
        compose::add_binary(&mut tree, path, package, &programs.dir.join(binary))?;
    }
    tree.symlink("usr/bin/coreos-cloudinit", "cloudinit", Origin::Generated);
    let version = options.version.to_string();
    tree.file(
        "usr/lib/os-release",
        0o644,
        compose::os_release(&version, epoch),
        Origin::Generated,
    );
    let public = release::keys::public_to_text(&key.verifying_key(), "release");
    tree.file(
        "usr/lib/orlop/keys/release.pub",
        0o644,
        public,
        Origin::Generated,
    );
    tree.file(
        "usr/lib/orlop/tuf/root.json",
        0o644,
        root,
        Origin::Generated,
    );
    tree.file(
        "usr/lib/orlop/extensions",
        0o644,
        extension::about(&os)?,
        Origin::Generated,
    );
    for dir in &options.overlays {
        compose::overlay(&mut tree, dir)?;
    }
    compose::apply_removals(&mut tree);
    compose::only_usr(&mut tree);
    let initrd = initrd(&os, &tree, &kernel, &aliases, &programs.init)?;
    let base = fs::read_to_string(os.join("cmdline"))?;
    let base = std::iter::once(base.trim().to_owned())
        .chain(options.cmdline.iter().cloned())
        .collect::<Vec<_>>()
        .join(" ");
    let kernel_part = kernel_part(&vmlinuz, &initrd, &base);
    tree.file(
        release::KERNEL_FILE,
        0o644,
        format!("{kernel_part}\n"),
        Origin::Generated,
    );
    let usr = tree.subtree("usr");

    say("making the file system image and its hash tree");
    let erofs = dir.join("usr.erofs");
    let created = crate::inputs::source_date(&options.repo);
    let uuid =
        uuid::Uuid::from_bytes(Sha256::of(format!("orlop-usr-{version}")).0[..16].try_into()?);
    tools::mkfs_erofs(&tools, &usr, &uuid, created, dir, &erofs)?;
    let hashes = verity::build(&mut std::io::BufReader::with_capacity(
        1 << 20,
        fs::File::open(&erofs)?,
    ))?;
    fs::write(dir.join("usr.verity"), hashes.image())?;
    let root_hash = hashes.root;

    say("making the initrd and the kernel image");
    let cmdline = format!("usrhash={root_hash} {base}");
    let stub = fs::read(tools.path("usr/lib/systemd/boot/efi/linuxx64.efi.stub"))?;
    let image = uki::build(&uki::Parts {
        stub: &stub,
        os_release: &compose::os_release(&version, epoch),
        cmdline: &cmdline,
        uname: &kernel,
        initrd: &initrd,
        kernel: &vmlinuz,
    })?;
    fs::write(dir.join("uki.efi"), &image)?;
    fs::write(dir.join("vmlinuz"), &vmlinuz)?;
    fs::write(dir.join("initrd.img"), &initrd)?;
    fs::write(dir.join("cmdline"), &cmdline)?;

    let mut extensions = Vec::new();
    let base_packages = packages.controls.len();
    let mut controls = packages.controls;
    for fetched in &fetched.extensions {
        say(&format!("making the extension {}", fetched.name));
        let release = extension::Release {
            os: &os,
            tools: &tools,
            version: &version,
            created,
            base: &tree,
            level: options.level,
            dir,
        };
        let (made, more) = extension::build(&release, fetched)?;
        extensions.push(made);
        // Two extensions may need the same.
        for control in more {
            if controls.iter().all(|it| it.package != control.package) {
                controls.push(control);
            }
        }
    }

    say("compressing the download");
    compress(&erofs, dir, &hashes, options.level)?;

    say("writing manifest and bill of materials");
    let bill = sbom::document(&sbom::Subject {
        version: &version,
        created: &crate::inputs::rfc3339(created),
        tree: &tree,
        packages: &controls,
        crates: &sbom::crates_of_lock(&fs::read_to_string(options.repo.join("Cargo.lock"))?),
    });
    fs::write(
        dir.join("sbom.spdx.json"),
        serde_json::to_vec_pretty(&bill)?,
    )?;
    fs::write(dir.join("contents.txt"), contents(&tree, &os)?)?;
    let manifest = Manifest {
        format: Manifest::FORMAT,
        version: options.version.clone(),
        epoch,
        minimum_source_version: options.minimum_source_version.clone(),
        architecture: "x86-64".into(),
        created,
        usr: release::Usr {
            root_hash: Sha256(root_hash.0),
            size: fs::metadata(&erofs)?.len(),
            payload: release::Payload {
                file: published(dir, "usr.erofs.zst")?,
                compression: release::Compression::Zstd,
            },
            index: Some(published(dir, "usr.index")?),
        },
        uki: published(dir, "uki.efi")?,
        kernel: Some(kernel_part),
        deltas: Vec::new(),
        extensions,
        sbom: Some(published(dir, "sbom.spdx.json")?),
    };
    fs::write(
        dir.join(release::MANIFEST_FILE),
        Envelope::sign(&manifest, &key)?.to_json()?,
    )?;

    say("making the disk image");
    let boot = tools.path("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    diskimg::write(dir, &fs::read(boot)?, &image, root_hash)?;
    diskimg::to_qcow2(&dir.join("disk.raw"), &dir.join("disk.qcow2"))?;

    let mut summary = Summary {
        version: options.version.clone(),
        epoch,
        path: out.clone(),
        usr_bytes: manifest.usr.size,
        download_bytes: manifest.download_size(),
        uki_bytes: manifest.uki.size,
        root_hash: root_hash.to_string(),
        packages: base_packages,
        extensions: manifest
            .extensions
            .iter()
            .map(ExtensionSummary::of)
            .collect(),
        kernel,
        unchanged: false,
        seconds: start.elapsed().as_secs_f64(),
    };
    fs::write(
        dir.join("summary.json"),
        serde_json::to_vec_pretty(&summary)?,
    )?;
    fs::write(dir.join("inputs"), inputs)?;
    work.finish(&out)?;
    summary.path = out;
    Ok(summary)
}

/// Names what only a whole reboot replaces. Modules go with their kernel: it takes no others.
fn kernel_part(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Sha256 {
    Sha256::of(format!(
        "kernel {}\ninitrd {}\ncmdline {cmdline}\n",
        Sha256::of(kernel),
        Sha256::of(initrd)
    ))
}

/// The root that the release's hosts start from. A named repository is only read: its keys may be
/// far away.
fn tuf_root(options: &BuildOptions) -> Result<Vec<u8>> {
    let (life, now) = (Lifetimes::default(), jiff::Timestamp::now());
    let repository = match &options.tuf {
        Some(dir) => Repository::open(dir, None, life)?,
        None => {
            let lab = Repository::open_or_init(&options.lab.join("tuf"), None, life, now)?;
            lab.renew(now)?;
            lab
        }
    };
    let path = repository.root_file()?;
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Files of a release directory that tell of the build rather than of the release.
const ABOUT_THE_BUILD: &[&str] = &["summary.json", "inputs"];

/// Builds the release a second time, elsewhere, and compares every file. Returns the names of those
/// that differ.
pub fn reproduce(options: &BuildOptions, say: Say<'_>) -> Result<Vec<String>> {
    let first = options
        .lab
        .join("releases")
        .join(options.version.to_string());
    let again = BuildOptions {
        directory: Some(format!("{}.again", options.version)),
        force: true,
        ..options.clone()
    };
    let second = build(&again, say)?.path;
    say("comparing");
    let mut differing = Vec::new();
    let mut compared = 0;
    for entry in fs::read_dir(&first)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if ABOUT_THE_BUILD.contains(&name.as_str()) {
            continue;
        }
        compared += 1;
        let there = second.join(&name);
        if !there.exists()
            || crate::lock::sha256_file(&first.join(&name))? != crate::lock::sha256_file(&there)?
        {
            differing.push(name);
        }
    }
    anyhow::ensure!(
        compared > 5,
        "{} holds no release to compare",
        first.display()
    );
    fs::remove_dir_all(&second)?;
    Ok(differing)
}

/// Reads the summary of a finished release.
pub fn summary(release: &Path) -> Result<Summary> {
    let path = release.join("summary.json");
    let text = fs::read(&path).with_context(|| {
        format!(
            "{} is no finished release; build one with `orlop build`",
            release.display()
        )
    })?;
    let mut summary: Summary =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    summary.path = release.to_path_buf();
    Ok(summary)
}

fn unpack_tools(cache: &Path, fetched: &Fetched, say: Say<'_>) -> Result<Tools> {
    let dir = std::path::absolute(cache.join(format!("tools-{}", fetched.tools_digest)))?;
    if !dir.exists() {
        say("unpacking the build tools");
        let part = dir.with_extension("part");
        let _ = fs::remove_dir_all(&part);
        let mut tree = Tree::default();
        for deb in &fetched.tools {
            crate::deb::read(deb, &mut tree)?;
        }
        tree.unpack(&part)?;
        fs::rename(&part, &dir)?;
    }
    Ok(Tools::new(dir))
}

fn initrd(os: &Path, tree: &Tree, kernel: &str, aliases: &str, init: &Path) -> Result<Vec<u8>> {
    let wanted = lists::read(&os.join("initrd-modules"))?;
    let plan = modules::initrd_plan(tree, kernel, &wanted, aliases)?;
    let mut files = Tree::default();
    let init = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    files.file("init", 0o755, init, Origin::Crate("init".into()));
    let mut list = String::new();
    for load in &plan {
        let name = load.path.rsplit('/').next().unwrap_or_default();
        if load.from_usr {
            list.push_str(&format!("/usr-image/lib/modules/{kernel}/{}", load.path));
        } else {
            let data = tree.read(&format!("usr/lib/modules/{kernel}/{}", load.path))?;
            files.file(
                &format!("modules/{name}"),
                0o644,
                data.to_vec(),
                Origin::Generated,
            );
            list.push_str(name);
        }
        for alias in &load.aliases {
            list.push(' ');
            list.push_str(alias);
        }
        list.push('\n');
    }
    files.file("modules.conf", 0o644, list, Origin::Generated);
    let mut archive = Vec::new();
    cpio::write(&files, &mut archive)?;
    Ok(zstd::encode_all(&archive[..], 19)?)
}

/// The image in frames, and the index that says which of them a host needs.
fn compress(erofs: &Path, dir: &Path, tree: &verity::Tree, level: i32) -> Result<()> {
    use delta::frames::{self, FRAME_SIZE};
    let mut image = fs::File::open(erofs)?;
    let size = image.metadata()?.len();
    let mut packed = std::io::BufWriter::new(fs::File::create(dir.join("usr.erofs.zst"))?);
    let lengths = frames::compress(&mut image, &mut packed, FRAME_SIZE, level)?;
    packed.into_inner()?.sync_all()?;
    let hashes = tree.leaves().to_vec();
    let index = delta::reuse::BlockIndex::new(FRAME_SIZE, size, lengths, hashes);
    fs::write(dir.join("usr.index"), index.to_bytes())?;
    Ok(())
}

pub(crate) fn published(dir: &Path, name: &str) -> Result<release::File> {
    let path = dir.join(name);
    Ok(release::File {
        name: name.parse()?,
        size: fs::metadata(&path)?.len(),
        sha256: crate::lock::sha256_file(&path)?.parse()?,
    })
}

/// What is in the image and why, for people: packages by size with the reason from `os/packages`.
fn contents(tree: &Tree, os: &Path) -> Result<String> {
    use std::fmt::Write as _;
    let why: std::collections::BTreeMap<String, String> = lists::read(&os.join("packages"))?
        .into_iter()
        .map(|i| (i.name, i.why))
        .collect();
    let mut sizes = std::collections::BTreeMap::<String, u64>::new();
    for (_, entry) in tree.iter() {
        let owner = match &entry.origin {
            Origin::Package(name) => name.to_string(),
            Origin::Crate(name) => format!("(crate {name})"),
            Origin::Overlay => "(os/rootfs)".to_owned(),
            Origin::Generated => "(generated)".to_owned(),
        };
        if let crate::tree::Node::File { data, .. } = &entry.node {
            *sizes.entry(owner).or_default() += data.len() as u64;
        }
    }
    let mut rows: Vec<_> = sizes.into_iter().collect();
    rows.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), name.clone()));
    let mut text = String::from("# KiB  package  why\n");
    for (name, size) in rows {
        let reason = why.get(&name).map_or(
            if name.starts_with('(') {
                "ours"
            } else {
                "a dependency"
            },
            |w| w,
        );
        writeln!(text, "{:>7}  {name:<36} {reason}", size / 1024)?;
    }
    Ok(text)
}

/// A directory that is removed again unless it is finished.
struct Part {
    path: PathBuf,
    done: bool,
}

impl Part {
    fn new(releases: &Path, name: &str) -> Result<Self> {
        let path = std::path::absolute(releases.join(format!("{name}.part")))?;
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, done: false })
    }

    fn finish(mut self, to: &Path) -> Result<()> {
        let old = to.with_extension("old");
        let _ = fs::remove_dir_all(&old);
        if to.exists() {
            fs::rename(to, &old)?;
        }
        fs::rename(&self.path, to).with_context(|| format!("cannot finish {}", to.display()))?;
        let _ = fs::remove_dir_all(&old);
        self.done = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
