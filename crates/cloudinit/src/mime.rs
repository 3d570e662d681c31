//! MIME archives (RFC 2045, 2046): several pieces of user-data in one file.

use base64::Engine;

use crate::finding::{Finding, Pos};
use crate::userdata::{Part, UserData, detect, include};

/// An archive in an archive in an archive is no user-data.
const MAX_DEPTH: usize = 4;
const MAX_PARTS: usize = 256;

pub(crate) fn is_archive(first_line: &str) -> bool {
    let lower = first_line.to_ascii_lowercase();
    ["content-type:", "mime-version:"]
        .iter()
        .any(|name| lower.starts_with(name))
}

/// The parts of `text`, archives inside of it included.
pub(crate) fn parts(text: &str) -> Result<Vec<Part>, Finding> {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut parts = Vec::new();
    walk(&lines, 0, 0, &mut parts)?;
    Ok(parts)
}

/// What the header says that matters here.
#[derive(Debug, Default)]
struct Header {
    /// In lower case, without parameters.
    kind: String,
    boundary: Option<String>,
    encoding: String,
    name: Option<String>,
    /// The line of `Content-Type`, for complaints.
    line: usize,
    /// Lines that the header takes, the empty one included.
    length: usize,
}

/// `lines` is one entity that starts at line `first` of the archive, counted from 0.
fn walk(lines: &[&str], first: usize, depth: usize, parts: &mut Vec<Part>) -> Result<(), Finding> {
    let header = header(lines, first)?;
    let body = &lines[header.length.min(lines.len())..];
    let start = first + header.length;
    if !header.kind.starts_with("multipart/") {
        if parts.len() == MAX_PARTS {
            return Err(at(first, format!("more than {MAX_PARTS} parts")));
        }
        let number = parts.len() + 1;
        parts.push(leaf(&header, body, start, number)?);
        return Ok(());
    }
    if depth == MAX_DEPTH {
        return Err(at(
            first,
            format!("archives nested deeper than {MAX_DEPTH}"),
        ));
    }
    let Some(boundary) = &header.boundary else {
        return Err(at(header.line, "a multipart archive without a boundary")
            .hint("Content-Type: multipart/mixed; boundary=\"…\""));
    };
    let delimiter = format!("--{boundary}");
    let (mut open, mut closed) = (None, false);
    for (index, line) in body.iter().enumerate() {
        let Some(rest) = line.trim_end().strip_prefix(&delimiter) else {
            continue;
        };
        closed = rest == "--";
        if !rest.is_empty() && !closed {
            continue;
        }
        if let Some(from) = open.replace(index + 1) {
            walk(&body[from..index], start + from, depth + 1, parts)?;
        }
        if closed {
            break;
        }
    }
    match open {
        None => Err(at(header.line, format!("no line is {delimiter:?}"))
            .hint("each part starts behind a line of its own with the boundary")),
        Some(from) if !closed => Err(at(
            start + from - 1,
            format!(
                "this part has no end: no line is {:?}",
                format!("{delimiter}--")
            ),
        )),
        Some(_) => Ok(()),
    }
}

fn header(lines: &[&str], first: usize) -> Result<Header, Finding> {
    let mut header = Header {
        kind: "text/plain".to_owned(),
        line: first,
        ..Header::default()
    };
    let mut fields: Vec<(usize, String)> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let line = line.trim_end_matches('\r');
        header.length = index + 1;
        if line.trim().is_empty() {
            break;
        }
        match (line.starts_with([' ', '\t']), fields.last_mut()) {
            (true, Some((_, field))) => *field += line,
            _ if line.contains(':') => fields.push((index, line.to_owned())),
            // An mbox line, as some mail libraries write it.
            _ if index == 0 && line.starts_with("From ") => {}
            _ => {
                return Err(at(first + index, format!("not a MIME header: {line:?}"))
                    .hint("an empty line ends the header"));
            }
        }
    }
    for (index, field) in fields {
        let (name, value) = field.split_once(':').unwrap_or((&field, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "content-type" => {
                let kind = value.split(';').next().unwrap_or_default();
                header.kind = kind.trim().to_ascii_lowercase();
                header.boundary = parameter(value, "boundary");
                header.line = first + index;
                header.name = header.name.take().or_else(|| parameter(value, "name"));
            }
            "content-transfer-encoding" => header.encoding = value.trim().to_ascii_lowercase(),
            "content-disposition" => header.name = parameter(value, "filename").or(header.name),
            _ => {}
        }
    }
    Ok(header)
}

/// `; name=value` or `; name="value"`.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value;
    loop {
        rest = rest.split_once(';')?.1.trim_start();
        let (key, after) = rest.split_once('=')?;
        let (found, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim(), &after[end..])
            }
        };
        if key.trim().eq_ignore_ascii_case(name) && !found.is_empty() {
            return Some(found.to_owned());
        }
        rest = after;
    }
}

fn leaf(header: &Header, body: &[&str], start: usize, number: usize) -> Result<Part, Finding> {
    let text = body.join("\n");
    let name = header.name.clone().unwrap_or_else(|| number.to_string());
    let verbatim = matches!(header.encoding.as_str(), "" | "7bit" | "8bit" | "binary");
    let bytes = match header.encoding.as_str() {
        _ if verbatim => text.into_bytes(),
        "base64" => {
            let packed: String = text.split_whitespace().collect();
            base64::engine::general_purpose::STANDARD
                .decode(packed)
                .map_err(|error| at(start, format!("part {name}: not base64: {error}")))?
        }
        "quoted-printable" => quoted_printable(&text)
            .map_err(|line| at(start + line, format!("part {name}: not quoted-printable")))?,
        other => {
            return Err(at(
                header.line,
                format!("part {name}: unknown encoding {other:?}"),
            )
            .hint("one of 7bit, 8bit, binary, base64, quoted-printable"));
        }
    };
    Ok(Part {
        data: content(&header.kind, bytes).map_err(|finding| {
            let message = format!("part {name} ({}): {}", header.kind, finding.message);
            Finding { message, ..finding }
        }),
        name,
        line: start + 1,
        verbatim,
    })
}

/// The type of a part is a hint: what the content says of itself counts, as in cloud-init.
fn content(kind: &str, bytes: Vec<u8>) -> Result<UserData, Finding> {
    let whole = |message: &str| Finding::error(Pos::START, "", message);
    match kind {
        "text/x-include-url" | "text/x-include-once-url" => {
            let text = String::from_utf8(bytes).map_err(|_| whole("not UTF-8 text"))?;
            include(&text).map(UserData::Include)
        }
        "text/cloud-boothook"
        | "text/part-handler"
        | "text/upstart-job"
        | "text/cloud-config-archive"
        | "text/jinja2" => Err(whole("not supported")),
        "text/cloud-config" if !bytes.starts_with(b"#") && !bytes.starts_with(&[0x1f, 0x8b]) => {
            let text = String::from_utf8(bytes).map_err(|_| whole("not UTF-8 text"))?;
            Ok(UserData::CloudConfig(text))
        }
        "text/x-shellscript" if !bytes.starts_with(b"#!") => {
            Err(whole("a script whose first line does not start with #!"))
        }
        _ => match detect(&bytes)? {
            UserData::Archive(_) => Err(whole("an archive that is not called multipart")),
            data => Ok(data),
        },
    }
}

/// RFC 2045, 6.7. The error is the line.
fn quoted_printable(text: &str) -> Result<Vec<u8>, usize> {
    let mut out = Vec::with_capacity(text.len());
    // A "=" at the end of a line hides the line break.
    let mut joined = true;
    for (index, line) in text.split('\n').enumerate() {
        if !joined {
            out.push(b'\n');
        }
        joined = false;
        let mut rest = line.trim_end_matches([' ', '\t', '\r']).as_bytes();
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'=' if rest.is_empty() => joined = true,
                b'=' => {
                    let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
                    let value = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
                    out.push(value.ok_or(index)?);
                    rest = &rest[2..];
                }
                byte => out.push(*byte),
            }
        }
    }
    Ok(out)
}

fn at(line: usize, message: impl Into<String>) -> Finding {
    let pos = Pos {
        line: line + 1,
        column: 1,
    };
    Finding::error(pos, "", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match parts(text) {
            Err(finding) => finding.to_string(),
            Ok(parts) => parts
                .iter()
                .map(|p| format!("{} @{} {} {:?}\n", p.name, p.line, p.verbatim, p.data))
                .collect(),
        }
    }

    #[test]
    fn parts_of_every_encoding() {
        let text = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=\"=x=\"\r\n\r\nignored\r\n--=x=\r\nContent-Type: text/cloud-config; name=a.yml\r\n\r\n#cloud-config\r\nhostname: a\r\n--=x=\r\nContent-Type: text/x-shellscript\r\nContent-Transfer-Encoding: base64\r\n\r\nIyEvYmluL3No\r\n--=x=\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n#!/bin/a=\r\nb=3D\r\n--=x=--\r\ntrailer";
        insta::assert_snapshot!(show(text), @r##"
        a.yml @9 true Ok(CloudConfig("#cloud-config\r\nhostname: a\r"))
        2 @15 false Ok(Script([35, 33, 47, 98, 105, 110, 47, 115, 104]))
        3 @19 false Ok(Script([35, 33, 47, 98, 105, 110, 47, 97, 98, 61]))
        "##);
    }

    #[test]
    fn mistakes_have_their_line() {
        let check = |text: &str, expect: &str| assert_eq!(show(text), expect, "{text}");
        check(
            "Content-Type: multipart/mixed\n\n--x\n",
            "1:1: error: a multipart archive without a boundary (Content-Type: multipart/mixed; boundary=\"…\")",
        );
        check(
            "Content-Type: multipart/mixed; boundary=x\n\n",
            "1:1: error: no line is \"--x\" (each part starts behind a line of its own with the boundary)",
        );
        check(
            "Content-Type: multipart/mixed; boundary=x\n\n--x\n\n#!/bin/sh\n",
            "3:1: error: this part has no end: no line is \"--x--\"",
        );
        check(
            "Content-Type: multipart/mixed; boundary=x\n\n--x\nbad\n\n--x--\n",
            "4:1: error: not a MIME header: \"bad\" (an empty line ends the header)",
        );
        check(
            "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Transfer-Encoding: base64\n\n*\n--x--\n",
            "6:1: error: part 1: not base64: Invalid symbol 42, offset 0.",
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_split_or_refused(text in "(Content-Type: multipart/mixed; boundary=x\n){1,2}([-x=: \n\r\"]|--x\n|--x--\n|Content-Transfer-Encoding: (base64|quoted-printable)\n){0,40}") {
            let _ = parts(&text);
        }
    }
}
