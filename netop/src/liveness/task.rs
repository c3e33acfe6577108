//! The socket and the clock of the agents' probes.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Local, Message, PORT, Table, View};

/// Until the next try, where the node's address cannot be bound yet.
const RETRY: Duration = Duration::from_millis(100);
/// Longest datagram that is read; none of ours is longer.
const MAX_DATAGRAM: usize = 2048;

/// Probes the other agents, and answers them, until `stop`; what is observed goes to `view`. Sleeps while nothing is due
/// and nothing comes.
pub async fn run(mut local: watch::Receiver<Local>, view: watch::Sender<View>, stop: CancellationToken) {
    let mut table = Table::default();
    let mut socket: Option<UdpSocket> = None;
    let mut bound = None;
    let mut refused = String::new();
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let address = local.borrow().address;
        let retry = (bound != address).then(|| Instant::now() + RETRY);
        let due = table.poll_at().into_iter().chain(retry).min();
        let messages = tokio::select! {
            () = stop.cancelled() => return,
            changed = local.changed() => {
                if changed.is_err() {
                    return;
                }
                let current = local.borrow_and_update().clone();
                table.configure(Instant::now(), &current, rand_u64)
            }
            () = wait(due) => table.poll(Instant::now()),
            (from, length) = receive(socket.as_ref(), &mut buffer) => {
                let message = serde_json::from_slice::<Message>(&buffer[..length]);
                let answer = message.ok().and_then(|message| table.handle(Instant::now(), from.ip(), message));
                answer.map(|answer| (from.ip(), answer)).into_iter().collect()
            }
        };
        let address = local.borrow().address;
        if bound != address {
            (socket, bound) = match bind(address).await {
                Ok(socket) => (socket, address),
                Err(error) => {
                    let text = error.to_string();
                    if text != refused {
                        tracing::warn!(
                            error = text,
                            ?address,
                            port = PORT,
                            "other nodes' gateways cannot be probed"
                        );
                        refused = text;
                    }
                    (None, None)
                }
            };
        }
        if let Some(socket) = &socket {
            for (to, message) in &messages {
                // Lost is as good as not sent: the next one comes soon.
                let bytes = serde_json::to_vec(message).unwrap_or_default();
                let _ = socket.try_send_to(&bytes, SocketAddr::new(*to, PORT));
            }
        }
        let seen = table.view(Instant::now());
        view.send_if_modified(|before| {
            let changed = *before != seen;
            *before = seen;
            changed
        });
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> (SocketAddr, usize) {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    loop {
        // An error is about an earlier datagram that found nobody (ICMP).
        if let Ok((length, from)) = socket.recv_from(buffer).await {
            return (from, length);
        }
    }
}

async fn bind(address: Option<IpAddr>) -> io::Result<Option<UdpSocket>> {
    match address {
        Some(address) => UdpSocket::bind((address, PORT)).await.map(Some),
        None => Ok(None),
    }
}

pub(crate) fn rand_u64() -> u64 {
    // Keyed by the operating system's randomness, with another key for each call; nobody outside knows any.
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::liveness::{Adjacency, Health};

    /// An agent on an address of its own, and what it observes.
    fn agent(local: Local) -> (watch::Sender<Local>, watch::Receiver<View>, CancellationToken) {
        let (local_sender, current) = watch::channel(Local::default());
        let (view, observed) = watch::channel(View::default());
        let stop = CancellationToken::new();
        tokio::spawn(run(current, view, stop.clone()));
        local_sender.send_replace(local);
        (local_sender, observed, stop)
    }

    async fn observes(view: &mut watch::Receiver<View>, expected: Adjacency) {
        let holds = |view: &View| view.values().eq([&expected]);
        let found = tokio::time::timeout(Duration::from_secs(5), view.wait_for(holds)).await;
        found.expect("in time").expect("the agent runs");
    }

    #[tokio::test]
    async fn an_agent_observes_another_and_notices_when_it_goes_and_comes() {
        // Of their own, also when tests run beside each other.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let [asks, has] = [1, 2].map(|last| IpAddr::from([127, high, low, last]));
        let nodes = [asks, has].into();
        let health = Health {
            reached: 1,
            ..Health::default()
        };
        let owner = Local {
            address: Some(has),
            nodes,
            own: [((7, 0), health.clone())].into(),
            ..Local::default()
        };
        let (_local, mut view, _stop) = agent(Local {
            address: Some(asks),
            nodes: owner.nodes.clone(),
            wanted: [(has, [(7, 0)].into())].into(),
            ..Local::default()
        });
        observes(&mut view, Adjacency::Silent).await;
        let (local, _, stop) = agent(owner.clone());
        observes(&mut view, Adjacency::Reports(health)).await;
        local.send_replace(Local {
            own: [].into(),
            ..owner
        });
        observes(&mut view, Adjacency::Absent).await;
        stop.cancel();
        observes(&mut view, Adjacency::Silent).await;
    }
}
