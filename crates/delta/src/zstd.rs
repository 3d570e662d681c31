//! zstd on whole buffers, with a prefix that both sides have.

use zstd_safe::DCtx;
#[cfg(feature = "make")]
use zstd_safe::{CCtx, CParameter};

use crate::DeltaError;

fn failed(code: usize) -> DeltaError {
    DeltaError::Zstd(zstd_safe::get_error_name(code))
}

/// One frame (or several) into exactly `out`. The output is its own history, so this needs no
/// window, however large the one that the frame asks for.
pub(crate) fn decompress(packed: &[u8], prefix: &[u8], out: &mut [u8]) -> Result<(), DeltaError> {
    let mut context = DCtx::create();
    if !prefix.is_empty() {
        context.ref_prefix(prefix).map_err(failed)?;
    }
    let len = context.decompress(out, packed).map_err(failed)?;
    if len != out.len() {
        return Err(DeltaError::Damaged("a part of it is shorter than it says"));
    }
    Ok(())
}

#[cfg(feature = "make")]
pub(crate) fn compress(data: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>, DeltaError> {
    let mut context = CCtx::create();
    let mut set = |parameter| context.set_parameter(parameter).map(drop).map_err(failed);
    set(CParameter::CompressionLevel(level))?;
    set(CParameter::ContentSizeFlag(true))?;
    if !prefix.is_empty() {
        let reach = (prefix.len() + data.len()).next_power_of_two().ilog2();
        set(CParameter::WindowLog(reach.max(10)))?;
        set(CParameter::EnableLongDistanceMatching(true))?;
        context.ref_prefix(prefix).map_err(failed)?;
    }
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(data.len()));
    context.compress2(&mut out, data).map_err(failed)?;
    out.shrink_to_fit();
    Ok(out)
}
