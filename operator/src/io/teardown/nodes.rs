//! Having every node cleaned by its agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::wait::await_condition,
};
use serde_json::json;
use slice_crds::{
    conditions::READY,
    v1alpha1::{SliceNode, SliceNodePhase, SliceNodeSpec},
};
use slice_runtime::apply;
use tokio::time::{Instant, timeout_at};

use super::pods_of;
use crate::args::TeardownArgs;

const MANAGER: &str = "weft-teardown";
const AGENT: &str = "netop";

/// Asks every node's agent to take everything of Weft off its node, and waits until each has.
///
/// # Errors
/// Where nodes do not report in time; the message names them.
pub(super) async fn clean(client: &Client, args: &TeardownArgs) -> anyhow::Result<()> {
    let objects: Api<SliceNode> = Api::all(client.clone());
    let before = Seen::look(client, args).await?;
    if !before.has_kind {
        if before.agents.is_empty() {
            return Ok(());
        }
        bail!(
            "the kind SliceNode is not there, by which node agents are told to clean up: bring it back with `slicectl install \
             cluster`, then uninstall again"
        );
    }
    for name in before.asked() {
        let there = before.objects.get(&name);
        // What it says is about an uninstallation that was undone.
        if there.is_some_and(|there| !there.spec.teardown && is_clean(there)) {
            let anew = Patch::Merge(json!({"status": {"phase": SliceNodePhase::Starting}}));
            let patched = objects.patch_status(&name, &PatchParams::default(), &anew).await;
            patched.with_context(|| format!("take back what SliceNode {name} says"))?;
        }
        let spec = SliceNodeSpec {
            teardown: true,
            ..SliceNodeSpec::default()
        };
        apply::apply(&objects, MANAGER, &SliceNode::new(&name, spec)).await?;
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let until = Instant::now() + args.timeout;
    for name in before.awaited() {
        let cleaned = async {
            tokio::select! {
                cleaned = await_condition(objects.clone(), &name, |there: Option<&SliceNode>| there.is_none_or(is_clean)) => cleaned.map(drop),
                gone = await_condition(nodes.clone(), &name, |there: Option<&Node>| there.is_none()) => gone.map(drop),
            }
        };
        match timeout_at(until, cleaned).await {
            Ok(result) => result.with_context(|| format!("wait for node {name}"))?,
            Err(_) => break,
        }
        tracing::info!(node = name, "clean");
    }
    let after = Seen::look(client, args).await?;
    match after.missing(&before.awaited()) {
        left if left.is_empty() => Ok(()),
        left => bail!("{}", complaint(&left, args.timeout, &args.namespace)),
    }
}

fn is_clean(node: &SliceNode) -> bool {
    (node.status.as_ref()).is_some_and(|status| status.phase == SliceNodePhase::Removed)
}

/// What there is to be cleaned.
#[derive(Debug, Default)]
struct Seen {
    /// Whether the API server has SliceNodes at all.
    has_kind: bool,
    objects: BTreeMap<String, SliceNode>,
    /// Nodes with an agent that runs or has run.
    agents: BTreeSet<String>,
    /// Nodes of the cluster.
    nodes: BTreeSet<String>,
}

impl Seen {
    async fn look(client: &Client, args: &TeardownArgs) -> anyhow::Result<Self> {
        let everything = ListParams::default();
        let (has_kind, objects) = match Api::<SliceNode>::all(client.clone()).list(&everything).await {
            Ok(objects) => (true, objects.items),
            Err(kube::Error::Api(status)) if status.code == 404 => (false, vec![]),
            Err(error) => return Err(error).context("list the SliceNodes"),
        };
        let nodes = Api::<Node>::all(client.clone())
            .list_metadata(&everything)
            .await
            .context("list the nodes")?;
        let agents = pods_of(client, &args.namespace, AGENT).await?;
        Ok(Self {
            has_kind,
            objects: (objects.into_iter())
                .map(|object| (object.name_any(), object))
                .collect(),
            agents: agents.iter().filter_map(has_run_on).collect(),
            nodes: nodes.iter().map(ResourceExt::name_any).collect(),
        })
    }

    /// Nodes whose agents are to clean up: all, since one may start meanwhile.
    fn asked(&self) -> BTreeSet<String> {
        let known = self.objects.keys().chain(&self.agents);
        known.filter(|name| self.nodes.contains(*name)).cloned().collect()
    }

    /// Those of them that have anything to be cleaned: an agent has reported, or has run. A Node that is gone has nothing left.
    fn awaited(&self) -> BTreeSet<String> {
        let has_reported = |name: &String| {
            (self.objects.get(name)).is_some_and(|object| object.status.is_some())
                || self.agents.contains(name)
        };
        self.asked().into_iter().filter(has_reported).collect()
    }

    /// Which of these are not clean, and why.
    fn missing(&self, awaited: &BTreeSet<String>) -> BTreeMap<String, String> {
        let there = awaited.iter().filter(|name| self.nodes.contains(*name));
        there
            .filter_map(|name| {
                let object = self.objects.get(name).filter(|object| !is_clean(object))?;
                let why = match self.agents.contains(name) {
                    false => "no agent runs there".to_owned(),
                    true => said(object).unwrap_or_else(|| "its agent has not reported".to_owned()),
                };
                Some((name.clone(), why))
            })
            .collect()
    }
}

/// What an agent says of its node.
fn said(object: &SliceNode) -> Option<String> {
    let mut conditions = object.status.as_ref()?.conditions.iter();
    let ready = conditions.find(|condition| condition.type_ == READY)?;
    Some(ready.message.clone())
}

/// The node of an agent that runs or has run.
fn has_run_on(agent: &Pod) -> Option<String> {
    let statuses = agent.status.as_ref()?.container_statuses.iter().flatten();
    let mut states = statuses.flat_map(|status| [&status.state, &status.last_state]);
    let has_run = states.any(|state| {
        (state.as_ref()).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    });
    let node = agent.spec.as_ref()?.node_name.clone();
    node.filter(|_| has_run)
}

fn complaint(left: &BTreeMap<String, String>, timeout: Duration, namespace: &str) -> String {
    /// Enough to begin with.
    const NAMED: usize = 8;
    let mut named: Vec<String> = left
        .iter()
        .take(NAMED)
        .map(|(name, why)| format!("node {name}: {why}"))
        .collect();
    if left.len() > NAMED {
        named.push(format!("and {} more", left.len() - NAMED));
    }
    format!(
        "not clean within {} s: {}. See `kubectl -n {namespace} get pods -l weft.dev/component={AGENT} -o wide`; a node that is \
         gone for good is deleted with `kubectl delete node NAME`. Then uninstall again",
        timeout.as_secs(),
        named.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn object(name: &str, teardown: bool, phase: Option<SliceNodePhase>) -> (String, SliceNode) {
        let spec = SliceNodeSpec {
            teardown,
            ..SliceNodeSpec::default()
        };
        let mut object = SliceNode::new(name, spec);
        let ready = json!({
            "type": READY, "status": "False", "reason": "Pending", "message": format!("{name} is at it"),
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        object.status = phase
            .map(|phase| serde_json::from_value(json!({"phase": phase, "conditions": [ready]})).unwrap());
        (name.to_owned(), object)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_nodes_with_something_of_weft_are_waited_for() {
        use SliceNodePhase::{Ready, Removed};
        let seen = Seen {
            has_kind: true,
            objects: [
                object("reported", false, Some(Ready)),
                object("done", true, Some(Removed)),
                object("never-had-one", false, None),
                object("deleted", false, Some(Ready)),
            ]
            .into(),
            agents: set(&["reported", "without-object", "deleted"]),
            nodes: set(&["reported", "done", "never-had-one", "without-object", "other"]),
        };
        assert_eq!(
            seen.asked(),
            set(&["reported", "done", "never-had-one", "without-object"])
        );
        assert_eq!(seen.awaited(), set(&["reported", "done", "without-object"]));
    }

    #[test]
    fn what_is_not_clean_is_named_with_its_reason() {
        use SliceNodePhase::{Degraded, Ready, Removed};
        let seen = Seen {
            has_kind: true,
            objects: [
                object("at-it", true, Some(Degraded)),
                object("alone", true, Some(Ready)),
                object("done", true, Some(Removed)),
                object("silent", true, None),
                object("deleted", true, Some(Ready)),
            ]
            .into(),
            agents: set(&["at-it", "done", "silent"]),
            nodes: set(&["at-it", "alone", "done", "silent"]),
        };
        let left = seen.missing(&set(&["at-it", "alone", "done", "silent", "deleted"]));
        let text = complaint(&left, Duration::from_secs(90), "weft-system");
        expect_test::expect![[r#"not clean within 90 s: node alone: no agent runs there; node at-it: at-it is at it; node silent: its agent has not reported. See `kubectl -n weft-system get pods -l weft.dev/component=netop -o wide`; a node that is gone for good is deleted with `kubectl delete node NAME`. Then uninstall again"#]].assert_eq(&text);
        let many = (0..20).map(|number| (format!("n{number:02}"), "why".to_owned()));
        let text = complaint(&many.collect(), Duration::from_secs(90), "weft-system");
        assert!(
            text.contains("node n07") && text.contains("and 12 more") && !text.contains("n08"),
            "{text}"
        );
    }

    #[test]
    fn an_agent_whose_container_never_ran_has_left_nothing() {
        let on = |state: Value| {
            let pod = json!({
                "metadata": {"name": "weft-netop-x"}, "spec": {"nodeName": "n1", "containers": []},
                "status": {"containerStatuses": [{"name": "netop", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": state}]},
            });
            has_run_on(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(on(json!({"waiting": {"reason": "ImagePullBackOff"}})), None);
        assert_eq!(on(json!({"running": {}})).as_deref(), Some("n1"));
        assert_eq!(on(json!({"terminated": {"exitCode": 1}})).as_deref(), Some("n1"));
    }
}
