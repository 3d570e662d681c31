//! One version of a key, in the form in which clients get it. Reading a field is cheaper than keeping it twice.

use std::sync::Arc;

use prost::bytes::BufMut;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use crate::wire::Encoded;

/// The fields of an encoded `mvccpb.KeyValue`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    pub key: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub value: &'a [u8],
    pub lease: i64,
}

impl View<'_> {
    pub fn encode(&self) -> Encoded {
        let bytes = |b: &[u8]| {
            if b.is_empty() {
                0
            } else {
                1 + encoded_len_varint(b.len() as u64) + b.len()
            }
        };
        let numbers = [
            (0x10, self.create_revision),
            (0x18, self.mod_revision),
            (0x20, self.version),
        ];
        let number = |n: i64| {
            if n == 0 {
                0
            } else {
                1 + encoded_len_varint(n.cast_unsigned())
            }
        };
        let length = bytes(self.key)
            + numbers.iter().map(|(_, n)| number(*n)).sum::<usize>()
            + bytes(self.value)
            + number(self.lease);
        // Where it stays, without a copy on the way.
        let mut pair: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
        if let Some(mut out) = Arc::get_mut(&mut pair) {
            put_bytes(&mut out, 0x0a, self.key);
            for (tag, n) in numbers {
                put_number(&mut out, tag, n);
            }
            put_bytes(&mut out, 0x2a, self.value);
            put_number(&mut out, 0x30, self.lease);
        }
        Encoded(pair)
    }
}

fn put_bytes(out: &mut impl BufMut, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.put_u8(tag);
        encode_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}

fn put_number(out: &mut impl BufMut, tag: u8, number: i64) {
    if number != 0 {
        out.put_u8(tag);
        encode_varint(number.cast_unsigned(), out);
    }
}

/// Reads what [`View::encode`] wrote. Anything else ends the reading, with what was understood so far.
pub fn view(pair: &[u8]) -> View<'_> {
    let mut rest = pair;
    let mut out = View::default();
    while let [tag, tail @ ..] = rest {
        rest = tail;
        let Ok(number) = decode_varint(&mut rest) else {
            break;
        };
        match tag {
            0x0a | 0x2a => {
                let Some((bytes, tail)) = usize::try_from(number)
                    .ok()
                    .and_then(|n| rest.split_at_checked(n))
                else {
                    break;
                };
                if *tag == 0x0a {
                    out.key = bytes
                } else {
                    out.value = bytes
                }
                rest = tail;
            }
            0x10 => out.create_revision = number.cast_signed(),
            0x18 => out.mod_revision = number.cast_signed(),
            0x20 => out.version = number.cast_signed(),
            0x30 => out.lease = number.cast_signed(),
            _ => break,
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;

    #[test]
    fn is_what_protobuf_says() {
        for (key, value, number) in [
            (&b"k"[..], &b""[..], 0),
            (b"", b"v", -1),
            (&[7; 300], &[9; 70_000], i64::MAX),
        ] {
            let pair = KeyValue {
                key: key.to_vec(),
                value: value.to_vec(),
                create_revision: number,
                mod_revision: 1,
                version: number,
                lease: number,
            };
            let ours = View {
                key,
                value,
                create_revision: number,
                mod_revision: 1,
                version: number,
                lease: number,
            };
            assert_eq!(ours.encode(), Encoded::of(&pair));
            assert_eq!(view(&Encoded::of(&pair).0), ours);
        }
    }
}
