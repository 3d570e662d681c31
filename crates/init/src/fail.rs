//! What went wrong, and the way out.

use std::fmt::Display;
use std::time::Duration;

pub(crate) type Step = String;

/// A step of the boot that could not be done.
#[derive(Debug)]
pub(crate) struct Fail {
    step: Step,
    why: String,
}

impl Fail {
    pub(crate) fn new(step: impl Into<Step>, why: impl Display) -> Self {
        Self {
            step: step.into(),
            why: why.to_string(),
        }
    }

    /// Says it on the console and gives the next entry a chance.
    pub(crate) fn report_and_reboot(&self) -> ! {
        eprintln!("init: {}: {}", self.step, self.why);
        eprintln!("init: this boot failed; restarting in 3 seconds");
        rustix::fs::sync();
        std::thread::sleep(Duration::from_secs(3));
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
        // Without the right to reboot (which process 1 has), end: the kernel panics and restarts.
        std::process::exit(1)
    }
}
