//! What a user may read and write: the ranges of all roles, melted together, so that one look answers.

use super::Access;
use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;

/// From a key up to another, which is not in it; none: to the end of all keys.
type Range = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    read: Vec<Range>,
    write: Vec<Range>,
}

impl Ranges {
    pub(super) fn of<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Ranges {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let range = range(&permission.key, &permission.range_end);
            match permission.perm_type() {
                Type::Read => read.push(range),
                Type::Write => write.push(range),
                Type::Readwrite => {
                    read.push(range.clone());
                    write.push(range);
                }
            }
        }
        Ranges {
            read: melted(read),
            write: melted(write),
        }
    }

    pub(super) fn cover(&self, key: &[u8], range_end: &[u8], access: Access) -> bool {
        let ranges = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        let (from, to) = range(key, range_end);
        // The last one that begins at or before the key: they neither touch nor overlap, so no other can do.
        let at = ranges.partition_point(|(begin, _)| *begin <= from);
        let Some((_, end)) = at.checked_sub(1).and_then(|at| ranges.get(at)) else {
            return false;
        };
        match (end, to) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(to)) => to <= *end && from < *end,
        }
    }
}

fn range(key: &[u8], range_end: &[u8]) -> Range {
    let end = match range_end {
        [] => {
            let mut next = key.to_vec();
            next.push(0);
            Some(next)
        }
        [0] => None,
        end => Some(end.to_vec()),
    };
    (key.to_vec(), end)
}

/// Has such a permission any key in it?
pub(super) fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    match range_end {
        // One key needs a name.
        [] => !key.is_empty(),
        [0] => true,
        end => key < end,
    }
}

fn melted(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for (begin, end) in ranges {
        match out.last_mut() {
            Some((_, None)) => break,
            Some((_, Some(last))) if begin <= *last => match end {
                None => {
                    if let Some((_, open)) = out.last_mut() {
                        *open = None;
                    }
                }
                Some(end) if end > *last => *last = end,
                Some(_) => {}
            },
            _ => out.push((begin, end)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(key: &[u8], end: &[u8]) -> Permission {
        Permission {
            perm_type: Type::Read as i32,
            key: key.to_vec(),
            range_end: end.to_vec(),
        }
    }

    #[test]
    fn two_halves_make_a_whole() {
        let permissions = [read(b"a", b"c"), read(b"c", b"e"), read(b"x", b"")];
        let ranges = Ranges::of(permissions.iter());
        assert_eq!(ranges.read.len(), 2);
        assert!(ranges.cover(b"b", b"d", Access::Read));
        assert!(!ranges.cover(b"b", b"f", Access::Read));
        assert!(!ranges.cover(b"b", b"\0", Access::Read));
        assert!(!ranges.cover(b"b", b"", Access::Write));
        assert!(ranges.cover(b"x", b"", Access::Read));
        assert!(!ranges.cover(b"xx", b"", Access::Read));
        let open = Ranges::of([read(b"a", b"\0"), read(b"b", b"c")].iter());
        assert!(open.cover(b"zzz", b"\0", Access::Read));
        assert!(!open.cover(b"A", b"\0", Access::Read));
    }

    proptest! {
        /// For single keys: covered if and only if some permission has the key.
        #[test]
        fn melting_loses_and_adds_nothing(
            list in prop::collection::vec(("[a-c]{1,2}", "[a-c]{0,2}|\0"), 0..6),
            key in "[a-c]{1,3}",
        ) {
            let permissions: Vec<_> = list
                .iter()
                .filter(|(key, end)| is_valid(key.as_bytes(), end.as_bytes()))
                .map(|(key, end)| read(key.as_bytes(), end.as_bytes()))
                .collect();
            let has = |p: &Permission| match p.range_end.as_slice() {
                [] => p.key == key.as_bytes(),
                [0] => p.key.as_slice() <= key.as_bytes(),
                end => p.key.as_slice() <= key.as_bytes() && key.as_bytes() < end,
            };
            let ranges = Ranges::of(permissions.iter());
            prop_assert_eq!(
                ranges.cover(key.as_bytes(), b"", Access::Read),
                permissions.iter().any(has)
            );
        }
    }
}
