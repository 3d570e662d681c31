//! The dashboard as people use it, in a real browser.

mod chromium;

use std::path::{Path, PathBuf};

use release::omaha::Event;
use update_server::api::Role;

use self::chromium::Chromium;
use crate::support::{Lab, Running, TestHost, version};

const PAGES: [(&str, &str); 6] = [
    ("overview", "/"),
    ("hosts", "/hosts"),
    ("failed", "/hosts?failed=1"),
    ("groups", "/groups"),
    ("releases", "/releases"),
    ("activity", "/activity"),
];

const LOOKS: [(&str, u32, u32, &str); 3] = [
    ("light", 1280, 900, "light"),
    ("dark", 1280, 900, "dark"),
    ("phone", 360, 740, "light"),
];

/// Twelve hosts that were offered release 2, of which three lost it.
fn fleet(server: &Running) {
    for number in 0..12 {
        let host = TestHost::new(server, &format!("node-{number}"), "1");
        assert_eq!(host.offered(), "2");
        if number % 4 == 0 {
            let reason = "<b>sshd</b> failed";
            host.tell(Event::failed(&version("2"), None, 50, reason));
        }
    }
}

/// Where somebody may look at them afterwards.
fn pictures() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG"), "no picture");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

/// Every page in every look: readable, reachable, and as wide as the window.
fn visit(browser: &mut Chromium, server: &Running, who: &str, more: &[(&str, &str)]) {
    for (name, path) in PAGES.iter().chain(more) {
        browser.goto(&server.url(path));
        let mut seen = vec![];
        for (look, width, height, scheme) in LOOKS {
            browser.look(width, height, scheme);
            let barriers = browser.barriers();
            assert!(barriers.is_empty(), "{who}, {path}, {look}: {barriers:#?}");
            let png = browser.picture();
            std::fs::write(pictures().join(format!("{who}-{name}-{look}.png")), &png).unwrap();
            assert_eq!(size(&png), (width, height));
            assert!(png.len() > 4000, "{who}, {path}, {look}: is it empty?");
            assert!(!seen.contains(&png), "{who}, {path}: {look} is nothing new");
            seen.push(png);
        }
    }
    browser.look(1280, 900, "light");
}

#[test]
fn whoever_comes_sees_the_fleet_and_no_buttons() {
    let lab = Lab::new();
    let server = lab.start();
    let mut browser = Chromium::start(&lab.path("profile"));
    // The first thing that anybody sees.
    visit(&mut browser, &server, "nobody", &[("sign-in", "/sign-in")]);
    server.publish(&lab.release("2"));
    fleet(&server);
    visit(&mut browser, &server, "stranger", &[]);
    browser.goto(&server.url("/hosts?failed=1"));
    let rows = browser.eval("document.querySelectorAll('[role=rowheader]').length");
    assert_eq!(rows, 3);
    browser.goto(&server.url("/"));
    browser.until_text(", kept fresh");
    browser.until_text("<b>sshd</b> failed");
    for (_, path) in PAGES {
        browser.goto(&server.url(path));
        let forms = browser.eval("document.querySelectorAll('[method=post], [name=csrf]').length");
        assert_eq!(forms, 0, "{path}");
    }

    // What happens meanwhile shows without anybody reloading.
    browser.goto(&server.url("/"));
    browser.eval("window.same = true");
    let host = TestHost::new(&server, "late", "1");
    host.tell(Event::failed(&version("2"), None, 50, "no network"));
    browser.until_text("no network");
    assert_eq!(browser.eval("window.same"), true);
}

/// So that what is on the card of a channel or a group can be told from the others.
fn card(browser: &mut Chromium, name: &str) {
    let cards = "[...document.querySelectorAll('.cards > li')]";
    browser.eval(&format!(
        "{cards}.find(it => it.innerText.startsWith('{name}')).id = '{name}'"
    ));
}

#[test]
fn an_operator_leads_a_release_through_the_channels() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    fleet(&server);
    let mut browser = Chromium::start(&lab.path("profile"));
    let token = server.client().make_token("ann", Role::Operator).unwrap();
    browser.goto(&server.url("/"));
    browser.follow("a", "Sign in");
    browser.write("[name=token]", &token.token);
    browser.follow("main button", "Sign in");
    browser.until_text("ann (operator)");
    let id = &TestHost::new(&server, "node-0", "1").app.machine_id;
    let host = format!("/hosts/{id}");
    visit(&mut browser, &server, "operator", &[("host", &host)]);

    browser.follow("nav a", "Channels");
    card(&mut browser, "beta");
    browser.follow("#beta button", "Promote 2 from stable");
    let beta = server.client().channels().unwrap();
    let beta = beta.iter().find(|it| it.name.as_str() == "beta").unwrap();
    assert_eq!(beta.version, Some(version("2")));

    // By its own group, and again by the channel.
    let fresh = TestHost::new(&server, "fresh", "1");
    browser.follow("nav a", "Groups");
    card(&mut browser, "stable");
    browser.follow("#stable .rollout button", "Pause");
    browser.until_text("paused");
    assert_eq!(fresh.offered(), "-");
    card(&mut browser, "stable");
    browser.follow("#stable .rollout button", "Resume");
    assert_eq!(fresh.offered(), "2");

    browser.follow("nav a", "Channels");
    browser.press("summary", "Withdraw");
    browser.write("details[open] [name=value]", "it eats disks");
    browser.follow("details[open] button", "Withdraw 2");
    browser.until_text("it eats disks");
    assert_eq!(TestHost::new(&server, "later", "1").offered(), "-");

    browser.follow("nav a", "Activity");
    for done in ["promoted", "paused", "resumed", "withdrawn"] {
        browser.until_text(done);
    }
    assert!(browser.text().contains("ann:"), "{}", browser.text());
    browser.follow("header button", "Sign out");
    browser.until_text("Sign in");
    assert!(!browser.text().contains("ann (operator)"));
}
