//! What the agent says about itself, its blocks, gateways and pods. Pure; [`crate::report`] writes it.

use std::{collections::BTreeMap, net::SocketAddr};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use slice_crds::{
    conditions::{READY, Verdict, reason},
    labels,
    v1alpha1::{DataPathStatus, SliceNodePhase, TunnelStatus},
};
use slice_runtime::handover::{DataPath, Hello, Keys, Report, Tunnel};

use crate::{
    intent::{PodDecision, Wanted},
    ledger::Usage,
    world::PodView,
};

/// First part of the names of our entries in the network status: what others wrote is recognised by its absence.
const NETWORK_PREFIX: &str = "weft.dev/";

/// One snapshot of everything that is to be said.
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
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    pub phase: SliceNodePhase,
    pub underlay_mtu: Option<u16>,
    pub features: BTreeMap<String, bool>,
    pub ready: Verdict,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BlockReport {
    pub attachments: u32,
    pub usage: Usage,
    pub ready: Verdict,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayReport {
    /// Absent until the gateway has called.
    pub keys: Option<Keys>,
    pub renewal_waits_for: Option<String>,
    pub node: String,
    pub connected: bool,
    pub tunnels: Vec<TunnelStatus>,
    pub data_path: Option<DataPathStatus>,
    pub standing: Standing,
}

/// Who may speak for a gateway whose pod moves from node to node.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It is here to stay: what another node says of it is of before. `denied` where the object says that now.
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

impl GatewayReport {
    /// Whether two reports say the same about what others act on. Round-trip times and handshake ages change all the
    /// time and can wait for the next heartbeat.
    pub fn same_state(&self, other: &Self) -> bool {
        type State<'a> = Vec<(&'a str, bool, Option<SocketAddr>)>;
        fn state(report: &GatewayReport) -> State<'_> {
            report
                .tunnels
                .iter()
                .map(|tunnel| (tunnel.peer.as_str(), tunnel.up, tunnel.endpoint))
                .collect()
        }
        (&self.keys, &self.renewal_waits_for) == (&other.keys, &other.renewal_waits_for)
            && (&self.node, self.connected, &self.data_path)
                == (&other.node, other.connected, &other.data_path)
            && state(self) == state(other)
    }
}

/// What a gateway that is connected says.
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
    let said = report.and_then(|report| report.keys.clone());
    GatewayReport {
        keys: Some(said.unwrap_or_else(first)),
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

/// What a block's status says.
pub fn block(usage: Usage, attached: u32, waiting: &[String], problem: Option<&str>) -> BlockReport {
    let ready = match (problem, waiting) {
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
    };
    BlockReport {
        attachments: attached,
        usage,
        ready,
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
    let said = pod.gate?;
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(_, wanted)| !attached(wanted))
        .map(|(slice, _)| slice.as_str())
        .collect();
    let ready = missing.is_empty();
    if said == Some(ready) {
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
            || "nothing to say".into(),
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
            expect!["nothing to say"],
        );
        check(&PodView::default(), None, true, expect!["nothing to say"]);
    }

    #[test]
    fn what_others_said_stays() {
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
        check(&odd, None, false, expect!["nothing to say"]);
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
        let said = PodView {
            gate: Some(Some(true)),
            ..PodView::default()
        };
        check(&said, None, false, expect!["nothing to say"]);
    }

    #[test]
    fn round_trip_times_alone_are_no_news() {
        let tunnel = |rtt, up| TunnelStatus {
            peer: "paris/0".into(),
            up,
            endpoint: None,
            last_handshake: None,
            rtt_micros: Some(rtt),
        };
        let report = |rtt, up| GatewayReport {
            tunnels: vec![tunnel(rtt, up)],
            ..GatewayReport::default()
        };
        assert!(report(1, true).same_state(&report(2, true)));
        assert!(!report(1, true).same_state(&report(1, false)));
    }
}
