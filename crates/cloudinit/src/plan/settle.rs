//! What becomes of a path is decided once: making it the one and then the other would change it at every
//! boot.

use super::FileOp;

/// Leaves out what a later operation on the same path undoes.
pub(super) fn settle(ops: &mut Vec<FileOp>) {
    let mut index = 0;
    while index < ops.len() {
        let undone = ops[index + 1..]
            .iter()
            .any(|later| undoes(&ops[index], later));
        if undone {
            ops.remove(index);
        } else {
            index += 1;
        }
    }
}

fn undoes(earlier: &FileOp, later: &FileOp) -> bool {
    if matches!(earlier, FileOp::Directory { .. }) || earlier.path() != later.path() {
        return false;
    }
    match later {
        FileOp::Write(_) | FileOp::Mask { .. } | FileOp::Link { .. } => true,
        FileOp::Directory { .. } => false,
        // It takes away the two ways to mask a unit, and nothing else.
        FileOp::Unmask { .. } => match earlier {
            FileOp::Mask { .. } => true,
            FileOp::Write(write) => write.content.is_empty(),
            FileOp::Link { target, .. } => target == "/dev/null",
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Place;
    use crate::plan::{FileWrite, Owner};

    fn op(text: &str) -> FileOp {
        let place = Place::whole();
        let (kind, path) = text.split_once(' ').unwrap();
        let path = path.to_owned();
        match kind {
            "mask" => FileOp::Mask { path, place },
            "unmask" => FileOp::Unmask { path },
            "link" => FileOp::Link {
                path,
                target: "x".to_owned(),
                place,
            },
            content => FileOp::Write(FileWrite {
                path,
                content: content.strip_prefix("write").unwrap().into(),
                mode: 0o644,
                owner: Owner::root(),
                place,
            }),
        }
    }

    #[test]
    fn the_last_word_counts() {
        let check = |ops: &[&str], expect: &[&str]| {
            let mut ops: Vec<FileOp> = ops.iter().map(|text| op(text)).collect();
            let expect: Vec<FileOp> = expect.iter().map(|text| op(text)).collect();
            settle(&mut ops);
            assert_eq!(ops, expect);
        };
        check(&["unmask /a", "mask /a"], &["mask /a"]);
        check(
            &["mask /a", "unmask /b", "unmask /a"],
            &["unmask /b", "unmask /a"],
        );
        check(&["write /a", "unmask /a"], &["unmask /a"]);
        check(&["write+ /a", "unmask /a"], &["write+ /a", "unmask /a"]);
        check(&["write+ /a", "mask /a"], &["mask /a"]);
        check(
            &["link /a", "write+ /a", "write+ /b"],
            &["write+ /a", "write+ /b"],
        );
    }
}
