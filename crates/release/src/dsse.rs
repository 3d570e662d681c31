//! The signed envelope around a manifest: DSSE v1 (Dead Simple Signing Envelope) with Ed25519.
//!
//! What is signed is not the payload but its pre-authentication encoding, which includes the
//! payload's type: bytes signed as one thing cannot be passed off as another.

use std::ops::Deref;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::keys::key_id;
use crate::{Manifest, ManifestError, Sha256};

/// What the payload of a manifest's envelope is called.
pub const PAYLOAD_TYPE: &str = "application/vnd.orlop.manifest.v1+json";

/// No honest envelope comes near it; a host reads no further.
pub const MAX_ENVELOPE: usize = 1024 * 1024;

/// Each one costs a verification per trusted key.
const MAX_SIGNATURES: usize = 16;

/// An envelope as it travels. Nothing in it is trusted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EnvelopeSignature {
    /// A hint only (the protocol does not authenticate it), so it is not used for decisions.
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Something whose signature was checked; made only by [`Envelope::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    id: Sha256,
    signers: Vec<Sha256>,
}

/// Why an envelope is not believed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the envelope has {0} bytes, more than the {MAX_ENVELOPE} that one can have")]
    TooLarge(usize),
    #[error("the envelope is not complete JSON of the expected form")]
    Malformed(#[source] serde_json::Error),
    #[error("the envelope's {0} is not base64")]
    NotBase64(&'static str),
    #[error("the envelope holds {0:?}, not a manifest ({PAYLOAD_TYPE})")]
    WrongType(String),
    #[error("the envelope has {0} signatures, more than the {MAX_SIGNATURES} that are looked at")]
    TooManySignatures(usize),
    #[error(
        "no trusted keys to check the signature with: put at least one *.pub file into the key directory"
    )]
    NoKeys,
    #[error(
        "the manifest has valid signatures of {got} trusted keys but needs {need}: it was changed, or signed by a key that is not trusted here"
    )]
    Untrusted { got: usize, need: usize },
    #[error("the signed payload is not a manifest that this program understands")]
    BadManifest(#[source] serde_json::Error),
    #[error("the signed manifest makes no sense")]
    Nonsense(#[source] ManifestError),
}

/// Why a manifest was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the manifest makes no sense, so it is not signed")]
    Nonsense(#[source] ManifestError),
    #[error("the manifest cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

impl Envelope {
    /// Signs a manifest.
    pub fn sign(manifest: &Manifest, key: &SigningKey) -> Result<Self, SignError> {
        manifest.check().map_err(SignError::Nonsense)?;
        let payload = serde_json::to_vec(manifest).map_err(SignError::Json)?;
        Ok(Self::seal(PAYLOAD_TYPE, &payload, &[key]))
    }

    fn seal(payload_type: &str, payload: &[u8], keys: &[&SigningKey]) -> Self {
        let message = pae(payload_type, payload);
        let signatures = keys.iter().map(|key| EnvelopeSignature {
            keyid: key_id(&key.verifying_key()).to_string(),
            sig: STANDARD.encode(key.sign(&message).to_bytes()),
        });
        Self {
            payload_type: payload_type.into(),
            payload: STANDARD.encode(payload),
            signatures: signatures.collect(),
        }
    }

    /// Reads an envelope without believing it.
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(VerifyError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(VerifyError::Malformed)
    }

    /// Reads an envelope and believes it if one of `keys` signed it.
    pub fn verify(bytes: &[u8], keys: &[VerifyingKey]) -> Result<Verified<Manifest>, VerifyError> {
        Self::verify_threshold(bytes, keys, 1)
    }

    /// Like [`Envelope::verify`], but `need` different keys must have signed (at least one).
    pub fn verify_threshold(
        bytes: &[u8],
        keys: &[VerifyingKey],
        need: usize,
    ) -> Result<Verified<Manifest>, VerifyError> {
        let envelope = Self::parse(bytes)?;
        let (payload, signers) = envelope.check_signatures(keys, need.max(1))?;
        let value = parse_manifest(&payload)?;
        Ok(Verified {
            value,
            id: Sha256::of(&payload),
            signers,
        })
    }

    /// The payload's bytes and the ids of the trusted keys that signed them.
    fn check_signatures(
        &self,
        keys: &[VerifyingKey],
        need: usize,
    ) -> Result<(Vec<u8>, Vec<Sha256>), VerifyError> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(VerifyError::WrongType(
                self.payload_type.chars().take(80).collect(),
            ));
        }
        if self.signatures.len() > MAX_SIGNATURES {
            return Err(VerifyError::TooManySignatures(self.signatures.len()));
        }
        if keys.is_empty() {
            return Err(VerifyError::NoKeys);
        }
        let payload = decode(&self.payload).ok_or(VerifyError::NotBase64("payload"))?;
        let message = pae(&self.payload_type, &payload);
        let mut signers = Vec::new();
        for signature in &self.signatures {
            let bytes = decode(&signature.sig).ok_or(VerifyError::NotBase64("signature"))?;
            // Another algorithm's signature is not an error: ours may stand beside it.
            let Ok(signature) = Signature::from_slice(&bytes) else {
                continue;
            };
            signers.extend(
                keys.iter()
                    .filter(|key| key.verify_strict(&message, &signature).is_ok())
                    .map(key_id),
            );
        }
        signers.sort_unstable();
        signers.dedup();
        if signers.len() < need {
            return Err(VerifyError::Untrusted {
                got: signers.len(),
                need,
            });
        }
        Ok((payload, signers))
    }

    /// The release's id: SHA-256 of the payload. The same manifest signed by other keys keeps it.
    pub fn digest(&self) -> Result<Sha256, VerifyError> {
        decode(&self.payload)
            .map(Sha256::of)
            .ok_or(VerifyError::NotBase64("payload"))
    }

    /// The manifest as claimed, to show to a person. Nothing may be installed because of it.
    pub fn unverified_manifest(&self) -> Result<Manifest, VerifyError> {
        let payload = decode(&self.payload).ok_or(VerifyError::NotBase64("payload"))?;
        parse_manifest(&payload)
    }

    /// The file's bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl<T> Verified<T> {
    /// The release's id, see [`Envelope::digest`].
    pub fn id(&self) -> Sha256 {
        self.id
    }

    /// The ids of the trusted keys that signed it.
    pub fn signers(&self) -> &[Sha256] {
        &self.signers
    }

    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

fn parse_manifest(payload: &[u8]) -> Result<Manifest, VerifyError> {
    let manifest: Manifest = serde_json::from_slice(payload).map_err(VerifyError::BadManifest)?;
    manifest.check().map_err(VerifyError::Nonsense)?;
    Ok(manifest)
}

/// The protocol lets a signer use either base64 alphabet.
fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .ok()
}

/// Pre-authentication encoding: `DSSEv1 LEN(type) type LEN(payload) payload`, lengths in decimal.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::example;
    use proptest::prelude::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn signed() -> Envelope {
        Envelope::sign(&example(), &key(1)).unwrap()
    }

    /// Changes a good envelope and says what became of it, causes included.
    fn check(change: impl FnOnce(&mut Envelope), expect: &str) {
        let mut envelope = signed();
        change(&mut envelope);
        check_bytes(
            &envelope.to_json().unwrap(),
            &[key(1).verifying_key()],
            expect,
        );
    }

    fn check_bytes(bytes: &[u8], keys: &[VerifyingKey], expect: &str) {
        let got = match Envelope::verify(bytes, keys) {
            Ok(release) => format!("version {}", release.version),
            Err(error) => match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
        };
        assert!(got.starts_with(expect), "got {got:?}, expected {expect:?}");
    }

    #[test]
    fn the_protocols_own_example() {
        // The PAE example in protocol.md of the DSSE specification.
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        // Lengths are bytes, not characters.
        assert_eq!(pae("ü", "é".as_bytes()), "DSSEv1 2 ü 2 é".as_bytes());
    }

    #[test]
    fn ed25519_as_in_the_rfc() {
        // RFC 8032, section 7.1, test 2: the signature scheme underneath.
        let mut seed = [0; 32];
        let hex = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        hex::decode_to_slice(hex, &mut seed).unwrap();
        assert_eq!(
            hex::encode(SigningKey::from_bytes(&seed).sign(&[0x72]).to_bytes()),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
    }

    #[test]
    fn a_signed_manifest_is_believed() {
        let envelope = signed();
        let release = Envelope::verify(
            &envelope.to_json().unwrap(),
            &[key(9), key(1)].map(|k| k.verifying_key()),
        )
        .unwrap();
        assert_eq!(*release, example());
        assert_eq!(release.id(), envelope.digest().unwrap());
        assert_eq!(release.signers(), [key_id(&key(1).verifying_key())]);
        // The id does not depend on who signed.
        assert_eq!(
            release.id(),
            Envelope::sign(&example(), &key(2))
                .unwrap()
                .digest()
                .unwrap()
        );
    }

    #[test]
    fn refusals() {
        check(|_| (), "version 2");
        check(
            |e| e.signatures.clear(),
            "the manifest has valid signatures of 0 trusted keys but needs 1",
        );
        check(
            |e| e.payload_type = "text/plain".into(),
            r#"the envelope holds "text/plain", not a manifest"#,
        );
        check(
            |e| e.payload = "%%%".into(),
            "the envelope's payload is not base64",
        );
        check(
            |e| e.signatures[0].sig = "%".into(),
            "the envelope's signature is not base64",
        );
        check(
            |e| e.signatures[0].sig = "AAAA".into(),
            "the manifest has valid signatures of 0",
        );
        check(
            |e| e.signatures = vec![e.signatures[0].clone(); 17],
            "the envelope has 17 signatures, more than the 16",
        );
        // The key id is a hint: a wrong one neither helps nor hurts.
        check(|e| e.signatures[0].keyid = "nonsense".into(), "version 2");
        // Signed as something else: the type is part of what is signed.
        check(
            |e| {
                let payload = decode(&e.payload).unwrap();
                *e = Envelope::seal("text/plain", &payload, &[&key(1)]);
                e.payload_type = PAYLOAD_TYPE.into();
            },
            "the manifest has valid signatures of 0",
        );
        check(
            |e| *e = Envelope::seal(PAYLOAD_TYPE, b"{}", &[&key(1)]),
            "the signed payload is not a manifest that this program understands: missing field",
        );
        let mut nonsense = example();
        nonsense.usr.size = 1;
        let payload = serde_json::to_vec(&nonsense).unwrap();
        check(
            |e| *e = Envelope::seal(PAYLOAD_TYPE, &payload, &[&key(1)]),
            "the signed manifest makes no sense: usr.size is 1",
        );
        assert!(matches!(
            Envelope::sign(&nonsense, &key(1)),
            Err(SignError::Nonsense(_))
        ));
    }

    #[test]
    fn wrong_key_no_key_and_broken_bytes() {
        let bytes = signed().to_json().unwrap();
        check_bytes(
            &bytes,
            &[key(2).verifying_key()],
            "the manifest has valid signatures of 0",
        );
        check_bytes(&bytes, &[], "no trusted keys");
        check_bytes(
            &bytes[..bytes.len() / 2],
            &[key(1).verifying_key()],
            "the envelope is not complete JSON of the expected form: EOF while parsing",
        );
        let huge = [bytes, vec![b' '; MAX_ENVELOPE]].concat();
        check_bytes(&huge, &[key(1).verifying_key()], "the envelope has 104");
    }

    #[test]
    fn every_flipped_payload_byte_is_noticed() {
        let envelope = signed();
        let payload = decode(&envelope.payload).unwrap();
        for at in 0..payload.len() {
            let mut changed = payload.clone();
            changed[at] ^= 1;
            let bad = Envelope {
                payload: STANDARD.encode(changed),
                ..envelope.clone()
            };
            let result = Envelope::verify(&bad.to_json().unwrap(), &[key(1).verifying_key()]);
            assert!(
                matches!(result, Err(VerifyError::Untrusted { .. })),
                "byte {at}: {result:?}"
            );
        }
    }

    #[test]
    fn one_key_counts_once() {
        let payload = serde_json::to_vec(&example()).unwrap();
        let keys = [key(1), key(2)].map(|k| k.verifying_key());
        let twice = Envelope::seal(PAYLOAD_TYPE, &payload, &[&key(1), &key(1)])
            .to_json()
            .unwrap();
        assert!(matches!(
            Envelope::verify_threshold(&twice, &keys, 2),
            Err(VerifyError::Untrusted { got: 1, need: 2 })
        ));
        let both = Envelope::seal(PAYLOAD_TYPE, &payload, &[&key(1), &key(2)])
            .to_json()
            .unwrap();
        assert_eq!(
            Envelope::verify_threshold(&both, &keys, 2)
                .unwrap()
                .signers()
                .len(),
            2
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_not_panicked_on(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Envelope::verify(&bytes, &[key(1).verifying_key()]).is_err());
        }

        #[test]
        fn a_truncated_envelope_is_refused(cut in 0usize..400) {
            let bytes = signed().to_json().unwrap();
            let end = bytes.len().saturating_sub(cut + 3);
            prop_assert!(Envelope::verify(&bytes[..end], &[key(1).verifying_key()]).is_err());
        }
    }
}
