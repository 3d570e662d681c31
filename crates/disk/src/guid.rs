//! GUIDs in the order people write them.

use std::fmt;
use std::str::FromStr;

/// A GUID whose bytes are in text order: `Guid([0x84, 0x84, …])` prints as `8484…`.
///
/// GPT stores the first three fields little-endian; that order exists only inside
/// [`Guid::to_gpt`] and [`Guid::from_gpt`], so nobody else can mix the two up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

/// Text that is not a GUID.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a GUID (want 8-4-4-4-12 hex digits)")]
pub struct GuidError {
    text: String,
}

impl Guid {
    pub const ZERO: Guid = Guid([0; 16]);

    /// The bytes as a GPT holds them (UEFI 2.10, appendix A: mixed-endian).
    pub fn to_gpt(self) -> [u8; 16] {
        swap(self.0)
    }

    pub fn from_gpt(bytes: [u8; 16]) -> Guid {
        Guid(swap(bytes))
    }

    /// Bytewise exclusive or: a fixed GUID made particular to another one.
    pub const fn xor(self, other: Guid) -> Guid {
        let mut bytes = self.0;
        let mut i = 0;
        while i < 16 {
            bytes[i] ^= other.0[i];
            i += 1;
        }
        Guid(bytes)
    }
}

fn swap(mut b: [u8; 16]) -> [u8; 16] {
    b[0..4].reverse();
    b[4..6].reverse();
    b[6..8].reverse();
    b
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = GuidError;

    fn from_str(text: &str) -> Result<Guid, GuidError> {
        let error = || GuidError {
            text: text.to_owned(),
        };
        let dashes_fit = text.len() == 36
            && text
                .bytes()
                .enumerate()
                .all(|(i, c)| (c == b'-') == matches!(i, 8 | 13 | 18 | 23));
        if !dashes_fit {
            return Err(error());
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        parse_hex(&digits).map(Guid).ok_or_else(error)
    }
}

/// Exactly `N` bytes of hex, or nothing.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |c: u8| {
        char::from(c)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_and_gpt_order() {
        let esp: Guid = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B".parse().unwrap();
        assert_eq!(esp.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(
            hex::encode(esp.to_gpt()),
            "28732ac11ff8d211ba4b00a0c93ec93b",
            "the bytes sgdisk writes for an ESP"
        );
        assert_eq!(Guid::from_gpt(esp.to_gpt()), esp);
    }

    #[test]
    fn refuses_what_is_not_a_guid() {
        for text in [
            "",
            "c12a7328f81f11d2ba4b00a0c93ec93b",
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93",
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93g",
            "c12a732-8f81f-11d2-ba4b-00a0c93ec93b",
            "+12a7328-f81f-11d2-ba4b-00a0c93ec93b",
        ] {
            assert!(text.parse::<Guid>().is_err(), "{text:?}");
        }
    }
}
