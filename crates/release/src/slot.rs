use std::fmt;
use std::str::FromStr;

/// One of the two places a release can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    A,
    B,
}

/// Why a text is not a slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a slot: a or b")]
pub struct SlotError(String);

impl Slot {
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The slot that is written while this one runs.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Slot {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            _ => Err(SlotError(text.chars().take(16).collect())),
        }
    }
}

crate::serde_as_text!(Slot);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_other() {
        for slot in Slot::ALL {
            assert_ne!(slot, slot.other());
            assert_eq!(slot, slot.other().other());
            assert_eq!(slot.to_string().parse(), Ok(slot));
        }
        assert_eq!(
            "C".parse::<Slot>().unwrap_err().to_string(),
            r#""C" is not a slot: a or b"#
        );
    }
}
