//! Sections that become environment variables of a service, and `coreos.oem`.

use super::reader::Reader;
use crate::yaml::Node;

/// `NAME=value` in the order of the original's tables, which the generated files show.
pub type EnvSection = Vec<(String, String)>;

#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// A whole number; 0 is as good as absent.
    Int,
    Float,
    /// `false` is as good as absent.
    Flag,
    /// When locksmith's window opens, and for how long.
    Start,
    Length,
}

use Kind::{Flag, Float, Int, Length, Start, Text};

pub(super) struct Table {
    prefix: &'static str,
    /// Key, kind, and the variable where it is not the prefix and the key in capitals.
    keys: &'static [(&'static str, Kind, &'static str)],
}

impl Table {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|(name, ..)| *name)
    }
}

pub(super) fn read(r: &mut Reader, node: &Node, table: &Table, section: &mut EnvSection) {
    let names: Vec<&str> = table.keys.iter().map(|(key, ..)| *key).collect();
    let mut values: Vec<Option<String>> = vec![None; names.len()];
    r.fields(node, &names, |r, key, node| {
        if let Some(index) = names.iter().position(|name| *name == key) {
            values[index] = value(r, node, table.keys[index].1);
        }
    });
    for ((key, _, variable), value) in table.keys.iter().zip(values) {
        let name = match *variable {
            "" => format!("{}{}", table.prefix, key.to_ascii_uppercase()),
            name => name.to_owned(),
        };
        if let Some(value) = value {
            section.retain(|(other, _)| *other != name);
            section.push((name, value));
        }
    }
}

fn value(r: &mut Reader, node: &Node, kind: Kind) -> Option<String> {
    let text = match kind {
        Flag => return r.boolean(node).then(|| "true".to_owned()),
        _ => r.line(node).filter(|text| !text.is_empty())?,
    };
    let text = match kind {
        Int => text
            .replace('_', "")
            .parse::<i64>()
            .ok()
            .map(|n| (n != 0).then(|| n.to_string())),
        Float => text
            .parse::<f64>()
            .ok()
            .map(|n| (n != 0.0).then(|| n.to_string())),
        _ => Some(Some(text.clone())),
    }
    .unwrap_or_else(|| {
        r.error(node.pos, format!("expected a number, found {text:?}"));
        None
    });
    let bad_window = text.as_deref().and_then(|text| match kind {
        Start => host::conf::parse_window_start(text).err(),
        Length => host::conf::parse_duration(text).err(),
        _ => None,
    });
    if let Some(problem) = bad_window {
        r.warning(node.pos, format!("locksmith will not reboot: {problem}"));
    }
    // It ends up between double quotes in Environment=.
    if text.as_deref().is_some_and(|text| text.contains('"')) {
        r.warning(
            node.pos,
            "a double quote does not survive in a unit's Environment=",
        );
    }
    text
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Oem {
    pub id: String,
    pub name: String,
    pub version_id: String,
    pub home_url: String,
    pub bug_report_url: String,
}

pub(super) const OEM: &[&str] = &["bug_report_url", "home_url", "id", "name", "version_id"];

pub(super) fn oem(r: &mut Reader, node: &Node) -> Option<Oem> {
    let mut oem = Oem::default();
    r.fields(node, OEM, |r, key, node| {
        let value = r.line(node).unwrap_or_default();
        match key {
            "bug_report_url" => oem.bug_report_url = value,
            "home_url" => oem.home_url = value,
            "id" => oem.id = value,
            "name" => oem.name = value,
            _ => oem.version_id = value,
        }
    });
    Some(oem).filter(|oem| !oem.id.is_empty())
}

pub(super) const ETCD: &Table = &Table {
    prefix: "ETCD_",
    keys: &[
        ("addr", Text, ""),
        ("advertise_client_urls", Text, ""),
        ("bind_addr", Text, ""),
        ("ca_file", Text, ""),
        ("cert_file", Text, ""),
        ("cluster_active_size", Int, ""),
        ("cluster_remove_delay", Float, ""),
        ("cluster_sync_interval", Float, ""),
        ("cors", Text, ""),
        ("data_dir", Text, ""),
        ("discovery", Text, ""),
        ("discovery_fallback", Text, ""),
        ("discovery_srv", Text, ""),
        ("discovery_proxy", Text, ""),
        ("election_timeout", Int, ""),
        ("force_new_cluster", Flag, ""),
        ("graphite_host", Text, ""),
        ("heartbeat_interval", Int, ""),
        ("http_read_timeout", Float, ""),
        ("http_write_timeout", Float, ""),
        ("initial_advertise_peer_urls", Text, ""),
        ("initial_cluster", Text, ""),
        ("initial_cluster_state", Text, ""),
        ("initial_cluster_token", Text, ""),
        ("key_file", Text, ""),
        ("listen_client_urls", Text, ""),
        ("listen_peer_urls", Text, ""),
        ("max_result_buffer", Int, ""),
        ("max_retry_attempts", Int, ""),
        ("max_snapshots", Int, ""),
        ("max_wals", Int, ""),
        ("name", Text, ""),
        ("peer_addr", Text, ""),
        ("peer_bind_addr", Text, ""),
        ("peer_ca_file", Text, ""),
        ("peer_cert_file", Text, ""),
        ("peer_election_timeout", Int, ""),
        ("peer_heartbeat_interval", Int, ""),
        ("peer_key_file", Text, ""),
        ("peers", Text, ""),
        ("peers_file", Text, ""),
        ("proxy", Text, ""),
        ("retry_interval", Float, ""),
        ("snapshot", Flag, ""),
        ("snapshot_count", Int, "ETCD_SNAPSHOTCOUNT"),
        ("trace", Text, ""),
        ("verbose", Flag, ""),
        ("very_verbose", Flag, ""),
        ("very_very_verbose", Flag, ""),
    ],
};

pub(super) const ETCD2: &Table = &Table {
    prefix: "ETCD_",
    keys: &[
        ("advertise_client_urls", Text, ""),
        ("ca_file", Text, ""),
        ("cert_file", Text, ""),
        ("client_cert_auth", Flag, ""),
        ("cors", Text, ""),
        ("data_dir", Text, ""),
        ("debug", Flag, ""),
        ("discovery", Text, ""),
        ("discovery_fallback", Text, ""),
        ("discovery_srv", Text, ""),
        ("discovery_proxy", Text, ""),
        ("election_timeout", Int, ""),
        ("enable_pprof", Flag, ""),
        ("force_new_cluster", Flag, ""),
        ("heartbeat_interval", Int, ""),
        ("initial_advertise_peer_urls", Text, ""),
        ("initial_cluster", Text, ""),
        ("initial_cluster_state", Text, ""),
        ("initial_cluster_token", Text, ""),
        ("key_file", Text, ""),
        ("listen_client_urls", Text, ""),
        ("listen_peer_urls", Text, ""),
        ("log_package_levels", Text, ""),
        ("max_snapshots", Int, ""),
        ("max_wals", Int, ""),
        ("name", Text, ""),
        ("peer_ca_file", Text, ""),
        ("peer_cert_file", Text, ""),
        ("peer_key_file", Text, ""),
        ("peer_client_cert_auth", Flag, ""),
        ("peer_trusted_ca_file", Text, ""),
        ("proxy", Text, ""),
        ("proxy_dial_timeout", Int, ""),
        ("proxy_failure_wait", Int, ""),
        ("proxy_read_timeout", Int, ""),
        ("proxy_refresh_interval", Int, ""),
        ("proxy_write_timeout", Int, ""),
        ("snapshot_count", Int, ""),
        ("strict_reconfig_check", Flag, ""),
        ("trusted_ca_file", Text, ""),
        ("wal_dir", Text, ""),
    ],
};

pub(super) const FLEET: &Table = &Table {
    prefix: "FLEET_",
    keys: &[
        ("agent_ttl", Text, ""),
        ("authorized_keys_file", Text, ""),
        ("disable_engine", Flag, ""),
        ("disable_watches", Flag, ""),
        ("engine_reconcile_interval", Float, ""),
        ("etcd_cafile", Text, ""),
        ("etcd_certfile", Text, ""),
        ("etcd_keyfile", Text, ""),
        ("etcd_key_prefix", Text, ""),
        ("etcd_request_timeout", Float, ""),
        ("etcd_servers", Text, ""),
        ("etcd_username", Text, ""),
        ("etcd_password", Text, ""),
        ("metadata", Text, ""),
        ("public_ip", Text, ""),
        ("token_limit", Int, ""),
        ("verbosity", Int, ""),
        ("verify_units", Flag, ""),
    ],
};

pub(super) const FLANNEL: &Table = &Table {
    prefix: "FLANNELD_",
    keys: &[
        ("etcd_endpoints", Text, ""),
        ("etcd_cafile", Text, ""),
        ("etcd_certfile", Text, ""),
        ("etcd_keyfile", Text, ""),
        ("etcd_prefix", Text, ""),
        ("etcd_username", Text, ""),
        ("etcd_password", Text, ""),
        ("ip_masq", Text, ""),
        ("subnet_file", Text, ""),
        ("interface", Text, "FLANNELD_IFACE"),
        ("public_ip", Text, ""),
    ],
};

pub(super) const LOCKSMITH: &Table = &Table {
    prefix: "LOCKSMITHD_",
    keys: &[
        ("endpoint", Text, ""),
        ("etcd_cafile", Text, ""),
        ("etcd_certfile", Text, ""),
        ("etcd_keyfile", Text, ""),
        ("group", Text, ""),
        ("window_start", Start, "REBOOT_WINDOW_START"),
        ("window_length", Length, "REBOOT_WINDOW_LENGTH"),
    ],
};
