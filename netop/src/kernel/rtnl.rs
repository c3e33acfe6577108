//! A routing-netlink socket: requests that are acknowledged, and dumps, one at a time.
//!
//! A socket runs one dump at a time (the kernel answers EBUSY to a second), hence `&mut self` throughout.

use std::{fmt::Debug, io, path::Path};

use futures::{Stream, StreamExt};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use nix::errno::Errno;
use rtnetlink::{
    proto::{ConnectionHandle, new_connection},
    sys::{SocketAddr, protocols::NETLINK_ROUTE},
};

use super::netns;

/// How often a dump is repeated that the kernel says was changed while it was read.
const DUMP_ATTEMPTS: usize = 5;

/// What is said over a socket.
pub(super) trait Words:
    NetlinkSerializable + NetlinkDeserializable + Clone + Debug + Send + Unpin + 'static
{
}

impl<M> Words for M where
    M: NetlinkSerializable + NetlinkDeserializable + Clone + Debug + Send + Unpin + 'static
{
}

/// One socket. Dropping it closes it.
pub(super) struct Rtnl<M: Words = RouteNetlinkMessage> {
    handle: ConnectionHandle<M>,
}

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Kernel(Errno),
    #[error("netlink socket closed")]
    Closed,
    #[error("changed {DUMP_ATTEMPTS} times while it was read")]
    Unsteady,
}

impl Error {
    pub(super) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Kernel(seen) if *seen == errno)
    }
}

impl<M: Words> Rtnl<M> {
    /// Opens a socket in a namespace, or in this process's own.
    ///
    /// # Errors
    /// Where the namespace is gone.
    pub(super) fn open(namespace: Option<&Path>) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (mut connection, handle, _) = netns::maybe_within(namespace, || {
            let _guard = runtime.enter();
            new_connection(NETLINK_ROUTE)
        })?;
        // Without these, the end of a stream of answers means success or a lost socket.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Sends a request to the kernel; its answers follow.
    fn send(
        &mut self,
        message: M,
        flags: u16,
    ) -> Result<impl Stream<Item = NetlinkMessage<M>> + use<M>, Error> {
        let mut request =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = NLM_F_REQUEST | flags;
        let kernel = SocketAddr::new(0, 0);
        self.handle.request(request, kernel).map_err(|_| Error::Closed)
    }

    /// Sends a request and waits for the kernel's word on it.
    pub(super) async fn request(&mut self, message: M, flags: u16) -> Result<(), Error> {
        let mut answers = self.send(message, NLM_F_ACK | flags)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(code) => Err(Error::Kernel(Errno::from_raw(code.get().saturating_abs()))),
                };
            }
        }
        Err(Error::Closed)
    }

    /// As [`Rtnl::request`]; `settled` says that it was so already.
    pub(super) async fn ensure(&mut self, message: M, flags: u16, settled: &[Errno]) -> Result<(), Error> {
        match self.request(message, flags).await {
            Err(Error::Kernel(errno)) if settled.contains(&errno) => Ok(()),
            other => other,
        }
    }

    /// Reads a whole table, again where it changed meanwhile.
    pub(super) async fn dump(&mut self, message: M) -> Result<Vec<M>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut answers = self.send(message.clone(), NLM_F_DUMP)?;
            let (mut seen, mut torn, mut whole) = (vec![], false, false);
            while let Some(answer) = answers.next().await {
                torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => seen.push(message),
                    NetlinkPayload::Error(error) => {
                        if let Some(code) = error.code {
                            return Err(Error::Kernel(Errno::from_raw(code.get().saturating_abs())));
                        }
                    }
                    NetlinkPayload::Done(_) => whole = true,
                    _ => {}
                }
            }
            match (whole, torn) {
                (true, false) => return Ok(seen),
                (true, true) => {}
                (false, _) => return Err(Error::Closed),
            }
        }
        Err(Error::Unsteady)
    }
}

impl Rtnl {
    /// One interface by its name, or `None`.
    pub(super) async fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut answers = self.send(RouteNetlinkMessage::GetLink(message), 0)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => return Ok(Some(link)),
                NetlinkPayload::Error(error) => {
                    let code = error.code.map_or(0, |code| code.get().saturating_abs());
                    return match Errno::from_raw(code) {
                        Errno::ENODEV | Errno::ENOENT => Ok(None),
                        errno => Err(Error::Kernel(errno)),
                    };
                }
                _ => {}
            }
        }
        Err(Error::Closed)
    }
}
