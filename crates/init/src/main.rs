//! Process 1 of the initrd. It reads top to bottom: modules, the slot that the command line names,
//! the state partition, /etc, and over to systemd.
//!
//! Whatever goes wrong here ends in a reboot: the boot entry has lost a try by then, and after the
//! last one the boot loader takes the other slot.

mod block;
mod fail;
mod memory;
mod modules;
mod mounts;
mod root;
mod state;

use std::os::unix::process::CommandExt;
use std::process::Command;

use fail::{Fail, Step};

fn main() {
    if std::process::id() != 1 {
        eprintln!("init: this program is the first process of an initrd and does nothing else");
        std::process::exit(2);
    }
    let fail = match boot() {
        Ok(never) => match never {},
        Err(fail) => fail,
    };
    fail.report_and_reboot()
}

enum Never {}

fn boot() -> Result<Never, Fail> {
    mounts::kernel_file_systems()?;
    memory::keep_less_free();
    let cmdline = root::Cmdline::read()?;
    let modules = modules::Modules::read()?;
    modules.load_always()?;

    let slot = root::find_slot(&cmdline, &modules)?;
    let usr = root::open_verity(&slot)?;
    mounts::usr(&usr)?;
    modules.load_from_usr()?;
    state::mount(&cmdline, &slot)?;
    mounts::move_usr()?;
    mounts::etc()?;
    mounts::tmp_and_static_nodes()?;
    state::prepare_host(&cmdline)?;
    mounts::switch_root()?;

    let error = Command::new("/usr/lib/systemd/systemd").exec();
    Err(Fail::new("starting systemd", error))
}

/// Names the step in an error.
trait Context<T> {
    fn step(self, what: impl Into<Step>) -> Result<T, Fail>;
}

impl<T, E: std::fmt::Display> Context<T> for Result<T, E> {
    fn step(self, what: impl Into<Step>) -> Result<T, Fail> {
        self.map_err(|e| Fail::new(what, e))
    }
}
