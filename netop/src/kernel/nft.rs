//! nftables through the `nft` program: scripts on its standard input, each one transaction; tables back as JSON
//! (libnftables-json(5)).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    io,
    path::Path,
    process::Stdio,
};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::netns;
use crate::{
    model::{
        Element, Name, Rules, Segment, Table,
        fastpath::Side,
        filter::{HOST_TABLE, MARK_CHAIN, family},
    },
    plan::Action,
};

/// The commands that make table changes, to be run as one transaction.
pub(super) fn script<'a>(actions: impl IntoIterator<Item = &'a Action>) -> String {
    let mut text = String::new();
    for action in actions {
        let result = match action {
            Action::AddTable(table, rules) => text.write_str(&rules.script(table)),
            Action::DelTable(table) => writeln!(text, "delete table {} {table}", family(table)),
            Action::AddElement(table, Element::Hook(port, side)) => {
                let (family, chain) = (family(table), side.chain());
                writeln!(
                    text,
                    "add chain {family} {table} {port} {{ type filter hook ingress device \"{port}\" priority 0; }}\n\
                     add rule {family} {table} {port} goto {chain}"
                )
            }
            // Whether the chain goes with its port depends on the kernel's version.
            Action::DelElement(table, Element::Hook(port, _)) => {
                let chain = format!("chain {} {table} {port}", family(table));
                writeln!(text, "add {chain}\nflush {chain}\ndelete {chain}")
            }
            Action::AddElement(table, element) => {
                let (family, set) = (family(table), element.set());
                writeln!(text, "add element {family} {table} {set} {{ {element} }}")
            }
            Action::DelElement(table, element) => {
                let place = format!("element {} {table} {}", family(table), element.set());
                match element.key() {
                    Some(key) => writeln!(text, "delete {place} {{ {key} }}"),
                    // Added first, so that deleting what is gone already does not fail the transaction.
                    None => writeln!(
                        text,
                        "add {place} {{ {element} }}\ndelete {place} {{ {element} }}"
                    ),
                }
            }
            Action::AddLink(..)
            | Action::DelLink(_)
            | Action::SetMtu(..)
            | Action::SetPort(..)
            | Action::SetRemote(..)
            | Action::NoAutoconf(_)
            | Action::NoSnooping(_)
            | Action::Up(_)
            | Action::AddFdb(_)
            | Action::DelFdb(_)
            | Action::AddNeighbour(_)
            | Action::DelNeighbour(_)
            | Action::Pod(..) => Ok(()),
        };
        result.expect("writing to a string");
    }
    text
}

/// Runs a script.
///
/// # Errors
/// What nft says, where it refuses; nothing is changed then.
pub(super) async fn run(namespace: Option<&Path>, script: &str) -> anyhow::Result<()> {
    feed(namespace, &["-f", "-"], script).await
}

/// Tries whether this kernel would take the [`fastpath`](crate::model::fastpath); changes nothing.
///
/// # Errors
/// What nft says, where it would not.
pub(super) async fn check_fast_path(namespace: Option<&Path>) -> anyhow::Result<()> {
    let table = Segment::of_slice("").fast_path();
    let hook = Element::Hook(Name::new("lo"), Side::Pod);
    let actions = [
        Action::AddTable(table.clone(), Rules::FastPath),
        Action::AddElement(table, hook),
    ];
    feed(namespace, &["-c", "-f", "-"], &script(&actions)).await
}

async fn feed(namespace: Option<&Path>, arguments: &[&str], script: &str) -> anyhow::Result<()> {
    let output = nft(namespace, arguments, Some(script)).await?;
    if !output.status.success() {
        bail!(
            "nft refused the filters: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Weft's tables, and what their counters say.
pub(super) async fn list(
    namespace: Option<&Path>,
) -> anyhow::Result<(BTreeMap<Name, Table>, BTreeMap<(Name, String), u64>)> {
    let mut reading = Reading::default();
    for arguments in [
        // One process for both: each takes some milliseconds.
        &["-j", "list ruleset bridge; list ruleset netdev"][..],
        &["-j", "list", "table", "inet", HOST_TABLE],
    ] {
        let output = nft(namespace, arguments, None).await?;
        let absent = String::from_utf8_lossy(&output.stderr).contains("No such file or directory");
        if !output.status.success() {
            if absent {
                continue;
            }
            bail!(
                "nft {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        for document in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
            reading.read(&document.context("read what nft lists")?);
        }
    }
    Ok(reading.finish())
}

async fn nft(
    namespace: Option<&Path>,
    arguments: &[&str],
    input: Option<&str>,
) -> anyhow::Result<std::process::Output> {
    let mut command = Command::new("nft");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let runtime = tokio::runtime::Handle::current();
    // A child has the namespace of the thread that starts it.
    let mut child = netns::maybe_within(namespace, || {
        let _guard = runtime.enter();
        command.spawn()
    })
    .context("run nft; it must be in the agent's image")?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.unwrap_or_default().as_bytes()).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(error).context("write to nft");
            }
            _ => {}
        }
    }
    child.wait_with_output().await.context("wait for nft")
}

#[derive(Default)]
struct Reading {
    tables: BTreeMap<Name, Seen>,
    counters: BTreeMap<(Name, String), u64>,
}

#[derive(Default)]
struct Seen {
    mark: String,
    rules: usize,
    elements: BTreeSet<Element>,
    /// An element that Weft never writes.
    strange: bool,
}

impl Reading {
    fn read(&mut self, json: &Value) {
        let objects = json["nftables"].as_array().into_iter().flatten();
        for (kind, object) in objects.filter_map(Value::as_object).flatten() {
            let name = match kind.as_str() {
                "table" => &object["name"],
                _ => &object["table"],
            };
            let Some(name) = name.as_str().filter(|name| name.starts_with(Name::TABLE_PREFIX)) else {
                continue;
            };
            let name = Name::new(name);
            let seen = self.tables.entry(name.clone()).or_default();
            match kind.as_str() {
                "rule" if object["chain"].as_str().is_some_and(Name::is_link) => seen.read_hook(object),
                "rule" => {
                    seen.rules += 1;
                    if object["chain"] == MARK_CHAIN {
                        object["comment"]
                            .as_str()
                            .unwrap_or_default()
                            .clone_into(&mut seen.mark);
                    }
                }
                "set" | "map" => seen.read_set(object),
                "counter" => {
                    if let (Some(counter), Some(packets)) =
                        (object["name"].as_str(), object["packets"].as_u64())
                    {
                        self.counters.insert((name, counter.to_owned()), packets);
                    }
                }
                _ => {}
            }
        }
    }

    fn finish(self) -> (BTreeMap<Name, Table>, BTreeMap<(Name, String), u64>) {
        let table = |(name, seen): (Name, Seen)| {
            let rules = Rules::of_mark(&name, &seen.mark);
            let whole = !seen.strange && rules.count(&name) == seen.rules;
            let rules = if whole { rules } else { Rules::Altered };
            (
                name,
                Table {
                    rules,
                    elements: seen.elements,
                },
            )
        };
        (self.tables.into_iter().map(table).collect(), self.counters)
    }
}

impl Seen {
    fn read_hook(&mut self, rule: &Value) {
        let port = rule["chain"].as_str().map(Name::new);
        let side = rule["expr"][0]["goto"]["target"]
            .as_str()
            .and_then(Side::of_chain);
        let hook = port.zip(side).map(|(port, side)| Element::Hook(port, side));
        self.strange |= !hook.is_some_and(|hook| self.elements.insert(hook));
    }

    fn read_set(&mut self, set: &Value) {
        let name = set["name"].as_str().unwrap_or_default();
        for element in set["elem"].as_array().into_iter().flatten() {
            let parts = match (&element["concat"], element) {
                (Value::Array(parts), _) => parts.clone(),
                // A map's: key and value. A key may be both ends of a range.
                (_, Value::Array(pair)) => match pair.as_slice() {
                    [key, value @ ..] if key["range"].is_array() => {
                        let ends = key["range"].as_array().into_iter().flatten();
                        ends.chain(value).cloned().collect()
                    }
                    _ => pair.clone(),
                },
                _ => vec![element.clone()],
            };
            let text = |part: &Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
            let parts: Vec<String> = parts.iter().map(text).collect();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            match Element::parse(name, &parts) {
                Some(element) => _ = self.elements.insert(element),
                None => self.strange = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_listing_becomes_a_table() {
        let name = Name::new("weft_rwiaduzm");
        let rules = Rules::Segment {
            frames_per_second: 1000,
            non_ip: true,
        };
        let mut objects = vec![
            serde_json::json!({"table": {"family": "bridge", "name": "weft_rwiaduzm"}}),
            serde_json::json!({"table": {"family": "bridge", "name": "somebody-else"}}),
            serde_json::json!({"counter": {"table": "weft_rwiaduzm", "name": "spoofed", "packets": 3}}),
            serde_json::json!({"set": {"table": "weft_rwiaduzm", "name": "pods", "elem": ["wp-a"]}}),
            serde_json::json!({"set": {"table": "weft_rwiaduzm", "name": "macs",
                "elem": [{"concat": ["wp-a", "02:5c:00:00:00:01"]}]}}),
            serde_json::json!({"rule": {"table": "weft_rwiaduzm", "chain": MARK_CHAIN, "comment": rules.mark(&name)}}),
        ];
        let rule = serde_json::json!({"rule": {"table": "weft_rwiaduzm", "chain": "pod"}});
        objects.extend(vec![rule; rules.count(&name) - 1]);
        let read = |objects: &[Value]| {
            let mut reading = Reading::default();
            reading.read(&serde_json::json!({"nftables": objects}));
            reading.finish()
        };
        let (tables, counters) = read(&objects);
        assert_eq!(tables.len(), 1);
        assert_eq!(tables[&name].rules, rules);
        expect![[r#"{Pod(Name("wp-a")), Mac(Name("wp-a"), 02:5c:00:00:00:01)}"#]]
            .assert_eq(&format!("{:?}", tables[&name].elements));
        assert_eq!(counters[&(name.clone(), "spoofed".into())], 3);
        objects.pop();
        assert_eq!(read(&objects).0[&name].rules, Rules::Altered, "a rule is missing");
    }
}
