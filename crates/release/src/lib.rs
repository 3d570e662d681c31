//! What a release is, and why a host believes it.
//!
//! A release is a directory of files described by a [`Manifest`]. The manifest travels in a
//! signed [`dsse::Envelope`]; only [`dsse::Envelope::verify`] makes a [`Verified`] one out of it,
//! and whoever writes to a disk asks for the verified type. The manifest names the verity root
//! hash of `/usr`, so a valid signature reaches down to every 4 KiB block that is ever read.
//!
//! [`omaha`] is the wire between host and server. It is a hint and a telephone: nothing that
//! arrives through it is trusted. [`status`] is what a host tells about itself.
//!
//! Formats only: nothing here opens a file or a socket.

mod channel;
pub mod dsse;
mod flatcar;
pub mod keys;
mod manifest;
pub mod omaha;
#[cfg(feature = "schema")]
mod schema;
mod sha256;
mod slot;
pub mod status;
pub mod tuf;
mod version;

pub use channel::{Channel, ChannelError};
pub use dsse::{Verified, VerifyError};
pub use flatcar::{FlatcarError, FlatcarRelease, PAYLOAD_MAGIC, Sha1, Sha1Error};
pub use manifest::{
    Compression, Delta, Extension, ExtensionName, ExtensionNameError, File, FileName,
    FileNameError, Manifest, ManifestError, Payload, UkiDelta, Usr,
};
pub use sha256::{Sha256, Sha256Error};
pub use slot::{Slot, SlotError};
pub use version::{Version, VersionError};

/// The name of the signed manifest inside a release directory.
pub const MANIFEST_FILE: &str = "manifest.dsse.json";

/// In a release's `/usr`: what names its kernel part, as `kernel` in the manifest does.
pub const KERNEL_FILE: &str = "usr/lib/orlop/kernel";

/// Serde for types whose JSON form is their `Display`/`FromStr` text.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_text;
