//! The kernel command line.

use std::path::Path;

use crate::file::{self, ReadError};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cmdline(Vec<(String, Option<String>)>);

impl Cmdline {
    pub fn read(root: &Path) -> Result<Self, ReadError> {
        file::read(root, "/proc/cmdline").map(|text| Self::parse(&text))
    }

    /// Splits as the kernel does (`lib/cmdline.c`): at blanks outside of double quotes, which may
    /// stand around the value or around the whole parameter.
    pub fn parse(text: &str) -> Self {
        let mut words = Vec::new();
        let (mut word, mut quoted, mut any) = (String::new(), false, false);
        for c in text.chars() {
            match c {
                '"' => (quoted, any) = (!quoted, true),
                c if c.is_ascii_whitespace() && !quoted => {
                    if any {
                        words.push(std::mem::take(&mut word));
                        any = false;
                    }
                }
                c => {
                    word.push(c);
                    any = true;
                }
            }
        }
        if any {
            words.push(word);
        }
        Self(
            words
                .into_iter()
                .map(|word| match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (word, None),
                })
                .collect(),
        )
    }

    /// The value of `key`; the last one wins, as in the kernel. A bare word has no value: see [`Self::has`].
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(k, _)| k == key)
            .and_then(|(_, value)| value.as_deref())
    }

    /// Whether `key` stands on the line, with or without a value.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// Every value of a key that may repeat, e.g. `console`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .filter_map(|(_, value)| value.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_like_the_kernel() {
        let line = Cmdline::parse(
            "quiet console=tty0 console=ttyS0,115200 x=\"a b\" \"y=c d\" empty= n=1 n=2\n",
        );
        assert!(line.has("quiet") && line.get("quiet").is_none());
        assert_eq!(
            line.all("console").collect::<Vec<_>>(),
            ["tty0", "ttyS0,115200"]
        );
        assert_eq!(line.get("x"), Some("a b"));
        assert_eq!(line.get("y"), Some("c d"));
        assert_eq!(line.get("empty"), Some(""));
        assert_eq!(line.get("n"), Some("2"));
        assert_eq!(line.get("absent"), None);
    }
}
