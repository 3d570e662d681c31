//! Parts of one large file, put one after the other into one smaller file.
//!
//! The parts are always the same and come in order, so the length of the partial file says how far
//! it is. What is in it is checked block by block by whoever uses it, not here.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use super::download::{Partial, discard_unless, file_error, header, room_for};
use super::{FetchError, Fetcher, refuse_html, transport_error};

impl Fetcher {
    /// Leaves the `ranges` of a file of `size` bytes at `target`. `progress` is told how many
    /// bytes are there. Interrupted transfers go on where they were, as for whole files.
    pub fn download_ranges(
        &self,
        url: &str,
        target: &Path,
        size: u64,
        ranges: &[Range<u64>],
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        let total = ranges.iter().map(|range| range.end - range.start).sum();
        if fs::metadata(target).is_ok_and(|meta| meta.len() == total) {
            progress(total);
            return Ok(());
        }
        let partial = Partial::of(target);
        discard_unless(&partial, |len| len <= total);
        room_for(target, total - partial.len())?;
        // Hundreds of requests in a row: here a connection is worth keeping.
        let (mut connection, mut used) = (self.patience.agent(1), false);
        let mut before = 0;
        for range in ranges {
            let end = before + (range.end - range.start);
            while partial.len() < end {
                let (had, start) = (partial.len(), Instant::now());
                let from = range.start + (had - before);
                let part = from..range.end;
                match self.part(&connection, url, &partial, size, part, progress) {
                    Ok(()) => used = true,
                    // The server closed it meanwhile, which is its right.
                    Err(FetchError::Transport { .. }) if used => {
                        (connection, used) = (self.patience.agent(1), false);
                    }
                    Err(
                        error @ (FetchError::Truncated { .. } | FetchError::Interrupted { .. }),
                    ) if self.is_worth_it(partial.len().saturating_sub(had), start.elapsed()) => {
                        tracing::info!("{error}");
                    }
                    Err(error) => return Err(error),
                }
            }
            before = end;
        }
        if total == 0 {
            fs::write(&partial.part, []).map_err(|e| file_error(&partial.part, "write", e))?;
        }
        fs::rename(&partial.part, target)
            .map_err(|e| file_error(target, "rename the finished file to", e))?;
        partial.discard();
        Ok(())
    }

    /// One request, whose answer goes to the end of the partial file.
    fn part(
        &self,
        connection: &ureq::Agent,
        url: &str,
        partial: &Partial,
        size: u64,
        range: Range<u64>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        let start = partial.len();
        let last = range.end - 1;
        let mut request = connection
            .get(url)
            .header("Range", format!("bytes={}-{last}", range.start));
        if let Some(etag) = partial.validator(url).filter(|_| start > 0) {
            request = request.header("If-Range", etag);
        }
        let request = request
            .config()
            .timeout_recv_body(Some(self.budget(range.end - range.start)))
            .build();
        let answer = request.call().map_err(|e| transport_error(url, e))?;
        refuse_html(url, &answer)?;
        let got = header(&answer, "content-range").unwrap_or_default();
        match answer.status().as_u16() {
            206 if got == format!("bytes {}-{last}/{size}", range.start) => {}
            // The whole file, or another one: what is here already is not of it.
            200 | 206 | 416 => {
                partial.discard();
                return Err(FetchError::Range {
                    url: url.into(),
                    asked: range.start,
                    got: got.into(),
                });
            }
            status => {
                return Err(FetchError::Status {
                    url: url.into(),
                    status,
                });
            }
        }
        if start == 0 {
            partial.remember(url, &answer);
        }
        let end = start + (range.end - range.start);
        self.receive(url, answer, partial, start, end, progress)
    }
}
