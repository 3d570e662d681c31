//! The two places a release can live in.

use std::fmt;
use std::str::FromStr;

/// One of the two slots: a data partition, its verity partition and a boot entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    A,
    B,
}

/// A slot name that is neither `a` nor `b`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a slot (want a or b)")]
pub struct SlotError(String);

impl Slot {
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    pub fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// `a` or `b`.
    pub fn letter(self) -> char {
        match self {
            Slot::A => 'a',
            Slot::B => 'b',
        }
    }

    /// The label of the partition with the file system.
    pub fn data_label(self) -> &'static str {
        match self {
            Slot::A => "usr-a",
            Slot::B => "usr-b",
        }
    }

    /// The label of the partition with the hash tree.
    pub fn verity_label(self) -> &'static str {
        match self {
            Slot::A => "usr-a-verity",
            Slot::B => "usr-b-verity",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

impl FromStr for Slot {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Slot, SlotError> {
        match text {
            "a" | "A" => Ok(Slot::A),
            "b" | "B" => Ok(Slot::B),
            other => Err(SlotError(other.to_owned())),
        }
    }
}
