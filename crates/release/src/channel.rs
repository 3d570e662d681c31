use std::fmt;
use std::str::FromStr;

/// A channel that hosts follow: a short lowercase name. `alpha`, `beta` and `stable` are the
/// well-known ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(String);

/// Why a text is not a channel's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a channel: use 1 to 32 lowercase letters, digits and '-', starting with a letter (alpha, beta, stable)"
)]
pub struct ChannelError(String);

impl Channel {
    /// The channels every server has from the start, most adventurous first.
    pub const WELL_KNOWN: [&str; 3] = ["alpha", "beta", "stable"];

    /// The channel of a host that was told nothing else.
    pub fn stable() -> Self {
        Self("stable".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Channel {
    type Err = ChannelError;

    fn from_str(text: &str) -> Result<Self, ChannelError> {
        let good = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if good {
            Ok(Self(text.into()))
        } else {
            Err(ChannelError(text.chars().take(40).collect()))
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::serde_as_text!(Channel);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_lowercase() {
        for good in Channel::WELL_KNOWN.into_iter().chain(["lab-7"]) {
            assert_eq!(good.parse::<Channel>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "Stable",
            "7up",
            "-x",
            "a/b",
            "a b",
            "ü",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<Channel>().is_err(), "{bad:?} was accepted");
        }
    }
}
