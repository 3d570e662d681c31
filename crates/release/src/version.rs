use std::fmt;
use std::str::FromStr;

/// A release's version: dotted decimal numbers, `2`, `2.1`, `20261123.0.4`.
///
/// Each version has exactly one spelling (no leading zeros, no sign, no spaces), so its text can
/// name directories and URLs, and equal versions are equal texts. `2` sorts before `2.0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(Vec<u64>);

/// Why a text is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error("a version is empty: write dotted numbers such as 2 or 2.1")]
    Empty,
    #[error("the version {0:?} is too long: at most 8 numbers of at most 18 digits")]
    TooLong(String),
    #[error("the version {text:?} has the part {part:?}: write dotted numbers such as 2 or 2.1")]
    NotANumber { text: String, part: String },
    #[error(
        "the version {text:?} has the part {part:?}: leading zeros are not allowed, so that a version has one spelling"
    )]
    LeadingZero { text: String, part: String },
}

const MAX_PARTS: usize = 8;
const MAX_DIGITS: usize = 18;

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.is_empty() {
            return Err(VersionError::Empty);
        }
        if text.len() > MAX_PARTS * (MAX_DIGITS + 1) || text.split('.').count() > MAX_PARTS {
            return Err(VersionError::TooLong(text.chars().take(40).collect()));
        }
        text.split('.')
            .map(|part| parse_part(text, part))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn parse_part(text: &str, part: &str) -> Result<u64, VersionError> {
    let not_a_number = || VersionError::NotANumber {
        text: text.into(),
        part: part.into(),
    };
    if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_a_number());
    }
    if part.len() > MAX_DIGITS {
        return Err(VersionError::TooLong(text.into()));
    }
    if part.len() > 1 && part.starts_with('0') {
        return Err(VersionError::LeadingZero {
            text: text.into(),
            part: part.into(),
        });
    }
    part.parse().map_err(|_| not_a_number())
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            write!(f, "{dot}{part}")?;
        }
        Ok(())
    }
}

crate::serde_as_text!(Version);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expect: &str) {
        let got = match text.parse::<Version>() {
            Ok(version) => version.to_string(),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(got, expect, "for {text:?}");
    }

    #[test]
    fn one_spelling_or_a_clear_error() {
        check("2", "2");
        check("20261123.0.4", "20261123.0.4");
        check(
            "",
            "error: a version is empty: write dotted numbers such as 2 or 2.1",
        );
        check(
            "2..1",
            r#"error: the version "2..1" has the part "": write dotted numbers such as 2 or 2.1"#,
        );
        check(
            "v2",
            r#"error: the version "v2" has the part "v2": write dotted numbers such as 2 or 2.1"#,
        );
        check(
            "../2",
            r#"error: the version "../2" has the part "": write dotted numbers such as 2 or 2.1"#,
        );
        check(
            "1.02",
            r#"error: the version "1.02" has the part "02": leading zeros are not allowed, so that a version has one spelling"#,
        );
        check(
            "1.2.3.4.5.6.7.8.9",
            r#"error: the version "1.2.3.4.5.6.7.8.9" is too long: at most 8 numbers of at most 18 digits"#,
        );
        check(
            "9999999999999999999",
            r#"error: the version "9999999999999999999" is too long: at most 8 numbers of at most 18 digits"#,
        );
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let mut versions: Vec<Version> = ["10", "9", "2.10", "2.9", "2", "2.0"]
            .map(|v| v.parse().unwrap())
            .into();
        versions.sort();
        let texts: Vec<_> = versions.iter().map(Version::to_string).collect();
        assert_eq!(texts, ["2", "2.0", "2.9", "2.10", "9", "10"]);
    }

    proptest! {
        #[test]
        fn what_parses_prints_itself(text in "[0-9.v/ ]{0,24}") {
            if let Ok(version) = text.parse::<Version>() {
                prop_assert_eq!(version.to_string(), text);
            }
        }
    }
}
