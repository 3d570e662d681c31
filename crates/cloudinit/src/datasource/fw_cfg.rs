//! QEMU's `-fw_cfg name=opt/org.flatcar-linux/config,file=…`.

use std::io;

use super::{Datasource, Found, Probe, SourceError};

const DIR: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt";
/// Ours, then the names that scripts in the field use.
const VENDORS: [&str; 3] = ["orlop", "org.flatcar-linux", "com.coreos"];
const NAMES: [&str; 2] = ["user-data", "config"];

pub(super) struct FwCfg;

impl Datasource for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        for vendor in VENDORS {
            for name in NAMES {
                let path = probe.path(&format!("{DIR}/{vendor}/{name}/raw"));
                match std::fs::read(&path) {
                    Ok(bytes) => {
                        return Ok(Some(Found {
                            origin: format!("fw_cfg opt/{vendor}/{name}"),
                            user_data: Some(bytes),
                            ..Found::default()
                        }));
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => {
                        let what = "user-data".to_owned();
                        return Err(SourceError::Read { path, what, source });
                    }
                }
            }
        }
        Ok(None)
    }
}

/// The firmware has the device (ACPI id QEMU0002) but its module is not loaded yet.
pub(super) fn pending(probe: &Probe<'_>) -> Option<String> {
    let device = probe.path("/sys/bus/acpi/devices/QEMU0002:00");
    let ready = probe.path("/sys/firmware/qemu_fw_cfg");
    (device.exists() && !ready.exists()).then(|| "QEMU's fw_cfg".to_owned())
}
