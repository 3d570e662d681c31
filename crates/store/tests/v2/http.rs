//! A client of HTTP/1.1 that sends what it is told, byte by byte, and shows all that comes back.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// By name in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// An answer whose head is there and whose body is still coming.
pub(crate) struct Open {
    pub(crate) head: Answer,
    reader: BufReader<TcpStream>,
    method: String,
}

/// Sends a request and reads the head of the answer.
pub(crate) fn open(
    address: &str,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> io::Result<Open> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "PUT" || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // The server may have refused and closed before it has read everything.
    let _ = stream.write_all(body);

    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let Some(status) = status else {
        return Err(io::Error::other(format!("no status line: {line:?}")));
    };
    let mut answer = Answer {
        status,
        headers: BTreeMap::new(),
        body: String::new(),
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        answer
            .headers
            .insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(Open {
        head: answer,
        reader,
        method: method.to_owned(),
    })
}

impl Open {
    /// The next line of the body.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        // An event comes in one piece, so a piece is what is read here.
        let mut line = String::new();
        if self.chunked() {
            let size = self.chunk_size()?;
            line = self.bytes(size)?;
            self.bytes(2)?;
        } else {
            self.reader.read_line(&mut line)?;
        }
        Ok(line)
    }

    /// The whole answer.
    pub(crate) fn finish(mut self) -> io::Result<Answer> {
        let mut body = String::new();
        let length = self.head.headers.get("content-length");
        if self.method == "HEAD" {
        } else if self.chunked() {
            loop {
                let size = self.chunk_size()?;
                if size == 0 {
                    break;
                }
                body.push_str(&self.bytes(size)?);
                self.bytes(2)?;
            }
        } else if let Some(length) = length {
            let length = length.parse().map_err(io::Error::other)?;
            body = self.bytes(length)?;
        } else if self.head.status != 204 {
            self.reader.read_to_string(&mut body)?;
        }
        self.head.body = body;
        Ok(self.head)
    }

    fn chunked(&self) -> bool {
        let encoding = self.head.headers.get("transfer-encoding");
        encoding.is_some_and(|encoding| encoding == "chunked")
    }

    fn chunk_size(&mut self) -> io::Result<usize> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)
    }

    fn bytes(&mut self, count: usize) -> io::Result<String> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }
}

pub(crate) fn try_send(
    address: &str,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> io::Result<Answer> {
    open(address, method, target, headers, body)?.finish()
}
