//! `/metrics`, in Prometheus's text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use jiff::Timestamp;

use super::error::ApiError;
use super::{Shared, auth, records, tuf};

#[derive(Default)]
pub(super) struct Counters {
    checks: AtomicU64,
}

impl Counters {
    pub(super) fn answered(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "server", responses((status = 200, body = String)))]
pub(super) async fn get(
    State(server): State<Shared>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    auth::viewer(&server, &headers).await?;
    let overview = server
        .database
        .read(|db| records::overview(db, Timestamp::MAX))
        .await?;
    let plan = server.database.plan();
    let mut page = Page(String::new());
    page.family(
        "orlop_update_checks_total",
        "counter",
        "Omaha messages answered since the start.",
    );
    page.line(
        "orlop_update_checks_total",
        &[],
        server.counters.checks.load(Ordering::Relaxed),
    );
    page.family(
        "orlop_hosts",
        "gauge",
        "Hosts by the version that they run.",
    );
    for count in &overview.versions {
        page.line("orlop_hosts", &[("version", &count.version)], count.hosts);
    }
    page.family(
        "orlop_hosts_healthy",
        "gauge",
        "Hosts that called themselves healthy.",
    );
    page.line("orlop_hosts_healthy", &[], overview.healthy);
    page.family(
        "orlop_host_failures",
        "gauge",
        "Hosts that left a release and have not got over it.",
    );
    let mut failures = std::collections::BTreeMap::new();
    for failure in &overview.failures {
        *failures.entry(failure.version.to_string()).or_insert(0) += failure.hosts;
    }
    for (version, hosts) in failures {
        page.line("orlop_host_failures", &[("version", &version)], hosts);
    }
    page.family(
        "orlop_rollout_hosts",
        "gauge",
        "Hosts of a group's rollout by what became of it.",
    );
    for (group, current) in plan.all_rollouts() {
        let total = current.rollout.total();
        let version = current.version.to_string();
        let states = [
            ("waiting", total.waiting()),
            ("good", total.good),
            ("failed", total.failed),
            ("lost", total.lost),
        ];
        for (state, hosts) in states {
            let labels = [("group", group), ("version", &version), ("state", state)];
            page.line("orlop_rollout_hosts", &labels, hosts);
        }
    }
    page.family(
        "orlop_rollout_status",
        "gauge",
        "1 for the status that a group's rollout has.",
    );
    for (group, current) in plan.all_rollouts() {
        let version = current.version.to_string();
        let status = current.rollout.status.as_str();
        let labels = [("group", group), ("version", &version), ("status", status)];
        page.line("orlop_rollout_status", &labels, 1);
    }
    page.family(
        "orlop_metadata_expires_timestamp_seconds",
        "gauge",
        "Until when hosts believe the TUF metadata of a role, in Unix time.",
    );
    for expiry in tuf::expiries(&server.artifacts).await? {
        page.line(
            "orlop_metadata_expires_timestamp_seconds",
            &[("role", &expiry.role)],
            u64::try_from(expiry.at.as_second()).unwrap_or(0),
        );
    }
    Ok((
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        page.0,
    ))
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// Versions are what hosts claim.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_claim_stays_a_label() {
        let mut page = Page(String::new());
        page.line("x", &[("version", "1\"} 9\nevil 1\\")], 3);
        assert_eq!(page.0, "x{version=\"1\\\"} 9\\nevil 1\\\\\"} 3\n");
    }
}
