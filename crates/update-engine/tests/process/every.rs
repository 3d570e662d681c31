//! A connection that fails at every point of a download: after each piece of it, in each way.
//! What comes out is the file or an error with nothing at its place, and the next try succeeds.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use update_engine::fetch::{Fetcher, Patience, Want};

/// More than one socket buffer's granularity is not needed: the server flushes where it fails.
const SIZE: usize = 2_000;
const PIECE: usize = 61;

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// The connection ends after this many bytes.
    Drop(usize),
    /// Silence after this many bytes.
    Stall(usize),
    /// This byte is another one.
    Flip(usize),
    /// So many bytes are announced and sent.
    Length(usize),
    Status(u16),
    /// The range that was asked for is answered with one that starts a byte later.
    Shifted,
}

/// Fails the nth request only.
struct Server {
    port: u16,
    fault: Arc<Mutex<(Fault, usize)>>,
    requests: Arc<AtomicUsize>,
}

fn content() -> Vec<u8> {
    (0..SIZE)
        .map(|i| u8::try_from(i * 7 % 251).unwrap())
        .collect()
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(Mutex::new((Fault::None, 0)));
        let requests = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (Arc::clone(&fault), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (fault, nth) = *shared.lock().unwrap();
                let this = count.fetch_add(1, Ordering::SeqCst) + 1;
                let fault = if this == nth { fault } else { Fault::None };
                // Each on its own: a stalled one must not hold up the next.
                std::thread::spawn(move || drop(answer(stream, fault)));
            }
        });
        Self {
            port,
            fault,
            requests,
        }
    }

    fn fail(&self, fault: Fault, nth: usize) {
        *self.fault.lock().unwrap() = (fault, nth);
        self.requests.store(0, Ordering::SeqCst);
    }
}

fn answer(mut stream: TcpStream, fault: Fault) -> std::io::Result<()> {
    let mut range = None;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            range = Some(value.to_owned());
        }
    }
    let mut all = content();
    if let Fault::Status(status) = fault {
        return write!(
            stream,
            "HTTP/1.1 {status} no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if let Fault::Flip(at) = fault {
        all[at] ^= 0x40;
    }
    let (start, end) = match &range {
        None => (0, SIZE),
        Some(range) => {
            let (start, last) = range.split_once('-').unwrap();
            let end = last.parse::<usize>().map_or(SIZE, |last| last + 1);
            (start.parse().unwrap(), end)
        }
    };
    let mut body = all[start..end].to_vec();
    if let Fault::Length(length) = fault {
        body.resize(length, b'x');
    }
    let status = match &range {
        None => "200 OK\r\n".to_owned(),
        Some(_) => {
            let said = start + usize::from(matches!(fault, Fault::Shifted));
            format!(
                "206 part\r\nContent-Range: bytes {said}-{}/{SIZE}\r\n",
                end - 1
            )
        }
    };
    write!(
        stream,
        "HTTP/1.1 {status}ETag: \"one\"\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    match fault {
        Fault::Drop(at) => stream.write_all(&body[..at.min(body.len())]),
        Fault::Stall(at) => {
            stream.write_all(&body[..at.min(body.len())])?;
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        }
        _ => stream.write_all(&body),
    }
}

fn get(server: &Server, target: &Path, parts: bool, silence: Duration) -> Result<(), String> {
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence,
        // No machine is too slow for this: a resumed try is never given up.
        slowest: 1,
    };
    let fetcher = Fetcher::new(patience);
    let url = format!("http://127.0.0.1:{}/file", server.port);
    let result = match parts {
        false => {
            let want = Want {
                size: SIZE as u64,
                sha256: release::Sha256::of(content()),
            };
            fetcher.download(&url, target, want, &mut |_| ())
        }
        true => {
            let ranges = [0..700, 900..1500, 1700..2000];
            fetcher.download_ranges(&url, target, SIZE as u64, &ranges, &mut |_| ())
        }
    };
    result.map_err(|e| e.to_string())
}

fn expected(parts: bool) -> Vec<u8> {
    let all = content();
    match parts {
        false => all,
        true => [&all[..700], &all[900..1500], &all[1700..]].concat(),
    }
}

fn check(server: &Server, fault: Fault, nth: usize, parts: bool) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("file");
    server.fail(fault, nth);
    // Nor for this, where nothing is silent on purpose.
    let patient = Duration::from_secs(10);
    let silence = match fault {
        Fault::Stall(_) => Duration::from_millis(250),
        _ => patient,
    };
    let first = get(server, &target, parts, silence);
    let there = fs::read(&target).ok();
    match &first {
        // What parts bring is checked by the writer, block by block; its length is checked here.
        Ok(()) if matches!(fault, Fault::Flip(_)) && parts => return true,
        Ok(()) => assert_eq!(there.as_ref(), Some(&expected(parts)), "{fault:?} {nth}"),
        Err(error) => {
            assert!(
                there.is_none() && !error.is_empty(),
                "{fault:?} {nth}: {error}"
            );
            let part = fs::metadata(dir.path().join("file.part")).map_or(0, |m| m.len());
            assert!(
                part <= SIZE as u64,
                "{fault:?} {nth}: {part} bytes are kept"
            );
        }
    }
    server.fail(Fault::None, 0);
    get(server, &target, parts, patient)
        .unwrap_or_else(|e| panic!("{fault:?} {nth}: no retry: {e}"));
    assert_eq!(
        fs::read(&target).unwrap(),
        expected(parts),
        "{fault:?} {nth}"
    );
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "{fault:?} {nth}: something is left beside");
    first.is_ok()
}

#[test]
fn a_fault_at_every_point_of_a_download() {
    let server = Server::start();
    let (mut count, mut healed) = (0, 0);
    let mut run = |fault, nth, parts| {
        count += 1;
        healed += usize::from(check(&server, fault, nth, parts));
    };
    for (parts, requests) in [(false, 1), (true, 3)] {
        for nth in 1..=requests {
            for at in (0..SIZE).step_by(PIECE) {
                run(Fault::Drop(at), nth, parts);
                run(Fault::Flip(at), nth, parts);
            }
            for at in [0, 1, 600] {
                run(Fault::Stall(at), nth, parts);
            }
            for length in [0, 1, 299, SIZE - 1, SIZE + 1, 3 * SIZE] {
                run(Fault::Length(length), nth, parts);
            }
            for status in [500, 502, 503, 504, 404, 206, 301] {
                run(Fault::Status(status), nth, parts);
            }
            run(Fault::Shifted, nth, parts);
        }
    }
    println!("{count} faults, {healed} of them healed at once");
    assert!(count > 250 && healed > 0);
}
