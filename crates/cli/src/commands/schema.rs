//! `orlop schema`: what the JSON of other commands looks like.

use anyhow::Result;
use release::status::HostStatus;
use serde_json::Value;

use crate::exit::Exit;
use crate::output;

/// Print the JSON schema of what a command says with -o json
#[derive(clap::Args)]
pub struct Args {
    /// Of which command
    command: Of,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Of {
    /// orlop status
    Status,
}

pub fn run(args: &Args) -> Result<Exit> {
    let schema = match args.command {
        Of::Status => status(),
    };
    output::print(output::Format::Json, &schema, |_| String::new())?;
    Ok(Exit::Ok)
}

fn status() -> Value {
    // What is said, not what is understood: all fields are always there.
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings
        .into_generator()
        .into_root_schema_for::<HostStatus>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As much of a validator as this schema needs: an unknown field, one that is missing, another type.
    fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.trim_start_matches("#/$defs/");
            return check(root, &root["$defs"][name], value, at);
        }
        if let Some(choices) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
            let fits = choices.iter().map(|c| check(root, c, value, at));
            let mut errors = Vec::new();
            for fit in fits {
                match fit {
                    Ok(()) => return Ok(()),
                    Err(e) => errors.push(e),
                }
            }
            return Err(errors.join(", nor "));
        }
        let types = match &schema["type"] {
            Value::Array(types) => types.clone(),
            one => vec![one.clone()],
        };
        let is = |name: &str| match name {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("{at}: {other}"),
        };
        if !types.iter().any(|t| t.as_str().is_none_or(is)) {
            return Err(format!("{at}: {value} is not {types:?}"));
        }
        let allowed = schema["enum"].as_array();
        let allowed = allowed.is_none_or(|all| all.contains(value));
        if !allowed || schema.get("const").is_some_and(|only| only != value) {
            return Err(format!("{at}: {value} is not {schema}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap_or_default();
            if value.get(name).is_none() {
                return Err(format!("{at}.{name} is missing"));
            }
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            let Some(schema) = schema["properties"].get(name) else {
                return Err(format!("{at}.{name} is unknown"));
            };
            check(root, schema, value, &format!("{at}.{name}"))?;
        }
        for (i, value) in value.as_array().into_iter().flatten().enumerate() {
            check(root, &schema["items"], value, &format!("{at}[{i}]"))?;
        }
        Ok(())
    }

    fn full() -> Value {
        let status: HostStatus = serde_json::from_value(json!({
            "version": "2", "slot": "b", "channel": "stable", "health": "healthy",
            "staged": { "version": "3", "slot": "a" }, "rollback": { "version": "1", "slot": "a" },
            "failed": [{ "version": "3", "id": "ab".repeat(32), "reason": "x", "at": "1970-01-01T00:00:00Z" }],
            "update": {
                "state": "downloading", "progress": 0.5, "version": "4", "size": 1000,
                "last_check": "1970-01-01T00:00:00Z", "last_error": "x",
                "last_error_code": 64,
            },
            "server": "http://10.0.2.2:8090/v1/update/", "machine_id": "abc", "hostname": "node1",
            "boot_id": "def", "kernel": "6.12.0", "epoch": 1,
        }))
        .unwrap();
        serde_json::to_value(status).unwrap()
    }

    #[test]
    fn what_status_says_is_what_the_schema_says() {
        let schema = status();
        let check = |value: &Value| check(&schema, &schema, value, "status");
        check(&full()).unwrap();
        let mut bare = full();
        for name in ["slot", "staged", "rollback", "server"] {
            bare[name] = Value::Null;
        }
        bare["failed"] = json!([]);
        for name in [
            "progress",
            "version",
            "size",
            "last_check",
            "last_error",
            "last_error_code",
        ] {
            bare["update"][name] = Value::Null;
        }
        check(&bare).unwrap();

        let wrong = |change: &dyn Fn(&mut Value)| {
            let mut value = full();
            change(&mut value);
            check(&value).unwrap_err()
        };
        let update = &schema["$defs"]["UpdateStatus"]["properties"];
        let about = |field: &str| update[field]["description"].as_str().unwrap_or_default();
        assert!(!about("version").contains("bytes") && about("size").contains("bytes"));

        assert_eq!(wrong(&|v| v["more"] = json!(1)), "status.more is unknown");
        let without_health = |v: &mut Value| drop(v.as_object_mut().unwrap().remove("health"));
        assert_eq!(wrong(&without_health), "status.health is missing");
        assert!(wrong(&|v| v["update"]["state"] = json!("lost")).contains("status.update.state"));
        assert!(wrong(&|v| v["slot"] = json!("c")).contains("status.slot"));
    }
}
