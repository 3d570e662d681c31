//! `write_files`.

use base64::Engine;

use super::Spanned;
use super::reader::Reader;
use crate::suggest::closest;
use crate::userdata::gunzip;
use crate::yaml::Node;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute, without `.`, `..` or doubled slashes.
    pub path: Spanned<String>,
    /// Decoded.
    pub content: Vec<u8>,
    pub mode: u32,
    /// `user`, `user:group` or numbers; known names are the plan's business.
    pub owner: Option<Spanned<String>>,
}

const KEYS: &[&str] = &["content", "encoding", "owner", "path", "permissions"];

pub(super) fn file(r: &mut Reader, node: &Node) -> Option<File> {
    let before = r.findings.len();
    let (mut path, mut content, mut encoding) = (None, None, None);
    let (mut mode, mut owner) = (0o644, None);
    r.fields(node, KEYS, |r, key, node| match key {
        "content" => content = r.string(node).map(|text| (text, node.pos)),
        "encoding" => encoding = r.string(node).map(|text| (text, node.pos)),
        "owner" => owner = r.spanned(node).filter(|owner| !owner.value.is_empty()),
        "path" => path = absolute(r, node),
        "permissions" => mode = permissions(r, node).unwrap_or(mode),
        _ => {}
    });
    let (text, content_pos) = content.unwrap_or_else(|| (String::new(), node.pos));
    let (encoding, encoding_pos) = encoding.unwrap_or_else(|| (String::new(), node.pos));
    let content = match decode(&text, &encoding) {
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
    Some(File {
        path,
        content,
        mode,
        owner,
    })
}

/// The original joins a relative path to `/`, and takes `../../etc/x` too. The first is harmless.
fn absolute(r: &mut Reader, node: &Node) -> Option<Spanned<String>> {
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

const ENCODINGS: [&str; 8] = [
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

fn decode(text: &str, encoding: &str) -> Result<Vec<u8>, Problem> {
    let gzip = |bytes: &[u8]| {
        gunzip(bytes).map_err(|problem| Problem::Content(format!("not gzip: {problem}")))
    };
    match encoding {
        "" | "text/plain" => Ok(text.as_bytes().to_vec()),
        "b64" | "base64" => base64(text),
        "gz" | "gzip" => gzip(text.as_bytes()),
        "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => gzip(&base64(text)?),
        _ => Err(Problem::Encoding),
    }
}

/// Line breaks and blanks are common in block scalars and mean nothing.
fn base64(text: &str) -> Result<Vec<u8>, Problem> {
    let packed: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(packed)
        .map_err(|error| Problem::Content(format!("not base64: {error}")))
}
