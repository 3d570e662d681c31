use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use sha2::Digest as _;

/// A SHA-256 digest, 64 lowercase hex digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

/// Why a text is not a SHA-256 digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest: 64 hex digits")]
pub struct Sha256Error(String);

impl Sha256 {
    /// The digest of these bytes.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The first 12 digits: enough for a person to tell two releases apart.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }

    /// Omaha's postinstall action wants base64.
    pub fn to_base64(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.0)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = Sha256Error;

    fn from_str(text: &str) -> Result<Self, Sha256Error> {
        let mut digest = [0; 32];
        match hex::decode_to_slice(text, &mut digest) {
            Ok(()) => Ok(Self(digest)),
            Err(_) => Err(Sha256Error(text.chars().take(80).collect())),
        }
    }
}

crate::serde_as_text!(Sha256);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_example() {
        // FIPS 180-2, appendix B.1
        let digest = Sha256::of("abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(digest.short(), "ba7816bf8f01");
        assert_eq!(
            digest.to_base64(),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
        );
        assert!("ba78".parse::<Sha256>().is_err());
        assert!(text.replace('b', "g").parse::<Sha256>().is_err());
    }
}
