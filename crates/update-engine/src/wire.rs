//! What daemon and writer say to each other, in varlink.

use host::varlink::Interface;
use release::status::SlotStatus;
use release::{Slot, Version};
use serde::{Deserialize, Serialize};

use crate::way::WayName;

pub(crate) const WRITER: Interface = Interface {
    name: "io.orlop.UpdateWriter",
    description: "\
# Writes releases to the slot that is not running. Believes only signatures.
interface io.orlop.UpdateWriter

type SlotStatus (
  slot: string,
  booted: bool,
  version: ?string,
  root_hash: ?string,
  tries_left: ?int,
  tries_done: ?int
)

# What is in the slots. Both are `booted: false` on a system that does not run from a slot.
method GetSlots() -> (slots: []SlotStatus)

type Range (start: int, end: int)

# Writes a release: the signed manifest, and the paths of the downloaded files. By the way `delta`,
# `usr` is a delta from the running image (and so is `uki`, if the manifest has one); by the way
# `blocks` it is what Missing named, one after the other, and `index` the block index.
# With `more`, tells how many bytes of the image are written. `allow_expired`: the update was asked for
# so; it is allowed only while root itself stands by that.
method Stage(envelope: string, usr: string, uki: string, way: ?(whole, delta, blocks), index: ?string,
  allow_expired: ?bool) ->
  (slot: ?string, done: ?int, total: ?int)

# Which bytes of the compressed image hold blocks that the running image does not have.
method Missing(envelope: string, index: string) -> (ranges: []Range)

# Exhausts the running slot's boot entry, so that the next boot takes the other slot.
method Rollback() -> (slot: string, version: ?string)

# Nothing was written. `code` is what kind of refusal it is, as the server is told.
error Refused (message: string, code: int)

# This way does not lead to the image, another one may. What was being written cannot be booted.
error WayClosed (message: string)

# Writing failed. The slot that was being written cannot be booted; the running one is as it was.
error Failed (message: string)
",
};

pub(crate) const GET_SLOTS: &str = "io.orlop.UpdateWriter.GetSlots";
pub(crate) const STAGE: &str = "io.orlop.UpdateWriter.Stage";
pub(crate) const MISSING: &str = "io.orlop.UpdateWriter.Missing";
pub(crate) const ROLLBACK: &str = "io.orlop.UpdateWriter.Rollback";
pub(crate) const REFUSED: &str = "io.orlop.UpdateWriter.Refused";
pub(crate) const FAILED: &str = "io.orlop.UpdateWriter.Failed";
pub(crate) const WAY_CLOSED: &str = "io.orlop.UpdateWriter.WayClosed";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Slots {
    pub(crate) slots: Vec<SlotStatus>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stage {
    pub(crate) envelope: String,
    pub(crate) usr: String,
    pub(crate) uki: String,
    #[serde(default)]
    pub(crate) way: WayName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) allow_expired: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Missing {
    pub(crate) envelope: String,
    pub(crate) index: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ranges {
    pub(crate) ranges: Vec<std::ops::Range<u64>>,
}

/// Either how far it is, or (last) the slot it is in.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Staged {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<Slot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) done: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RolledBack {
    pub(crate) slot: Slot,
    pub(crate) version: Option<Version>,
}
