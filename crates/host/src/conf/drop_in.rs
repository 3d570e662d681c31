//! `Environment=` of drop-ins for locksmith's unit: how CoreOS's locksmith got its window, and so what
//! people's cloud-configs make, under the name it had there.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::parse::{ConfError, Fragment, canonical, origin};

/// Later ones win where the file's name is the same (systemd.unit(5)).
const DIRS: [&str; 4] = [
    "/run/systemd/system/locksmithd.service.d",
    "/run/systemd/system/locksmith.service.d",
    "/etc/systemd/system/locksmithd.service.d",
    "/etc/systemd/system/locksmith.service.d",
];

/// The rest of an environment is not ours to judge.
const KEYS: [&str; 3] = [
    "REBOOT_STRATEGY",
    "REBOOT_WINDOW_LENGTH",
    "REBOOT_WINDOW_START",
];

/// Read here and not taken from our own environment, so that `locksmith status` says the same as the
/// service, and systemd need not be reloaded for it while the host boots.
pub(super) fn fragments(root: &Path) -> Result<Vec<Fragment>, ConfError> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for dir in DIRS {
        let dir = crate::under(root, dir);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(ConfError::Read { path: dir, source }),
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".conf") && !name.starts_with('.') {
                files.insert(name, entry.path());
            }
        }
    }
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => fragment(&path, &text),
        Err(source) => Err(ConfError::Read { path, source }),
    };
    files.into_values().map(read).collect()
}

fn fragment(path: &Path, text: &str) -> Result<Fragment, ConfError> {
    let mut lines = Fragment::new();
    let mut service = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            service = line == "[Service]";
        }
        let Some((name, value)) = line.split_once('=').filter(|_| service) else {
            continue;
        };
        if name.trim_end() != "Environment" {
            continue;
        }
        let words = words(value).ok_or_else(|| ConfError::Line {
            path: path.to_owned(),
            line: index + 1,
            problem: "Environment: the quote is not closed".to_owned(),
        })?;
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            let key = canonical(key);
            if KEYS.contains(&key) {
                lines.push((key.to_owned(), origin(path, index + 1, value)));
            }
        }
    }
    Ok(lines)
}

/// Words with quotes around the whole or a part (systemd.syntax(7)). `None`: a quote has no end.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', _) => word.get_or_insert_default().extend(chars.next()),
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_systemd_reads_them() {
        let check = |text: &str, expect: Option<&[&str]>| {
            let got = words(text);
            let got: Option<Vec<&str>> = got
                .as_ref()
                .map(|words| words.iter().map(|w| w.as_str()).collect());
            assert_eq!(got.as_deref(), expect, "{text}");
        };
        check("A=b C=d", Some(&["A=b", "C=d"]));
        check("\"A=b c\"  'D=e'", Some(&["A=b c", "D=e"]));
        check("A=\"b c\" D=''", Some(&["A=b c", "D="]));
        check(r#""A=\"b\"""#, Some(&["A=\"b\""]));
        check("", Some(&[]));
        check("\"A=b", None);
    }
}
