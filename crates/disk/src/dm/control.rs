//! The control device and its ioctl.

use super::wire::{self, DeviceNumber, Status};
use super::{DmError, VerityTarget};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Made by devtmpfs once dm_mod is there.
pub const CONTROL: &str = "/dev/mapper/control";

const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;

/// An open device-mapper. `File` for anything but the control device only yields errors.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// `path` is [`CONTROL`] on a running machine.
    pub fn open(path: &Path) -> Result<Control, DmError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| DmError::Open {
                path: path.display().to_string(),
                source,
            })?;
        Ok(Control { file })
    }

    /// Creates `name`, loads the target and makes it live; devtmpfs names it `/dev/dm-<minor>`.
    /// Nothing is left behind if a step fails.
    pub fn open_verity(&self, name: &str, target: &VerityTarget) -> Result<DeviceNumber, DmError> {
        check_name(name)?;
        // The form by which cryptsetup recognises its own. The name has the second half of the hash, so
        // that everybody can see which release is mounted.
        let (first, second) = target.root.halves();
        let uuid = format!("CRYPT-VERITY-{first}-{second}-{name}");
        let answer = self.call(DEV_CREATE, "create", name, wire::create(name, &uuid))?;
        let device = wire::device(&answer);

        let table = wire::load(name, "verity", target.sectors(), &target.params());
        let live = self
            .call(TABLE_LOAD, "load the table of", name, table)
            // The same command without the suspend flag resumes.
            .and_then(|_| {
                let resume = wire::request(name, wire::READONLY, 0);
                self.call(DEV_SUSPEND, "activate", name, resume)
            });
        if let Err(error) = live {
            // The first error says more than one about the clean-up would.
            let _ = self.remove(name);
            return Err(error);
        }
        Ok(device)
    }

    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        check_name(name)?;
        self.call(DEV_REMOVE, "remove", name, wire::request(name, 0, 0))?;
        Ok(())
    }

    /// Removes a device as soon as nobody has it open any more.
    pub fn remove_when_unused(&self, name: &str) -> Result<(), DmError> {
        check_name(name)?;
        let request = wire::request(name, wire::DEFERRED_REMOVE, 0);
        self.call(DEV_REMOVE, "remove", name, request)?;
        Ok(())
    }

    pub fn status(&self, name: &str) -> Result<Status, DmError> {
        check_name(name)?;
        let malformed = |why| DmError::Answer {
            name: name.to_owned(),
            why,
        };
        for room in [1 << 10, 1 << 14, 1 << 18] {
            let request = wire::request(name, 0, room);
            let answer = self.call(TABLE_STATUS, "query", name, request)?;
            if let Some(status) = wire::status(&answer).map_err(malformed)? {
                return Ok(status);
            }
        }
        Err(malformed("does not fit into 256 KiB"))
    }

    fn call(
        &self,
        number: u8,
        what: &'static str,
        name: &str,
        buf: Vec<u8>,
    ) -> Result<Vec<u8>, DmError> {
        exchange(&self.file, number, buf).map_err(|source| DmError::Ioctl {
            what,
            name: name.to_owned(),
            source,
        })
    }
}

fn check_name(name: &str) -> Result<(), DmError> {
    if name.is_empty() || name.len() > 127 || name.contains(['/', '\0']) {
        return Err(DmError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// `_IOWR(0xfd, number, struct dm_ioctl)`.
const fn dm_opcode(number: u8) -> Opcode {
    opcode::read_write::<[u8; wire::HEADER]>(0xfd, number)
}

struct Exchange<'a> {
    number: u8,
    buf: &'a mut [u8],
}

// SAFETY: device-mapper reads and writes `data_size` bytes (offset 12) at the pointer and nothing
// else. `exchange` checks that this field is the length of `buf`, which is exclusively borrowed
// for the life of `self`; any bytes are a valid `[u8]`. The kernel may write, so IS_MUTATING.
#[allow(unsafe_code)]
unsafe impl Ioctl for Exchange<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        dm_opcode(self.number)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.buf.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

fn exchange(control: &File, number: u8, mut buf: Vec<u8>) -> io::Result<Vec<u8>> {
    let size = buf
        .get(12..16)
        .filter(|_| buf.len() >= wire::HEADER)
        .and_then(|size| size.try_into().ok())
        .map(u32::from_ne_bytes);
    if size.map(u64::from) != Some(buf.len() as u64) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let call = Exchange {
        number,
        buf: &mut buf,
    };
    // SAFETY: see `impl Ioctl for Exchange`; on a file that is not device-mapper the numbers of
    // magic 0xfd belong to no other driver and fail with ENOTTY.
    #[allow(unsafe_code)]
    unsafe {
        rustix::ioctl::ioctl(control, call)?;
    }
    Ok(buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers() {
        // As a C program with <linux/dm-ioctl.h> prints them.
        assert_eq!(dm_opcode(DEV_CREATE), 0xc138_fd03);
        assert_eq!(dm_opcode(DEV_REMOVE), 0xc138_fd04);
        assert_eq!(dm_opcode(DEV_SUSPEND), 0xc138_fd06);
        assert_eq!(dm_opcode(TABLE_LOAD), 0xc138_fd09);
        assert_eq!(dm_opcode(TABLE_STATUS), 0xc138_fd0c);
    }

    #[test]
    fn errors_name_the_device_and_the_step() {
        let control = Control::open(Path::new("/dev/null")).unwrap();
        let error = control.remove("usr").unwrap_err();
        assert_eq!(
            error.to_string(),
            "device-mapper cannot remove \"usr\" (is it still mounted?)"
        );
        assert!(matches!(control.remove("a/b"), Err(DmError::Name { .. })));
        assert!(matches!(
            Control::open(Path::new("/nonexistent")),
            Err(DmError::Open { .. })
        ));
    }

    #[test]
    fn a_request_whose_size_lies_never_reaches_the_kernel() {
        let file = File::open("/dev/null").unwrap();
        let mut buf = wire::request("usr", 0, 0);
        buf.truncate(311);
        let error = exchange(&file, DEV_REMOVE, buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
