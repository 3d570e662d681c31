//! The names of boot entries, as people, FAT and `systemd-boot` see them.

use crate::Slot;
use std::fmt;

/// A slot's boot entry with its counters: `usr-a+3-0.efi` has 3 tries left and none done. `usr-a.efi`
/// is not counted, and never runs out.
///
/// At most 13 characters, so that one long-name entry holds all of it (Microsoft's FAT
/// specification, "Long Directory Entries") and a new count is a new sector, not a new layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) slot: Slot,
    pub(super) left: u8,
    pub(super) done: u8,
    pub(super) counted: bool,
}

/// The tries left of what is not counted: more than anything that is counted ever has.
pub(super) const UNCOUNTED: u8 = 9;

pub(super) const NAME_LEN: usize = 13;

impl Name {
    /// Any case, because firmware may rewrite it when `systemd-boot` counts down.
    pub(super) fn parse(name: &str) -> Option<Name> {
        let name = name.to_ascii_lowercase();
        let rest = name.strip_prefix("usr-")?.strip_suffix(".efi")?;
        let Some((slot, counters)) = rest.split_once('+') else {
            return Some(Name::uncounted(rest.parse().ok()?));
        };
        // The Boot Loader Specification lets "-0" be left out.
        let (left, done) = counters.split_once('-').unwrap_or((counters, "0"));
        let digit = |text: &str| match text.as_bytes() {
            [digit @ b'0'..=b'9'] => Some(digit - b'0'),
            _ => None,
        };
        Some(Name {
            slot: slot.parse().ok()?,
            left: digit(left)?,
            done: digit(done)?,
            counted: true,
        })
    }

    pub(super) fn uncounted(slot: Slot) -> Name {
        Name {
            slot,
            left: UNCOUNTED,
            done: 0,
            counted: false,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Name {
            slot, left, done, ..
        } = self;
        if !self.counted {
            return write!(f, "usr-{slot}.efi");
        }
        write!(f, "usr-{slot}+{}-{}.efi", left.min(&9), done.min(&9))
    }
}

/// The sum by which a long name knows its short one.
pub(super) fn checksum(short: &[u8; 11]) -> u8 {
    short
        .iter()
        .fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// A short alias like `USR-A~1.EFI` that nobody in `taken` has.
pub(super) fn alias(slot: Slot, taken: &[[u8; 11]]) -> [u8; 11] {
    let mut alias = *b"USR-A~1 EFI";
    alias[4] = match slot {
        Slot::A => b'A',
        Slot::B => b'B',
    };
    for digit in b'1'..=b'9' {
        alias[6] = digit;
        if !taken.contains(&alias) {
            return alias;
        }
    }
    // Nine other files claim them: the eighth character gives 36 more each.
    for (digit, extra) in (b'1'..=b'9').flat_map(|d| (b'A'..=b'Z').map(move |x| (d, x))) {
        alias[6] = digit;
        alias[7] = extra;
        if !taken.contains(&alias) {
            break;
        }
    }
    alias
}

/// The one long-name entry that goes in front of the short one.
pub(super) fn long_entry(name: &str, sum: u8) -> [u8; 32] {
    let mut entry = [0; 32];
    // The first of the sequence and, because it fits, the last.
    entry[0] = 0x41;
    entry[11] = ATTR_LONG;
    entry[13] = sum;
    let mut chars = name
        .encode_utf16()
        .chain([0])
        .chain(std::iter::repeat(0xffff));
    for at in LONG_CHARS {
        let unit = chars.next().unwrap_or(0xffff);
        entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
    }
    entry
}

pub(super) const ATTR_LONG: u8 = 0x0f;
/// Where a long-name entry keeps its 13 characters.
pub(super) const LONG_CHARS: [usize; NAME_LEN] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Option<(Slot, u8, u8)>) {
        let got = Name::parse(text).map(|n| (n.slot, n.left, n.done));
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn names() {
        check("usr-a+3-0.efi", Some((Slot::A, 3, 0)));
        check("usr-b+0-3.efi", Some((Slot::B, 0, 3)));
        check("USR-B+2-1.EFI", Some((Slot::B, 2, 1)));
        check("usr-a+3.efi", Some((Slot::A, 3, 0)));
        check("USR-A.EFI", Some((Slot::A, UNCOUNTED, 0)));
        assert_eq!(Name::uncounted(Slot::B).to_string(), "usr-b.efi");
        for not in [
            "usr-.efi",
            "usr-c.efi",
            "usr-c+3-0.efi",
            "usr-a+10-0.efi",
            "usr-a+-0.efi",
            "usr-a+3-.efi",
            "usr-a+3-0.efi.bak",
            "other+3-0.efi",
        ] {
            check(not, None);
        }
        let name = Name {
            slot: Slot::B,
            left: 2,
            done: 1,
            counted: true,
        };
        assert_eq!(name.to_string(), "usr-b+2-1.efi");
        assert_eq!(name.to_string().len(), NAME_LEN);
    }

    #[test]
    fn aliases_are_unique() {
        let mut taken = Vec::new();
        for _ in 0..40 {
            let next = alias(Slot::B, &taken);
            assert!(!taken.contains(&next));
            taken.push(next);
        }
        assert_eq!(&taken[0], b"USR-B~1 EFI");
        assert_eq!(&taken[9], b"USR-B~1AEFI");
    }

    #[test]
    fn checksum_of_the_specification() {
        // The C code in the specification, which adds bit 0 as 0x80.
        let by_hand = b"USR-A~1 EFI".iter().fold(0u32, |sum, byte| {
            ((sum & 1) * 0x80 + (sum >> 1) + u32::from(*byte)) & 0xff
        });
        assert_eq!(u32::from(checksum(b"USR-A~1 EFI")), by_hand);
    }
}
