//! Messages as bytes ("Marshaling" and "Message Protocol" in the specification).

use super::DbusError;

/// More than any answer of systemd; the specification would allow 128 MiB.
const MAX_MESSAGE: usize = 16 << 20;
/// Endianness, type, flags, version, body length, serial, and the length of the fields' array.
pub(super) const FIXED: usize = 16;

const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub(in crate::systemd) enum Arg<'a> {
    Str(&'a str),
    Bool(bool),
    Strs(&'a [&'a str]),
}

/// Where a call goes.
#[derive(Debug, Clone, Copy)]
pub(in crate::systemd) struct Target<'a> {
    pub(in crate::systemd) destination: &'a str,
    pub(in crate::systemd) path: &'a str,
    pub(in crate::systemd) interface: &'a str,
    pub(in crate::systemd) member: &'a str,
}

/// Values are aligned relative to the start of the message, so everything is written in place.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// Writes an array: its length in bytes does not count the padding before its first element.
    fn array(&mut self, element_align: usize, write: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(element_align);
        let start = self.0.len();
        write(self);
        let bytes = length(self.0.len() - start).to_le_bytes();
        self.0[at..at + 4].copy_from_slice(&bytes);
    }

    fn field(&mut self, code: u8, signature: &str, text: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        match signature {
            "g" => self.signature(text),
            _ => self.string(text),
        }
    }
}

/// Our messages hold unit names and paths: far below 4 GiB.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

pub(super) fn method_call(serial: u32, target: Target<'_>, args: &[Arg<'_>]) -> Vec<u8> {
    let mut body = Writer::default();
    let mut signature = String::new();
    for arg in args {
        match arg {
            Arg::Str(text) => {
                signature.push('s');
                body.string(text);
            }
            Arg::Bool(value) => {
                signature.push('b');
                body.u32(u32::from(*value));
            }
            Arg::Strs(texts) => {
                signature.push_str("as");
                body.array(4, |body| texts.iter().for_each(|text| body.string(text)));
            }
        }
    }
    let mut out = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    out.u32(length(body.0.len()));
    out.u32(serial);
    out.array(8, |out| {
        out.field(PATH, "o", target.path);
        out.field(DESTINATION, "s", target.destination);
        out.field(INTERFACE, "s", target.interface);
        out.field(MEMBER, "s", target.member);
        if !signature.is_empty() {
            out.field(SIGNATURE, "g", &signature);
        }
    });
    // The body starts at a multiple of 8, so its own alignment holds.
    out.align(8);
    out.0.extend(body.0);
    out.0
}

/// A message that came in; only what we look at.
#[derive(Debug, Clone, Default)]
pub(in crate::systemd) struct Message {
    pub(super) kind: u8,
    pub(super) reply_serial: Option<u32>,
    pub(super) error_name: Option<String>,
    pub(in crate::systemd) member: Option<String>,
    signature: String,
    little_endian: bool,
    body: Vec<u8>,
}

/// How long the message is whose first [`FIXED`] bytes these are.
pub(super) fn message_length(head: &[u8]) -> Result<usize, DbusError> {
    let mut reader = Reader {
        bytes: head,
        at: 4,
        little_endian: endianness(head)?,
    };
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    let length = fields
        .saturating_add(FIXED)
        .next_multiple_of(8)
        .saturating_add(body);
    match length {
        length if length <= MAX_MESSAGE => Ok(length),
        _ => Err(DbusError::Malformed("it is too long")),
    }
}

fn endianness(head: &[u8]) -> Result<bool, DbusError> {
    match head.first() {
        Some(b'l') => Ok(true),
        Some(b'B') => Ok(false),
        _ => Err(DbusError::Malformed("its first byte is no endianness")),
    }
}

impl Message {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DbusError> {
        let little_endian = endianness(bytes)?;
        let mut reader = Reader {
            bytes,
            at: 4,
            little_endian,
        };
        let body_length = reader.u32()? as usize;
        reader.u32()?;
        let fields = reader.u32()? as usize;
        let end = reader.at.saturating_add(fields);
        let kind = *bytes
            .get(1)
            .ok_or(DbusError::Malformed("it is too short"))?;
        let mut message = Self {
            kind,
            little_endian,
            ..Self::default()
        };
        while reader.at < end {
            reader.align(8)?;
            let code = reader.u8()?;
            let signature = reader.signature()?;
            match (code, signature.as_str()) {
                (REPLY_SERIAL, "u") => message.reply_serial = Some(reader.u32()?),
                (ERROR_NAME, "s") => message.error_name = Some(reader.string()?),
                (MEMBER, "s") => message.member = Some(reader.string()?),
                (SIGNATURE, "g") => message.signature = reader.signature()?,
                // The others are of no use to us, but must be stepped over.
                (_, "s" | "o") => drop(reader.string()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return Err(DbusError::Malformed("a header field has a type of its own")),
            }
        }
        reader.align(8)?;
        let body = bytes.get(reader.at..reader.at.saturating_add(body_length));
        message.body = body
            .ok_or(DbusError::Malformed("its body is cut off"))?
            .to_vec();
        Ok(message)
    }

    /// The body, if it has the signature that is expected.
    pub(in crate::systemd) fn body(&self, signature: &str) -> Result<Reader<'_>, DbusError> {
        match self.signature == signature {
            true => Ok(Reader {
                bytes: &self.body,
                at: 0,
                little_endian: self.little_endian,
            }),
            false => Err(DbusError::Malformed(
                "its body has another signature than this call's",
            )),
        }
    }

    /// The text of an error reply: by convention its first argument.
    pub(super) fn error_text(&self) -> String {
        match self.signature.starts_with('s') {
            true => Reader {
                bytes: &self.body,
                at: 0,
                little_endian: self.little_endian,
            }
            .string()
            .unwrap_or_default(),
            false => String::new(),
        }
    }
}

/// Reads values one after the other.
#[derive(Debug)]
pub(in crate::systemd) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    little_endian: bool,
}

impl Reader<'_> {
    fn take(&mut self, n: usize) -> Result<&[u8], DbusError> {
        let end = self
            .at
            .checked_add(n)
            .ok_or(DbusError::Malformed("a length is absurd"))?;
        let bytes = self
            .bytes
            .get(self.at..end)
            .ok_or(DbusError::Malformed("it ends within a value"))?;
        self.at = end;
        Ok(bytes)
    }

    fn align(&mut self, to: usize) -> Result<(), DbusError> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn u8(&mut self) -> Result<u8, DbusError> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(in crate::systemd) fn u32(&mut self) -> Result<u32, DbusError> {
        self.align(4)?;
        let little_endian = self.little_endian;
        let bytes = self.take(4)?;
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        Ok(if little_endian {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    }

    /// A string or an object path.
    pub(in crate::systemd) fn string(&mut self) -> Result<String, DbusError> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    pub(in crate::systemd) fn signature(&mut self) -> Result<String, DbusError> {
        let length = usize::from(self.u8()?);
        self.text(length)
    }

    fn text(&mut self, length: usize) -> Result<String, DbusError> {
        let bytes = self.take(length)?.to_vec();
        match self.u8()? {
            0 => {
                String::from_utf8(bytes).map_err(|_| DbusError::Malformed("a string is not UTF-8"))
            }
            _ => Err(DbusError::Malformed("a string has no end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// systemd's own socket: the sender is a well-known name. Big-endian, to see that too.
    fn from_systemd() -> Vec<u8> {
        let mut out = vec![b'B', SIGNAL, 1, 1];
        let text = |out: &mut Vec<u8>, text: &str| {
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            out.extend(text.bytes().chain([0]));
        };
        let mut body = 9_u32.to_be_bytes().to_vec();
        text(&mut body, "/job/9");
        text(&mut body, "a.service");
        text(&mut body, "done");
        out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        out.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        for (code, value) in [(7, "org.freedesktop.systemd1"), (MEMBER, "JobRemoved")] {
            out.resize(out.len().next_multiple_of(8), 0);
            out.extend([code, 1, b's', 0]);
            text(&mut out, value);
        }
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend([SIGNATURE, 1, b'g', 0, 4, b'u', b'o', b's', b's', 0]);
        let fields = u32::try_from(out.len() - FIXED).unwrap();
        out[12..16].copy_from_slice(&fields.to_be_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(body);
        out
    }

    #[test]
    fn reads_what_systemd_sends() {
        let bytes = from_systemd();
        assert_eq!(message_length(&bytes[..FIXED]).unwrap(), bytes.len());
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.member.as_deref(), Some("JobRemoved"));
        let mut body = message.body("uoss").unwrap();
        assert_eq!(body.u32().unwrap(), 9);
        assert_eq!(
            [(); 3].map(|()| body.string().unwrap()),
            ["/job/9", "a.service", "done"]
        );
        body.u32().unwrap_err();
        message.body("s").unwrap_err();
    }

    #[test]
    fn a_call_reads_back() {
        let target = Target {
            destination: "a.b",
            path: "/p",
            interface: "a.i",
            member: "Do",
        };
        let args = [Arg::Strs(&["x", "yz"]), Arg::Bool(true), Arg::Str("end")];
        let bytes = method_call(7, target, &args);
        assert_eq!(message_length(&bytes[..FIXED]).unwrap(), bytes.len());
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(
            (message.kind, message.member.as_deref()),
            (METHOD_CALL, Some("Do"))
        );
        let mut body = message.body("asbs").unwrap();
        let bytes = body.u32().unwrap();
        assert_eq!(bytes, 4 + 2 + 2 + 4 + 3);
        assert_eq!(
            (
                body.string().unwrap().as_str(),
                body.string().unwrap().as_str()
            ),
            ("x", "yz")
        );
        assert_eq!(
            (body.u32().unwrap(), body.string().unwrap().as_str()),
            (1, "end")
        );
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let bytes = from_systemd();
        for n in 0..bytes.len() {
            Message::parse(&bytes[..n]).map(|_| ()).unwrap_err();
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[n] = value;
                let _ = message_length(&damaged[..FIXED]);
                let parsed = Message::parse(&damaged);
                if let Ok(mut body) = parsed
                    .as_ref()
                    .map_err(|_| ())
                    .and_then(|m| m.body("uoss").map_err(|_| ()))
                {
                    let _ = (body.u32(), body.string(), body.string(), body.string());
                }
            }
        }
        let huge = [
            b'l', 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
        ];
        message_length(&huge).unwrap_err();
    }
}
