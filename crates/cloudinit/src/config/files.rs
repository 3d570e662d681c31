//! `write_files`.

use base64::Engine;

use super::Spanned;
use super::reader::Reader;
use crate::imports::{Import, Purpose};
use crate::suggest::closest;
use crate::userdata::gunzip;
use crate::yaml::{Entry, Node, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute, without `.`, `..` or doubled slashes.
    pub path: Spanned<String>,
    /// Decoded.
    pub content: Vec<u8>,
    pub mode: u32,
    /// `user`, `user:group` or numbers; known names are the plan's business.
    pub owner: Option<Spanned<String>>,
    /// Put behind what is in the file, unless it is there already.
    pub append: bool,
}

/// A directory to make; of one that is there, mode and owner are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    pub path: Spanned<String>,
    pub mode: u32,
    pub owner: Option<Spanned<String>>,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub path: Spanned<String>,
    pub target: String,
}

pub(super) const KEYS: &[&str] = &[
    "append",
    "content",
    "defer",
    "encoding",
    "owner",
    "path",
    "permissions",
    "source",
];

pub(super) const SOURCE_KEYS: &[&str] = &["headers", "uri"];

pub(super) fn file(r: &mut Reader, node: &Node) -> Option<File> {
    let before = r.findings.len();
    let (mut path, mut content, mut encoding) = (None, None, None);
    let (mut mode, mut owner, mut append, mut origin) = (0o644, None, false, None);
    r.fields(node, KEYS, |r, key, node| match key {
        "append" => append = r.boolean(node),
        // Users are there before any file is written.
        "defer" => drop(r.boolean(node)),
        "content" => content = r.bytes(node).map(|text| (text, node.pos)),
        "encoding" => encoding = r.string(node).map(|text| (text, node.pos)),
        "owner" => owner = r.spanned(node).filter(|owner| !owner.value.is_empty()),
        "path" => path = absolute(r, node),
        "permissions" => mode = permissions(r, node).unwrap_or(mode),
        "source" => origin = source(r, node),
        _ => {}
    });
    let (text, content_pos) = content.unwrap_or_else(|| (Vec::new(), node.pos));
    let (encoding, encoding_pos) = encoding.unwrap_or_else(|| (String::new(), node.pos));
    let content = match decode(text, &encoding) {
        Ok(content) => content,
        Err(Problem::Encoding) => {
            r.within("encoding", |r| {
                let hint = match closest(&encoding, ENCODINGS) {
                    Some(close) => format!("did you mean {close}?"),
                    None => format!("one of {}", ENCODINGS.join(", ")),
                };
                r.error(encoding_pos, format!("unknown encoding {encoding:?}"))
                    .hint = Some(hint);
            });
            return None;
        }
        Err(Problem::Content(problem)) => {
            r.within("content", |r| {
                r.error(content_pos, problem);
            });
            return None;
        }
    };
    let Some(path) = path else {
        if !r.findings[before..].iter().any(|f| f.is_error()) {
            r.error(node.pos, "a file without a path");
        }
        return None;
    };
    // What is at a URL counts more than what stands here, as in cloud-init.
    let content = match origin {
        Some(import) => r.content(import)?.bytes().to_vec(),
        None => content,
    };
    Some(File {
        path,
        content,
        mode,
        owner,
        append,
    })
}

/// cloud-init's `source`: a URL, and lines for the request.
fn source(r: &mut Reader, node: &Node) -> Option<Spanned<Import>> {
    let (mut url, mut headers) = (None, Vec::new());
    r.fields(node, SOURCE_KEYS, |r, key, node| match key {
        "uri" => url = r.url(node),
        _ => headers = named(r, node),
    });
    let mut import = url?.map(|url| Import::new(url, Purpose::File));
    import.value.headers = headers;
    Some(import)
}

/// A mapping of any names to lines.
fn named(r: &mut Reader, node: &Node) -> Vec<(String, String)> {
    let Value::Map(entries) = &node.value else {
        r.error(node.pos, "expected a mapping of names to values");
        return Vec::new();
    };
    let read = |entry: &Entry| Some((entry.key.clone(), r.line(&entry.node)?));
    entries.iter().filter_map(read).collect()
}

/// The original joins a relative path to `/`, and takes `../../etc/x` too. The first is harmless.
pub(super) fn absolute(r: &mut Reader, node: &Node) -> Option<Spanned<String>> {
    let Spanned { value: text, place } = r.spanned(node)?;
    let parts: Vec<&str> = text
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect();
    if parts.contains(&"..") {
        r.error(node.pos, format!("{text:?} has a \"..\" in it"))
            .hint = Some("write the path in full".to_owned());
        return None;
    }
    if parts.is_empty() || text.ends_with('/') {
        r.error(node.pos, format!("{text:?} does not name a file"));
        return None;
    }
    if !text.starts_with('/') {
        r.warning(node.pos, format!("{text:?} is taken from /"));
    }
    let value = format!("/{}", parts.join("/"));
    Some(Spanned { value, place })
}

/// Octal whether quoted or not.
fn permissions(r: &mut Reader, node: &Node) -> Option<u32> {
    let text = r.string(node)?;
    if text.is_empty() {
        return None;
    }
    let digits = text.strip_prefix("0o").unwrap_or(&text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o7777 && !digits.starts_with('+') => Some(mode),
        _ => {
            r.error(node.pos, format!("{text:?} is not an octal mode"))
                .hint = Some("e.g. 0644".to_owned());
            None
        }
    }
}

pub(super) const ENCODINGS: [&str; 8] = [
    "b64",
    "base64",
    "gz",
    "gzip",
    "gz+b64",
    "gzip+b64",
    "gz+base64",
    "gzip+base64",
];

enum Problem {
    Encoding,
    Content(String),
}

fn decode(content: Vec<u8>, encoding: &str) -> Result<Vec<u8>, Problem> {
    let gzip = |bytes: &[u8]| {
        gunzip(bytes).map_err(|problem| Problem::Content(format!("not gzip: {problem}")))
    };
    match encoding {
        "" | "text/plain" => Ok(content),
        "b64" | "base64" => base64(content),
        "gz" | "gzip" => gzip(&content),
        "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => gzip(&base64(content)?),
        _ => Err(Problem::Encoding),
    }
}

/// Line breaks and blanks are common in block scalars and mean nothing.
fn base64(mut text: Vec<u8>) -> Result<Vec<u8>, Problem> {
    text.retain(|byte| !byte.is_ascii_whitespace());
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| Problem::Content(format!("not base64: {error}")))
}
