//! `orlop extension`

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use host::extensions::{self, LIST};
use release::ExtensionName;
use serde::Serialize;
use serde_json::json;

use super::engine;
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::progress::Step;

/// Lay parts of the system over /usr that only some hosts want
#[derive(clap::Subcommand)]
pub enum Command {
    /// List those that this release has, and what is wanted
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Want one, now and with every release to come
    Enable(ChangeArgs),
    /// Want it no longer
    Disable(ChangeArgs),
}

#[derive(clap::Args)]
pub struct ChangeArgs {
    name: ExtensionName,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// How long the download of a large one may take to arrive in `/usr` once it is here.
const MERGED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Of the running release. None: it has no such extension.
    about: Option<String>,
    wanted: bool,
    merged: bool,
}

pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::List { output } => output::print(output.output, &rows()?, |rows| text(rows))?,
        Command::Enable(args) => change(args, true)?,
        Command::Disable(args) => change(args, false)?,
    }
    Ok(Exit::Ok)
}

fn root() -> &'static Path {
    Path::new("/")
}

fn rows() -> Result<Vec<Row>> {
    let wanted = extensions::wanted(root())?;
    let known = extensions::known(root());
    let mut rows = Vec::new();
    for (name, about) in &known {
        let name: ExtensionName = name.parse()?;
        rows.push(Row {
            wanted: wanted.contains(&name),
            merged: extensions::is_merged(root(), &name),
            about: Some(about.clone()),
            name: name.to_string(),
        });
    }
    for name in &wanted {
        if known.iter().all(|(it, _)| it != name.as_str()) {
            rows.push(Row {
                name: name.to_string(),
                about: None,
                wanted: true,
                merged: extensions::is_merged(root(), name),
            });
        }
    }
    Ok(rows)
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "this release has no extensions\n".into();
    }
    let cells = |row: &Row| {
        let state = match (row.wanted, row.merged) {
            (true, true) => "in /usr",
            (true, false) => "wanted, not here yet",
            (false, true) => "in /usr, not wanted",
            (false, false) => "-",
        };
        let about = row.about.as_deref().unwrap_or("not in this release");
        vec![row.name.clone(), state.into(), about.into()]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    output::table(&["NAME", "STATE", "ABOUT"], &rows)
}

fn change(args: &ChangeArgs, want: bool) -> Result<()> {
    let name = &args.name;
    if want {
        let known = extensions::known(root());
        let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(
            names.contains(&name.as_str()),
            "this release has no extension {name}; it has: {}",
            match names.is_empty() {
                true => "none".into(),
                false => names.join(", "),
            }
        );
    }
    let path = Path::new(LIST);
    let old = match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {LIST}"))?,
    };
    if let Err((line, e)) = extensions::parse(&old) {
        bail!("{LIST}:{line}: {e}");
    }
    let new = extensions::changed(&old, name, want);
    if args.dry_run {
        match &new {
            None => println!("{LIST} says so already"),
            Some(_) if want => println!("would add {name} to {LIST} and have it fetched"),
            Some(_) => println!("would take {name} out of {LIST} and out of /usr"),
        }
        return Ok(());
    }
    if let Some(new) = new {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        host::atomic::write(path, new.as_bytes(), 0o644, None)?;
    }
    if want {
        let step = Step::begin(&format!("fetch {name}"));
        // A check brings what is missing; that there is no newer release is no trouble.
        let checked = engine::call("Check", &json!({}), &mut |_| ());
        // It may have come all the same: the check for a newer release follows.
        let patience = match checked {
            Ok(_) => MERGED_WITHIN,
            Err(_) => MERGED_WITHIN / 10,
        };
        if !wait(name, true, patience) {
            let why = match checked {
                Err(e) => format!("{e:#}"),
                Ok(_) => "journalctl -u update-engine -u 'extensions@*' -u systemd-sysext says why"
                    .into(),
            };
            bail!("{name} is wanted and comes as soon as it can be had: {why}");
        }
        step.done("in /usr");
    } else if !wait(name, false, MERGED_WITHIN) {
        bail!(
            "{name} is not wanted any more, and still in /usr: systemctl status systemd-sysext says why"
        );
    }
    Ok(())
}

fn wait(name: &ExtensionName, merged: bool, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while extensions::is_merged(root(), name) != merged {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    true
}
