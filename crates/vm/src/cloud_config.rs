//! The cloud-config of a node whose user brought none.

/// What the default cloud-config depends on.
#[derive(Debug, Clone)]
pub struct Defaults<'a> {
    /// The node's name.
    pub hostname: &'a str,
    /// The lab's public key.
    pub public_key: &'a str,
    /// The update channel.
    pub channel: &'a str,
    /// The update-server as the guest sees it.
    pub server: &'a str,
}

/// The workstation as a guest on QEMU's user network sees it.
pub const WORKSTATION: &str = "10.0.2.2";

/// The Omaha address of an update-server on a port of this workstation, for a guest.
pub fn omaha_url(port: u16) -> String {
    format!("http://{WORKSTATION}:{port}/v1/update/")
}

/// The text of the default cloud-config.
pub fn default(values: &Defaults<'_>) -> String {
    let Defaults {
        hostname,
        public_key,
        channel,
        server,
    } = values;
    format!(
        "#cloud-config\n\
         hostname: {hostname}\n\
         ssh_authorized_keys:\n  - {public_key}\n\
         coreos:\n  update:\n    group: {channel}\n    server: {server}\n    reboot-strategy: reboot\n    interval: 30s\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_a_hand_written_one() {
        insta::assert_snapshot!(
            default(&Defaults {
                hostname: "n1",
                public_key: "ssh-ed25519 AAAA lab",
                channel: "stable",
                server: &omaha_url(8090),
            }),
            @r"
        #cloud-config
        hostname: n1
        ssh_authorized_keys:
          - ssh-ed25519 AAAA lab
        coreos:
          update:
            group: stable
            server: http://10.0.2.2:8090/v1/update/
            reboot-strategy: reboot
            interval: 30s
        "
        );
    }
}
