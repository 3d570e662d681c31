//! Who may see and do what, and what programs read.

use update_server::api::Role;
use update_server::client::Server;

use crate::support::{Lab, Running, TestHost};

fn form(server: &Running, path: &str, cookie: &str, body: &str) -> (u16, String, String) {
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("cookie", cookie),
        ("authorization", ""),
    ];
    let (status, headers, body) = server.request_all("POST", path, &headers, body.as_bytes());
    let cookie = headers
        .get("set-cookie")
        .map(|value| value.to_str().unwrap().to_owned());
    (
        status,
        cookie.unwrap_or_default(),
        String::from_utf8(body).unwrap(),
    )
}

fn page(server: &Running, path: &str, cookie: &str) -> (u16, String) {
    let (status, body) = server.request(
        "GET",
        path,
        &[("cookie", cookie), ("authorization", "")],
        b"",
    );
    (status, String::from_utf8(body).unwrap())
}

/// The cookie, and the secret that forms repeat.
fn sign_in(server: &Running, token: &str) -> (String, String) {
    let (status, cookie, _) = form(server, "/sign-in", "", &format!("token={token}"));
    assert_eq!(status, 303);
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let (_, html) = page(server, "/", &cookie);
    let csrf = html
        .split("name=\"csrf\" value=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    (cookie, csrf.to_owned())
}

#[test]
fn a_host_that_is_gone_is_forgotten_by_a_button() {
    let lab = Lab::new();
    let server = lab.start();
    let host = TestHost::new(&server, "node", "1");
    assert_eq!(host.offered(), "-");
    let (cookie, csrf) = sign_in(&server, &server.token);
    let id = &host.app.machine_id;
    let (_, html) = page(&server, &format!("/hosts/{id}"), &cookie);
    assert!(html.contains("Forget node"), "{html}");
    let (_, html) = page(&server, &format!("/hosts/{id}"), "");
    assert!(!html.contains("Forget node"), "{html}");
    let wish = format!("do=forget&name={id}&csrf=");
    assert_eq!(
        form(&server, "/do", &cookie, &format!("{wish}guess")).0,
        403
    );
    assert_eq!(server.client().hosts().unwrap().len(), 1);
    assert_eq!(
        form(&server, "/do", &cookie, &format!("{wish}{csrf}")).0,
        303
    );
    assert_eq!(server.client().hosts().unwrap(), []);
}

#[test]
fn buttons_need_a_session_a_role_and_the_forms_secret() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let host = TestHost::new(&server, "node", "1");
    let press = |cookie: &str, csrf: &str| {
        let body = format!("csrf={csrf}&do=pause&name=stable");
        form(&server, "/do", cookie, &body).2
    };
    let (status, cookie, html) = form(&server, "/sign-in", "", "token=guess");
    assert!(
        status == 403 && cookie.is_empty() && html.contains("not known here"),
        "{status} {html}"
    );

    let (cookie, csrf) = sign_in(&server, &server.token);
    press("", &csrf);
    assert!(press(&cookie, "guess").contains("not of this session"));
    assert_eq!(host.offered(), "2");
    let (_, html) = page(&server, "/groups", &cookie);
    assert!(html.contains("value=\"pause\""), "{html}");
    press(&cookie, &csrf);
    assert_eq!(host.offered(), "-", "it is not paused");
    let audit = server.client().activity(true).unwrap();
    assert_eq!(
        (audit[0].actor.as_deref(), audit[0].action.as_str()),
        (Some("admin"), "paused")
    );

    let viewer = server
        .client()
        .make_token("ann", Role::Viewer)
        .unwrap()
        .token;
    let (ann, secret) = sign_in(&server, &viewer);
    assert!(!page(&server, "/groups", &ann).1.contains("action=\"/do\""));
    let resume = format!("csrf={secret}&do=resume&name=stable");
    assert!(
        form(&server, "/do", &ann, &resume)
            .2
            .contains("ann may look, but change nothing")
    );
    assert_eq!(host.offered(), "-");
    let client = Server::new(&server.url(""), Some(&viewer)).unwrap();
    let refused = client
        .make_token("bob", Role::Operator)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("may look"), "{refused}");

    // Whoever loses the token loses the session.
    server.client().remove_token("ann").unwrap();
    assert!(!page(&server, "/", &ann).1.contains("ann (viewer)"));
    let (_, gone, _) = form(&server, "/sign-out", &cookie, &format!("csrf={csrf}"));
    assert!(gone.contains("Max-Age=0"), "{gone}");
    assert!(!page(&server, "/", &cookie).1.contains("admin (operator)"));
}

#[test]
fn a_closed_server_shows_nothing_to_strangers_and_serves_hosts() {
    let lab = Lab::new();
    let server = lab.start_with(&["--require-sign-in"]);
    server.publish(&lab.release("2"));
    let stranger = Server::new(&server.url(""), None).unwrap();
    let refused = stranger.hosts().unwrap_err().to_string();
    assert!(refused.contains("only to those it knows"), "{refused}");
    assert_eq!(page(&server, "/hosts", "").0, 303, "to the door");
    let (_, html) = page(&server, "/sign-in", "");
    assert!(
        html.contains("name=\"token\"") && !html.contains("node1"),
        "{html}"
    );
    assert_eq!(page(&server, "/metrics", "").0, 401);
    assert_eq!(TestHost::new(&server, "node1", "1").offered(), "2");
    let viewer = server
        .client()
        .make_token("ann", Role::Viewer)
        .unwrap()
        .token;
    let client = Server::new(&server.url(""), Some(&viewer)).unwrap();
    assert_eq!(client.hosts().unwrap().len(), 1);
    assert!(
        page(&server, "/hosts", &sign_in(&server, &viewer).0)
            .1
            .contains("node1")
    );
}

#[test]
fn programs_find_their_way() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    assert_eq!(TestHost::new(&server, "node\"1", "1").offered(), "2");
    let (status, body) = server.request("GET", "/api/v1/openapi.json", &[], b"");
    let api: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 200);
    let paths = api["paths"].as_object().unwrap();
    for path in [
        "/api/v1/hosts",
        "/api/v1/channels/{name}/promote",
        "/api/v1/groups/{name}",
        "/metrics",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    // Every path without a placeholder that is described answers.
    for (path, methods) in paths {
        if methods.get("get").is_some() && !path.contains('{') {
            assert_eq!(server.request("GET", path, &[], b"").0, 200, "{path}");
        }
    }
    let (_, metrics) = server.request("GET", "/metrics", &[], b"");
    let metrics = String::from_utf8(metrics).unwrap();
    for line in [
        "orlop_update_checks_total 1",
        "orlop_hosts{version=\"1\"} 1",
        "orlop_rollout_hosts{group=\"stable\",version=\"2\",state=\"waiting\"} 1",
        "orlop_rollout_status{group=\"stable\",version=\"2\",status=\"active\"} 1",
    ] {
        assert!(
            metrics.lines().any(|have| have == line),
            "{line} is not in {metrics}"
        );
    }
    for path in [
        "/",
        "/hosts",
        "/hosts?q=node",
        "/groups",
        "/releases",
        "/activity",
        "/sign-in",
        "/dashboard.js",
    ] {
        let (status, html) = page(&server, path, "");
        assert_eq!(status, 200, "{path}: {html}");
    }
    let id = server.client().hosts().unwrap().remove(0).machine_id;
    let (status, html) = page(&server, &format!("/hosts/{id}"), "");
    assert!(status == 200 && html.contains("node&#34;1"), "{html}");
    assert_eq!(page(&server, "/hosts/nobody", "").0, 404);
}
