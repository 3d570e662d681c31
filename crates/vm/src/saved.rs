//! Saved machines: a booted node, frozen. A test that starts from one saves itself the boot.
//!
//! A saved machine is a directory: the node's disk as it was (from now on the base of each copy's overlay), memory and
//! devices in `state`, firmware variables and the record. Any number of copies can run at once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::accel::Accel;
use crate::image;
use crate::lab::Release;
use crate::machine::{self, Machine, RELEASE, Tie};
use crate::node::Node;
use crate::plan::{DISK, VARS};
use crate::ssh::Key;

const STATE: &str = "state";

/// Whether something was saved here, completely.
pub fn exists(saved: &Path) -> bool {
    saved.join(STATE).exists()
}

/// Freezes a machine into the directory `saved`; the machine ends by that.
pub fn save(machine: Machine, saved: &Path) -> Result<()> {
    let part = saved.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    let state = part.join(STATE);
    let mut qmp = machine.qmp()?;
    // The client's shared connection would wait for ever in a copy.
    machine.ssh().close();
    qmp.save(&state).context("cannot save the machine")?;
    let dir = machine.dir.clone();
    machine.kill()?;
    for file in [DISK, VARS, RELEASE, "node.json"] {
        // A copy of a saved machine has no release of its own: its disk is over that machine's.
        if file == RELEASE && !dir.join(file).exists() {
            continue;
        }
        move_file(&dir.join(file), &part.join(file))?;
    }
    let _ = fs::remove_dir_all(saved);
    fs::rename(&part, saved).with_context(|| format!("cannot make {}", saved.display()))
}

/// Starts a copy of a saved machine in `dir`. Its running system knows what it was booted with; `user_data` is for its
/// next boot.
pub fn restore(
    saved: &Path,
    dir: &Path,
    release: &Release,
    accel: Accel,
    key: &Key,
    user_data: &str,
) -> Result<Machine> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let node =
        Node::load(saved)?.with_context(|| format!("nothing was saved in {}", saved.display()))?;
    let _ = fs::remove_file(dir.join(DISK));
    image::overlay(&saved.join(DISK), &dir.join(DISK), None)?;
    fs::copy(saved.join(VARS), dir.join(VARS)).context("cannot copy the firmware's variables")?;
    machine::provision(dir, &node, key, user_data)?;
    let node = Node {
        ssh_port: ports::free()?,
        process: None,
        ..node
    };
    let mut plan = node.plan(dir, release, accel)?;
    plan.incoming = true;
    let machine = Machine::start_plan(plan, node, key, Tie::Ours)?;
    machine.qmp()?.restore(&saved.join(STATE))?;
    Ok(machine)
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .or_else(|_| fs::copy(from, to).and_then(|_| fs::remove_file(from)))
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}
