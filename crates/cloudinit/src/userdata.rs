//! What kind of thing the user handed over.

use std::io::Read;

use crate::config::is_url;
use crate::finding::{Finding, Pos};
use crate::mime;

/// Platforms cap user-data at 16 to 64 KiB; this bounds what a small gzip can become.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Debug, PartialEq, Eq)]
pub enum UserData {
    Empty,
    /// The whole text, header included, so that lines count as the user sees them.
    CloudConfig(String),
    Script(Vec<u8>),
    /// JSON of Ignition 3.
    Ignition(String),
    /// URLs of more user-data, each with its place.
    Include(Vec<(Pos, String)>),
    /// The parts of a MIME archive, in order.
    Archive(Vec<Part>),
}

/// One part of an archive, and where it stands there.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Its file name, or its number.
    pub name: String,
    /// The line of the archive that its content starts in.
    pub line: usize,
    /// It is written as it is, so that its lines are lines of the archive.
    pub verbatim: bool,
    /// What it is, or why it is left out.
    pub data: Result<UserData, Finding>,
}

/// Tells cloud-config and scripts apart; everything else is an error that names what was found.
pub fn detect(bytes: &[u8]) -> Result<UserData, Finding> {
    let unpacked;
    let bytes = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => {
            unpacked = gunzip(bytes).map_err(|problem| at_start(format!("gzip: {problem}")))?;
            unpacked.as_slice()
        }
        false => bytes,
    };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Ok(UserData::Empty);
    }
    if bytes.starts_with(b"#!") {
        return Ok(UserData::Script(bytes.to_vec()));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let pos = position(&bytes[..error.valid_up_to()]);
            return Err(Finding::error(pos, "", "not UTF-8 text")
                .hint("expected a file that starts with #cloud-config or #!"));
        }
    };
    let header = text.lines().next().unwrap_or_default().trim_end();
    if header == "#cloud-config" {
        return Ok(UserData::CloudConfig(text.to_owned()));
    }
    if header.starts_with("#include") {
        return include(text).map(UserData::Include);
    }
    if mime::is_archive(header) {
        return mime::parts(text).map(UserData::Archive);
    }
    if text.trim_start().starts_with('{') {
        return match has_ignition_key(text) {
            true => Ok(UserData::Ignition(text.to_owned())),
            false => Err(at_start("JSON that is not user-data").hint(EXPECTED)),
        };
    }
    Err(unsupported(header))
}

/// A URL in each line; behind the header too, as in cloud-init. Other lines with a `#` are remarks.
pub(crate) fn include(text: &str) -> Result<Vec<(Pos, String)>, Finding> {
    let mut urls = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let header = ["#include-once", "#include"];
        let rest = header.iter().find_map(|name| line.strip_prefix(name));
        let url = rest.unwrap_or(line).trim();
        if url.is_empty() || url.starts_with('#') {
            continue;
        }
        let before = line.trim_end().chars().count() - url.chars().count();
        let pos = Pos {
            line: index + 1,
            column: before + 1,
        };
        if !is_url(url) {
            let message = format!("{url:?} is not a URL");
            return Err(Finding::error(pos, "#include", message).hint("http://… or https://…"));
        }
        urls.push((pos, url.to_owned()));
    }
    Ok(urls)
}

/// Broken JSON with the key in it is meant to be one too: its reader says where it is broken.
fn has_ignition_key(text: &str) -> bool {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(json) => json.get("ignition").is_some(),
        Err(_) => text.contains("\"ignition\""),
    }
}

pub(crate) fn unsupported(header: &str) -> Finding {
    for (prefix, what) in [
        ("#cloud-boothook", "a boot hook"),
        ("#cloud-config-archive", "a cloud-config archive"),
        ("#part-handler", "a part handler"),
        ("## template:", "a template"),
    ] {
        if header.starts_with(prefix) {
            return at_start(format!("{what} ({prefix}) is not supported")).hint(EXPECTED);
        }
    }
    let shown: String = header.chars().take(40).collect();
    let finding = at_start(format!("not user-data: the first line is {shown:?}"));
    match header
        .trim_start_matches(['#', ' '])
        .starts_with("cloud-config")
        || crate::suggest::closest(header, ["#cloud-config"]).is_some()
    {
        true => finding.hint("the first line must be exactly #cloud-config"),
        false => finding.hint(EXPECTED),
    }
}

const EXPECTED: &str = "the first line must be #cloud-config or start with #!";

fn at_start(message: impl Into<String>) -> Finding {
    Finding::error(Pos::START, "", message)
}

fn position(valid: &[u8]) -> Pos {
    let line_start = valid.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    Pos {
        line: valid.iter().filter(|b| **b == b'\n').count() + 1,
        column: String::from_utf8_lossy(&valid[line_start..])
            .chars()
            .count()
            + 1,
    }
}

/// Unpacks `bytes`, refusing to grow past what a config can be.
pub fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(MAX_SIZE + 1)
        .read_to_end(&mut out)
        .map_err(|error| error.to_string())?;
    match out.len() as u64 > MAX_SIZE {
        true => Err(format!("larger than {} MiB unpacked", MAX_SIZE >> 20)),
        false => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_spelling_of_a_header() {
        for text in [
            "#cloud-config\nhostname: a\n",
            "#cloud-config\r\nhostname: a\r\n",
            "#cloud-config  \t\n---\nhostname: a\n",
            "\u{feff}#cloud-config\n",
            "#cloud-config",
        ] {
            let plain = text.trim_start_matches('\u{feff}').to_owned();
            assert_eq!(
                detect(text.as_bytes()),
                Ok(UserData::CloudConfig(plain.clone()))
            );
            assert_eq!(
                detect(&gzip(text.as_bytes())),
                Ok(UserData::CloudConfig(plain))
            );
        }
        assert_eq!(detect(b"\n \r\n"), Ok(UserData::Empty));
        assert_eq!(
            detect(b"#!/bin/sh\n"),
            Ok(UserData::Script(b"#!/bin/sh\n".to_vec()))
        );
    }

    #[test]
    fn includes() {
        let text = "#include http://x/a\r\n\n# remark\n  https://x/b \n#include-once\n";
        let at = |line, column| Pos { line, column };
        let urls = vec![
            (at(1, 10), "http://x/a".to_owned()),
            (at(4, 3), "https://x/b".to_owned()),
        ];
        assert_eq!(detect(text.as_bytes()), Ok(UserData::Include(urls)));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let check = |bytes: &[u8], expect: &str| {
            assert_eq!(detect(bytes).unwrap_err().to_string(), expect);
        };
        check(
            br#"{"a":1}"#,
            "1:1: error: JSON that is not user-data (the first line must be #cloud-config or start with #!)",
        );
        check(
            b"# cloud-config\nhostname: a\n",
            "1:1: error: not user-data: the first line is \"# cloud-config\" (the first line must be exactly #cloud-config)",
        );
        check(
            b"#cloud-confg\n",
            "1:1: error: not user-data: the first line is \"#cloud-confg\" (the first line must be exactly #cloud-config)",
        );
        check(
            b"hostname: a\n",
            "1:1: error: not user-data: the first line is \"hostname: a\" (the first line must be #cloud-config or start with #!)",
        );
        check(
            b"#cloud-config\nhostname: \xff\n",
            "2:11: error: not UTF-8 text (expected a file that starts with #cloud-config or #!)",
        );
        check(
            b"#include\n# mine\nhttp://example/a\n ftp://x\n",
            "4:2: error: #include: \"ftp://x\" is not a URL (http://… or https://…)",
        );
        assert!(
            detect(&gzip(b"#cloud-config\n")[..12])
                .unwrap_err()
                .message
                .starts_with("gzip: ")
        );
    }

    #[test]
    fn a_gzip_bomb_is_refused() {
        let bomb = gzip(&vec![b'#'; usize::try_from(MAX_SIZE).unwrap() + 1]);
        assert_eq!(
            detect(&bomb).unwrap_err().message,
            "gzip: larger than 16 MiB unpacked"
        );
    }
}
