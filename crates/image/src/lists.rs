//! The plain lists under `os/`: one item a line, `# why` behind it. A line without a reason is an
//! error, so that nothing gets into or out of the image that nobody can explain.

use std::path::Path;

use anyhow::{Context, Result, bail};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub name: String,
    pub why: String,
}

pub(crate) fn parse(text: &str, file: &str) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('#') {
            Some((name, why)) if !why.trim().is_empty() => items.push(Item {
                name: name.trim().to_owned(),
                why: why.trim().to_owned(),
            }),
            _ => bail!(
                "{file}:{}: `{line}` has no reason; write `{line}  # why`",
                number + 1
            ),
        }
    }
    Ok(items)
}

pub(crate) fn read(path: &Path) -> Result<Vec<Item>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text, &path.display().to_string())
}

/// `os/epoch`: one number.
pub(crate) fn epoch(path: &Path) -> Result<u64> {
    let items = read(path)?;
    let number = match &items[..] {
        [item] => item.name.parse().ok(),
        _ => None,
    };
    number.with_context(|| format!("{} has to have one line with a number", path.display()))
}

/// `*` stays within one path component, `**` crosses them; a match on a directory takes all below.
pub(crate) fn globs(items: &[Item]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for item in items {
        for pattern in [item.name.clone(), format!("{}/**", item.name)] {
            let glob = GlobBuilder::new(&pattern)
                .literal_separator(true)
                .build()
                .with_context(|| format!("bad pattern `{}`", item.name))?;
            set.add(glob);
        }
    }
    Ok(set.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_needs_its_reason() {
        let items = parse("# head\n\nbash  # the shell\n", "f").unwrap();
        assert_eq!(
            items[0],
            Item {
                name: "bash".into(),
                why: "the shell".into()
            }
        );
        let err = parse("bash # x\nzsh\n", "os/packages")
            .unwrap_err()
            .to_string();
        assert_eq!(
            err,
            "os/packages:2: `zsh` has no reason; write `zsh  # why`"
        );
    }

    #[test]
    fn the_epoch_is_one_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epoch");
        let says = |text: &str| {
            std::fs::write(&path, text).unwrap();
            epoch(&path).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(says("# head\n3  # 7 has a hole\n"), Ok(3));
        for wrong in ["", "x # y\n", "-1 # y\n", "1 # y\n2 # z\n"] {
            let error = says(wrong).unwrap_err();
            assert!(error.contains("one line with a number"), "{error}");
        }
        assert!(says("3\n").unwrap_err().contains("has no reason"));
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../os/epoch");
        epoch(&ours).unwrap();
    }

    #[test]
    fn a_pattern_takes_what_is_below() {
        let set = globs(
            &parse(
                "usr/share/doc/*/changelog*  # size\nusr/share/man # docs",
                "f",
            )
            .unwrap(),
        )
        .unwrap();
        assert!(set.is_match("usr/share/man/man1/x"));
        assert!(set.is_match("usr/share/doc/a/changelog.gz"));
        assert!(!set.is_match("usr/share/doc/a/copyright"));
    }
}
