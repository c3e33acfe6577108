//! What the agent reports of itself, its blocks, gateways and pods. Pure; [`crate::report`] writes it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Value, json};
use slice_crds::{
    Cidr, IndexRange,
    conditions::{self, READY, Verdict, reason},
    labels,
    v1alpha1::{
        DataPathStatus, MeshStatus, SliceBlockStatus, SliceGatewayStatus, SliceNodePhase, SliceNodeStatus,
        TunnelStatus,
    },
};
use slice_runtime::{
    handover::{DataPath, Hello, Keys, Report, Tunnel},
    version::VERSION,
};

use crate::{
    intent::{PodDecision, Wanted},
    ledger::Usage,
    world::PodView,
};

/// First part of the names of our entries in the network status: what others wrote is recognised by its absence.
const NETWORK_PREFIX: &str = "weft.dev/";

/// One snapshot of everything that is to be reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reports {
    /// Whether anything has been decided yet.
    pub decided: bool,
    /// Absent until the node's object is there.
    pub node: Option<NodeReport>,
    /// By the block's object name.
    pub blocks: BTreeMap<String, BlockReport>,
    /// By the gateway's object name.
    pub gateways: BTreeMap<String, GatewayReport>,
    /// By UID: pods whose object does not say yet what it should.
    pub pods: BTreeMap<String, PodReport>,
    pub recorded: Recorded,
}

/// The statuses that the objects of a snapshot have at present, by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    pub node: Option<SliceNodeStatus>,
    pub blocks: BTreeMap<String, SliceBlockStatus>,
    pub gateways: BTreeMap<String, SliceGatewayStatus>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    pub phase: SliceNodePhase,
    pub underlay_mtu: Option<u16>,
    pub pod_networks: Vec<Cidr>,
    pub features: BTreeMap<String, bool>,
    pub ready: Verdict,
    /// Whether the node has what slices are guaranteed; `None` where none is.
    pub guarantees: Option<Verdict>,
    pub mesh: MeshStatus,
    /// Whether names of slices resolve; `None` where nobody asks or nothing is known.
    pub names: Option<Verdict>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BlockReport {
    pub attachments: u32,
    pub usage: Usage,
    /// Blocks that nothing uses and whose indices have rested.
    pub idle: Vec<IndexRange>,
    /// Releasing blocks that nothing uses any more.
    pub released: Vec<IndexRange>,
    /// Indices that pods have outside of the blocks.
    pub strays: Vec<IndexRange>,
    /// Whether anything of the slice is, or is to be, on the node.
    pub present: bool,
    /// Whether the node answers the probes of others.
    pub answers_probes: bool,
    /// Generation of the spec that was acted upon; `None` before any was.
    pub observed_generation: Option<i64>,
    pub ready: Verdict,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayReport {
    /// Of its object.
    pub namespace: Option<String>,
    /// Absent until the gateway has called.
    pub keys: Option<Keys>,
    pub renewal_waits_for: Option<String>,
    pub node: String,
    pub connected: bool,
    pub tunnels: Vec<TunnelStatus>,
    pub data_path: Option<DataPathStatus>,
    pub standing: Standing,
}

/// Who may report a gateway whose pod moves from node to node.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It is here to stay: what another node reported is of before. `denied` where the object says that now.
    Here { denied: bool },
    /// It has gone, or is about to: another node may have it. To be written only while the object is of this version.
    Leaving { version: Option<String> },
}

impl Default for Standing {
    fn default() -> Self {
        Self::Here { denied: false }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct PodReport {
    pub namespace: String,
    pub name: String,
    pub resource_version: Option<String>,
    /// A strategic merge patch of the pod, through its status.
    pub patch: Value,
}

impl NodeReport {
    pub fn status(&self, recorded: Option<&SliceNodeStatus>, now: Timestamp) -> SliceNodeStatus {
        let before = recorded.map_or(&[][..], |recorded| &recorded.conditions);
        SliceNodeStatus {
            phase: self.phase,
            version: Some(VERSION.to_owned()),
            underlay_mtu: self.underlay_mtu,
            pod_networks: self.pod_networks.clone(),
            features: self.features.clone(),
            mesh: self.mesh.clone(),
            conditions: {
                let verdicts = [self.ready.clone()]
                    .into_iter()
                    .chain(self.guarantees.clone())
                    .chain(self.names.clone());
                conditions::conditions(before, verdicts, None, now)
            },
            observed_at: Some(Time(now)),
        }
    }
}

impl BlockReport {
    pub fn status(&self, recorded: Option<&SliceBlockStatus>, now: Timestamp) -> SliceBlockStatus {
        let before = recorded.map_or(&[][..], |recorded| &recorded.conditions);
        SliceBlockStatus {
            attachments: self.attachments,
            free: self.usage.free,
            usable: self.usage.usable,
            idle: self.idle.clone(),
            released: self.released.clone(),
            strays: self.strays.clone(),
            present: Some(self.present),
            answers_probes: self.answers_probes,
            observed_generation: self.observed_generation,
            conditions: conditions::conditions(before, [self.ready.clone()], self.observed_generation, now),
            observed_at: Some(Time(now)),
        }
    }
}

impl GatewayReport {
    pub fn status(&self, now: Timestamp) -> SliceGatewayStatus {
        let keys = self.keys.clone();
        SliceGatewayStatus {
            public_key: keys.as_ref().map(|keys| keys.public_key.clone()),
            former_key: keys.as_ref().and_then(|keys| keys.former_key.clone()),
            revocation: keys.and_then(|keys| keys.revocation),
            renewal_waits_for: self.renewal_waits_for.clone(),
            node: Some(self.node.clone()),
            connected: self.connected,
            tunnels: self.tunnels.clone(),
            data_path: self.data_path.clone(),
            observed_at: Some(Time(now)),
        }
    }
}

/// What of a status others act on: without times and measurements, which change all the time and are no reason to
/// write it.
pub fn content(status: &impl Serialize) -> Value {
    // A status is written as JSON a moment later, where an error is reported.
    let mut content = serde_json::to_value(status).unwrap_or_default();
    let mut strip = |list: &str, fields: &[&str]| {
        let items = content.get_mut(list).and_then(Value::as_array_mut);
        for item in items.into_iter().flatten().filter_map(Value::as_object_mut) {
            fields.iter().for_each(|field| _ = item.remove(*field));
        }
    };
    strip("conditions", &["lastTransitionTime"]);
    strip("tunnels", &["lastHandshake", "rttMicros"]);
    if let Some(content) = content.as_object_mut() {
        content.remove("observedAt");
    }
    content
}

/// The report of a gateway that is connected.
pub fn gateway(node: &str, hello: &Hello, report: Option<&Report>, now: Timestamp) -> GatewayReport {
    let tunnel = |tunnel: &Tunnel| TunnelStatus {
        peer: tunnel.peer.clone(),
        up: tunnel.up,
        endpoint: tunnel.endpoint,
        last_handshake: tunnel.handshake_age_ms.and_then(|age| {
            let age = SignedDuration::from_millis(i64::try_from(age).ok()?);
            now.checked_sub(age).ok().map(Time)
        }),
        rtt_micros: tunnel.rtt_micros,
        path_mtu: tunnel.path_mtu,
    };
    let first = || Keys {
        public_key: hello.public_key.clone(),
        former_key: None,
        revocation: None,
    };
    let data_path = |path: &DataPath| DataPathStatus {
        threads: path.threads,
        tap_queues: path.tap_queues,
        tap_offload: path.tap_offload.clone(),
        udp_segmentation: path.udp_segmentation,
        udp_coalescing: path.udp_coalescing,
    };
    let reported = report.and_then(|report| report.keys.clone());
    GatewayReport {
        namespace: None,
        keys: Some(reported.unwrap_or_else(first)),
        renewal_waits_for: report.and_then(|report| report.renewal_waits_for.clone()),
        node: node.to_owned(),
        connected: true,
        tunnels: report
            .into_iter()
            .flat_map(|report| &report.tunnels)
            .map(tunnel)
            .collect(),
        data_path: report.and_then(|report| report.data_path.as_ref().map(data_path)),
        standing: Standing::default(),
    }
}

/// The condition of a block whose slice is on the node, or should be.
pub fn block_ready(attached: u32, waiting: &[String], problem: Option<&str>) -> Verdict {
    match (problem, waiting) {
        (Some(problem), _) => Verdict::no(READY, reason::DEGRADED, problem),
        (None, []) => Verdict::yes(READY, reason::READY, format!("{attached} pods attached")),
        (None, [first, ..]) => {
            let rest = if waiting.len() > 1 {
                format!(" (and {} more)", waiting.len() - 1)
            } else {
                String::new()
            };
            Verdict::no(READY, reason::PENDING, format!("{first}{rest}"))
        }
    }
}

/// What one pod's object should say, or `None` where it does.
///
/// `attached` tells which of the wanted attachments exist.
pub fn pod(
    pod: &PodView,
    decision: Option<&PodDecision>,
    attached: impl Fn(&Wanted) -> bool,
) -> Option<PodReport> {
    let empty = BTreeMap::new();
    let wanted = decision.map_or(&empty, |decision| &decision.slices);
    let mut attachments = vec![];
    let mut networks = vec![];
    for (slice, wanted) in wanted {
        let Ok(placed) = wanted.outcome.as_ref() else {
            continue;
        };
        if !attached(wanted) {
            continue;
        }
        attachments.push(labels::Attachment {
            slice: slice.clone(),
            interface: placed.interface.clone(),
            ips: placed.addresses.clone(),
            mac: placed.mac.to_string(),
        });
        networks.push(json!({
            "name": format!("{NETWORK_PREFIX}{slice}"),
            "interface": placed.interface,
            "ips": placed.addresses,
            "mac": placed.mac.to_string(),
            "mtu": placed.mtu,
            "default": false,
            "dns": {},
        }));
    }
    let mut annotations = serde_json::Map::new();
    let text = (!attachments.is_empty()).then(|| serde_json::to_string(&attachments).unwrap_or_default());
    if text != pod.attachments {
        annotations.insert(
            labels::ATTACHMENTS.into(),
            text.map_or(Value::Null, Value::String),
        );
    }
    if let Some(status) = network_status(pod.network_status.as_deref(), networks) {
        annotations.insert(labels::NETWORK_STATUS.into(), status);
    }
    let mut patch = json!({});
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = Value::Object(annotations);
    }
    if let Some(condition) = gate(pod, wanted, attached) {
        patch["status"]["conditions"] = json!([condition]);
    }
    if patch.as_object().is_none_or(serde_json::Map::is_empty) {
        return None;
    }
    Some(PodReport {
        namespace: pod.facts.namespace.clone(),
        name: pod.name.clone(),
        resource_version: pod.resource_version.clone(),
        patch,
    })
}

/// The annotation with our entries in place of those we wrote before, or `None` where it is so already. What others
/// wrote stays in front and as it is; what is no list is left alone.
fn network_status(before: Option<&str>, ours: Vec<Value>) -> Option<Value> {
    let Ok(list) = serde_json::from_str::<Vec<Value>>(before.unwrap_or("[]")) else {
        return None;
    };
    let is_ours = |entry: &Value| {
        entry["name"]
            .as_str()
            .is_some_and(|name| name.starts_with(NETWORK_PREFIX))
    };
    let mut after: Vec<Value> = list.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    after.extend(ours);
    if after == list {
        return None;
    }
    if after.is_empty() {
        return Some(Value::Null);
    }
    serde_json::to_string(&after).ok().map(Value::String)
}

/// The readiness gate's condition, where the pod has the gate and the condition says something else.
fn gate(
    pod: &PodView,
    wanted: &BTreeMap<String, Wanted>,
    attached: impl Fn(&Wanted) -> bool,
) -> Option<Value> {
    let recorded = pod.gate?;
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(_, wanted)| !attached(wanted))
        .map(|(slice, _)| slice.as_str())
        .collect();
    let ready = missing.is_empty();
    if recorded == Some(ready) {
        return None;
    }
    let message = match missing.as_slice() {
        [] if wanted.is_empty() => "the pod is in no slice".to_owned(),
        [] => String::new(),
        slices => format!("not attached to {} yet", slices.join(", ")),
    };
    Some(json!({
        "type": labels::READINESS_GATE,
        "status": if ready { "True" } else { "False" },
        "reason": if ready { "Attached" } else { "Attaching" },
        "message": message,
    }))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use slice_crds::Mac;

    use super::*;
    use crate::{intent::Placed, model::Name};

    fn shop() -> PodDecision {
        let placed = Placed {
            port: Name::new("wp-a"),
            index: 8,
            interface: "sl-shop".into(),
            addresses: vec!["10.80.0.8".parse().unwrap(), "fd42::8".parse().unwrap()],
            mac: Mac::of_index(8),
            mtu: 1370,
        };
        let wanted = Wanted {
            required: true,
            outcome: Ok(placed),
        };
        PodDecision {
            slices: BTreeMap::from([("shop".into(), wanted)]),
            errors: vec![],
        }
    }

    #[track_caller]
    fn check(view: &PodView, decision: Option<&PodDecision>, attached: bool, expected: Expect) {
        let report = pod(view, decision, |_| attached);
        let text = report.map_or_else(
            || "nothing to report".into(),
            |report| serde_json::to_string_pretty(&report.patch).unwrap(),
        );
        expected.assert_eq(&text);
    }

    #[test]
    fn an_attached_pod_says_so() {
        check(
            &PodView::default(),
            Some(&shop()),
            true,
            expect![[r#"
            {
              "metadata": {
                "annotations": {
                  "k8s.v1.cni.cncf.io/network-status": "[{\"default\":false,\"dns\":{},\"interface\":\"sl-shop\",\"ips\":[\"10.80.0.8\",\"fd42::8\"],\"mac\":\"02:5c:00:00:00:08\",\"mtu\":1370,\"name\":\"weft.dev/shop\"}]",
                  "weft.dev/attachments": "[{\"slice\":\"shop\",\"interface\":\"sl-shop\",\"ips\":[\"10.80.0.8\",\"fd42::8\"],\"mac\":\"02:5c:00:00:00:08\"}]"
                }
              }
            }"#]],
        );
        check(
            &PodView::default(),
            Some(&shop()),
            false,
            expect!["nothing to report"],
        );
        check(&PodView::default(), None, true, expect!["nothing to report"]);
    }

    #[test]
    fn what_others_wrote_stays() {
        let others = r#"[{"name":"cbr0","default":true},{"name":"weft.dev/old"}]"#;
        let view = PodView {
            network_status: Some(others.into()),
            attachments: Some("[]".into()),
            ..PodView::default()
        };
        check(
            &view,
            None,
            false,
            expect![[r#"
            {
              "metadata": {
                "annotations": {
                  "k8s.v1.cni.cncf.io/network-status": "[{\"default\":true,\"name\":\"cbr0\"}]",
                  "weft.dev/attachments": null
                }
              }
            }"#]],
        );
        let odd = PodView {
            network_status: Some("not a list".into()),
            ..PodView::default()
        };
        check(&odd, None, false, expect!["nothing to report"]);
    }

    #[test]
    fn a_readiness_gate_turns_with_the_attachments() {
        let waiting = PodView {
            gate: Some(None),
            ..PodView::default()
        };
        check(
            &waiting,
            Some(&shop()),
            false,
            expect![[r#"
            {
              "status": {
                "conditions": [
                  {
                    "message": "not attached to shop yet",
                    "reason": "Attaching",
                    "status": "False",
                    "type": "weft.dev/attached"
                  }
                ]
              }
            }"#]],
        );
        check(
            &waiting,
            None,
            false,
            expect![[r#"
            {
              "status": {
                "conditions": [
                  {
                    "message": "the pod is in no slice",
                    "reason": "Attached",
                    "status": "True",
                    "type": "weft.dev/attached"
                  }
                ]
              }
            }"#]],
        );
        let recorded = PodView {
            gate: Some(Some(true)),
            ..PodView::default()
        };
        check(&recorded, None, false, expect!["nothing to report"]);
    }

    #[test]
    fn times_and_measurements_alone_are_no_reason_to_write() {
        let [t0, t1] = [0, 10].map(|second| Timestamp::from_second(second).unwrap());
        let tunnel = |rtt, up| TunnelStatus {
            peer: "paris/0".into(),
            up,
            endpoint: None,
            last_handshake: Some(Time(t0)),
            rtt_micros: Some(rtt),
            path_mtu: None,
        };
        let gateway = |rtt, up, now| {
            let report = GatewayReport {
                tunnels: vec![tunnel(rtt, up)],
                ..GatewayReport::default()
            };
            content(&report.status(now))
        };
        assert_eq!(gateway(1, true, t0), gateway(2, true, t1));
        assert_ne!(gateway(1, true, t0), gateway(1, false, t0));

        let report = BlockReport {
            attachments: 3,
            usage: Usage::default(),
            idle: vec![],
            released: vec![],
            strays: vec![],
            present: true,
            answers_probes: true,
            observed_generation: Some(1),
            ready: block_ready(3, &[], None),
        };
        let first = report.status(None, t0);
        let again = report.status(None, t1);
        assert_eq!(content(&first), content(&again));
        let kept = report.status(Some(&first), t1);
        assert_eq!(
            kept.conditions, first.conditions,
            "since when is what the object says"
        );
        let more = BlockReport {
            observed_generation: Some(2),
            ..report
        };
        assert_ne!(content(&first), content(&more.status(None, t0)));
    }

    #[test]
    fn an_object_that_says_so_is_recognised_whoever_wrote_it() {
        let report = NodeReport {
            phase: SliceNodePhase::Ready,
            underlay_mtu: Some(1500),
            pod_networks: vec!["10.244.1.0/24".parse().unwrap()],
            features: BTreeMap::from([("tap".into(), true)]),
            ready: Verdict::yes(READY, reason::READY, "2 slices on this node"),
            guarantees: None,
            mesh: MeshStatus::default(),
            names: None,
        };
        let written = report.status(None, Timestamp::UNIX_EPOCH);
        let text = serde_json::to_string(&written).unwrap();
        let read: SliceNodeStatus = serde_json::from_str(&text).unwrap();
        assert_eq!(
            content(&read),
            content(&report.status(Some(&read), Timestamp::UNIX_EPOCH))
        );
    }
}
