//! Results as a table or as JSON.

use std::time::Duration;

use serde_json::json;

use super::{Kind, Output};

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub target: String,
    pub work: String,
    pub clients: usize,
    pub done: u64,
    pub failed: u64,
    pub took: Duration,
    pub p50: Duration,
    pub p99: Duration,
    /// Of all the server's processes.
    pub cpu: Option<Duration>,
    pub resident: Option<u64>,
}

pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Put => "put",
        Kind::Range => "range",
        Kind::SerializableRange => "serializable range",
        Kind::Txn => "txn",
        Kind::Watch => "watch events",
        Kind::Lease => "lease grant",
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to people")]
fn float(n: u64) -> f64 {
    n as f64
}

impl Row {
    pub(super) fn same(&self, other: &Self) -> bool {
        (&self.target, &self.work, self.clients) == (&other.target, &other.work, other.clients)
    }

    pub(super) fn per_second(&self) -> f64 {
        float(self.done) / self.took.as_secs_f64().max(1e-9)
    }

    pub(super) fn cpu_micros(&self) -> Option<f64> {
        self.cpu
            .map(|cpu| cpu.as_secs_f64() * 1e6 / float(self.done.max(1)))
    }
}

pub(super) fn print(rows: &[Row], output: Output) {
    let base = |row: &Row| {
        rows.iter()
            .find(|r| r.work == row.work && r.clients == row.clients)
    };
    match output {
        Output::Json => {
            let list: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({
                        "target": row.target,
                        "work": row.work,
                        "clients": row.clients,
                        "requests": row.done,
                        "failed": row.failed,
                        "seconds": row.took.as_secs_f64(),
                        "perSecond": row.per_second(),
                        "p50Micros": u64::try_from(row.p50.as_micros()).unwrap_or(u64::MAX),
                        "p99Micros": u64::try_from(row.p99.as_micros()).unwrap_or(u64::MAX),
                        "serverCpuMicros": row.cpu_micros(),
                        "residentBytes": row.resident,
                    })
                })
                .collect();
            println!("{}", serde_json::Value::from(list));
        }
        Output::Text | Output::Markdown => {
            println!(
                "{:<20} {:>7}  {:<10} {:>10} {:>9} {:>9} {:>8} {:>8}  ratio: rate, p99, CPU",
                "work", "clients", "server", "per s", "p50 ms", "p99 ms", "CPU µs", "RSS MB"
            );
            for row in rows {
                let ms = |d: Duration| format!("{:.2}", d.as_secs_f64() * 1e3);
                let cpu = row
                    .cpu_micros()
                    .map_or("-".to_owned(), |c| format!("{c:.1}"));
                let memory = row
                    .resident
                    .map_or("-".to_owned(), |m| format!("{:.0}", float(m) / 1e6));
                let ratio =
                    base(row)
                        .filter(|b| b.target != row.target)
                        .map_or(String::new(), |b| {
                            let cpu = match (row.cpu_micros(), b.cpu_micros()) {
                                (Some(own), Some(other)) => format!(", {:.2}", own / other),
                                _ => String::new(),
                            };
                            let p99 = row.p99.as_secs_f64() / b.p99.as_secs_f64().max(1e-9);
                            format!("{:.2}, {p99:.2}{cpu}", row.per_second() / b.per_second())
                        });
                let failed = if row.failed > 0 {
                    format!("  {} failed", row.failed)
                } else {
                    String::new()
                };
                println!(
                    "{:<20} {:>7}  {:<10} {:>10.0} {:>9} {:>9} {:>8} {:>8}  {ratio}{failed}",
                    row.work,
                    row.clients,
                    row.target,
                    row.per_second(),
                    ms(row.p50),
                    ms(row.p99),
                    cpu,
                    memory
                );
            }
        }
    }
}
