//! What the comparison found, against what is wanted.

use serde::Serialize;

use super::Output;

/// What makes a ratio good.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase", tag = "is", content = "ratio")]
pub(super) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// Each server is held against itself: this many times its own figure in quiet.
    OfItself(f64),
    /// Only shown.
    Nothing,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    pub work: String,
    pub measure: String,
    pub wanted: Wanted,
    /// By server, in the order of the servers; this program's is the last. The median of the rounds.
    pub values: Vec<f64>,
}

impl Figure {
    /// This program against each of the others.
    fn ratios(&self) -> Vec<f64> {
        let Some((own, others)) = self.values.split_last() else {
            return Vec::new();
        };
        others.iter().map(|other| own / other.max(1e-9)).collect()
    }

    /// What is wanted, and whether it was reached: against each of the others, where they do not all say the same.
    fn verdict(&self) -> (String, String) {
        let (wanted, met): (String, Vec<bool>) = match self.wanted {
            Wanted::AtLeast(wanted) => (
                format!("≥ {wanted}×"),
                self.ratios().iter().map(|ratio| *ratio >= wanted).collect(),
            ),
            Wanted::AtMost(wanted) => (
                format!("≤ {wanted}×"),
                self.ratios().iter().map(|ratio| *ratio <= wanted).collect(),
            ),
            Wanted::OfItself(wanted) => (
                format!("itself ≤ {wanted}×"),
                self.values
                    .last()
                    .map(|own| *own <= wanted)
                    .into_iter()
                    .collect(),
            ),
            Wanted::Nothing => ("–".to_owned(), Vec::new()),
        };
        let mut words: Vec<&str> = met
            .iter()
            .map(|met| if *met { "met" } else { "missed" })
            .collect();
        if words.iter().all(|word| Some(word) == words.first()) {
            words.truncate(1);
        }
        (wanted, words.join(", "))
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub servers: Vec<String>,
    pub processor: String,
    pub processors: usize,
    pub load_before: f64,
    pub load_after: f64,
    pub rounds: usize,
    pub seconds: u64,
    pub tls: bool,
    pub server_cpus: Option<String>,
    pub client_cpus: Option<String>,
    pub figures: Vec<Figure>,
}

fn number(n: f64) -> String {
    if n >= 1000.0 {
        let whole = format!("{n:.0}");
        let mut out = String::new();
        for (i, digit) in whole.chars().enumerate() {
            if i > 0 && (whole.len() - i) % 3 == 0 {
                out.push(',');
            }
            out.push(digit);
        }
        out
    } else if n >= 100.0 {
        format!("{n:.0}")
    } else if n >= 10.0 {
        format!("{n:.1}")
    } else {
        format!("{n:.2}")
    }
}

impl Report {
    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![
            ["work".to_owned(), "measure".to_owned()]
                .into_iter()
                .chain(self.servers.iter().cloned())
                .chain(["ratio", "wanted", ""].map(str::to_owned))
                .collect::<Vec<_>>(),
        ];
        for figure in &self.figures {
            let (wanted, met) = figure.verdict();
            let ratios: Vec<String> = figure
                .ratios()
                .iter()
                .map(|ratio| format!("{ratio:.2}×"))
                .collect();
            let mut row = vec![figure.work.clone(), figure.measure.clone()];
            row.extend(figure.values.iter().map(|n| number(*n)));
            row.extend([ratios.join(", "), wanted, met]);
            rows.push(row);
        }
        rows
    }

    fn circumstances(&self) -> String {
        let mut more = String::new();
        if self.tls {
            more += " TLS, certificates on both sides.";
        }
        for (whose, processors) in [
            ("the servers", &self.server_cpus),
            ("the clients", &self.client_cpus),
        ] {
            if let Some(processors) = processors {
                more += &format!(" Processor {processors} for {whose}.");
            }
        }
        format!(
            "{}, this program last. Medians of {} rounds of {} s. {} processors ({}), load {:.1} before and {:.1} after, \
             most of which is the measuring itself.{more}",
            self.servers.join(", "),
            self.rounds,
            self.seconds,
            self.processors,
            self.processor,
            self.load_before,
            self.load_after
        )
    }

    pub(super) fn print(&self, output: Output) -> anyhow::Result<()> {
        let rows = self.rows();
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(self)?),
            Output::Markdown => {
                println!("{}\n", self.circumstances());
                for (i, row) in rows.iter().enumerate() {
                    println!("| {} |", row.join(" | "));
                    if i == 0 {
                        let right = "--:|".repeat(self.servers.len() + 1);
                        println!("|---|---|{right}---|---|");
                    }
                }
            }
            Output::Text => {
                println!("{}\n", self.circumstances());
                let widths: Vec<usize> = (0..rows[0].len())
                    .map(|column| {
                        let width = |row: &Vec<String>| row[column].chars().count();
                        rows.iter().map(width).max().unwrap_or(0)
                    })
                    .collect();
                for row in &rows {
                    let mut line = String::new();
                    for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                        let width = *width;
                        if i < 2 || i > self.servers.len() + 2 {
                            line += &format!("{cell:<width$}  ");
                        } else {
                            line += &format!("{cell:>width$}  ");
                        }
                    }
                    println!("{}", line.trim_end());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(wanted: Wanted, values: &[f64]) -> Figure {
        Figure {
            work: "put".into(),
            measure: "per second".into(),
            wanted,
            values: values.to_vec(),
        }
    }

    #[test]
    fn ratios_are_held_against_what_is_wanted() {
        for (wanted, values, met) in [
            (Wanted::AtLeast(2.0), &[10.0, 20.0][..], "met"),
            (Wanted::AtLeast(2.0), &[10.0, 19.0], "missed"),
            (Wanted::AtLeast(2.0), &[5.0, 10.0, 19.0], "met, missed"),
            (Wanted::AtLeast(2.0), &[5.0, 4.0, 10.0], "met"),
            (Wanted::AtMost(0.5), &[10.0, 5.0], "met"),
            (Wanted::AtMost(0.5), &[10.0, 6.0], "missed"),
            (Wanted::OfItself(2.0), &[1000.0, 2.5], "missed"),
            (Wanted::Nothing, &[1.0, 1.0], ""),
        ] {
            assert_eq!(
                figure(wanted, values).verdict().1,
                met,
                "{wanted:?} {values:?}"
            );
        }
    }

    #[test]
    fn numbers_are_readable() {
        for (n, text) in [
            (0.256, "0.26"),
            (12.34, "12.3"),
            (456.7, "457"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(number(n), text);
        }
    }
}
