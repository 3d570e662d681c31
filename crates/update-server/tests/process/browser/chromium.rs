//! Debian's `chromium` without a window, led by its DevTools protocol over a pipe: every message is JSON that
//! ends with a zero byte (`--remote-debugging-pipe`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

/// For one answer, and for what a page is expected to become.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asked of every element that shows text of its own: WCAG 2.2 wants a contrast of 4.5, of 3 for large text.
const FAINT: &str = include_str!("faint.js");

pub(super) struct Chromium {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    calls: u64,
    /// Of its one page.
    session: Option<String>,
}

impl Chromium {
    pub(super) fn start(profile: &Path) -> Self {
        // It reads from descriptor 3 and writes to 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >&2", "sh"])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
            .args(["--hide-scrollbars", "--no-first-run", "--no-proxy-server"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            // It talks to our server and to nobody else.
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args(["--disable-sync", "--disable-quic"])
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).unwrap();
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut chromium = Self {
            child,
            input,
            messages,
            calls: 0,
            session: None,
        };
        let page = chromium.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = chromium.call("Target.attachToTarget", attach);
        chromium.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        chromium
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let missing = "chromium is missing or dead: ./orlop prerequisites installs it";
        write!(self.input, "{message}\0").expect(missing);
        let limit = Instant::now() + PATIENCE;
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            let answer = self.messages.recv_timeout(left);
            let mut answer = answer.unwrap_or_else(|error| panic!("{method}: {error}; {missing}"));
            // What is none is an event.
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
        }
    }

    /// What an expression gives, of a promise what becomes of it.
    pub(super) fn eval(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut result = self.call("Runtime.evaluate", params);
        let failed = &result["exceptionDetails"];
        assert!(failed.is_null(), "{expression}: {failed}");
        result["result"]["value"].take()
    }

    pub(super) fn text(&mut self) -> String {
        let text = self.eval("document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn until(&mut self, expression: &str) {
        let begin = Instant::now();
        while self.eval(expression) != true {
            let waited = begin.elapsed();
            assert!(waited < PATIENCE, "never {expression}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn until_text(&mut self, text: &str) {
        self.until(&format!(
            "document.body.innerText.includes({})",
            json!(text)
        ));
    }

    pub(super) fn goto(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({ "url": url }));
        assert!(went["errorText"].is_null(), "{url}: {went}");
        self.until("document.readyState === 'complete'");
    }

    /// Presses the one element of the selector that has that text, where somebody would who sees it.
    pub(super) fn press(&mut self, selector: &str, text: &str) {
        let found = format!(
            "(() => {{
                const all = [...document.querySelectorAll({})];
                const found = all.filter(it => it.innerText.trim() === {} && it.checkVisibility());
                if (found.length !== 1) return `${{found.length}} of these: ${{all.map(it => it.innerText)}}`;
                found[0].scrollIntoView({{ block: 'center', behavior: 'instant' }});
                const box = found[0].getBoundingClientRect();
                const at = {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }};
                const top = document.elementFromPoint(at.x, at.y);
                return found[0].contains(top) ? at : `covered by ${{top?.outerHTML}}`;
            }})()",
            json!(selector),
            json!(text)
        );
        let at = self.eval(&found);
        assert!(at.is_object(), "no {selector} {text:?} to press: {at}");
        for kind in ["mousePressed", "mouseReleased"] {
            let params = json!({ "type": kind, "x": at["x"], "y": at["y"], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// Presses what leads to another page, or to this one anew.
    pub(super) fn follow(&mut self, selector: &str, text: &str) {
        self.eval("window.old = true");
        self.press(selector, text);
        self.until("!window.old && document.readyState === 'complete'");
    }

    pub(super) fn write(&mut self, selector: &str, text: &str) {
        self.eval(&format!(
            "document.querySelector({}).focus()",
            json!(selector)
        ));
        self.call("Input.insertText", json!({ "text": text }));
    }

    pub(super) fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", scheme);
    }

    /// A PNG of what the window shows.
    pub(super) fn picture(&mut self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let data = shot["data"].as_str().unwrap();
        base64::prelude::BASE64_STANDARD.decode(data).unwrap()
    }

    /// What keeps people out: whom the eyes or the hands do not serve well.
    pub(super) fn barriers(&mut self) -> Vec<String> {
        let mut found = self.nameless();
        for faint in self.eval(FAINT).as_array().unwrap() {
            found.push(format!("faint: {faint}"));
        }
        let wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        if self.eval(wide) != 0 {
            found.push("the page is wider than the window".into());
        }
        let levels =
            "[...document.querySelectorAll('h1, h2, h3, h4')].map(it => Number(it.tagName[1]))";
        let levels: Vec<u64> = serde_json::from_value(self.eval(levels)).unwrap();
        let skips = levels.windows(2).any(|pair| pair[1] > pair[0] + 1);
        if levels.first() != Some(&1)
            || levels.iter().filter(|&&level| level == 1).count() != 1
            || skips
        {
            found.push(format!("headings: {levels:?}"));
        }
        found
    }

    /// What can be used, but has no name that a screen reader would say.
    fn nameless(&mut self) -> Vec<String> {
        const USED: [&str; 10] = [
            "button",
            "checkbox",
            "combobox",
            "DisclosureTriangle",
            "image",
            "link",
            "navigation",
            "region",
            "searchbox",
            "textbox",
        ];
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().unwrap();
        assert!(nodes.len() > 20, "{tree}");
        let nameless = nodes.iter().filter(|node| {
            let role = node["role"]["value"].as_str().unwrap_or_default();
            let name = node["name"]["value"].as_str().unwrap_or_default();
            node["ignored"] != true && USED.contains(&role) && name.trim().is_empty()
        });
        nameless
            .map(|node| format!("without a name: {node}"))
            .collect()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The script that Debian starts it by has become it; its own children go with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
