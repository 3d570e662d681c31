//! Changing the host's own `update.conf`.

use std::path::Path;

use release::Channel;

use super::parse::{ConfError, fragment};
use super::{FILES, UpdateConf};
use crate::atomic::{self, WriteError};

#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error(transparent)]
    Conf(#[from] ConfError),
    #[error(
        "CHANNEL={channel} says whose releases this host takes, and GROUP={group} is a group of the server's: change them in /etc/coreos/update.conf"
    )]
    Group { channel: Channel, group: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Has the host follow a channel from now on. False: it does already.
pub fn follow(root: &Path, channel: &Channel) -> Result<bool, FollowError> {
    let conf = UpdateConf::read(root)?;
    // Which group of the server's would follow that channel is not known here.
    if let Some(own) = conf.channel.filter(|own| own.as_str() != conf.group) {
        return Err(FollowError::Group {
            channel: own,
            group: conf.group,
        });
    }
    if conf.group == channel.as_str() {
        return Ok(false);
    }
    let path = crate::under(root, FILES[1]);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(ConfError::Read { path, source }.into()),
    };
    let mut text = set(&text, "GROUP", channel.as_str());
    if conf_has(&text, "CHANNEL") {
        text = set(&text, "CHANNEL", channel.as_str());
    }
    atomic::write(&path, text.as_bytes(), 0o644, None)?;
    Ok(true)
}

fn conf_has(text: &str, key: &str) -> bool {
    place(text, key).is_some()
}

/// The line that counts.
fn place(text: &str, key: &str) -> Option<usize> {
    let is_it = |line: &&str| {
        fragment(Path::new(""), line)
            .is_ok_and(|lines| lines.first().is_some_and(|(it, _)| it == key))
    };
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().rposition(is_it)
}

/// The text with another value for a key. All else stays as it is.
fn set(text: &str, key: &str, value: &str) -> String {
    let new = format!("{key}={value}");
    let place = place(text, key);
    let mut lines: Vec<&str> = text.lines().collect();
    match place {
        Some(place) => lines[place] = &new,
        None => lines.push(&new),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: Option<&str>, channel: &str) -> Result<(bool, String), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/coreos/update.conf");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let changed =
            follow(dir.path(), &channel.parse().unwrap()).map_err(|error| error.to_string())?;
        let conf = UpdateConf::read(dir.path()).unwrap();
        assert_eq!(conf.group, channel);
        assert!(conf.channel.is_none_or(|it| it.as_str() == channel));
        Ok((changed, std::fs::read_to_string(path).unwrap_or_default()))
    }

    #[test]
    fn only_the_line_that_counts_changes() {
        let check = |text: Option<&str>, channel: &str, expect: &str| {
            let changed = text.unwrap_or_default() != expect;
            assert_eq!(after(text, channel).unwrap(), (changed, expect.to_owned()));
        };
        check(None, "beta", "GROUP=beta\n");
        check(None, "stable", "");
        check(
            Some("# mine\nexport GROUP=\"alpha\"\n\nFOO=bar"),
            "beta",
            "# mine\nGROUP=beta\n\nFOO=bar\n",
        );
        check(
            Some("GROUP=beta\nGROUP=alpha\n"),
            "beta",
            "GROUP=beta\nGROUP=beta\n",
        );
        check(
            Some("GROUP=stable\nCHANNEL=stable\n"),
            "beta",
            "GROUP=beta\nCHANNEL=beta\n",
        );
    }

    #[test]
    fn a_group_of_the_servers_stays() {
        let error = after(Some("GROUP=web\nCHANNEL=stable\n"), "beta").unwrap_err();
        assert!(
            error.starts_with("CHANNEL=stable says whose releases"),
            "{error}"
        );
        assert!(
            after(Some("GROUP"), "beta")
                .unwrap_err()
                .ends_with("update.conf:1: not KEY=VALUE: GROUP")
        );
    }
}
