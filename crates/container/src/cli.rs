//! `orlop container`: arguments and output.
//!
//! Exit codes: 0 done, 1 an error that is on standard error, 2 wrong usage; `run` without
//! `--detach` passes on the command's own.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::name::Invalid;
use crate::run;
use crate::spec::{Bind, Console, Cpus, Limits, Memory, Network, Pids, RunSpec, Users};
use crate::store::{Image, Request, Source};
use crate::{Name, Store, plan};

#[derive(Debug, Args)]
pub struct ContainerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an image of a root file system
    Import {
        /// What to call the image
        name: Name,
        /// A tar archive (plain, gzip, xz or zstd) as a file, a URL or `-`; or a directory
        #[arg(value_name = "FILE|URL|-|DIR")]
        source: String,
        /// Refuse an archive with another SHA-256
        #[arg(long, value_name = "HEX", value_parser = sha256)]
        sha256: Option<String>,
    },
    /// Show the images and the containers that run on them
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run a command, or the image's own system, in a container
    Run(RunArgs),
    /// Stop a running container
    Stop { name: Name },
    /// Remove an image
    Remove { name: Name },
    /// Show what a container has written
    Logs {
        name: Name,
        /// Go on with what it writes from now on
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines
        #[arg(short = 'n', long)]
        lines: Option<u32>,
    },
    /// Show a running container: its limits as the kernel has them, and its usage
    Inspect {
        name: Name,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The image to run
    image: Name,
    /// What to call the container [default: the image's name; with --ephemeral and a random suffix]
    #[arg(long)]
    name: Option<Name>,
    /// Most memory, e.g. 128M
    #[arg(long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Most processors, e.g. 0.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<Cpus>,
    /// Most processes and threads, e.g. 100
    #[arg(long, value_name = "NUMBER")]
    pids: Option<Pids>,
    /// Run on a snapshot that is thrown away afterwards
    #[arg(long)]
    ephemeral: bool,
    /// Show a file or directory of the host inside
    #[arg(long, value_name = "SRC:DST[:ro]")]
    bind: Vec<Bind>,
    /// How the container reaches the network
    #[arg(long, value_enum, default_value_t)]
    network: Network,
    /// Whose user ids it runs with
    #[arg(long, value_enum, default_value_t)]
    users: Users,
    /// Start the image's own system
    #[arg(long, conflicts_with = "command")]
    boot: bool,
    /// Do not wait; see `logs`, `inspect` and `stop`
    #[arg(long)]
    detach: bool,
    /// Only print what would be run
    #[arg(long)]
    dry_run: bool,
    /// What to run [default: the image's shell]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

pub fn main(args: ContainerArgs) -> Result<ExitCode> {
    let store = Store::new("/");
    match args.command {
        Command::Import {
            name,
            source,
            sha256,
        } => import(&store, name, &source, sha256)?,
        Command::List { output } => list(&store, output)?,
        Command::Run(args) => return run_container(&store, args),
        Command::Stop { name } => {
            need_root()?;
            run::stop(store.root(), &name)?;
        }
        Command::Remove { name } => {
            need_root()?;
            store.remove(&name)?;
        }
        Command::Logs {
            name,
            follow,
            lines,
        } => {
            let status = run::logs_command(&name, follow, lines)
                .status()
                .context("cannot run journalctl")?;
            return Ok(if status.success() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Inspect { name, output } => inspect(store.root(), &name, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn need_root() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => bail!("only root may do that; try it with sudo"),
    }
}

fn sha256(text: &str) -> Result<String, Invalid> {
    match text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(Invalid::new(
            "sha256",
            text,
            "use the 64 hex digits that sha256sum prints",
        )),
    }
}

fn import(store: &Store, name: Name, source: &str, sha256: Option<String>) -> Result<()> {
    need_root()?;
    let source = Source::parse(source);
    if sha256.is_some() && matches!(source, Source::Directory(_)) {
        bail!("--sha256 is for archives; a directory has none");
    }
    let request = Request {
        name,
        source,
        sha256,
    };
    let done = store
        .import(&request, jiff::Timestamp::now())
        .with_context(|| format!("cannot import {} as {}", request.source, request.name))?;
    let hash = done
        .sha256
        .map(|hash| format!(", sha256 {hash}"))
        .unwrap_or_default();
    match done.entries {
        0 => println!("{}{hash}", request.name),
        entries => println!("{}: {entries} files{hash}", request.name),
    }
    if done.skipped > 0 {
        eprintln!(
            "{} device nodes were left out: a container has its own /dev",
            done.skipped
        );
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    image: Image,
    /// The names of its running containers.
    containers: Vec<Name>,
}

fn list(store: &Store, output: Output) -> Result<()> {
    need_root()?;
    let running = run::running(store.root());
    let rows: Vec<Row> = store
        .list()?
        .into_iter()
        .map(|image| {
            let of_image = |(name, of): &(Name, Option<Name>)| {
                (of.as_ref() == Some(&image.name)).then(|| name.clone())
            };
            let containers = running.iter().filter_map(of_image).collect();
            Row { image, containers }
        })
        .collect();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => print!("{}", table(&rows)),
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let head = ["IMAGE", "SYSTEM", "IMPORTED", "CONTAINERS"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let imported = row
            .image
            .origin
            .as_ref()
            .map(|origin| origin.imported.chars().take(10).collect());
        let containers: Vec<_> = row.containers.iter().map(Name::as_str).collect();
        [
            row.image.name.to_string(),
            row.image.os.clone().unwrap_or_else(|| "-".to_owned()),
            imported.unwrap_or_else(|| "-".to_owned()),
            if containers.is_empty() {
                "-".to_owned()
            } else {
                containers.join(",")
            },
        ]
    });
    let lines: Vec<_> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let (a, b, c) = (width(0), width(1), width(2));
    lines
        .iter()
        .map(|[w, x, y, z]| format!("{w:a$}  {x:b$}  {y:c$}  {z}\n"))
        .collect()
}

fn run_container(store: &Store, args: RunArgs) -> Result<ExitCode> {
    let dry_run = args.dry_run;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let spec = spec(args, terminal, random_suffix()?)?;
    let plan = plan::plan(&spec);
    if dry_run {
        println!("{plan}");
        return Ok(ExitCode::SUCCESS);
    }
    need_root()?;
    run::check(store, &spec)?;
    let code = run::execute(store.root(), &spec, &plan)?;
    if spec.console == Console::Detached {
        println!("{}", spec.name);
    }
    Ok(code)
}

fn random_suffix() -> Result<String> {
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(hex::encode(bytes))
}

fn spec(args: RunArgs, terminal: bool, suffix: String) -> Result<RunSpec> {
    if args.detach && !args.boot && args.command.is_empty() {
        bail!("--detach needs something that runs by itself: `-- CMD` or --boot");
    }
    let name = match (args.name, args.ephemeral) {
        (Some(name), _) => name,
        (None, false) => args.image.clone(),
        (None, true) => {
            let stem: String = args.image.as_str().chars().take(50).collect();
            format!("{stem}-{suffix}").parse()?
        }
    };
    let console = match (args.detach, terminal) {
        (true, _) => Console::Detached,
        (false, true) => Console::Terminal,
        (false, false) => Console::Pipe,
    };
    Ok(RunSpec {
        name,
        image: args.image,
        limits: Limits {
            memory: args.memory,
            cpus: args.cpus,
            pids: args.pids,
        },
        ephemeral: args.ephemeral,
        binds: args
            .bind
            .into_iter()
            .map(map_owner_where_possible)
            .collect(),
        network: args.network,
        users: args.users,
        boot: args.boot,
        command: args.command,
        console,
    })
}

/// overlayfs, which `/etc` is on, cannot show a file with another owner.
fn map_owner_where_possible(bind: Bind) -> Bind {
    const OVERLAYFS_MAGIC: i64 = 0x794c_7630;
    let overlay = rustix::fs::statfs(&bind.source).is_ok_and(|stat| stat.f_type == OVERLAYFS_MAGIC);
    Bind {
        map_owner: !overlay,
        ..bind
    }
}

fn inspect(root: &Path, name: &Name, output: Output) -> Result<()> {
    let found = run::inspect(root, name)?;
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    let or = |value: Option<u64>, unit: &str| {
        value.map_or("no limit".to_owned(), |n| format!("{n}{unit}"))
    };
    let size = |bytes: Option<u64>| bytes.map_or("no limit".to_owned(), |n| Memory(n).to_string());
    println!("Name:    {}", found.name);
    println!("Unit:    {}", found.unit);
    if let Some(spec) = &found.requested {
        println!("Image:   {}", spec.image);
    }
    println!(
        "Memory:  {} of {}",
        or(found.usage.memory_current, " bytes"),
        size(found.applied.memory_max)
    );
    println!("CPU:     {} (limit)", or(found.applied.cpu_percent, " %"));
    println!(
        "Pids:    {} of {}",
        or(found.usage.pids_current, ""),
        or(found.applied.pids_max, "")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Test {
        #[command(flatten)]
        args: ContainerArgs,
    }

    fn parse(line: &str) -> Result<RunSpec, String> {
        let args = Test::try_parse_from(std::iter::once("t").chain(line.split(' ')));
        match args.map_err(|error| error.to_string())?.args.command {
            Command::Run(args) => {
                spec(args, false, "ab12cd".into()).map_err(|error| error.to_string())
            }
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn names_and_consoles() {
        let spec = parse("run debian").unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.console),
            ("debian", Console::Pipe)
        );
        let spec = parse("run --ephemeral --detach debian -- /bin/sleep 5").unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.console),
            ("debian-ab12cd", Console::Detached)
        );
        assert_eq!(spec.command, ["/bin/sleep", "5"]);
        assert_eq!(parse("run --name web debian").unwrap().name.as_str(), "web");
    }

    #[test]
    fn wrong_usage_says_what_is_right() {
        let check = |line: &str, part: &str| {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        check(
            "run --detach debian",
            "--detach needs something that runs by itself",
        );
        check(
            "run --memory 1X debian",
            "use a number with K, M, G or T, e.g. 128M",
        );
        check("run ../x", "use 1 to 64 lower-case letters");
        check("run --boot debian -- ls", "cannot be used with");
        check("run --bind /srv debian", "use SRC:DST or SRC:DST:ro");
        check(
            "import x y --sha256 12",
            "use the 64 hex digits that sha256sum prints",
        );
    }

    #[test]
    fn tables_line_up() {
        let image = |name: &str, os: Option<&str>| Image {
            name: name.parse().unwrap(),
            os: os.map(str::to_owned),
            origin: None,
        };
        let rows = [
            Row {
                image: image("tiny", None),
                containers: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            },
            Row {
                image: image("debian-13", Some("Debian GNU/Linux 13 (trixie)")),
                containers: vec![],
            },
        ];
        insta::assert_snapshot!(table(&rows), @r#"
        IMAGE      SYSTEM                        IMPORTED  CONTAINERS
        tiny       -                             -         a,b
        debian-13  Debian GNU/Linux 13 (trixie)  -         -
        "#);
    }
}
