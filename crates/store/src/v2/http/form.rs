//! Forms and URLs by Go's rules: what counts as an error, what it is called, and which of two values wins.

use std::collections::HashMap;

/// The fields of a request: those of the body before those of the query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Form(HashMap<String, Vec<String>>);

impl Form {
    /// Reads the body (when it is a form) and the query. The text of an error is Go's.
    pub(crate) fn read(
        query: &str,
        content_type: Option<&str>,
        body: Option<&[u8]>,
    ) -> Result<Form, String> {
        let mut form = Form::default();
        let mut result = Ok(());
        if let Some(body) = body {
            result = match media_type(content_type) {
                Ok(kind) if kind == "application/x-www-form-urlencoded" => form.add(&lossy(body)),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_owned()),
            };
        }
        let query = form.add(query);
        result.and(query).map(|()| form)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let mut result = Ok(());
        for field in text.split('&') {
            if field.contains(';') {
                result = Err("invalid semicolon separator in query".to_owned());
                continue;
            }
            if field.is_empty() {
                continue;
            }
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            match (unescape(key, true), unescape(value, true)) {
                (Ok(key), Ok(value)) => self.0.entry(key).or_default().push(value),
                (Err(error), _) | (_, Err(error)) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// The first value of a field.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .and_then(|values| values.first())
            .map(String::as_str)
    }

    /// A whole number; 0 when it is not there.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            None => Some(0),
            // Go takes digits and nothing else; Rust would take a plus sign too.
            Some(text) if !text.bytes().all(|b| b.is_ascii_digit()) => None,
            Some(text) => text.parse().ok(),
        }
    }

    /// Yes or no; no when it is not there.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Some(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(true),
            Some(_) => None,
        }
    }
}

/// Percent-decoding, once. In a query a plus sign is a space.
pub(crate) fn unescape(text: &str, query: bool) -> Result<String, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let hex = |offset: usize| {
                    let digit = char::from(*bytes.get(at + offset)?);
                    digit.to_digit(16)
                };
                let (Some(high), Some(low)) = (hex(1), hex(2)) else {
                    let rest = &bytes[at..bytes.len().min(at + 3)];
                    return Err(format!("invalid URL escape {:?}", lossy(rest)));
                };
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            b'+' if query => {
                out.push(b' ');
                at += 1;
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Ok(lossy(&out))
}

/// A path as it stands in a URL.
pub(crate) fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'='
            | b'@' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Text, with each byte that is none replaced. Go replaces byte by byte, not run by run.
fn lossy(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for _ in chunk.invalid() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
    out
}

fn media_type(content_type: Option<&str>) -> Result<String, &'static str> {
    let Some(content_type) = content_type.filter(|kind| !kind.is_empty()) else {
        return Ok("application/octet-stream".into());
    };
    let kind = content_type.split(';').next().unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    let is_token = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&b))
    };
    match kind.split_once('/') {
        _ if kind.is_empty() => Err("mime: no media type"),
        None if is_token(&kind) => Ok(kind),
        None => Err("mime: expected slash after first token"),
        Some((main, _)) if !is_token(main) => Err("mime: no media type"),
        Some((_, "")) => Err("mime: expected token after slash"),
        Some((_, sub)) if !is_token(sub) => Err("mime: unexpected content after media subtype"),
        Some(_) => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_body_wins_over_the_query() {
        let form = Form::read(
            "value=q&x=1&x=2",
            Some("Application/X-WWW-Form-urlencoded; charset=utf-8"),
            Some(b"value=b+c%2B"),
        )
        .unwrap();
        assert_eq!(form.get("value"), Some("b c+"));
        assert_eq!(form.get("x"), Some("1"));
        assert_eq!(form.get("y"), None);
    }

    #[test]
    fn errors_are_called_what_go_calls_them() {
        let error = |query| Form::read(query, None, None).unwrap_err();
        assert_eq!(error("a=%zz&b=%"), "invalid URL escape \"%zz\"");
        assert_eq!(error("a=%4"), "invalid URL escape \"%4\"");
        assert_eq!(error("a=1;b=2"), "invalid semicolon separator in query");
        assert_eq!(
            Form::read("", Some(";;"), Some(b"")).unwrap_err(),
            "mime: no media type"
        );
        assert_eq!(Form::read("", None, Some(b"%zz")).unwrap().get("%zz"), None);
    }

    #[test]
    fn numbers_and_flags_are_strict() {
        let form = Form::read("a=+1&b=18446744073709551616&c=&d=yes&e=T&f=-1", None, None).unwrap();
        for field in ["a", "b", "c", "f"] {
            assert_eq!(form.number(field), None, "{field}");
        }
        assert_eq!(form.number("none"), Some(0));
        assert_eq!(form.flag("d"), None);
        assert_eq!(form.flag("c"), None);
        assert_eq!(form.flag("e"), Some(true));
    }

    #[test]
    fn each_bad_byte_becomes_one_mark() {
        assert_eq!(unescape("%ff%fea", false).unwrap(), "\u{fffd}\u{fffd}a");
        assert_eq!(unescape("%E2%82", false).unwrap(), "\u{fffd}\u{fffd}");
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_fall(query in any::<String>(), kind in any::<Option<String>>(), body in any::<Vec<u8>>()) {
            let _ = Form::read(&query, kind.as_deref(), Some(&body));
            let _ = Form::read("", Some("application/x-www-form-urlencoded"), Some(&body));
        }

        #[test]
        fn what_is_escaped_comes_back(path in any::<String>()) {
            prop_assert_eq!(unescape(&escape_path(&path), false).unwrap(), path);
        }
    }
}
