//! What is known about a node: `node.json` in its directory, written whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::accel::Accel;
use crate::image::Firmware;
use crate::lab::{Lab, Release};
use crate::plan::{Boot, Plan};
use crate::process::ProcessId;
use crate::replay;
use crate::seed::Datasource;

/// How a node starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum BootMode {
    /// Through the firmware, as a real machine.
    #[default]
    Uefi,
    /// Kernel and initrd handed over by QEMU.
    Direct,
}

impl FromStr for BootMode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "uefi" => Ok(Self::Uefi),
            "direct" => Ok(Self::Direct),
            other => bail!("{other:?} is no boot mode; there are uefi and direct"),
        }
    }
}

impl std::fmt::Display for BootMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uefi => "uefi",
            Self::Direct => "direct",
        })
    }
}

/// A node, running or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, also its directory's.
    pub name: String,
    /// The release its disk was made from. It may have updated itself since.
    pub version: String,
    /// How it starts.
    pub boot: BootMode,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The port of 127.0.0.1 that leads to its SSH.
    pub ssh_port: u16,
    /// NoCloud's instance-id: the same as long as the disk is the same.
    pub instance: String,
    /// How it gets its user-data.
    #[serde(default)]
    pub datasource: Datasource,
    /// More QEMU arguments.
    #[serde(default)]
    pub extra: Vec<String>,
    /// More of the kernel's command line, where QEMU loads the kernel.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// Its QEMU, if it was started.
    #[serde(default)]
    pub process: Option<ProcessId>,
}

const FILE: &str = "node.json";

impl Node {
    /// Reads a node's record; `None` where there is none.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let node = serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{} is damaged; remove {} to start over",
                path.display(),
                dir.display()
            )
        })?;
        Ok(Some(node))
    }

    /// Writes the record.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let part = dir.join(format!("{FILE}.part"));
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Its QEMU, if that still runs. The start time guards against a reused pid, the command line against a reboot of the
    /// workstation that repeats both.
    pub fn running(&self, dir: &Path) -> Option<&ProcessId> {
        let process = self.process.as_ref().filter(|process| process.is_alive())?;
        let cmdline = fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
        let pidfile = dir.join("qemu.pid");
        let ours = cmdline
            .split(|byte| *byte == 0)
            .any(|word| word == pidfile.as_os_str().as_encoded_bytes());
        ours.then_some(process)
    }

    /// What QEMU has to be told to run it.
    pub fn plan(&self, dir: &Path, release: &Release, accel: Accel) -> Result<Plan> {
        let boot = match self.boot {
            BootMode::Uefi => Boot::Uefi {
                code: Firmware::find()?.code,
            },
            BootMode::Direct => Boot::Direct {
                kernel: release.kernel(),
                initrd: release.initrd(),
                cmdline: [with_console(&release.cmdline()?)]
                    .iter()
                    .chain(&self.cmdline)
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(" "),
            },
        };
        Ok(Plan {
            name: self.name.clone(),
            dir: dir.to_owned(),
            accel,
            boot,
            memory_mib: self.memory_mib,
            cpus: 2,
            ssh_port: self.ssh_port,
            datasource: Some(self.datasource),
            extra: self.extra.clone(),
            recorded: dir.join(replay::WRITES).exists(),
            incoming: false,
        })
    }
}

fn with_console(cmdline: &str) -> String {
    if cmdline.contains("console=ttyS0") {
        cmdline.to_owned()
    } else {
        format!("{cmdline} console=ttyS0")
    }
}

/// All nodes of the lab, by name.
pub fn all(lab: &Lab) -> Result<Vec<(PathBuf, Node)>> {
    let dir = lab.nodes();
    let mut nodes = Vec::new();
    if !dir.exists() {
        return Ok(nodes);
    }
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if let Some(node) = Node::load(&path)? {
            nodes.push((path, node));
        }
    }
    nodes.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    Ok(nodes)
}

/// The node that a command without a name means: the only one, or the first.
pub fn pick(lab: &Lab, name: Option<&str>) -> Result<(PathBuf, Node)> {
    let nodes = all(lab)?;
    let names = nodes
        .iter()
        .map(|(_, node)| node.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    match name {
        None => nodes
            .into_iter()
            .next()
            .context("there is no node; ./orlop up makes one"),
        Some(name) => nodes
            .into_iter()
            .find(|(_, node)| node.name == name)
            .with_context(|| {
                format!(
                    "there is no node {name:?}; there are: {}",
                    if names.is_empty() { "none" } else { &names }
                )
            }),
    }
}

#[cfg(test)]
pub(crate) fn sample() -> Node {
    Node {
        name: "n1".into(),
        version: "1".into(),
        boot: BootMode::Uefi,
        memory_mib: 1024,
        ssh_port: 2222,
        instance: "n1-1".into(),
        datasource: Datasource::default(),
        extra: vec![],
        cmdline: vec![],
        process: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_writing_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Node::load(dir.path()).unwrap(), None);
        sample().save(dir.path()).unwrap();
        assert_eq!(Node::load(dir.path()).unwrap(), Some(sample()));
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Node::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("node.json is damaged"), "{error}");
    }

    #[test]
    fn a_living_process_that_is_not_our_qemu_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = sample();
        node.process = Some(ProcessId::of(std::process::id()).unwrap());
        assert_eq!(node.running(dir.path()), None);
    }

    #[test]
    fn the_first_node_is_meant_when_none_is_named() {
        let repo = tempfile::tempdir().unwrap();
        let lab = Lab::open(repo.path()).unwrap();
        assert!(
            pick(&lab, None)
                .unwrap_err()
                .to_string()
                .contains("./orlop up")
        );
        for name in ["n2", "n1"] {
            let dir = lab.nodes().join(name);
            fs::create_dir_all(&dir).unwrap();
            Node {
                name: name.into(),
                ..sample()
            }
            .save(&dir)
            .unwrap();
        }
        assert_eq!(pick(&lab, None).unwrap().1.name, "n1");
        assert_eq!(pick(&lab, Some("n2")).unwrap().1.name, "n2");
        let error = pick(&lab, Some("n3")).unwrap_err().to_string();
        assert_eq!(error, "there is no node \"n3\"; there are: n1, n2");
    }
}
