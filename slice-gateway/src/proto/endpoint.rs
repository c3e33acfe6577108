//! An end of a path.

use std::net::SocketAddr;

use super::Output;

/// Which socket of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Socket {
    /// That with the gateway's port, which all lanes share.
    Listening,
    /// The lane's own, with a port of its own. What lanes begin they begin here, so that the network between two
    /// gateways can tell tunnels apart; the first lane has none and begins by the other.
    Dialing,
}

/// Where a peer is: datagrams go and come between an address and a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub socket: Socket,
}

impl From<SocketAddr> for Endpoint {
    /// By the listening socket.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            socket: Socket::Listening,
        }
    }
}

/// Writes a message as it is; drops it where there is no room.
pub(super) fn write(out: &mut impl Output, to: Endpoint, message: &[u8]) {
    if message.is_empty() {
        return;
    }
    if let Some(room) = out.datagram(to.into(), message.len()) {
        room.copy_from_slice(message);
        out.send();
    }
}
