use std::io;
use std::path::{Path, PathBuf};

use host::child::ChildError;

use crate::name::Name;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no image {name}; {}", known_images(known))]
    NoSuchImage { name: Name, known: Vec<Name> },
    #[error("there is an image {name} already; `orlop container remove {name}` removes it")]
    Exists { name: Name },
    #[error("image {name} is in use; `orlop container stop` the container that runs it first")]
    InUse { name: Name },
    #[error("image {name} is being imported or removed at this moment")]
    Busy { name: Name },
    #[error("cannot {step} {}", path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot fetch {url}")]
    Fetch {
        url: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("cannot read the archive")]
    Archive(#[source] io::Error),
    #[error("cannot unpack {entry:?} of the archive")]
    Entry {
        entry: String,
        #[source]
        source: io::Error,
    },
    #[error("the archive ends too early: it was not copied whole")]
    Truncated,
    #[error("the archive wants to write outside of the image: {entry:?}; nothing was imported")]
    Traversal { entry: String },
    #[error("the archive's SHA-256 is {found}, not {expected}; nothing was imported")]
    WrongHash { expected: String, found: String },
    #[error(
        "this is no root file system: there is neither usr nor bin in it; make one with `tar -C ROOT -c .`"
    )]
    NoRoot,
    #[error("a helper failed")]
    Child(#[source] ChildError),
}

impl StoreError {
    pub(super) fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { step, path, source }
    }
}

fn known_images(known: &[Name]) -> String {
    match known {
        [] => "none is imported yet: `orlop container import NAME FILE`".to_owned(),
        known => {
            let names: Vec<_> = known.iter().map(Name::as_str).collect();
            format!("there are: {}", names.join(", "))
        }
    }
}
