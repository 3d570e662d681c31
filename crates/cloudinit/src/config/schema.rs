//! A JSON Schema of the cloud-config, for editors. Made from the tables that the reader itself uses.

use serde_json::{Map, Value, json};

use super::{COREOS_KEYS, KEYS, elsewhere, files, sections, units, update, users};

pub fn schema() -> Value {
    let text = || json!({ "type": ["string", "number", "boolean", "null"] });
    let line = text;
    let boolean = || json!({ "type": ["boolean", "string", "null"] });
    let lines = || json!({ "type": ["array", "null"], "items": { "type": "string" } });
    let list = |items: Value| json!({ "type": ["array", "null"], "items": items });
    let user = object(users::KEYS, |key| match key {
        "ssh_authorized_keys" | "coreos_ssh_import_github_users" => lines(),
        "groups" | "sudo" | "ssh_import_id" => {
            json!({ "type": ["string", "array", "boolean", "null"] })
        }
        "no_create_home" | "no_user_group" | "no_log_init" | "system" | "lock_passwd" => boolean(),
        _ => line(),
    });
    let file = object(files::KEYS, |key| match key {
        "encoding" => {
            let mut names = files::ENCODINGS.to_vec();
            names.extend(["text/plain", ""]);
            json!({ "enum": names })
        }
        "permissions" => json!({ "type": ["string", "integer"], "examples": ["0644"] }),
        "append" | "defer" => boolean(),
        "source" => object(files::SOURCE_KEYS, |key| match key {
            "uri" => line(),
            _ => json!({ "type": "object", "additionalProperties": text() }),
        }),
        _ => text(),
    });
    let drop_in = object(&["content", "name"], |_| text());
    let unit = object(units::KEYS, |key| match key {
        "command" => json!({ "enum": units::Verb::names() }),
        "drop_ins" => list(drop_in.clone()),
        "enable" | "mask" | "runtime" => boolean(),
        _ => text(),
    });
    let section = |table: &sections::Table| {
        let names: Vec<&str> = table.names().collect();
        object(&names, |_| text())
    };
    let coreos = object(COREOS_KEYS, |key| match key {
        "etcd" => section(sections::ETCD),
        "etcd2" => section(sections::ETCD2),
        "flannel" => section(sections::FLANNEL),
        "fleet" => section(sections::FLEET),
        "locksmith" => section(sections::LOCKSMITH),
        "oem" => object(sections::OEM, |_| line()),
        "units" => list(unit.clone()),
        _ => object(update::KEYS, |key| match key {
            // YAML 1.1 editors take a bare `off` for false.
            "reboot_strategy" => {
                let mut names: Vec<Value> = update::STRATEGIES.iter().map(|s| json!(s)).collect();
                names.push(json!(false));
                json!({ "enum": names })
            }
            _ => line(),
        }),
    });
    let all = [KEYS, elsewhere::KEYS].concat();
    let mut root = object(&all, |key| match key {
        "coreos" => coreos.clone(),
        "users" => list(json!({ "anyOf": [{ "const": "default" }, user.clone()] })),
        "write_files" => list(file.clone()),
        "ssh_authorized_keys" => lines(),
        "manage_etc_hosts" => json!({ "enum": ["localhost", "", null] }),
        "bootcmd" | "runcmd" => list(json!({ "type": ["string", "array"] })),
        "groups" | "ssh_import_id" => json!({ "type": ["array", "string", "null"] }),
        "ntp" => object(elsewhere::NTP_KEYS, |key| match key {
            "servers" | "pools" => lines(),
            "enabled" => boolean(),
            _ => text(),
        }),
        "ssh_pwauth" => boolean(),
        _ => line(),
    });
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("cloud-config");
    root
}

/// A mapping with these keys, each with `-` as well as with `_`.
fn object(keys: &[&str], of: impl Fn(&str) -> Value) -> Value {
    let mut properties = Map::new();
    for key in keys {
        properties.insert((*key).to_owned(), of(key));
        if key.contains('_') {
            properties.insert(key.replace('_', "-"), of(key));
        }
    }
    json!({
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_both_spellings_and_their_values() {
        let schema = schema();
        let at = |pointer: &str| schema.pointer(pointer).cloned().unwrap_or_default();
        let update = "/properties/coreos/properties/update/properties";
        for key in ["reboot-strategy", "reboot_strategy"] {
            let values = at(&format!("{update}/{key}/enum"));
            assert_eq!(
                values,
                json!(["best-effort", "etcd-lock", "off", "reboot", false])
            );
        }
        let unit = "/properties/coreos/properties/units/items/properties";
        assert_eq!(at(&format!("{unit}/command/enum/0")), json!("start"));
        assert_eq!(
            at(&format!("{unit}/drop-ins/items/additionalProperties")),
            json!(false)
        );
        let fleet = "/properties/coreos/properties/fleet/properties/etcd-servers/type/0";
        assert_eq!(at(fleet), json!("string"));
    }
}
