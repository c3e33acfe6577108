//! Printing: tables as kubectl prints them, and the objects themselves.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use crate::{args::Format, objects::Found};

/// Spaces between two columns.
const GAP: u16 = 3;

/// Writes to standard output; a reader that has gone away, as `head` does, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}

/// An object as YAML, with the end of its last line.
pub(crate) fn yaml(object: &impl Serialize) -> anyhow::Result<String> {
    let text = serde_saphyr::to_string(object).context("render YAML")?;
    Ok(text.trim_end().to_owned() + "\n")
}

/// "1 pod", "2 pods".
pub(crate) fn count(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// A table without borders.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(head.iter().map(|title| title.to_uppercase()));
    // A row is a line.
    table.add_rows(
        rows.into_iter()
            .map(|row| row.into_iter().map(|cell| cell.replace('\n', " "))),
    );
    for column in table.column_iter_mut() {
        column
            .set_padding((0, GAP))
            .set_cell_alignment(CellAlignment::Left);
    }
    let lines: Vec<_> = table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    lines.concat()
}

/// A table of objects. One that cannot be read has its name, and why, across the other columns. Pure.
pub(crate) fn table_of<T>(
    head: &[&str],
    objects: &[Found<T>],
    row: impl Fn(&Found<T>, &T) -> Vec<String>,
) -> String {
    let name = |title: &str, object: &Found<T>| match title {
        "namespace" => Some(object.namespace().to_owned()),
        "name" | "pod" => Some(object.name().to_owned()),
        _ => None,
    };
    let cells = objects.iter().map(|object| match &object.object {
        Ok(decoded) => row(object, decoded),
        Err(_) => head
            .iter()
            .map(|title| name(title, object).unwrap_or_default())
            .collect(),
    });
    let text = table(head, cells.collect());
    // Where the first column begins that is no name.
    let names = head
        .iter()
        .take_while(|title| matches!(**title, "namespace" | "name" | "pod"));
    let widths = names.map(|title| {
        let cells = objects
            .iter()
            .filter_map(|object| Some(name(title, object)?.len()));
        cells.max().unwrap_or_default().max(title.len()) + usize::from(GAP)
    });
    let indent: usize = widths.sum();
    let lines = text
        .lines()
        .zip(std::iter::once(None).chain(objects.iter().map(Some)));
    let lines = lines.map(
        |(line, object)| match object.and_then(|object| object.object.as_ref().err()) {
            Some(why) => format!("{line:indent$}<unreadable: {}>\n", why.replace('\n', " ")),
            None => format!("{line}\n"),
        },
    );
    lines.collect()
}

/// Prints objects in the form that was asked for; `row` makes a line of the table.
pub(crate) fn objects<T>(
    objects: &[Found<T>],
    kind: &str,
    format: Format,
    head: &[&str],
    row: impl Fn(&Found<T>, &T) -> Vec<String>,
) -> anyhow::Result<()> {
    let raw = || {
        let objects = objects.iter().map(|object| {
            let mut raw = object.raw.clone();
            raw.metadata.managed_fields = None;
            raw
        });
        objects.collect::<Vec<_>>()
    };
    match format {
        Format::Table | Format::Wide if objects.is_empty() => {
            eprintln!("No {kind} found.");
            Ok(())
        }
        Format::Table | Format::Wide => print(&table_of(head, objects, row)),
        Format::Json => print(&(serde_json::to_string_pretty(&raw())? + "\n")),
        Format::Yaml => print(&yaml(&raw())?),
        Format::Name => {
            let names: Vec<_> = objects
                .iter()
                .map(|object| format!("{kind}/{}\n", object.name()))
                .collect();
            print(&names.concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slice_crds::v1alpha1::Cluster;

    use super::*;
    use crate::objects::from_json;

    #[test]
    fn one_object_that_cannot_be_read_spoils_no_row() {
        let cluster = |name: &str, gateway: serde_json::Value| -> Found<Cluster> {
            from_json(json!({"metadata": {"name": name}, "spec": {"gateway": gateway}}))
        };
        let clusters = [
            cluster("a", json!({})),
            cluster("odd", json!({"exposure": "Balloon"})),
            cluster("tokyo", json!({})),
        ];
        let text = table_of(&["name", "ready"], &clusters, |object, _| {
            vec![object.name().to_owned(), "True".to_owned()]
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME    READY");
        assert_eq!(lines[1], "a       True");
        assert!(
            lines[2].starts_with(
                "odd     <unreadable: spec.gateway.exposure (it is \"Balloon\"): unknown variant"
            ),
            "{text}"
        );
        assert_eq!(lines[3], "tokyo   True");
    }
}
