//! `$public_ipv4` and its three siblings, replaced in the text before it is parsed.
//!
//! In the text and not in the tree, because that is what the original does and what `\$` inside a
//! double-quoted scalar needs: YAML knows no such escape. The edits are remembered, so that every
//! finding still points into the file as the user wrote it.

use std::collections::BTreeMap;

use crate::finding::{Finding, Pos};

/// Known addresses by variable name, e.g. `public_ipv4`.
pub type Variables = BTreeMap<&'static str, String>;

pub const NAMES: [&str; 4] = ["public_ipv4", "private_ipv4", "public_ipv6", "private_ipv6"];

#[derive(Debug)]
pub struct Substituted {
    pub text: String,
    pub findings: Vec<Finding>,
    edits: Vec<Edit>,
}

/// On `line`, `was` characters of the original became `now`, which start at column `at` of the result.
#[derive(Debug)]
struct Edit {
    line: usize,
    at: usize,
    now: usize,
    was: usize,
}

impl Substituted {
    /// Where a place in the result was in the original. Inside a replaced value: its start.
    pub fn original(&self, pos: Pos) -> Pos {
        let (mut grown, mut shrunk) = (0, 0);
        let mut column = pos.column;
        for edit in self.edits.iter().filter(|e| e.line == pos.line) {
            if pos.column >= edit.at + edit.now {
                (grown, shrunk) = (grown + edit.now, shrunk + edit.was);
            } else if pos.column > edit.at {
                column = edit.at;
                break;
            }
        }
        column = column + shrunk - grown;
        Pos { column, ..pos }
    }
}

/// Replaces `$name` and `${name}`; `\$name` becomes `$name`. A variable without a value stays as it is
/// and gives a warning: an empty address in a config is worse than a visible placeholder.
pub fn substitute(text: &str, variables: &Variables) -> Substituted {
    let mut out = Substituted {
        text: String::with_capacity(text.len()),
        findings: Vec::new(),
        edits: Vec::new(),
    };
    for (index, line) in text.split_inclusive('\n').enumerate() {
        substitute_line(line, index + 1, variables, &mut out);
    }
    out
}

fn substitute_line(line: &str, number: usize, variables: &Variables, out: &mut Substituted) {
    let mut rest = line;
    // Columns of the next character, counted from 1, in the result and in the original.
    let (mut column, mut original) = (1, 1);
    while let Some(dollar) = rest.find('$') {
        let Some((name, length)) = variable(&rest[dollar..]) else {
            let end = dollar + 1;
            column += rest[..end].chars().count();
            original += rest[..end].chars().count();
            out.text.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        };
        let escaped = rest[..dollar].ends_with('\\');
        let before = &rest[..dollar - usize::from(escaped)];
        let token = &rest[dollar..dollar + length];
        column += before.chars().count();
        original += before.chars().count();
        out.text.push_str(before);
        let value = match (escaped, variables.get(name)) {
            (true, _) => token,
            (false, Some(value)) => value,
            (false, None) => {
                let pos = Pos {
                    line: number,
                    column: original,
                };
                out.findings.push(
                    Finding::warning(
                        pos,
                        "",
                        format!("{token} is not known here and stays as it is"),
                    )
                    .hint("the datasource gives no such address"),
                );
                token
            }
        };
        out.text.push_str(value);
        let (now, was) = (value.chars().count(), length + usize::from(escaped));
        if now != was {
            out.edits.push(Edit {
                line: number,
                at: column,
                now,
                was,
            });
        }
        column += now;
        original += was;
        rest = &rest[dollar + length..];
    }
    out.text.push_str(rest);
}

/// The variable at the start of `text` (which starts with `$`) and how long it is there.
fn variable(text: &str) -> Option<(&'static str, usize)> {
    NAMES.into_iter().find_map(|name| {
        if text[1..].starts_with(name) {
            return Some((name, 1 + name.len()));
        }
        let braced = text.strip_prefix("${")?.strip_prefix(name)?;
        braced.starts_with('}').then_some((name, 3 + name.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Variables {
        Variables::from([
            ("public_ipv4", "203.0.113.9".to_owned()),
            ("private_ipv4", "10.0.0.9".to_owned()),
        ])
    }

    #[test]
    fn replaces_and_escapes() {
        let check = |text: &str, expect: &str| {
            assert_eq!(substitute(text, &known()).text, expect, "{text}");
        };
        check("a: http://$public_ipv4:1", "a: http://203.0.113.9:1");
        check("$private_ipv4$private_ipv4", "10.0.0.910.0.0.9");
        check("${public_ipv4}", "203.0.113.9");
        check("${public_ipv4", "${public_ipv4");
        check("\\$public_ipv4 $x", "$public_ipv4 $x");
        check("$public_ipv6\n", "$public_ipv6\n");
        check("ü$", "ü$");
    }

    #[test]
    fn places_point_into_the_original() {
        let done = substitute("x\nü: $public_ipv4 ${private_ipv4} z\n", &known());
        assert_eq!(done.text, "x\nü: 203.0.113.9 10.0.0.9 z\n");
        let check = |column, expect| {
            let pos = done.original(Pos { line: 2, column });
            assert_eq!(
                pos,
                Pos {
                    line: 2,
                    column: expect
                }
            );
        };
        check(1, 1);
        check(4, 4);
        check(9, 4);
        check(16, 17);
        check(25, 33);
    }

    #[test]
    fn an_unknown_address_is_a_warning_with_its_place() {
        let done = substitute("#\na: [$private_ipv4, $public_ipv6]", &known());
        assert_eq!(
            done.findings[0].to_string(),
            "2:20: warning: $public_ipv6 is not known here and stays as it is (the datasource gives no such address)"
        );
    }
}
