//! What is measured, over any pair of pods.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt};

use crate::{
    lab::{Lab, within},
    systems::System,
};

/// Before a stream counts: it has left slow start.
const WARM_UP: Duration = Duration::from_millis(300);
/// Bytes of a datagram's payload.
const DATAGRAM: usize = 1200;
/// Share of datagrams that may be lost at a rate that is sustained.
const LOSS: f64 = 0.01;
/// How long a rate is tried.
const TRIAL: Duration = Duration::from_millis(250);
/// Datagrams in one system call of the generator and of the sink.
const CALL: usize = 32;

/// What was carried, and at what cost.
pub(crate) struct Load {
    /// A second.
    pub(crate) bytes: f64,
    /// Nanoseconds that the whole machine was busy, per KiB.
    pub(crate) cpu: f64,
    /// Nanoseconds that the processes on the way ran, per KiB.
    pub(crate) own: f64,
}

impl Load {
    pub(crate) fn gbps(&self) -> f64 {
        self.bytes * 8.0 / 1e9
    }

    pub(crate) fn datagrams(&self) -> f64 {
        self.bytes / DATAGRAM as f64
    }
}

/// Reads the clocks of the machine and of processes.
struct Meter<'a> {
    pids: &'a [u32],
    start: Instant,
    busy: f64,
    own: f64,
}

impl<'a> Meter<'a> {
    fn start(pids: &'a [u32]) -> Self {
        Self {
            pids,
            start: Instant::now(),
            busy: busy(),
            own: process_time(pids),
        }
    }

    fn stop(self, bytes: u64) -> Load {
        let kib = bytes as f64 / 1024.0;
        Load {
            bytes: bytes as f64 / self.start.elapsed().as_secs_f64(),
            cpu: (busy() - self.busy) / kib,
            own: (process_time(self.pids) - self.own) / kib,
        }
    }
}

/// Busy nanoseconds of all CPUs so far.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap())
        .collect();
    // All but idle and iowait, in hundredths of a second (proc_stat(5)).
    (fields.iter().take(8).sum::<f64>() - fields[3] - fields[4]) * 1e7
}

/// Nanoseconds that processes have run so far.
fn process_time(pids: &[u32]) -> f64 {
    let ticks = pids.iter().map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // User and system time, in hundredths of a second (proc_pid_stat(5)); the name may hold spaces.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(11)
            .take(2);
        fields.map(|field| field.parse::<f64>().unwrap()).sum::<f64>()
    });
    ticks.sum::<f64>() * 1e7
}

/// Resident memory of a process, in KiB, as the mean of those on the way.
pub(crate) fn resident(pids: &[u32]) -> f64 {
    let sizes = pids.iter().map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    });
    sizes.sum::<f64>() / pids.len() as f64
}

/// Bytes through so many connections.
pub(crate) fn tcp(lab: &Lab, system: &System, streams: usize, seconds: f64) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let listener = within(&lab.at(&system.to), || {
        TcpListener::bind((system.address, 0)).unwrap()
    });
    let address = listener.local_addr().unwrap();
    let mut threads = Vec::new();
    for _ in 0..streams {
        let mut sender = within(&lab.at(&system.from), || TcpStream::connect(address).unwrap());
        // The default of hosts; a machine may have another one, which would measure its pacing.
        setsockopt(&sender, sockopt::TcpCongestion, &"cubic".into()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let stopped = stop.clone();
        threads.push(thread::spawn(move || {
            let buffer = vec![7; 128 << 10];
            while !stopped.load(Ordering::Relaxed) && sender.write_all(&buffer).is_ok() {}
        }));
        let received = received.clone();
        threads.push(thread::spawn(move || {
            let mut buffer = vec![0; 128 << 10];
            while let Ok(count @ 1..) = receiver.read(&mut buffer) {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
        }));
    }
    thread::sleep(WARM_UP);
    let (meter, before) = (Meter::start(&system.pids), received.load(Ordering::Relaxed));
    thread::sleep(Duration::from_secs_f64(seconds));
    let load = meter.stop(received.load(Ordering::Relaxed) - before);
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    load
}

/// The highest rate of datagrams of which no more than [`LOSS`] is lost. The search begins at `hint` a second, and
/// ends within 3 % of where it fails twice.
pub(crate) fn udp(lab: &Lab, system: &System, hint: f64) -> Load {
    let receiver = within(&lab.at(&system.to), || {
        UdpSocket::bind((system.address, 0)).unwrap()
    });
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let sender = within(&lab.at(&system.from), || UdpSocket::bind("0.0.0.0:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let (mut best, mut low, mut high): (Option<Load>, f64, f64) = (None, 0.0, f64::INFINITY);
    let mut rate = hint;
    while low == 0.0 || high / low > 1.03 {
        let sustained = (0..2).find_map(|_| sustained(&sender, &receiver, system, rate));
        match sustained {
            Some((load, offered)) => {
                low = rate;
                if best.as_ref().is_none_or(|best| load.bytes > best.bytes) {
                    best = Some(load);
                }
                // The generator cannot do more.
                if offered < rate * 0.95 {
                    break;
                }
            }
            None => high = rate,
        }
        rate = match (low > 0.0, high.is_finite()) {
            (true, true) => (low * high).sqrt(),
            (true, false) => rate * 1.25,
            (false, _) => rate / 1.25,
        };
        assert!(rate > 100.0, "{} carries no datagrams", system.name);
    }
    best.unwrap()
}

/// Sends for [`TRIAL`]; where no more than [`LOSS`] was lost, what arrived and how many a second were sent.
fn sustained(sender: &UdpSocket, receiver: &UdpSocket, system: &System, rate: f64) -> Option<(Load, f64)> {
    let sink = receiver.try_clone().unwrap();
    let meter = Meter::start(&system.pids);
    let (sent, received, load) = thread::scope(|scope| {
        let receiving = scope.spawn(move || count(&sink));
        let sent = send_at(sender, rate);
        let elapsed = meter.start.elapsed().as_secs_f64();
        // What is under way arrives within the receiver's patience.
        let received = receiving.join().unwrap();
        let mut load = meter.stop(received * DATAGRAM as u64);
        load.bytes = received as f64 * DATAGRAM as f64 / elapsed;
        (sent, received, load)
    });
    let lost = 1.0 - received as f64 / sent as f64;
    (lost <= LOSS).then_some((load, sent as f64 / TRIAL.as_secs_f64()))
}

/// Sends datagrams at a rate, in a burst every millisecond; returns how many.
fn send_at(socket: &UdpSocket, rate: f64) -> u64 {
    let payload = [7; DATAGRAM];
    let pieces = [[IoSlice::new(&payload)]; CALL];
    let addresses = [None::<SockaddrStorage>; CALL];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(CALL, None);
    let (start, mut sent) = (Instant::now(), 0u64);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= TRIAL {
            return sent;
        }
        let due = (elapsed.as_secs_f64() * rate) as u64;
        // A generator that was held up does not make good for more than two milliseconds at once.
        let mut burst = due.saturating_sub(sent).min((rate / 500.0) as u64 + 1);
        while burst > 0 {
            let count = burst.min(CALL as u64) as usize;
            let result = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                &pieces[..count],
                &addresses[..count],
                [],
                MsgFlags::empty(),
            );
            let done = result.map_or(0, Iterator::count);
            sent += done as u64;
            burst -= done as u64;
            if done == 0 {
                break;
            }
        }
        thread::sleep(
            Duration::from_millis(1).saturating_sub(Duration::from_micros(u64::from(
                start.elapsed().subsec_micros() % 1000,
            ))),
        );
    }
}

/// Counts datagrams until none has come for the socket's patience.
fn count(socket: &UdpSocket) -> u64 {
    let mut buffer = vec![0; CALL * 2048];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(CALL, None);
    let (start, mut count) = (Instant::now(), 0);
    loop {
        let mut pieces: Vec<_> = buffer
            .chunks_mut(2048)
            .map(|chunk| [IoSliceMut::new(chunk)])
            .collect();
        let result = recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            pieces.iter_mut(),
            MsgFlags::MSG_WAITFORONE,
            None,
        );
        match result {
            Ok(received) => count += received.count() as u64,
            // The first ones may still be on their way.
            Err(_) if start.elapsed() < TRIAL => {}
            Err(_) => return count,
        }
    }
}

/// The times of 64-byte requests and answers over TCP, in microseconds, sorted.
pub(crate) fn round_trips(lab: &Lab, system: &System, seconds: f64) -> Vec<f64> {
    let listener = within(&lab.at(&system.to), || {
        TcpListener::bind((system.address, 0)).unwrap()
    });
    let mut client = within(&lab.at(&system.from), || {
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    });
    let (mut server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let serving = thread::spawn(move || {
        let mut buffer = [0; 64];
        while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
    });
    let (mut times, mut buffer, start) = (Vec::new(), [0; 64], Instant::now());
    while start.elapsed().as_secs_f64() < seconds {
        let asked = Instant::now();
        client.write_all(&buffer).unwrap();
        client.read_exact(&mut buffer).unwrap();
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    drop(client);
    serving.join().unwrap();
    times.sort_by(f64::total_cmp);
    times
}
