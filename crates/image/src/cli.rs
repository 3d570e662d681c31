//! `orlop build`: flags to options, steps to a progress display, the summary to text or JSON.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use release::Version;

use crate::fetch::Policy;
use crate::{BuildOptions, Summary, binaries};

/// Builds a release from Debian packages and os/.
#[derive(Clone, Debug, clap::Args)]
pub struct BuildArgs {
    /// Version of the release, such as 2 or 3.1.0
    #[arg(long, default_value = "1")]
    pub version: Version,
    /// Take today's package versions and write them to os/packages.lock
    #[arg(long, conflicts_with = "locked")]
    pub update_lock: bool,
    /// Fail rather than use a package that os/packages.lock does not name
    #[arg(long)]
    pub locked: bool,
    /// Lay the files of DIR over the image (usr/… as on the host; etc/… become defaults)
    #[arg(long, value_name = "DIR")]
    pub overlay: Vec<PathBuf>,
    /// Append to the kernel command line
    #[arg(long, value_name = "ARG")]
    pub cmdline: Vec<String>,
    /// Only hosts of this version or later may update to the release
    #[arg(long, value_name = "VERSION")]
    pub minimum_source_version: Option<Version>,
    /// Hosts that ran the release take none of an earlier epoch any more; what os/epoch says unless told
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// zstd level of the download
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: i32,
    /// Sign with this key (PEM) instead of the lab's own
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Hosts start from the newest root of this TUF repository instead of the lab's own
    #[arg(long, env = "ORLOP_TUF", value_name = "DIR")]
    pub tuf: Option<PathBuf>,
    /// Build even if nothing changed
    #[arg(long)]
    pub force: bool,
    /// Build twice and compare every byte; fails if the images differ
    #[arg(long)]
    pub check_reproducible: bool,
    /// Build in this lab instead of the repository's `.orlop`
    #[arg(long, value_name = "DIR", hide = true)]
    pub lab: Option<PathBuf>,
    /// Say what would be built, and build nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl BuildArgs {
    pub fn options(&self, repo: &Path, lab: &Path) -> BuildOptions {
        BuildOptions {
            repo: repo.to_path_buf(),
            lab: lab.to_path_buf(),
            version: self.version.clone(),
            policy: match (self.update_lock, self.locked) {
                (true, _) => Policy::Update,
                (_, true) => Policy::Locked,
                _ => Policy::Prefer,
            },
            overlays: self.overlay.clone(),
            cmdline: self.cmdline.clone(),
            minimum_source_version: self.minimum_source_version.clone(),
            epoch: self.epoch,
            level: self.level,
            force: self.force,
            directory: None,
            key: self.key.clone(),
            tuf: self.tuf.clone(),
        }
    }
}

pub fn run(args: &BuildArgs, json: bool) -> Result<()> {
    let repo = binaries::find_repo(Path::new("."))?;
    let lab = args.lab.clone().unwrap_or_else(|| repo.join(".orlop"));
    let options = args.options(&repo, &lab);
    if args.dry_run {
        let items = crate::lists::read(&repo.join("os/packages"))?;
        println!(
            "would build version {} from {} packages and what they depend on into {}",
            options.version,
            items.len(),
            options
                .lab
                .join("releases")
                .join(options.version.to_string())
                .display()
        );
        return Ok(());
    }
    let summary = with_progress(&options)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print_summary(&summary);
    }
    if args.check_reproducible {
        let differing = crate::build::reproduce(&options, &|step| eprintln!("  again: {step}"))?;
        anyhow::ensure!(
            differing.is_empty(),
            "a second build of version {} differs in {}",
            options.version,
            differing.join(", ")
        );
        eprintln!("A second build gave the same bytes.");
    }
    Ok(())
}

/// Builds with a spinner on a terminal, and one line per step elsewhere.
pub fn with_progress(options: &BuildOptions) -> Result<Summary> {
    if !std::io::stderr().is_terminal() {
        return crate::build(options, &|step| eprintln!("  {step}"));
    }
    let bar = indicatif::ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(120));
    let result = crate::build(options, &|step| bar.set_message(step.to_owned()));
    bar.finish_and_clear();
    result
}

pub fn print_summary(s: &Summary) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let state = if s.unchanged {
        "is up to date"
    } else {
        "built"
    };
    println!(
        "Release {} of epoch {} {state} in {:.1} s: {}",
        s.version,
        s.epoch,
        s.seconds,
        s.path.display()
    );
    println!(
        "  /usr {:.1} MB, download {:.1} MB, UKI {:.1} MB; {} packages, kernel {}",
        mb(s.usr_bytes),
        mb(s.download_bytes),
        mb(s.uki_bytes),
        s.packages,
        s.kernel
    );
    for extension in &s.extensions {
        println!(
            "  extension {} {:.1} MB, download {:.1} MB",
            extension.name,
            mb(extension.bytes),
            mb(extension.download_bytes)
        );
    }
    println!("  root hash {}", s.root_hash);
}
