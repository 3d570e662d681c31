//! Every write of a machine recorded, and its disk judged as it was at each flush: what a power cut there
//! would have left.

mod judge;
mod log;

use std::fs::{self, File};
use std::io::{BufReader, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use disk::verity::RootHash;

pub use judge::Looks;
pub use log::{Entry, Log};

use crate::interrupt;
use crate::lab::Release;
use crate::plan::DISK;
use crate::process;
use judge::{Judge, Known};

/// In a node's directory: everything that is written to its disk, from now on.
pub const WRITES: &str = "writes.log";
/// The disk as it was when that began.
const BEFORE: &str = "before.raw";

/// From its next start on, what the machine writes is recorded.
pub fn record(dir: &Path) -> Result<()> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]);
    convert.arg(dir.join(DISK)).arg(dir.join(BEFORE));
    process::check(&mut convert, Duration::from_secs(300)).context("cannot copy the disk")?;
    File::create(dir.join(WRITES)).context("cannot make the log")?;
    Ok(())
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// How often was looked.
    pub looks: Looks,
    /// Entries of the log, and the bytes that they wrote.
    pub entries: u64,
    /// In bytes.
    pub bytes: u64,
    /// The versions that could be started, each time that they changed.
    pub bootable: Vec<Vec<String>>,
}

/// Writes it all again, and judges the disk at every flush. Both files are gone afterwards.
pub fn replay(dir: &Path, releases: &[Release], limit: Duration) -> Result<Replayed> {
    let end = Instant::now() + limit;
    let known: Vec<Known> = releases.iter().map(known).collect::<Result<_>>()?;
    let path = dir.join(BEFORE);
    let mut disk = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .context("nothing was recorded; say record = true before the machine starts")?;
    let log = File::open(dir.join(WRITES)).context("cannot open the log")?;
    let mut log = Log::open(BufReader::new(log))?;
    let mut judge = Judge::new(&mut disk, &known)?;
    let mut replayed = Replayed {
        looks: Looks::default(),
        entries: 0,
        bytes: 0,
        bootable: vec![judge.look(&disk).context("before the first write")?],
    };
    while let Some(entry) = log.entry()? {
        replayed.entries += 1;
        let at = || format!("at entry {} of the log", replayed.entries);
        if entry.length > 0 && !entry.discard {
            disk.seek(SeekFrom::Start(entry.offset))?;
            log.data(&entry, &mut disk).with_context(at)?;
            judge.wrote(entry.offset..entry.offset + entry.length);
            replayed.bytes += entry.length;
        }
        // What was discarded may be anything: zeros at worst.
        if entry.discard {
            punch(&disk, &entry)?;
            judge.wrote(entry.offset..entry.offset + entry.length);
        }
        if entry.flush || entry.fua {
            interrupt::check()?;
            ensure!(
                Instant::now() < end,
                "no end after {} s, at entry {} of the log",
                limit.as_secs(),
                replayed.entries
            );
            let bootable = judge.look(&disk).with_context(at)?;
            if replayed.bootable.last() != Some(&bootable) {
                replayed.bootable.push(bootable);
            }
        }
    }
    replayed.looks = judge.looks;
    for file in [BEFORE, WRITES] {
        fs::remove_file(dir.join(file)).context("cannot clean up")?;
    }
    Ok(replayed)
}

fn punch(disk: &File, entry: &Entry) -> Result<()> {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(disk, flags, entry.offset, entry.length).context("cannot discard")
}

fn known(release: &Release) -> Result<Known> {
    let cmdline = release.cmdline()?;
    let root = cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix("usrhash="));
    let root_hash: RootHash = root.context("the command line has no usrhash=")?.parse()?;
    let uki = release.dir.join("uki.efi");
    let uki = fs::read(&uki).with_context(|| format!("cannot read {}", uki.display()))?;
    ensure!(uki.starts_with(b"MZ"), "its UKI is no program");
    Ok(Known {
        version: release.version.clone(),
        uki,
        root_hash,
    })
}
