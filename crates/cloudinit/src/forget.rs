//! Deleting user-data from VMware's guestinfo, where whoever can read a machine's settings can read it too.
//!
//! Only where somebody asks for it, and only after it was applied: from then on this host has the one copy,
//! `/var/lib/cloudinit/user-data`, which counts as long as guestinfo says nothing new.

use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::datasource::{Found, METADATA, tool};
use crate::service;
use crate::status::put;

/// The keys that are to be deleted, for the service that does it.
pub const NOTE: &str = "/run/cloudinit/forget.json";
pub const UNIT: &str = "cloudinit-forget.service";
/// That it was done, and on which machine: a copy of its disk is another one.
const MARK: &str = "/var/lib/cloudinit/forgotten.json";

/// What guestinfo says instead: an empty document, as cloud-init has it.
pub(crate) const NOTHING: &str = "---";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Forgotten {
    machine: Option<String>,
    keys: Vec<String>,
}

/// Which machine this is, as its firmware says.
pub(crate) fn machine(root: &Path) -> Option<String> {
    let uuid = std::fs::read_to_string(host::under(root, "/sys/class/dmi/id/product_uuid")).ok()?;
    Some(uuid.trim().to_ascii_lowercase())
}

/// Notes down what is to be deleted.
pub(crate) fn note(root: &Path, keys: &[String]) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(keys)?;
    Ok(put(root, NOTE, &bytes, 0o600)?)
}

/// What guestinfo said before it was deleted, if it has said nothing since.
pub(crate) fn recall(root: &Path, found: Option<Found>) -> Option<Found> {
    let has_data = |found: &Found| found.user_data.is_some();
    let other_source = |found: &Found| !found.origin.starts_with("vmware ");
    if found
        .as_ref()
        .is_some_and(|f| has_data(f) || other_source(f))
    {
        return found;
    }
    let mark = std::fs::read(host::under(root, MARK)).unwrap_or_default();
    let Ok(mark) = serde_json::from_slice::<Forgotten>(&mark) else {
        return found;
    };
    if mark.machine.is_none() || mark.machine != machine(root) {
        return found;
    }
    let Some(kept) = service::kept(root) else {
        return found;
    };
    let origin = "vmware guestinfo, before it was deleted".to_owned();
    let Some(mut found) = found else {
        return Some(Found { origin, ..kept });
    };
    let (now, then) = (&mut found.metadata, &kept.metadata);
    if now.instance_id.is_some() && now.instance_id != then.instance_id {
        return Some(found);
    }
    found.origin = origin;
    if !mark.keys.iter().any(|key| key == METADATA) {
        found.user_data = kept.user_data;
        return Some(found);
    }
    now.instance_id.clone_from(&then.instance_id);
    now.network = now.network.take().or(then.network.clone());
    Some(found.completed(kept))
}

/// Deletes what was noted down. The keys, or `None` where there is nothing to delete.
pub fn run(root: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let note = host::under(root, NOTE);
    let Ok(bytes) = std::fs::read(&note) else {
        return Ok(None);
    };
    let keys: Vec<String> =
        serde_json::from_slice(&bytes).with_context(|| note.display().to_string())?;
    let tool = Tool::find(root)?;
    for key in &keys {
        tool.delete(key)
            .with_context(|| format!("{key} was not deleted"))?;
    }
    let done = Forgotten {
        machine: machine(root),
        keys: keys.clone(),
    };
    put(root, MARK, &serde_json::to_vec(&done)?, 0o600)?;
    host::atomic::remove(&note)?;
    Ok(Some(keys))
}

/// Both take a question to the hypervisor and print its answer.
struct Tool {
    program: std::path::PathBuf,
    before: &'static [&'static str],
}

impl Tool {
    fn find(root: &Path) -> anyhow::Result<Self> {
        let known: [(&str, &[&str]); 2] = [("vmware-rpctool", &[]), ("vmtoolsd", &["--cmd"])];
        for (name, before) in known {
            if let Some(program) = tool::find(root, name) {
                return Ok(Self { program, before });
            }
        }
        bail!(
            "the user-data stays in guestinfo: neither vmware-rpctool nor vmtoolsd is on this machine (looked in {}). \
             Bring open-vm-tools and start {UNIT} again, or delete it from outside: \
             govc vm.change -vm NAME -e guestinfo.userdata={NOTHING}",
            tool::PLACES.join(", ")
        )
    }

    fn ask(&self, question: &str) -> Result<Vec<u8>, host::child::ChildError> {
        let arguments: Vec<&str> = self.before.iter().copied().chain([question]).collect();
        tool::ask(&self.program, &arguments)
    }

    /// Sets it to nothing, and asks whether it is: a setting may be closed to guests.
    fn delete(&self, key: &str) -> anyhow::Result<()> {
        let value = match key.ends_with(".encoding") {
            true => " ",
            false => NOTHING,
        };
        self.ask(&format!("info-set {key} {value}"))?;
        // A key without a value may be an error to the program.
        let answer = self.ask(&format!("info-get {key}")).unwrap_or_default();
        if !matches!(answer.trim_ascii(), b"" | b"---") {
            bail!("the hypervisor took the new value and still gives the old one");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;
    use crate::service::Origin;
    use crate::status::{State, Status};

    /// A stand-in for the program: it writes its calls down, keeps what it is told in files, and answers from them.
    const STAND_IN: &str = r#"#!/bin/sh
here=${0%/*}
printf '%s|' "$@" >>"$here/calls"; echo >>"$here/calls"
[ "$1" = --cmd ] && shift
set -- "${1%% *}" "${1#* }"
key=${2%% *}
case $1 in
info-set) [ -e "$here/closed" ] || printf '%s\n' "${2#* }" >"$here/$key" ;;
info-get) cat "$here/$key" ;;
esac
"#;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(tool: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.file("/sys/class/dmi/id/product_uuid", "UUID-1\n");
            if !tool.is_empty() {
                machine.file(&format!("/opt/bin/{tool}"), STAND_IN);
                let path = machine.path(&format!("/opt/bin/{tool}"));
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            machine
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            host::under(self.0.path(), path)
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn text(&self, path: &str) -> String {
            std::fs::read_to_string(self.path(path)).unwrap_or_default()
        }

        /// Applies user-data that guestinfo gave.
        fn apply(&self, user_data: &str) -> Status {
            self.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\n");
            self.file("/etc/group", "root:x:0:\n");
            let mut found = Found {
                origin: "vmware guestinfo".to_owned(),
                user_data: Some(user_data.as_bytes().to_vec()),
                forget: vec!["guestinfo.userdata".to_owned()],
                ..Found::default()
            };
            found.metadata.hostname = Some("old".to_owned());
            let from = Origin::Given(&found);
            crate::service::run(self.0.path(), from, SystemTime::UNIX_EPOCH, None).unwrap()
        }

        fn note(&self) -> bool {
            self.path(NOTE).exists()
        }
    }

    #[test]
    fn each_program_is_asked_as_it_wants_to_be() {
        let keys = [
            "guestinfo.userdata".to_owned(),
            "guestinfo.userdata.encoding".to_owned(),
        ];
        for (tool, before) in [("vmware-rpctool", ""), ("vmtoolsd", "--cmd|")] {
            let machine = Machine::new(tool);
            let root = machine.0.path();
            assert_eq!(run(root).unwrap(), None);
            note(root, &keys).unwrap();
            assert_eq!(run(root).unwrap().unwrap(), keys);
            let expect = [
                "info-set guestinfo.userdata ---",
                "info-get guestinfo.userdata",
                "info-set guestinfo.userdata.encoding  ",
                "info-get guestinfo.userdata.encoding",
            ];
            let expect = expect.map(|call| format!("{before}{call}|\n")).concat();
            assert_eq!(machine.text("/opt/bin/calls"), expect);
            assert_eq!(machine.text("/opt/bin/guestinfo.userdata"), "---\n");
            assert!(!machine.note());
            assert_eq!(run(root).unwrap(), None);
        }
    }

    #[test]
    fn what_cannot_be_deleted_is_said_and_stays_noted() {
        let machine = Machine::new("");
        let root = machine.0.path();
        note(root, &["guestinfo.userdata".to_owned()]).unwrap();
        let error = format!("{:#}", run(root).unwrap_err());
        assert!(
            error.starts_with("the user-data stays in guestinfo: neither vmware-rpctool nor"),
            "{error}"
        );
        let machine = Machine::new("vmware-rpctool");
        let root = machine.0.path();
        machine.file("/opt/bin/closed", "");
        machine.file("/opt/bin/guestinfo.userdata", "secret\n");
        note(root, &["guestinfo.userdata".to_owned()]).unwrap();
        let error = format!("{:#}", run(root).unwrap_err());
        assert_eq!(
            error,
            "guestinfo.userdata was not deleted: the hypervisor took the new value and still gives the old one"
        );
        assert!(machine.note());
        assert!(!machine.path(MARK).exists());
    }

    #[test]
    fn only_what_was_applied_is_deleted() {
        let machine = Machine::new("");
        let status = machine.apply("#cloud-config\nhostname: [a]\n");
        assert_eq!(status.state, State::Invalid);
        assert!(!machine.note());
        let status = machine.apply("#cloud-config\nhostname: a\n");
        assert_eq!(status.state, State::Applied, "{status:?}");
        assert_eq!(machine.text(NOTE), r#"["guestinfo.userdata"]"#);
    }

    /// Where a URL gave the user-data, guestinfo's was not used.
    #[test]
    fn what_was_not_used_is_not_deleted() {
        let guestinfo = Found {
            user_data: Some(b"#!/bin/sh\n".to_vec()),
            forget: vec!["guestinfo.userdata".to_owned()],
            ..Found::default()
        };
        let url = Found {
            user_data: Some(b"#cloud-config\n".to_vec()),
            ..Found::default()
        };
        assert_eq!(url.completed(guestinfo.clone()).forget, [""; 0]);
        let nothing = Found::default();
        assert_eq!(nothing.completed(guestinfo).forget, ["guestinfo.userdata"]);
    }

    #[test]
    fn after_it_the_copy_counts_until_guestinfo_says_something_new() {
        let machine = Machine::new("vmware-rpctool");
        let root = machine.0.path();
        machine.apply("#cloud-config\nhostname: a\n");
        let guestinfo = |user_data: Option<&str>| {
            let mut found = Found {
                origin: "vmware guestinfo".to_owned(),
                user_data: user_data.map(|text| text.as_bytes().to_vec()),
                ..Found::default()
            };
            found.metadata.hostname = Some("new".to_owned());
            found
        };
        assert!(recall(root, None).is_none(), "nothing was deleted yet");
        run(root).unwrap();
        let found = recall(root, None).unwrap();
        assert_eq!(found.metadata.hostname.as_deref(), Some("old"));
        let found = recall(root, Some(guestinfo(None))).unwrap();
        let text = found.user_data.unwrap();
        assert_eq!(text, b"#cloud-config\nhostname: a\n");
        assert_eq!(found.metadata.hostname.as_deref(), Some("new"));
        assert_eq!(found.origin, "vmware guestinfo, before it was deleted");
        let found = recall(root, Some(guestinfo(Some("#!/bin/sh\n")))).unwrap();
        assert_eq!(found.user_data.unwrap(), b"#!/bin/sh\n");
        let mut other = guestinfo(None);
        other.origin = "nocloud /dev/sr0".to_owned();
        assert!(recall(root, Some(other)).unwrap().user_data.is_none());
        let mut other = guestinfo(None);
        other.metadata.instance_id = Some("i-2".to_owned());
        assert!(recall(root, Some(other)).unwrap().user_data.is_none());
        // A copy of the disk is another machine.
        machine.file("/sys/class/dmi/id/product_uuid", "UUID-2\n");
        assert!(recall(root, None).is_none());
    }
}
