//! From a checked payload to a bootable slot: what `disk::stage` needs from us.

use std::fs::File;
use std::io;

use anyhow::Context as _;
use disk::gpt::ESP;
use disk::io::{Window, drop_cache};
use disk::stage::{Device, Devices, StagePlan, Step, stage};
use disk::verity::RootHash;
use release::{Compression, Slot};

use super::WriterError;
use super::preflight::Payload;
use crate::slots::{Disk, to_disk};

/// 32 MiB of window: what decompressing may cost in memory, whatever the payload asks for.
const WINDOW_LOG_MAX: u32 = 25;

pub(super) fn run(
    disk: &Disk,
    payload: Payload,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WriterError> {
    let Payload { manifest, usr, uki } = payload;
    let plan = StagePlan {
        slot: to_disk(disk.passive()),
        booted: Some(to_disk(disk.booted)),
        root_hash: RootHash(manifest.usr.root_hash.0),
        usr_size: manifest.usr.size,
        uki_sha256: manifest.uki.sha256.0,
    };
    let mut usr = match manifest.usr.payload.compression {
        Compression::Zstd => decompress(usr)?,
    };
    let (mut begun, mut shown) = (false, 0);
    let mut report = |p: disk::stage::Progress| {
        begun = true;
        // Writing is half of it and reading back the other half.
        let done = match p.step {
            Step::Disable => return,
            Step::WriteData => p.done / 2,
            Step::VerifyData => plan.usr_size / 2 + p.done / 2,
            Step::Table | Step::WriteUki | Step::VerifyUki | Step::Commit => plan.usr_size,
        };
        if done - shown > plan.usr_size / 100 {
            shown = done;
            progress(done, plan.usr_size);
        }
    };
    let result = stage(
        &plan,
        &mut Partitions {
            disk,
            slot: disk.passive(),
        },
        &mut usr,
        &uki,
        &mut report,
    );
    result.map_err(|e| {
        let message = format!("version {}: {:#}", manifest.version, anyhow::Error::from(e));
        match begun {
            true => WriterError::Failed(message),
            false => WriterError::Refused(message),
        }
    })
}

fn decompress(file: File) -> anyhow::Result<impl io::Read> {
    let mut decoder = zstd::stream::read::Decoder::new(file).context("cannot decompress")?;
    decoder
        .window_log_max(WINDOW_LOG_MAX)
        .context("cannot bound the memory of decompression")?;
    Ok(decoder)
}

/// The partitions as windows on the one locked file.
struct Partitions<'a> {
    disk: &'a Disk,
    slot: Slot,
}

impl Devices for Partitions<'_> {
    type Io = Window<File>;

    fn open(&mut self, device: Device) -> io::Result<Window<File>> {
        drop_cache(self.disk.file())?;
        let slot = to_disk(self.slot);
        let window = match device {
            Device::Data => self.disk.window(slot.data_label()),
            Device::Hash => self.disk.window(slot.verity_label()),
            Device::Esp => self.disk.window(ESP),
            Device::Disk => self.disk.whole(),
        };
        window.map_err(io::Error::other)
    }
}
