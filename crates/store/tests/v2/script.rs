//! Lists of requests, as text:
//!
//! ```text
//! # a comment
//! PUT /v2/keys/a value=1&ttl=5        a form
//! PUT /v2/auth/users/u {"user":"u"}   JSON
//! @root:secret GET /v2/keys/a         with a password
//! [text/plain] PUT /v2/keys/a x       with this content type
//! 1005 * PUT /v2/keys/a value=x       many times; the last answer counts
//! w1> GET /v2/keys/a?wait=true        opens w1, whose head must come at once
//! w1< 2                               two lines of w1
//! w1.                                 the rest of w1
//! until 404 GET /v2/keys/a            again and again until that is the status
//! ? GET /v2/keys/a                    the words of the answer do not matter
//! POST /v3/kv/range {"key":"«a»"}     what is between the marks is sent in base64
//! ```

use base64::Engine;

#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

#[derive(Debug)]
pub(crate) enum Step {
    Send(Call),
    Repeat(usize, Call),
    Until(u16, Call),
    Open(String, Call),
    Lines(String, usize),
    Finish(String),
}

pub(crate) fn parse(text: &str) -> Vec<(String, Step)> {
    text.lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| (format!("{number}: {line}"), step(line)))
        .collect()
}

fn step(line: &str) -> Step {
    if let Some((name, rest)) = line.split_once("> ")
        && !name.contains(' ')
    {
        return Step::Open(name.into(), call(rest));
    }
    if let Some((name, count)) = line.split_once("< ")
        && !name.contains(' ')
    {
        return Step::Lines(name.into(), count.parse().unwrap());
    }
    if let Some(name) = line.strip_suffix('.')
        && !name.contains(' ')
    {
        return Step::Finish(name.into());
    }
    if let Some(rest) = line.strip_prefix("until ") {
        let (status, rest) = rest.split_once(' ').unwrap();
        return Step::Until(status.parse().unwrap(), call(rest));
    }
    if let Some((count, rest)) = line.split_once(" * ") {
        return Step::Repeat(count.parse().unwrap(), call(rest));
    }
    Step::Send(call(line.strip_prefix("? ").unwrap_or(line)))
}

fn call(text: &str) -> Call {
    let mut call = Call::default();
    let mut rest = text;
    let mut kind = None;
    loop {
        if let Some(more) = rest.strip_prefix('@') {
            let (user, more) = more.split_once(' ').unwrap();
            let encoded = base64::engine::general_purpose::STANDARD.encode(user);
            call.headers
                .push(("Authorization".into(), format!("Basic {encoded}")));
            rest = more;
        } else if let Some(more) = rest.strip_prefix('[') {
            let (wanted, more) = more.split_once("] ").unwrap();
            kind = Some(wanted.to_owned());
            rest = more;
        } else {
            break;
        }
    }
    let mut parts = rest.splitn(3, ' ');
    call.method = parts.next().unwrap().into();
    call.target = parts.next().unwrap().into();
    call.body = base64(parts.next().unwrap_or_default().trim_start());
    let default = match call.body.chars().next() {
        None => "",
        Some('{') => "application/json",
        Some(_) => "application/x-www-form-urlencoded",
    };
    let kind = kind.unwrap_or_else(|| default.into());
    if !kind.is_empty() {
        call.headers.push(("Content-Type".into(), kind));
    }
    call
}

fn base64(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split(['«', '»']).enumerate() {
        if at % 2 == 0 {
            out.push_str(part);
        } else {
            base64::engine::general_purpose::STANDARD.encode_string(part, &mut out);
        }
    }
    out
}
