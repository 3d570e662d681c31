//! The binary: exit codes, what goes where.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::io::Write;
use std::process::{Command, Stdio};

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn cloudinit(arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloudinit"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn validate() {
    let check = |input: &str, flags: &[&str], code: i32, out: &str| {
        let ran = cloudinit(&[&["validate", "-"], flags].concat(), input);
        assert_eq!((ran.code, ran.out.as_str()), (code, out), "{}", ran.err);
    };
    check("#cloud-config\nhostname: a\n", &[], 0, "");
    check("", &[], 0, "");
    let odd = "#cloud-config\nhostnme: a\n";
    let line = "hostnme: unknown key, ignored (did you mean hostname?)";
    check(odd, &[], 0, &format!("-:2:1: warning: {line}\n"));
    check(odd, &["--strict"], 1, &format!("-:2:1: error: {line}\n"));
    check(
        "hostname: a\n",
        &[],
        1,
        "-:1:1: error: not user-data: the first line is \"hostname: a\" (the first line must be #cloud-config or start with #!)\n",
    );
    let json = cloudinit(&["validate", "-", "-o", "json"], odd).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["findings"][0]["line"], 2);
    assert_eq!(json["findings"][0]["column"], 1);
    assert_eq!(json["findings"][0]["path"], "hostnme");
    assert_eq!(json["findings"][0]["severity"], "warning");
    assert_eq!(json["findings"][0]["hint"], "did you mean hostname?");
}

#[test]
fn plan_shows_the_difference_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/motd"), "a\nb\nc\n").unwrap();
    let config = "#cloud-config\nwrite_files:\n- {path: /etc/motd, content: \"a\\nx\\nc\\n\"}\n- {path: /new, content: $private_ipv4}\n";
    let flags = ["plan", "-", "--root", path, "--private-ipv4", "10.0.0.9"];
    let ran = cloudinit(&flags, config);
    insta::assert_snapshot!(ran.out, @r"
    change /etc/motd (0644 root:root)
      - b
      + x
    write /new (0644 root:root)
      + 10.0.0.9
    write /etc/environment (0644 root:root)
      + COREOS_PRIVATE_IPV4=10.0.0.9
    ");
    let json = cloudinit(&[&flags[..], &["-o", "json"]].concat(), config).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["exit"], 0);
    assert_eq!(json["files"]["/new"]["text"], "10.0.0.9");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn apply_to_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let seed = root.path().join("seed");
    std::fs::write(&seed, "#cloud-config\nhostname: node1\n").unwrap();
    let arguments = ["apply", "--from", seed.to_str().unwrap(), "--root", path];
    let ran = cloudinit(&arguments, "");
    let ending = format!("cloudinit: file {}: applied, 1 changes\n", seed.display());
    assert_eq!(
        (ran.code, ran.out),
        (0, format!("wrote /etc/hostname\n{ending}"))
    );
    std::fs::write(&seed, "#cloud-config\nhostname: [\n").unwrap();
    let ran = cloudinit(&arguments, "");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .starts_with(&format!("{}:3:1: error: ", seed.display())),
        "{}",
        ran.err
    );
    assert_eq!(
        std::fs::read_to_string(root.path().join("etc/hostname")).unwrap(),
        "node1\n"
    );
}

#[test]
fn our_errors_are_told_from_the_users() {
    let missing = cloudinit(&["validate", "/nonexistent"], "");
    assert_eq!(missing.code, 3);
    assert!(
        missing
            .err
            .starts_with("cloudinit: cannot read /nonexistent: "),
        "{}",
        missing.err
    );
    assert_eq!(
        cloudinit(&["plan", "-", "--root", "/nonexistent"], "").code,
        3
    );
    assert_eq!(cloudinit(&["validate"], "").code, 2);
    assert_eq!(cloudinit(&["frobnicate"], "").code, 2);
}
