//! The README of each chart: what stands above "## Values" is written by hand, the rest is made here from the comments of
//! values.yaml and the types of values.schema.json.
//!
//! A value without a comment, or in one of the two files only, fails. `UPDATE_EXPECT=1 cargo test -p slicectl --lib
//! chart_readme` writes what is due.

use std::{fmt::Write as _, path::PathBuf};

use expect_test::expect_file;
use serde_json::Value;

const VALUES: &str = "## Values\n\n";

/// A value that somebody may set: what the schema does not take apart further.
struct Row {
    path: Vec<String>,
    kind: String,
    default: String,
    text: String,
}

/// Reads what a chart documents, or says everything that is wrong with it.
fn rows(values: &str, schema: &str) -> Result<Vec<Row>, Vec<String>> {
    let tree: Value =
        serde_saphyr::from_str(values).map_err(|error| vec![format!("values.yaml: {error}")])?;
    let schema: Value =
        serde_json::from_str(schema).map_err(|error| vec![format!("values.schema.json: {error}")])?;
    let mut problems = Vec::new();
    agree(&mut Vec::new(), &tree, &schema, &mut problems);
    let rows: Vec<Row> = comments(values)
        .into_iter()
        .filter_map(|(path, text)| {
            let kind = of_schema(&schema, &path).filter(|node| node.get("properties").is_none())?;
            let default = path.iter().try_fold(&tree, |node, key| node.get(key))?;
            Some(Row {
                kind: kind_of(kind),
                default: default.to_string(),
                text,
                path,
            })
        })
        .collect();
    let mut leaves = Vec::new();
    walk(&mut Vec::new(), &schema, &mut leaves);
    for path in leaves.iter().filter(|path| path.as_slice() != ["global"]) {
        // One that stands in braces behind another has no line for a comment either.
        if !rows.iter().any(|row| &row.path == path && !row.text.is_empty()) {
            problems.push(format!("values.yaml: {} has no comment above it", path.join(".")));
        }
    }
    if problems.is_empty() {
        Ok(rows)
    } else {
        Err(problems)
    }
}

/// Every key is in both, as deep as the schema names keys. `global` is helm's own.
fn agree(path: &mut Vec<String>, values: &Value, schema: &Value, problems: &mut Vec<String>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let empty = serde_json::Map::new();
    let values = values.as_object().unwrap_or(&empty);
    for key in values.keys().filter(|key| !properties.contains_key(*key)) {
        problems.push(format!(
            "values.schema.json does not have {}, which values.yaml has",
            [path.as_slice(), std::slice::from_ref(key)].concat().join(".")
        ));
    }
    for (key, schema) in properties {
        path.push(key.clone());
        match values.get(key) {
            Some(value) => agree(path, value, schema, problems),
            None if path.as_slice() == ["global"] => {}
            None => problems.push(format!(
                "values.yaml does not have {}, which values.schema.json has",
                path.join(".")
            )),
        }
        path.pop();
    }
}

/// The path of every value that the schema does not take apart further.
fn walk(path: &mut Vec<String>, schema: &Value, leaves: &mut Vec<Vec<String>>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        leaves.push(path.clone());
        return;
    };
    for (key, schema) in properties {
        path.push(key.clone());
        walk(path, schema, leaves);
        path.pop();
    }
}

/// Every key of a YAML text in its order, with the comment right above it.
fn comments(yaml: &str) -> Vec<(Vec<String>, String)> {
    let mut above = Vec::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut found = Vec::new();
    for line in yaml.lines() {
        let content = line.trim_start();
        if let Some(comment) = content.strip_prefix('#') {
            above.push(comment.trim());
            continue;
        }
        let indent = line.len() - content.len();
        let key = content.split_once(':').map(|(key, _)| key);
        if let Some(key) = key.filter(|key| key.chars().all(char::is_alphanumeric)) {
            parents.retain(|(of, _)| *of < indent);
            parents.push((indent, key.to_owned()));
            let path = parents.iter().map(|(_, key)| key.clone()).collect();
            found.push((path, above.join(" ")));
        }
        above.clear();
    }
    found
}

fn of_schema<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter()
        .try_fold(schema, |node, key| node.get("properties")?.get(key))
}

/// A schema in words.
fn kind_of(schema: &Value) -> String {
    let code = |value: &Value| {
        format!(
            "`{}`",
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        )
    };
    if let Some(only) = schema.get("const") {
        return format!("always {}", code(only));
    }
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        return choices.iter().map(code).collect::<Vec<_>>().join(", ");
    }
    let kind = schema["type"].as_str().unwrap_or("any");
    match kind {
        "array" => format!("list of {}s", schema["items"]["type"].as_str().unwrap_or("value")),
        "object" if schema["additionalProperties"]["type"] == "string" => "map of strings".to_owned(),
        "integer" => match (schema.get("minimum"), schema.get("maximum")) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            _ => kind.to_owned(),
        },
        _ => kind.to_owned(),
    }
}

/// Tables of the values: those at the top first, then one for each part.
fn render(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut parts: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.path.len() > 1) {
        if !parts.contains(&row.path[0].as_str()) {
            parts.push(&row.path[0]);
        }
    }
    table(&mut text, rows.iter().filter(|row| row.path.len() == 1));
    for part in parts {
        let _ = write!(text, "\n### {part}\n\n");
        table(
            &mut text,
            rows.iter()
                .filter(|row| row.path.len() > 1 && row.path[0] == part),
        );
    }
    text
}

fn table<'a>(text: &mut String, rows: impl Iterator<Item = &'a Row>) {
    text.push_str("| value | type | default | description |\n|---|---|---|---|\n");
    for row in rows {
        let cells = [&row.kind, &row.default, &row.text].map(|cell| cell.replace('|', "\\|"));
        let [kind, default, what] = cells;
        let _ = writeln!(
            text,
            "| `{}` | {kind} | `{default}` | {what} |",
            row.path.join(".")
        );
    }
}

#[track_caller]
fn check(chart: &str) {
    let folder = PathBuf::from(format!("{}/../charts/{chart}", env!("CARGO_MANIFEST_DIR")));
    let read = |name: &str| {
        std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let readme = read("README.md");
    let Some((by_hand, _)) = readme.split_once(VALUES) else {
        panic!("charts/{chart}/README.md has no line \"{}\"", VALUES.trim());
    };
    match rows(&read("values.yaml"), &read("values.schema.json")) {
        Ok(rows) => {
            expect_file![folder.join("README.md")].assert_eq(&format!("{by_hand}{VALUES}{}", render(&rows)))
        }
        Err(problems) => panic!("charts/{chart}: {problems:#?}"),
    }
}

#[test]
fn of_the_hub() {
    check("weft-hub");
}

#[test]
fn of_the_member() {
    check("weft-member");
}

#[test]
fn what_is_not_documented_or_in_one_file_only_is_named() {
    let schema = r#"{"properties": {
        "global": {}, "log": {"type": "string"}, "dns": {"properties": {"replicas": {"type": "integer"}, "gone": {}}},
        "mcs": {"properties": {"install": {"type": "boolean"}}}}}"#;
    let values = "# Filter of the log.\nlog: info\ndns:\n  replicas: 2\n  news: {}\n# Not of the value.\nmcs: {install: true}\n";
    assert_eq!(
        rows(values, schema).err(),
        Some(vec![
            "values.schema.json does not have dns.news, which values.yaml has".to_owned(),
            "values.yaml does not have dns.gone, which values.schema.json has".to_owned(),
            "values.yaml: dns.gone has no comment above it".to_owned(),
            "values.yaml: dns.replicas has no comment above it".to_owned(),
            "values.yaml: mcs.install has no comment above it".to_owned(),
        ])
    );
}
