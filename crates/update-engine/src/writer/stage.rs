//! From a checked payload to a bootable slot: what `disk::stage` needs from us.

use std::io;

use disk::gpt::ESP;
use disk::io::{Placed, Window, drop_cache};
use disk::stage::{Device, Devices, StageError, StagePlan, Step, stage};
use disk::verity::RootHash;
use release::Slot;

use super::WriterError;
use super::preflight::Ready;
use crate::slots::{Disk, to_disk};

pub(super) fn run(
    disk: &Disk,
    ready: Ready,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WriterError> {
    let Ready { manifest, usr, uki } = ready;
    let plan = StagePlan {
        slot: to_disk(disk.passive()),
        booted: Some(to_disk(disk.booted)),
        root_hash: RootHash(manifest.usr.root_hash.0),
        usr_size: manifest.usr.size,
        uki_sha256: manifest.uki.sha256.0,
    };
    let is_whole = usr.is_whole();
    let mut usr = usr.reader(disk)?;
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
        let other_image = matches!(
            e,
            StageError::Payload { .. }
                | StageError::PayloadShort { .. }
                | StageError::PayloadLong { .. }
                | StageError::WrongUsr { .. }
        );
        let message = format!("version {}: {:#}", manifest.version, anyhow::Error::from(e));
        match begun {
            true if other_image && !is_whole => WriterError::WayClosed(message),
            true => WriterError::Failed(message),
            false => WriterError::Refused(message),
        }
    })
}

/// The partitions as windows on the one locked file.
struct Partitions<'a> {
    disk: &'a Disk,
    slot: Slot,
}

impl Devices for Partitions<'_> {
    type Io = Window<Placed>;

    fn open(&mut self, device: Device) -> io::Result<Window<Placed>> {
        drop_cache(self.disk.file())?;
        let slot = to_disk(self.slot);
        let window = match device {
            Device::Data => self.disk.direct(slot.data_label()),
            Device::Hash => self.disk.window(slot.verity_label()),
            Device::Esp => self.disk.window(ESP),
            Device::Disk => self.disk.whole(),
        };
        window.map_err(io::Error::other)
    }
}
