//! `com.coreos.update1` on a bus of its own, with the policy that the image has.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use zbus::blocking::{Connection, Proxy, connection};

use crate::host::{Host, Release, wait_for};
use crate::server::{Mood, Server};

const NAME: &str = "com.coreos.update1";
const OBJECT: &str = "/com/coreos/update1";
const MANAGER: &str = "com.coreos.update1.Manager";

/// Killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bus {
    address: String,
    _daemon: Process,
    _update1: Process,
}

impl Bus {
    fn start(host: &Host) -> Self {
        let dir = host.path("bus");
        fs::create_dir(&dir).unwrap();
        // Strangers have to reach it, to be refused.
        for path in [host.root(), &dir] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let policy = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../os/rootfs/usr/share/dbus-1/system.d/com.coreos.update1.conf");
        // Here it runs as whoever runs the tests.
        let policy = fs::read_to_string(policy).unwrap();
        let user = rustix::process::geteuid().as_raw().to_string();
        let policy = policy
            .replace("user=\"update-engine\"", &format!("user=\"{user}\""))
            .replace("user=\"root\"", &format!("user=\"{user}\""));
        fs::write(dir.join("policy.conf"), policy).unwrap();
        let socket = dir.join("socket");
        // The rest as the system bus has it: nothing is allowed but what somebody allows.
        fs::write(
            dir.join("bus.conf"),
            format!(
                r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
                 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
                <busconfig>
                  <type>system</type>
                  <listen>unix:path={}</listen>
                  <auth>EXTERNAL</auth>
                  <policy context="default">
                    <allow user="*"/>
                    <deny own="*"/>
                    <deny send_type="method_call"/>
                    <allow send_type="signal"/>
                    <allow send_requested_reply="true" send_type="method_return"/>
                    <allow send_requested_reply="true" send_type="error"/>
                    <allow receive_type="method_call"/>
                    <allow receive_type="method_return"/>
                    <allow receive_type="error"/>
                    <allow receive_type="signal"/>
                    <allow send_destination="org.freedesktop.DBus"/>
                  </policy>
                  <include>{}</include>
                </busconfig>"#,
                socket.display(),
                dir.join("policy.conf").display()
            ),
        )
        .unwrap();
        let mut daemon = Command::new("dbus-daemon");
        daemon
            .arg("--config-file")
            .arg(dir.join("bus.conf"))
            .args(["--nofork", "--nopidfile"]);
        let daemon = Process(
            daemon
                .spawn()
                .expect("dbus-daemon, of Debian's dbus-daemon"),
        );
        wait_for(|| socket.exists());
        let address = format!("unix:path={}", socket.display());
        let mut update1 = Command::new(env!("CARGO_BIN_EXE_update1"));
        update1
            .arg("--root")
            .arg(host.root())
            .args(["--bus", &address]);
        let update1 = Process(update1.stdout(Stdio::null()).spawn().unwrap());
        let bus = Self {
            address,
            _daemon: daemon,
            _update1: update1,
        };
        let connection = bus.connect();
        let owned = || {
            let names = connection.call_method(
                Some("org.freedesktop.DBus"),
                "/org/freedesktop/DBus",
                Some("org.freedesktop.DBus"),
                "NameHasOwner",
                &NAME,
            );
            names.is_ok_and(|reply| reply.body().deserialize().unwrap_or(false))
        };
        wait_for(owned);
        bus
    }

    fn connect(&self) -> Connection {
        connection::Builder::address(self.address.as_str())
            .unwrap()
            .build()
            .unwrap()
    }

    /// As an operator types it; the error's text, or what was said.
    fn call(&self, method: &str, stranger: bool) -> Result<String, String> {
        let mut command = match stranger {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "busctl"]);
                command
            }
            false => Command::new("busctl"),
        };
        command.arg(format!("--address={}", self.address));
        let output = command
            .args(["call", NAME, OBJECT, MANAGER, method])
            .output()
            .expect("busctl, of Debian's systemd");
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8(output.stderr).unwrap().trim().to_owned()),
        }
    }
}

#[test]
fn tools_for_coreos_update_this_host() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    let bus = Bus::start(&host);
    let idle = r#"xdssx 0 0 "UPDATE_STATUS_IDLE" "0.0.0" 0"#;
    assert_eq!(bus.call("GetStatus", false).unwrap(), idle);
    let error = bus.call("AttemptUpdate", false).unwrap_err();
    assert!(error.contains("has not been marked good yet"), "{error}");

    if rustix::process::geteuid().is_root() {
        assert_eq!(bus.call("GetStatus", true).unwrap(), idle);
        for method in ["AttemptUpdate", "ResetStatus"] {
            let error = bus.call(method, true).unwrap_err().to_lowercase();
            assert!(
                error.contains("access denied") || error.contains("rejected"),
                "{error}"
            );
        }
    }

    // What update_engine_client does: call, and follow the signals.
    let connection = bus.connect();
    let proxy = Proxy::new(&connection, NAME, OBJECT, MANAGER).unwrap();
    let mut signals = proxy.receive_signal("StatusUpdate").unwrap();
    daemon.good();
    assert_eq!(bus.call("AttemptUpdate", false).unwrap(), "");
    let mut seen = Vec::new();
    while seen
        .last()
        .is_none_or(|last| last != "UPDATE_STATUS_UPDATED_NEED_REBOOT")
    {
        let message = signals.next().unwrap();
        let (_, _, operation, version, _): (i64, f64, String, String, i64) =
            message.body().deserialize().unwrap();
        if operation == "UPDATE_STATUS_UPDATED_NEED_REBOOT" {
            assert_eq!(version, "2");
        }
        seen.push(operation);
    }
    assert!(seen.len() > 1, "{seen:?}");
    let staged = bus.call("GetStatus", false).unwrap();
    assert!(
        staged.ends_with(r#" 0 "UPDATE_STATUS_UPDATED_NEED_REBOOT" "2" 0"#)
            && !staged.starts_with("xdssx 0 "),
        "{staged}"
    );

    // Somebody wants no reboot; the release stays where it is.
    assert!(host.path("run/update-engine/reboot-needed").exists());
    bus.call("ResetStatus", false).unwrap();
    assert!(!host.path("run/update-engine/reboot-needed").exists());
    assert!(
        bus.call("GetStatus", false)
            .unwrap()
            .contains("UPDATE_STATUS_IDLE")
    );
    assert_eq!(daemon.status()["staged"]["version"], "2");
    daemon.update().unwrap();
    wait_for(|| host.path("run/update-engine/reboot-needed").exists());
}

#[test]
fn a_failure_is_told_too() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good().call("Check", json!({})).unwrap();
    let bus = Bus::start(&host);
    server.set(Mood::Status(500));
    bus.call("AttemptUpdate", false).unwrap();
    wait_for(|| {
        bus.call("GetStatus", false)
            .unwrap()
            .contains("UPDATE_STATUS_REPORTING_ERROR_EVENT")
    });
    bus.call("ResetStatus", false).unwrap();
    assert!(
        bus.call("GetStatus", false)
            .unwrap()
            .contains("UPDATE_STATUS_IDLE")
    );
    assert_eq!(daemon.status()["update"]["last_error"], json!(null));
}
