//! A machine as data, and the QEMU command line that it means. `orlop up --dry-run` prints it.

use std::path::{Path, PathBuf};

use crate::accel::Accel;
use crate::replay::WRITES;
use crate::seed::Datasource;

/// How the machine starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// Firmware → systemd-boot → UKI, as on a real machine: slots, tries and fallback work.
    Uefi {
        /// The firmware's code, shared and read-only.
        code: PathBuf,
    },
    /// QEMU loads kernel and initrd: quicker, but it always boots this kernel, whatever slots say.
    Direct {
        /// `vmlinuz`.
        kernel: PathBuf,
        /// `initrd.img`.
        initrd: PathBuf,
        /// The release's command line.
        cmdline: String,
    },
}

/// Everything that decides the command line. Paths without a directory are in the node's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The node's name.
    pub name: String,
    /// Where the node's files are; QEMU runs in it, so that socket paths stay short.
    pub dir: PathBuf,
    /// How guest code runs.
    pub accel: Accel,
    /// How the machine starts.
    pub boot: Boot,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// The port of 127.0.0.1 that leads to the guest's port 22.
    pub ssh_port: u16,
    /// How it gets its user-data, if at all.
    pub datasource: Option<Datasource>,
    /// More QEMU arguments, such as `-fw_cfg name=…,file=…`.
    pub extra: Vec<String>,
    /// Everything that is written to the disk also goes into a log.
    pub recorded: bool,
    /// Wait for a saved state instead of starting.
    pub incoming: bool,
}

/// The node's disk, in its directory.
pub const DISK: &str = "disk.qcow2";
/// The firmware's variables.
pub const VARS: &str = "vars.fd";
/// The serial console's socket.
pub const CONSOLE_SOCKET: &str = "console.sock";
/// All that the serial console ever said.
pub const CONSOLE_LOG: &str = "console.log";
/// QEMU's own control socket.
pub const QMP_SOCKET: &str = "qmp.sock";

impl Plan {
    /// The arguments for `qemu-system-x86_64`.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = Argv::default();
        argv.add("-name", &self.name);
        // Nobody else's command line holds this path: `down` looks for it before it stops a pid.
        argv.add("-pidfile", &self.dir.join("qemu.pid").display().to_string());
        argv.add("-machine", "q35");
        argv.list(self.accel.args());
        argv.add("-smp", &self.cpus.to_string());
        argv.add("-m", &self.memory_mib.to_string());
        argv.list(["-nodefaults", "-no-user-config"]);
        // No window, but a screen: a screenshot shows what the firmware had to say.
        argv.add("-display", "none");
        argv.add("-vga", "std");
        argv.add("-device", "virtio-rng-pci");
        argv.add(
            "-chardev",
            &format!("socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG},logappend=on"),
        );
        argv.add("-serial", "chardev:console");
        argv.add(
            "-chardev",
            &format!("socket,id=qmp,path={QMP_SOCKET},server=on,wait=off"),
        );
        argv.add("-mon", "chardev=qmp,mode=control");
        self.boot_args(&mut argv);
        argv.add("-drive", &self.disk());
        argv.add(
            "-device",
            match self.boot {
                // The firmware looks at this disk first, and at nothing before it.
                Boot::Uefi { .. } => "virtio-blk-pci,drive=disk,serial=orlop,bootindex=0",
                Boot::Direct { .. } => "virtio-blk-pci,drive=disk,serial=orlop",
            },
        );
        match self.datasource {
            Some(source @ (Datasource::Nocloud | Datasource::ConfigDrive)) => {
                let file = source.file();
                argv.add(
                    "-drive",
                    &format!("if=none,id=seed,format=raw,readonly=on,file={file}"),
                );
                argv.add("-device", "virtio-blk-pci,drive=seed");
            }
            Some(source @ Datasource::FwCfg) => {
                let file = source.file();
                argv.add("-fw_cfg", &format!("name=opt/orlop/user-data,file={file}"));
            }
            Some(Datasource::None) | None => {}
        }
        argv.add(
            "-netdev",
            &format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-:22", self.ssh_port),
        );
        // An empty romfile: the firmware need not try to boot from the network.
        argv.add("-device", "virtio-net-pci,netdev=net,romfile=");
        argv.list(self.extra.iter().map(String::as_str));
        if self.incoming {
            argv.add("-incoming", "defer");
        }
        argv.0
    }

    fn disk(&self) -> String {
        match self.recorded {
            false => format!("if=none,id=disk,format=qcow2,discard=unmap,file={DISK}"),
            // The log is as long as it needs to be, also behind its end.
            true => format!(
                "if=none,id=disk,driver=blklogwrites,discard=unmap,file.driver=qcow2,file.discard=unmap,\
                 file.file.driver=file,file.file.filename={DISK},log.driver=file,log.filename={WRITES},log-sector-size=512"
            ),
        }
    }

    fn boot_args(&self, argv: &mut Argv) {
        match &self.boot {
            Boot::Uefi { code } => {
                argv.add(
                    "-drive",
                    &format!(
                        "if=pflash,unit=0,format=raw,readonly=on,file={}",
                        value(code)
                    ),
                );
                argv.add(
                    "-drive",
                    &format!("if=pflash,unit=1,format=raw,file={VARS}"),
                );
            }
            Boot::Direct {
                kernel,
                initrd,
                cmdline,
            } => {
                argv.add("-kernel", &kernel.display().to_string());
                argv.add("-initrd", &initrd.display().to_string());
                argv.add("-append", cmdline);
            }
        }
    }

    /// The command as a shell would take it.
    pub fn command_line(&self) -> String {
        let words = self
            .argv()
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(" ");
        format!(
            "cd {} && qemu-system-x86_64 {words}",
            quote(&self.dir.display().to_string())
        )
    }
}

#[derive(Default)]
struct Argv(Vec<String>);

impl Argv {
    fn add(&mut self, option: &str, value: &str) {
        self.list([option, value]);
    }

    fn list<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) {
        self.0.extend(words.into_iter().map(str::to_owned));
    }
}

/// A path inside a QEMU option, where a comma begins the next key.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A word for a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(boot: Boot) -> Plan {
        Plan {
            name: "n1".into(),
            dir: "/lab/vm/n1".into(),
            accel: Accel::Tcg,
            boot,
            memory_mib: 1024,
            cpus: 2,
            ssh_port: 2222,
            datasource: Some(Datasource::Nocloud),
            extra: vec![],
            recorded: false,
            incoming: false,
        }
    }

    fn lines(plan: &Plan) -> String {
        plan.command_line().replace(" -", " \\\n  -")
    }

    #[test]
    fn with_firmware() {
        let plan = plan(Boot::Uefi {
            code: "/ovmf/CODE.fd".into(),
        });
        insta::assert_snapshot!(lines(&plan), @r"
        cd /lab/vm/n1 && qemu-system-x86_64 \
          -name n1 \
          -pidfile /lab/vm/n1/qemu.pid \
          -machine q35 \
          -accel tcg,thread=multi \
          -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16 \
          -smp 2 \
          -m 1024 \
          -nodefaults \
          -no-user-config \
          -display none \
          -vga std \
          -device virtio-rng-pci \
          -chardev socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log,logappend=on \
          -serial chardev:console \
          -chardev socket,id=qmp,path=qmp.sock,server=on,wait=off \
          -mon chardev=qmp,mode=control \
          -drive if=pflash,unit=0,format=raw,readonly=on,file=/ovmf/CODE.fd \
          -drive if=pflash,unit=1,format=raw,file=vars.fd \
          -drive if=none,id=disk,format=qcow2,discard=unmap,file=disk.qcow2 \
          -device virtio-blk-pci,drive=disk,serial=orlop,bootindex=0 \
          -drive if=none,id=seed,format=raw,readonly=on,file=cidata.img \
          -device virtio-blk-pci,drive=seed \
          -netdev user,id=net,hostfwd=tcp:127.0.0.1:2222-:22 \
          -device virtio-net-pci,netdev=net,romfile=
        ");
    }

    #[test]
    fn without_firmware_from_a_saved_state() {
        let mut plan = plan(Boot::Direct {
            kernel: "/r/1/vmlinuz".into(),
            initrd: "/r/1/initrd.img".into(),
            cmdline: "usrhash=00 quiet".into(),
        });
        plan.incoming = true;
        plan.datasource = None;
        plan.extra = vec!["-fw_cfg".into(), "name=opt/x,file=y".into()];
        insta::assert_snapshot!(lines(&plan), @r"
        cd /lab/vm/n1 && qemu-system-x86_64 \
          -name n1 \
          -pidfile /lab/vm/n1/qemu.pid \
          -machine q35 \
          -accel tcg,thread=multi \
          -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16 \
          -smp 2 \
          -m 1024 \
          -nodefaults \
          -no-user-config \
          -display none \
          -vga std \
          -device virtio-rng-pci \
          -chardev socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log,logappend=on \
          -serial chardev:console \
          -chardev socket,id=qmp,path=qmp.sock,server=on,wait=off \
          -mon chardev=qmp,mode=control \
          -kernel /r/1/vmlinuz \
          -initrd /r/1/initrd.img \
          -append 'usrhash=00 quiet' \
          -drive if=none,id=disk,format=qcow2,discard=unmap,file=disk.qcow2 \
          -device virtio-blk-pci,drive=disk,serial=orlop \
          -netdev user,id=net,hostfwd=tcp:127.0.0.1:2222-:22 \
          -device virtio-net-pci,netdev=net,romfile= \
          -fw_cfg name=opt/x,file=y \
          -incoming defer
        ");
    }
}
