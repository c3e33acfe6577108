//! The clock of the questions, and the sockets that they leave by.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use slice_crds::names::SLICE_ZONE;
use slice_runtime::resolve::{self, Answer, Config, Kind};
use tokio::{net::UdpSocket, sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Fault, Finding, Local, Pace, Part, Pod, Reply, State, View, blame, words};
use crate::{kernel::netns, liveness::task::rand_u64, metrics::Metrics};

const PORT: u16 = 53;

/// Asks until `stop`, while there is somebody to ask; what is observed goes to `view`. `resolv_conf` is a file that has the servers that pods have.
pub async fn run(
    resolv_conf: PathBuf,
    pace: Pace,
    metrics: Metrics,
    mut local: watch::Receiver<Local>,
    view: watch::Sender<View>,
    stop: CancellationToken,
) {
    let begun = Instant::now();
    let mut state: Option<State> = None;
    loop {
        let known = local.borrow_and_update().clone();
        let mut until = None;
        if let Some(slice_dns) = known.slice_dns {
            let round = round(&resolv_conf, pace, slice_dns, &known.pods);
            let finding = tokio::select! {
                () = stop.cancelled() => return,
                finding = round => finding,
            };
            let result = if let Finding::Resolves(_) = finding {
                "resolved"
            } else {
                "failed"
            };
            metrics.names_asked.with_label_values(&[result]).inc();
            let state = state.get_or_insert_with(|| State::new(pace, known.before.clone()));
            let said = state.note(&finding, begun.elapsed()).clone();
            publish(&view, said);
            let jitter = pace.jitter.mul_f64(rand_u64() as f64 / u64::MAX as f64);
            until = Some(Instant::now() + pace.every + jitter);
        } else {
            state = None;
            publish(&view, None);
        }
        // Which pods there are matters to the next round only.
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = local.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if local.borrow_and_update().slice_dns != known.slice_dns {
                        break;
                    }
                }
                () = wait(until) => break,
            }
        }
    }
}

fn publish(view: &watch::Sender<View>, said: View) {
    view.send_if_modified(|before| {
        let changed = *before != said;
        *before = said;
        changed
    });
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Asks from one pod after the other, and from the node.
async fn round(resolv_conf: &Path, pace: Pace, slice_dns: IpAddr, pods: &[Pod]) -> Finding {
    let text = tokio::fs::read_to_string(resolv_conf).await.unwrap_or_default();
    let config = Config::read(&text);
    let Some(first) = config.servers.first().copied() else {
        return Finding::NoServer;
    };
    let asking = Asking {
        config: &config,
        patience: pace.patience,
    };
    let mut fault: Option<Fault> = None;
    for pod in pods {
        let zone = match asking.zone(Some(pod)).await {
            Zone::Resolves(server) => return Finding::Resolves(server),
            Zone::Fails(reply) => reply,
            // The pod has ended.
            Zone::NoNamespace => continue,
        };
        if fault.is_none() {
            fault = Some(asking.explain(first, slice_dns, &zone, Some(pod)).await);
        }
    }
    match (asking.zone(None).await, fault) {
        (Zone::Resolves(_), Some(fault)) => Finding::Fails(Fault {
            part: Part::Pods,
            ..fault
        }),
        (Zone::Resolves(server), None) => Finding::Resolves(server),
        (_, Some(fault)) => Finding::Fails(fault),
        (Zone::Fails(reply), None) => Finding::Fails(asking.explain(first, slice_dns, &reply, None).await),
        (Zone::NoNamespace, None) => Finding::NoServer,
    }
}

enum Zone {
    Resolves(IpAddr),
    /// What the first server says.
    Fails(Reply),
    NoNamespace,
}

struct Asking<'a> {
    config: &'a Config,
    patience: Duration,
}

impl Asking<'_> {
    /// Whether the zone is known, by one server after the other, as a resolver asks them.
    async fn zone(&self, pod: Option<&Pod>) -> Zone {
        let mut first = None;
        for server in &self.config.servers {
            let reply = self.ask(*server, SLICE_ZONE, Kind::Soa, pod).await;
            match reply {
                None => return Zone::NoNamespace,
                Some(Ok(Answer::Records)) => return Zone::Resolves(*server),
                Some(reply) => _ = first.get_or_insert(reply),
            }
        }
        first.map_or(Zone::NoNamespace, Zone::Fails)
    }

    /// What is wrong, by what else is answered.
    async fn explain(&self, server: IpAddr, slice_dns: IpAddr, zone: &Reply, pod: Option<&Pod>) -> Fault {
        let unknown = || Err("its namespace has ended".to_owned());
        let api = match &self.config.domain {
            None => None,
            Some(domain) => {
                let name = format!("kubernetes.default.svc.{domain}");
                Some(
                    self.ask(server, &name, Kind::A, pod)
                        .await
                        .unwrap_or_else(unknown),
                )
            }
        };
        let direct = self.ask(slice_dns, SLICE_ZONE, Kind::Soa, pod).await;
        Fault {
            part: blame(zone, api.as_ref(), &direct.unwrap_or_else(unknown)),
            server,
            slice_dns,
            said: words(zone),
            pod: pod.map(|pod| (pod.namespace.clone(), pod.name.clone())),
        }
    }

    /// One question; nothing where the pod's namespace cannot be entered.
    async fn ask(&self, server: IpAddr, name: &str, kind: Kind, pod: Option<&Pod>) -> Option<Reply> {
        let server = SocketAddr::new(server, PORT);
        let asked = match pod {
            None => resolve::ask(server, name, kind, self.patience).await,
            Some(pod) => {
                let socket = match open(pod.netns.clone(), server).await? {
                    Ok(socket) => socket,
                    Err(error) => return Some(Err(format!("it cannot be asked: {error}"))),
                };
                resolve::ask_by(&socket, name, kind, self.patience).await
            }
        };
        Some(asked.map_err(|error| error.to_string()))
    }
}

/// A socket in a pod's namespace, connected to a server; nothing where there is no such namespace.
async fn open(path: PathBuf, server: SocketAddr) -> Option<std::io::Result<UdpSocket>> {
    let opened = tokio::task::spawn_blocking(move || {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // What fails inside is the pod's network; that it cannot be entered is that the pod is gone.
        netns::within(&path, || {
            let connect = || {
                let socket = std::net::UdpSocket::bind((any, 0))?;
                socket.connect(server)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            Ok(connect())
        })
    });
    let socket = opened.await.ok()?.ok()?;
    Some(socket.and_then(UdpSocket::from_std))
}
