//! The only way to the operating system's network: [`Kernel`].
//!
//! ```text
//!  Linux ─┬ rtnl ───── netlink sockets, one per namespace
//!         ├ observe ── dumps → State
//!         ├ change ─── Action → requests
//!         ├ datapath ─ Entry → maps of the eBPF programs
//!         ├ traffic ── programs at interfaces
//!         ├ ethtool ── what an interface does with what it receives
//!         ├ shaper ─── classes of the queueing discipline
//!         ├ mesh ───── probes of other nodes, and the map of their answers
//!         ├ nft ────── the nft program: scripts in, JSON out
//!         ├ tap ────── /dev/net/tun
//!         └ netns ──── short-lived threads that enter namespaces
//!  Fake ── the same in memory, for tests of what is above
//! ```

mod change;
mod datapath;
mod ethtool;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod far_ends;
mod mesh;
pub mod netns;
mod nft;
mod observe;
mod probe;
mod rtnl;
mod shaper;
mod tap;
mod traffic;

pub use far_ends::far_ends;
pub use mesh::Prober;
pub use probe::EBPF;
pub use slice_runtime::tap::OFFLOADS as TAP_OFFLOADS;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use slice_crds::Rate;
use tokio::sync::mpsc;

use crate::{
    model::{Carried, ClassId, Kind, Name, Netns, State},
    plan::{Plan, PodEnd, Scope, Step},
    programs::Counter,
};

/// What an observation is about, beside everything of Weft in the node's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Where pods' ends may be, by the host end's name.
    pub pods: BTreeMap<Name, PodEnd>,
    /// The node's address, to find the interface that carries it.
    pub node_address: Option<IpAddr>,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    pub state: State,
    /// Frames, by slice's number, direction and what became of them.
    pub counters: BTreeMap<Counter, u64>,
    /// What the classes of the shaper have carried.
    pub carried: BTreeMap<ClassId, Carried>,
    /// Packets to the ports between nodes from elsewhere.
    pub underlay_drops: Option<u64>,
    /// TAP devices that a process holds open.
    pub held: BTreeSet<Name>,
    /// Namespaces of the query that have ended.
    pub gone: BTreeSet<Netns>,
    /// Pods' ends that could not be read, and why: their pods are not in the state.
    pub unread: BTreeMap<Name, String>,
    /// Bytes of the largest packet on the interface with the node's address.
    pub underlay_mtu: Option<u32>,
    /// What it carries, where it says so.
    pub underlay_speed: Option<Rate>,
}

/// A change that was not made.
#[derive(Debug)]
pub struct Failure {
    pub step: Step,
    pub error: anyhow::Error,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    pub done: Vec<Step>,
    pub failed: Vec<Failure>,
    /// Not tried, because something before it in the same scope failed.
    pub skipped: Vec<Step>,
}

impl Outcome {
    /// Whether an earlier failure of the same port forbids a step.
    fn forbids(&self, scope: &Scope) -> bool {
        let failed = |port: &Name| {
            let mut failures = self.failed.iter();
            failures.any(|failure| failure.step.scope.port.as_ref() == Some(port))
        };
        scope.port.as_ref().is_some_and(failed)
    }

    fn record(&mut self, step: &Step, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.done.push(step.clone()),
            Err(error) => self.failed.push(Failure {
                step: step.clone(),
                error,
            }),
        }
    }
}

/// A node's kernel.
pub trait Kernel: Send {
    /// Reads everything of Weft.
    ///
    /// # Errors
    /// Where something could not be read at all; a namespace that has ended is no error.
    fn observe(&mut self, query: &Query) -> impl Future<Output = anyhow::Result<Observation>> + Send;

    /// Makes the changes in order. A failure stops its scope and nothing else.
    fn apply(&mut self, plan: &Plan) -> impl Future<Output = Outcome> + Send;

    /// What the classes of the shaper have carried.
    ///
    /// # Errors
    /// Where it could not be read.
    fn carried(&mut self) -> impl Future<Output = anyhow::Result<BTreeMap<ClassId, Carried>>> + Send;

    /// Opens so many queues of a TAP that is there and made for as many, or one where the kernel cannot keep a flow on
    /// one of several. `None` where a process holds the one queue; that nobody holds one with several is what the
    /// caller has seen.
    ///
    /// # Errors
    /// Where the device cannot be opened.
    fn open_tap(&mut self, name: &Name, queues: u8) -> anyhow::Result<Option<Vec<OwnedFd>>>;
}

/// The kernel that runs this process.
pub struct Linux {
    /// The node's network namespace; `None` is this process's own.
    namespace: Option<PathBuf>,
    rtnl: rtnl::Rtnl,
    /// Why there is none, where there is none.
    datapath: Result<datapath::DataPath, String>,
    /// Interface indices as last seen.
    indices: BTreeMap<Name, u32>,
    /// The same for those who are told of changes.
    ours: Arc<Mutex<BTreeSet<u32>>>,
    /// TAP devices of which one queue was opened in place of several.
    unsteered: BTreeSet<Name>,
}

impl Linux {
    /// # Errors
    /// Where the namespace is gone.
    pub fn open(namespace: Option<&Path>) -> anyhow::Result<Self> {
        let rtnl = rtnl::Rtnl::open(namespace).context("open a netlink socket")?;
        let datapath = datapath::DataPath::load().map_err(|error| format!("{error:#}"));
        if let Err(error) = &datapath {
            tracing::error!(error, "no frame of a slice is carried on this node");
        }
        Ok(Self {
            namespace: namespace.map(Path::to_owned),
            rtnl,
            datapath,
            indices: BTreeMap::new(),
            ours: Arc::default(),
            unsteered: BTreeSet::new(),
        })
    }

    fn datapath(&mut self) -> anyhow::Result<&mut datapath::DataPath> {
        self.datapath.as_mut().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The classes of the shaper; none where there is no shaper.
    async fn classes(&mut self) -> anyhow::Result<BTreeMap<ClassId, shaper::Seen>> {
        let Some(shaper) = self.indices.get(&Name::shaper()) else {
            return Ok(BTreeMap::new());
        };
        let classes = shaper::classes(&mut self.rtnl, *shaper).await;
        classes.context("read the classes of the shaper")
    }

    async fn is_attached(&mut self, interface: u32, kind: Kind) -> anyhow::Result<bool> {
        let Ok(datapath) = &self.datapath else {
            return Ok(false);
        };
        let (_, wanted) = datapath.program(kind);
        let seen = traffic::attached(&mut self.rtnl, interface).await;
        Ok(seen.context("read the filters of an interface")? == Some(wanted.id))
    }

    /// What probes other nodes, once; `None` where there are no programs, so that nothing is carried anyway.
    ///
    /// # Errors
    /// Where the map of answers is not to be had.
    pub fn prober(&mut self) -> anyhow::Result<Option<Prober>> {
        let Ok(datapath) = &mut self.datapath else {
            return Ok(None);
        };
        let answers = datapath.take_answers()?;
        Ok(answers.map(|answers| Prober::new(self.namespace.clone(), answers)))
    }

    /// How many entries each of the programs' maps has, by name.
    ///
    /// # Errors
    /// Where there are no programs.
    pub fn sizes(&mut self) -> anyhow::Result<BTreeMap<&'static str, usize>> {
        self.datapath()?.sizes()
    }

    /// Tells of every change to an interface or what is attached to it that may concern Weft, by whomever.
    ///
    /// The channel has room for one word: that something changed. What it was, an observation tells.
    ///
    /// # Errors
    /// Where the namespace is gone.
    pub fn watch(&self) -> anyhow::Result<mpsc::Receiver<()>> {
        let groups = [MulticastGroup::Link, MulticastGroup::Tc];
        let runtime = tokio::runtime::Handle::current();
        let (connection, _, mut messages) = netns::maybe_within(self.namespace.as_deref(), || {
            let _guard = runtime.enter();
            rtnetlink::new_multicast_connection(&groups)
        })
        .context("open a netlink socket for notifications")?;
        tokio::spawn(connection);
        let (sender, receiver) = mpsc::channel(1);
        let ours = Arc::clone(&self.ours);
        tokio::spawn(async move {
            use futures::StreamExt;
            while let Some((message, _)) = messages.next().await {
                if concerns_us(&message.payload, &ours)
                    && matches!(sender.try_send(()), Err(mpsc::error::TrySendError::Closed(())))
                {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

fn concerns_us(
    payload: &netlink_packet_core::NetlinkPayload<RouteNetlinkMessage>,
    ours: &Mutex<BTreeSet<u32>>,
) -> bool {
    use netlink_packet_core::NetlinkPayload;
    use netlink_packet_route::link::LinkAttribute;
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        ) => link
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if Name::is_link(name))),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewTrafficFilter(change)
            | RouteNetlinkMessage::DelTrafficFilter(change)
            | RouteNetlinkMessage::DelTrafficClass(change)
            | RouteNetlinkMessage::DelQueueDiscipline(change),
        ) => {
            let ours = ours.lock().unwrap_or_else(PoisonError::into_inner);
            ours.contains(&change.header.index.cast_unsigned())
        }
        // Some were lost.
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

impl Kernel for Linux {
    async fn observe(&mut self, query: &Query) -> anyhow::Result<Observation> {
        observe::observe(self, query).await
    }

    async fn apply(&mut self, plan: &Plan) -> Outcome {
        change::apply(self, plan).await
    }

    async fn carried(&mut self) -> anyhow::Result<BTreeMap<ClassId, Carried>> {
        let classes = self.classes().await?;
        Ok(classes.into_iter().map(|(id, seen)| (id, seen.carried)).collect())
    }

    fn open_tap(&mut self, name: &Name, queues: u8) -> anyhow::Result<Option<Vec<OwnedFd>>> {
        let Some(opened) = tap::open(self.namespace.as_deref(), name, queues)? else {
            return Ok(None);
        };
        match opened.refused {
            Some(error) if self.unsteered.insert(name.clone()) => tracing::warn!(
                interface = %name,
                asked = queues,
                error = %error,
                "gateway gets one queue of its TAP device, so one of its threads carries all that comes from its node"
            ),
            Some(_) => {}
            None => _ = self.unsteered.remove(name),
        }
        Ok(Some(opened.queues))
    }
}
