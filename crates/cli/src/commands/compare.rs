//! `orlop bench boot --against`: both systems' figures, side by side, for people, scripts and `docs/benchmarks.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use image::peer::{self, Peer};
use serde::Serialize;
use vm::accel::Accel;
use vm::bench::{Bench, Series, Way};
use vm::compare::{Compare, Moment, Row, System};
use vm::interrupt;
use vm::lab::{Lab, Release};
use vm::node::BootMode;
use vm::ssh::Key;

use super::lab;
use crate::exit::Exit;
use crate::output;
use crate::progress::Step;

/// What Orlop is compared with
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Against {
    /// A plain Debian cloud image with cloud-init, made at first use (needs mmdebstrap)
    Debian,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For scripts: fields are added, never renamed
    Json,
    /// For docs/benchmarks.md
    Markdown,
}

/// What `orlop bench boot` was asked for.
pub struct Wishes<'a> {
    pub release: Release,
    pub runs: u32,
    pub memory_mib: u32,
    pub format: Format,
    pub into: Option<&'a Path>,
}

#[derive(Serialize)]
struct Figures {
    version: String,
    peer: Peer,
    workstation: Workstation,
    memory_mib: u32,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    saved: Series,
}

#[derive(Serialize)]
struct Workstation {
    cpus: usize,
    cpu: String,
    accel: &'static str,
    qemu: String,
    /// Of the last minute, as the measuring began: more than a little means that others were at work.
    load_before: f64,
    load_after: f64,
}

/// Orlop's figure divided by Debian's.
#[derive(Serialize)]
struct Ratio {
    boot: BootMode,
    moment: Moment,
    ssh: f64,
    ready: f64,
    memory: f64,
    held: f64,
}

pub fn run(wishes: Wishes<'_>) -> Result<Exit> {
    interrupt::catch()?;
    let into = wishes
        .into
        .map(|path| Page::open(path, "figures"))
        .transpose()?;
    let lab = lab()?;
    let peer = peer(&lab)?;
    let accel = Accel::detect(&lab.cache())?;
    let key = Key::ensure(&lab)?;
    let load_before = load();
    let compare = Compare {
        lab: &lab,
        orlop: wishes.release.clone(),
        debian: Release {
            version: peer.name.clone(),
            dir: peer.dir.clone(),
        },
        accel,
        key: &key,
        runs: wishes.runs,
        memory_mib: wishes.memory_mib,
    };
    eprintln!("… boots");
    let rows = compare.run(&|text| eprintln!("  {text}"))?;
    let step = Step::begin("saved state");
    let bench = Bench {
        lab: &lab,
        release: wishes.release.clone(),
        accel,
        key: &key,
        runs: wishes.runs,
        memory_mib: wishes.memory_mib,
    };
    let saved = bench.series(Way::Saved)?;
    step.done(&format!("{:.1} s", saved.median.healthy_seconds));
    let figures = Figures {
        version: wishes.release.version,
        peer,
        workstation: Workstation {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu(),
            accel: accel.name(),
            qemu: qemu(),
            load_before,
            load_after: load(),
        },
        memory_mib: wishes.memory_mib,
        ratios: ratios(&rows),
        rows,
        saved,
    };
    if let Some(page) = into {
        page.write(&markdown(&figures))?;
    }
    match wishes.format {
        Format::Json => output::print(output::Format::Json, &figures, |_| String::new())?,
        Format::Text => output::print(output::Format::Text, &figures, text)?,
        Format::Markdown => output::print(output::Format::Text, &figures, markdown)?,
    }
    Ok(Exit::Ok)
}

fn peer(lab: &Lab) -> Result<Peer> {
    let _lock = lab.lock("the Debian image", "bench boot")?;
    let step = Step::begin("Debian image");
    let peer = peer::ensure(&lab.cache(), &|text| step.detail(text))?;
    step.done(&format!("{}, {} packages", peer.name, peer.packages));
    Ok(peer)
}

fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let find = |boot: BootMode, moment: Moment, system: System| {
        rows.iter()
            .find(move |row| (row.boot, row.moment, row.system) == (boot, moment, system))
    };
    let ours = rows.iter().filter(|row| row.system == System::Orlop);
    ours.filter_map(|ours| {
        let theirs = find(ours.boot, ours.moment, System::Debian)?;
        Some(Ratio {
            boot: ours.boot,
            moment: ours.moment,
            ssh: ours.ssh_seconds() / theirs.ssh_seconds(),
            ready: ours.ready_seconds() / theirs.ready_seconds(),
            memory: ours.idle_mib() / theirs.idle_mib(),
            held: ours.held_mib() / theirs.held_mib(),
        })
    })
    .collect()
}

const HEAD: [&str; 8] = [
    "Start",
    "Boot",
    "System",
    "SSH command",
    "ready",
    "memory",
    "held",
    "units",
];

fn cells(figures: &Figures) -> Vec<Vec<String>> {
    let mut cells = Vec::new();
    for ratio in &figures.ratios {
        let place = [start(ratio.boot), boot(ratio.moment)].map(str::to_owned);
        let rows = figures.rows.iter();
        for row in rows.filter(|row| (row.boot, row.moment) == (ratio.boot, ratio.moment)) {
            let mut states: Vec<&str> = row.samples.iter().map(|s| s.state.as_str()).collect();
            states.sort_unstable();
            states.dedup();
            let figures = [
                format!("{:?}", row.system),
                format!("{:.1} s", row.ssh_seconds()),
                format!("{:.1} s", row.ready_seconds()),
                format!("{:.0} MiB", row.idle_mib()),
                format!("{:.0} MiB", row.held_mib()),
                states.join(", "),
            ];
            cells.push([&place[..], &figures[..]].concat());
        }
        let figures = [
            "ratio".to_owned(),
            format!("{:.2}×", ratio.ssh),
            format!("{:.2}×", ratio.ready),
            format!("{:.2}×", ratio.memory),
            format!("{:.2}×", ratio.held),
            String::new(),
        ];
        cells.push([&place[..], &figures[..]].concat());
    }
    let saved = &figures.saved.median;
    cells.push(vec![
        "saved machine".to_owned(),
        "–".to_owned(),
        "Orlop".to_owned(),
        format!("{:.1} s", saved.ssh_seconds),
        format!("{:.1} s", saved.healthy_seconds),
        "–".to_owned(),
        format!("{:.0} MiB", saved.idle_mib),
        String::new(),
    ]);
    cells
}

fn start(boot: BootMode) -> &'static str {
    match boot {
        BootMode::Uefi => "firmware (OVMF)",
        BootMode::Direct => "kernel directly",
    }
}

fn boot(moment: Moment) -> &'static str {
    match moment {
        Moment::First => "first",
        Moment::Later => "later",
    }
}

fn about(figures: &Figures) -> String {
    let Figures {
        peer, workstation, ..
    } = figures;
    let runs = figures.rows.first().map_or(0, |row| row.samples.len());
    format!(
        "Orlop {} against {} (kernel {}, cloud-init {}, {} packages): medians of {runs}.\n\
         Each machine: 2 processors, {} MiB, {}, {}.\n\
         Workstation: {} processors ({}), load {:.1} before and {:.1} after, of which the measured machine makes up to 2.\n",
        figures.version,
        peer.name,
        peer.kernel,
        peer.cloud_init,
        peer.packages,
        figures.memory_mib,
        workstation.qemu,
        workstation.accel,
        workstation.cpus,
        workstation.cpu,
        workstation.load_before,
        workstation.load_after,
    )
}

fn text(figures: &Figures) -> String {
    format!(
        "{}{}",
        output::table(&HEAD, &cells(figures)),
        about(figures)
    )
}

fn markdown(figures: &Figures) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = about(figures) + "\n";
    text += &line(&HEAD.map(str::to_owned));
    text += "|---|---|---|--:|--:|--:|--:|---|\n";
    for cells in cells(figures) {
        text += &line(&cells);
    }
    text
}

/// A page with a place for the figures.
pub struct Page {
    path: PathBuf,
    before: String,
    after: String,
}

impl Page {
    /// `name` is in both marks. Before an hour of measuring, not after it.
    pub fn open(path: &Path, name: &str) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (begin, end) = (
            format!("<!-- {name}: begin -->\n"),
            format!("<!-- {name}: end -->"),
        );
        let find = || {
            let start = text.find(&begin)? + begin.len();
            let rest = text.get(start..)?;
            Some((start, start + rest.find(&end)?))
        };
        let (start, stop) = find().with_context(|| {
            format!(
                "{} has no lines {} and {end}, between which the figures go",
                path.display(),
                begin.trim()
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            before: text[..start].to_owned(),
            after: text[stop..].to_owned(),
        })
    }

    pub fn write(&self, figures: &str) -> Result<()> {
        let text = format!("{}{figures}{}", self.before, self.after);
        fs::write(&self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(f64::NAN)
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": "))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned())
}

fn qemu() -> String {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    let text = output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    // QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)
    let version = text.split_whitespace().nth(3).unwrap_or("unknown");
    format!("QEMU {version}")
}

#[cfg(test)]
mod tests {
    use vm::compare::Sample;

    use super::*;

    fn row(system: System, ssh: f64) -> Row {
        Row {
            boot: BootMode::Uefi,
            moment: Moment::First,
            system,
            samples: vec![Sample {
                ssh_seconds: ssh,
                ready_seconds: ssh * 2.0,
                idle_mib: ssh * 10.0,
                held_mib: ssh * 9.0,
                state: "running".into(),
            }],
        }
    }

    #[test]
    fn figures_replace_the_old_ones_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.md");
        let page = |a: &str, b: &str| {
            format!(
                "# Head\n<!-- a: begin -->\n{a}\n<!-- a: end -->\n\n<!-- b: begin -->\n{b}\n<!-- b: end -->\ntail\n"
            )
        };
        fs::write(&path, page("old", "old")).unwrap();
        Page::open(&path, "b").unwrap().write("new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), page("old", "new"));
        Page::open(&path, "a").unwrap().write("new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), page("new", "new"));
        assert!(Page::open(&path, "c").is_err());
    }

    #[test]
    fn both_systems_and_their_ratio_stand_together() {
        let rows = vec![row(System::Orlop, 10.0), row(System::Debian, 40.0)];
        let figures = Figures {
            version: "1".into(),
            peer: Peer {
                name: "Debian 13.1".into(),
                kernel: "6.12".into(),
                cloud_init: "25.1".into(),
                packages: 300,
                dir: PathBuf::new(),
            },
            workstation: Workstation {
                cpus: 2,
                cpu: "Some CPU".into(),
                accel: "kvm",
                qemu: "QEMU 10.0.2".into(),
                load_before: 0.1,
                load_after: 1.5,
            },
            memory_mib: 1024,
            ratios: ratios(&rows),
            rows,
            saved: Series {
                way: Way::Saved,
                samples: vec![],
                median: vm::bench::Sample {
                    ssh_seconds: 1.0,
                    healthy_seconds: 2.0,
                    idle_mib: 90.0,
                },
            },
        };
        insta::assert_snapshot!(markdown(&figures), @r"
        Orlop 1 against Debian 13.1 (kernel 6.12, cloud-init 25.1, 300 packages): medians of 1.
        Each machine: 2 processors, 1024 MiB, QEMU 10.0.2, kvm.
        Workstation: 2 processors (Some CPU), load 0.1 before and 1.5 after, of which the measured machine makes up to 2.
        
        | Start | Boot | System | SSH command | ready | memory | held | units |
        |---|---|---|--:|--:|--:|--:|---|
        | firmware (OVMF) | first | Orlop | 10.0 s | 20.0 s | 100 MiB | 90 MiB | running |
        | firmware (OVMF) | first | Debian | 40.0 s | 80.0 s | 400 MiB | 360 MiB | running |
        | firmware (OVMF) | first | ratio | 0.25× | 0.25× | 0.25× | 0.25× |  |
        | saved machine | – | Orlop | 1.0 s | 2.0 s | – | 90 MiB |  |
        ");
    }
}
