//! Waiting for signals in a blocking program.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// The signals of this process that [`Signals::wait`] reports instead of letting them end it.
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    pending: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    pub fn watch(signals: &[i32]) -> io::Result<Self> {
        let (wake, send) = UnixStream::pair()?;
        let mut pending = Vec::new();
        for &signal in signals {
            let seen = Arc::new(AtomicBool::new(false));
            // In this order: who is woken finds the flag set.
            flag::register(signal, Arc::clone(&seen))?;
            pipe::register(signal, send.try_clone()?)?;
            pending.push((signal, seen));
        }
        Ok(Self { wake, pending })
    }

    /// The next signal, or `None` after `limit`. Of several the one watched first comes first; the
    /// same signal twice may count once, as always with signals.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<i32>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(signal) = self.take() {
                return Ok(Some(signal));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wake.set_read_timeout(Some(left))?;
            match self.wake.read(&mut [0; 64]) {
                // Never: we hold the other end ourselves.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn take(&self) -> Option<i32> {
        self.pending
            .iter()
            .find(|(_, seen)| seen.swap(false, Ordering::SeqCst))
            .map(|(signal, _)| *signal)
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};
    use signal_hook::consts::{SIGUSR1, SIGUSR2};

    use super::*;

    #[test]
    fn reports_each_signal_once() {
        let mut signals = Signals::watch(&[SIGUSR1, SIGUSR2]).unwrap();
        let limit = Duration::from_secs(5);
        let short = Duration::from_millis(10);
        assert_eq!(signals.wait(short).unwrap(), None);
        kill_process(getpid(), Signal::USR2).unwrap();
        assert_eq!(signals.wait(limit).unwrap(), Some(SIGUSR2));
        kill_process(getpid(), Signal::USR2).unwrap();
        kill_process(getpid(), Signal::USR1).unwrap();
        let mut both = [(); 2].map(|()| signals.wait(limit).unwrap());
        both.sort_unstable();
        assert_eq!(both, [Some(SIGUSR1), Some(SIGUSR2)]);
        assert_eq!(signals.wait(short).unwrap(), None);
    }
}
