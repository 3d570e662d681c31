//! The command line of the original, for the units and scripts in the field that call it by its name.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{ArgAction, Parser};
use cloudinit::datasource::{self, Found};
use cloudinit::finding::has_errors;
use cloudinit::network::Format;
use cloudinit::remote::{self, Remote, Request};
use cloudinit::service::{self, Origin};
use cloudinit::systemd::Live;
use cloudinit::{pipeline, status};
use host::cmdline::Cmdline;

use crate::commands::{self, Exit};
use crate::show;

/// Applies user-data from one source, as coreos-cloudinit did. See `cloudinit --help` for more.
#[derive(Parser, Debug)]
#[command(name = "coreos-cloudinit", version, max_term_width = 100)]
struct Cli {
    /// Read user-data from this file
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Read user-data from this URL
    #[arg(long, value_name = "URL")]
    from_url: Option<String>,
    /// Read data from a config drive that is mounted here
    #[arg(long, value_name = "DIR")]
    from_configdrive: Option<PathBuf>,
    /// Read data from the Azure agent's directory
    #[arg(long, value_name = "DIR")]
    from_waagent: Option<PathBuf>,
    /// Ask EC2's metadata service
    #[arg(long, value_name = "URL", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    from_ec2_metadata: Option<String>,
    /// Ask Google's metadata service
    #[arg(long, value_name = "URL", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    from_gce_metadata: Option<String>,
    /// Ask DigitalOcean's metadata service
    #[arg(long, value_name = "URL", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    from_digitalocean_metadata: Option<String>,
    /// Ask Packet's metadata service
    #[arg(long, value_name = "URL", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    from_packet_metadata: Option<String>,
    /// Read VMware's guestinfo
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    from_vmware_guestinfo: bool,
    /// Read an OVF environment from this file
    #[arg(long, value_name = "FILE")]
    from_vmware_ovf_env: Option<PathBuf>,
    /// Fetch what cloud-config-url= on the kernel command line names
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    from_proc_cmdline: bool,
    /// Take the options that images for this platform had
    #[arg(long, value_name = "NAME")]
    oem: Option<String>,
    /// Read network configuration in this format; networks of known formats are set up anyhow
    #[arg(long, value_name = "FORMAT")]
    convert_netconf: Option<String>,
    /// Taken, but scripts always lie in /var/lib/cloudinit
    #[arg(long, value_name = "DIR", default_value = "/var/lib/coreos-cloudinit")]
    workspace: PathBuf,
    /// The name under which SSH keys are authorized
    #[arg(long, value_name = "NAME", default_value = cloudinit::apply::KEY_NAME)]
    ssh_key_name: String,
    /// Only check the user-data
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    validate: bool,
    /// Exit with 0 even if something fails
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    ignore_failure: bool,
}

/// Go's flags have one dash or two.
fn with_two_dashes(argument: String) -> String {
    match argument.strip_prefix('-') {
        Some(rest) if rest.len() > 1 && !rest.starts_with('-') => format!("-{argument}"),
        _ => argument,
    }
}

pub(crate) fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<Exit> {
    let cli = Cli::parse_from(arguments.map(with_two_dashes));
    let result = act(&cli);
    match (result, cli.ignore_failure) {
        (Err(error), true) => {
            eprintln!("coreos-cloudinit: {error:#} (ignored)");
            Ok(Exit::Fine)
        }
        (Ok(_), true) => Ok(Exit::Fine),
        (result, false) => result,
    }
}

fn act(cli: &Cli) -> anyhow::Result<Exit> {
    if let Some(name) = &cli.convert_netconf
        && Format::named(name).is_none()
    {
        let names = Format::ALL.map(|(name, _)| name).join(", ");
        bail!("--convert-netconf {name}: unknown format (one of {names})");
    }
    let mut found = find(cli)?;
    if cli.validate {
        let findings = pipeline::validate(&pipeline::Input {
            user_data: found.user_data.as_deref(),
            ..pipeline::Input::default()
        });
        let name = cli.from_file.clone().unwrap_or_else(|| "user-data".into());
        commands::out(&show::findings(&name, &findings))?;
        return Ok(match has_errors(&findings) {
            true => Exit::Invalid,
            false => Exit::Fine,
        });
    }
    host::log::init();
    if cli.ssh_key_name != cloudinit::apply::KEY_NAME {
        found.metadata.key_name = Some(cli.ssh_key_name.clone());
    }
    let live = Live::default();
    let root = std::path::Path::new("/");
    commands::import(&mut found, root);
    let origin = Origin::Given(&found);
    let mut status = service::run(root, origin, SystemTime::now(), Some(&live))?;
    if let Some(finished) = service::finish(root, &live)? {
        status = finished;
    }
    eprint!(
        "{}",
        show::findings(status::USER_DATA.as_ref(), &status.findings)
    );
    commands::out(&show::summary(&status))?;
    Ok(commands::code(&status))
}

/// The one source that was named.
fn find(cli: &Cli) -> anyhow::Result<Found> {
    let mut sources: Vec<Remote> = Vec::new();
    let mut found: Vec<Found> = Vec::new();
    if let Some(path) = &cli.from_file {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        // Scripts that apply a file count on the addresses that the boot has found.
        found.push(Found {
            metadata: service::kept_metadata(std::path::Path::new("/")),
            ..file(path.display().to_string(), bytes)
        });
    }
    if let Some(dir) = &cli.from_configdrive {
        found.push(datasource::from_directory(dir)?);
    }
    if let Some(dir) = &cli.from_waagent {
        let path = dir.join("CustomData");
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        found.push(file(path.display().to_string(), bytes));
    }
    if let Some(path) = &cli.from_vmware_ovf_env {
        found.push(datasource::ovf_file(path)?);
    }
    if cli.from_vmware_guestinfo || cli.oem.as_deref() == Some("vmware") {
        found.push(datasource::guestinfo()?.context("guestinfo has no user-data")?);
    }
    if let Some(url) = &cli.from_url {
        let (url, sha256) = (url.clone(), None);
        sources.push(Remote::Url { url, sha256 });
    }
    match (&cli.from_ec2_metadata, cli.oem.as_deref()) {
        (Some(url), _) if !url.is_empty() && !url.starts_with("http://169.254.169.254") => {
            let url = url.clone();
            sources.push(Remote::Ec2At { url });
        }
        (Some(_), _) | (None, Some("ec2-compat" | "ec2")) => sources.push(Remote::Ec2),
        (None, _) => {}
    }
    for (given, name, remote) in [
        (&cli.from_gce_metadata, "gce", Remote::Gce),
        (
            &cli.from_digitalocean_metadata,
            "digitalocean",
            Remote::DigitalOcean,
        ),
        (&cli.from_packet_metadata, "packet", Remote::Packet),
    ] {
        if given.is_some() || cli.oem.as_deref() == Some(name) {
            sources.push(remote);
        }
    }
    if cli.from_proc_cmdline {
        let cmdline = Cmdline::read(std::path::Path::new("/"))?;
        let explicit = remote::explicit(&cmdline);
        if explicit.is_empty() {
            bail!("there is no cloud-config-url= on the kernel command line");
        }
        sources.extend(explicit);
    }
    match (found.len(), sources.len()) {
        (1, 0) => found.pop().context("one was found"),
        (0, 1..) => fetch(sources),
        (0, 0) => bail!("say where user-data comes from, e.g. --from-file (see --help)"),
        _ => bail!("only one source can be used at a time"),
    }
}

fn file(origin: String, bytes: Vec<u8>) -> Found {
    Found {
        origin,
        user_data: Some(bytes),
        ..Found::default()
    }
}

fn fetch(sources: Vec<Remote>) -> anyhow::Result<Found> {
    let request = Request {
        sources,
        ..Request::default()
    };
    let root = std::path::Path::new("/");
    let fetched = remote::fetch(&request, root, Duration::from_secs(60));
    let tried = fetched.tried.join("; ");
    fetched.found.with_context(|| tried)
}
