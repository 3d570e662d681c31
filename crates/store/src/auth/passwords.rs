//! Passwords as bcrypt hashes. Both functions take their time: call them where waiting hurts nobody.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{self, Error};

/// A hash for the log, in the form that etcd's requests carry it.
pub fn hash_password(password: &str, cost: u32) -> Result<String, Error> {
    let hash = bcrypt::hash(password, cost).map_err(|reason| {
        Error::internal(format!("etcdserver: cannot hash the password: {reason}"))
    })?;
    Ok(STANDARD.encode(hash))
}

/// The hash as it is kept.
pub(super) fn stored(hashed: &str) -> Vec<u8> {
    STANDARD.decode(hashed).unwrap_or_default()
}

/// Is it the password of this hash?
pub fn check_password(password: &str, hash: &[u8]) -> Result<(), Error> {
    let matches = std::str::from_utf8(hash)
        .ok()
        .and_then(|hash| bcrypt::verify(password, hash).ok());
    if matches == Some(true) {
        Ok(())
    } else {
        Err(error::AUTH_FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_fits_its_password_alone() {
        let hash = stored(&hash_password("secret", 4).unwrap());
        assert_eq!(check_password("secret", &hash), Ok(()));
        assert_eq!(check_password("Secret", &hash), Err(error::AUTH_FAILED));
        assert_eq!(check_password("", b""), Err(error::AUTH_FAILED));
        assert_eq!(check_password("secret", b"\xff"), Err(error::AUTH_FAILED));
    }
}
