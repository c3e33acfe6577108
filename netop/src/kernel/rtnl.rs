//! A routing-netlink socket: requests that are acknowledged, and dumps, one at a time.
//!
//! A socket runs one dump at a time (the kernel answers EBUSY to a second), hence `&mut self` throughout.

use std::{io, path::Path};

use futures::{Stream, StreamExt};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use nix::errno::Errno;
use rtnetlink::{
    proto::{ConnectionHandle, new_connection},
    sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE},
};

use tokio::task::AbortHandle;

use super::netns;

/// How often a dump is repeated that the kernel says was changed while it was read.
const DUMP_ATTEMPTS: usize = 5;

/// One socket. Dropping it closes it.
pub(super) struct Rtnl {
    handle: ConnectionHandle<RouteNetlinkMessage>,
    connection: AbortHandle,
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What was read of a table.
pub(super) struct Dump {
    pub(super) entries: Vec<RouteNetlinkMessage>,
    /// There is more, and the socket is of no use any more.
    pub(super) cut: bool,
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

impl Rtnl {
    /// Opens a socket in a namespace, or in this process's own.
    ///
    /// # Errors
    /// Where the namespace is gone.
    pub(super) fn open(namespace: Option<&Path>) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (mut connection, handle, _) = netns::maybe_within(namespace, || {
            let _guard = runtime.enter();
            let (mut connection, handle, messages) = new_connection(NETLINK_ROUTE)?;
            // The kernel applies what a dump asks for, and says so where it cannot (Linux 4.20).
            AsyncSocket::socket_mut(connection.socket_mut()).set_netlink_get_strict_chk(true)?;
            Ok((connection, handle, messages))
        })?;
        // Without these, the end of a stream of answers means success or a lost socket.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, connection })
    }

    /// Sends a request to the kernel; its answers follow.
    fn send(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, Error> {
        let mut request =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = NLM_F_REQUEST | flags;
        let kernel = SocketAddr::new(0, 0);
        self.handle.request(request, kernel).map_err(|_| Error::Closed)
    }

    /// Sends a request and waits for the kernel's word on it.
    pub(super) async fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
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
    pub(super) async fn ensure(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        settled: &[Errno],
    ) -> Result<(), Error> {
        match self.request(message, flags).await {
            Err(Error::Kernel(errno)) if settled.contains(&errno) => Ok(()),
            other => other,
        }
    }

    /// Reads a whole table, again where it changed meanwhile.
    pub(super) async fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.dump_at_most(message, usize::MAX)
            .await
            .map(|dump| dump.entries)
    }

    /// As [`Rtnl::dump`], where somebody else decides how long the table is.
    pub(super) async fn dump_at_most(
        &mut self,
        message: RouteNetlinkMessage,
        most: usize,
    ) -> Result<Dump, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut answers = self.send(message.clone(), NLM_F_DUMP)?;
            let (mut entries, mut torn, mut whole) = (vec![], false, false);
            while let Some(answer) = answers.next().await {
                torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(_) if entries.len() >= most => {
                        // What is on its way is read by nobody.
                        self.connection.abort();
                        return Ok(Dump { entries, cut: true });
                    }
                    NetlinkPayload::InnerMessage(message) => entries.push(message),
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
                (true, false) => return Ok(Dump { entries, cut: false }),
                (true, true) => {}
                (false, _) => return Err(Error::Closed),
            }
        }
        Err(Error::Unsteady)
    }

    /// The one answer to a question; ENOENT where the kernel has none.
    pub(super) async fn get(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Error> {
        // With an acknowledgement there is an end also where it keeps silent.
        let (mut answers, mut found) = (self.send(message, NLM_F_ACK)?, None);
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found = Some(message),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => found.ok_or(Error::Kernel(Errno::ENOENT)),
                        Some(code) => Err(Error::Kernel(Errno::from_raw(code.get().saturating_abs()))),
                    };
                }
                _ => {}
            }
        }
        Err(Error::Closed)
    }

    /// One interface by its name, or `None`.
    pub(super) async fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(_) => Ok(None),
            Err(error) if error.is(Errno::ENODEV) || error.is(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
