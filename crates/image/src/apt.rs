//! Resolving and fetching Debian packages with the machine's own apt, in a private configuration:
//! no root, nothing of the machine's package state touched, signatures checked by apt.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::lock::{Locked, sha256_file};

/// The mirror's base URIs: the archive, and the one that carries `-security` suites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub archive: String,
    pub security: String,
}

impl Mirror {
    /// `ORLOP_DEBIAN_MIRROR` if set, else what this machine's own apt sources name.
    pub fn find(root: &Path) -> Result<Self> {
        if let Ok(base) = std::env::var("ORLOP_DEBIAN_MIRROR") {
            let base = base.trim_end_matches('/').to_owned();
            let security = std::env::var("ORLOP_DEBIAN_SECURITY_MIRROR")
                .unwrap_or_else(|_| format!("{base}-security"));
            return Ok(Self {
                archive: base,
                security,
            });
        }
        let etc = root.join("etc/apt");
        let mut files = vec![etc.join("sources.list")];
        if let Ok(dir) = fs::read_dir(etc.join("sources.list.d")) {
            files.extend(dir.flatten().map(|e| e.path()));
        }
        files.sort();
        let mut entries = Vec::new();
        for file in files {
            if let Ok(text) = fs::read_to_string(&file) {
                entries.extend(parse_sources(&text));
            }
        }
        Self::choose(&entries).context(
            "the apt sources of this machine name no Debian archive; \
             set ORLOP_DEBIAN_MIRROR to the base URI of a Debian mirror",
        )
    }

    fn choose(entries: &[(String, String)]) -> Option<Self> {
        let is_suite =
            |s: &str| ["bookworm", "trixie", "forky", "sid", "stable", "testing"].contains(&s);
        let archive = entries.iter().find(|(_, suite)| is_suite(suite))?.0.clone();
        let security = entries
            .iter()
            .find(|(_, suite)| suite.ends_with("-security"))
            .map_or_else(|| format!("{archive}-security"), |(uri, _)| uri.clone());
        Some(Self { archive, security })
    }
}

/// (URI, suite) pairs of one-line and deb822 sources (sources.list(5)).
fn parse_sources(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut uris = Vec::new();
    let mut suites = Vec::new();
    for line in text.lines().chain([""]) {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("deb ") {
            let rest = match rest.trim_start().strip_prefix('[') {
                Some(options) => options.split_once(']').map_or("", |x| x.1),
                None => rest,
            };
            let mut words = rest.split_whitespace();
            if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                out.push((uri.trim_end_matches('/').to_owned(), suite.to_owned()));
            }
        } else if let Some(rest) = line.strip_prefix("URIs:") {
            uris = rest
                .split_whitespace()
                .map(|u| u.trim_end_matches('/').to_owned())
                .collect();
        } else if let Some(rest) = line.strip_prefix("Suites:") {
            suites = rest.split_whitespace().map(str::to_owned).collect();
        } else if line.is_empty() {
            for uri in &uris {
                for suite in &suites {
                    out.push((uri.clone(), suite.clone()));
                }
            }
            uris.clear();
            suites.clear();
        }
    }
    out
}

/// A private apt: its own lists, cache and (empty) package state.
pub struct Apt {
    config: PathBuf,
    archives: PathBuf,
}

impl Apt {
    pub fn new(cache: &Path, mirror: &Mirror, suite: &str) -> Result<Self> {
        let dir = std::path::absolute(cache.join("apt"))?;
        let archives = dir.join("cache/archives");
        for sub in [
            "lists/partial",
            "cache/archives/partial",
            "state",
            "etc/apt.conf.d",
            "etc/preferences.d",
        ] {
            let path = dir.join(sub);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        if !Path::new(keyring).exists() {
            bail!("{keyring} is missing; install the package debian-archive-keyring");
        }
        let Mirror { archive, security } = mirror;
        fs::write(
            dir.join("sources.list"),
            format!(
                "deb [signed-by={keyring}] {archive} {suite} main\n\
                 deb [signed-by={keyring}] {archive} {suite}-updates main\n\
                 deb [signed-by={keyring}] {security} {suite}-security main\n"
            ),
        )?;
        fs::write(dir.join("status"), "")?;
        let config = dir.join("apt.conf");
        let d = dir.display();
        fs::write(
            &config,
            format!(
                "Dir \"{d}\";\nDir::State \"{d}/state\";\nDir::State::lists \"{d}/lists\";\n\
                 Dir::State::status \"{d}/status\";\nDir::Cache \"{d}/cache\";\nDir::Etc \"{d}/etc\";\n\
                 Dir::Etc::SourceList \"{d}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::Etc::TrustedParts \"/usr/share/keyrings/\";\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures {{\"amd64\"}};\n\
                 APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nDebug::NoLocking \"true\";\n"
            ),
        )?;
        Ok(Self { config, archives })
    }

    /// Also takes lists whose date of expiry has passed, as a mirror has them that is not brought up to date any more.
    /// Signatures are checked all the same. Not for what goes into an image: who withholds updates could do the same.
    pub fn with_expired_lists(self) -> Result<Self> {
        let mut text = fs::read_to_string(&self.config)
            .with_context(|| format!("cannot read {}", self.config.display()))?;
        text += "Acquire::Check-Valid-Until \"false\";\n";
        fs::write(&self.config, text)
            .with_context(|| format!("cannot write {}", self.config.display()))?;
        Ok(self)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    pub fn update(&self) -> Result<()> {
        run(
            self.command("apt-get").args(["update", "-q"]),
            "fetching the package lists",
        )
        .map(drop)
    }

    /// The closure of `packages` as `name=version` pairs; `exclude` are never chosen.
    pub fn resolve(
        &self,
        packages: &[String],
        exclude: &[String],
    ) -> Result<BTreeSet<(String, String)>> {
        let mut command = self.command("apt-get");
        command.args(["install", "--simulate", "-q"]).args(packages);
        command.args(exclude.iter().map(|p| format!("{p}-")));
        let out = run(&mut command, "resolving the packages")?;
        let mut chosen = BTreeSet::new();
        for line in out.lines() {
            // Inst libc6 (2.41-12 Debian:13.0/stable [amd64]) …
            let Some(rest) = line.strip_prefix("Inst ") else {
                continue;
            };
            let mut words = rest.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next()) {
                chosen.insert((name.to_owned(), version.trim_start_matches('(').to_owned()));
            }
        }
        if chosen.is_empty() {
            bail!("apt resolved the packages to nothing");
        }
        Ok(chosen)
    }

    /// Downloads what is not cached yet; apt checks every file against the signed lists.
    pub fn download(&self, packages: &BTreeSet<(String, String)>) -> Result<Vec<Locked>> {
        let missing: Vec<String> = packages
            .iter()
            .filter(|(name, version)| self.cached(name, version).is_none())
            .map(|(name, version)| format!("{name}={version}"))
            .collect();
        if !missing.is_empty() {
            let mut command = self.command("apt-get");
            command
                .arg("download")
                .arg("-q")
                .args(&missing)
                .current_dir(&self.archives);
            run(&mut command, "downloading packages")?;
        }
        packages
            .iter()
            .map(|(name, version)| {
                let path = self
                    .cached(name, version)
                    .with_context(|| format!("{name} {version} was not downloaded"))?;
                Ok(Locked {
                    name: name.clone(),
                    version: version.clone(),
                    sha256: sha256_file(&path)?,
                })
            })
            .collect()
    }

    pub fn cached(&self, name: &str, version: &str) -> Option<PathBuf> {
        // apt escapes the epoch's colon in file names.
        let version = version.replace(':', "%3a");
        ["amd64", "all"]
            .iter()
            .map(|arch| self.archives.join(format!("{name}_{version}_{arch}.deb")))
            .find(|p| p.exists())
    }
}

fn run(command: &mut Command, what: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command
        .output()
        .with_context(|| format!("{what}: cannot run {program}; is it installed?"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        let tail: Vec<&str> = text.lines().filter(|l| l.starts_with("E:")).collect();
        let tail = if tail.is_empty() {
            text.into_owned()
        } else {
            tail.join("\n")
        };
        bail!("{what} failed ({program}, {}):\n{tail}", out.status);
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_source_formats_are_read() {
        let old = "# c\ndeb [signed-by=/x arch=amd64] http://m.test/debian trixie main\ndeb-src http://m.test/debian trixie main\n";
        assert_eq!(
            parse_sources(old),
            [("http://m.test/debian".into(), "trixie".into())]
        );
        let new = "Types: deb\nURIs: http://m.test/d/\nSuites: bookworm bookworm-updates\n\nTypes: deb\nURIs: http://s.test/d\nSuites: bookworm-security\n";
        let entries = parse_sources(new);
        assert_eq!(entries.len(), 3);
        assert_eq!(
            Mirror::choose(&entries).unwrap(),
            Mirror {
                archive: "http://m.test/d".into(),
                security: "http://s.test/d".into()
            }
        );
    }

    #[test]
    fn third_party_sources_are_no_mirror() {
        let entries = parse_sources("deb https://x.test/apt nodistro main\n");
        assert_eq!(Mirror::choose(&entries), None);
    }
}
