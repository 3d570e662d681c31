//! The files whose content is made, not given: update.conf, environment, drop-ins, hosts, OEM.

use crate::config::{EnvSection, Oem, Update};
use crate::substitute::{NAMES, Variables};

/// Lines of the host stay, ours replace those with the same key, new ones follow by name.
pub(super) fn update_conf(old: &str, update: &Update) -> String {
    merge(
        old,
        update
            .lines()
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
    )
}

/// `/etc/environment` with the addresses; `None` where it says so already.
pub(super) fn environment(old: Option<&str>, addresses: &Variables) -> Option<String> {
    let mut lines: Vec<(String, String)> = NAMES
        .iter()
        .filter_map(|name| {
            let value = addresses.get(name)?;
            Some((
                format!("COREOS_{}", name.to_ascii_uppercase()),
                value.clone(),
            ))
        })
        .collect();
    lines.sort();
    if lines.is_empty() {
        return None;
    }
    let new = merge(old.unwrap_or_default(), lines);
    (old != Some(&new)).then_some(new)
}

fn merge(old: &str, mut lines: Vec<(String, String)>) -> String {
    let mut out = String::new();
    for line in old.lines() {
        let key = line.split_once('=').map(|(key, _)| key.trim());
        match lines
            .iter()
            .position(|(name, _)| Some(name.as_str()) == key)
        {
            Some(index) => {
                let (name, value) = lines.remove(index);
                out.push_str(&format!("{name}={value}\n"));
            }
            None => out.push_str(&format!("{line}\n")),
        }
    }
    for (name, value) in lines {
        out.push_str(&format!("{name}={value}\n"));
    }
    out
}

/// `more` at the end of `old`, where it is not in there already.
pub(super) fn appended(old: Vec<u8>, more: &[u8]) -> Vec<u8> {
    let there = more.is_empty() || old.windows(more.len()).any(|part| part == more);
    match there {
        true => old,
        false => [old, more.to_vec()].concat(),
    }
}

/// The drop-in that hands a section to its service.
pub(super) fn drop_in(section: &EnvSection) -> Option<String> {
    let lines: String = section
        .iter()
        .map(|(name, value)| format!("Environment=\"{name}={value}\"\n"))
        .collect();
    (!lines.is_empty()).then(|| format!("[Service]\n{lines}"))
}

/// flannel reads a plain file; the original ends it without a line break.
pub(super) fn env_file(section: &EnvSection) -> Option<String> {
    let lines: Vec<String> = section
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

pub(super) fn oem_release(oem: &Oem) -> String {
    format!(
        "ID={}\nVERSION_ID={}\nNAME={:?}\nHOME_URL={:?}\nBUG_REPORT_URL={:?}\n",
        oem.id, oem.version_id, oem.name, oem.home_url, oem.bug_report_url
    )
}
