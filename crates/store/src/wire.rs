//! Messages that are mostly keys and values. They carry pairs as the store keeps them, already encoded, so that
//! a range copies bytes and an event for a thousand watchers is encoded once.

use std::sync::Arc;

use prost::bytes::{Buf, BufMut};
use prost::encoding::{
    DecodeContext, WireType, bool as pbool, check_wire_type, decode_varint, encode_key,
    encode_varint, encoded_len_varint, int64, key_len, message, skip_field, string,
};
use prost::{DecodeError, Message};

use crate::pb::etcdserverpb::ResponseHeader;
use crate::pb::mvccpb::{Event, KeyValue};

/// An encoded message of the kind that the field says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(pub Arc<[u8]>);

impl Default for Encoded {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Encoded {
    pub fn of(message: &impl Message) -> Self {
        Self(message.encode_to_vec().into())
    }

    pub fn key_value(&self) -> KeyValue {
        KeyValue::decode(&*self.0).unwrap_or_default()
    }

    pub fn event(&self) -> Event {
        Event::decode(&*self.0).unwrap_or_default()
    }
}

impl From<KeyValue> for Encoded {
    fn from(pair: KeyValue) -> Self {
        Self::of(&pair)
    }
}

fn encode_all(tag: u32, all: &[Encoded], buf: &mut impl BufMut) {
    for Encoded(bytes) in all {
        encode_key(tag, WireType::LengthDelimited, buf);
        encode_varint(bytes.len() as u64, buf);
        buf.put_slice(bytes);
    }
}

fn len_all(tag: u32, all: &[Encoded]) -> usize {
    all.iter()
        .map(|Encoded(bytes)| key_len(tag) + encoded_len_varint(bytes.len() as u64) + bytes.len())
        .sum()
}

fn merge_one(
    wire_type: WireType,
    all: &mut Vec<Encoded>,
    buf: &mut impl Buf,
) -> Result<(), DecodeError> {
    check_wire_type(WireType::LengthDelimited, wire_type)?;
    let length = usize::try_from(decode_varint(buf)?).unwrap_or(usize::MAX);
    if length > buf.remaining() {
        // The only decoder at hand that says "buffer underflow" without being deprecated.
        return KeyValue::decode_length_delimited(&[0xff, 0x01][..]).map(|_| ());
    }
    let mut bytes = vec![0; length];
    buf.copy_to_slice(&mut bytes);
    all.push(Encoded(bytes.into()));
    Ok(())
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeResponse {
    pub header: Option<ResponseHeader>,
    pub kvs: Vec<Encoded>,
    pub more: bool,
    pub count: i64,
}

impl Message for RangeResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(header) = &self.header {
            message::encode(1, header, buf);
        }
        encode_all(2, &self.kvs, buf);
        if self.more {
            pbool::encode(3, &self.more, buf);
        }
        if self.count != 0 {
            int64::encode(4, &self.count, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => message::merge(
                wire_type,
                self.header.get_or_insert_with(Default::default),
                buf,
                ctx,
            ),
            2 => merge_one(wire_type, &mut self.kvs, buf),
            3 => pbool::merge(wire_type, &mut self.more, buf, ctx),
            4 => int64::merge(wire_type, &mut self.count, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.header
            .as_ref()
            .map_or(0, |h| message::encoded_len(1, h))
            + len_all(2, &self.kvs)
            + if self.more { 2 } else { 0 }
            + if self.count == 0 {
                0
            } else {
                int64::encoded_len(4, &self.count)
            }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// `etcdserverpb.WatchResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchResponse {
    pub header: Option<ResponseHeader>,
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: String,
    pub fragment: bool,
    pub events: Vec<Encoded>,
}

impl Message for WatchResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(header) = &self.header {
            message::encode(1, header, buf);
        }
        for (tag, number) in [(2, self.watch_id), (5, self.compact_revision)] {
            if number != 0 {
                int64::encode(tag, &number, buf);
            }
        }
        for (tag, flag) in [(3, self.created), (4, self.canceled), (7, self.fragment)] {
            if flag {
                pbool::encode(tag, &flag, buf);
            }
        }
        if !self.cancel_reason.is_empty() {
            string::encode(6, &self.cancel_reason, buf);
        }
        encode_all(11, &self.events, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => message::merge(
                wire_type,
                self.header.get_or_insert_with(Default::default),
                buf,
                ctx,
            ),
            2 => int64::merge(wire_type, &mut self.watch_id, buf, ctx),
            3 => pbool::merge(wire_type, &mut self.created, buf, ctx),
            4 => pbool::merge(wire_type, &mut self.canceled, buf, ctx),
            5 => int64::merge(wire_type, &mut self.compact_revision, buf, ctx),
            6 => string::merge(wire_type, &mut self.cancel_reason, buf, ctx),
            7 => pbool::merge(wire_type, &mut self.fragment, buf, ctx),
            11 => merge_one(wire_type, &mut self.events, buf),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let number = |tag, n: &i64| {
            if *n == 0 {
                0
            } else {
                int64::encoded_len(tag, n)
            }
        };
        let flag = |set: bool| if set { 2 } else { 0 };
        self.header
            .as_ref()
            .map_or(0, |h| message::encoded_len(1, h))
            + number(2, &self.watch_id)
            + flag(self.created)
            + flag(self.canceled)
            + number(5, &self.compact_revision)
            + if self.cancel_reason.is_empty() {
                0
            } else {
                string::encoded_len(6, &self.cancel_reason)
            }
            + flag(self.fragment)
            + len_all(11, &self.events)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
