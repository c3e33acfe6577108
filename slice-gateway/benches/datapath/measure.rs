//! What is measured, over any pair of pods.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{Lab, within},
    systems::System,
};

/// The default of hosts; a machine may have another one, which would measure its pacing.
fn cubic(stream: &TcpStream) {
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpCongestion, &"cubic".into()).unwrap();
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

/// Gbit/s, busy nanoseconds of the machine per KiB, and of the gateways.
pub(crate) fn tcp(lab: &Lab, system: &System, streams: usize, seconds: f64) -> (f64, f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let listener = within(&lab.at(&system.to), || {
        TcpListener::bind((system.address, 0)).unwrap()
    });
    let address = listener.local_addr().unwrap();
    let mut threads = Vec::new();
    for _ in 0..streams {
        let mut sender = within(&lab.at(&system.from), || TcpStream::connect(address).unwrap());
        cubic(&sender);
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
    thread::sleep(Duration::from_millis(300));
    let pids = lab.pids();
    let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
    let (cpu, gateways) = (busy(), process_time(&pids));
    thread::sleep(Duration::from_secs_f64(seconds));
    let bytes = (received.load(Ordering::Relaxed) - before) as f64;
    let elapsed = start.elapsed().as_secs_f64();
    let (cpu, gateways) = (busy() - cpu, process_time(&pids) - gateways);
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    (
        bytes * 8.0 / elapsed / 1e9,
        cpu / (bytes / 1024.0),
        gateways / (bytes / 1024.0),
    )
}

/// Datagrams of 1200 bytes a second, of as many as can be sent one by one.
pub(crate) fn udp(lab: &Lab, system: &System, seconds: f64) -> f64 {
    let receiver = within(&lab.at(&system.to), || {
        UdpSocket::bind((system.address, 0)).unwrap()
    });
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let sender = within(&lab.at(&system.from), || UdpSocket::bind("0.0.0.0:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let sending = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let _ = sender.send(&[7; 1200]);
        }
    });
    let (mut buffer, mut count, start) = ([0; 2000], 0u64, Instant::now());
    while start.elapsed().as_secs_f64() < seconds {
        count += u64::from(receiver.recv(&mut buffer).is_ok());
    }
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    sending.join().unwrap();
    count as f64 / elapsed
}

/// Median and 99th percentile of 64-byte requests and answers over TCP, in microseconds.
pub(crate) fn round_trips(lab: &Lab, system: &System, seconds: f64) -> [f64; 2] {
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
    [0.5, 0.99].map(|share| times[(times.len() as f64 * share) as usize])
}
