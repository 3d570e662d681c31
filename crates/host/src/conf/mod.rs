//! `update.conf`: which releases this host follows and when it may reboot.
//!
//! `/usr/share/orlop/update.conf` holds the release's defaults, `/etc/coreos/update.conf` the
//! host's own settings; the later line wins. Three stages: fragments (lines with their origin),
//! merged (one value per key), validated ([`UpdateConf`], which cannot hold nonsense).

mod drop_in;
mod edit;
mod parse;
mod value;

use std::path::Path;
use std::time::Duration;

pub use edit::follow;
pub use parse::{ConfError, Warning};
pub use value::{
    RebootStrategy, RebootType, Weekday, Window, WindowStart, format_duration, parse_duration,
    parse_window_start,
};

use parse::{Fragment, Merged, fragment};
use release::Channel;
use value::{parse_channel, parse_group, parse_rate, parse_server, parse_strategy, parse_type};

/// Later files win.
pub const FILES: [&str; 2] = ["/usr/share/orlop/update.conf", "/etc/coreos/update.conf"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateConf {
    /// `GROUP`: the channel, in the form that [`release::Channel`] takes.
    pub group: String,
    /// `CHANNEL`: whose signed releases are taken, where `GROUP` names a group of the server's and no
    /// channel.
    pub channel: Option<Channel>,
    /// `DOWNLOAD_RATE`: bytes per second that a download may take.
    pub download_rate: Option<u64>,
    /// `SERVER`: the Omaha URL; `None` when updates are switched off (`SERVER=disabled`, or no line).
    pub server: Option<String>,
    /// `REBOOT_STRATEGY`.
    pub reboot_strategy: RebootStrategy,
    /// `REBOOT_TYPE`.
    pub reboot_type: RebootType,
    /// `POLL_INTERVAL`.
    pub poll_interval: Duration,
    /// `REBOOT_WINDOW_START` and `REBOOT_WINDOW_LENGTH`; `None`: any time is fine.
    pub reboot_window: Option<Window>,
    /// Lines that had no effect; worth a line in the log.
    pub warnings: Vec<Warning>,
}

impl Default for UpdateConf {
    fn default() -> Self {
        Self {
            group: "stable".to_owned(),
            channel: None,
            download_rate: None,
            server: None,
            reboot_strategy: RebootStrategy::Reboot,
            reboot_type: RebootType::Hard,
            poll_interval: Duration::from_secs(45 * 60),
            reboot_window: None,
            warnings: Vec::new(),
        }
    }
}

impl UpdateConf {
    /// Reads both files; either may be absent.
    pub fn read(root: &Path) -> Result<Self, ConfError> {
        Self::merge(root, Vec::new())
    }

    /// As locksmith sees it: with the environment that drop-ins for its unit set. The host's file wins
    /// over them, as it did when it was the unit's `EnvironmentFile=`.
    pub fn read_for_locksmith(root: &Path) -> Result<Self, ConfError> {
        Self::merge(root, drop_in::fragments(root)?)
    }

    fn merge(root: &Path, between: Vec<Fragment>) -> Result<Self, ConfError> {
        let mut merged = Merged::default();
        let [defaults, own] = FILES.map(|path| crate::under(root, path));
        merged.add(read_fragment(&defaults)?);
        between
            .into_iter()
            .for_each(|fragment| merged.add(fragment));
        merged.add(read_fragment(&own)?);
        Self::validate(merged)
    }

    fn validate(mut merged: Merged) -> Result<Self, ConfError> {
        let mut conf = Self::default();
        if let Some(group) = merged.take("GROUP", parse_group)? {
            conf.group = group;
        }
        if let Some(channel) = merged.take("CHANNEL", parse_channel)? {
            conf.channel = channel;
        }
        if let Some(rate) = merged.take("DOWNLOAD_RATE", parse_rate)? {
            conf.download_rate = rate;
        }
        if let Some(server) = merged.take("SERVER", parse_server)? {
            conf.server = server;
        }
        if let Some(strategy) = merged.take("REBOOT_STRATEGY", parse_strategy)? {
            conf.reboot_strategy = strategy;
        }
        if let Some(kind) = merged.take("REBOOT_TYPE", parse_type)? {
            conf.reboot_type = kind;
        }
        if let Some(interval) = merged.take("POLL_INTERVAL", |text| {
            parse_duration(text).and_then(|d| match d.as_secs() {
                0 => Err("must be at least 1s".to_owned()),
                _ => Ok(d),
            })
        })? {
            conf.poll_interval = interval;
        }
        let start = merged.take("REBOOT_WINDOW_START", parse_window_start)?;
        let length_origin = merged.origin("REBOOT_WINDOW_LENGTH");
        let length = merged.take("REBOOT_WINDOW_LENGTH", parse_duration)?;
        conf.reboot_window = match (start, length) {
            (None, None) => None,
            (Some(start), length) => {
                // locksmith's default, which people's files rely on.
                let length = length.unwrap_or(Duration::from_secs(3600));
                let window =
                    Window::new(start, length).map_err(|problem| match &length_origin {
                        Some(origin) => origin.error("REBOOT_WINDOW_LENGTH", problem),
                        None => ConfError::Incomplete { problem },
                    })?;
                Some(window)
            }
            (None, Some(_)) => {
                return Err(ConfError::Incomplete {
                    problem: "REBOOT_WINDOW_LENGTH without REBOOT_WINDOW_START: add e.g. REBOOT_WINDOW_START=\"Thu 04:00\"".to_owned(),
                });
            }
        };
        conf.warnings = merged.leftovers();
        Ok(conf)
    }
}

fn read_fragment(path: &Path) -> Result<Fragment, ConfError> {
    match std::fs::read_to_string(path) {
        Ok(text) => fragment(path, &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Fragment::new()),
        Err(source) => Err(ConfError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(defaults: Option<&str>, own: Option<&str>) -> Result<UpdateConf, String> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in FILES.iter().zip([defaults, own]) {
            let path = crate::under(dir.path(), path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if let Some(text) = text {
                std::fs::write(path, text).unwrap();
            }
        }
        UpdateConf::read(dir.path())
            .map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn no_file_means_the_defaults() {
        assert_eq!(read(None, None).unwrap(), UpdateConf::default());
    }

    #[test]
    fn the_host_wins_over_the_release() {
        let conf = read(
            Some("GROUP=stable\nSERVER=http://10.0.2.2:8090/v1/update/\nREBOOT_STRATEGY=off\n"),
            Some("# ours\nexport GROUP=\"beta\"\nPOLL_INTERVAL=10s\nLOCKSMITHD_REBOOT_WINDOW_START='Thu 04:00'\nREBOOT_WINDOW_LENGTH=1h30m\nFOO=bar\n"),
        )
        .unwrap();
        assert_eq!(conf.group, "beta");
        assert_eq!(
            conf.server.as_deref(),
            Some("http://10.0.2.2:8090/v1/update/")
        );
        assert_eq!(conf.reboot_strategy, RebootStrategy::Off);
        assert_eq!(conf.poll_interval, Duration::from_secs(10));
        let window = conf.reboot_window.unwrap();
        assert_eq!(window.to_string(), "Thu 04:00 for 1h30m");
        assert_eq!(conf.warnings.len(), 1);
        assert!(
            conf.warnings[0]
                .to_string()
                .ends_with("update.conf:6: unknown key FOO is ignored")
        );
    }

    #[test]
    fn disabled_and_empty_servers_switch_updates_off() {
        for server in ["disabled", ""] {
            let conf = read(
                Some("SERVER=http://a/\n"),
                Some(&format!("SERVER={server}\n")),
            )
            .unwrap();
            assert_eq!(conf.server, None);
        }
    }

    #[test]
    fn errors_name_file_line_and_a_way_out() {
        let check =
            |text: &str, expect: &str| assert_eq!(read(None, Some(text)).unwrap_err(), expect);
        check(
            "\nGROUP=Beta\n",
            "/etc/coreos/update.conf:2: GROUP=Beta: \"Beta\" cannot name a channel: use 1 to 32 lowercase letters, digits and '-', starting with a letter (alpha, beta, stable)",
        );
        for bad in ["7up", "a".repeat(33).as_str(), "-x", ""] {
            assert!(
                read(None, Some(&format!("GROUP={bad}\n")))
                    .is_err_and(|e| e.contains("cannot name a channel")),
                "{bad:?} was accepted"
            );
        }
        check(
            "SERVER=10.0.2.2\n",
            "/etc/coreos/update.conf:1: SERVER=10.0.2.2: must be a URL like http://10.0.2.2:8090/v1/update/, or disabled",
        );
        check(
            "REBOOT_STRATEGY=now\n",
            "/etc/coreos/update.conf:1: REBOOT_STRATEGY=now: use reboot, off, best-effort or etcd-lock",
        );
        check(
            "REBOOT_TYPE=soft\n",
            "/etc/coreos/update.conf:1: REBOOT_TYPE=soft: use hard, or auto for a soft-reboot where the kernel stays the same",
        );
        check(
            "REBOOT_WINDOW_START=\"Thursday 4\"\n",
            "/etc/coreos/update.conf:1: REBOOT_WINDOW_START=Thursday 4: use \"04:00\" or \"Thu 04:00\"",
        );
        check(
            "REBOOT_WINDOW_START=04:00\nREBOOT_WINDOW_LENGTH=25h\n",
            "/etc/coreos/update.conf:2: REBOOT_WINDOW_LENGTH=25h: a daily window is at most 24h long",
        );
        check(
            "POLL_INTERVAL=5parsecs\n",
            "/etc/coreos/update.conf:1: POLL_INTERVAL=5parsecs: use seconds, or a duration like 10s, 5m or 1h30m",
        );
        check(
            "POLL_INTERVAL=0\n",
            "/etc/coreos/update.conf:1: POLL_INTERVAL=0: must be at least 1s",
        );
        check(
            "REBOOT_WINDOW_LENGTH=1h\n",
            "REBOOT_WINDOW_LENGTH without REBOOT_WINDOW_START: add e.g. REBOOT_WINDOW_START=\"Thu 04:00\"",
        );
        check("GROUP\n", "/etc/coreos/update.conf:1: not KEY=VALUE: GROUP");
        check(
            "GROUP=\"stable\n",
            "/etc/coreos/update.conf:1: GROUP: the quote is not closed",
        );
    }

    /// Files below the root and what locksmith then makes of them.
    fn for_locksmith(files: &[(&str, &str)]) -> Result<UpdateConf, String> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = crate::under(dir.path(), path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        // Others do not look at units.
        assert_eq!(
            UpdateConf::read(dir.path())
                .unwrap()
                .reboot_window
                .is_some(),
            files.iter().any(|(path, _)| FILES.contains(path))
        );
        UpdateConf::read_for_locksmith(dir.path())
            .map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn drop_ins_set_locksmiths_window() {
        const MADE: &str = "/run/systemd/system/locksmithd.service.d/20-cloudinit.conf";
        let made = "[Service]\nEnvironment=\"REBOOT_WINDOW_START=Thu 04:00\"\nEnvironment=\"REBOOT_WINDOW_LENGTH=90m\"\nEnvironment=\"LOCKSMITHD_ENDPOINT=x\"\n";
        let check = |more: &[(&str, &str)], expect: &str| {
            let conf = for_locksmith(&[&[(MADE, made)], more].concat()).unwrap();
            assert_eq!(conf.reboot_window.unwrap().to_string(), expect);
            assert_eq!(conf.warnings, []);
        };
        check(&[], "Thu 04:00 for 1h30m");
        let later = "/etc/systemd/system/locksmithd.service.d/30-mine.conf";
        let text = "[Unit]\nEnvironment=REBOOT_WINDOW_START=01:00\n[Service]\n# x\nEnvironment = LOCKSMITHD_REBOOT_WINDOW_START=05:00 REBOOT_WINDOW_LENGTH=2h\n";
        check(&[(later, text)], "05:00 for 2h");
        let earlier = "/etc/systemd/system/locksmithd.service.d/10-mine.conf";
        check(&[(earlier, text)], "Thu 04:00 for 1h30m");
        let instead = "/etc/systemd/system/locksmithd.service.d/20-cloudinit.conf";
        check(&[(instead, text)], "05:00 for 2h");
        let not_read = "/etc/systemd/system/locksmithd.service.d/30-mine";
        check(&[(not_read, text)], "Thu 04:00 for 1h30m");
        check(
            &[(FILES[1], "REBOOT_WINDOW_START=06:00\n")],
            "06:00 for 1h30m",
        );
        assert_eq!(
            for_locksmith(&[(MADE, "[Service]\nEnvironment=REBOOT_WINDOW_START=noon\n")])
                .unwrap_err(),
            format!("{MADE}:2: REBOOT_WINDOW_START=noon: use \"04:00\" or \"Thu 04:00\"")
        );
    }
}
