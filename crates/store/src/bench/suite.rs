//! All that counts, against other programs in the same run, in turn.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::figures::{Figure, Report, Wanted};
use super::report::Row;
use super::rpc::Call;
use super::servers::{Certificates, Program, Servers};
use super::{Bench, Kind, Settings, Target, work};
use crate::pb::etcdserverpb as rpc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// Put, range and transaction: 100 clients, one member
    Single,
    /// 1000 watchers of one key, one member
    Watch,
    /// Put: 1000 clients, three members
    Cluster,
    /// Many keys: memory, restart, compaction
    Keys,
}

/// Puts a second while a store is compacted.
const RATE: u32 = 1000;
/// How long puts are watched in quiet, and at least while a store is compacted.
const QUIET: Duration = Duration::from_secs(5);

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(f64::NAN)
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown".to_owned(), |(_, name)| name.to_owned())
}

/// A directory that goes with this value.
struct Place(PathBuf);

impl Place {
    fn make(base: &Path) -> Result<Self> {
        let dir = base.join(format!("orlop-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Suite {
    bench: Bench,
    programs: Vec<Program>,
    place: Place,
    tls: Option<Certificates>,
    figures: Vec<Figure>,
}

pub(super) async fn run(bench: Bench) -> Result<()> {
    let mut programs = Vec::new();
    for path in &bench.against {
        programs.push(Program::peer(path)?);
    }
    programs.push(Program::own()?);
    let base = bench.data.clone().unwrap_or_else(std::env::temp_dir);
    let output = bench.output;
    // Before some of them are given away.
    let processors = std::thread::available_parallelism().map_or(1, Into::into);
    if let Some(processors) = &bench.client_cpus {
        processors.take()?;
    }
    let place = Place::make(&base)?;
    let tls = bench
        .tls
        .then(|| Certificates::make(&place.0))
        .transpose()?;
    let mut suite = Suite {
        place,
        tls,
        programs,
        figures: Vec::new(),
        bench,
    };
    let load_before = load_average();
    for part in suite.bench.part.clone() {
        match part {
            Part::Single => suite.single().await?,
            Part::Watch => {
                let figures = suite.steady(&[(Kind::Watch, 1000)], 1).await?;
                suite.keep(
                    "1000 watchers of one key",
                    &figures[0],
                    [
                        (Measure::Rate, Wanted::AtLeast(2.0)),
                        (Measure::Cpu, Wanted::Nothing),
                    ],
                );
            }
            Part::Cluster => {
                let figures = suite.steady(&[(Kind::Put, 1000)], 3).await?;
                suite.keep(
                    "put, 1000 clients, 3 members",
                    &figures[0],
                    [
                        (Measure::Rate, Wanted::AtLeast(1.5)),
                        (Measure::P99, Wanted::Nothing),
                        (Measure::Cpu, Wanted::Nothing),
                    ],
                );
            }
            Part::Keys => suite.keys().await?,
        }
    }
    let report = Report {
        servers: suite.programs.iter().map(|p| p.name.clone()).collect(),
        processor: processor(),
        processors,
        load_before,
        load_after: load_average(),
        rounds: suite.bench.rounds,
        seconds: suite.bench.settings.seconds,
        tls: suite.bench.tls,
        server_cpus: suite.bench.server_cpus.map(|p| p.to_string()),
        client_cpus: suite.bench.client_cpus.map(|p| p.to_string()),
        figures: suite.figures,
    };
    report.print(output)
}

#[derive(Debug, Clone, Copy)]
enum Measure {
    Rate,
    P99,
    Cpu,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Rate => "per second",
            Self::P99 => "p99, ms",
            Self::Cpu => "server CPU, µs",
        }
    }

    fn of(self, row: &Row) -> f64 {
        match self {
            Self::Rate => row.per_second(),
            Self::P99 => row.p99.as_secs_f64() * 1e3,
            Self::Cpu => row.cpu_micros().unwrap_or(f64::NAN),
        }
    }
}

impl Suite {
    fn keep<const N: usize>(
        &mut self,
        work: &str,
        rows: &[Vec<Row>],
        measures: [(Measure, Wanted); N],
    ) {
        for (measure, wanted) in measures {
            let values = rows
                .iter()
                .map(|rounds| median(rounds.iter().map(|row| measure.of(row)).collect()))
                .collect();
            self.add(work, measure.name(), wanted, values);
        }
    }

    fn start(&self, program: &Program, members: usize) -> Result<Servers> {
        Servers::start(
            program,
            &self.place.0,
            members,
            self.tls.clone(),
            self.bench.server_cpus.clone(),
        )
    }

    fn add(&mut self, work: &str, measure: &str, wanted: Wanted, values: Vec<f64>) {
        let figure = Figure {
            work: work.to_owned(),
            measure: measure.to_owned(),
            wanted,
            values,
        };
        tracing::info!(values = ?figure.values, "{work}: {measure}");
        self.figures.push(figure);
    }

    /// By work, by server, by round. Each server runs alone.
    async fn steady(&self, works: &[(Kind, usize)], members: usize) -> Result<Vec<Vec<Vec<Row>>>> {
        let mut all = vec![vec![Vec::new(); self.programs.len()]; works.len()];
        for _ in 0..self.bench.rounds.max(1) {
            for (which, program) in self.programs.iter().enumerate() {
                let servers = self.start(program, members)?;
                let target = servers.target();
                for (rows, (kind, clients)) in all.iter_mut().zip(works) {
                    let row = work::measure(&target, &self.bench.settings, *kind, *clients).await?;
                    anyhow::ensure!(row.done > 0, "{} did not answer", program.name);
                    if row.failed > 0 {
                        tracing::warn!(
                            "{}: {} of {} requests failed",
                            program.name,
                            row.failed,
                            row.done
                        );
                    }
                    rows[which].push(row);
                }
            }
        }
        Ok(all)
    }

    async fn single(&mut self) -> Result<()> {
        let works = [
            (Kind::Put, 100, "put, 100 clients"),
            (Kind::Range, 100, "linearizable range, 100 clients"),
            (Kind::Txn, 100, "transaction, 100 clients"),
            (Kind::Put, 1, "put, 1 client"),
        ];
        let kinds = works.map(|(kind, clients, _)| (kind, clients));
        let rows = self.steady(&kinds, 1).await?;
        for ((kind, clients, name), rows) in works.iter().zip(&rows) {
            let goals = match (kind, clients) {
                (Kind::Put, 100) => [
                    Wanted::AtLeast(2.0),
                    Wanted::AtMost(1.0),
                    Wanted::AtMost(0.5),
                ],
                (Kind::Range, _) => [Wanted::AtLeast(2.0), Wanted::Nothing, Wanted::AtMost(0.5)],
                _ => [Wanted::Nothing; 3],
            };
            self.keep(
                name,
                rows,
                [
                    (Measure::Rate, goals[0]),
                    (Measure::P99, goals[1]),
                    (Measure::Cpu, goals[2]),
                ],
            );
        }
        Ok(())
    }

    async fn keys(&mut self) -> Result<()> {
        let mut found: Vec<[f64; 7]> = Vec::new();
        for program in &self.programs {
            let mut servers = self.start(program, 1)?;
            let mut settings = self.bench.settings.clone();
            settings.keys = self.bench.many;
            let target = servers.target();
            let row = work::load(&target, &settings, 100, self.bench.many).await?;
            let rate = row.per_second();
            let resident = resident(&target);
            let restart = tokio::task::block_in_place(|| servers.restart())?;
            let target = servers.target();
            let quiet = puts_during(&target, &settings, tokio::time::sleep(QUIET))
                .await?
                .1;
            let revision = revision(&target).await?;
            let (took, busy) = puts_during(&target, &settings, compact(&target, revision)).await?;
            let took = took?;
            found.push([
                rate,
                resident,
                restart.as_secs_f64(),
                took.as_secs_f64(),
                at(&quiet, 99),
                at(&busy, 99),
                at(&busy, 100),
            ]);
        }
        let column = |i: usize| found.iter().map(|f| f[i]).collect::<Vec<f64>>();
        let many = self.bench.many;
        let keys = format!("{many} keys of {} bytes", self.bench.settings.value_size);
        self.add(
            &keys,
            "puts per second while loading",
            Wanted::Nothing,
            column(0),
        );
        self.add(
            &keys,
            "memory after the load, MB",
            Wanted::AtMost(0.6),
            column(1),
        );
        self.add(
            &keys,
            "killed, until healthy again, s",
            Wanted::AtMost(0.5),
            column(2),
        );
        let work = format!("compaction and defrag of that, {RATE} puts a second");
        self.add(&work, "time, s", Wanted::Nothing, column(3));
        self.add(&work, "p99 of puts before, ms", Wanted::Nothing, column(4));
        self.add(
            &work,
            "p99 of puts meanwhile, ms",
            Wanted::Nothing,
            column(5),
        );
        self.add(
            &work,
            "longest put meanwhile, ms",
            Wanted::Nothing,
            column(6),
        );
        let slower = found.iter().map(|f| f[5] / f[4]).collect();
        self.add(
            &work,
            "p99 meanwhile / before",
            Wanted::OfItself(2.0),
            slower,
        );
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to people")]
fn resident(target: &Target) -> f64 {
    target.processes.iter().map(|p| p.resident()).sum::<u64>() as f64 / 1e6
}

/// In milliseconds.
fn at(sorted: &[u32], percent: usize) -> f64 {
    let micros = sorted.get(sorted.len() * percent / 100).or(sorted.last());
    micros.map_or(f64::NAN, |m| f64::from(*m) / 1e3)
}

/// Puts while something else goes on: what that says, and the latencies.
async fn puts_during<T>(
    target: &Target,
    settings: &Settings,
    other: impl Future<Output = T>,
) -> Result<(T, Vec<u32>)> {
    let end = Arc::new(AtomicBool::new(false));
    let puts = work::overwrite(target, settings, RATE, end.clone());
    let other = async {
        let result = other.await;
        end.store(true, Ordering::Relaxed);
        result
    };
    let (result, latencies) = tokio::join!(other, puts);
    Ok((result, latencies?))
}

async fn revision(target: &Target) -> Result<i64> {
    let mut connection = work::connect(target, 1).await?.remove(0);
    let request = rpc::RangeRequest {
        key: b"bench/".to_vec(),
        ..Default::default()
    };
    let answer: crate::wire::RangeResponse = connection.ask(Call::Range, &request).await?;
    Ok(answer.header.map_or(0, |h| h.revision))
}

/// Forgets all history, waits until that is done, and gives the space back.
async fn compact(target: &Target, revision: i64) -> Result<Duration> {
    let mut connection = work::connect(target, 1).await?.remove(0);
    let before = Instant::now();
    let request = rpc::CompactionRequest {
        revision,
        physical: true,
    };
    connection.call(Call::Compact, &request).await?;
    connection
        .call(Call::Defragment, &rpc::DefragmentRequest {})
        .await?;
    let took = before.elapsed();
    tokio::time::sleep(QUIET.saturating_sub(took)).await;
    Ok(took)
}
