//! Which platform this is, by what costs nothing: the kernel command line, then the firmware's tables.
//! The precedence reads top to bottom.

use std::path::Path;

use host::cmdline::Cmdline;

use super::Remote;

/// What is known before anything is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// To be asked before any local source: somebody said so.
    pub first: Vec<Remote>,
    /// To be asked when no local source has anything.
    pub later: Vec<Remote>,
}

/// What somebody wrote on the kernel command line.
pub fn explicit(cmdline: &Cmdline) -> Vec<Remote> {
    let mut sources = Vec::new();
    if let Some(url) = cmdline
        .get("cloud-config-url")
        .filter(|url| !url.is_empty())
    {
        let pin = cmdline.get("cloud-config-sha256").or(cmdline.get("sha256"));
        sources.push(Remote::Url {
            url: url.to_owned(),
            sha256: pin.map(str::to_owned),
        });
    }
    sources.extend(cmdline.get("ds").and_then(nocloud));
    sources
}

/// `nocloud;s=http://…/` (also `nocloud-net`), as cloud-init has it.
fn nocloud(text: &str) -> Option<Remote> {
    let mut parts = text.split(';');
    let name = parts.next()?;
    if !matches!(name, "nocloud" | "nocloud-net") {
        return None;
    }
    let seed = parts.find_map(|part| part.strip_prefix("s=").or(part.strip_prefix("seedfrom=")))?;
    let remote = ["http://", "https://"].iter().any(|s| seed.starts_with(s));
    remote.then(|| Remote::NoCloud {
        seed: seed.to_owned(),
    })
}

pub fn detect(root: &Path) -> Hint {
    let cmdline = Cmdline::read(root).unwrap_or_default();
    let first = explicit(&cmdline);
    // The name of the platform, in our words and in those of images before us.
    for key in [
        "orlop.platform",
        "ignition.platform.id",
        "flatcar.oem.id",
        "coreos.oem.id",
    ] {
        if let Some(name) = cmdline.get(key) {
            let later = Remote::named(name).into_iter().collect();
            return Hint { first, later };
        }
    }
    let dmi = Dmi::read(root);
    Hint {
        first,
        later: dmi.platform().into_iter().collect(),
    }
}

/// The firmware's tables, as the kernel shows them.
#[derive(Debug, Default)]
struct Dmi {
    vendor: String,
    product: String,
    serial: String,
    bios_vendor: String,
    bios_version: String,
    asset: String,
}

impl Dmi {
    fn read(root: &Path) -> Self {
        let read = |name: &str| {
            let path = host::under(root, format!("/sys/class/dmi/id/{name}"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        Self {
            vendor: read("sys_vendor"),
            product: read("product_name"),
            serial: read("product_serial"),
            bios_vendor: read("bios_vendor"),
            bios_version: read("bios_version"),
            asset: read("chassis_asset_tag"),
        }
    }

    fn platform(&self) -> Option<Remote> {
        let Self {
            vendor,
            product,
            serial,
            bios_vendor,
            bios_version,
            asset,
        } = self;
        let amazon = bios_version.to_ascii_lowercase().contains("amazon");
        // QEMU's `-smbios type=1,serial=ds=nocloud;s=http://…/`.
        if let Some(seed) = serial.strip_prefix("ds=").and_then(nocloud) {
            return Some(seed);
        }
        Some(match () {
            () if vendor == "Amazon EC2" || bios_vendor == "Amazon EC2" || amazon => Remote::Ec2,
            () if product == "Google Compute Engine" => Remote::Gce,
            () if asset == "7783-7084-3265-9085-8269-3286-77" => Remote::Azure,
            () if asset == "OracleCloud.com" => Remote::Oracle,
            () if vendor == "DigitalOcean" => Remote::DigitalOcean,
            () if vendor == "Hetzner" => Remote::Hetzner,
            () if vendor == "Vultr" => Remote::Vultr,
            () if vendor == "Akamai" || vendor == "Linode" => Remote::Akamai,
            () if vendor == "Scaleway" => Remote::Scaleway,
            () if vendor == "Exoscale" || product == "Exoscale Compute Platform" => {
                Remote::Exoscale
            }
            () if vendor.starts_with("Apache Software Foundation")
                || product.starts_with("CloudStack") =>
            {
                Remote::CloudStack
            }
            () if vendor == "Alibaba Cloud" || product == "Alibaba Cloud ECS" => Remote::Alibaba,
            () if vendor == "Packet" || vendor == "Equinix" => Remote::Packet,
            () if product.starts_with("OpenStack")
                || matches!(vendor.as_str(), "OpenStack Foundation" | "Brightbox")
                || matches!(
                    asset.as_str(),
                    "OpenTelekomCloud" | "SAP CCloud VM" | "HUAWEICLOUD" | "Samsung Cloud Platform"
                ) =>
            {
                Remote::OpenStack
            }
            () => return None,
        })
    }
}
