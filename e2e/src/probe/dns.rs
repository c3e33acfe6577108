//! One question to one name server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;

use super::{echo, milliseconds, print};

#[derive(Debug, Args)]
pub struct Dns {
    name: String,
    /// ADDRESS:PORT; the first of /etc/resolv.conf when absent.
    #[arg(long)]
    server: Option<SocketAddr>,
    #[arg(long = "type", default_value = "A")]
    kind: String,
    #[arg(long)]
    tcp: bool,
    /// Milliseconds.
    #[arg(long, default_value_t = 2000)]
    timeout: u64,
}

impl Dns {
    pub(super) fn run(&self) -> Result<()> {
        let server = self.server.map_or_else(first_server, Ok)?;
        let name = Name::from_str(&self.name).with_context(|| format!("\"{}\" is no name", self.name))?;
        let kind = RecordType::from_str(&self.kind.to_uppercase());
        let kind = kind.with_context(|| format!("\"{}\" is no record type", self.kind))?;
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name, kind));
        let question = message.to_vec().context("encode the question")?;
        let started = Instant::now();
        let answer = if self.tcp {
            self.over_tcp(server, &question)?
        } else {
            self.over_udp(server, &question)?
        };
        let elapsed = started.elapsed();
        let answer = Message::from_vec(&answer).context("decode the answer")?;
        if answer.metadata.id != message.metadata.id {
            bail!("{server} answered another question");
        }
        let answers: Vec<String> = answer
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        print(&json!({
            "rcode": format!("{:?}", answer.metadata.response_code), "answers": answers,
            "authoritative": answer.metadata.authoritative, "truncated": answer.metadata.truncation,
            "ms": milliseconds(elapsed),
        }))
    }

    fn over_udp(&self, server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
        let socket = UdpSocket::bind(echo::unspecified(server.ip())).context("open a socket")?;
        socket
            .connect(server)
            .with_context(|| format!("connect to {server}"))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(self.timeout)))
            .context("set a deadline")?;
        socket.send(question).with_context(|| format!("ask {server}"))?;
        let mut buffer = vec![0; 64 * 1024];
        let read = socket
            .recv(&mut buffer)
            .with_context(|| format!("no answer from {server}"))?;
        buffer.truncate(read);
        Ok(buffer)
    }

    /// With a length in front (RFC 1035, section 4.2.2).
    fn over_tcp(&self, server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
        let deadline = Duration::from_millis(self.timeout);
        let mut stream =
            TcpStream::connect_timeout(&server, deadline).with_context(|| format!("connect to {server}"))?;
        stream
            .set_read_timeout(Some(deadline))
            .context("set a deadline")?;
        let length = u16::try_from(question.len()).context("a question beyond 64 KiB")?;
        stream
            .write_all(&[&length.to_be_bytes()[..], question].concat())
            .with_context(|| format!("ask {server}"))?;
        let mut length = [0; 2];
        stream
            .read_exact(&mut length)
            .with_context(|| format!("no answer from {server}"))?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream
            .read_exact(&mut answer)
            .with_context(|| format!("half an answer from {server}"))?;
        Ok(answer)
    }
}

fn first_server() -> Result<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").context("read /etc/resolv.conf")?;
    let server = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
    server
        .map(|ip| SocketAddr::new(ip, 53))
        .context("/etc/resolv.conf names no server: give one with --server")
}
