//! Looking things up in what services say.

use base64::Engine;
use serde_json::Value;

/// The text at a pointer (RFC 6901), numbers included; `None` where it is empty.
pub(super) fn text(value: &Value, pointer: &str) -> Option<String> {
    match value.pointer(pointer)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let items = value.pointer(pointer).and_then(Value::as_array);
    items.map_or(&[], Vec::as_slice)
}

/// Strings of a list.
pub(super) fn strings(value: &Value, pointer: &str) -> Vec<String> {
    let texts = items(value, pointer).iter().filter_map(Value::as_str);
    texts.flat_map(lines).collect()
}

/// Lines with something on them.
pub(super) fn lines(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

pub(super) fn parse(what: &str, bytes: &[u8]) -> anyhow::Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| anyhow::anyhow!("{what} is not JSON: {error}"))
}

pub(super) fn base64(what: &str, text: &str) -> anyhow::Result<Vec<u8>> {
    let packed: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(packed)
        .map_err(|error| anyhow::anyhow!("{what} is not base64: {error}"))
}
