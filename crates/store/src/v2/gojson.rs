//! JSON as Go's encoder writes it: `<`, `>`, `&` and the two odd line separators are escaped, so that answers are equal
//! to etcd's byte by byte.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

struct Go;

impl Formatter for Go {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices() {
            let escaped = match c {
                '<' => "\\u003c",
                '>' => "\\u003e",
                '&' => "\\u0026",
                '\u{2028}' => "\\u2028",
                '\u{2029}' => "\\u2029",
                // This is what a byte that is no text has become.
                char::REPLACEMENT_CHARACTER => "\\ufffd",
                _ => continue,
            };
            CompactFormatter.write_string_fragment(writer, &fragment[plain..at])?;
            writer.write_all(escaped.as_bytes())?;
            plain = at + c.len_utf8();
        }
        CompactFormatter.write_string_fragment(writer, &fragment[plain..])
    }
}

/// A value as Go's `json.Marshal` writes it.
pub(crate) fn text<T: Serialize>(value: &T) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Go);
    // Writing to memory does not fail, and our types have string keys only.
    if let Err(error) = value.serialize(&mut serializer) {
        tracing::error!(%error, "cannot write JSON");
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The same with a line end, as Go's `json.Encoder` writes it.
pub(crate) fn line<T: Serialize>(value: &T) -> String {
    let mut out = text(value);
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_html_would_trip_over_is_escaped() {
        assert_eq!(
            super::text(&"<a href=\"x\">&\u{2028}é\u{1}"),
            r#""\u003ca href=\"x\"\u003e\u0026\u2028é\u0001""#
        );
    }
}
