//! The conversation between a node's agent and a gateway on that node.
//!
//! ```text
//!  gateway                                        slice-netop
//!     ── Hello {ordinal, public key, port} + fds ────►   who speaks: one connection per gateway
//!     ◄───────────────── Config {slice, peers, …} ────   whole, after Hello and on every change
//!     ◄───────────────── Tap {interface} + fds ───────   after the first Config, unless Hello said has_tap
//!     ── Report {keys, tunnels} ──────────────────────►   on change, and every second
//! ```
//!
//! Transport: a unix stream socket. A message is a length (u32, big endian, at most [`MAX_MESSAGE`]) and that many
//! bytes of JSON; file descriptors ride as `SCM_RIGHTS` on the first byte of their message (unix(7)). Either side
//! closes the connection at the first message that it cannot read. With its Hello the gateway may send its UDP
//! sockets, so that the agent, which has the right to, gives them the buffers that bursts need ([`widen`]).
//!
//! A gateway whose connection ends keeps carrying with its last configuration and connects again; a configuration is
//! whole, so nothing has to be replayed.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use ipnet::IpNet;
use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, setsockopt, sockopt},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest message: a configuration with 510 peer clusters of 32 gateways each takes about 3 MiB.
pub const MAX_MESSAGE: usize = 8 << 20;

/// Most descriptors with one message: a gateway of [`MAX_QUEUES`] threads has two sockets in each.
const MAX_DESCRIPTORS: usize = 2 * MAX_QUEUES as usize;
/// Most that the kernel passes on with one message (`SCM_MAX_FD`): with room for fewer, those that are cut off would stay
/// open in this process, and nobody would know them.
const ROOM: usize = 253;

/// Most queues of a TAP device, and threads of a gateway.
pub const MAX_QUEUES: u8 = 16;

/// From a gateway to its node agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum FromGateway {
    Hello(Hello),
    Report(Report),
}

/// From the node agent to a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToGateway {
    Config(Config),
    /// Carries file descriptors: queues of the TAP device, opened with `IFF_VNET_HDR | IFF_NO_PI`. At least one, and
    /// no more than the gateway asked for; all frames of a flow come by one of them ([`crate::steering`]).
    Tap(Tap),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Which replica of the slice's gateways this is.
    pub ordinal: u32,
    /// Curve25519 public key, base 64.
    pub public_key: String,
    /// UDP port that it listens on, in its own network namespace.
    pub udp_port: u16,
    pub version: String,
    /// Whether it still holds the TAP's descriptors from an earlier connection. The agent opens the device again only
    /// when nobody holds it; a gateway that lost a descriptor says `false`.
    #[serde(default)]
    pub has_tap: bool,
    /// Queues of the TAP device that it can use, 1 to [`MAX_QUEUES`].
    #[serde(default = "one_queue")]
    pub queues: u8,
}

fn one_queue() -> u8 {
    1
}

/// Everything a gateway works from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub slice: String,
    pub cluster: String,
    pub vni: u32,
    /// Bytes of the largest IP packet on the slice.
    pub mtu: u16,
    /// What that could be if all paths between clusters carried it: gateways find out how much of it theirs do.
    /// Absent where it is not to change.
    #[serde(default)]
    pub largest_mtu: Option<u16>,
    pub subnets: Vec<IpNet>,
    /// Inner IPv4 address of this gateway's VXLAN end point.
    pub vtep: Ipv4Addr,
    /// Index ranges of the own cluster.
    pub ranges: Vec<Range>,
    /// What the slice carries beside untagged IP.
    #[serde(default)]
    pub frames: Frames,
    /// Code point on outgoing datagrams, 0 to 63.
    pub dscp: u8,
    /// Seconds after which the gateway makes a new key; `None` for never.
    #[serde(default)]
    pub rotation_secs: Option<u64>,
    /// When it changes, the gateway makes a new key, and keeps the one it has until every peer has moved.
    #[serde(default)]
    pub renewal: Option<String>,
    /// When it changes, the gateway makes a new key and gives up those it has at once.
    #[serde(default)]
    pub revocation: Option<String>,
    pub peers: Vec<Peer>,
}

/// What a slice carries beside untagged IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Frames {
    /// Frames of other protocols.
    pub non_ip: bool,
    /// Frames with a VLAN tag.
    pub tagged: bool,
    /// Router advertisements and redirects.
    pub routers: bool,
}

impl Default for Frames {
    /// What an agent meant that does not say.
    fn default() -> Self {
        Self {
            non_ip: true,
            tagged: false,
            routers: false,
        }
    }
}

/// A run of attachment indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    pub start: u32,
    pub size: u32,
}

/// Another cluster of the slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub cluster: String,
    /// It is no cluster but a host outside all of them, which may be switched off.
    #[serde(default)]
    pub outside: bool,
    pub ranges: Vec<Range>,
    pub gateways: Vec<PeerGateway>,
}

/// A gateway of another cluster: one tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerGateway {
    /// `<cluster>/<ordinal>`, unique within the configuration.
    pub name: String,
    pub public_key: String,
    /// The key that it had before, while it still answers to that one.
    #[serde(default)]
    pub former_key: Option<String>,
    pub vtep: Ipv4Addr,
    /// Where to dial, best first; empty when the far side dials.
    pub endpoints: Vec<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tap {
    pub interface: String,
    /// `TUN_F_*` offloads that the kernel accepted (linux/if_tun.h); 0 when frames arrive whole and checksummed.
    pub offloads: u32,
}

/// How a gateway is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Absent until the first configuration has come.
    pub keys: Option<Keys>,
    /// The peer that is only reached by the former key while a new one is due.
    pub renewal_waits_for: Option<String>,
    pub tunnels: Vec<Tunnel>,
    /// Peer clusters that frames can be sent to now, of those that have a gateway.
    pub reached: u32,
    /// It is about to stop: frames should go another way.
    pub draining: bool,
    /// Absent until it has its TAP device.
    pub data_path: Option<DataPath>,
}

/// What a gateway has of the kernel's help: without some of it, it carries less.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataPath {
    /// That carry frames.
    pub threads: u32,
    /// Of the TAP device, that are read: fewer than threads where flows cannot be kept on one.
    pub tap_queues: u32,
    /// What the TAP device leaves to the gateway: `none`, `checksum`, `tcp`, `udp` or `tunnel`, each with what is before it.
    pub tap_offload: String,
    /// Datagrams are handed to the kernel in groups (UDP_SEGMENT).
    pub udp_segmentation: bool,
    /// Datagrams come from the kernel in groups (UDP_GRO).
    pub udp_coalescing: bool,
}

/// The keys that a gateway answers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    pub public_key: String,
    /// The one before, until nobody needs it.
    pub former_key: Option<String>,
    /// [`Config::revocation`] as it was when the key was made.
    pub revocation: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// [`PeerGateway::name`].
    pub peer: String,
    pub up: bool,
    /// The far end asks for frames to come another way: it is about to stop, or cannot deliver them.
    #[serde(default)]
    pub away: bool,
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds since the last completed handshake.
    pub handshake_age_ms: Option<u64>,
    pub rtt_micros: Option<u32>,
    /// Bytes of the largest packet of the slice that fits through, up to [`Config::largest_mtu`]; absent until it is known.
    #[serde(default)]
    pub path_mtu: Option<u16>,
}

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("hand-over socket: {0}")]
    Io(#[from] io::Error),
    #[error("hand-over message of {0} bytes, the limit is {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("hand-over message with {0} descriptors, the limit is {MAX_DESCRIPTORS}")]
    TooManyDescriptors(usize),
    #[error("hand-over message cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the other side closed the hand-over socket")]
    Closed,
}

/// Bytes of a gateway's socket buffers: what arrives in 10 ms at 10 Gbit/s. net.core.rmem_max, which bounds what a
/// process may ask for itself, is 208 KiB on most hosts, three datagrams as UDP_GRO joins them.
pub const SOCKET_BUFFER: usize = 12 << 20;

/// Gives a gateway's socket large buffers. Needs CAP_NET_ADMIN; a gateway works without, and loses bursts.
///
/// # Errors
/// Where the kernel refuses, or the descriptor is no socket.
pub fn widen(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER)?;
    Ok(setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER)?)
}

/// Writes one message, with `fds` attached. Blocks until the whole message is written.
///
/// # Errors
/// Also where there are more descriptors than a message can carry.
pub fn send<T: Serialize>(stream: &UnixStream, message: &T, fds: &[RawFd]) -> Result<(), Error> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(Error::TooLong(length));
    }
    bytes[..4].copy_from_slice(&u32::try_from(length).expect("checked").to_be_bytes());
    if fds.len() > MAX_DESCRIPTORS {
        return Err(Error::TooManyDescriptors(fds.len()));
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if sent == 0 && !fds.is_empty() {
            &rights
        } else {
            &[]
        };
        let iov = [IoSlice::new(&bytes[sent..])];
        match sendmsg::<()>(
            stream.as_fd().as_raw_fd(),
            &iov,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(n) => sent += n,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(())
}

/// Reads one message and the file descriptors attached to it. Blocks until the message is whole.
///
/// Descriptors that arrive while none are expected are closed again when the caller drops them.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<(T, Vec<OwnedFd>), Error> {
    let mut head = [0; 4];
    let fds = fill(stream, &mut head, true)?;
    let length = u32::from_be_bytes(head) as usize;
    if length > MAX_MESSAGE {
        return Err(Error::TooLong(length));
    }
    let mut body = vec![0; length];
    fill(stream, &mut body, false)?;
    Ok((serde_json::from_slice(&body)?, fds))
}

fn fill(stream: &UnixStream, buffer: &mut [u8], rights: bool) -> Result<Vec<OwnedFd>, Error> {
    let mut fds = Vec::new();
    let mut have = 0;
    while have < buffer.len() {
        let mut space = cmsg_space!([RawFd; ROOM]);
        let mut iov = [IoSliceMut::new(&mut buffer[have..])];
        // On the first byte; what comes with another the kernel closes.
        let rights = rights && have == 0;
        let control = rights.then_some(space.as_mut_slice());
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(stream.as_raw_fd(), &mut iov, control, flags) {
            Ok(message) => message,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let n = message.bytes;
        if rights {
            for control in message.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(received) = control {
                    // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                    fds.extend(
                        received
                            .into_iter()
                            .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }),
                    );
                }
            }
            if fds.len() > MAX_DESCRIPTORS {
                return Err(Error::TooManyDescriptors(fds.len()));
            }
        }
        if n == 0 {
            return Err(Error::Closed);
        }
        have += n;
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (near, far) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..MAX_DESCRIPTORS)
            .map(|_| tempfile::tempfile().unwrap())
            .collect();
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let tap = ToGateway::Tap(Tap {
            interface: "wt-abc0".into(),
            offloads: 3,
        });
        send(&near, &tap, &raw).unwrap();
        let (message, fds) = receive::<ToGateway>(&far).unwrap();
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(message, tap);
        let received: Vec<u64> = fds.into_iter().map(|fd| inode(&File::from(fd))).collect();
        assert_eq!(received, files.iter().map(inode).collect::<Vec<_>>());
        let one_more = [raw.as_slice(), &raw[..1]].concat();
        assert!(matches!(
            send(&near, &tap, &one_more),
            Err(Error::TooManyDescriptors(_))
        ));
    }

    /// What somebody may send who keeps to no rule: more descriptors than a message has, and a message in pieces.
    #[test]
    fn descriptors_of_a_hostile_gateway_do_not_stay() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let file = tempfile::tempfile().unwrap();
        let many = [file.as_raw_fd(); 200];
        for count in [33, 200] {
            let before = open();
            for _ in 0..8 {
                let (near, far) = UnixStream::pair().unwrap();
                let rights = [ControlMessage::ScmRights(&many[..count])];
                let text = [0, 0, 0, 2, b'{', b'}'];
                // Once with the first byte, and once with each of the others.
                for byte in &text {
                    let iov = [IoSlice::new(std::slice::from_ref(byte))];
                    let none = MsgFlags::empty();
                    sendmsg::<()>(near.as_raw_fd(), &iov, &rights, none, None).unwrap();
                }
                assert!(matches!(
                    receive::<FromGateway>(&far),
                    Err(Error::TooManyDescriptors(n)) if n == count
                ));
            }
            // Other tests open and close files meanwhile.
            assert!(open() < before + 30, "{count}: {before}, then {}", open());
        }
    }

    #[test]
    fn a_long_message_crosses_in_pieces() {
        let (near, far) = UnixStream::pair().unwrap();
        let gateways = (0..20_000)
            .map(|n| PeerGateway {
                name: format!("paris/{n}"),
                public_key: "x".repeat(44),
                former_key: None,
                vtep: Ipv4Addr::LOCALHOST,
                endpoints: vec![],
            })
            .collect();
        let config = ToGateway::Config(Config {
            slice: "shop".into(),
            cluster: "tokyo".into(),
            vni: 7,
            mtu: 1370,
            largest_mtu: Some(1370),
            subnets: vec![],
            vtep: Ipv4Addr::LOCALHOST,
            ranges: vec![],
            frames: Frames::default(),
            dscp: 0,
            rotation_secs: None,
            renewal: None,
            revocation: None,
            peers: vec![Peer {
                cluster: "paris".into(),
                outside: false,
                ranges: vec![],
                gateways,
            }],
        });
        let sender = std::thread::spawn({
            let config = config.clone();
            move || send(&near, &config, &[]).unwrap()
        });
        assert_eq!(receive::<ToGateway>(&far).unwrap().0, config);
        sender.join().unwrap();
    }

    #[test]
    fn lengths_are_checked_before_memory_is_taken() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(matches!(receive::<ToGateway>(&far), Err(Error::TooLong(_))));
    }

    #[test]
    fn an_end_is_an_end() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        assert!(matches!(receive::<ToGateway>(&far), Err(Error::Closed)));
    }
}
