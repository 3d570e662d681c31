//! Tokens that prove themselves: signed by one member, checked by all that have the public key.

use std::fs;
use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::Identity;
use super::tokens::JwtOptions;
use crate::error::{self, Error};

/// What etcd writes into its tokens.
#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    exp: u64,
}

pub struct Jwt {
    header: Header,
    validation: Validation,
    /// A member with the public key alone checks tokens and makes none.
    signing: Option<EncodingKey>,
    checking: DecodingKey,
    ttl: Duration,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No keys in logs.
        write!(f, "Jwt({:?})", self.header.alg)
    }
}

impl Jwt {
    pub(super) fn new(options: &JwtOptions) -> Result<Jwt, String> {
        let method = options.sign_method.as_str();
        let algorithm: Algorithm = method.parse().map_err(|_| {
            format!(
                "--auth-token: sign-method={method} is not known; there are HS, RS and PS with 256, 384 and 512, \
                 ES256, ES384 and EdDSA"
            )
        })?;
        let (signing, checking) = keys(algorithm, options)?;
        let mut validation = Validation::new(algorithm);
        // The caller's clock decides, and etcd's tokens have no audience.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Ok(Jwt {
            header: Header::new(algorithm),
            validation,
            signing,
            checking,
            ttl: options.ttl,
        })
    }

    pub(super) fn sign(&self, user: &str, revision: u64, now: Duration) -> Result<String, Error> {
        let key = self.signing.as_ref().ok_or_else(|| {
            Error::internal("auth: verification only: this member has no private key for tokens")
        })?;
        let claims = Claims {
            username: user.to_owned(),
            revision,
            exp: now.saturating_add(self.ttl).as_secs(),
        };
        jsonwebtoken::encode(&self.header, &claims, key).map_err(|reason| {
            Error::internal(format!("etcdserver: cannot sign the token: {reason}"))
        })
    }

    pub(super) fn verify(&self, token: &str, now: Duration) -> Result<Identity, Error> {
        let token = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.validation)
            .map_err(|_| error::INVALID_AUTH_TOKEN)?;
        if token.claims.exp <= now.as_secs() {
            return Err(error::INVALID_AUTH_TOKEN);
        }
        Ok(Identity {
            user: token.claims.username,
            revision: token.claims.revision,
        })
    }
}

fn keys(
    algorithm: Algorithm,
    options: &JwtOptions,
) -> Result<(Option<EncodingKey>, DecodingKey), String> {
    let private = options.private_key.as_deref().map(read).transpose()?;
    let public = options.public_key.as_deref().map(read).transpose()?;
    let unusable = |what: &str, reason: jsonwebtoken::errors::Error| {
        format!("--auth-token: {what} does not suit {algorithm:?}: {reason}")
    };
    if matches!(
        algorithm,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    ) {
        let secret =
            private.ok_or("--auth-token: HS tokens need their secret in the file priv-key=")?;
        return Ok((
            Some(EncodingKey::from_secret(&secret)),
            DecodingKey::from_secret(&secret),
        ));
    }
    let public =
        public.ok_or("--auth-token: a jwt needs pub-key=, the public key to check tokens with")?;
    let (signing, checking) = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => (
            private.map(|pem| match from_sec1(&pem, algorithm) {
                Some(pkcs8) => Ok(EncodingKey::from_ec_der(&pkcs8)),
                None => EncodingKey::from_ec_pem(&pem),
            }),
            DecodingKey::from_ec_pem(&public),
        ),
        Algorithm::EdDSA => (
            private.map(|pem| EncodingKey::from_ed_pem(&pem)),
            DecodingKey::from_ed_pem(&public),
        ),
        _ => (
            private.map(|pem| EncodingKey::from_rsa_pem(&pem)),
            DecodingKey::from_rsa_pem(&public),
        ),
    };
    let signing = signing
        .transpose()
        .map_err(|reason| unusable("priv-key", reason))?;
    let checking = checking.map_err(|reason| unusable("pub-key", reason))?;
    Ok((signing, checking))
}

/// `openssl ecparam -genkey` writes SEC 1 (`BEGIN EC PRIVATE KEY`), which etcd takes and the library for tokens does not:
/// PKCS #8 is the same with the name of the curve in front (RFC 5208, RFC 5915).
fn from_sec1(pem: &[u8], algorithm: Algorithm) -> Option<Vec<u8>> {
    const P256: &[u8] =
        b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
    const P384: &[u8] = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";
    let Ok(PrivateKeyDer::Sec1(key)) = PrivateKeyDer::from_pem_slice(pem) else {
        return None;
    };
    let curve = match algorithm {
        Algorithm::ES384 => P384,
        _ => P256,
    };
    let content = [b"\x02\x01\x00", curve, &der(0x04, key.secret_sec1_der())].concat();
    Some(der(0x30, &content))
}

/// One value of DER: tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let length = &length[zeros..];
    let mut out = vec![tag];
    if content.len() >= 0x80 {
        out.push(0x80 | u8::try_from(length.len()).unwrap_or(0));
    }
    out.extend_from_slice(length);
    out.extend_from_slice(content);
    out
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|reason| format!("--auth-token: {}: {reason}", path.display()))
}
