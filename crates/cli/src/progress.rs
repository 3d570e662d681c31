//! Steps on a terminal: a spinner for the one at work, a line for each that is done. Elsewhere plain lines.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The step at work.
pub struct Step {
    bar: Option<ProgressBar>,
    name: String,
    begin: Instant,
}

impl Step {
    pub fn begin(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix}  {elapsed}  {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("… {name}");
        }
        Self {
            bar,
            name: name.to_owned(),
            begin: Instant::now(),
        }
    }

    /// What is going on inside of it.
    pub fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    pub fn done(self, result: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "✓ {}: {result} ({:.1} s)",
            self.name,
            self.begin.elapsed().as_secs_f64()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
