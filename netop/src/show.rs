//! What the node holds, for the person on call: `slicectl node NODE` runs `slice-netop --show` beside the agent, which reads
//! it from a socket that only root may open.
//!
//! Text is that of plans (`crate::plan`), so that what is shown is what logs say was done.

use std::{collections::BTreeMap, fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    classes::{Numbers, Owner},
    files,
    model::{Carried, ClassId, Flow, Link, Name, State},
    programs::Counter,
};

/// What was seen when the agent last looked.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub at: Timestamp,
    pub node: String,
    pub state: State,
    pub counters: BTreeMap<Counter, u64>,
    /// What classes of the shaper have carried, and whose they are.
    pub carried: BTreeMap<ClassId, Carried>,
    pub numbers: Numbers,
    pub underlay_drops: Option<u64>,
    /// Slices by their numbers.
    pub slices: BTreeMap<u32, String>,
}

/// As it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    node: String,
    observed_at: Timestamp,
    /// By which devices frames go to other nodes.
    tunnel: Option<String>,
    ports: Vec<Port>,
    slices: Vec<Slice>,
    classes: Vec<Class>,
    frames: Vec<Frames>,
    /// Packets to the ports between nodes that came from elsewhere.
    underlay_drops: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    interface: String,
    kind: String,
    /// Whose it is: `slice shop index 70`.
    alias: Option<String>,
    up: bool,
    /// Whether this agent's program is the first to see what it receives.
    attached: bool,
    /// Where the pod's end is.
    netns: Option<String>,
}

#[derive(Debug, Serialize)]
struct Slice {
    slice: String,
    vni: u32,
    entries: Vec<String>,
}

/// Of the shaper.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Class {
    slice: String,
    /// Whose limit it is; absent for the slice's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    direction: &'static str,
    /// As `tc class show dev wq-shaper` names it.
    id: String,
    /// Rate, ceiling and order.
    limits: String,
    bytes: u64,
    dropped_frames: u64,
    backlog_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Frames {
    /// Empty for what belongs to no slice.
    slice: String,
    direction: &'static str,
    /// Absent for those that were carried.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    frames: u64,
}

impl From<&Seen> for Node {
    fn from(seen: &Seen) -> Self {
        let port = |(name, link): (&Name, &Link)| Port {
            interface: name.to_string(),
            kind: link.kind.to_string(),
            alias: link.alias.as_ref().map(ToString::to_string),
            up: link.up,
            attached: link.attached,
            netns: (seen.state.pods.get(name)).map(|pod| pod.netns.to_string()),
        };
        let frames = |(counter, frames): (&Counter, &u64)| Frames {
            slice: seen.slices.get(&counter.slice).cloned().unwrap_or_default(),
            direction: counter.direction.label(),
            reason: counter.reason.map(slice_datapath::Reason::label),
            frames: *frames,
        };
        let class = |(owner, flow, id): (&Owner, Flow, ClassId)| {
            let carried = seen.carried.get(&id)?;
            Some(Class {
                slice: owner.slice().to_owned(),
                interface: match owner {
                    Owner::Slice(_) => None,
                    Owner::Attachment(_, name) => Some(name.to_string()),
                },
                direction: flow.label(),
                id: id.to_string(),
                limits: seen.state.classes.get(&id)?.to_string(),
                bytes: carried.bytes,
                dropped_frames: carried.dropped,
                backlog_bytes: carried.backlog,
            })
        };
        Self {
            node: seen.node.clone(),
            observed_at: seen.at,
            tunnel: seen.state.tunnel.as_ref().map(ToString::to_string),
            ports: seen.state.links.iter().map(port).collect(),
            slices: (seen.state.segments.iter())
                .map(|(slice, segment)| Slice {
                    slice: slice.clone(),
                    vni: segment.vni,
                    entries: segment.entries().map(ToString::to_string).collect(),
                })
                .collect(),
            classes: seen.numbers.iter().filter_map(class).collect(),
            frames: seen.counters.iter().map(frames).collect(),
            underlay_drops: seen.underlay_drops,
        }
    }
}

/// Answers whoever connects, until `stop`.
///
/// # Errors
/// Where the socket cannot be made.
pub async fn serve(
    path: &Path,
    seen: watch::Receiver<Arc<Seen>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    files::remove(path).with_context(|| format!("remove the old socket {}", path.display()))?;
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", path.display()))?;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        // One after the other: this is for a person.
        if let Err(error) = answer(accepted, &seen).await {
            tracing::debug!(error = %error, "the node's state was not shown");
        }
    }
}

async fn answer(
    accepted: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>,
    seen: &watch::Receiver<Arc<Seen>>,
) -> io::Result<()> {
    let (mut stream, _) = accepted?;
    let seen = Arc::clone(&seen.borrow());
    let text = serde_json::to_vec(&Node::from(&*seen))?;
    let written = tokio::time::timeout(std::time::Duration::from_secs(5), stream.write_all(&text));
    written.await?
}

/// Prints what the agent that runs on this node shows.
///
/// # Errors
/// Where no agent listens.
pub fn print(path: &Path) -> io::Result<()> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    io::copy(&mut stream, &mut io::stdout().lock()).map(drop)
}

#[cfg(test)]
mod tests {
    use slice_datapath::{Direction, Reason};

    use super::*;
    use crate::model::{Alias, Entry, Hop, Kind, Segment};

    #[tokio::test]
    async fn what_was_seen_last_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let mut segment = Segment::new(77);
        segment.insert(Entry::Route(slice_crds::IndexRange::new(64, 64), Hop::Cluster(2)));
        let link = Link {
            kind: Kind::Veth,
            mtu: 1370,
            up: true,
            autoconf: false,
            alias: Some(Alias::index("shop", 70)),
            attached: true,
        };
        let dropped = Counter {
            slice: 77,
            direction: Direction::FromPod,
            reason: Some(Reason::Spoofed),
        };
        let seen = Seen {
            node: "n1".into(),
            state: State {
                links: [(Name::new("wp-a"), link)].into(),
                segments: [("shop".to_owned(), Arc::new(segment))].into(),
                ..State::default()
            },
            counters: [(dropped, 3)].into(),
            slices: [(77, "shop".to_owned())].into(),
            ..Seen::default()
        };
        let (_sender, receiver) = watch::channel(Arc::new(seen));
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (path, stop) = (path.clone(), stop.clone());
            async move { serve(&path, receiver, stop).await }
        });
        let mut stream = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text)
            .await
            .unwrap();
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["ports"][0]["alias"], "slice shop index 70");
        assert_eq!(shown["slices"][0]["entries"][0], "route 64+64 cluster 2");
        assert_eq!(shown["frames"][0]["reason"], "spoofed");
        assert_eq!(shown["frames"][0]["slice"], "shop");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else may look");
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}
