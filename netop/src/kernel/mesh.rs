//! Probes of other nodes: VXLAN in UDP from a socket, answers from the map of the programs. To whoever is between two nodes a
//! probe looks like any frame of a slice.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
};

use slice_datapath::{self as datapath, PROBES, QUESTION};
use slice_runtime::fragmentation;

use super::{datapath::address, netns};
use crate::{mesh::Probe, programs::Answers};

/// Octets of the Ethernet header, which a slice's size does not count.
const ETHERNET: usize = 14;
/// Octets of the VXLAN header (RFC 7348 §5).
const VXLAN: usize = 8;

/// Sends probes, and knows which of them were answered.
pub struct Prober {
    namespace: Option<PathBuf>,
    answers: Answers,
    sockets: Option<Sockets>,
}

struct Sockets {
    /// What it sends is cut nowhere.
    whole: UdpSocket,
    /// What it sends may be cut, as pods' frames may over IPv4.
    cut: UdpSocket,
}

impl Prober {
    pub(super) const fn new(namespace: Option<PathBuf>, answers: Answers) -> Self {
        Self {
            namespace,
            answers,
            sockets: None,
        }
    }

    /// Sends from this address from now on; from none where it cannot.
    ///
    /// # Errors
    /// Where the node has not this address.
    pub fn bind(&mut self, address: IpAddr) -> io::Result<()> {
        self.sockets = None;
        let open = |whole| socket(address, whole);
        let sockets = netns::maybe_within(self.namespace.as_deref(), || {
            Ok(Sockets {
                whole: open(true)?,
                cut: open(false)?,
            })
        })?;
        self.sockets = Some(sockets);
        Ok(())
    }

    /// Sends a question.
    ///
    /// # Errors
    /// Where it was not sent: to this node it is lost, as a pod's frame would be.
    pub fn send(&mut self, probe: &Probe) -> anyhow::Result<()> {
        let sockets = self.sockets.as_ref();
        let sockets = sockets.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        self.answers.expect(probe.nonce, address(probe.to))?;
        let mut datagram = vec![0; VXLAN + length(probe)];
        // A number is given, and here it is.
        datagram[0] = 8;
        datagram[4..8].copy_from_slice(&(PROBES << 8).to_be_bytes());
        let question = datapath::Probe {
            kind: QUESTION,
            whole: probe.whole,
            nonce: probe.nonce,
        };
        question.write(&mut datagram[VXLAN..]);
        let socket = if probe.whole { &sockets.whole } else { &sockets.cut };
        socket.send_to(&datagram, SocketAddr::new(probe.to, probe.port))?;
        Ok(())
    }

    /// Whether a probe was answered, in full. It can be no longer.
    ///
    /// # Errors
    /// Where the map cannot be read.
    pub fn take(&mut self, probe: &Probe) -> anyhow::Result<bool> {
        let came = self.answers.take(probe.nonce, address(probe.to))?;
        Ok(came.is_some_and(|octets| octets as usize == length(probe)))
    }

    /// Answers that are waited for.
    pub fn waiting(&self) -> usize {
        self.answers.count()
    }
}

/// Octets of a probe's frame.
const fn length(probe: &Probe) -> usize {
    ETHERNET + probe.size as usize
}

/// From another port than the kernel's own VXLAN, which has that port in all its directions.
fn socket(address: IpAddr, whole: bool) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_nonblocking(true)?;
    // The kernel's VXLAN cuts nothing over IPv6, and neither does any router.
    let v6 = address.is_ipv6();
    fragmentation::set(&socket, v6, !whole && !v6)?;
    Ok(socket)
}
