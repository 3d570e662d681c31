//! Ed25519 keys: the private one as PKCS#8 PEM, the public one as a line of text.
//!
//! The public form is `ed25519:<64 hex digits> comment`, one key per file `*.pub`, so that a
//! person can compare it by eye and a host can trust several.

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
pub use ed25519_dalek::{SigningKey, VerifyingKey};

use crate::Sha256;

/// Why a text is not a key. Never contains the text: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the system gave no random bytes for a new key")]
    NoRandomness,
    #[error(
        "the private key cannot be read: it has to be an Ed25519 key in PKCS#8 PEM form (-----BEGIN PRIVATE KEY-----)"
    )]
    BadPem,
    #[error("the private key cannot be written as PEM")]
    Encode,
    #[error(
        "the public key cannot be read: it has to be one line, ed25519:<64 hex digits> and a comment"
    )]
    BadPublic,
    #[error("the public key is a weak point of the curve: anyone could sign for it")]
    Weak,
}

/// A new private key.
pub fn generate() -> Result<SigningKey, KeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| KeyError::NoRandomness)?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The private key as PKCS#8 PEM. Write it with mode 0600.
pub fn to_pem(key: &SigningKey) -> Result<String, KeyError> {
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|_| KeyError::Encode)?;
    Ok(pem.to_string())
}

pub fn from_pem(pem: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(pem).map_err(|_| KeyError::BadPem)
}

/// The line for a `*.pub` file, newline included.
pub fn public_to_text(key: &VerifyingKey, comment: &str) -> String {
    let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
    let line = format!("ed25519:{} {}", hex::encode(key.as_bytes()), comment.trim());
    format!("{}\n", line.trim_end())
}

/// Reads what [`public_to_text`] wrote. Empty lines and lines starting with `#` are skipped.
pub fn public_from_text(text: &str) -> Result<VerifyingKey, KeyError> {
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(KeyError::BadPublic);
    };
    let word = line.split_ascii_whitespace().next().unwrap_or_default();
    let hex = word.strip_prefix("ed25519:").ok_or(KeyError::BadPublic)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).map_err(|_| KeyError::BadPublic)?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::BadPublic)?;
    if key.is_weak() {
        Err(KeyError::Weak)
    } else {
        Ok(key)
    }
}

/// How signatures name a key: the SHA-256 of its 32 raw bytes.
pub fn key_id(key: &VerifyingKey) -> Sha256 {
    Sha256::of(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text() {
        let key = generate().unwrap();
        assert_eq!(
            from_pem(&to_pem(&key).unwrap()).unwrap().to_bytes(),
            key.to_bytes()
        );
        let text = public_to_text(&key.verifying_key(), "lab key\nof today ");
        assert!(
            text.ends_with(" lab keyof today\n") && text.starts_with("ed25519:"),
            "{text}"
        );
        assert_eq!(public_from_text(&text).unwrap(), key.verifying_key());
        assert_eq!(
            public_from_text(&format!("# why\n\n{text}")).unwrap(),
            key.verifying_key()
        );
        assert_ne!(generate().unwrap().to_bytes(), key.to_bytes());
    }

    #[test]
    fn openssl_reads_the_same_key() {
        // RFC 8410, section 10.3: the example private key and its public half.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        let key = from_pem(pem).unwrap();
        assert_eq!(
            public_to_text(&key.verifying_key(), ""),
            "ed25519:19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1\n"
        );
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        assert_eq!(from_pem("secret").unwrap_err(), KeyError::BadPem);
        let identity = format!("ed25519:01{}", "00".repeat(31));
        assert_eq!(public_from_text(&identity).unwrap_err(), KeyError::Weak);
        let one = public_to_text(&generate().unwrap().verifying_key(), "x");
        for bad in [
            "",
            "ed25519:",
            "rsa:00",
            "ed25519:zz",
            &one[..40],
            &format!("{one}{one}"),
        ] {
            assert_eq!(
                public_from_text(bad).unwrap_err(),
                KeyError::BadPublic,
                "{bad:?}"
            );
        }
    }
}
