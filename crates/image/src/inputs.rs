//! What a build depends on, as one digest: equal digests mean that building again is pointless.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::binaries::{Binaries, HOST};
use crate::build::BuildOptions;
use crate::tree::{Node, Origin, Tree};

pub(crate) fn digest(
    options: &BuildOptions,
    programs: &Binaries,
    key: &release::keys::SigningKey,
    tuf_root: &[u8],
) -> Result<String> {
    let mut hash = Sha256::new();
    let mut dirs = vec![options.repo.join("os")];
    dirs.extend(options.overlays.iter().cloned());
    for dir in dirs {
        let mut tree = Tree::default();
        tree.add_dir(&dir, &Origin::Overlay)?;
        for (path, entry) in tree.iter() {
            hash.update(path);
            match &entry.node {
                Node::Dir { .. } => hash.update(b"d"),
                Node::File { mode, data } => {
                    hash.update(mode.to_le_bytes());
                    hash.update((data.len() as u64).to_le_bytes());
                    hash.update(data);
                }
                Node::Symlink { target } => hash.update(target),
            }
        }
    }
    for (_, binary, _) in HOST {
        hash.update(std::fs::read(programs.dir.join(binary))?);
    }
    hash.update(std::fs::read(&programs.init)?);
    hash.update(key.verifying_key().as_bytes());
    hash.update(tuf_root);
    let source_date = source_date(&options.repo);
    hash.update(format!(
        "{} {:?} {:?} {:?} {} {source_date} {}",
        options.version,
        options.cmdline,
        options.minimum_source_version,
        options.epoch,
        options.level,
        env!("CARGO_PKG_VERSION"),
    ));
    // The builder itself: another builder may make other images from the same files.
    // (The link, not the path: cargo may just have replaced the file that is running.)
    hash.update(std::fs::read("/proc/self/exe")?);
    Ok(hex::encode(hash.finalize()))
}

/// The time that all files carry: `SOURCE_DATE_EPOCH`, else that of the commit, else a constant.
pub(crate) fn source_date(repo: &Path) -> u64 {
    if let Some(epoch) = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|e| e.parse().ok())
    {
        return epoch;
    }
    Command::new("git")
        .args(["log", "-1", "--format=%ct", "--", "os"])
        .current_dir(repo)
        .output()
        .ok()
        .and_then(|out| String::from_utf8_lossy(&out.stdout).trim().parse().ok())
        .unwrap_or(1_700_000_000)
}

/// Unix seconds as RFC 3339 in UTC (days-to-civil after Howard Hinnant's algorithm).
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_written_as_rfc3339() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(super::rfc3339(1_794_096_000), "2026-11-08T00:00:00Z");
    }
}
