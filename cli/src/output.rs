//! Printing: tables as kubectl prints them, and the objects themselves.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use kube::ResourceExt;
use serde::Serialize;

use crate::args::Format;

/// Writes to standard output; a reader that has gone away, as `head` does, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}

/// A table without borders.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(head.iter().map(|title| title.to_uppercase()));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3)).set_cell_alignment(CellAlignment::Left);
    }
    let lines: Vec<_> = table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    lines.concat()
}

/// Prints objects in the form that was asked for; `rows` makes the table.
pub(crate) fn objects<K: ResourceExt + Serialize>(
    objects: &[K],
    kind: &str,
    format: Format,
    head: &[&str],
    row: impl Fn(&K) -> Vec<String>,
) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide if objects.is_empty() => {
            eprintln!("No {kind} found.");
            Ok(())
        }
        Format::Table | Format::Wide => print(&table(head, objects.iter().map(row).collect())),
        Format::Json => print(&(serde_json::to_string_pretty(objects)? + "\n")),
        Format::Yaml => print(&serde_saphyr::to_string(&objects)?),
        Format::Name => {
            let names: Vec<_> = objects
                .iter()
                .map(|object| format!("{kind}/{}\n", object.name_any()))
                .collect();
            print(&names.concat())
        }
    }
}
