//! `orlop up`: release → update-server → disk → boot → healthy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use release::{Channel, Version};
use serde::Serialize;
use vm::accel::Accel;
use vm::cloud_config::{self, Defaults, WORKSTATION};
use vm::interrupt;
use vm::lab::{Lab, Release};
use vm::machine::{self, Machine, Spec, Tie};
use vm::node::{BootMode, Node};
use vm::seed::Datasource;
use vm::server::{self, Server, ServerSpec};
use vm::ssh::Key;

use super::{lab, serve};
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::progress::Step;

/// Boot nodes on this workstation, with an update-server beside them
#[derive(clap::Args)]
pub struct Args {
    /// How many nodes; they are called n1, n2, …
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
    /// Provision the nodes with this file, used as it is; the lab's SSH key comes with the metadata
    #[arg(long, value_name = "FILE")]
    cloud_config: Option<PathBuf>,
    /// Take the file even if cloudinit finds errors in it: a node then gets its host name and the lab's SSH key only
    #[arg(long, requires = "cloud_config")]
    no_validate: bool,
    /// Memory of each node in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..))]
    memory: u32,
    /// The update channel that the nodes follow
    #[arg(long, default_value = "stable")]
    channel: Channel,
    /// The release that new nodes start with; without it the newest, and version 1 is built where there is none
    #[arg(long)]
    version: Option<Version>,
    /// uefi is how real machines start; direct is quicker, but cannot boot into an update
    #[arg(long, default_value = "uefi")]
    boot: BootMode,
    /// How new nodes get their user-data: nocloud, config-drive or fw-cfg
    #[arg(long, default_value = "nocloud")]
    datasource: Datasource,
    /// Size of each node's disk in GiB, of which only what is written takes space
    #[arg(long, default_value_t = 8, value_name = "GIB", value_parser = clap::value_parser!(u32).range(6..))]
    disk: u32,
    /// Start with new disks, even if the nodes have some
    #[arg(long)]
    fresh: bool,
    /// Port of the update-server on 127.0.0.1
    #[arg(long, default_value_t = server::DEFAULT_PORT, value_name = "PORT")]
    server_port: u16,
    /// Seconds that a node may take to become healthy
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Print what would be started, and start nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// What `up` says in the end.
#[derive(Serialize)]
struct Report {
    accel: &'static str,
    server: String,
    nodes: Vec<UpNode>,
}

#[derive(Serialize)]
struct UpNode {
    name: String,
    ssh_port: u16,
    dir: PathBuf,
    #[serde(flatten)]
    status: serde_json::Value,
}

pub fn run(args: &Args) -> Result<Exit> {
    let lab = lab()?;
    let user_data = args
        .cloud_config
        .as_deref()
        .map(|path| read_user_data(path, !args.no_validate))
        .transpose()?;
    let accel = Accel::detect(&lab.cache())?;
    if args.dry_run {
        return dry_run(args, &lab, accel);
    }
    let _lock = lab.lock("the nodes", "up")?;
    let release = ensure_release(args, &lab)?;
    // Up to here Ctrl-C may end us as it likes: a half-built release is in `VERSION.part`. From here on there are machines
    // to be stopped.
    interrupt::catch()?;
    let up = Up {
        args,
        key: Key::ensure(&lab)?,
        accel,
        release,
        user_data,
        server: ensure_server(args, &lab)?,
        lab,
    };
    super::tuf::renew(&up.lab, &up.server.url())?;
    let report = up.run()?;
    output::print(args.output.output, &report, |report| {
        summary(report, &up.release)
    })?;
    Ok(Exit::Ok)
}

/// Reads and checks it before anything is built: a mistake should not cost minutes, nor a node.
fn read_user_data(path: &Path, validate: bool) -> Result<String> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the cloud-config {}", path.display()))?;
    if validate {
        let output = Command::new(serve::beside_us("cloudinit")?)
            .arg("validate")
            .arg(path)
            .output()
            .context("cannot start cloudinit")?;
        // Warnings are worth reading too, and stdout is for the result.
        for said in [&output.stdout, &output.stderr] {
            eprint!("{}", String::from_utf8_lossy(said));
        }
        if !output.status.success() {
            bail!(
                "{} has errors (see above); nothing was started. --no-validate takes it as it is",
                path.display()
            );
        }
    }
    Ok(text)
}

fn dry_run(args: &Args, lab: &Lab, accel: Accel) -> Result<Exit> {
    let version = wanted_version(args, lab)?;
    let release = lab.release(&version.to_string());
    if !release.exists() {
        println!("orlop build --version {version}");
        println!(
            "# then, for each node, with kernel and disk from {}:",
            release.dir.display()
        );
    }
    println!(
        "update-server --listen 127.0.0.1:{} --data {}",
        args.server_port,
        lab.server().display()
    );
    for number in 1..=args.nodes {
        let name = format!("n{number}");
        let node = Node {
            name: name.clone(),
            version: version.to_string(),
            boot: if release.exists() {
                args.boot
            } else {
                BootMode::Uefi
            },
            memory_mib: args.memory,
            ssh_port: ports::free()?,
            instance: String::new(),
            datasource: args.datasource,
            extra: vec![],
            cmdline: Vec::new(),
            process: None,
        };
        println!(
            "{}",
            node.plan(&lab.nodes().join(name), &release, accel)?
                .command_line()
        );
    }
    Ok(Exit::Ok)
}

fn wanted_version(args: &Args, lab: &Lab) -> Result<Version> {
    match (&args.version, lab.all_releases()?.last()) {
        (Some(version), _) => Ok(version.clone()),
        (None, Some(newest)) => Ok(newest.version.parse()?),
        (None, None) => Ok("1".parse()?),
    }
}

fn ensure_release(args: &Args, lab: &Lab) -> Result<Release> {
    let version = wanted_version(args, lab)?;
    let release = lab.release(&version.to_string());
    if !release.exists() {
        let step = Step::begin(&format!("release {version}"));
        build(
            lab,
            lab,
            &release.version,
            &Changes::default(),
            19,
            &|text| step.detail(text),
        )
        .with_context(|| {
            format!(
                "building release {version} failed; ./orlop build --version {version} repeats it"
            )
        })?;
        step.done("built");
    }
    Ok(release)
}

/// In which a release differs from what the checkout makes.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    pub cmdline: &'a [String],
    pub overlay: Option<&'a Path>,
    pub minimum_source_version: Option<&'a str>,
    pub epoch: Option<u64>,
}

/// Builds a release into a lab.
pub fn build(
    repo: &Lab,
    into: &Lab,
    version: &str,
    changes: &Changes<'_>,
    level: i32,
    say: &dyn Fn(&str),
) -> Result<()> {
    let options = image::BuildOptions {
        repo: repo.repo().to_owned(),
        lab: into.root().to_owned(),
        version: version.parse()?,
        policy: image::fetch::Policy::Prefer,
        overlays: changes
            .overlay
            .iter()
            .map(|path| path.to_path_buf())
            .collect(),
        cmdline: changes.cmdline.to_vec(),
        minimum_source_version: changes.minimum_source_version.map(str::parse).transpose()?,
        epoch: changes.epoch,
        level,
        force: false,
        directory: None,
        key: None,
        tuf: None,
    };
    image::build(&options, say)?;
    Ok(())
}

fn ensure_server(args: &Args, lab: &Lab) -> Result<Server> {
    if let Some(server) = Server::running(&lab.server()) {
        return Ok(server);
    }
    let step = Step::begin("update-server");
    image::keys::load_or_create(lab.root(), None).context("cannot make the lab's signing key")?;
    let spec = ServerSpec {
        program: serve::program()?,
        data: lab.server(),
        keys: lab.keys(),
        port: args.server_port,
        public_url: format!("http://{WORKSTATION}:{}", args.server_port),
    };
    let server = Server::start(&spec, false)?;
    step.done(&server.url());
    Ok(server)
}

struct Up<'a> {
    args: &'a Args,
    lab: Lab,
    key: Key,
    accel: Accel,
    release: Release,
    user_data: Option<String>,
    server: Server,
}

impl Up<'_> {
    fn run(&self) -> Result<Report> {
        let names: Vec<String> = (1..=self.args.nodes)
            .map(|number| format!("n{number}"))
            .collect();
        // All are powered on before the first is waited for.
        let started = names
            .iter()
            .map(|name| self.start(name))
            .collect::<Result<Vec<_>>>()?;
        let mut nodes = Vec::new();
        for one in started {
            nodes.push(self.wait(one)?);
        }
        Ok(Report {
            accel: self.accel.name(),
            server: self.server.url(),
            nodes,
        })
    }

    fn start(&self, name: &str) -> Result<Started> {
        let dir = self.lab.nodes().join(name);
        let known = Node::load(&dir)?;
        if let Some(node) = &known
            && node.running(&dir).is_some()
        {
            if self.args.fresh {
                bail!(
                    "{name} is running; ./orlop down {name} stops it, then --fresh can replace its disk"
                );
            }
            if self.user_data.is_some() {
                bail!(
                    "{name} is running, and keeps the user-data that it was started with; \
                     ./orlop down {name} stops it, then it takes the new one"
                );
            }
            return Ok(Started::Already(dir, node.clone()));
        }
        let (node, release) = self.disk(name, &dir, known)?;
        let machine = Machine::start(&dir, node, &release, self.accel, &self.key, Tie::UntilReady)
            .with_context(|| format!("{name} does not start"))?;
        Ok(Started::Now(Box::new(machine)))
    }

    /// Goes on with the node's disk, or makes a new one.
    fn disk(&self, name: &str, dir: &Path, known: Option<Node>) -> Result<(Node, Release)> {
        if let Some(mut node) = known.filter(|_| !self.args.fresh) {
            node.memory_mib = self.args.memory;
            node.boot = self.args.boot;
            if self.user_data.is_some() {
                self.provision(dir, &node)?;
            }
            let release = made_from(dir, &node);
            return Ok((node, release));
        }
        let spec = Spec {
            name: name.to_owned(),
            release: self.release.clone(),
            boot: self.args.boot,
            memory_mib: self.args.memory,
            disk_gib: self.args.disk,
            datasource: self.args.datasource,
            extra: vec![],
        };
        let node = machine::create(dir, &spec)
            .with_context(|| format!("cannot make a disk for {name}"))?;
        self.provision(dir, &node)?;
        let release = made_from(dir, &node);
        Ok((node, release))
    }

    fn provision(&self, dir: &Path, node: &Node) -> Result<()> {
        let user_data = match &self.user_data {
            Some(text) => text.clone(),
            None => cloud_config::default(&Defaults {
                hostname: &node.name,
                public_key: &self.key.public,
                channel: self.args.channel.as_str(),
                server: &cloud_config::omaha_url(self.server.port),
            }),
        };
        machine::provision(dir, node, &self.key, &user_data)
    }

    fn wait(&self, started: Started) -> Result<UpNode> {
        match started {
            Started::Already(dir, node) => {
                let ssh = vm::ssh::Ssh::new(&dir, &self.key, node.ssh_port);
                let status = machine::status(&ssh, 60).with_context(|| {
                    format!(
                        "{} runs but does not answer; ./orlop console {} shows why",
                        node.name, node.name
                    )
                })?;
                Ok(UpNode {
                    name: node.name,
                    ssh_port: node.ssh_port,
                    dir,
                    status,
                })
            }
            Started::Now(mut machine) => {
                let name = machine.node.name.clone();
                let step = Step::begin(&format!("{name} boots"));
                let limit = Duration::from_secs(self.args.timeout);
                let dir = machine.dir.clone();
                let status = machine.wait_healthy(limit, &|line| step.detail(line)).with_context(|| {
                    format!(
                        "{name} did not become healthy and was stopped. Its console said last:\n{}\n\
                         All of it: {}. Try ./orlop up --fresh, or ./orlop up --timeout 900 on a slow machine; the reason",
                        machine::console_tail(&dir, 15),
                        dir.join(vm::plan::CONSOLE_LOG).display()
                    )
                })?;
                let seconds = machine.started.elapsed().as_secs_f64();
                let node = machine.leave_running();
                step.done(&format!("healthy {seconds:.1} s after power-on"));
                Ok(UpNode {
                    name,
                    ssh_port: node.ssh_port,
                    dir,
                    status,
                })
            }
        }
    }
}

/// The node's own links to its release, which a rebuilt one does not replace.
fn made_from(dir: &Path, node: &Node) -> Release {
    Release {
        version: node.version.clone(),
        dir: dir.join(machine::RELEASE),
    }
}

enum Started {
    Already(PathBuf, Node),
    Now(Box<Machine>),
}

fn summary(report: &Report, release: &Release) -> String {
    let field = |node: &UpNode, key: &str| node.status[key].as_str().unwrap_or("-").to_owned();
    let rows: Vec<Vec<String>> = report
        .nodes
        .iter()
        .map(|node| {
            let ssh = format!("127.0.0.1:{}", node.ssh_port);
            let keys = ["version", "slot", "channel", "health"];
            [
                vec![node.name.clone()],
                keys.map(|key| field(node, key)).to_vec(),
                vec![ssh],
            ]
            .concat()
        })
        .collect();
    let next = release
        .version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u64>().ok())
        .map_or(2, |major| major + 1);
    format!(
        "\n{}\nWhat to try next:\n\
         \x20 ./orlop ssh                        a shell in {}\n\
         \x20 ./orlop ssh -- orlop status        how it sees itself\n\
         \x20 ./orlop build --version {next} && ./orlop release publish {next}\n\
         \x20                                    an update: it is installed within a minute\n\
         \x20 ./orlop fleet status               how the update-server sees all nodes\n\
         \x20 {:<34} the dashboard\n\
         \x20 ./orlop console, ps, down          the serial console; what runs; stop\n",
        output::table(
            &["NODE", "VERSION", "SLOT", "CHANNEL", "HEALTH", "SSH"],
            &rows
        ),
        report.nodes[0].name,
        format!("{}/", report.server),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_shows_what_runs_and_what_to_type() {
        let report = Report {
            accel: "tcg (emulation)",
            server: "http://127.0.0.1:8090".into(),
            nodes: vec![UpNode {
                name: "n1".into(),
                ssh_port: 40001,
                dir: "/lab/vm/n1".into(),
                status: serde_json::json!({"version": "1", "slot": "a", "channel": "stable", "health": "healthy"}),
            }],
        };
        let release = Release {
            version: "1".into(),
            dir: "/lab/releases/1".into(),
        };
        insta::assert_snapshot!(summary(&report, &release), @r"

        NODE  VERSION  SLOT  CHANNEL  HEALTH   SSH
        n1    1        a     stable   healthy  127.0.0.1:40001

        What to try next:
          ./orlop ssh                        a shell in n1
          ./orlop ssh -- orlop status        how it sees itself
          ./orlop build --version 2 && ./orlop release publish 2
                                             an update: it is installed within a minute
          ./orlop fleet status               how the update-server sees all nodes
          http://127.0.0.1:8090/             the dashboard
          ./orlop console, ps, down          the serial console; what runs; stop
        ");
    }
}
