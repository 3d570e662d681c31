//! A server that can be told to misbehave. Speaks just enough HTTP/1.1: one request per connection.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use release::omaha::{APP_ID, AppResponse, EventMeaning, Offer, Request, Response, UpdateCheck};

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mood {
    #[default]
    Good,
    /// Files end after this many bytes of body, whatever the length said.
    Truncate(usize),
    /// Files end after this many bytes, and from there on there are none.
    Dies(usize),
    /// After this many bytes of a file, silence.
    Stall(usize),
    Status(u16),
    Html,
    RedirectLoop,
    /// Claims one byte more than there is.
    WrongLength,
    /// Ranges are ignored: always the whole file.
    NoRanges,
    /// Other bytes of the same length.
    Corrupt,
    /// This byte is another one, or the one in the middle of what is shorter.
    Flip(usize),
    /// The connection ends without an answer.
    HangUp,
    /// Answers Omaha with something else.
    Garbage,
    /// Answers Omaha as Nebraska does when its policy says no: with this status.
    Denies(&'static str),
    /// Takes its time to answer Omaha.
    Thinks(Duration),
}

/// The mood for a request such as `GET 2/uki.efi 0-` or `POST`, if it is another than that of all.
/// It is for metadata too, which the server's own mood spares.
pub type Fault = Box<dyn FnMut(&str) -> Option<Mood> + Send>;

#[derive(Default)]
pub struct State {
    pub mood: Mood,
    pub fault: Option<Fault>,
    /// What files are called, instead of a strong name by their length; none at all if empty.
    pub tag: Option<&'static str>,
    pub offer: Option<String>,
    /// Other addresses of the offer, after this server's own.
    pub more: Vec<String>,
    /// Another address instead of this server's own.
    pub instead: Option<String>,
    pub files: HashMap<String, Vec<u8>>,
    /// How often it was asked for an update.
    pub asked: usize,
    /// Bytes of file bodies that were sent.
    pub sent: usize,
    /// `GET /2/uki.efi 0-`, in order.
    pub requests: Vec<String>,
    /// `13/1 2`, with reason where there is one.
    pub events: Vec<String>,
    /// As our own server: what failed on the host is not offered again, unless it is forced or
    /// the failures are cleared.
    pub withholds: bool,
    failed: Vec<String>,
}

pub struct Server {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || drop(answer(stream, &state, port)));
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1/update/", self.port)
    }

    pub fn file_url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub fn set(&self, mood: Mood) {
        self.with(|s| s.mood = mood);
    }

    /// Misbehaves once, at the first request for this file.
    pub fn set_once(&self, mood: Mood, file: &str) {
        let (file, mut mood) = (format!("GET {file} "), Some(mood));
        let fault = move |request: &str| mood.take_if(|_| request.starts_with(&file));
        self.with(|s| s.fault = Some(Box::new(fault)));
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, port: u16) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    input.read_line(&mut first)?;
    let (mut length, mut range, mut if_range) = (0, None, None);
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "range" => range = Some(value.trim_start_matches("bytes=").to_owned()),
            "if-range" => if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let path = first
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .trim_start_matches('/')
        .to_owned();
    let post = first.starts_with("POST");
    let request = match post {
        true => "POST".to_owned(),
        false => format!("GET {path} {}", range.as_deref().unwrap_or("all")),
    };
    let mood = {
        let mut state = state.lock().unwrap();
        let fault = state.fault.as_mut().and_then(|fault| fault(&request));
        if !post {
            state.requests.push(request);
        }
        fault.unwrap_or_else(|| match state.mood.clone() {
            mood @ (Mood::Status(_)
            | Mood::Html
            | Mood::Garbage
            | Mood::Denies(_)
            | Mood::Thinks(_)) => mood,
            _ if post || path.ends_with(".json") => Mood::Good,
            mood => mood,
        })
    };
    match mood {
        Mood::HangUp => return Ok(()),
        Mood::Status(status) => {
            return write!(stream, "HTTP/1.1 {status} no\r\nContent-Length: 0\r\n\r\n");
        }
        Mood::Html => {
            let head = "200 OK\r\nContent-Type: text/html; charset=utf-8";
            send(
                &mut stream,
                head,
                b"<html>log in to the hotel's network",
                &Mood::Good,
            )?;
            return Ok(());
        }
        Mood::RedirectLoop => {
            return write!(
                stream,
                "HTTP/1.1 302 there\r\nLocation: /{path}\r\nContent-Length: 0\r\n\r\n"
            );
        }
        _ => {}
    }
    match post {
        true => omaha(stream, state, port, &body, &mood),
        false => file(stream, state, &path, range, if_range, &mood),
    }
}

/// How much of the body was sent.
fn send(stream: &mut TcpStream, head: &str, body: &[u8], mood: &Mood) -> std::io::Result<usize> {
    let claimed = body.len() + usize::from(*mood == Mood::WrongLength);
    write!(
        stream,
        "HTTP/1.1 {head}\r\nContent-Length: {claimed}\r\n\r\n"
    )?;
    let part = match mood {
        Mood::Truncate(at) | Mood::Stall(at) | Mood::Dies(at) => &body[..*at.min(&body.len())],
        _ => body,
    };
    stream.write_all(part)?;
    stream.flush()?;
    Ok(part.len())
}

/// Longer than any client here waits.
fn stall(mood: &Mood) {
    if matches!(mood, Mood::Stall(_)) {
        std::thread::sleep(Duration::from_secs(40));
    }
}

fn flip(bytes: &mut [u8], mood: &Mood) {
    let at = match mood {
        Mood::Corrupt => 1000,
        Mood::Flip(at) => *at,
        _ => return,
    };
    let at = if at < bytes.len() {
        at
    } else {
        bytes.len() / 2
    };
    bytes[at] ^= 1;
}

fn omaha(
    mut stream: TcpStream,
    shared: &Mutex<State>,
    port: u16,
    body: &[u8],
    mood: &Mood,
) -> std::io::Result<()> {
    let request = Request::from_xml(std::str::from_utf8(body).unwrap()).unwrap();
    let app = &request.apps[0];
    let mut state = shared.lock().unwrap();
    state.asked += usize::from(app.update_check);
    if let Mood::Thinks(time) = mood {
        drop(state);
        std::thread::sleep(*time);
        state = shared.lock().unwrap();
    }
    match mood {
        Mood::Denies(status) if app.update_check => {
            let answer = format!(
                r#"<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="nebraska"><daystart elapsed_seconds="0"></daystart><app appid="{}" status="{status}"><ping status="ok"></ping><updatecheck status="error-internal"></updatecheck></app></response>"#,
                app.app_id
            );
            return send(&mut stream, XML, answer.as_bytes(), &Mood::Good).map(drop);
        }
        Mood::Garbage => {
            let body = b"<?xml version='1.0'?><html>";
            return send(&mut stream, XML, body, &Mood::Good).map(drop);
        }
        _ => {}
    }
    for event in &app.events {
        let version = event
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut text = format!("{}/{} {version}", event.event_type, event.event_result);
        if let Some(previous) = &event.previous_version {
            text += &format!(" after {previous}");
        }
        if let Some(reason) = &event.reason {
            text += &format!(" ({}: {reason})", event.error_code.unwrap_or(0));
        }
        state.events.push(text);
        match event.meaning() {
            EventMeaning::Failed => state
                .failed
                .extend(event.version.iter().map(|v| v.to_string())),
            EventMeaning::FailuresCleared => state.failed.clear(),
            _ => {}
        }
    }
    let barred = |version| state.withholds && !app.force && state.failed.contains(version);
    let update_check = app.update_check.then(|| match &state.offer {
        Some(version) if *version != app.version && !barred(version) => UpdateCheck::Offer(Offer {
            codebases: {
                let own = format!("http://127.0.0.1:{port}/{version}/");
                let first = state.instead.clone().unwrap_or(own);
                std::iter::once(first).chain(state.more.clone()).collect()
            },
            version: version.parse().unwrap(),
            packages: Vec::new(),
        }),
        _ => UpdateCheck::NoUpdate {
            running: app.version.clone(),
        },
    });
    let response = Response {
        daystart_seconds: 0,
        apps: vec![AppResponse {
            app_id: APP_ID.into(),
            status: "ok".into(),
            update_check,
            ping: app.ping,
            events: app.events.len(),
        }],
    };
    drop(state);
    let mut body = response.to_xml().into_bytes();
    flip(&mut body, mood);
    send(&mut stream, XML, &body, mood)?;
    stall(mood);
    Ok(())
}

const XML: &str = "200 OK\r\nContent-Type: text/xml";

fn file(
    mut stream: TcpStream,
    state: &Mutex<State>,
    path: &str,
    range: Option<String>,
    if_range: Option<String>,
    mood: &Mood,
) -> std::io::Result<()> {
    let (content, tag) = {
        let state = state.lock().unwrap();
        (state.files.get(path).cloned(), state.tag)
    };
    let Some(mut content) = content else {
        return write!(stream, "HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n");
    };
    flip(&mut content, mood);
    let tag = tag.map_or_else(|| format!("\"{:x}\"", content.len()), str::to_owned);
    let start = range.filter(|_| *mood != Mood::NoRanges && if_range.is_none_or(|t| t == tag));
    let total = content.len();
    let (start, last): (Option<usize>, usize) = match &start {
        Some(range) => {
            let (start, last) = range.split_once('-').unwrap();
            let last = last
                .parse()
                .map_or(total - 1, |last: usize| last.min(total - 1));
            (Some(start.parse().unwrap()), last)
        }
        None => (None, total.saturating_sub(1)),
    };
    if matches!(mood, Mood::Dies(at) if start.is_some_and(|start| start >= *at)) {
        return write!(stream, "HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n");
    }
    let body = &content[start.unwrap_or(0).min(total)..(last + 1).min(total)];
    let mut head = match start {
        Some(start) => format!("206 part\r\nContent-Range: bytes {start}-{last}/{total}"),
        None => "200 OK".to_owned(),
    };
    if !tag.is_empty() {
        head += &format!("\r\nETag: {tag}");
    }
    // Before the bytes are there: who has them may look at once.
    let part = match mood {
        Mood::Truncate(at) | Mood::Stall(at) | Mood::Dies(at) => *at.min(&body.len()),
        _ => body.len(),
    };
    if !path.ends_with(".json") {
        state.lock().unwrap().sent += part;
    }
    send(&mut stream, &head, body, mood)?;
    if part < body.len() {
        stall(mood);
    }
    Ok(())
}
