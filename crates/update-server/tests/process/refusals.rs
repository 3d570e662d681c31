//! Refusals reach clients that send everything before they read anything.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Lab, Running};

/// More than the kernel keeps for a reader that does not come.
const BODY: usize = 24 << 20;
const CHUNK: usize = 64 << 10;

struct Client<'a> {
    server: &'a Running,
    stream: TcpStream,
}

impl<'a> Client<'a> {
    fn new(server: &'a Running) -> Self {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        let long = std::time::Duration::from_secs(120);
        stream.set_read_timeout(Some(long)).unwrap();
        stream.set_write_timeout(Some(long)).unwrap();
        Self { server, stream }
    }

    fn head(&mut self, method: &str, path: &str, more: &str) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{more}\r\n",
            self.server.address
        );
        self.stream.write_all(head.as_bytes()).unwrap();
    }

    /// The server has decided: its answer is here, although nobody has read it.
    fn wait_for_answer(&self) {
        assert_eq!(self.stream.peek(&mut [0]).unwrap(), 1);
    }

    /// Status and body.
    fn answer(&mut self) -> (String, String) {
        let mut bytes = vec![];
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.split("content-length: ").nth(1).unwrap();
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                if body.len() >= length {
                    let status = head.split(' ').nth(1).unwrap().to_owned();
                    return (status, body.to_owned());
                }
            }
            let read = self.stream.read(&mut buffer).unwrap();
            assert!(read > 0, "cut off after {text:?}");
            bytes.extend_from_slice(&buffer[..read]);
        }
    }

    /// Sends a body of which the server wants nothing, or not all; gives the refusal.
    fn refused(&mut self, method: &str, path: &str, more: &str) -> (String, String) {
        let chunked = more.contains("chunked");
        let length = match chunked {
            true => String::new(),
            false => format!("Content-Length: {BODY}\r\n"),
        };
        self.head(method, path, &format!("{length}{more}"));
        let chunk = vec![b'x'; CHUNK];
        for number in 0..BODY / CHUNK {
            // By now it has what it needs to refuse.
            if number * CHUNK == 6 << 20 {
                self.wait_for_answer();
            }
            if chunked {
                write!(self.stream, "{CHUNK:x}\r\n").unwrap();
            }
            self.stream
                .write_all(&chunk)
                .unwrap_or_else(|e| panic!("{method} {path}, chunk {number}: {e}"));
            if chunked {
                self.stream.write_all(b"\r\n").unwrap();
            }
        }
        if chunked {
            self.stream.write_all(b"0\r\n\r\n").unwrap();
        }
        self.answer()
    }
}

#[test]
fn a_refusal_outlives_the_body_it_refuses() {
    let lab = Lab::new();
    let server = lab.start();
    let authorized = format!("Authorization: Bearer {}\r\n", server.token);
    let cases = [
        ("PUT", "/api/v1/releases/2/usr.erofs.zst", "", "401"),
        (
            "PUT",
            "/api/v1/releases/2/usr.erofs.zst",
            "Transfer-Encoding: chunked\r\n",
            "401",
        ),
        ("PUT", "/api/v1/releases/nonsense/x", &authorized, "400"),
        ("PUT", "/api/v1/tuf/1.root.json", &authorized, "413"),
        ("PUT", "/api/v1/channels/beta", "", "401"),
        ("POST", "/v1/update/", "", "413"),
        (
            "POST",
            "/v1/update/",
            "Transfer-Encoding: chunked\r\n",
            "413",
        ),
        ("POST", "/nowhere", "", "404"),
        ("POST", "/health", "", "405"),
    ];
    for (method, path, more, expected) in cases {
        let mut client = Client::new(&server);
        let (status, body) = client.refused(method, path, more);
        assert_eq!(status, expected, "{method} {path} {more}: {body}");
        // The connection is as good as new.
        client.head("GET", "/health", "");
        assert_eq!(client.answer().0, "200", "after {method} {path} {more}");
    }
}

#[test]
fn who_asks_first_is_not_told_to_send() {
    let lab = Lab::new();
    let server = lab.start();
    let mut client = Client::new(&server);
    let more = format!("Content-Length: {BODY}\r\nExpect: 100-continue\r\n");
    client.head("PUT", "/api/v1/releases/2/usr.erofs.zst", &more);
    let (status, _) = client.answer();
    assert_eq!(status, "401", "and not 100");
}

/// Refusals that the framework makes by itself look like all others, and the description says so.
#[test]
fn every_refusal_has_one_form() {
    let lab = Lab::new();
    let server = lab.start();
    let query = server.refused("GET", "/api/v1/hosts?limit=many", b"");
    assert!(
        query.starts_with("400 ") && query.contains("limit"),
        "{query}"
    );
    let method = server.refused("DELETE", "/api/v1/releases", b"");
    assert_eq!(method, "405 Method Not Allowed");
    let name = server.refused("GET", "/api/v1/hosts/%ff", b"");
    assert!(name.starts_with("400 "), "{name}");
    let (_, api) = server.request("GET", "/api/v1/openapi.json", &[], b"");
    let api: serde_json::Value = serde_json::from_slice(&api).unwrap();
    for (path, operations) in api["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let error = &operation["responses"]["default"]["content"]["application/json"];
            let schema = error["schema"]["$ref"].as_str();
            assert_eq!(
                schema,
                Some("#/components/schemas/ErrorBody"),
                "{method} {path}"
            );
        }
    }
}
