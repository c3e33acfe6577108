//! A flood of bogus handshakes at the real process: what is left of a flow, compared with the same flood at a port
//! where nobody listens, and of memory.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use slice_gateway::proto::{Random, config::decode_key};

use crate::lab::{Lab, index, v4, within};

/// Where nobody listens.
const CLOSED: u16 = 51999;
/// Source addresses of the flood.
const SOURCES: u8 = 64;

/// One flow under a flood.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Bits a second, at the closed port and at the gateway's, sorted.
    pub(crate) closed: Vec<f64>,
    pub(crate) open: Vec<f64>,
    /// Messages a second of the slowest flood.
    pub(crate) rate: f64,
    /// KiB of the gateway's resident memory, after the first flood and after the last.
    pub(crate) memory: [u64; 2],
}

impl Figures {
    /// Throughput at the gateway's port in terms of that at the closed one: of the medians.
    pub(crate) fn ratio(&self) -> f64 {
        self.open[self.open.len() / 2] / self.closed[self.closed.len() / 2]
    }
}

/// Measures a flow from a-pod0 to b-pod0 while a-gw0 is flooded with so many messages a second, and its closed port,
/// in turns.
pub(crate) fn measure(lab: &Lab, rounds: usize, turn: Duration, per_second: u32) -> Figures {
    lab.host(
        "flood",
        (0..SOURCES).map(|source| [192, 0, 2, 64 + source].into()),
    );
    let gateway = lab.member_gateway("a/0");
    let key = decode_key(&gateway.public_key).unwrap();
    let messages = messages(&key);
    let (flow, carried) = Flow::start(lab);
    let mut figures = Figures {
        rate: f64::INFINITY,
        ..Figures::default()
    };
    let pid = lab.pids()[0];
    for round in 0..rounds {
        for open in [false, true] {
            let mut to = gateway.endpoints[0];
            if !open {
                to.set_port(CLOSED);
            }
            let flood = Flood::start(lab, to, &messages, per_second);
            // Until windows and caches are as they will be.
            thread::sleep(turn / 4);
            let (start, before) = (Instant::now(), carried.load(Ordering::Relaxed));
            thread::sleep(turn);
            let bits =
                8.0 * (carried.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
            figures.rate = figures.rate.min(flood.stop());
            if open {
                &mut figures.open
            } else {
                &mut figures.closed
            }
            .push(bits);
        }
        figures.memory[usize::from(round > 0)] = resident(pid);
    }
    flow.stop();
    figures.open.sort_by(f64::total_cmp);
    figures.closed.sort_by(f64::total_cmp);
    figures
}

/// Initiations of strangers that know the gateway's key and are right in every other respect, and as many that are
/// not: of the right length, of a response's, of any.
fn messages(key: &[u8; 32]) -> Vec<Vec<u8>> {
    let mut random = Random::new(7);
    let mut bytes = |length: usize| -> Vec<u8> { (0..length).map(|_| random.number() as u8).collect() };
    let secret: [u8; 32] = bytes(32).try_into().unwrap();
    let mut stranger = Tunn::new(
        StaticSecret::from(secret),
        PublicKey::from(*key),
        None,
        None,
        0,
        None,
    );
    let mut all = Vec::new();
    for n in 0..1000 {
        let mut message = [0; 148];
        match stranger.format_handshake_initiation(&mut message, true) {
            TunnResult::WriteToNetwork(message) => all.push(message.to_vec()),
            other => panic!("{other:?}"),
        }
        let mut garbage = bytes(match n % 3 {
            0 => 148,
            1 => 92,
            _ => 1 + n % 300,
        });
        if n % 3 < 2 {
            garbage[..4].copy_from_slice(&[1 + (n % 3) as u8, 0, 0, 0]);
        }
        all.push(garbage);
    }
    all
}

/// Bytes that go from pod to pod as fast as they can.
struct Flow {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Flow {
    fn start(lab: &Lab) -> (Self, Arc<AtomicU64>) {
        let listener = within(&lab.at("b-pod0"), || {
            TcpListener::bind((v4(index('b', 0)), 0)).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let mut sender = within(&lab.at("a-pod0"), || TcpStream::connect(address).unwrap());
        nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::TcpCongestion, &"cubic".into())
            .unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let (stop, carried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, received) = (stop.clone(), carried.clone());
        let threads = vec![
            thread::spawn(move || {
                let buffer = vec![7; 128 << 10];
                while !stopped.load(Ordering::Relaxed) && sender.write_all(&buffer).is_ok() {}
            }),
            thread::spawn(move || {
                let mut buffer = vec![0; 128 << 10];
                while let Ok(count @ 1..) = receiver.read(&mut buffer) {
                    received.fetch_add(count as u64, Ordering::Relaxed);
                }
            }),
        ];
        (Self { stop, threads }, carried)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// Messages to one port, from many addresses.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<f64>,
}

impl Flood {
    fn start(lab: &Lab, to: SocketAddr, messages: &[Vec<u8>], per_second: u32) -> Self {
        let sockets: Vec<UdpSocket> = within(&lab.at("flood"), || {
            (0..SOURCES)
                .map(|source| UdpSocket::bind((Ipv4Addr::new(192, 0, 2, 64 + source), 0)).unwrap())
                .collect()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, messages) = (stop.clone(), messages.to_vec());
        let thread = thread::spawn(move || {
            let (start, mut sent) = (Instant::now(), 0u32);
            while !stopped.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
                while sent < due {
                    let n = sent as usize;
                    // Somebody who answers "port unreachable" is no reason to stop.
                    let _ = sockets[n % sockets.len()].send_to(&messages[n % messages.len()], to);
                    sent += 1;
                }
                thread::sleep(Duration::from_micros(500));
            }
            f64::from(sent) / start.elapsed().as_secs_f64()
        });
        Self { stop, thread }
    }

    /// Ends it; how many messages a second it sent.
    fn stop(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
