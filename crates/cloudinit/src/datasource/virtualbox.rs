//! VirtualBox's guest properties, through `VBoxControl` where somebody brought it. Asking the device itself
//! takes ioctls with pointers in them, which safe Rust does not have.

use std::path::Path;

use super::{Datasource, Found, Probe, SourceError, ovf, tool};

/// Ours, then the one that Ignition has.
const NAMES: [&str; 2] = ["/Orlop/CloudConfig", "/Ignition/Config"];
const HOSTNAME: &str = "/Orlop/Hostname";
const SSH_KEYS: &str = "/Orlop/SSHKeys";
const PROGRAM: &str = "VBoxControl";

pub(super) struct VirtualBox;

impl Datasource for VirtualBox {
    fn name(&self) -> &'static str {
        "virtualbox"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let is = |file: &str, expect: &str| {
            let text = std::fs::read_to_string(probe.path(&format!("/sys/class/dmi/id/{file}")));
            text.is_ok_and(|text| text.trim() == expect)
        };
        if !is("product_name", "VirtualBox") && !is("sys_vendor", "innotek GmbH") {
            return Ok(None);
        }
        let Some(program) = tool::find(probe.root, PROGRAM) else {
            let places = tool::PLACES.join(", ");
            return Err(unsupported(format!(
                "{PROGRAM} is not on this machine (looked in {places}), so they cannot be read"
            )));
        };
        let mut found = Found::default();
        for name in NAMES {
            let Some(text) = property(&program, name)? else {
                continue;
            };
            let encoding = property(&program, &format!("{name}/Encoding"))?;
            let bytes = ovf::unpack(&text, encoding.as_deref().unwrap_or_default())
                .map_err(|problem| unsupported(format!("{name}: {problem}")))?;
            found.origin = format!("virtualbox {name}");
            found.user_data = Some(bytes);
            break;
        }
        found.metadata.hostname = property(&program, HOSTNAME)?;
        if let Some(keys) = property(&program, SSH_KEYS)? {
            let keys = keys.lines().map(str::trim).filter(|key| !key.is_empty());
            found.metadata.ssh_keys = keys.map(str::to_owned).collect();
        }
        if found.user_data.is_none() {
            if found.metadata.hostname.is_none() && found.metadata.ssh_keys.is_empty() {
                return Ok(None);
            }
            found.origin = "virtualbox guest properties".to_owned();
        }
        Ok(Some(found))
    }
}

fn unsupported(problem: impl std::fmt::Display) -> SourceError {
    SourceError::Unsupported {
        problem: format!("guest properties: {problem}"),
    }
}

/// `Value: ` and the text, which may have lines of its own, or that there is none.
fn property(program: &Path, name: &str) -> Result<Option<String>, SourceError> {
    let answer = tool::ask(program, &["--nologo", "guestproperty", "get", name]);
    let bytes = match answer {
        Ok(bytes) => bytes,
        Err(error) => return Err(unsupported(format!("{name}: {error}"))),
    };
    let text = String::from_utf8(bytes)
        .map_err(|_| unsupported(format!("{name}: {PROGRAM} prints what is not UTF-8")))?;
    let Some(value) = text.strip_prefix("Value: ") else {
        return match text.trim().is_empty() || text.starts_with("No value set") {
            true => Ok(None),
            false => {
                let line = text.lines().next().unwrap_or_default();
                Err(unsupported(format!("{name}: {PROGRAM} says {line:?}")))
            }
        };
    };
    // The program ends its answer with a line break of its own.
    let value = value.strip_suffix('\n').unwrap_or(value);
    Ok((!value.trim().is_empty()).then(|| value.to_owned()))
}
