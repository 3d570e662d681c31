//! The dashboard in a real browser: Debian's `chromium`, without a window.

use std::path::Path;
use std::process::Command;

use release::omaha::Event;

use crate::support::{Lab, Running, TestHost, version};

/// Runs it on one page; what it prints.
fn chromium(server: &Running, profile: &Path, path: &str, more: &[&str]) -> String {
    let output = Command::new("chromium")
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args([
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--no-proxy-server",
            // It talks to our server and to nobody else.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-quic",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--timeout=60000",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(more)
        .arg(server.url(path))
        .output()
        .expect("chromium is missing: ./orlop prerequisites installs it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Width and height of a PNG, and how many bytes it has.
fn picture(path: &Path) -> (u32, u32, usize) {
    let bytes = std::fs::read(path).unwrap_or_default();
    assert!(
        bytes.starts_with(b"\x89PNG"),
        "{} is no picture",
        path.display()
    );
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20), bytes.len())
}

#[test]
fn a_browser_shows_the_fleet() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    for number in 0..12 {
        let host = TestHost::new(&server, &format!("node-{number}"), "1");
        assert_eq!(host.offered(), "2");
        if number % 4 == 0 {
            let reason = "<b>sshd</b> failed";
            host.tell(Event::failed(&version("2"), None, 50, reason));
        }
    }
    let profile = lab.path("profile");
    let dom = chromium(&server, &profile, "/", &["--dump-dom"]);
    assert!(
        dom.contains(", kept fresh"),
        "the script does not run: {dom}"
    );
    assert!(
        dom.contains("node-0</strong>") && dom.contains("&lt;b&gt;sshd&lt;/b&gt; failed"),
        "{dom}"
    );
    let dom = chromium(&server, &profile, "/hosts?failed=1", &["--dump-dom"]);
    assert_eq!(dom.matches("role=\"rowheader\"").count(), 3, "{dom}");

    let shot = |name: &str, size: &str, more: &[&str]| {
        let path = lab.path(name);
        let file = format!("--screenshot={}", path.display());
        let window = format!("--window-size={size}");
        let all = [&[file.as_str(), window.as_str()], more].concat();
        chromium(&server, &profile, "/", &all);
        let (width, height, bytes) = picture(&path);
        assert_eq!(format!("{width},{height}"), size);
        assert!(bytes > 8000, "{name} has only {bytes} bytes: is it empty?");
        std::fs::read(path).unwrap()
    };
    let light = shot("wide.png", "1280,900", &[]);
    let dark = shot(
        "dark.png",
        "1280,900",
        &["--blink-settings=preferredColorScheme=0"],
    );
    shot("phone.png", "500,900", &[]);
    assert_ne!(light, dark);
}
