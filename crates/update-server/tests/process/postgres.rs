//! Two servers on one PostgreSQL and one directory of releases.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use release::omaha::Event;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Lab, Running, TestHost, version};

/// A cluster of its own, reached by a socket in its directory.
pub(crate) struct Cluster {
    programs: PathBuf,
    dir: tempfile::TempDir,
    settings: &'static [&'static str],
    child: Option<Child>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// With settings that differ from those of PostgreSQL.
    fn with(settings: &'static [&'static str]) -> Self {
        let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
            .unwrap_or_else(|e| panic!("{e}: Debian's package postgresql is not installed"))
            .map(|entry| entry.unwrap().path())
            .collect();
        versions.sort();
        let programs = versions.pop().unwrap().join("bin");
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self {
            programs,
            dir,
            settings,
            child: None,
        };
        if is_root() {
            let owned = Command::new("chown")
                .arg("postgres:")
                .arg(cluster.dir.path())
                .status();
            assert!(owned.unwrap().success());
        }
        let made = cluster
            .program("initdb")
            .args(["--username=orlop", "--auth=trust", "--no-sync", "--pgdata"])
            .arg(cluster.dir.path().join("data"))
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        cluster.start();
        cluster
    }

    /// PostgreSQL refuses to be root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/").env("LC_ALL", "C.UTF-8");
        command
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = self
            .program("postgres")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let ready = || {
            let asked = self
                .program("pg_isready")
                .arg("-q")
                .arg("-h")
                .arg(self.dir.path())
                .status();
            asked.unwrap().success()
        };
        eventually("PostgreSQL is up", ready);
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        // Fast: clients are thrown out.
        let _ = kill_process(pid, Signal::INT);
        let _ = child.wait();
    }

    fn url(&self) -> String {
        let socket = self.dir.path().display().to_string();
        let socket = socket.replace('/', "%2F");
        format!("postgres://orlop@localhost/postgres?host={socket}")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pair(lab: &Lab, cluster: &Cluster) -> [Running; 2] {
    pair_at(lab, cluster, &lab.path("releases").display().to_string())
}

/// With the releases there.
pub(crate) fn pair_at(lab: &Lab, cluster: &Cluster, releases: &str) -> [Running; 2] {
    let url = cluster.url();
    let more = ["--database", &url, "--releases", releases];
    let one = lab.start_in("one", &more);
    // Operators give every server the same token.
    std::fs::create_dir_all(lab.path("two")).unwrap();
    std::fs::copy(lab.path("one/token"), lab.path("two/token")).unwrap();
    [one, lab.start_in("two", &more)]
}

fn put(server: &Running, path: &str, body: &str) {
    let json = [("content-type", "application/json")];
    let (status, answer) = server.request("PUT", path, &json, body.as_bytes());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn two_servers_are_one() {
    let (lab, mut cluster) = (Lab::new(), Cluster::new());
    let [one, two] = pair(&lab, &cluster);

    // Published at one, offered and downloaded at the other.
    one.publish(&lab.release("2"));
    let host = TestHost::new(&two, "node1", "1");
    eventually("the other server knows the release", || {
        host.offered() == "2"
    });
    let (status, usr) = two.request("GET", "/releases/2/usr.erofs.zst", &[], b"");
    let built = lab.release("2").join("usr.erofs.zst");
    assert_eq!((status, usr), (200, std::fs::read(built).unwrap()));

    // Told to one, known to the other at once: it stands in the database.
    host.tell(Event::failed(&version("2"), None, 1, "no network\nat all"));
    assert_eq!(TestHost::new(&one, "node1", "1").offered(), "-");

    // Both count into the same rollout, and none gets lost.
    put(
        &one,
        "/api/v1/groups/stable",
        r#"{"channel": "stable", "policy": {}}"#,
    );
    hosts_arrive([&one, &two], 40);
    for server in [&one, &two] {
        let overview = server.request("GET", "/api/v1/overview", &[], b"").1;
        let overview: serde_json::Value = serde_json::from_slice(&overview).unwrap();
        assert_eq!(
            (&overview["hosts"], &overview["versions"][0]["hosts"]),
            (&81.into(), &80.into())
        );
        assert_eq!(overview["failures"][0]["reason"], "no network");
        let (_, found) = server.request("GET", "/api/v1/hosts?search=node1", &[], b"");
        let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
        assert_eq!(found.as_array().unwrap().len(), 1);
        for page in [
            "/",
            "/hosts",
            "/releases",
            "/groups",
            "/activity",
            "/metrics",
        ] {
            assert_eq!(server.request("GET", page, &[], b"").0, 200, "{page}");
        }
    }

    // Paused at one, the other stops as well.
    let pause = one.request("POST", "/api/v1/channels/stable/pause", &[], b"");
    assert_eq!(pause.0, 200);
    let late = TestHost::new(&two, "late", "1");
    eventually("the pause is everywhere", || late.offered() == "-");

    // PostgreSQL restarts: both find it again, and nothing is lost.
    cluster.stop();
    cluster.start();
    for server in [&one, &two] {
        eventually("it is connected again", || {
            server.request("GET", "/health", &[], b"").0 == 200
        });
        let mut host = TestHost::new(server, "after", "1");
        host.app.hostname = Some(server.address.clone());
        eventually("it writes again", || {
            server.client().hosts().is_ok() && {
                let request = release::omaha::Request {
                    apps: vec![host.app.clone()],
                    ..Default::default()
                };
                let xml = request.to_xml();
                server
                    .request("POST", release::omaha::PATH, &[], xml.as_bytes())
                    .0
                    == 200
            }
        });
    }
    // A restart while nothing is asked is noticed by nobody, whichever connection is next.
    cluster.stop();
    cluster.start();
    std::thread::sleep(Duration::from_millis(1200));
    for server in [&one, &two] {
        all_goes_well(server);
    }
    assert!(Path::new(&lab.path("releases/2/usr.erofs.zst")).exists());
}

/// At both servers at once, so many at each: all of them count.
fn hosts_arrive(servers: [&Running; 2], number: u64) {
    std::thread::scope(|scope| {
        for server in servers {
            scope.spawn(move || {
                for number in 0..number {
                    let name = format!("{}-{number}", server.address);
                    let mut host = TestHost::new(server, &name, "1");
                    assert_eq!(host.offered(), "2");
                    host.runs("2");
                    assert_eq!(host.offered(), "-");
                }
            });
        }
    });
    for server in servers {
        eventually("the tally is whole", || {
            let rollouts = server.client().rollouts().unwrap();
            let stable = rollouts.iter().find(|it| it.group == "stable").unwrap();
            let good = stable.waves.iter().map(|wave| wave.tally.good);
            good.sum::<u64>() == 2 * number
        });
    }
}

/// An administrator may have made transactions stricter: what another server committed while one waited for its
/// turn has to be seen all the same.
#[test]
fn a_stricter_default_of_postgresql_changes_nothing() {
    let lab = Lab::new();
    let cluster = Cluster::with(&["default_transaction_isolation=repeatable read"]);
    let [one, two] = pair(&lab, &cluster);
    one.publish(&lab.release("2"));
    eventually("the other server knows the release", || {
        TestHost::new(&two, "node1", "1").offered() == "2"
    });
    hosts_arrive([&one, &two], 20);
}

/// Every connection is asked for something, and none is a lost one.
fn all_goes_well(server: &Running) {
    let good = |method: &str, path: &str, body: &[u8]| {
        let json = [("content-type", "application/json")];
        let (status, answer) = server.request(method, path, &json, body);
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(status, 200, "{method} {path}: {answer}");
    };
    // Hosts with nothing new to say, which two connections look up.
    let host = TestHost::new(server, "node1", "1");
    for _ in 0..4 {
        host.check();
    }
    // Four for pages.
    for _ in 0..8 {
        good("GET", "/api/v1/hosts", b"");
    }
    // And the one that writes.
    let group = br#"{"channel": "stable", "policy": {}}"#;
    good("PUT", "/api/v1/groups/stable", group);
}

/// PostgreSQL throws out who says nothing for a while, as a firewall in between does.
#[test]
fn connections_that_were_cut_while_idle_are_made_again() {
    let (lab, cluster) = (Lab::new(), Cluster::with(&["idle_session_timeout=1500"]));
    let server = lab.start_with(&["--database", &cluster.url()]);
    server.publish(&lab.release("2"));
    all_goes_well(&server);
    for _ in 0..2 {
        let log = || std::fs::read_to_string(cluster.dir.path().join("log")).unwrap();
        let cut = || log().matches("idle-session timeout").count();
        let before = cut();
        // Two for check-ins, four for pages. The one that writes has its own work now and then.
        eventually("idle connections are cut", || cut() >= before + 6);
        all_goes_well(&server);
    }
    let said = std::fs::read_to_string(lab.path("log")).unwrap();
    assert!(!said.contains("ERROR"), "{said}");
}

#[test]
fn whoever_keeps_the_lock_does_not_stop_a_server_without_a_word() {
    let (lab, cluster) = (Lab::new(), Cluster::new());
    let url = cluster.url();
    let server = lab.start_with(&["--database", &url]);
    let mut psql = cluster
        .program("psql")
        .args(["--username=orlop", "--no-psqlrc", "-h"])
        .arg(cluster.dir.path())
        .args(["-c", "SELECT pg_advisory_lock(7308055), pg_sleep(30)"])
        .arg("postgres")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let said = |what: &str| {
        std::fs::read_to_string(lab.path("log"))
            .unwrap()
            .contains(what)
    };
    // What it does by itself waits too.
    eventually("it says why it cannot write", || {
        said("keeps the lock that changes need")
    });
    psql.wait().unwrap();
    // Its session is over.
    eventually("it writes again", || {
        let put = server.request(
            "PUT",
            "/api/v1/groups/stable",
            &[("content-type", "application/json")],
            br#"{"channel": "stable", "policy": {}}"#,
        );
        put.0 == 200
    });
}

/// Two operators at two servers, with one store of releases.
#[test]
fn whoever_publishes_waits_for_who_publishes_at_another_server() {
    let (lab, cluster) = (Lab::new(), Cluster::new());
    let [one, two] = pair(&lab, &cluster);
    let mut psql = cluster
        .program("psql")
        .args(["--username=orlop", "--no-psqlrc", "--quiet", "-At", "-h"])
        .arg(cluster.dir.path())
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // As the server `one` would.
    let mut commands = psql.stdin.take().unwrap();
    writeln!(commands, "SELECT 'locked', pg_advisory_lock(7308056);").unwrap();
    let said = BufReader::new(psql.stdout.take().unwrap());
    assert!(
        said.lines()
            .any(|line| line.unwrap().starts_with("locked|"))
    );
    std::thread::scope(|scope| {
        let sends = scope.spawn(|| send_root(&two, 1));
        std::thread::sleep(Duration::from_secs(1));
        assert!(!sends.is_finished(), "two publish at once");
        // Its session is over.
        drop(commands);
        psql.wait().unwrap();
        assert_eq!(sends.join().unwrap(), 204);
    });
    // Whoever is done keeps nobody waiting.
    assert_eq!((send_root(&one, 2), send_root(&two, 3)), (204, 204));
}

fn send_root(server: &Running, version: u64) -> u16 {
    let file = format!("/api/v1/tuf/{version}.root.json");
    let body = format!(r#"{{"signed": {{"version": {version}}}}}"#);
    server.request("PUT", &file, &[], body.as_bytes()).0
}

#[test]
fn an_unreachable_database_is_said_without_its_password() {
    let lab = Lab::new();
    let mut command = lab.command("127.0.0.1:0", "data", "keys");
    let url = "postgres://ann:hush@localhost/fleet?host=%2Fnowhere";
    let output = command.args(["--database", url]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message.contains("cannot use the database PostgreSQL fleet at /nowhere")
            && !message.contains("hush"),
        "{message}"
    );
}
