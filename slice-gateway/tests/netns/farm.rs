//! Many gateways in one thread: the real protocol over real sockets, without a process for each.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use slice_gateway::proto::{
    Config, Destination, Gateway, HEADROOM, Key, Output, Random,
    config::encode_key,
    lane::{Lane, Note},
};
use slice_runtime::handover;

use crate::lab::{Lab, eventually, within};

/// Where they are.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// Peers of a-gw0, each a cluster of its own, up.
pub(crate) struct Farm {
    stop: Arc<AtomicBool>,
    /// The longest that its thread was away, in milliseconds.
    away: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// What a gateway wants to be sent.
#[derive(Default)]
struct Buffers {
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    lent: Option<(SocketAddr, Vec<u8>)>,
    frame: Vec<u8>,
}

impl Output for Buffers {
    fn datagram(&mut self, to: Destination, length: usize) -> Option<&mut [u8]> {
        Some(&mut self.lent.insert((to.endpoint.address, vec![0; length])).1)
    }

    fn send(&mut self) {
        self.datagrams.extend(self.lent.take());
    }

    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.frame.resize(length, 0);
        Some(&mut self.frame)
    }

    fn deliver(&mut self, start: usize, _end: usize) {
        assert!(start >= HEADROOM);
    }

    fn leave(&mut self, _lane: u8, _note: Note, _bytes: &[u8]) -> bool {
        false
    }
}

/// A gateway and its socket.
struct Member {
    gateway: Gateway,
    socket: UdpSocket,
    out: Buffers,
}

impl Member {
    fn turn(&mut self, datagram: &mut [u8]) {
        while let Ok((length, from)) = self.socket.recv_from(datagram) {
            let now = Instant::now();
            let (gateway, out) = (&mut self.gateway, &mut self.out);
            gateway.handle_datagram(now, from.into(), 0, &datagram[..length], out);
        }
        self.gateway.handle_timeout(Instant::now(), &mut self.out);
        for (to, datagram) in self.out.datagrams.drain(..) {
            // Where there is no room it is lost, as on any network.
            let _ = self.socket.send_to(&datagram, to);
        }
    }
}

/// What is known of one of them.
fn name(number: u32) -> (String, Ipv4Addr, handover::Range) {
    let vtep = Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 0, 1).to_bits() + number);
    let range = handover::Range {
        start: 4096 + number * 64,
        size: 64,
    };
    (format!("farm{number}"), vtep, range)
}

impl Farm {
    /// So many; returns when a-gw0 has a tunnel to each.
    pub(crate) fn start(lab: &Lab, count: u32) -> Self {
        lab.host("farm", [HOST]);
        let mut random = Random::new(count.into());
        let template = lab.config("a/0");
        let member = lab.members().into_iter().find(|member| member.cluster == "a");
        let member = member.expect("cluster a");
        let mut members = Vec::new();
        for number in 0..count {
            let (cluster, vtep, range) = name(number);
            let bytes: [u8; 32] = std::array::from_fn(|_| random.number() as u8);
            let key = Key::from_random(bytes.into());
            let socket = within(&lab.at("farm"), || UdpSocket::bind((HOST, 0))).expect("a socket");
            socket.set_nonblocking(true).expect("a socket that does not wait");
            let address = socket.local_addr().expect("its address");
            let gateway = handover::PeerGateway {
                name: format!("{cluster}/0"),
                public_key: encode_key(&key.public()),
                former_key: None,
                vtep,
                endpoints: vec![SocketAddr::new(IpAddr::V4(HOST), address.port())],
            };
            lab.invite(handover::Peer {
                cluster: cluster.clone(),
                outside: false,
                ranges: vec![range],
                gateways: vec![gateway],
            });
            let config = handover::Config {
                cluster,
                vtep,
                ranges: vec![range],
                peers: vec![member.clone()],
                ..template.clone()
            };
            let now = Instant::now();
            let mut gateway = Gateway::new(Lane::ONLY, key, random.number(), now);
            gateway.reconfigure(now, Config::new(&config).expect("a configuration").0);
            members.push(Member {
                gateway,
                socket,
                out: Buffers::default(),
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let away = Arc::new(AtomicU64::new(0));
        let (stopped, longest) = (stop.clone(), away.clone());
        let thread = Some(thread::spawn(move || run(members, &stopped, &longest)));
        lab.configure();
        eventually("a-gw0 has a tunnel to every member of the farm", || {
            let up = lab.report("a-gw0").tunnels.into_iter();
            let up = up.filter(|tunnel| tunnel.up && tunnel.peer.starts_with("farm"));
            (up.count() == count as usize).then_some(())
        });
        Self { stop, away, thread }
    }

    /// The longest that its thread was away since the last call: nobody is to blame who takes its members for dead then.
    pub(crate) fn was_away(&self) -> Duration {
        Duration::from_millis(self.away.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn run(mut members: Vec<Member>, stop: &AtomicBool, away: &AtomicU64) {
    let mut datagram = vec![0; 65_536];
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let gap = now.duration_since(std::mem::replace(&mut last, now)).as_millis();
        away.fetch_max(u64::try_from(gap).unwrap_or(u64::MAX), Ordering::Relaxed);
        let due = members.iter().map(|member| member.gateway.poll_timeout()).min();
        let wait = due
            .map(|due| due.saturating_duration_since(now))
            .unwrap_or_default();
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let fds = members
            .iter()
            .map(|member| PollFd::new(member.socket.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = fds.collect();
        let _ = poll(&mut fds, wait);
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let now = Instant::now();
        for (member, ready) in members.iter_mut().zip(ready) {
            if ready || member.gateway.poll_timeout() <= now {
                member.turn(&mut datagram);
            }
        }
    }
}
