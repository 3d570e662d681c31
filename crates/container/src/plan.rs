//! A run as data: the command line that `orlop container run` executes and `--dry-run` prints.

use std::fmt;

use crate::spec::{Bind, Console, Network, RunSpec, Users};
use crate::store;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub unit: String,
    pub console: Console,
    pub properties: Vec<(&'static str, String)>,
    pub nspawn: Vec<String>,
}

/// The plan for `spec`. It changes nothing yet: see [`crate::run`].
pub fn plan(spec: &RunSpec) -> Plan {
    Plan {
        unit: spec.name.unit(),
        console: spec.console,
        properties: properties(spec),
        nspawn: nspawn(spec),
    }
}

fn properties(spec: &RunSpec) -> Vec<(&'static str, String)> {
    let mut out: Vec<(&'static str, String)> = Vec::new();
    let mut set = |key, value: &str| out.push((key, value.to_owned()));
    set(
        "Description",
        &format!("Container {} of image {}", spec.name, spec.image),
    );
    // As systemd-nspawn@.service has them.
    set("Type", "notify");
    set("Slice", "machine.slice");
    set("Delegate", "yes");
    set("DelegateSubgroup", "supervisor");
    set("KillMode", "mixed");
    set("TimeoutStopSec", "30s");
    set("DevicePolicy", "closed");
    set("DeviceAllow", "char-pts rw");
    set("DeviceAllow", "/dev/net/tun rwm");
    if let Some(memory) = spec.limits.memory {
        set("MemoryMax", &memory.0.to_string());
        // Else the limit would only push the container into the host's swap.
        set("MemorySwapMax", "0");
    }
    if let Some(cpus) = spec.limits.cpus {
        set("CPUQuota", &format!("{}%", cpus.0));
    }
    if let Some(pids) = spec.limits.pids {
        set("TasksMax", &pids.0.to_string());
    }
    out
}

fn nspawn(spec: &RunSpec) -> Vec<String> {
    let mut out = vec![
        "systemd-nspawn".to_owned(),
        "--quiet".to_owned(),
        // The unit is ours, with the limits on it.
        "--keep-unit".to_owned(),
        // What runs is what the command line says.
        "--settings=no".to_owned(),
        format!("--machine={}", spec.name),
        format!("--directory={}/{}", store::DIR, spec.image),
    ];
    let mut flag = |text: &str| out.push(text.to_owned());
    if spec.ephemeral {
        flag("--ephemeral");
    }
    flag(match spec.users {
        Users::Pick => "--private-users=pick",
        Users::Identity => "--private-users=identity",
    });
    match spec.network {
        Network::Host => {}
        Network::Private => flag("--network-veth"),
        Network::None => flag("--private-network"),
    }
    for bind in &spec.binds {
        flag(&bind_flag(bind, spec.users));
    }
    match spec.boot {
        true => {
            flag("--boot");
            flag("--notify-ready=yes");
        }
        // A stub init reaps, so that any command can be run.
        false => flag("--as-pid2"),
    }
    flag(match spec.console {
        Console::Terminal => "--console=interactive",
        Console::Pipe => "--console=pipe",
        Console::Detached if spec.boot => "--console=read-only",
        Console::Detached => "--console=pipe",
    });
    if !spec.command.is_empty() {
        flag("--");
        out.extend(spec.command.iter().cloned());
    }
    out
}

fn bind_flag(bind: &Bind, users: Users) -> String {
    let flag = if bind.read_only {
        "--bind-ro"
    } else {
        "--bind"
    };
    let map = match (users, bind.map_owner) {
        (Users::Pick, true) => ":rootidmap",
        _ => "",
    };
    format!(
        "{flag}={}:{}{map}",
        bind.source.display(),
        bind.target.display()
    )
}

impl Plan {
    /// The whole command line.
    pub fn argv(&self) -> Vec<String> {
        let mut out: Vec<String> = ["systemd-run", "--quiet", "--collect"]
            .map(str::to_owned)
            .into();
        out.push(format!("--unit={}", self.unit));
        match self.console {
            Console::Terminal => out.extend(["--pty", "--wait"].map(str::to_owned)),
            Console::Pipe => out.extend(["--pipe", "--wait"].map(str::to_owned)),
            Console::Detached => {}
        }
        out.extend(
            self.properties
                .iter()
                .map(|(key, value)| format!("--property={key}={value}")),
        );
        out.push("--".to_owned());
        out.extend(self.nspawn.iter().cloned());
        out
    }
}

/// As it could be typed into a shell.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.argv().iter().enumerate() {
            if index > 0 {
                f.write_str(if word == "--" || !word.starts_with('-') {
                    " "
                } else {
                    " \\\n  "
                })?;
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,%@+".contains(c);
            match !word.is_empty() && word.chars().all(plain) {
                true => f.write_str(word)?,
                false => write!(f, "'{}'", word.replace('\'', r"'\''"))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Limits;

    fn spec() -> RunSpec {
        RunSpec {
            name: "web".parse().unwrap(),
            image: "debian".parse().unwrap(),
            limits: Limits::default(),
            ephemeral: false,
            binds: vec![],
            network: Network::Host,
            users: Users::Pick,
            boot: false,
            command: vec!["/bin/echo".into(), "it's".into()],
            console: Console::Pipe,
        }
    }

    #[test]
    fn a_command() {
        insta::assert_snapshot!(plan(&spec()), @r#"
        systemd-run \
          --quiet \
          --collect \
          --unit=container-web.service \
          --pipe \
          --wait \
          '--property=Description=Container web of image debian' \
          --property=Type=notify \
          --property=Slice=machine.slice \
          --property=Delegate=yes \
          --property=DelegateSubgroup=supervisor \
          --property=KillMode=mixed \
          --property=TimeoutStopSec=30s \
          --property=DevicePolicy=closed \
          '--property=DeviceAllow=char-pts rw' \
          '--property=DeviceAllow=/dev/net/tun rwm' -- systemd-nspawn \
          --quiet \
          --keep-unit \
          --settings=no \
          --machine=web \
          --directory=/var/lib/machines/debian \
          --private-users=pick \
          --as-pid2 \
          --console=pipe -- /bin/echo 'it'\''s'
        "#);
    }

    #[test]
    fn everything() {
        let spec = RunSpec {
            limits: Limits {
                memory: Some("128M".parse().unwrap()),
                cpus: Some("0.5".parse().unwrap()),
                pids: Some("100".parse().unwrap()),
            },
            ephemeral: true,
            binds: vec![
                "/srv/a b:/data".parse().unwrap(),
                "/etc/ssl:/etc/ssl:ro".parse().unwrap(),
            ],
            network: Network::Private,
            boot: true,
            command: vec![],
            console: Console::Detached,
            ..spec()
        };
        insta::assert_snapshot!(plan(&spec), @r#"
        systemd-run \
          --quiet \
          --collect \
          --unit=container-web.service \
          '--property=Description=Container web of image debian' \
          --property=Type=notify \
          --property=Slice=machine.slice \
          --property=Delegate=yes \
          --property=DelegateSubgroup=supervisor \
          --property=KillMode=mixed \
          --property=TimeoutStopSec=30s \
          --property=DevicePolicy=closed \
          '--property=DeviceAllow=char-pts rw' \
          '--property=DeviceAllow=/dev/net/tun rwm' \
          --property=MemoryMax=134217728 \
          --property=MemorySwapMax=0 \
          --property=CPUQuota=50% \
          --property=TasksMax=100 -- systemd-nspawn \
          --quiet \
          --keep-unit \
          --settings=no \
          --machine=web \
          --directory=/var/lib/machines/debian \
          --ephemeral \
          --private-users=pick \
          --network-veth \
          '--bind=/srv/a b:/data:rootidmap' \
          --bind-ro=/etc/ssl:/etc/ssl:rootidmap \
          --boot \
          --notify-ready=yes \
          --console=read-only
        "#);
    }

    #[test]
    fn identity_without_network_on_a_terminal() {
        let spec = RunSpec {
            binds: vec!["/srv:/srv:ro".parse().unwrap()],
            network: Network::None,
            users: Users::Identity,
            console: Console::Terminal,
            command: vec![],
            ..spec()
        };
        insta::assert_snapshot!(plan(&spec), @r#"
        systemd-run \
          --quiet \
          --collect \
          --unit=container-web.service \
          --pty \
          --wait \
          '--property=Description=Container web of image debian' \
          --property=Type=notify \
          --property=Slice=machine.slice \
          --property=Delegate=yes \
          --property=DelegateSubgroup=supervisor \
          --property=KillMode=mixed \
          --property=TimeoutStopSec=30s \
          --property=DevicePolicy=closed \
          '--property=DeviceAllow=char-pts rw' \
          '--property=DeviceAllow=/dev/net/tun rwm' -- systemd-nspawn \
          --quiet \
          --keep-unit \
          --settings=no \
          --machine=web \
          --directory=/var/lib/machines/debian \
          --private-users=identity \
          --private-network \
          --bind-ro=/srv:/srv \
          --as-pid2 \
          --console=interactive
        "#);
    }
}
