//! The socket and the clock of the agents' conversation.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Local, Message, PORT, Table, View};

/// The grain of questions and of silence.
const TICK: Duration = Duration::from_millis(25);
/// Longest datagram that is read; none of ours is longer.
const MAX_DATAGRAM: usize = 2048;

/// Talks with the other agents until `stop`; what it hears goes to `view`.
pub async fn run(mut local: watch::Receiver<Local>, view: watch::Sender<View>, stop: CancellationToken) {
    let mut table = Table::default();
    let mut socket: Option<UdpSocket> = None;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = String::new();
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let messages = tokio::select! {
            () = stop.cancelled() => return,
            changed = local.changed() => {
                if changed.is_err() {
                    return;
                }
                let told = local.borrow_and_update().clone();
                table.configure(Instant::now(), &told, rand_u64)
            }
            _ = tick.tick() => table.poll(Instant::now()),
            (from, length) = receive(socket.as_ref(), &mut buffer) => {
                let message = serde_json::from_slice::<Message>(&buffer[..length]);
                let answer = message.ok().and_then(|message| table.handle(Instant::now(), from.ip(), message));
                answer.map(|answer| (from.ip(), answer)).into_iter().collect()
            }
        };
        let address = local.borrow().address;
        if !is_bound(socket.as_ref(), address) {
            socket = match bind(address).await {
                Ok(socket) => socket,
                Err(error) => {
                    let text = error.to_string();
                    if text != refused {
                        tracing::warn!(
                            error = text,
                            ?address,
                            port = PORT,
                            "other nodes' gateways are not heard"
                        );
                        refused = text;
                    }
                    None
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

fn is_bound(socket: Option<&UdpSocket>, address: Option<IpAddr>) -> bool {
    let bound = socket.and_then(|socket| socket.local_addr().ok());
    bound.map(|bound| bound.ip()) == address
}

async fn bind(address: Option<IpAddr>) -> io::Result<Option<UdpSocket>> {
    match address {
        Some(address) => UdpSocket::bind((address, PORT)).await.map(Some),
        None => Ok(None),
    }
}

fn rand_u64() -> u64 {
    // Keyed by the operating system's randomness, with another key for each call; nobody outside knows any.
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
