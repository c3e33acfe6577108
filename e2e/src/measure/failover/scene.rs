//! Two clusters with two gateways each, traffic between them, and what strikes a gateway.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ContainerStatus, Pod},
};
use kube::{
    ResourceExt,
    api::{Api, DeleteParams, ListParams, Patch, PatchParams},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use slice_crds::{labels, names};
use tokio::task::block_in_place;

use super::{Fault, Round};
use crate::{
    harness::{Cluster, Environment, Pace, Streams, is_ready, poll, weft::Member},
    lab::{network, process},
};

const SLICE: &str = "lasts";
const NAMESPACE: &str = "weft-lasts";
/// Between two messages.
const INTERVAL: Duration = Duration::from_millis(5);
/// Silences so long are listed.
const GAP: Duration = Duration::from_millis(50);
/// How long a cut lasts.
const CUT: Duration = Duration::from_millis(1500);
/// Everything is as before, new keys told to all.
const BACK: Duration = Duration::from_secs(90);

/// Two pods in two clusters, and the gateways between them.
pub struct Scene<'a> {
    environment: &'a Environment,
    members: Vec<Member>,
    random: u64,
}

impl<'a> Scene<'a> {
    /// Makes a slice with two gateways in each cluster and a pod on each node.
    pub async fn open(environment: &'a Environment, seed: u64) -> Result<Self> {
        environment.lab()?;
        environment
            .slice(
                SLICE,
                json!({"subnets": ["10.77.0.0/16"], "gateway": {"replicas": 2}}),
            )
            .await?;
        let scene = Self {
            environment,
            members: environment.members(SLICE, NAMESPACE).await?,
            random: seed | 1,
        };
        scene.steady().await?;
        Ok(scene)
    }

    pub async fn close(self) -> Result<()> {
        self.environment.remove_namespaces(NAMESPACE).await?;
        self.environment.remove_slice(SLICE).await
    }

    /// One fault under two conversations; ends when everything is as before.
    pub async fn round(&mut self, fault: Fault) -> Result<Round> {
        let mut victims = self.gateways().await?;
        let victim = victims.swap_remove(self.below(victims.len()));
        let node = victim.node.clone();
        let there = |member: &Member| member.name.ends_with(&format!("-{node}"));
        let talks = |member: &&Member| !(fault.takes_the_node() && there(member));
        let (near, far): (Vec<_>, Vec<_>) = self
            .members
            .iter()
            .filter(talks)
            .cloned()
            .partition(|member| member.cluster.name == self.members[0].cluster.name);
        let (from, to) = (&near[self.below(near.len())], &far[self.below(far.len())]);
        let (from, to) = if self.below(2) == 0 {
            (from, to)
        } else {
            (to, from)
        };
        let pause = Duration::from_millis(300 + self.below(200) as u64);
        let peers = self.gateways().await?;
        let others: Vec<Gateway> = peers
            .into_iter()
            .filter(|gateway| gateway.cluster.name != victim.cluster.name)
            .collect();
        let other = &others[self.below(others.len())];

        let pace = Pace {
            interval: INTERVAL,
            gap: GAP,
            lasts: fault.lasts(),
        };
        let streams = Streams::start(from, to, pace).await?;
        tokio::time::sleep(pause).await;
        self.strike(fault, &victim, other).await?;
        let (udp, tcp) = streams.finish().await?;
        match fault {
            Fault::NodeOff => self.boot(&victim).await?,
            Fault::RollingUpdate => victim.ensure_updated().await?,
            _ => {}
        }
        self.steady().await?;
        ensure!(
            tcp.broken.is_none() && tcp.lost == 0,
            "{}: the TCP connection from {from} to {to} broke: {tcp:?}",
            fault.name()
        );
        let lost = udp.lost as f64;
        Ok(Round {
            fault,
            at: Timestamp::now().to_string(),
            what: format!(
                "{} of {} from {from} to {to}: silent {}, without an answer {}",
                fault.name(),
                victim.name,
                json!(udp.gaps),
                json!(udp.missing)
            ),
            // A silence that is not listed is as long as what it lost.
            outage_ms: match udp.lost {
                0 => 0.0,
                _ => udp.longest_gap_ms.max(lost * INTERVAL.as_secs_f64() * 1e3),
            },
            lost,
            tcp_ms: tcp.longest_gap_ms,
        })
    }

    async fn strike(&self, fault: Fault, victim: &Gateway, other: &Gateway) -> Result<()> {
        match fault {
            Fault::GatewayKill => {
                kill(victim.process()?, Signal::SIGKILL).context("kill the gateway")?;
                // A new pod, or the kubelet would let each death in a row wait longer.
                victim.delete(0).await
            }
            Fault::Drain => victim.delete(60).await,
            Fault::RollingUpdate => victim.replace_all().await,
            Fault::Rotation => {
                let hub = &self.environment.hub()?.name;
                self.environment
                    .slicectl(hub, &["renew", "keys", SLICE])
                    .map(drop)
            }
            Fault::NodeCut => {
                let port = &self.machine(&victim.node)?.port;
                cut(&[format!("iifname {port} drop"), format!("oifname {port} drop")]).await
            }
            Fault::NodeOff => block_in_place(|| self.environment.lab()?.stop_machine(&victim.node)),
            Fault::PathCut | Fault::OneWayCut => {
                let (one, two) = (self.address(&victim.node)?, self.address(&other.node)?);
                let rule = |from: Ipv4Addr, to: Ipv4Addr| format!("ip saddr {from} ip daddr {to} drop");
                let both = [rule(one, two), rule(two, one)];
                cut(if fault == Fault::PathCut {
                    &both
                } else {
                    &both[..1]
                })
                .await
            }
        }
    }

    /// Boots the node whose plug was pulled, and waits for the pod on it.
    async fn boot(&mut self, victim: &Gateway) -> Result<()> {
        let lab = self.environment.lab()?;
        let before = Timestamp::now();
        block_in_place(|| lab.start_cluster(&victim.cluster.name))?;
        let name = format!("on-{}", victim.node);
        let again = |pod: &Pod| {
            let status = pod.status.as_ref();
            let containers = status.and_then(|status| status.container_statuses.as_ref());
            let started =
                |one: &ContainerStatus| Some(one.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0);
            // The record of a pod that went with its node still says Ready. Times have whole seconds; a boot takes more.
            is_ready(pod) && containers.is_some_and(|all| all.iter().all(|one| started(one) > Some(before)))
        };
        let pods = victim.cluster.pods(NAMESPACE);
        let what = format!("pod {NAMESPACE}/{name} runs again");
        victim
            .cluster
            .await_object(&pods, &name, &what, BACK, again)
            .await?;
        // It may have another address now, and its annotation the former one a while longer.
        let fresh = poll(
            BACK,
            &format!("{name} has the address that its record says"),
            async || {
                let member = victim.cluster.member(NAMESPACE, &name, SLICE).await?;
                let own = member.v4()?.to_string();
                member.probe(&["tcp", &own, "--bytes", "1"]).await?;
                Ok(Some(member))
            },
        )
        .await?;
        let place = self.members.iter_mut().find(|member| member.name == name);
        *place.context("no such pod")? = fresh;
        Ok(())
    }

    fn machine(&self, node: &str) -> Result<&crate::lab::plan::Machine> {
        Ok(self.environment.lab()?.plan().machine(node)?)
    }

    fn address(&self, node: &str) -> Result<Ipv4Addr> {
        Ok(self.machine(node)?.ip4)
    }

    /// All gateways of the slice.
    async fn gateways(&self) -> Result<Vec<Gateway>> {
        let mut found = Vec::new();
        for cluster in &self.environment.clusters {
            for pod in list(cluster).await? {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                found.push(Gateway {
                    cluster: cluster.clone(),
                    name: pod.name_any(),
                    uid: pod.uid().unwrap_or_default(),
                    node: node.with_context(|| format!("{} is on no node", pod.name_any()))?,
                });
            }
        }
        Ok(found)
    }

    /// Waits until every gateway is Ready and has a tunnel to every gateway of the others.
    async fn steady(&self) -> Result<()> {
        for cluster in &self.environment.clusters {
            let far = 2 * (self.environment.clusters.len() - 1);
            let what = format!("cluster {}: two gateways with {far} tunnels each", cluster.name);
            poll(BACK, &what, async || {
                let pods = list(cluster).await?;
                let settled = pods.len() == 2
                    && pods
                        .iter()
                        .all(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
                let objects = cluster.gateways(SLICE).await?;
                let up: Vec<usize> = objects
                    .iter()
                    .filter_map(|gateway| gateway.status.as_ref())
                    .filter(|status| status.connected)
                    .map(|status| status.tunnels.iter().filter(|tunnel| tunnel.up).count())
                    .collect();
                ensure!(settled && up == [far, far], "tunnels up: {up:?}");
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A number below `end`; xorshift64*, so that a seed makes a run again.
    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

async fn list(cluster: &Cluster) -> Result<Vec<Pod>> {
    let selector = format!(
        "{}={},{}={SLICE}",
        labels::COMPONENT,
        labels::COMPONENT_GATEWAY,
        labels::FOR_SLICE
    );
    let pods = cluster.pods(names::GATEWAY_NAMESPACE);
    Ok(pods.list(&ListParams::default().labels(&selector)).await?.items)
}

/// A gateway as it is now.
struct Gateway {
    cluster: Cluster,
    name: String,
    uid: String,
    node: String,
}

impl Gateway {
    /// Its process on this machine, by the control group of its pod.
    fn process(&self) -> Result<Pid> {
        let escaped = self.uid.replace('-', "_");
        let ours = |pid: &i32| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let groups = read("cgroup");
            read("comm").starts_with("slice-gateway")
                && (groups.contains(&self.uid) || groups.contains(&escaped))
        };
        let entries = std::fs::read_dir("/proc").context("list processes")?.flatten();
        let pid = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(ours);
        Ok(Pid::from_raw(
            pid.with_context(|| format!("no process of {}", self.name))?,
        ))
    }

    async fn delete(&self, grace: u32) -> Result<()> {
        let pods = self.cluster.pods(names::GATEWAY_NAMESPACE);
        pods.delete(&self.name, &DeleteParams::default().grace_period(grace))
            .await
            .with_context(|| format!("delete {}", self.name))?;
        Ok(())
    }

    fn workloads(&self) -> Api<StatefulSet> {
        Api::namespaced(self.cluster.client.clone(), names::GATEWAY_NAMESPACE)
    }

    /// As `kubectl rollout restart` does.
    async fn replace_all(&self) -> Result<()> {
        let annotation = json!({"kubectl.kubernetes.io/restartedAt": Timestamp::now().to_string()});
        let patch = json!({"spec": {"template": {"metadata": {"annotations": annotation}}}});
        self.workloads()
            .patch(
                &names::gateway_workload(SLICE),
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await
            .context("restart the gateways")?;
        Ok(())
    }

    /// Whether what [`Self::replace_all`] began is over.
    async fn ensure_updated(&self) -> Result<()> {
        let set = self.workloads().get(&names::gateway_workload(SLICE)).await?;
        let status = set.status.context("a StatefulSet without status")?;
        ensure!(
            status.current_revision == status.update_revision
                && status.ready_replicas == Some(status.replicas),
            "the conversations ended before the update did: {status:?}"
        );
        Ok(())
    }
}

/// Drops what these rules match on the switch between all machines, for a while.
async fn cut(rules: &[String]) -> Result<()> {
    let nft = |script: String| process::run(network::command_in(network::SWITCH, "nft").arg(script));
    let chain = "add table bridge cut; add chain bridge cut forward { type filter hook forward priority 0; }";
    let rules = rules
        .iter()
        .map(|rule| format!("; add rule bridge cut forward {rule}"));
    nft(format!("{chain}{}", rules.collect::<String>()))?;
    tokio::time::sleep(CUT).await;
    nft("delete table bridge cut".into()).map(drop)
}
