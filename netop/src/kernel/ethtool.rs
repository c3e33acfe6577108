//! What an interface does with what it receives, by the netlink family of ethtool(8)
//! (Documentation/networking/ethtool-netlink.rst, linux/ethtool_netlink.h).

use std::{ffi::CStr, io, path::Path};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::{
    GenlFamily, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

use super::netns;

const FAMILY: &str = "ethtool";
const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const HEADER_DEV_INDEX: u16 = 1;
const HEADER_FLAGS: u16 = 3;
/// No answer but the acknowledgement.
const FLAG_OMIT_REPLY: u32 = 1 << 1;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// `NETIF_F_GRO_UDP_FWD` (Linux 5.12).
const JOINS_DATAGRAMS: &CStr = c"rx-udp-gro-forwarding";

/// Has datagrams of one flow that arrive in a row go on as one packet (GRO): to a pod in one step, and to a TAP in one place
/// of its queue. It is cut again where it leaves the node or is received.
///
/// # Errors
/// Where the kernel cannot.
pub(super) fn join_datagrams(namespace: Option<&Path>, interface: u32) -> io::Result<()> {
    netns::maybe_within(namespace, || {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let family = family(&socket)?;
        let wish = Wish {
            interface,
            feature: JOINS_DATAGRAMS,
        };
        let mut message = GenlMessage::from_payload(wish);
        message.set_resolved_family_id(family);
        ask(&socket, message, NLM_F_ACK).map(drop)
    })
}

/// The number that the kernel has given the family.
fn family(socket: &Socket) -> io::Result<u16> {
    let message = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
    });
    let answer = ask(socket, message, 0)?;
    let attributes = answer.into_iter().flat_map(|answer| answer.payload.nlas);
    attributes
        .filter_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        })
        .next()
        .ok_or_else(|| io::Error::other("the kernel gave the family no number"))
}

/// Sends a request and reads its one answer: `None` where that is an acknowledgement.
fn ask<F>(socket: &Socket, message: GenlMessage<F>, flags: u16) -> io::Result<Option<GenlMessage<GenlCtrl>>>
where
    GenlMessage<F>: NetlinkSerializable + Into<NetlinkPayload<GenlMessage<F>>>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match read(&answer)? {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}

fn read<M: NetlinkDeserializable>(bytes: &[u8]) -> io::Result<NetlinkPayload<M>> {
    let message = NetlinkMessage::<M>::deserialize(bytes).map_err(io::Error::other)?;
    Ok(message.payload)
}

/// That an interface has a feature.
#[derive(Debug)]
struct Wish {
    interface: u32,
    feature: &'static CStr,
}

impl Wish {
    fn attributes(&self) -> [DefaultNla; 2] {
        let header = [
            number(HEADER_DEV_INDEX, self.interface),
            number(HEADER_FLAGS, FLAG_OMIT_REPLY),
        ];
        let bit = [
            DefaultNla::new(BIT_NAME, self.feature.to_bytes_with_nul().to_vec()),
            DefaultNla::new(BIT_VALUE, vec![]),
        ];
        let bits = nested(BITSET_BITS, &[nested(BITS_BIT, &bit)]);
        [nested(FEATURES_HEADER, &header), nested(FEATURES_WANTED, &[bits])]
    }
}

fn number(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_ne_bytes().to_vec())
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

impl GenlFamily for Wish {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        FEATURES_SET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Wish {
    fn buffer_len(&self) -> usize {
        self.attributes().as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes().as_slice().emit(buffer);
    }
}
