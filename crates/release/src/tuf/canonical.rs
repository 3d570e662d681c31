//! Canonical JSON as TUF signs it (OLPC's): no white space, keys in order, and of the characters in
//! a string only `"` and `\` escaped. Numbers are integers.

use serde_json::Value;

/// None: the value has a number that is no integer.
pub(super) fn bytes(value: &Value) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Some(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(true) => out.extend(b"true"),
        Value::Bool(false) => out.extend(b"false"),
        Value::Number(number) if number.is_f64() => return None,
        Value::Number(number) => out.extend(number.to_string().bytes()),
        Value::String(text) => string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort_unstable();
            out.push(b'{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                string(key, out);
                out.push(b':');
                write(&fields[key], out)?;
            }
            out.push(b'}');
        }
    }
    Some(())
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form() {
        let check = |json: &str, expect: Option<&str>| {
            let value = serde_json::from_str(json).unwrap();
            let got = bytes(&value).map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(got.as_deref(), expect);
        };
        check(
            r#"{ "b": [1, -2, true, null], "a": "x\ny" }"#,
            Some("{\"a\":\"x\ny\",\"b\":[1,-2,true,null]}"),
        );
        check(r#""a\"b\\c\u00e4""#, Some("\"a\\\"b\\\\cä\""));
        check("[1.5]", None);
    }
}
