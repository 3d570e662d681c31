//! Azure: the instance metadata service, and the report that the machine is up, without which Azure
//! takes the deployment for failed.

use anyhow::Context;

use super::http::Http;
use super::json;
use crate::datasource::Found;
use crate::metadata::Metadata;

const WIRE_SERVER: &str = "http://168.63.129.16/machine/";

pub(super) fn fetch(http: &Http) -> anyhow::Result<Found> {
    let base = "http://169.254.169.254/metadata/instance?api-version=2021-02-01";
    let bytes = http
        .get(base, &[("Metadata", "true")])?
        .context("there is no instance")?;
    let data = json::parse("the metadata", &bytes)?;
    let ssh_keys = json::items(&data, "/compute/publicKeys")
        .iter()
        .filter_map(|item| json::text(item, "/keyData"))
        .flat_map(|text| json::lines(&text))
        .collect();
    let mut metadata = Metadata {
        instance_id: json::text(&data, "/compute/vmId"),
        hostname: json::text(&data, "/compute/osProfile/computerName")
            .or(json::text(&data, "/compute/name")),
        ssh_keys,
        ..Metadata::default()
    };
    for (variable, pointer) in [
        (
            "private_ipv4",
            "/network/interface/0/ipv4/ipAddress/0/privateIpAddress",
        ),
        (
            "public_ipv4",
            "/network/interface/0/ipv4/ipAddress/0/publicIpAddress",
        ),
        (
            "private_ipv6",
            "/network/interface/0/ipv6/ipAddress/0/privateIpAddress",
        ),
    ] {
        metadata.address(variable, json::text(&data, pointer));
    }
    let packed = json::text(&data, "/compute/userData");
    let user_data = packed
        .map(|text| json::base64("userData", &text))
        .transpose()?;
    let found = Found {
        origin: "azure http://169.254.169.254".to_owned(),
        // It does not know what is on the disc.
        silent: user_data.is_none(),
        user_data,
        metadata,
        ..Found::default()
    };
    if let Err(error) = report_ready(http) {
        tracing::warn!("azure: cannot report that this machine is up: {error:#}");
    }
    Ok(found)
}

fn report_ready(http: &Http) -> anyhow::Result<()> {
    let version = ("x-ms-version", "2012-11-30");
    let state = http
        .text(&format!("{WIRE_SERVER}?comp=goalstate"), &[version])?
        .context("there is no goal state")?;
    let tag = |name: &str| {
        let (_, rest) = state.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once(&format!("</{name}>"))?;
        Some(value.trim().to_owned())
    };
    let get = |name: &str| tag(name).with_context(|| format!("the goal state has no {name}"));
    let (incarnation, container, instance) =
        (get("Incarnation")?, get("ContainerId")?, get("InstanceId")?);
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Health><GoalStateIncarnation>{incarnation}</GoalStateIncarnation>\
         <Container><ContainerId>{container}</ContainerId><RoleInstanceList><Role><InstanceId>{instance}</InstanceId>\
         <Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>"
    );
    let kind = ("Content-Type", "text/xml; charset=utf-8");
    http.post(
        &format!("{WIRE_SERVER}?comp=health"),
        &[version, kind],
        body.as_bytes(),
    )?;
    Ok(())
}
