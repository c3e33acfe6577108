//! A conversation that goes on while something else breaks: how long was it
//! silent, and did it survive?

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{count, echo, milliseconds, print, ready};

#[derive(Debug, Args)]
pub struct Stream {
    address: IpAddr,
    #[arg(long, value_enum)]
    over: Over,
    #[arg(long, default_value_t = echo::PORT)]
    port: u16,
    /// Milliseconds between two messages.
    #[arg(long, default_value_t = 10)]
    interval: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Silences at least this long are listed, in milliseconds.
    #[arg(long, default_value_t = 100)]
    gap: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Over {
    Udp,
    Tcp,
}

/// After the last message, this long for late answers.
const LATE: Duration = Duration::from_secs(1);
const SIZE: usize = 64;

/// When which answer came.
type Arrivals = BTreeMap<u32, Instant>;

/// How a conversation went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    pub sent: u32,
    pub received: usize,
    pub lost: usize,
    /// Of the silences that are listed.
    pub longest_gap_ms: f64,
    pub gaps: Vec<Gap>,
    /// Messages in a row that no answer came to, by when they were sent.
    pub missing: Vec<Missing>,
    /// Why it ended before its time.
    pub broken: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Since the start.
    pub at_ms: f64,
    pub ms: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// Since the start.
    pub at_ms: u64,
    pub count: u32,
}

impl Stream {
    pub(super) fn run(&self) -> Result<()> {
        let remote = SocketAddr::new(self.address, self.port);
        let started = Instant::now();
        let (sent, arrivals, broken) = match self.over {
            Over::Udp => self.over_udp(remote)?,
            Over::Tcp => self.over_tcp(remote)?,
        };
        let ended = Instant::now();
        let gaps = gaps(started, ended, &arrivals, Duration::from_millis(self.gap.max(1)));
        let received = arrivals.len();
        print(&Conversation {
            sent,
            received,
            lost: usize::try_from(sent).unwrap_or_default().saturating_sub(received),
            longest_gap_ms: gaps.iter().map(|gap| gap.ms).fold(0.0, f64::max),
            gaps,
            missing: missing(sent, self.interval, &arrivals),
            broken,
        })
    }

    fn over_udp(&self, remote: SocketAddr) -> Result<(u32, Arrivals, Option<String>)> {
        let socket = UdpSocket::bind(echo::unspecified(self.address)).context("open a socket")?;
        socket
            .connect(remote)
            .with_context(|| format!("connect to {remote}"))?;
        let reader = socket.try_clone().context("share the socket")?;
        reader
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("set a deadline")?;
        let (stop, stopped) = mpsc::channel::<()>();
        let reading = std::thread::spawn(move || {
            let mut arrivals = Arrivals::new();
            let mut buffer = vec![0; 2048];
            while stopped.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                // "Connection refused" is what an unreachable moment looks like; the stream goes on.
                let Ok(read) = reader.recv(&mut buffer) else {
                    continue;
                };
                if let Some(number) = count::number(&buffer[..read]) {
                    arrivals.entry(number).or_insert_with(Instant::now);
                }
            }
            arrivals
        });
        ready()?;
        let sent = self.pace(|number| {
            let _ = socket.send(&count::payload(number, SIZE));
            true
        });
        std::thread::sleep(LATE);
        drop(stop);
        let arrivals = reading
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        Ok((sent, arrivals, None))
    }

    fn over_tcp(&self, remote: SocketAddr) -> Result<(u32, Arrivals, Option<String>)> {
        let patience = Duration::from_secs(self.seconds) + LATE;
        let (mut stream, _) = echo::connect(remote, Duration::from_secs(5))?;
        stream
            .set_read_timeout(Some(patience))
            .context("set a deadline")?;
        // A send buffer that stays full is a gap, not a broken connection.
        stream
            .set_write_timeout(Some(patience))
            .context("set a deadline")?;
        let mut reader = stream.try_clone().context("share the connection")?;
        let reading = std::thread::spawn(move || {
            let mut arrivals = Arrivals::new();
            let mut message = [0; SIZE];
            loop {
                match reader.read_exact(&mut message) {
                    Ok(()) => {
                        if let Some(number) = count::number(&message) {
                            arrivals.entry(number).or_insert_with(Instant::now);
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        return (arrivals, None);
                    }
                    Err(error) => return (arrivals, Some(error.to_string())),
                }
            }
        });
        ready()?;
        let mut trouble = None;
        let sent = self.pace(|number| match stream.write_all(&count::payload(number, SIZE)) {
            Ok(()) => true,
            Err(error) => {
                trouble = Some(error.to_string());
                false
            }
        });
        // Everything that was sent comes back before the end of the stream does.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let (arrivals, reading_trouble) = reading
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        Ok((sent, arrivals, trouble.or(reading_trouble)))
    }

    /// Sends at the given pace until the time is over or sending fails.
    fn pace(&self, mut send: impl FnMut(u32) -> bool) -> u32 {
        let started = Instant::now();
        let mut number = 0;
        while started.elapsed() < Duration::from_secs(self.seconds) {
            if !send(number) {
                break;
            }
            number += 1;
            let next = started + Duration::from_millis(self.interval) * number;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        number
    }
}

/// The silences between arrivals that are at least `least` long.
fn gaps(started: Instant, ended: Instant, arrivals: &Arrivals, least: Duration) -> Vec<Gap> {
    let mut times: Vec<Instant> = arrivals.values().copied().collect();
    times.sort();
    let last = if times.is_empty() { Some(ended) } else { None };
    let mut before = started;
    let mut found = Vec::new();
    for time in times.into_iter().chain(last) {
        if time - before >= least {
            found.push(Gap {
                at_ms: milliseconds(before - started),
                ms: milliseconds(time - before),
            });
        }
        before = time;
    }
    found
}

/// Runs of messages without an answer, of `sent` that left every `interval` milliseconds.
fn missing(sent: u32, interval: u64, arrivals: &Arrivals) -> Vec<Missing> {
    let mut runs: Vec<Missing> = Vec::new();
    let mut next = 0;
    for number in (0..sent).filter(|number| !arrivals.contains_key(number)) {
        match runs.last_mut() {
            Some(run) if number == next => run.count += 1,
            _ => runs.push(Missing {
                at_ms: interval * u64::from(number),
                count: 1,
            }),
        }
        next = number + 1;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_without_an_answer_are_listed_in_runs() {
        let now = Instant::now();
        let arrivals = Arrivals::from([1, 4, 5].map(|number| (number, now)));
        let run = |at_ms, count| Missing { at_ms, count };
        assert_eq!(missing(8, 5, &arrivals), [run(0, 1), run(10, 2), run(30, 2)]);
    }

    #[test]
    fn silences_are_found_between_arrivals() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let arrivals = Arrivals::from([(0, at(10)), (1, at(20)), (2, at(520)), (3, at(530))]);
        let found = gaps(start, at(600), &arrivals, Duration::from_millis(100));
        assert_eq!(
            found,
            [Gap {
                at_ms: 20.0,
                ms: 500.0
            }]
        );
    }

    #[test]
    fn a_stream_without_any_answer_is_one_gap() {
        let start = Instant::now();
        let found = gaps(
            start,
            start + Duration::from_secs(2),
            &Arrivals::new(),
            Duration::from_millis(100),
        );
        assert_eq!(
            found,
            [Gap {
                at_ms: 0.0,
                ms: 2000.0
            }]
        );
    }
}
