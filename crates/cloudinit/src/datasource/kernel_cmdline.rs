//! `cloud-config-url=` on the kernel command line.

use super::{Datasource, Found, Probe, SourceError};

pub(super) struct KernelCmdline;

impl Datasource for KernelCmdline {
    fn name(&self) -> &'static str {
        "kernel command line"
    }

    /// Fetching needs the network, which is not up when cloudinit runs: say so instead of passing
    /// over what somebody asked for.
    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let Ok(cmdline) = host::cmdline::Cmdline::read(probe.root) else {
            return Ok(None);
        };
        match cmdline.get("cloud-config-url") {
            None => Ok(None),
            Some(url) => Err(SourceError::Unsupported {
                problem: format!("cloud-config-url={url} is not supported yet"),
            }),
        }
    }
}
