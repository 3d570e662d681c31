//! The partition table: what partitions there are, and which release is in which slot.
//!
//! [`Table::load`] reads, the methods on [`Table`] change only memory, [`Table::write`] writes.

mod layout;
mod sectors;
mod table;

pub use layout::{Layout, MIB, MIN_STATE, create};
pub use table::Table;

use crate::verity::RootHash;
use crate::{Guid, Slot};

/// Partition types. usr and verity are those of the Discoverable Partitions Specification for x86-64.
pub mod types {
    use crate::Guid;

    pub const BIOS: Guid = guid(0x21686148_6449_6e6f_744e_656564454649);
    pub const ESP: Guid = guid(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
    pub const USR: Guid = guid(0x8484680c_9521_48c6_9c11_b0720656f69e);
    pub const USR_VERITY: Guid = guid(0x77ff5f63_e7b6_4633_acf4_1565b864c0e6);
    pub const ROOT: Guid = guid(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709);

    const fn guid(value: u128) -> Guid {
        Guid(value.to_be_bytes())
    }
}

/// The label of the partition that holds the machine's own data.
pub const STATE: &str = "state";
/// The label of the EFI system partition.
pub const ESP: &str = "esp";
/// The label of the partition that holds the BIOS boot loader.
pub const BIOS: &str = "bios";

/// One entry of the table, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub label: String,
    /// The partition type.
    pub kind: Guid,
    pub uuid: Guid,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum GptError {
    #[error("cannot read a partition table")]
    Read(#[source] gptman::Error),
    #[error(
        "the partition table has {count} entries of {size} bytes; only up to 1024 entries of 128 bytes are supported"
    )]
    Unsupported { count: u32, size: u32 },
    #[error("the partition table is inconsistent and was not written")]
    Invalid(#[source] gptman::Error),
    #[error("cannot write the partition table ({what})")]
    Write {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the disk has no partition labelled {label:?}")]
    NoPartition { label: String },
    #[error("a disk of {have} bytes is too small: this layout needs {need}")]
    TooSmall { have: u64, need: u64 },
    #[error("the disk has {have} bytes but its partitions reach up to {need}")]
    Shrunk { have: u64, need: u64 },
}

/// The partition UUIDs that announce a root hash: its first half names the data partition, its
/// second half the verity partition (Discoverable Partitions Specification).
pub fn uuids_from_root_hash(root: &RootHash) -> (Guid, Guid) {
    let (mut data, mut verity) = ([0; 16], [0; 16]);
    data.copy_from_slice(&root.0[..16]);
    verity.copy_from_slice(&root.0[16..]);
    (Guid(data), Guid(verity))
}

/// The UUIDs of a slot that holds nothing: fixed, so that images are reproducible.
pub fn empty_uuids(slot: Slot) -> (Guid, Guid) {
    (
        layout::fixed_uuid(slot.data_label()),
        layout::fixed_uuid(slot.verity_label()),
    )
}
