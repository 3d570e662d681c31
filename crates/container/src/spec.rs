//! What a container is to be: validated values that a plan is made of.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{Invalid, Name};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    pub name: Name,
    pub image: Name,
    pub limits: Limits,
    /// Run on a snapshot that is gone afterwards.
    pub ephemeral: bool,
    pub binds: Vec<Bind>,
    pub network: Network,
    pub users: Users,
    /// Start the image's own init rather than `command`.
    pub boot: bool,
    /// Empty: the image's shell.
    pub command: Vec<String>,
    pub console: Console,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    pub memory: Option<Memory>,
    pub cpus: Option<Cpus>,
    pub pids: Option<Pids>,
}

/// Bytes of memory; `128M` is 128 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Memory(pub u64);

impl FromStr for Memory {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |hint| Invalid::new("memory", text, hint);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let shift = match text[digits..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(invalid("use a number with K, M, G or T, e.g. 128M")),
        };
        let number: u64 = text[..digits]
            .parse()
            .map_err(|_| invalid("use a number with K, M, G or T, e.g. 128M"))?;
        match number.checked_mul(1 << shift) {
            Some(bytes) if bytes >= 4 << 20 => Ok(Self(bytes)),
            Some(_) => Err(invalid("nothing runs in less than 4M")),
            None => Err(invalid("that is more than a machine can have")),
        }
    }
}

/// Hundredths of a processor; `0.5` is half of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cpus(pub u32);

impl FromStr for Cpus {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || {
            Invalid::new(
                "cpus",
                text,
                "use a number of processors from 0.01 to 1024, e.g. 0.5",
            )
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole)
            || !digits(part)
            || part.len() > 2
            || (whole.is_empty() && part.is_empty())
        {
            return Err(invalid());
        }
        let whole: u32 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| invalid())?
        };
        let part: u32 = format!("{part:0<2}").parse().map_err(|_| invalid())?;
        match whole.checked_mul(100).and_then(|n| n.checked_add(part)) {
            Some(hundredths @ 1..=102_400) => Ok(Self(hundredths)),
            _ => Err(invalid()),
        }
    }
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pids(pub u32);

impl FromStr for Pids {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            // systemd-nspawn itself takes three.
            Ok(pids @ 5..=4_194_304) => Ok(Self(pids)),
            _ => Err(Invalid::new(
                "pids",
                text,
                "use a number from 5 to 4194304, e.g. 100",
            )),
        }
    }
}

/// `SRC:DST` or `SRC:DST:ro`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
    /// Show the owner of `source` as root inside. Not every file system can.
    pub map_owner: bool,
}

impl FromStr for Bind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |hint: &str| Invalid::new("bind", text, hint);
        let (source, target, read_only) = match *text.split(':').collect::<Vec<_>>().as_slice() {
            [source, target] => (source, target, false),
            [source, target, "ro"] => (source, target, true),
            [source, target, "rw"] => (source, target, false),
            _ => {
                return Err(invalid(
                    "use SRC:DST or SRC:DST:ro, e.g. /srv/data:/data:ro",
                ));
            }
        };
        if !source.starts_with('/') || !target.starts_with('/') {
            return Err(invalid("both paths must be absolute, e.g. /srv/data:/data"));
        }
        if target == "/" || target.split('/').any(|part| part == "..") {
            return Err(invalid(
                "the target must be a path below the container's root",
            ));
        }
        Ok(Self {
            source: source.into(),
            target: target.into(),
            read_only,
            map_owner: true,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The host's own interfaces and addresses
    #[default]
    Host,
    /// A link of its own to the host; addresses by DHCP from the host
    Private,
    /// Loopback only
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Users {
    /// A range of user ids of its own: root inside is nobody outside
    #[default]
    Pick,
    /// The host's user ids, in a namespace without rights outside
    Identity,
}

/// Where the container's input and output go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// The caller's terminal.
    Terminal,
    /// The caller's pipes and files.
    Pipe,
    /// The journal: the caller does not wait.
    Detached,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        match units
            .iter()
            .find(|(shift, _)| self.0.is_multiple_of(1 << shift))
        {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        for (text, bytes, shown) in [
            ("128M", 128 << 20, "128M"),
            ("1g", 1 << 30, "1G"),
            ("1025MiB", 1025 << 20, "1025M"),
            ("5000000", 5_000_000, "5000000"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!((memory.0, memory.to_string().as_str()), (bytes, shown));
        }
        for bad in [
            "",
            "M",
            "1X",
            "1.5G",
            "-1",
            "4095K",
            "99999999T",
            "128 M",
            "ä",
        ] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        for (text, hundredths) in [
            ("0.5", 50),
            ("1", 100),
            (".25", 25),
            ("2.", 200),
            ("0.01", 1),
            ("1024", 102_400),
        ] {
            assert_eq!(text.parse(), Ok(Cpus(hundredths)), "{text}");
        }
        for bad in ["", ".", "0", "0.001", "-1", "1025", "1,5", "one", "+1"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
        assert_eq!("100".parse(), Ok(Pids(100)));
        assert!("4".parse::<Pids>().is_err() && "x".parse::<Pids>().is_err());
    }

    #[test]
    fn errors_say_field_value_and_hint() {
        let check = |error: Invalid, expect: &str| assert_eq!(error.to_string(), expect);
        check(
            "1X".parse::<Memory>().unwrap_err(),
            "memory \"1X\": use a number with K, M, G or T, e.g. 128M",
        );
        check(
            "x".parse::<Cpus>().unwrap_err(),
            "cpus \"x\": use a number of processors from 0.01 to 1024, e.g. 0.5",
        );
        check(
            "/a".parse::<Bind>().unwrap_err(),
            "bind \"/a\": use SRC:DST or SRC:DST:ro, e.g. /srv/data:/data:ro",
        );
        check(
            "a:/b".parse::<Bind>().unwrap_err(),
            "bind \"a:/b\": both paths must be absolute, e.g. /srv/data:/data",
        );
        check(
            "/a:/b/../c".parse::<Bind>().unwrap_err(),
            "bind \"/a:/b/../c\": the target must be a path below the container's root",
        );
    }

    #[test]
    fn binds() {
        let bind: Bind = "/srv:/data:ro".parse().unwrap();
        assert_eq!(
            (bind.read_only, bind.target.to_str()),
            (true, Some("/data"))
        );
        assert!(!"/srv:/data".parse::<Bind>().unwrap().read_only);
        assert!("/srv:/data:x".parse::<Bind>().is_err());
    }
}
