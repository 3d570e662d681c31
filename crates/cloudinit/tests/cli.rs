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
    let line = "hostnme: unknown key (did you mean hostname?)";
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
    assert_eq!(cloudinit(&["validate", "--no-such-flag"], "").code, 2);
    assert_eq!(cloudinit(&["frobnicate"], "").code, 2);
}

/// The binary under the name of the original.
fn original(arguments: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("coreos-cloudinit");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cloudinit"), &name).unwrap();
    let output = Command::new(name).args(arguments).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn the_command_line_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("user_data");
    let name = file.to_str().unwrap();
    std::fs::write(&file, "#cloud-config\nhostnme: a\n").unwrap();
    // Go's flags: one dash or two, with = or without.
    for arguments in [
        &["-validate", "-from-file", name] as &[&str],
        &["--validate=true", &format!("--from-file={name}")],
        &[
            "--validate",
            "--from-file",
            name,
            "--ssh-key-name=x",
            "--workspace=/tmp/w",
        ],
    ] {
        let ran = original(arguments);
        assert_eq!(ran.code, 0, "{arguments:?} {}", ran.err);
        assert!(ran.out.contains(":2:1: warning: hostnme"), "{}", ran.out);
    }
    std::fs::write(&file, "#cloud-config\nhostname: [a]\n").unwrap();
    assert_eq!(original(&["--validate", "--from-file", name]).code, 1);
    let drive = dir.path().join("openstack/latest");
    std::fs::create_dir_all(&drive).unwrap();
    std::fs::write(drive.join("user_data"), "#cloud-config\nhostname: [a]\n").unwrap();
    let from = format!("--from-configdrive={}", dir.path().display());
    let ran = original(&["--validate", "--convert-netconf=debian", &from]);
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    let both = original(&["--validate", "--from-file", name, &from]);
    assert!(both.err.contains("only one source"), "{}", both.err);
    let ran = original(&["--from-file=/nonexistent"]);
    assert_eq!(ran.code, 3);
    assert_eq!(
        original(&["--from-file=/nonexistent", "--ignore-failure"]).code,
        0
    );
    let ran = original(&["--convert-netconf=cisco", "--from-file", name]);
    assert!(ran.err.contains("unknown format"), "{}", ran.err);
    assert_eq!(original(&[]).code, 3);
}

#[test]
fn networks_are_converted() {
    let text = "iface eth0 inet static\n address 192.0.2.1/24\n wpa-ssid x\n";
    let ran = cloudinit(&["convert-netconf", "debian", "-"], text);
    assert_eq!(
        ran.err,
        "-:3:1: warning: wpa-ssid: not supported, ignored\n"
    );
    assert_eq!(
        ran.out,
        "# 05-cloudinit-eth0.network\n[Match]\nName=eth0\n\n[Network]\nAddress=192.0.2.1/24\n\n"
    );
    let json = cloudinit(&["convert-netconf", "debian", "-", "-o", "json"], text).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["05-cloudinit-eth0.network"].is_string());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    cloudinit(
        &["convert-netconf", "debian", "-", "--output-dir", path],
        text,
    );
    assert!(dir.path().join("05-cloudinit-eth0.network").is_file());
    let bad = cloudinit(&["convert-netconf", "nocloud", "-"], "version: 9\n");
    assert_eq!(bad.code, 1);
    assert!(
        bad.err.starts_with("-:1:10: error: version: "),
        "{}",
        bad.err
    );
    let unknown = cloudinit(&["convert-netconf", "cisco", "-"], "");
    assert_eq!(unknown.code, 3);
}

#[test]
fn strict_is_strict_everywhere() {
    let odd = "#cloud-config\nhostname: a\nhostname: b\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("odd.yml");
    std::fs::write(&file, odd).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let (file, root) = (file.to_str().unwrap(), root.to_str().unwrap());
    assert_eq!(cloudinit(&["plan", file, "--root", root], "").code, 0);
    let ran = cloudinit(&["plan", file, "--root", root, "--strict"], "");
    assert_eq!((ran.code, ran.out.as_str()), (1, "nothing to do\n"));
    let apply = ["apply", "--from", file, "--root", root, "--strict"];
    let ran = cloudinit(&apply, "");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("3:1: error: hostname: given twice"),
        "{}",
        ran.err
    );
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
    let schema: serde_json::Value = serde_json::from_str(&cloudinit(&["schema"], "").out).unwrap();
    assert_eq!(schema["title"], "cloud-config");
}

/// What was applied can be looked at and applied again, with what the platform said.
#[test]
fn without_a_file_it_is_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yml");
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(
        &file,
        "#cloud-config\nwrite_files: [{path: /x, content: y}]\n",
    )
    .unwrap();
    let (file, name) = (file.to_str().unwrap(), root.to_str().unwrap());
    let ran = cloudinit(&["plan", "--root", name], "");
    assert!(ran.err.contains("nothing was applied here"), "{}", ran.err);
    assert_eq!(
        cloudinit(&["apply", "--from", file, "--root", name], "").code,
        0
    );
    let plan = || cloudinit(&["plan", "--root", name], "").out;
    assert_eq!(plan(), "nothing to do: 1 files are as they should be\n");
    std::fs::write(root.join("x"), "changed").unwrap();
    assert_eq!(plan(), "change /x (0644 root:root)\n  - changed\n  + y\n");
    let ran = cloudinit(&["apply", "--root", name], "");
    assert!(ran.out.contains("wrote /x"), "{}", ran.out);
    assert_eq!(std::fs::read_to_string(root.join("x")).unwrap(), "y");
}

/// What is refused does not replace what was applied, and what the platform said holds for files by hand.
#[test]
fn what_was_applied_outlives_a_bad_file() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let lib = root.join("var/lib/cloudinit");
    std::fs::create_dir_all(&lib).unwrap();
    let metadata = r#"{"addresses": {"private_ipv4": "192.0.2.7"}}"#;
    std::fs::write(lib.join("metadata.json"), metadata).unwrap();
    let name = root.to_str().unwrap();
    let apply = |text: &str| {
        let file = dir.path().join("a.yml");
        std::fs::write(&file, text).unwrap();
        cloudinit(
            &["apply", "--from", file.to_str().unwrap(), "--root", name],
            "",
        )
    };
    let good = "#cloud-config\nwrite_files: [{path: /x, content: $private_ipv4}]\n";
    assert_eq!(apply(good).code, 0);
    let content = std::fs::read_to_string(root.join("x")).unwrap();
    assert_eq!(content, "192.0.2.7");
    let bad = "#cloud-config\nhostname: [\n";
    assert_eq!(apply(bad).code, 1);
    let refused = lib.join("user-data.refused");
    assert_eq!(std::fs::read_to_string(&refused).unwrap(), bad);
    std::fs::remove_file(root.join("x")).unwrap();
    assert_eq!(cloudinit(&["apply", "--root", name], "").code, 0);
    let content = std::fs::read_to_string(root.join("x")).unwrap();
    assert_eq!(content, "192.0.2.7");
    assert!(!refused.exists());
}

#[test]
fn whoever_reads_a_line_only_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloudinit"))
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn guestinfo_is_forgotten_when_it_was_noted_down() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let forget = || cloudinit(&["forget", "--root", path], "");
    assert_eq!(forget().out, "nothing to delete\n");
    std::fs::create_dir_all(root.path().join("run/cloudinit")).unwrap();
    let note = root.path().join("run/cloudinit/forget.json");
    std::fs::write(&note, r#"["guestinfo.userdata"]"#).unwrap();
    let ran = forget();
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("Bring open-vm-tools"), "{}", ran.err);
    let bin = root.path().join("usr/bin");
    std::fs::create_dir_all(&bin).unwrap();
    let program = bin.join("vmtoolsd");
    std::fs::write(&program, "#!/bin/sh\necho \"$*\" >>\"${0%/*}/calls\"\n").unwrap();
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let ran = forget();
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "deleted: guestinfo.userdata\n")
    );
    let calls = std::fs::read_to_string(bin.join("calls")).unwrap();
    let expect = "--cmd info-set guestinfo.userdata ---\n--cmd info-get guestinfo.userdata\n";
    assert_eq!(calls, expect);
    assert!(!note.exists());
}
