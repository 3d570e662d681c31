//! A host made of files: a root directory, a disk image, and a boot loader that chooses as
//! systemd-boot does. The programs that run on it are the real ones.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::esp::{self, Bootloader, Entry, Esp};
use disk::gpt::{ESP, Layout, Table};
use disk::io::Window;
use disk::stage::{Device, Devices, StagePlan, stage};
use disk::verity::{self, RootHash};
use disk::{Guid, Slot};
use host::varlink::Client;
use release::dsse::Envelope;
use release::keys::{SigningKey, public_to_text};
use release::{Compression, Manifest, Payload, Sha256, Usr};
use serde_json::{Value, json};

use crate::server::Server;

pub const ENGINE: &str = env!("CARGO_BIN_EXE_update-engine");
pub const LAYOUT: Layout = Layout::small();

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

/// A release of pseudo-random bytes: hardly compressible, different for each version.
pub struct Release {
    pub version: String,
    pub manifest: Manifest,
    pub envelope: Vec<u8>,
    pub usr: Vec<u8>,
    pub payload: Vec<u8>,
    pub uki: Vec<u8>,
    /// Block index and deltas, by name.
    pub extra: Vec<(String, Vec<u8>)>,
}

impl Release {
    pub fn new(version: &str) -> Self {
        Self::signed(version, &key())
    }

    pub fn signed(version: &str, key: &SigningKey) -> Self {
        let mut uki = noise(&format!("uki {version}"), 300_000);
        uki[..2].copy_from_slice(b"MZ");
        Self::made_of(
            version,
            key,
            noise(&format!("usr {version}"), 600 * 4096),
            uki,
        )
    }

    pub fn made_of(version: &str, key: &SigningKey, usr: Vec<u8>, uki: Vec<u8>) -> Self {
        let payload = zstd::encode_all(&usr[..], 1).unwrap();
        let manifest = Manifest {
            format: Manifest::FORMAT,
            version: version.parse().unwrap(),
            epoch: 0,
            minimum_source_version: None,
            architecture: "x86-64".into(),
            created: 0,
            usr: Usr {
                root_hash: Sha256(verity::build(&mut &usr[..]).unwrap().root.0),
                size: usr.len() as u64,
                payload: Payload {
                    file: file("usr.erofs.zst", &payload),
                    compression: Compression::Zstd,
                },
                index: None,
            },
            uki: file("uki.efi", &uki),
            kernel: None,
            deltas: Vec::new(),
            extensions: Vec::new(),
            sbom: None,
        };
        let envelope = Envelope::sign(&manifest, key).unwrap().to_json().unwrap();
        Self {
            version: version.into(),
            manifest,
            envelope,
            usr,
            payload,
            uki,
            extra: Vec::new(),
        }
    }

    /// The next release after this one: some of it is new, some has moved, most is as it was. In
    /// frames and with a block index, without deltas.
    pub fn next(&self, version: &str) -> Self {
        const FRAME: usize = 8 * 4096;
        let mut usr = self.usr.clone();
        let new = noise(&format!("new in {version}"), 3 * 4096);
        usr.splice(100 * 4096..102 * 4096, new);
        for at in (200 * 4096..260 * 4096).step_by(700) {
            usr[at] = usr[at].wrapping_add(1);
        }
        let mut uki = self.uki.clone();
        uki[5000..5010].copy_from_slice(&noise(version, 10));
        let mut release = Self::made_of(version, &key(), usr, uki);
        let mut payload = Vec::new();
        let lengths =
            delta::frames::compress(&mut &release.usr[..], &mut payload, FRAME, 1).unwrap();
        release.manifest.usr.payload.file = file("usr.erofs.zst", &payload);
        release.payload = payload;
        let tree = verity::build(&mut &release.usr[..]).unwrap();
        let size = release.usr.len() as u64;
        let hashes = tree.leaves().to_vec();
        let index = delta::reuse::BlockIndex::new(FRAME, size, lengths, hashes).to_bytes();
        release.manifest.usr.index = Some(file("usr.index", &index));
        release.extra.push(("usr.index".into(), index));
        release.sign();
        release
    }

    /// The same with another manifest, signed.
    pub fn with(mut self, change: impl FnOnce(&mut Manifest)) -> Self {
        change(&mut self.manifest);
        self.sign();
        self
    }

    pub fn sign(&mut self) {
        self.envelope = Envelope::sign(&self.manifest, &key())
            .unwrap()
            .to_json()
            .unwrap();
    }

    /// Adds the delta from a release, which is made of these bytes (`from`'s own, normally).
    pub fn with_delta(mut self, from: &Self, usr: &[u8], uki: &[u8]) -> Self {
        let mut add = |name: String, bytes: Vec<u8>| {
            let file = file(&name, &bytes);
            self.extra.push((name, bytes));
            file
        };
        let delta = release::Delta {
            from_version: from.manifest.version.clone(),
            from_root_hash: from.manifest.usr.root_hash,
            usr: add(
                format!("usr-from-{}.delta", from.version),
                delta_between(usr, &self.usr),
            ),
            uki: Some(release::UkiDelta {
                file: add(
                    format!("uki-from-{}.delta", from.version),
                    delta_between(uki, &self.uki),
                ),
                from_sha256: from.manifest.uki.sha256,
            }),
        };
        self.manifest.deltas.push(delta);
        self.sign();
        self
    }

    pub fn root_hash(&self) -> RootHash {
        RootHash(self.manifest.usr.root_hash.0)
    }

    /// What the daemon and the server call it.
    pub fn id(&self) -> Sha256 {
        let trusted = [key().verifying_key()];
        Envelope::verify(&self.envelope, &trusted).unwrap().id()
    }

    /// What is staged if nothing but the bytes is trusted.
    pub fn plan(&self, slot: Slot, booted: Option<Slot>) -> StagePlan {
        StagePlan {
            slot,
            booted,
            root_hash: self.root_hash(),
            usr_size: self.manifest.usr.size,
            uki_sha256: self.manifest.uki.sha256.0,
        }
    }

    /// Puts the files where the daemon would have downloaded them, and makes the writer's call.
    pub fn call(&self, host: &Host) -> Value {
        let dir = host.path("var/lib/update-engine/download/x");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("usr.erofs.zst"), &self.payload).unwrap();
        fs::write(dir.join("uki.efi"), &self.uki).unwrap();
        json!({
            "envelope": String::from_utf8(self.envelope.clone()).unwrap(),
            "usr": dir.join("usr.erofs.zst"),
            "uki": dir.join("uki.efi"),
        })
    }

    pub fn publish(&self, server: &Server) {
        server.with(|s| {
            let extra = self.extra.iter().map(|(name, bytes)| (&name[..], bytes));
            let files = [
                ("manifest.dsse.json", &self.envelope),
                ("usr.erofs.zst", &self.payload),
                ("uki.efi", &self.uki),
            ];
            for (name, bytes) in files.into_iter().chain(extra) {
                s.files
                    .insert(format!("{}/{name}", self.version), bytes.clone());
            }
            s.offer = Some(self.version.clone());
        });
    }
}

fn file(name: &str, bytes: &[u8]) -> release::File {
    release::File {
        name: name.parse().unwrap(),
        size: bytes.len() as u64,
        sha256: Sha256::of(bytes),
    }
}

fn delta_between(old: &[u8], new: &[u8]) -> Vec<u8> {
    let on_disk = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let names = delta::make::Names {
        source: [0; 32],
        target: [0; 32],
    };
    let options = delta::make::Options {
        workers: 1,
        segment_size: 128 << 10,
        window_size: 512 << 10,
    };
    let mut out = std::io::Cursor::new(Vec::new());
    let (old, new) = (on_disk(old), on_disk(new));
    delta::make::make(&old, &new, names, &mut out, options, &|_, _| ()).unwrap();
    out.into_inner()
}

pub fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 32);
    let mut block = Sha256::of(seed);
    while bytes.len() < len {
        bytes.extend(block.0);
        block = Sha256::of(block.0);
    }
    bytes.truncate(len);
    bytes
}

pub struct Host {
    dir: tempfile::TempDir,
    pub image: PathBuf,
    /// What boots by which root hash.
    versions: HashMap<[u8; 32], String>,
    epochs: HashMap<[u8; 32], u64>,
    boots: u32,
    /// Processes the writer's socket has started.
    pub writers: Arc<Mutex<Vec<Child>>>,
}

impl Host {
    /// Version 1 in slot a, slot b empty, booted once.
    pub fn new(server: &Server, releases: &[&Release]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        let mut host = Self {
            image,
            versions: HashMap::new(),
            epochs: HashMap::new(),
            boots: 0,
            writers: Arc::default(),
            dir,
        };
        for path in [
            "usr/lib/orlop/keys",
            "usr/share/orlop",
            "proc/sys/kernel/random",
            "etc/coreos",
            "run/update-engine",
            "var/lib/update-engine",
            "var/lib/orlop/boot",
        ] {
            fs::create_dir_all(host.path(path)).unwrap();
        }
        host.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        host.write(
            "usr/lib/orlop/keys/release.pub",
            &public_to_text(&key().verifying_key(), "tests"),
        );
        host.write(
            "usr/share/orlop/update.conf",
            &format!("GROUP=stable\nSERVER={}\nPOLL_INTERVAL=1h\n", server.url()),
        );
        for release in releases {
            host.versions
                .insert(release.root_hash().0, release.version.clone());
            host.epochs
                .insert(release.root_hash().0, release.manifest.epoch);
        }
        host.install(releases[0]);
        host.listen_for_writers();
        host.boot();
        host
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    /// In place of the system's.
    pub fn program(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::create_dir_all(self.path("bin")).unwrap();
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `PATH`, with those first.
    pub fn programs(&self) -> String {
        format!("{}:/usr/bin:/bin", self.path("bin").display())
    }

    fn install(&self, release: &Release) {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.image)
            .unwrap();
        let size = LAYOUT.image_size();
        file.set_len(size).unwrap();
        LAYOUT.create(&mut file, size, Guid([1; 16])).unwrap();
        let mut window = self.window(ESP);
        esp::create(&mut window, LAYOUT.esp, "ESP", 1).unwrap();
        let loader = Bootloader {
            systemd_boot: b"MZ loader",
            loader_conf: "timeout 0\n",
        };
        esp::install_bootloader(&mut window, &loader).unwrap();
        let plan = release.plan(Slot::A, None);
        stage(
            &plan,
            &mut Partitions(self, Slot::A),
            &mut &release.usr[..],
            &release.uki,
            &mut |_| (),
        )
        .unwrap();
    }

    pub fn table(&self) -> Table {
        Table::load(&mut File::open(&self.image).unwrap()).unwrap()
    }

    pub fn window(&self, label: &str) -> Window<File> {
        let part = self.table().partition(label).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.image)
            .unwrap();
        Window::new(file, part.start_bytes, part.size_bytes)
    }

    pub fn entry(&self, slot: Slot) -> Option<Entry> {
        Esp::open(self.window(ESP)).unwrap().entry(slot).unwrap()
    }

    pub fn tries(&self, slot: Slot) -> Option<(u8, u8)> {
        self.entry(slot).map(|e| (e.tries_left, e.tries_done))
    }

    pub fn set_tries(&self, slot: Slot, left: u8, done: u8) {
        let mut esp = Esp::open(self.window(ESP)).unwrap();
        esp.set_tries(slot, left, done).unwrap();
    }

    /// Of the whole disk, to see that not a byte changed.
    pub fn disk_digest(&self) -> Sha256 {
        Sha256::of(fs::read(&self.image).unwrap())
    }

    fn version_in(&self, slot: Slot) -> Option<String> {
        let hash = self.table().root_hash_of(slot).unwrap()?;
        self.versions.get(&hash.0).cloned()
    }

    /// Whether what a slot announces is really there, to the last byte.
    pub fn is_intact(&self, slot: Slot, release: &Release) -> bool {
        if self.table().root_hash_of(slot).unwrap() != Some(release.root_hash()) {
            return false;
        }
        let mut data = self
            .window(slot.data_label())
            .take(release.manifest.usr.size);
        let got = verity::root_hash_of(&mut data, release.manifest.usr.size).unwrap();
        let mut esp = Esp::open(self.window(ESP)).unwrap();
        let Some(entry) = esp.entry(slot).unwrap() else {
            return false;
        };
        let uki = esp.read_file(&entry.path()).unwrap();
        got == release.root_hash() && uki == release.uki
    }

    /// As systemd-boot: entries with tries left first, of those the highest version; one try less.
    pub fn boot(&mut self) -> Slot {
        let mut entries: Vec<Entry> = Slot::BOTH
            .into_iter()
            .filter_map(|s| self.entry(s))
            .filter(|e| e.valid)
            .collect();
        entries.sort_by_key(|e| {
            let version: release::Version = self.version_in(e.slot).unwrap().parse().unwrap();
            (e.tries_left > 0, version)
        });
        let chosen = entries.pop().expect("nothing boots");
        let left = chosen.tries_left.saturating_sub(1);
        let done = chosen.tries_done + u8::from(chosen.tries_left > 0);
        if chosen.counted {
            self.set_tries(chosen.slot, left, done);
        }

        self.boots += 1;
        let hash = self.table().root_hash_of(chosen.slot).unwrap().unwrap();
        let (version, epoch) = (&self.versions[&hash.0], self.epochs[&hash.0]);
        self.write(
            "usr/lib/os-release",
            &format!("ID=orlop\nIMAGE_ID=orlop\nIMAGE_VERSION={version}\nORLOP_EPOCH={epoch}\n"),
        );
        self.write("proc/cmdline", &format!("quiet usrhash={hash} rw\n"));
        self.write(
            "proc/sys/kernel/random/boot_id",
            &format!("00000000-0000-0000-0000-{:012}\n", self.boots),
        );
        for volatile in [
            "run/orlop/good",
            "run/orlop/slots.json",
            "run/update-engine/reboot-needed",
            "run/update-engine/status.json",
        ] {
            let _ = fs::remove_file(self.path(volatile));
        }
        chosen.slot
    }

    /// What is so after one: /usr is another device, and the kernel has not heard of it.
    pub fn soft_reboot(&self, to: &Release) {
        use std::os::unix::fs::MetadataExt as _;
        let device = fs::metadata(self.path("usr")).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let dm = format!("sys/dev/block/{major}:{minor}/dm");
        fs::create_dir_all(self.path(&dm)).unwrap();
        let hash = to.root_hash().to_string();
        let (first, second) = hash.split_at(32);
        self.write(
            &format!("{dm}/uuid"),
            &format!("CRYPT-VERITY-{first}-{second}-usr-b\n"),
        );
        self.write(
            "usr/lib/os-release",
            &format!("ID=orlop\nIMAGE_ID=orlop\nIMAGE_VERSION={}\n", to.version),
        );
        self.write(
            "run/orlop/soft-reboot.json",
            r#"{"releases":1,"changed":true,"at":1}"#,
        );
        for gone in [
            "run/orlop/good",
            "run/orlop/slots.json",
            "run/update-engine/reboot-needed",
        ] {
            fs::remove_file(self.path(gone)).unwrap();
        }
    }

    /// What the initrd does at each boot.
    pub fn userspace_starts(&self) {
        let cmdline = self.read("proc/cmdline").unwrap();
        let hash = cmdline.split(['=', ' ']).nth(2).unwrap();
        let mut text = self.read("var/lib/orlop/boot/attempts").unwrap_or_default();
        text += &format!(
            "{{\"version\":\"?\",\"usrhash\":\"{hash}\",\"boot_id\":\"{}\"}}\n",
            self.boots
        );
        self.write("var/lib/orlop/boot/attempts", &text);
    }

    pub fn engine(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ENGINE);
        command
            .arg("--root")
            .arg(self.root())
            .arg("--disk")
            .arg(&self.image)
            .args(arguments);
        command
    }

    /// Lets the engine search for its disk: what the kernel would show of the image as `vda` (and
    /// of a copy of it as `vdb`), with a device mapper on slot a of `vda`.
    pub fn with_sysfs(&self) {
        fs::create_dir_all(self.path("dev")).unwrap();
        for disk in ["vda", "vdb"] {
            let block = format!("sys/class/block/{disk}");
            for partition in self.table().partitions() {
                let name = format!("{disk}{}", partition.number);
                for path in [
                    format!("{block}/{name}"),
                    format!("sys/class/block/{name}/holders"),
                ] {
                    fs::create_dir_all(self.path(&path)).unwrap();
                }
                self.write(
                    &format!("{block}/{name}/partition"),
                    &partition.number.to_string(),
                );
                self.write(
                    &format!("sys/class/block/{name}/partition"),
                    &partition.number.to_string(),
                );
            }
            self.write(&format!("{block}/size"), "100000\n");
        }
        fs::copy(&self.image, self.path("dev/vdb")).unwrap();
        std::os::unix::fs::symlink(&self.image, self.path("dev/vda")).unwrap();
    }

    /// Runs to the end, and must succeed.
    pub fn run(&self, arguments: &[&str]) {
        assert!(
            self.engine(arguments).status().unwrap().success(),
            "{arguments:?}"
        );
    }

    /// What systemd does for a socket unit with `Accept=yes`.
    fn listen_for_writers(&self) {
        let listener = UnixListener::bind(self.path("run/update-engine/writer.sock")).unwrap();
        let (root, image, writers) = (
            self.root().to_owned(),
            self.image.clone(),
            Arc::clone(&self.writers),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut command = Command::new(ENGINE);
                command
                    .arg("--root")
                    .arg(&root)
                    .arg("--disk")
                    .arg(&image)
                    .arg("writer");
                command
                    .stdin(Stdio::from(std::os::fd::OwnedFd::from(stream)))
                    .stdout(Stdio::null());
                writers.lock().unwrap().push(command.spawn().unwrap());
            }
        });
    }

    pub fn writer(&self) -> Client {
        let client = Client::connect(self.path("run/update-engine/writer.sock")).unwrap();
        client.with_timeout(Duration::from_secs(60)).unwrap()
    }

    /// The error's text, or the last answer.
    pub fn stage(&self, release: &Release) -> Result<Value, String> {
        let call = release.call(self);
        let mut writer = self.writer();
        let replies = writer
            .call_more("io.orlop.UpdateWriter.Stage", call)
            .unwrap();
        replies.last().unwrap().map_err(|e| e.to_string())
    }

    pub fn daemon(&self) -> Daemon<'_> {
        self.daemon_with(&[])
    }

    pub fn daemon_with(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        self.start(self.engine(&["daemon"]), environment)
    }

    /// By way of another program, such as `strace`, which has to become it.
    pub fn daemon_under(&self, program: &str, arguments: &[String]) -> Daemon<'_> {
        let engine = self.engine(&["daemon"]);
        let mut command = Command::new(program);
        command.args(arguments).arg(engine.get_program());
        command.args(engine.get_args());
        self.start(command, &[])
    }

    fn start(&self, mut command: Command, environment: &[(&str, &str)]) -> Daemon<'_> {
        // Of an earlier daemon; this one's own is waited for.
        let _ = fs::remove_file(self.path("run/update-engine/status.json"));
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command.envs(environment.iter().copied());
        let child = command.spawn().unwrap();
        let daemon = Daemon { host: self, child };
        wait_for(|| {
            self.path("run/update-engine/io.orlop.UpdateEngine")
                .exists()
                && self.read("run/update-engine/status.json").is_some()
        });
        daemon
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for writer in self.writers.lock().unwrap().iter_mut() {
            let _ = writer.kill();
            let _ = writer.wait();
        }
    }
}

struct Partitions<'a>(&'a Host, Slot);

impl Devices for Partitions<'_> {
    type Io = Window<File>;

    fn open(&mut self, device: Device) -> std::io::Result<Window<File>> {
        Ok(match device {
            Device::Data => self.0.window(self.1.data_label()),
            Device::Hash => self.0.window(self.1.verity_label()),
            Device::Esp => self.0.window(ESP),
            Device::Disk => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&self.0.image)?;
                Window::new(file, 0, LAYOUT.image_size())
            }
        })
    }
}

pub struct Daemon<'a> {
    host: &'a Host,
    pub child: Child,
}

impl Daemon<'_> {
    pub fn client(&self) -> Client {
        let path = self.host.path("run/update-engine/io.orlop.UpdateEngine");
        let mut client = None;
        wait_for(|| {
            client = Client::connect(&path).ok();
            client.is_some()
        });
        client
            .unwrap()
            .with_timeout(Duration::from_secs(60))
            .unwrap()
    }

    pub fn call(&self, method: &str, parameters: Value) -> Result<Value, String> {
        self.client()
            .call(&format!("io.orlop.UpdateEngine.{method}"), parameters)
            .map_err(|e| e.to_string())
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.host.read("run/update-engine/status.json").unwrap()).unwrap()
    }

    pub fn good(&self) -> &Self {
        self.host.run(&["mark-good"]);
        self
    }

    pub fn update(&self) -> Result<Value, String> {
        self.call("Update", json!({}))
    }

    /// Most memory it ever had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For a test that cannot run everywhere; where all have to run, it fails.
pub fn left_out(why: &str) {
    let required = std::env::var_os("ORLOP_JUDGES").is_some_and(|it| it == "required");
    assert!(!required, "left out: {why}");
    eprintln!("left out: {why}");
}

pub fn wait_for(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}
