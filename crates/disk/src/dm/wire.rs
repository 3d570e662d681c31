//! Requests and answers as bytes: `struct dm_ioctl` (312 bytes) and what follows it.
//!
//! | offset | field | | offset | field |
//! |---|---|---|---|---|
//! | 0 | version\[3\] | | 32 | event_nr |
//! | 12 | data_size | | 36 | padding |
//! | 16 | data_start | | 40 | dev (u64) |
//! | 20 | target_count | | 48 | name\[128\] |
//! | 24 | open_count | | 176 | uuid\[129\] |
//! | 28 | flags | | 305 | data\[7\] |
//!
//! A `struct dm_target_spec` (40 bytes): sector_start u64, length u64, status i32, next u32,
//! target_type\[16\]; its parameters follow as a NUL-terminated string.

use std::fmt;

pub(super) const HEADER: usize = 312;
const HEADER_U32: u32 = 312;
const SPEC: usize = 40;
const NAME: std::ops::Range<usize> = 48..176;
const UUID: std::ops::Range<usize> = 176..305;
const TYPE: std::ops::Range<usize> = 24..40;

/// The oldest interface there is; the kernel wants the same major and at most its own minor.
const VERSION: [u32; 3] = [4, 0, 0];

pub(super) const READONLY: u32 = 1 << 0;
const SUSPEND: u32 = 1 << 1;
const ACTIVE_PRESENT: u32 = 1 << 5;
const BUFFER_FULL: u32 = 1 << 8;
pub(super) const DEFERRED_REMOVE: u32 = 1 << 17;

/// A block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A mapped device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub device: DeviceNumber,
    pub open_count: i32,
    pub read_only: bool,
    pub suspended: bool,
    pub active: bool,
    pub targets: Vec<TargetStatus>,
}

/// One target's range in sectors and its state; verity says `V` (verified) or `C` (corrupt).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    pub start: u64,
    pub length: u64,
    pub kind: String,
    pub text: String,
}

/// A request about the device `name`, with `room` bytes behind the header for the answer.
/// Names are checked by the caller; what is too long is cut, never overrun.
pub(super) fn request(name: &str, flags: u32, room: usize) -> Vec<u8> {
    let mut buf = vec![0; HEADER + room];
    for (at, part) in [0, 4, 8].into_iter().zip(VERSION) {
        put_u32(&mut buf, at, part);
    }
    let size = u32::try_from(buf.len()).unwrap_or(u32::MAX);
    put_u32(&mut buf, 12, size);
    put_u32(&mut buf, 16, HEADER_U32);
    put_u32(&mut buf, 28, flags);
    put_str(&mut buf[NAME], name);
    buf
}

/// Creates a device. The UUID may be set only here: elsewhere the kernel takes a name or a UUID,
/// not both.
pub(super) fn create(name: &str, uuid: &str) -> Vec<u8> {
    let mut buf = request(name, READONLY, 0);
    put_str(&mut buf[UUID], uuid);
    buf
}

/// Loads one read-only target (verity insists on that).
pub(super) fn load(name: &str, kind: &str, sectors: u64, params: &str) -> Vec<u8> {
    // The string's NUL, and the next spec would have to start at a multiple of 8.
    let len = (SPEC + params.len() + 1).next_multiple_of(8);
    let mut buf = request(name, READONLY, len);
    put_u32(&mut buf, 20, 1);
    let spec = &mut buf[HEADER..];
    spec[8..16].copy_from_slice(&sectors.to_ne_bytes());
    put_u32(spec, 20, u32::try_from(len).unwrap_or(u32::MAX));
    put_str(&mut spec[TYPE], kind);
    spec[SPEC..SPEC + params.len()].copy_from_slice(params.as_bytes());
    buf
}

/// The device's number in any answer.
pub(super) fn device(answer: &[u8]) -> DeviceNumber {
    let dev = u64_at(answer, 40);
    // The kernel's new_encode_dev: minor's low byte, major in 12 bits, the rest of minor.
    // Masked to 20 bits at most.
    #[allow(clippy::cast_possible_truncation)]
    DeviceNumber {
        major: (dev >> 8 & 0xfff) as u32,
        minor: (dev & 0xff | dev >> 12 & 0xf_ff00) as u32,
    }
}

/// What a status request was answered. `None`: the answer did not fit, ask with more room.
pub(super) fn status(answer: &[u8]) -> Result<Option<Status>, &'static str> {
    if answer.len() < HEADER {
        return Err("shorter than its header");
    }
    let flags = u32_at(answer, 28);
    if flags & BUFFER_FULL != 0 {
        return Ok(None);
    }
    let start = usize::try_from(u32_at(answer, 16)).unwrap_or(usize::MAX);
    let data = answer.get(start..).ok_or("data starts behind its end")?;
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..u32_at(answer, 20) {
        let spec = data.get(at..).ok_or("target behind its end")?;
        if spec.len() < SPEC {
            return Err("target cut off");
        }
        targets.push(TargetStatus {
            start: u64_at(spec, 0),
            length: u64_at(spec, 8),
            kind: text(&spec[TYPE]),
            text: text(&spec[SPEC..]),
        });
        // Relative to the first spec in answers, unlike in requests.
        let next = usize::try_from(u32_at(spec, 20)).unwrap_or(usize::MAX);
        if next <= at {
            break;
        }
        at = next;
    }
    Ok(Some(Status {
        device: device(answer),
        open_count: i32::from_ne_bytes(u32_at(answer, 24).to_ne_bytes()),
        read_only: flags & READONLY != 0,
        suspended: flags & SUSPEND != 0,
        active: flags & ACTIVE_PRESENT != 0,
        targets,
    }))
}

fn put_u32(buf: &mut [u8], at: usize, value: u32) {
    buf[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Leaves at least one NUL at the end.
fn put_str(field: &mut [u8], text: &str) {
    let len = text.len().min(field.len() - 1);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
}

fn u32_at(buf: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&buf[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

fn u64_at(buf: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&buf[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

#[cfg(test)]
mod tests;
