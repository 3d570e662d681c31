//! Loading the few kernel modules of the initrd: `/modules.conf` has one per line in load order,
//! followed by the device aliases that call for it (none: always). A path that begins with `/` lies
//! in /usr and waits until that is mounted.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::Context;
use crate::fail::Fail;

struct Module {
    file: String,
    aliases: Vec<String>,
}

impl Module {
    fn in_usr(&self) -> bool {
        self.file.starts_with('/')
    }
}

pub(crate) struct Modules {
    list: Vec<Module>,
    loaded: RefCell<BTreeSet<usize>>,
}

impl Modules {
    pub(crate) fn read() -> Result<Self, Fail> {
        let text = fs::read_to_string("/modules.conf").step("reading /modules.conf")?;
        Ok(Self {
            list: parse(&text),
            loaded: RefCell::default(),
        })
    }

    pub(crate) fn load_always(&self) -> Result<(), Fail> {
        self.load(|m| m.aliases.is_empty() && !m.in_usr())
    }

    /// The rest, out of the mounted /usr.
    pub(crate) fn load_from_usr(&self) -> Result<(), Fail> {
        self.load(Module::in_usr)
    }

    /// Loads the next driver whose device is there; false if there is none. One at a time, so that
    /// the disk is used as soon as its driver runs, and drivers of other buses wait for udev.
    pub(crate) fn load_next_for_devices(&self) -> Result<bool, Fail> {
        let devices = device_aliases();
        let wanted = |m: &Module| {
            m.aliases
                .iter()
                .any(|a| devices.iter().any(|d| matches(a, d)))
        };
        let next = self.list.iter().enumerate().find(|(index, module)| {
            !module.in_usr() && !self.loaded.borrow().contains(index) && wanted(module)
        });
        match next {
            Some((index, module)) => self.load_one(index, module).map(|()| true),
            None => Ok(false),
        }
    }

    fn load(&self, wanted: impl Fn(&Module) -> bool) -> Result<(), Fail> {
        for (index, module) in self.list.iter().enumerate() {
            if wanted(module) {
                self.load_one(index, module)?;
            }
        }
        Ok(())
    }

    fn load_one(&self, index: usize, module: &Module) -> Result<(), Fail> {
        if !self.loaded.borrow_mut().insert(index) {
            return Ok(());
        }
        let path = Path::new("/modules").join(&module.file);
        let path = path.display().to_string();
        let file = fs::File::open(&path).step(format!("opening {path}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // ENODEV: the processor lacks a feature that the module accelerates.
            Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => Ok(()),
            Err(e) => Err(Fail::new(format!("loading {path}"), e)),
        }
    }
}

fn parse(text: &str) -> Vec<Module> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some(Module {
                file: words.next()?,
                aliases: words.collect(),
            })
        })
        .collect()
}

fn device_aliases() -> Vec<String> {
    let mut found = Vec::new();
    let buses = ["pci", "virtio", "scsi", "vmbus", "xen", "acpi", "platform"];
    for bus in buses {
        let Ok(devices) = fs::read_dir(format!("/sys/bus/{bus}/devices")) else {
            continue;
        };
        for device in devices.flatten() {
            if let Ok(alias) = fs::read_to_string(device.path().join("modalias")) {
                found.push(alias.trim_end().to_owned());
            }
        }
    }
    if let Ok(alias) = fs::read_to_string("/sys/devices/system/cpu/modalias") {
        found.push(alias.trim_end().to_owned());
    }
    found
}

/// fnmatch(3) as module aliases use it: `*`, `?` and bracketed sets.
fn matches(pattern: &str, text: &str) -> bool {
    fn go(p: &[u8], t: &[u8]) -> bool {
        match p.first() {
            None => t.is_empty(),
            Some(b'*') => (0..=t.len()).any(|skip| go(&p[1..], &t[skip..])),
            Some(b'?') => !t.is_empty() && go(&p[1..], &t[1..]),
            Some(b'[') => {
                let Some(end) = p.iter().position(|b| *b == b']') else {
                    return false;
                };
                let Some(c) = t.first() else { return false };
                let set = &p[1..end];
                let in_range = set
                    .windows(3)
                    .any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(c));
                (in_range || set.contains(c)) && go(&p[end + 1..], &t[1..])
            }
            Some(c) => t.first() == Some(c) && go(&p[1..], &t[1..]),
        }
    }
    go(pattern.as_bytes(), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_match_as_modprobe_does() {
        assert!(matches("virtio:d00000002v*", "virtio:d00000002v00001AF4"));
        assert!(!matches("virtio:d00000008v*", "virtio:d00000002v00001AF4"));
        assert!(matches(
            "pci:v*d*sv*sd*bc01sc06i01*",
            "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
        ));
        assert!(matches("a[0-9]b?", "a7bx"));
        assert!(!matches("a[0-9]b", "axb"));
    }

    #[test]
    fn a_line_without_aliases_means_always() {
        let m = parse("erofs.ko\nvirtio_blk.ko virtio:d2* virtio:d3*\n");
        assert!(m[0].aliases.is_empty());
        assert_eq!(m[1].aliases.len(), 2);
    }
}
