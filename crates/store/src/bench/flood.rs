//! Clients that ask again as soon as they are answered, all of a connection in one task: HTTP/2 by hand, because whatever a
//! client costs is taken from the server that it measures. All servers get the same bytes.
//!
//! An answer counts if a message came before its end; servers send none with an error.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rpc::Call;
use super::wire::{self, Wire};
use super::work::micros;
use crate::tls;

/// The largest question. All servers give a stream as much room without being asked.
pub(super) const LARGEST: usize = 60_000;
const PATIENCE: Duration = Duration::from_secs(60);
const FRAME: usize = 16_384;
/// What the server may send before it hears from us.
const WINDOW: u32 = 1 << 30;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// In microseconds.
    pub latencies: Vec<u32>,
    pub failed: u64,
}

struct Waiting {
    client: usize,
    asked: Instant,
    answered: bool,
}

struct Flood {
    stream: Wire,
    out: Vec<u8>,
    /// Headers of the first question, which the server remembers, and of each after it.
    first: Vec<u8>,
    again: Vec<u8>,
    next: u32,
    waiting: HashMap<u32, Waiting>,
    /// What we may send, and questions that wait for it.
    room: i64,
    held: Vec<(usize, Vec<u8>)>,
    received: u32,
    outcome: Outcome,
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&length(payload.len()).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// HPACK: a text of less than 127 bytes, as it is.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len().min(126)).unwrap_or(126));
    out.extend_from_slice(&text.as_bytes()[..text.len().min(126)]);
}

/// HPACK (RFC 7541): what the server is to remember first, and then how it is called.
fn headers(scheme: &str, path: &str, authority: &str) -> (Vec<u8>, Vec<u8>) {
    // `:method POST` and `:scheme` are in its static table, as are these names.
    let scheme = if scheme == "https" { 0x87 } else { 0x86 };
    let mut first = vec![0x83, scheme, 0x44];
    text(&mut first, path);
    first.push(0x41);
    text(&mut first, authority);
    first.push(0x5f);
    text(&mut first, "application/grpc");
    first.push(0x40);
    text(&mut first, "te");
    text(&mut first, "trailers");
    // The youngest has the number 62.
    let again = vec![0x83, scheme, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
    (first, again)
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().copied().map_or(0, u32::from_be_bytes)
}

impl Flood {
    async fn open(url: &str, tls: Option<&Arc<tls::Connector>>, call: Call) -> Result<Self> {
        let (stream, authority) = wire::open(url, tls).await?;
        let (first, again) = headers(stream.scheme(), call.path(), &authority);
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // INITIAL_WINDOW_SIZE of a stream
        let mut settings = vec![0, 4];
        settings.extend_from_slice(&(4_u32 << 20).to_be_bytes());
        frame(&mut out, SETTINGS, 0, 0, &settings);
        frame(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        Ok(Self {
            stream,
            out,
            first,
            again,
            next: 1,
            waiting: HashMap::new(),
            room: 65_535,
            held: Vec::new(),
            received: 0,
            outcome: Outcome::default(),
        })
    }

    fn ask(&mut self, client: usize, message: Vec<u8>) -> Result<()> {
        let size = message.len() + 5;
        if size > LARGEST {
            bail!("a question of {size} bytes; at most {LARGEST} can be measured");
        }
        if self.room < i64::from(length(size)) {
            self.held.push((client, message));
            return Ok(());
        }
        self.room -= i64::from(length(size));
        let stream = self.next;
        self.next += 2;
        let headers = if stream == 1 {
            &self.first
        } else {
            &self.again
        };
        frame(&mut self.out, HEADERS, END_HEADERS, stream, headers);
        let mut body = Vec::with_capacity(size);
        body.push(0);
        body.extend_from_slice(&length(message.len()).to_be_bytes());
        body.extend_from_slice(&message);
        let mut pieces = body.chunks(FRAME).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() {
                END_STREAM
            } else {
                0
            };
            frame(&mut self.out, DATA, flags, stream, piece);
        }
        self.waiting.insert(
            stream,
            Waiting {
                client,
                asked: Instant::now(),
                answered: false,
            },
        );
        Ok(())
    }

    /// Takes a frame and says which client is free again.
    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Option<usize>> {
        match kind {
            DATA => {
                self.received += length(payload.len());
                if self.received > WINDOW / 2 {
                    frame(
                        &mut self.out,
                        WINDOW_UPDATE,
                        0,
                        0,
                        &self.received.to_be_bytes(),
                    );
                    self.received = 0;
                }
                if let Some(waiting) = self.waiting.get_mut(&stream) {
                    waiting.answered |= !payload.is_empty();
                }
            }
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks(6) {
                    let (name, value) = (setting.get(..2), word(setting.get(2..).unwrap_or(&[])));
                    // What the server has room to remember, and the room of a stream.
                    let needed = match name {
                        Some([0, 1]) => 4096,
                        Some([0, 4]) => length(LARGEST),
                        _ => 0,
                    };
                    if value < needed {
                        bail!("the server has less room than this client needs");
                    }
                }
                frame(&mut self.out, SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, payload),
            GOAWAY => bail!("the server ends the connection"),
            WINDOW_UPDATE if stream == 0 => self.room += i64::from(word(payload)),
            _ => {}
        }
        let over = kind == RESET || matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        let Some(waiting) = over.then(|| self.waiting.remove(&stream)).flatten() else {
            return Ok(None);
        };
        if waiting.answered && kind == HEADERS {
            self.outcome.latencies.push(micros(waiting.asked));
        } else {
            self.outcome.failed += 1;
        }
        Ok(Some(waiting.client))
    }

    async fn run(&mut self, mut next: impl FnMut(usize) -> Option<Vec<u8>>) -> Result<()> {
        let mut input = Vec::with_capacity(64 << 10);
        while !self.waiting.is_empty() || !self.held.is_empty() {
            self.stream.write_all(&self.out).await?;
            // What is encrypted may still be on its way.
            self.stream.flush().await?;
            self.out.clear();
            let read = self.stream.read_buf(&mut input);
            if tokio::time::timeout(PATIENCE, read).await?? == 0 {
                bail!("the server closed the connection");
            }
            let mut at = 0;
            while let Some(head) = input.get(at..at + 9) {
                let size = word(&[0, head[0], head[1], head[2]]);
                let (kind, flags) = (head[3], head[4]);
                let stream = word(&head[5..]) & (u32::MAX >> 1);
                let end = at + 9 + usize::try_from(size)?;
                let Some(payload) = input.get(at + 9..end) else {
                    break;
                };
                if let Some(client) = self.take(kind, flags, stream, payload)?
                    && let Some(message) = next(client)
                {
                    self.ask(client, message)?;
                }
                at = end;
            }
            input.drain(..at);
            for (client, message) in std::mem::take(&mut self.held) {
                self.ask(client, message)?;
            }
        }
        Ok(())
    }
}

/// Lets `clients` ask what `next` gives them, until it gives each of them nothing more.
pub(super) async fn flood(
    url: &str,
    tls: Option<&Arc<tls::Connector>>,
    call: Call,
    clients: &[usize],
    mut next: impl FnMut(usize) -> Option<Vec<u8>>,
) -> Result<Outcome> {
    let mut flood = Flood::open(url, tls, call).await?;
    for client in clients {
        if let Some(message) = next(*client) {
            flood.ask(*client, message)?;
        }
    }
    flood.run(next).await?;
    Ok(flood.outcome)
}
