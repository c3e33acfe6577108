//! `node`: what an agent sees on its node, by running `slice-netop --show` beside it.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;
use slice_crds::names;

use crate::{
    Outcome,
    args::{Format, Node, Target},
    connect, exec, output,
};

pub(crate) async fn run(target: &Target, node: Node) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let pods = Api::<Pod>::namespaced(client, names::MEMBER_NAMESPACE);
    let here = ListParams::default()
        .labels("weft.dev/component=netop")
        .fields(&format!("spec.nodeName={}", node.node));
    let agents = pods.list(&here).await.context("find the node's agent")?;
    let Some(agent) = agents.items.first() else {
        bail!(
            "no agent runs on node {}; see `kubectl get nodes` and `slicectl get nodes`",
            node.node
        );
    };
    let mut shown = show(&pods, &agent.name_any()).await?;
    if let Some(slice) = &node.slice {
        only(&mut shown, slice);
    }
    let text = match node.output {
        Format::Json => serde_json::to_string_pretty(&shown).context("render JSON")? + "\n",
        Format::Yaml => output::yaml(&shown)?,
        Format::Table | Format::Wide | Format::Name => tables(&shown),
    };
    output::print(&text)?;
    Ok(Outcome::Good)
}

async fn show(pods: &Api<Pod>, agent: &str) -> anyhow::Result<Value> {
    let shown = exec::run(pods, agent, ["slice-netop", "--show"]).await;
    let text = shown.and_then(exec::Output::printed).with_context(|| {
        format!(
            "run slice-netop --show in pod {agent}, which takes the right to exec into pods of weft-system"
        )
    })?;
    serde_json::from_str(&text).context("understand what the agent shows")
}

/// Leaves out what is of other slices.
fn only(shown: &mut Value, slice: &str) {
    let of_slice = |field: &'static str| move |one: &Value| one[field] == slice;
    let alias = format!("slice {slice} ");
    let of_port = |one: &Value| one["alias"].as_str().is_some_and(|text| text.starts_with(&alias));
    keep(&mut shown["ports"], of_port);
    keep(&mut shown["slices"], of_slice("slice"));
    keep(&mut shown["classes"], of_slice("slice"));
    keep(&mut shown["frames"], of_slice("slice"));
}

fn keep(list: &mut Value, which: impl Fn(&Value) -> bool) {
    if let Some(list) = list.as_array_mut() {
        list.retain(which);
    }
}

/// As tables, pure.
fn tables(shown: &Value) -> String {
    let list = |name: &str| shown[name].as_array().cloned().unwrap_or_default();
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let yes = |one: &Value, field: &str| if one[field] == true { "yes" } else { "no" }.to_owned();
    let ports = list("ports").into_iter().map(|port| {
        vec![
            text(&port, "interface"),
            text(&port, "kind"),
            text(&port, "alias"),
            yes(&port, "up"),
            yes(&port, "attached"),
            text(&port, "netns"),
        ]
    });
    let entries = list("slices").into_iter().flat_map(|slice| {
        let entries = slice["entries"].as_array().cloned().unwrap_or_default();
        entries.into_iter().map(move |entry| {
            let entry = entry.as_str().unwrap_or_default().to_owned();
            vec![slice["slice"].as_str().unwrap_or_default().to_owned(), entry]
        })
    });
    let frames = list("frames").into_iter().map(|frames| {
        let reason = frames["reason"].as_str().unwrap_or("carried").to_owned();
        vec![
            text(&frames, "slice"),
            text(&frames, "direction"),
            reason,
            frames["frames"].to_string(),
        ]
    });
    let mut out = format!(
        "node {}, observed at {}\n{}\n\n",
        text(shown, "node"),
        text(shown, "observedAt"),
        shown["tunnel"].as_str().unwrap_or("no frames go to other nodes")
    );
    let head = ["interface", "kind", "whose", "up", "program", "namespace"];
    out.push_str(&output::table(&head, ports.collect()));
    out.push('\n');
    out.push_str(&output::table(&["slice", "entry"], entries.collect()));
    out.push('\n');
    let classes = list("classes").into_iter().map(|class| {
        vec![
            text(&class, "slice"),
            class["interface"].as_str().unwrap_or("all").to_owned(),
            text(&class, "direction"),
            text(&class, "id"),
            text(&class, "limits"),
            class["bytes"].to_string(),
            class["droppedFrames"].to_string(),
            class["backlogBytes"].to_string(),
        ]
    });
    let classes: Vec<_> = classes.collect();
    if !classes.is_empty() {
        let head = [
            "slice",
            "port",
            "direction",
            "class",
            "limits",
            "bytes",
            "dropped",
            "backlog",
        ];
        out.push_str(&output::table(&head, classes));
        out.push('\n');
    }
    out.push_str(&output::table(
        &["slice", "direction", "what became of them", "frames"],
        frames.collect(),
    ));
    if let Some(dropped) = shown["underlayDrops"].as_u64().filter(|dropped| *dropped > 0) {
        out.push_str(&format!(
            "\n{dropped} packets to the ports between nodes came from elsewhere, and were dropped\n"
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_shown_as_tables() {
        let mut shown = json!({
            "node": "n1", "observedAt": "2026-11-28T15:00:00Z", "tunnel": "tunnel wx-pods wu-gateways local 10.0.0.1",
            "ports": [
                {"interface": "wp-a", "kind": "veth", "alias": "slice shop index 70", "up": true, "attached": true, "netns": "cni-1"},
                {"interface": "wp-b", "kind": "veth", "alias": "slice shopping index 7", "up": true, "attached": false},
            ],
            "slices": [{"slice": "shop", "vni": 77, "entries": ["route 64+64 cluster 2"]}],
            "classes": [{"slice": "shop", "direction": "egress", "id": "1:1000", "limits": "parent 1:2 rate 50M ceil 80M prio 2",
                "bytes": 9, "droppedFrames": 4, "backlogBytes": 0}],
            "frames": [{"slice": "shop", "direction": "from_pod", "reason": "spoofed", "frames": 3}],
            "underlayDrops": 0,
        });
        let text = tables(&shown);
        for part in [
            "wp-a",
            "wp-b",
            "slice shop index 70",
            "route 64+64 cluster 2",
            "spoofed",
            "1:1000",
            "n1, observed at",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        only(&mut shown, "shop");
        assert!(
            !tables(&shown).contains("wp-b"),
            "another slice whose name begins alike"
        );
    }
}
