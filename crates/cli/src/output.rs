//! What commands print: text for people, JSON for scripts.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

/// `-o`, for the commands that have something to tell scripts. Not a global argument: `container` has its own.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Output {
    /// How the result is printed
    #[arg(short, long = "output", value_enum, default_value_t)]
    pub output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For scripts: fields are added, never renamed
    Json,
}

/// Prints `value` as JSON, or what `text` makes of it.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Text => text(value),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // `orlop ps | head -1` is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Columns as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// Bytes as megabytes.
pub fn megabytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes:.1} MB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [
            vec!["n1".into(), "running".into()],
            vec!["node-10".into(), "off".into()],
        ];
        insta::assert_snapshot!(table(&["NODE", "STATE"], &rows), @r"
        NODE     STATE
        n1       running
        node-10  off
        ");
    }
}
