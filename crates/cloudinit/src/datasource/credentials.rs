//! systemd's credentials: SMBIOS strings (`io.systemd.credential:cloudinit.user-data=…`), QEMU's fw_cfg,
//! or a container manager. The service imports them by name.

use std::path::Path;

use super::{Datasource, Found, Probe, SourceError, meta_data};

const DIR: &str = "/run/credentials/cloudinit.service";

pub(super) struct Credentials;

impl Datasource for Credentials {
    fn name(&self) -> &'static str {
        "credentials"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let read = |name: &str| super::file(&probe.path(&format!("{DIR}/{name}")), name);
        let user_data = read("cloudinit.user-data")?;
        let meta = read("cloudinit.meta-data")?;
        if user_data.is_none() && meta.is_none() {
            return Ok(None);
        }
        let mut found = Found {
            origin: format!("credentials {}", Path::new(DIR).display()),
            user_data,
            ..Found::default()
        };
        match meta_data(&meta.unwrap_or_default()) {
            Ok(metadata) => found.metadata = metadata,
            Err(finding) => found.findings.push(finding),
        }
        Ok(Some(found))
    }
}
