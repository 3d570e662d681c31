//! Device-mapper: opening a verity device without `veritysetup`.
//!
//! `wire` is the byte layout of `<linux/dm-ioctl.h>` and safe; the one ioctl is in `control`.

mod control;
mod table;
mod wire;

pub use control::{CONTROL, Control};
pub use table::VerityTarget;
pub use wire::{DeviceNumber, Status, TargetStatus};

#[derive(Debug, thiserror::Error)]
pub enum DmError {
    #[error(
        "cannot open {path} (is the dm_mod module loaded, and are we root with devtmpfs mounted?)"
    )]
    Open {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("device-mapper cannot {what} {name:?}{}", hint(what))]
    Ioctl {
        what: &'static str,
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{name:?} cannot name a device: want 1 to 127 bytes without '/' and NUL")]
    Name { name: String },
    #[error("the kernel's answer about {name:?} is malformed: {why}")]
    Answer { name: String, why: &'static str },
}

fn hint(what: &str) -> &'static str {
    match what {
        "load the table of" => {
            " (is the dm_verity module loaded? the kernel log names the bad argument)"
        }
        "create" => " (is there one with this name already?)",
        "remove" => " (is it still mounted?)",
        _ => "",
    }
}
