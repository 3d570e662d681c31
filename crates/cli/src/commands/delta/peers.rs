//! What others need for the same two images, measured in the same run.
//!
//! OSTree updates trees of files. It stands here for what its users download: it cannot make an image
//! again whose every byte hangs from a root hash.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Row;
use super::measure::{Measured, measured};
use crate::progress::Step;

/// How an image is written that is there already.
#[derive(Clone, Copy)]
pub(super) enum Plain {
    /// As programs do.
    Cached,
    /// As a delta is applied.
    Direct,
}

/// To a new file that then takes the place of the old one, as a delta is applied.
pub(super) fn plain_write(image: &Path, out: &Path, how: Plain) -> Result<Measured> {
    let part = out.with_extension("part");
    let how: &[&str] = match how {
        Plain::Cached => &["bs=1M"],
        Plain::Direct => &["bs=4M", "oflag=direct"],
    };
    let written = measured(
        Command::new("dd")
            .arg(format!("if={}", image.display()))
            .arg(format!("of={}", part.display()))
            .args(how)
            .args(["conv=fsync", "status=none"]),
    )?;
    fs::rename(&part, out)?;
    Ok(written)
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

pub(super) fn measure(
    old: &Path,
    new: &Path,
    work: &Path,
    level: i32,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let peers: [(&str, &str, Peer); 6] = [
        ("zstd, one stream", "zstd", whole_zstd),
        ("zstd --patch-from", "zstd", patch_from),
        ("xdelta3 -9", "xdelta3", xdelta),
        ("casync, chunks of 64 KiB", "casync", casync),
        ("ostree pull, files", "ostree", ostree_pull),
        ("ostree static delta, files", "ostree", ostree_delta),
    ];
    for (way, program, peer) in peers {
        let mut row = Row {
            way: way.into(),
            download_bytes: None,
            make: None,
            apply: None,
            note: None,
        };
        if is_there(program) {
            let step = Step::begin(way);
            peer(&mut row, old, new, work, level)?;
            step.done(&crate::output::megabytes(row.download_bytes.unwrap_or(0)));
        } else {
            row.note = Some(format!("not measured: apt-get install {program}"));
        }
        rows.push(row);
    }
    Ok(())
}

type Peer = fn(&mut Row, &Path, &Path, &Path, i32) -> Result<()>;

fn same(new: &Path, out: &Path) -> Result<()> {
    let status = Command::new("cmp").arg("-s").args([new, out]).status()?;
    ensure!(
        status.success(),
        "{} is not {}",
        out.display(),
        new.display()
    );
    fs::remove_file(out)?;
    Ok(())
}

fn whole_zstd(row: &mut Row, _: &Path, new: &Path, work: &Path, level: i32) -> Result<()> {
    let (packed, out) = (work.join("peer.zst"), work.join("peer.out"));
    let zstd = || {
        let mut command = Command::new("zstd");
        command.args(["-q", "-f"]);
        command
    };
    let level = format!("-{level}");
    row.make = Some(measured(
        zstd().args([&level, "-T2"]).arg(new).arg("-o").arg(&packed),
    )?);
    row.download_bytes = Some(fs::metadata(&packed)?.len());
    row.apply = Some(measured(zstd().arg("-d").arg(&packed).arg("-o").arg(&out))?);
    same(new, &out)
}

fn patch_from(row: &mut Row, old: &Path, new: &Path, work: &Path, level: i32) -> Result<()> {
    let (packed, out) = (work.join("peer.patch"), work.join("peer.out"));
    let zstd = || {
        let mut command = Command::new("zstd");
        command.args(["-q", "-f", "--long=31"]);
        command.arg(format!("--patch-from={}", old.display()));
        command
    };
    row.make = Some(measured(
        zstd()
            .arg(format!("-{level}"))
            .arg(new)
            .arg("-o")
            .arg(&packed),
    )?);
    row.download_bytes = Some(fs::metadata(&packed)?.len());
    row.apply = Some(measured(
        zstd()
            .args(["-d", "--memory=2048MB"])
            .arg(&packed)
            .arg("-o")
            .arg(&out),
    )?);
    same(new, &out)
}

fn xdelta(row: &mut Row, old: &Path, new: &Path, work: &Path, _: i32) -> Result<()> {
    let (packed, out) = (work.join("peer.vcdiff"), work.join("peer.out"));
    // A window that holds the whole old image: its best, at the price of that much memory.
    let window = fs::metadata(old)?.len().next_power_of_two().min(1 << 31);
    let xdelta = |verb: &str| {
        let mut command = Command::new("xdelta3");
        command
            .args([verb, "-f", "-9", "-B"])
            .arg(window.to_string());
        command.arg("-s").arg(old);
        command
    };
    row.make = Some(measured(xdelta("-e").arg(new).arg(&packed))?);
    row.download_bytes = Some(fs::metadata(&packed)?.len());
    row.apply = Some(measured(xdelta("-d").arg(&packed).arg(&out))?);
    same(new, &out)
}

fn casync(row: &mut Row, old: &Path, new: &Path, work: &Path, _: i32) -> Result<()> {
    let store = |name: &str| work.join(format!("{name}.castr"));
    let make = |image: &Path, name: &str| {
        let index = work.join(format!("{name}.caibx"));
        let result = measured(
            Command::new("casync")
                .args(["make", "--chunk-size=65536"])
                .arg(format!("--store={}", store(name).display()))
                .args([&index, image]),
        );
        result.map(|measured| (measured, index))
    };
    let (_, old_index) = make(old, "old")?;
    let (made, index) = make(new, "new")?;
    row.make = Some(made);
    let mut bytes = fs::metadata(&index)?.len();
    let mut chunks = 0;
    for dir in fs::read_dir(store("new"))?.flatten() {
        for chunk in fs::read_dir(dir.path())?.flatten() {
            let name = Path::new(&dir.file_name()).join(chunk.file_name());
            if !store("old").join(name).exists() {
                bytes += chunk.metadata()?.len();
                chunks += 1;
            }
        }
    }
    row.download_bytes = Some(bytes);
    row.note = Some(format!("{chunks} requests"));
    let out = work.join("peer.out");
    row.apply = Some(measured(
        Command::new("casync")
            .arg("extract")
            .arg(format!("--store={}", store("new").display()))
            .arg(format!("--seed={}", old.display()))
            .args([&index, &out]),
    )?);
    fs::remove_file(old_index)?;
    same(new, &out)
}

/// Two commits of the trees in the images: in a publisher's repository, and the older one in a host's.
struct Ostree {
    publisher: PathBuf,
    host: PathBuf,
    commits: [String; 2],
    /// What the publisher had before the newer commit.
    before: BTreeSet<PathBuf>,
    made: Measured,
}

const BRANCH: &str = "usr";

impl Ostree {
    fn new(old: &Path, new: &Path, work: &Path) -> Result<Self> {
        let dir = work.join("ostree");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let (publisher, host) = (dir.join("publisher"), dir.join("host"));
        run(ostree(&publisher).args(["init", "--mode=archive"]))?;
        run(ostree(&host).args(["init", "--mode=bare-user"]))?;
        let commit = |image: &Path, name: &str| -> Result<(String, Measured)> {
            let tree = dir.join(name);
            let mut extract = Command::new("fsck.erofs");
            extract
                .arg(format!("--extract={}", tree.display()))
                .arg(image)
                .stdout(Stdio::null());
            run(&mut extract).context("apt-get install erofs-utils")?;
            let made = measured(
                ostree(&publisher)
                    .arg("commit")
                    .arg(format!("--branch={BRANCH}"))
                    .arg(format!("--tree=dir={}", tree.display()))
                    .stdout(Stdio::null()),
            )?;
            fs::remove_dir_all(&tree)?;
            let output = ostree(&publisher).args(["rev-parse", BRANCH]).output()?;
            let id = String::from_utf8(output.stdout)?.trim().to_owned();
            Ok((id, made))
        };
        let (old_commit, _) = commit(old, "old")?;
        run(ostree(&host)
            .arg("pull-local")
            .args([&publisher, Path::new(BRANCH)]))?;
        let before = objects(&publisher)?;
        let (new_commit, made) = commit(new, "new")?;
        Ok(Self {
            publisher,
            host,
            commits: [old_commit, new_commit],
            before,
            made,
        })
    }

    fn done(self, work: &Path) -> Result<()> {
        let id = &self.commits[1];
        run(ostree(&self.host).arg("fsck").arg("-q"))?;
        let has = ostree(&self.host).args(["show", id]).output()?;
        ensure!(has.status.success(), "ostree did not bring commit {id}");
        fs::remove_dir_all(work.join("ostree"))?;
        Ok(())
    }
}

fn ostree_pull(row: &mut Row, old: &Path, new: &Path, work: &Path, _: i32) -> Result<()> {
    let it = Ostree::new(old, new, work)?;
    row.make = Some(it.made);
    let (mut bytes, mut files) = (0, 0);
    for object in objects(&it.publisher)?.difference(&it.before) {
        bytes += fs::metadata(object)?.len();
        files += 1;
    }
    row.download_bytes = Some(bytes);
    row.note = Some(format!("{files} requests"));
    row.apply = Some(measured(
        ostree(&it.host)
            .arg("pull-local")
            .args([&it.publisher, Path::new(BRANCH)])
            .stdout(Stdio::null()),
    )?);
    it.done(work)
}

fn ostree_delta(row: &mut Row, old: &Path, new: &Path, work: &Path, _: i32) -> Result<()> {
    let it = Ostree::new(old, new, work)?;
    let file = work.join("ostree/delta");
    let [from, to] = &it.commits;
    row.make = Some(measured(
        ostree(&it.publisher)
            .args([
                "static-delta",
                "generate",
                "--inline",
                "--min-fallback-size=0",
            ])
            .arg(format!("--from={from}"))
            .arg(format!("--to={to}"))
            .arg(format!("--filename={}", file.display()))
            .stdout(Stdio::null()),
    )?);
    row.download_bytes = Some(fs::metadata(&file)?.len());
    row.apply = Some(measured(
        ostree(&it.host)
            .args(["static-delta", "apply-offline"])
            .arg(&file)
            .stdout(Stdio::null()),
    )?);
    it.done(work)
}

fn ostree(repo: &Path) -> Command {
    let mut command = Command::new("ostree");
    command.arg(format!("--repo={}", repo.display()));
    command
}

/// What it prints does not belong into our report.
fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn objects(repo: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for dir in fs::read_dir(repo.join("objects"))?.flatten() {
        for object in fs::read_dir(dir.path())?.flatten() {
            found.insert(object.path());
        }
    }
    Ok(found)
}
