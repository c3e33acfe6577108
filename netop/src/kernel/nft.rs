//! nftables through the `nft` program: scripts on its standard input, each one transaction; tables back as JSON
//! (libnftables-json(5)).

use std::{collections::BTreeSet, io, net::IpAddr, path::Path, process::Stdio};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::netns;
use crate::model::{Guard, guard};

/// First characters of every table of Weft's.
const PREFIX: &str = "weft_";

/// Weft's tables.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Without nodes where it is not as Weft writes it.
    pub(super) guard: Option<Guard>,
    /// Packets that it has dropped.
    pub(super) underlay_drops: Option<u64>,
    /// Family and name of those that only earlier releases made.
    pub(super) former: BTreeSet<String>,
}

/// Runs a script.
///
/// # Errors
/// What nft says, where it refuses; nothing is changed then.
pub(super) async fn run(namespace: Option<&Path>, script: &str) -> anyhow::Result<()> {
    let output = nft(namespace, &["-f", "-"], Some(script)).await?;
    if !output.status.success() {
        bail!(
            "nft refused the filters: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Deletes a table, by family and name, that may be gone already.
///
/// # Errors
/// As [`run`].
pub(super) async fn delete(namespace: Option<&Path>, table: &str) -> anyhow::Result<()> {
    run(namespace, &format!("add table {table}\ndelete table {table}\n")).await
}

/// Weft's tables, and what their counters say.
pub(super) async fn list(namespace: Option<&Path>) -> anyhow::Result<Tables> {
    let names = documents(namespace, &["-j", "list", "tables"]).await?;
    let mut tables = Tables {
        former: former(&names),
        ..Tables::default()
    };
    let guarded = ["-j", "list", "table", "inet", guard::TABLE];
    if let Some(json) = documents(namespace, &guarded).await?.first() {
        read_guard(json, &mut tables);
    }
    Ok(tables)
}

/// What nft lists; nothing where there is no such table.
async fn documents(namespace: Option<&Path>, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output = nft(namespace, arguments, None).await?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("No such file or directory") {
            return Ok(vec![]);
        }
        bail!("nft {}: {}", arguments.join(" "), error.trim());
    }
    serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .context("read what nft lists")
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

fn objects<'a>(json: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = json["nftables"].as_array().into_iter().flatten();
    all.filter_map(move |object| object.get(kind))
}

fn former(documents: &[Value]) -> BTreeSet<String> {
    let tables = documents.iter().flat_map(|json| objects(json, "table"));
    tables
        .filter_map(|table| Some((table["family"].as_str()?, table["name"].as_str()?)))
        .filter(|(_, name)| name.starts_with(PREFIX) && *name != guard::TABLE)
        .map(|(family, name)| format!("{family} {name}"))
        .collect()
}

fn read_guard(json: &Value, tables: &mut Tables) {
    let elements = objects(json, "set").flat_map(|set| set["elem"].as_array().into_iter().flatten());
    let nodes: Option<BTreeSet<IpAddr>> = elements.map(|node| node.as_str()?.parse().ok()).collect();
    let rules = || objects(json, "rule");
    let mark = rules().find(|rule| rule["chain"] == guard::MARK_CHAIN);
    let mark = mark.and_then(|rule| rule["comment"].as_str());
    let seen = Guard {
        nodes: nodes.unwrap_or_default(),
    };
    let whole = mark == Some(&seen.mark()) && rules().count() == Guard::RULES;
    tables.guard = Some(match whole {
        true => seen,
        false => Guard {
            nodes: BTreeSet::new(),
        },
    });
    let counter = objects(json, "counter").find(|counter| counter["name"] == guard::COUNTER);
    tables.underlay_drops = counter.and_then(|counter| counter["packets"].as_u64());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_listing_becomes_a_guard() {
        let guard = Guard {
            nodes: ["10.0.0.1", "fd00::1"].map(|node| node.parse().unwrap()).into(),
        };
        let mut objects = vec![
            json!({"table": {"family": "inet", "name": "weft_host"}}),
            json!({"counter": {"name": "underlay", "packets": 3}}),
            json!({"set": {"name": "nodes4", "elem": ["10.0.0.1"]}}),
            json!({"set": {"name": "nodes6", "elem": ["fd00::1"]}}),
            json!({"rule": {"chain": guard::MARK_CHAIN, "comment": guard.mark()}}),
        ];
        objects.extend(vec![json!({"rule": {"chain": "input"}}); Guard::RULES - 1]);
        let read = |objects: &[Value]| {
            let mut tables = Tables::default();
            read_guard(&json!({ "nftables": objects }), &mut tables);
            (tables.guard.unwrap(), tables.underlay_drops)
        };
        assert_eq!(read(&objects), (guard.clone(), Some(3)));
        objects.pop();
        assert_ne!(read(&objects).0, guard, "a rule is missing");
    }

    #[test]
    fn tables_of_earlier_releases_are_found() {
        let json = json!({"nftables": [
            {"table": {"family": "inet", "name": "weft_host"}},
            {"table": {"family": "bridge", "name": "weft_rwiaduzm"}},
            {"table": {"family": "bridge", "name": "somebody-else"}},
        ]});
        let found = former(&[json]);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["bridge weft_rwiaduzm"]);
    }
}
