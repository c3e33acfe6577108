//! The conversation with the node agent. It may end at any time, and traffic does not notice: the gateway goes on
//! with what it was told last and calls again.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use slice_runtime::{
    admin::Pending,
    handover::{self, DataPath, FromGateway, Hello, Keys, Report, ToGateway, Tunnel},
    version::VERSION,
};

use crate::{
    io::tap::Tap,
    proto::{Config, config, lane::MAX_LANES},
    shared::{Figures, Shared},
};

/// Between two reports where nothing has changed.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Before a call after one that failed, doubled up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// How long the agent may take over half a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who calls.
#[derive(Debug)]
pub struct Caller {
    pub socket: PathBuf,
    pub ordinal: u32,
    pub udp_port: u16,
    /// Copies of the UDP sockets' descriptors, for the agent to give them larger buffers.
    pub udp: Vec<OwnedFd>,
}

/// How long a gateway waits for the clusters that it was told of before it is ready without them: an update goes on
/// to the next replica only when this one carries, but not never because another cluster is away.
const TUNNELS_WITHIN: Duration = Duration::from_secs(15);

/// What must have arrived before the gateway is ready.
pub struct Waiting {
    pub config: Option<Pending>,
    pub tap: Option<Pending>,
    pub tunnels: Option<Pending>,
    /// When the first configuration came.
    pub since: Option<Instant>,
}

impl Waiting {
    /// The tunnels are up, or have had their time.
    fn look_at_tunnels(&mut self, figures: &Figures) {
        let complete = figures.configured && figures.stats.reach.missing == 0;
        if complete || self.since.is_some_and(|since| since.elapsed() >= TUNNELS_WITHIN) {
            self.tunnels = None;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("call {path}: {1}; is the node agent running on this node?", path = .0.display())]
    Connect(PathBuf, io::Error),
    #[error(transparent)]
    Handover(#[from] handover::Error),
    #[error("wait for the node agent: {0}")]
    Wait(io::Error),
    #[error("TAP device {0}: {1}")]
    Tap(String, io::Error),
    #[error("the agent sent TAP device {0} without a descriptor")]
    NoDescriptor(String),
    #[error("the TAP device was lost")]
    TapLost,
}

/// Talks to the agent until [`Shared::stop`].
pub fn run(caller: &Caller, shared: &Arc<Shared>, mut waiting: Waiting) {
    let mut retry = FIRST_RETRY;
    let mut last = String::new();
    while !shared.stopping().is_cancelled() {
        let started = Instant::now();
        let Err(error) = talk(caller, shared, &mut waiting) else {
            return;
        };
        if started.elapsed() > LAST_RETRY {
            retry = FIRST_RETRY;
        }
        // Once, or a missing agent would fill the log.
        let text = error.to_string();
        if text == last {
            tracing::debug!(error = text, "node agent");
        } else {
            tracing::warn!(error = text, "node agent is away, carrying on");
            last = text;
        }
        wait(shared, None, retry);
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// One connection; `Ok` where the process stops.
fn talk(caller: &Caller, shared: &Shared, waiting: &mut Waiting) -> Result<(), Error> {
    let stream =
        UnixStream::connect(&caller.socket).map_err(|error| Error::Connect(caller.socket.clone(), error))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(Error::Wait)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(Error::Wait)?;
    let had_tap = shared.has_tap();
    let hello = Hello {
        ordinal: caller.ordinal,
        public_key: config::encode_key(&shared.figures().stats.keys.current),
        udp_port: caller.udp_port,
        version: VERSION.to_owned(),
        has_tap: had_tap,
        queues: shared.lanes().try_into().unwrap_or(MAX_LANES),
    };
    let sockets: Vec<RawFd> = caller.udp.iter().map(AsRawFd::as_raw_fd).collect();
    handover::send(&stream, &FromGateway::Hello(hello), &sockets)?;
    tracing::info!(has_tap = had_tap, "node agent called");
    let mut next_report = Instant::now();
    let mut has_tap = had_tap;
    while !shared.stopping().is_cancelled() {
        let patience = next_report.saturating_duration_since(Instant::now());
        let Ready {
            stream: readable,
            report_due,
        } = wait(shared, Some(&stream), patience);
        if readable {
            has_tap |= receive(&stream, shared, waiting)?;
        }
        if waiting.tunnels.is_some() {
            waiting.look_at_tunnels(&shared.figures());
        }
        if has_tap && shared.has_no_tap() {
            // Only a new call can say so.
            return Err(Error::TapLost);
        }
        if report_due || next_report <= Instant::now() {
            handover::send(&stream, &FromGateway::Report(report(shared)), &[])?;
            next_report = Instant::now() + REPORT_EVERY;
        }
    }
    Ok(())
}

/// Takes one message; true when it was a TAP device.
fn receive(stream: &UnixStream, shared: &Shared, waiting: &mut Waiting) -> Result<bool, Error> {
    match handover::receive(stream)? {
        (ToGateway::Config(received), _) => {
            let (config, problems) = match Config::new(&received) {
                Ok(checked) => checked,
                Err(error) => {
                    tracing::warn!(%error, "configuration refused, carrying on with the one before");
                    return Ok(false);
                }
            };
            for problem in problems {
                tracing::warn!(slice = received.slice, %problem, "peer left out of the configuration");
            }
            tracing::info!(
                slice = config.slice,
                clusters = config.clusters.len(),
                gateways = config.gateways.len(),
                largest = config.segment.largest,
                "configuration taken"
            );
            shared.set_config(&config);
            waiting.config = None;
            waiting.since.get_or_insert_with(Instant::now);
            Ok(false)
        }
        (ToGateway::Tap(received), fds) => {
            let tap_error = |error| Error::Tap(received.interface.clone(), error);
            let taps: Vec<Tap> = fds
                .into_iter()
                .map(Tap::new)
                .collect::<io::Result<_>>()
                .map_err(tap_error)?;
            let Some(first) = taps.first() else {
                return Err(Error::NoDescriptor(received.interface));
            };
            tracing::info!(
                interface = received.interface,
                offload = first.level().label(),
                queues = taps.len(),
                "TAP device taken"
            );
            if taps.len() < shared.lanes() {
                tracing::warn!(
                    queues = taps.len(),
                    threads = shared.lanes(),
                    "the TAP device has fewer queues than there are threads, so some only receive"
                );
            }
            shared.set_taps(taps).map_err(tap_error)?;
            waiting.tap = None;
            Ok(true)
        }
    }
}

fn report(shared: &Shared) -> Report {
    let figures = shared.figures();
    let tunnels = figures.stats.peers.iter().map(|peer| Tunnel {
        peer: peer.name.clone(),
        up: peer.up,
        away: peer.away,
        endpoint: peer.endpoint,
        handshake_age_ms: peer
            .handshake_age
            .map(|age| age.as_millis().try_into().unwrap_or(u64::MAX)),
        path_mtu: peer.path_mtu.map(|mtu| mtu.min(figures.largest_mtu)),
        rtt_micros: peer.rtt.map(|rtt| rtt.as_micros().try_into().unwrap_or(u32::MAX)),
    });
    let keys = &figures.stats.keys;
    Report {
        keys: figures.configured.then(|| Keys {
            public_key: config::encode_key(&keys.current),
            former_key: keys.former.as_ref().map(config::encode_key),
            revocation: keys.revocation.clone(),
        }),
        renewal_waits_for: figures.stats.renewal_waits_for.clone(),
        tunnels: tunnels.collect(),
        reached: u32::try_from(figures.stats.reach.reached + figures.stats.reach.outside).unwrap_or(u32::MAX),
        draining: shared.is_draining(),
        data_path: (figures.queues > 0).then(|| DataPath {
            threads: figures.threads,
            tap_queues: figures.queues,
            tap_offload: figures.offload.label().to_owned(),
            udp_segmentation: figures.segmentation,
            udp_coalescing: figures.coalescing,
        }),
    }
}

struct Ready {
    stream: bool,
    report_due: bool,
}

/// Waits for the agent, or until a report is due.
fn wait(shared: &Shared, stream: Option<&UnixStream>, patience: Duration) -> Ready {
    let timeout = PollTimeout::try_from(patience + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    let mut fds = [
        PollFd::new(shared.report_due().as_fd(), PollFlags::POLLIN),
        PollFd::new(
            stream.map_or_else(|| shared.report_due().as_fd(), AsFd::as_fd),
            PollFlags::POLLIN,
        ),
    ];
    let fds = if stream.is_some() {
        &mut fds[..]
    } else {
        &mut fds[..1]
    };
    // An error is as good as a timeout: the loop looks at everything again.
    let _ = poll(fds, timeout);
    let ready = |place: usize| fds.get(place).and_then(PollFd::any).unwrap_or(false);
    let ready = Ready {
        report_due: ready(0),
        stream: ready(1),
    };
    if ready.report_due {
        shared.clear_report_due();
    }
    ready
}
