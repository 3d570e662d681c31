//! Members as child processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_orlop-store");

/// Where a member lives.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    data: PathBuf,
    pub(crate) client: String,
    pub(crate) peer: String,
    all: String,
    /// The network namespace it lives in, if it has one of its own.
    namespace: Option<String>,
}

/// Places for a cluster, on ports that were free a moment ago.
pub(crate) fn cluster(dir: &Path, count: usize) -> Vec<Place> {
    std::fs::create_dir_all(dir).unwrap();
    let ports: Vec<u16> = (0..2 * count).map(|_| ports::free().unwrap()).collect();
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let all: Vec<String> = (0..count)
        .map(|i| format!("n{i}={}", url(ports[count + i])))
        .collect();
    (0..count)
        .map(|i| Place {
            name: format!("n{i}"),
            data: dir.join(format!("n{i}")),
            client: url(ports[i]),
            peer: url(ports[count + i]),
            all: all.join(","),
            namespace: None,
        })
        .collect()
}

/// Places in namespaces `n0`, `n1` …, which clients and members reach in networks of their own.
pub(crate) fn apart(dir: &Path, count: usize) -> Vec<Place> {
    let peer = |i: usize| format!("http://10.2.0.{}:2380", i + 10);
    let all: Vec<String> = (0..count).map(|i| format!("n{i}={}", peer(i))).collect();
    (0..count)
        .map(|i| Place {
            name: format!("n{i}"),
            data: dir.join(format!("n{i}")),
            client: format!("http://10.1.0.{}:2379", i + 10),
            peer: peer(i),
            all: all.join(","),
            namespace: Some(format!("n{i}")),
        })
        .collect()
}

impl Place {
    /// The same place, with its data elsewhere.
    pub(crate) fn with_data(mut self, data: PathBuf) -> Self {
        self.data = data;
        self
    }

    /// The same place in a cluster of these.
    pub(crate) fn among(mut self, places: &[Self]) -> Self {
        let all: Vec<String> = places
            .iter()
            .map(|place| format!("{}={}", place.name, place.peer))
            .collect();
        self.all = all.join(",");
        self
    }

    /// A place at these addresses, which is told nothing of others.
    pub(crate) fn at(name: &str, data: PathBuf, client: String, peer: String) -> Self {
        Self {
            name: name.to_owned(),
            data,
            client,
            peer,
            all: String::new(),
            namespace: None,
        }
    }

    pub(crate) fn member_dir(&self) -> PathBuf {
        self.data.join("member")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    pub(crate) fn flags(&self) -> Vec<String> {
        let flags = [
            ("--name", self.name.as_str()),
            ("--data-dir", self.data.to_str().unwrap()),
            ("--listen-client-urls", &self.client),
            ("--advertise-client-urls", &self.client),
            ("--listen-peer-urls", &self.peer),
            ("--initial-advertise-peer-urls", &self.peer),
            ("--initial-cluster", &self.all),
        ];
        flags
            .into_iter()
            .filter(|(flag, value)| *flag != "--initial-cluster" || !value.is_empty())
            .flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()])
            .collect()
    }
}

pub(crate) struct Member(Child);

impl Member {
    pub(crate) fn start(place: &Place, flags: &[&str]) -> Self {
        Self::start_under(place, flags, &[])
    }

    /// With another program in front, which becomes the member: its process id is the member's.
    pub(crate) fn start_under(place: &Place, flags: &[&str], front: &[String]) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place.log())
            .unwrap();
        let mut front = front.to_vec();
        if let Some(namespace) = &place.namespace {
            front = ["ip", "netns", "exec", namespace]
                .map(str::to_owned)
                .to_vec();
        }
        front.push(PROGRAM.to_owned());
        let mut command = Command::new(&front[0]);
        command.args(&front[1..]);
        let child = command
            .args(place.flags())
            .args(flags)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; whether it was a good one.
    pub(crate) fn ended(&mut self, patience: std::time::Duration) -> Option<bool> {
        let since = std::time::Instant::now();
        while since.elapsed() < patience {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status.success());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        None
    }

    pub(crate) fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// At once, without a chance to write anything.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
