//! `orlop release delta` and `orlop release patch`

mod measure;
mod peers;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use delta::make::Names;
use delta::reuse::{BlockIndex, Have};
use delta::{Patch, frames};
use disk::io::{Aligned, Placed, fill};
use disk::verity::{self, Tree};
use serde::Serialize;

use self::measure::{Measured, measured, own_peak};
use self::peers::Plain;
use super::lab;
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::progress::Step;

/// Make the delta from one release to another, and show what each way to update costs
///
/// OLD and NEW are versions that `orlop build` made, or directories with usr.erofs and uki.efi.
#[derive(clap::Args)]
pub struct DeltaArgs {
    old: String,
    new: String,
    /// Put the delta into NEW's manifest and sign it again (publishing does it by itself)
    #[arg(long)]
    add: bool,
    /// Sign with this key (PEM) instead of the lab's own
    #[arg(long, value_name = "FILE", requires = "add")]
    key: Option<PathBuf>,
    /// Also measure casync, ostree, xdelta3 and zstd, as far as they are installed (takes minutes)
    #[arg(long)]
    peers: bool,
    /// zstd level of the whole image
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Size of the frames of the whole image, in KiB
    #[arg(long, default_value_t = 128, hide = true)]
    frame: usize,
    /// Keep the made files here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Apply a delta by hand: what a host does to its slot, with a file
#[derive(clap::Args)]
pub struct PatchArgs {
    /// The image that the delta was made from
    old: PathBuf,
    delta: PathBuf,
    /// Where the new image goes
    new: PathBuf,
}

/// How often applying and plain writing are measured.
const ROUNDS: usize = 5;

/// One way, and what it costs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub way: String,
    pub download_bytes: Option<u64>,
    /// On the machine that publishes.
    pub make: Option<Measured>,
    /// On the host.
    pub apply: Option<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    old_bytes: u64,
    new_bytes: u64,
    rows: Vec<Row>,
    uki_bytes: u64,
    uki_delta_bytes: u64,
    segments: Segments,
}

/// What became of the segments of the delta.
#[derive(Debug, Serialize)]
struct Segments {
    copied: usize,
    zstd: usize,
    bsdiff: usize,
    copied_bytes: u64,
}

/// What is written at once, as by the host's writer.
const WRITE: usize = 4 << 20;

pub fn patch(args: &PatchArgs) -> Result<Exit> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let patch = Patch::open(open(&args.delta)?)
        .with_context(|| format!("{} cannot be applied", args.delta.display()))?;
    let mut reader = patch.apply(open(&args.old)?)?.ahead()?;
    let mut name = args.new.clone().into_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut write = || -> Result<u64> {
        let file =
            File::create(&part).with_context(|| format!("cannot create {}", part.display()))?;
        let mut out = Placed::direct(&file)?;
        let mut buffer = Aligned::new(WRITE);
        let mut written = 0;
        loop {
            let len = fill(&mut reader, &mut buffer)?;
            if len == 0 {
                break;
            }
            out.write_all(&buffer[..len])?;
            written += len as u64;
        }
        file.sync_all()?;
        fs::rename(&part, &args.new)?;
        Ok(written)
    };
    match write() {
        Ok(written) => {
            println!("{}: {}", args.new.display(), output::megabytes(written));
            Ok(Exit::Ok)
        }
        Err(e) => {
            let _ = fs::remove_file(&part);
            Err(e.context(format!("applying {}", args.delta.display())))
        }
    }
}

/// A version of the lab, or a directory.
fn directory(name: &str) -> Result<PathBuf> {
    if Path::new(name).join("usr.erofs").exists() {
        return Ok(name.into());
    }
    let release = super::releases::find(&lab()?, Some(name))?;
    ensure!(
        release.usr().exists(),
        "{} has no usr.erofs",
        release.dir.display()
    );
    Ok(release.dir)
}

fn tree_of(image: &Path) -> Result<Tree> {
    let file = File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
    Ok(verity::build(&mut io::BufReader::with_capacity(
        1 << 20,
        file,
    ))?)
}

pub fn run(args: &DeltaArgs) -> Result<Exit> {
    let (old, new) = (directory(&args.old)?, directory(&args.new)?);
    if args.add {
        let step = Step::begin("make the delta");
        let delta = image::deltas::from_release(&old, &new, &|done, total| {
            step.detail(&percent(done, total));
        })?;
        step.done(&output::megabytes(delta.usr.size));
        let key = image::keys::load_or_create(lab()?.root(), args.key.as_deref())?;
        let id = image::deltas::add(&new, &[delta], &key)?;
        eprintln!(
            "The manifest of {} is signed again: {}",
            new.display(),
            id.short()
        );
        return Ok(Exit::Ok);
    }
    let temporary = tempfile::Builder::new().prefix("orlop-delta-").tempdir()?;
    let work = args
        .keep
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let report = measure_all(args, &old, &new, &work)?;
    output::print(args.output.output, &report, text)?;
    Ok(Exit::Ok)
}

fn percent(done: u64, total: u64) -> String {
    format!("{} %", done * 100 / total.max(1))
}

fn measure_all(args: &DeltaArgs, old: &Path, new: &Path, work: &Path) -> Result<Report> {
    let (old_usr, new_usr) = (old.join("usr.erofs"), new.join("usr.erofs"));
    let size = |path: &Path| -> Result<u64> {
        let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(meta.len())
    };
    let new_bytes = size(&new_usr)?;
    let mut rows = Vec::new();

    // First, because the peak of our own memory never goes down again.
    let delta = work.join("usr.delta");
    let (old_tree, new_tree) = (tree_of(&old_usr)?, tree_of(&new_usr)?);
    let step = Step::begin("delta");
    let begin = Instant::now();
    let names = Names {
        source: old_tree.root.0,
        target: new_tree.root.0,
    };
    let made = image::deltas::between(&old_usr, &new_usr, names, &delta, &|done, total| {
        step.detail(&percent(done, total));
    })?;
    let make = Measured {
        seconds: begin.elapsed().as_secs_f64(),
        peak_bytes: own_peak(),
    };
    step.done(&output::megabytes(made.size));
    let out = work.join("usr.out");
    // In turn, as the disk has other work at times.
    let step = Step::begin("apply it, and write the image plainly");
    let (mut applied, mut cached, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let this = std::env::current_exe()?;
        let mut patch = Command::new(this);
        applied.push(measured(
            patch
                .args(["release", "patch"])
                .args([&old_usr, &delta, &out]),
        )?);
        ensure!(
            tree_of(&out)?.root == new_tree.root,
            "the applied delta is not the new image"
        );
        cached.push(peers::plain_write(&new_usr, &out, Plain::Cached)?);
        direct.push(peers::plain_write(&new_usr, &out, Plain::Direct)?);
    }
    let apply = Measured::median(applied);
    let (cached, direct) = (Measured::median(cached), Measured::median(direct));
    let times = format!(
        "{:.2} times the plain write, {:.2} times the direct one",
        apply.seconds / cached.seconds,
        apply.seconds / direct.seconds
    );
    step.done(&times);
    rows.push(Row {
        way: "delta".into(),
        download_bytes: Some(made.size),
        make: Some(make),
        apply: Some(apply),
        note: Some(times),
    });

    let uki_delta = work.join("uki.delta");
    let (old_uki, new_uki) = (old.join("uki.efi"), new.join("uki.efi"));
    let names = Names {
        source: [0; 32],
        target: [0; 32],
    };
    let uki = image::deltas::between(&old_uki, &new_uki, names, &uki_delta, &|_, _| ())?;

    let step = Step::begin("whole image in frames");
    let begin = Instant::now();
    let packed = work.join("usr.erofs.zst");
    let lengths = frames::compress(
        &mut File::open(&new_usr)?,
        &mut io::BufWriter::new(File::create(&packed)?),
        args.frame << 10,
        args.level,
    )?;
    let seconds = begin.elapsed().as_secs_f64();
    let frames_bytes = size(&packed)?;
    step.done(&output::megabytes(frames_bytes));
    let index = BlockIndex::new(
        args.frame << 10,
        new_bytes,
        lengths,
        new_tree.leaves().to_vec(),
    );
    let missing = index.missing(&Have::new(old_tree.leaves()));
    let blocks: u64 = missing.iter().map(|range| range.end - range.start).sum();
    rows.push(Row {
        way: "blocks that are not here".into(),
        download_bytes: Some(blocks + index.to_bytes().len() as u64),
        make: None,
        apply: None,
        note: Some(format!("{} requests", missing.len())),
    });
    rows.push(Row {
        way: format!("whole image, frames of {} KiB", args.frame),
        download_bytes: Some(frames_bytes),
        make: Some(Measured {
            seconds,
            peak_bytes: None,
        }),
        apply: None,
        note: None,
    });
    for (way, written) in [
        ("plain write of the image", cached),
        ("the same past the page cache", direct),
    ] {
        rows.push(Row {
            way: way.into(),
            download_bytes: Some(new_bytes),
            make: None,
            apply: Some(written),
            note: None,
        });
    }
    if args.peers {
        peers::measure(&old_usr, &new_usr, work, args.level, &mut rows)?;
    }
    io::stderr().flush()?;
    Ok(Report {
        old_bytes: size(&old_usr)?,
        new_bytes,
        rows,
        uki_bytes: size(&new_uki)?,
        uki_delta_bytes: uki.size,
        segments: Segments {
            copied: made.copied,
            zstd: made.zstd,
            bsdiff: made.bsdiff,
            copied_bytes: made.copied_bytes,
        },
    })
}

fn text(report: &Report) -> String {
    let time = |it: &Option<Measured>| {
        it.as_ref()
            .map_or("–".into(), |it| format!("{:.1} s", it.seconds))
    };
    let memory = |it: &Option<Measured>| {
        let peak = it.as_ref().and_then(|it| it.peak_bytes);
        peak.map_or("–".into(), output::megabytes)
    };
    let cells = |row: &Row| {
        vec![
            row.way.clone(),
            row.download_bytes.map_or("–".into(), output::megabytes),
            time(&row.make),
            memory(&row.make),
            time(&row.apply),
            memory(&row.apply),
            row.note.clone().unwrap_or_default(),
        ]
    };
    let head = ["WAY", "DOWNLOAD", "MAKE", "MEMORY", "APPLY", "MEMORY", ""];
    let rows: Vec<_> = report.rows.iter().map(cells).collect();
    let segments = &report.segments;
    format!(
        "/usr from {} to {}\n\n{}\nSegments of the delta: {} by bsdiff, {} by zstd, {} all copied; {} are blocks of the old image.\nUKI: {}, as a delta {}.\n",
        output::megabytes(report.old_bytes),
        output::megabytes(report.new_bytes),
        output::table(&head, &rows),
        segments.bsdiff,
        segments.zstd,
        segments.copied,
        output::megabytes(segments.copied_bytes),
        output::megabytes(report.uki_bytes),
        output::megabytes(report.uki_delta_bytes),
    )
}

/// The deltas that a release about to be published is given: from the newest `most` releases that
/// the server has and this lab still holds.
pub fn add_deltas(
    lab: &vm::lab::Lab,
    release: &vm::lab::Release,
    published: &[update_server::api::Release],
    most: usize,
    key: Option<&Path>,
) -> Result<usize> {
    let manifest = image::deltas::manifest(&release.dir)?;
    let mut older: Vec<_> = published
        .iter()
        .filter(|it| it.version < manifest.version && it.architecture == manifest.architecture)
        .collect();
    older.sort_by(|a, b| b.version.cmp(&a.version));
    older.truncate(most);
    if older.is_empty() {
        return Ok(0);
    }
    let key = image::keys::load_or_create(lab.root(), key)?;
    if key_is_strange(&release.dir, &key)? {
        bail!(
            "{} was signed with another key: give it with --key, or publish with --deltas 0",
            release.dir.display()
        );
    }
    let mut deltas = Vec::new();
    for old in older {
        let dir = lab.release(&old.version.to_string()).dir;
        let here = image::deltas::manifest(&dir).ok();
        // A delta from another build of that version would fit no host.
        let Some(here) = here.filter(|m| m.uki.size == old.uki_size && m.usr.size == old.usr_size)
        else {
            eprintln!(
                "  no delta from {}: its files are not in {}",
                old.version,
                dir.display()
            );
            continue;
        };
        if here.usr.root_hash == manifest.usr.root_hash
            || manifest.delta_from(here.usr.root_hash).is_some()
        {
            continue;
        }
        let step = Step::begin(&format!("delta from {}", old.version));
        let delta = image::deltas::from_release(&dir, &release.dir, &|done, total| {
            step.detail(&percent(done, total));
        })?;
        let uki = delta
            .uki
            .as_ref()
            .map_or(manifest.uki.size, |uki| uki.file.size);
        step.done(&output::megabytes(delta.usr.size + uki));
        deltas.push(delta);
    }
    if deltas.is_empty() {
        return Ok(0);
    }
    image::deltas::add(&release.dir, &deltas, &key)?;
    Ok(deltas.len())
}

/// Signing again with another key would make hosts refuse the release.
fn key_is_strange(dir: &Path, key: &release::keys::SigningKey) -> Result<bool> {
    let bytes = fs::read(dir.join(release::MANIFEST_FILE))?;
    Ok(release::dsse::Envelope::verify(&bytes, &[key.verifying_key()]).is_err())
}
