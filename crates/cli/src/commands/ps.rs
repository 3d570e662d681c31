//! `orlop ps`

use anyhow::Result;
use serde::Serialize;
use vm::node;

use super::lab;
use crate::exit::Exit;
use crate::output::{self, Output};

/// List the nodes of this checkout
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Row {
    name: String,
    state: &'static str,
    release: String,
    boot: String,
    memory_mib: u32,
    ssh_port: u16,
    pid: Option<i32>,
    dir: String,
}

pub fn run(args: &Args) -> Result<Exit> {
    let rows: Vec<Row> = node::all(&lab()?)?
        .into_iter()
        .map(|(dir, node)| {
            let pid = node.running(&dir).map(|process| process.pid);
            Row {
                state: if pid.is_some() { "running" } else { "off" },
                name: node.name,
                release: node.version,
                boot: node.boot.to_string(),
                memory_mib: node.memory_mib,
                ssh_port: node.ssh_port,
                pid,
                dir: dir.display().to_string(),
            }
        })
        .collect();
    output::print(args.output.output, &rows, |rows| {
        if rows.is_empty() {
            return "no nodes; ./orlop up makes one\n".into();
        }
        let cells = |row: &Row| {
            vec![
                row.name.clone(),
                row.state.to_owned(),
                row.release.clone(),
                row.boot.clone(),
                format!("{} MiB", row.memory_mib),
                row.pid
                    .map_or("-".into(), |_| format!("127.0.0.1:{}", row.ssh_port)),
                row.pid.map_or("-".into(), |pid| pid.to_string()),
            ]
        };
        let rows: Vec<_> = rows.iter().map(cells).collect();
        output::table(
            &["NODE", "STATE", "MADE FROM", "BOOT", "MEMORY", "SSH", "PID"],
            &rows,
        )
    })?;
    Ok(Exit::Ok)
}
