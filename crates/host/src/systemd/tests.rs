//! Against a manager of our own at the other end of a socket. It has its own words for the bytes of the
//! specification, so that a mistake of the code under test is not made twice.

use std::io::{Read, Write};
use std::thread::JoinHandle;

use super::*;

const JOB: &str = "/org/freedesktop/systemd1/job/7";

/// One value after the other, each aligned to its own size.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn number(mut self, value: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(u32::try_from(value).unwrap().to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut out = self.number(text.len());
        out.0.extend(text.bytes().chain([0]));
        out
    }

    fn variant(mut self, text: &str) -> Self {
        self.0.extend(b"\x01s\0");
        self.text(text)
    }
}

/// A message of ours: `fields` are code, type and value.
fn message(kind: u8, fields: &[(u8, char, &str)], signature: &str, body: Bytes) -> Vec<u8> {
    let mut head = Bytes::default();
    for (code, of, value) in fields {
        head.0.resize(head.0.len().next_multiple_of(8), 0);
        head.0.extend([*code, 1, u8::try_from(*of).unwrap(), 0]);
        head = match of {
            'u' => head.number(value.parse().unwrap()),
            _ => head.text(value),
        };
    }
    head.0.resize(head.0.len().next_multiple_of(8), 0);
    head.0
        .extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
    head.0.extend(signature.bytes().chain([0]));
    let mut out = Bytes(vec![b'l', kind, 1, 1])
        .number(body.0.len())
        .number(1)
        .number(head.0.len());
    out.0.extend(head.0);
    out.0.resize(out.0.len().next_multiple_of(8), 0);
    out.0.extend(body.0);
    out.0
}

fn reply(to: &str, signature: &str, body: Bytes) -> Vec<u8> {
    message(2, &[(5, 'u', to)], signature, body)
}

fn job(to: &str) -> Vec<u8> {
    reply(to, "o", Bytes::default().text(JOB))
}

fn refusal(to: &str, name: &str, text: &str) -> Vec<u8> {
    let name = format!("org.freedesktop.systemd1.{name}");
    let fields = [(4, 's', name.as_str()), (5, 'u', to)];
    message(3, &fields, "s", Bytes::default().text(text))
}

/// As systemd sends it: from a name that is not unique, which general libraries refuse.
fn removed(job: &str, result: &str) -> Vec<u8> {
    let fields = [
        (1, 'o', MANAGER_PATH),
        (2, 's', MANAGER),
        (3, 's', "JobRemoved"),
        (7, 's', SERVICE),
    ];
    let body = Bytes::default().number(7).text(job);
    message(4, &fields, "uoss", body.text("x.service").text(result))
}

/// Takes values out again.
struct Cursor(Vec<u8>, usize);

impl Cursor {
    fn number(&mut self) -> usize {
        let at = self.1.next_multiple_of(4);
        self.1 = at + 4;
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()) as usize
    }

    fn chars(&mut self, length: usize) -> String {
        let text = String::from_utf8(self.0[self.1..self.1 + length].to_vec()).unwrap();
        assert_eq!(self.0[self.1 + length], 0);
        self.1 += length + 1;
        text
    }

    fn text(&mut self) -> String {
        let length = self.number();
        self.chars(length)
    }

    fn byte(&mut self) -> u8 {
        self.1 += 1;
        self.0[self.1 - 1]
    }
}

/// The next call: serial, and member with arguments.
fn read_call(stream: &mut UnixStream) -> Option<(String, String)> {
    let mut fixed = vec![0; 16];
    stream.read_exact(&mut fixed).ok()?;
    assert_eq!(fixed[..4], [b'l', 1, 0, 1]);
    let mut fixed = Cursor(fixed, 4);
    let (body, serial, head) = (fixed.number(), fixed.number(), fixed.number());
    let mut bytes = vec![0; head.next_multiple_of(8) + body];
    stream.read_exact(&mut bytes).unwrap();
    let (mut member, mut signature) = (String::new(), String::new());
    let mut at = Cursor(bytes, 0);
    while at.1 < head {
        at.1 = at.1.next_multiple_of(8);
        let code = at.byte();
        let length = usize::from(at.byte());
        let of = at.chars(length);
        let value = match of.as_str() {
            "g" => {
                let length = usize::from(at.byte());
                at.chars(length)
            }
            _ => at.text(),
        };
        match code {
            3 => member = value,
            8 => signature = value,
            _ => {}
        }
    }
    let mut at = Cursor(at.0.split_off(head.next_multiple_of(8)), 0);
    let mut call = member;
    for of in signature.replace("as", "a").chars() {
        call += &match of {
            's' => format!(" {}", at.text()),
            'b' => format!(" {}", at.number() == 1),
            _ => {
                let end = at.number() + at.1;
                let mut items = Vec::new();
                while at.1 < end {
                    items.push(at.text());
                }
                format!(" {items:?}")
            }
        };
    }
    assert_eq!(at.1, body);
    Some((serial.to_string(), call))
}

/// A manager that answers each call; what it was asked comes back at the end. Subscribing always works.
fn manager(
    answer: impl Fn(&str, &str) -> Vec<u8> + Send + 'static,
) -> (Systemd, JoinHandle<Vec<String>>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut hello = Vec::new();
        let mut byte = [0];
        while !hello.ends_with(b"BEGIN\r\n") {
            theirs.read_exact(&mut byte).unwrap();
            hello.push(byte[0]);
        }
        assert!(hello.starts_with(b"\0AUTH EXTERNAL "));
        theirs.write_all(b"OK 0123456789abcdef\r\n").unwrap();
        let mut asked = Vec::new();
        while let Some((serial, call)) = read_call(&mut theirs) {
            let bytes = match call.as_str() {
                "Subscribe" => reply(&serial, "", Bytes::default()),
                call => answer(call, &serial),
            };
            theirs.write_all(&bytes).unwrap();
            asked.push(call);
        }
        asked.retain(|call| call != "Subscribe");
        asked
    });
    (Systemd::from_stream(ours).unwrap(), thread)
}

#[test]
fn a_job_is_waited_for_even_if_it_ends_before_its_call_returns() {
    for early in [true, false] {
        let (systemd, thread) = manager(move |_, serial| {
            let (other, ours) = (
                removed("/org/freedesktop/systemd1/job/3", "failed"),
                removed(JOB, "done"),
            );
            match early {
                true => [other, ours, job(serial)].concat(),
                false => [other, job(serial), ours].concat(),
            }
        });
        systemd.start("a.service").unwrap();
        systemd.reload_or_restart("a.service").unwrap();
        systemd.reboot().unwrap();
        drop(systemd);
        assert_eq!(
            thread.join().unwrap(),
            [
                "StartUnit a.service replace",
                "ReloadOrRestartUnit a.service replace",
                "StartUnit reboot.target replace-irreversibly"
            ]
        );
    }
}

#[test]
fn failures_say_what_to_do() {
    let check = |result: &'static str, expect: Option<&str>| {
        let (systemd, _) = manager(move |_, serial| match result {
            "NoSuchUnit" | "UnitMasked" | "Odd" => refusal(serial, result, "Unit is odd."),
            result => [job(serial), removed(JOB, result)].concat(),
        });
        let error = systemd.start("a.service").err();
        assert_eq!(
            error.as_ref().map(ToString::to_string).as_deref(),
            expect,
            "{result}"
        );
        assert!(!error.is_some_and(|error| error.is_connection()));
    };
    check("done", None);
    check("skipped", None);
    check(
        "failed",
        Some("start of a.service: it failed; see `journalctl -u a.service`"),
    );
    check(
        "dependency",
        Some("start of a.service: a unit it needs failed; see `systemctl status a.service`"),
    );
    check(
        "timeout",
        Some("start of a.service: it took too long; see `journalctl -u a.service`"),
    );
    check(
        "NoSuchUnit",
        Some("no such unit: a.service; `systemctl list-unit-files` shows those there are"),
    );
    check(
        "UnitMasked",
        Some("a.service is masked; `systemctl unmask a.service` allows it again"),
    );
    check("Odd", Some("cannot start a.service"));
}

#[test]
fn a_job_that_does_not_end_times_out_and_the_next_one_is_told_from_it() {
    let (systemd, _) = manager(|call, serial| match call {
        "StartUnit slow.service replace" => job(serial),
        _ => [job(serial), removed(JOB, "done")].concat(),
    });
    let systemd = systemd.with_job_timeout(Duration::from_secs(1));
    let error = systemd.start("slow.service").unwrap_err();
    assert_eq!(
        error.to_string(),
        "start of slow.service has not finished within 1 s"
    );
    systemd.start("sshd.service").unwrap();
}

#[test]
fn enables_and_reads_states() {
    let (systemd, thread) = manager(|call, serial| {
        let body = Bytes::default();
        match call.split(' ').next().unwrap() {
            "EnableUnitFiles" => reply(serial, "ba(sss)", body.number(1).number(0).number(0)),
            "LoadUnit" => reply(serial, "o", body.text("/unit/a")),
            "Get" => reply(serial, "v", body.variant("active")),
            _ => reply(serial, "", body),
        }
    });
    systemd.enable(&["a.service", "b.timer"], true).unwrap();
    systemd.daemon_reload().unwrap();
    assert_eq!(systemd.active_state("a.service").unwrap(), "active");
    drop(systemd);
    assert_eq!(
        thread.join().unwrap(),
        [
            r#"EnableUnitFiles ["a.service", "b.timer"] true true"#,
            "Reload",
            "LoadUnit a.service",
            "Get org.freedesktop.systemd1.Unit ActiveState"
        ]
    );
}

#[test]
fn a_broken_connection_is_an_error_not_a_hang() {
    let check = |bytes: &'static [u8], expect: &str| {
        let (systemd, _) = manager(move |_, _| bytes.to_vec());
        let error = systemd.daemon_reload().unwrap_err();
        assert!(error.is_connection());
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, expect);
    };
    let long = b"l\x02\0\x01\xff\xff\xff\xff\x01\0\0\0\0\0\0\0";
    check(
        long,
        "a message is not what D-Bus prescribes: it is too long",
    );
    check(
        b"HTTP/1.1 400 Bad",
        "a message is not what D-Bus prescribes: its first byte is no endianness",
    );
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(Systemd::from_stream(ours).unwrap_err().is_connection());
}
