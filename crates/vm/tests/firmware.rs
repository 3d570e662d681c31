//! A real QEMU with firmware and an empty disk: enough to see machines start, be saved, copied and stopped.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vm::accel::Accel;
use vm::lab::Lab;
use vm::machine::{self, Machine, Spec, Tie};
use vm::node::BootMode;
use vm::saved;
use vm::ssh::Key;

fn lab() -> (tempfile::TempDir, Lab) {
    let repo = tempfile::tempdir().unwrap();
    // Longer than the 108 bytes that a socket's address may have.
    let deep = repo.path().join("a-directory-with-a-long-name".repeat(4));
    fs::create_dir_all(&deep).unwrap();
    let lab = Lab::open(&deep).unwrap();
    let release = lab.release("1");
    fs::create_dir_all(&release.dir).unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(release.disk())
        .arg("64M")
        .status();
    assert!(made.unwrap().success());
    (repo, lab)
}

fn start(lab: &Lab, key: &Key, tie: Tie) -> Machine {
    let dir = lab.nodes().join("n1");
    let spec = Spec {
        name: "n1".into(),
        release: lab.release("1"),
        boot: BootMode::Uefi,
        memory_mib: 128,
        disk_gib: 1,
        datasource: vm::seed::Datasource::default(),
        extra: vec![],
    };
    let node = machine::create(&dir, &spec).unwrap();
    machine::provision(&dir, &node, key, "#cloud-config\n").unwrap();
    Machine::start(&dir, node, &lab.release("1"), Accel::Tcg, key, tie).unwrap()
}

fn wait_for_console(dir: &Path, text: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !machine::console_tail(dir, 50).contains(text) {
        assert!(Instant::now() < end, "{}", machine::console_tail(dir, 50));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_machine_is_saved_and_copies_of_it_live_on() {
    let (_repo, lab) = lab();
    let key = Key::ensure(&lab).unwrap();
    let machine = start(&lab, &key, Tie::Ours);
    let dir = machine.dir.clone();
    wait_for_console(&dir, "BdsDxe");
    let png = dir.join("screenshot.png");
    machine.qmp().unwrap().screenshot(&png).unwrap();
    assert!(fs::read(&png).unwrap().starts_with(b"\x89PNG"));

    let saved = lab.cache().join("saved");
    saved::save(machine, &saved).unwrap();
    let copies: Vec<Machine> = ["c1", "c2"]
        .map(|name| {
            let dir = lab.nodes().join(name);
            saved::restore(
                &saved,
                &dir,
                &lab.release("1"),
                Accel::Tcg,
                &key,
                "#cloud-config\n",
            )
            .unwrap()
        })
        .into();
    let pids: Vec<_> = copies
        .iter()
        .map(|copy| copy.node.process.clone().unwrap())
        .collect();
    assert!(pids.iter().all(|process| process.is_alive()));

    // A copy can be saved as well.
    let mut copies = copies;
    let last = copies.pop().unwrap();
    let again = lab.cache().join("saved-again");
    saved::save(last, &again).unwrap();
    let dir = lab.nodes().join("c3");
    copies.push(saved::restore(&again, &dir, &lab.release("1"), Accel::Tcg, &key, "").unwrap());
    drop(copies);
    assert!(pids.iter().all(|process| !process.is_alive()));
}

#[test]
fn a_machine_left_running_is_found_again_and_stopped() {
    let (_repo, lab) = lab();
    let key = Key::ensure(&lab).unwrap();
    let machine = start(&lab, &key, Tie::UntilReady);
    let dir = machine.dir.clone();
    let node = machine.leave_running();
    let (found_dir, found) = vm::node::pick(&lab, None).unwrap();
    assert_eq!((&found_dir, &found), (&dir, &node));
    assert!(found.running(&dir).is_some());
    assert!(machine::stop(&dir, &found, &key, Duration::ZERO).unwrap());
    assert!(found.running(&dir).is_none());
    assert!(!machine::stop(&dir, &found, &key, Duration::ZERO).unwrap());
}

#[test]
fn a_machine_that_qemu_refuses_says_why() {
    let (_repo, lab) = lab();
    let key = Key::ensure(&lab).unwrap();
    let machine = start(&lab, &key, Tie::Ours);
    let node = machine.kill().unwrap();
    let dir = lab.nodes().join("n1");
    fs::write(dir.join("disk.qcow2"), "no qcow2").unwrap();
    let error = Machine::start(&dir, node, &lab.release("1"), Accel::Tcg, &key, Tie::Ours)
        .err()
        .unwrap();
    assert!(error.to_string().contains("not in qcow2 format"), "{error}");
}
