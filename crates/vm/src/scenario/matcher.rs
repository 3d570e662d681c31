//! Does JSON look as expected? An expectation names only what it cares about.
//!
//! Objects match when each expected key does, arrays when each expected element matches some element. Strings have a
//! small language, because TOML has no null and health messages no fixed wording: `"*"` is anything but null, `"null"` is
//! null or absent, `"~text"` is any string with `text` in it.

use serde_json::Value;

/// `None` when it matches, else the first difference, named by its path.
pub fn mismatch(expected: &Value, actual: &Value) -> Option<String> {
    differs("", expected, actual)
}

fn differs(path: &str, expected: &Value, actual: &Value) -> Option<String> {
    let different = || Some(format!("{} is {actual}, expected {expected}", name(path)));
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            expected.iter().find_map(|(key, value)| {
                differs(
                    &format!("{path}.{key}"),
                    value,
                    actual.get(key).unwrap_or(&Value::Null),
                )
            })
        }
        (Value::Array(wanted), Value::Array(actual)) => {
            let missing = wanted
                .iter()
                .find(|one| !actual.iter().any(|other| differs("", one, other).is_none()))?;
            Some(format!(
                "{} is {}, expected an element like {missing}",
                name(path),
                Value::from(actual.clone())
            ))
        }
        (Value::String(text), actual) => match (text.as_str(), actual) {
            ("null", Value::Null) => None,
            ("*", actual) if !actual.is_null() => None,
            (text, Value::String(actual)) if text == actual => None,
            (text, Value::String(actual)) => match text.strip_prefix('~') {
                Some(part) if actual.contains(part) => None,
                _ => different(),
            },
            _ => different(),
        },
        (expected, actual) if expected == actual => None,
        _ => different(),
    }
}

fn name(path: &str) -> &str {
    if path.is_empty() { "it" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: &str, actual: &str) -> String {
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        mismatch(&parse(expected), &parse(actual)).unwrap_or_else(|| "matches".into())
    }

    #[test]
    fn what_is_not_named_does_not_matter() {
        let status = r#"{"version":"2","staged":null,"failed":[{"version":"3","reason":"sshd.service failed"}]}"#;
        for expected in [
            r#"{}"#,
            r#"{"version":"2"}"#,
            r#"{"version":"*"}"#,
            r#"{"staged":"null","rollback":"null"}"#,
            r#"{"failed":[{"version":"3","reason":"~sshd"}]}"#,
        ] {
            assert_eq!(check(expected, status), "matches", "{expected}");
        }
    }

    #[test]
    fn a_difference_is_named_by_its_path() {
        let status = r#"{"update":{"state":"idle"},"staged":null,"failed":[]}"#;
        assert_eq!(
            check(r#"{"update":{"state":"staged"}}"#, status),
            r#".update.state is "idle", expected "staged""#
        );
        assert_eq!(
            check(r#"{"staged":"*"}"#, status),
            r#".staged is null, expected "*""#
        );
        assert_eq!(
            check(r#"{"staged":{"version":"2"}}"#, status),
            r#".staged is null, expected {"version":"2"}"#
        );
        assert_eq!(
            check(r#"{"failed":[{"version":"3"}]}"#, status),
            r#".failed is [], expected an element like {"version":"3"}"#
        );
    }
}
