//! What keeps a slice's gateways from running.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// What keeps a slice's gateways from running, as far as their pods say, and what to do about it.
pub(in crate::member) fn obstacle<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    cluster: &str,
) -> Option<String> {
    let mut alive = pods
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    alive.find_map(|pod| {
        let status = pod.status.as_ref()?;
        let at = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let unscheduled = status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        });
        if let Some(condition) = unscheduled {
            let why = condition.message.as_deref().unwrap_or_default();
            // What follows is that evicting others would not help.
            let why = why
                .split(" preemption:")
                .next()
                .unwrap_or_default()
                .trim_end_matches('.');
            return Some(format!(
                "pod {at} is on no node: {}{}",
                short(why),
                placing(why, cluster)
            ));
        }
        let waiting = status.container_statuses.iter().flatten();
        waiting
            .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
            .find_map(|waiting| {
                let reason = waiting.reason.as_deref()?;
                // What every pod goes through as it starts.
                if matches!(reason, "ContainerCreating" | "PodInitializing") {
                    return None;
                }
                let why = waiting.message.as_deref().unwrap_or("no more is said");
                Some(format!("pod {at} waits, {reason}: {}", short(why)))
            })
    })
}

/// Characters of what others say that are repeated.
const MOST_SAID: usize = 240;

pub(super) fn short(text: &str) -> String {
    text.chars().take(MOST_SAID).collect()
}

/// How a scheduler's complaint is met.
fn placing(why: &str, cluster: &str) -> String {
    let mut remedies = Vec::new();
    if why.contains("taint") {
        remedies.push("tolerate the taint with spec.gateway.tolerations");
    }
    if why.contains("node affinity/selector") {
        remedies.push("name nodes that exist with spec.gateway.nodeSelector");
    }
    match remedies.is_empty() {
        true => String::new(),
        false => format!("; on the hub, {} of Cluster {cluster}", remedies.join(", or ")),
    }
}
