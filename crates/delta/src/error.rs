use std::io;

/// Why there is no image. Where the file is at fault, `what` says which part of it.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("this is no delta")]
    NoDelta,
    #[error("the delta has format {0}, this program reads format {want}", want = crate::format::VERSION)]
    Format(u16),
    #[error("the delta is damaged: {0}")]
    Damaged(&'static str),
    #[error("segment {segment} of the delta is damaged: {what}")]
    Segment { segment: usize, what: &'static str },
    #[error("the old image has {got} bytes, the delta was made from one of {want}")]
    WrongSource { got: u64, want: u64 },
    #[error(
        "segment {0} does not come out as it should: the old image is not the one that the delta was made from"
    )]
    WrongResult(usize),
    #[error(
        "the segment at byte {0} of the new image does not come out again: did an image change meanwhile?"
    )]
    Unsound(u64),
    #[error("the block index is damaged: {0}")]
    Index(&'static str),
    #[error("block {0} is neither in the running image nor in what was downloaded")]
    Missing(u64),
    #[error("zstd: {0}")]
    Zstd(&'static str),
}

pub(crate) fn io(what: &'static str) -> impl Fn(io::Error) -> DeltaError {
    move |source| DeltaError::Io { what, source }
}

impl From<DeltaError> for io::Error {
    fn from(error: DeltaError) -> Self {
        match error {
            DeltaError::Io { what, source } => {
                io::Error::new(source.kind(), format!("cannot {what}: {source}"))
            }
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}
