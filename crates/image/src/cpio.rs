//! The initrd's archive: cpio in the `newc` form (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::Write;

use anyhow::Result;

use crate::tree::{Node, Tree};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes `tree` plus the device node that the kernel opens as the console of its first process.
/// Times are zero and inode numbers count up, so equal trees give equal bytes.
pub(crate) fn write(tree: &Tree, out: &mut impl Write) -> Result<()> {
    let mut inode = 1;
    let mut put = |name: &str, mode: u32, rdev: (u32, u32), data: &[u8]| -> Result<()> {
        let header = format!(
            "070701{inode:08x}{mode:08x}{uid:08x}{gid:08x}{links:08x}{mtime:08x}{size:08x}\
             {dev:08x}{dev:08x}{major:08x}{minor:08x}{namesize:08x}{check:08x}",
            uid = 0,
            gid = 0,
            links = 1,
            mtime = 0,
            size = u32::try_from(data.len())?,
            dev = 0,
            major = rdev.0,
            minor = rdev.1,
            namesize = u32::try_from(name.len() + 1)?,
            check = 0,
        );
        out.write_all(header.as_bytes())?;
        out.write_all(name.as_bytes())?;
        out.write_all(&[0])?;
        pad(out, header.len() + name.len() + 1)?;
        out.write_all(data)?;
        pad(out, data.len())?;
        inode += 1;
        Ok(())
    };
    put("dev", S_IFDIR | 0o755, (0, 0), &[])?;
    put("dev/console", S_IFCHR | 0o600, (5, 1), &[])?;
    for (path, entry) in tree.iter() {
        match &entry.node {
            Node::Dir { mode } => put(path, S_IFDIR | mode, (0, 0), &[])?,
            Node::File { mode, data } => put(path, S_IFREG | mode, (0, 0), data)?,
            Node::Symlink { target } => put(path, S_IFLNK | 0o777, (0, 0), target.as_bytes())?,
        }
    }
    put("TRAILER!!!", 0, (0, 0), &[])
}

fn pad(out: &mut impl Write, len: usize) -> Result<()> {
    Ok(out.write_all(&[0; 3][..(4 - len % 4) % 4])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Origin;

    #[test]
    fn members_are_aligned_and_named() {
        let mut tree = Tree::default();
        tree.file("init", 0o755, b"abcde".to_vec(), Origin::Generated);
        let mut out = Vec::new();
        write(&tree, &mut out).unwrap();
        assert_eq!(out.len() % 4, 0);
        let at = out.windows(5).position(|w| w == b"abcde").unwrap();
        assert_eq!(at % 4, 0);
        assert!(out.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
