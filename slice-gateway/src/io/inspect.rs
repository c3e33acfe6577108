//! What a frame is to [`super::merge`]: which flow it belongs to, and whether it continues a super-frame of it.

use slice_frame::{
    Content, Frame,
    checksum::Sum,
    ethernet,
    ip::{self, Fragment},
};

use crate::proto::segment::Kind;

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What may be merged, as the TAP device takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kinds {
    None,
    Tcp,
    TcpAndUdp,
}

/// The state of a super-frame that can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) kind: Kind,
    pub(super) v6: bool,
    pub(super) transport: usize,
    pub(super) headers: usize,
    /// Bytes of payload in each piece but the last.
    pub(super) size: usize,
    pub(super) sequence: u32,
    pub(super) identification: u16,
}

/// What a frame is, as far as merging goes.
pub(super) struct Segment {
    pub(super) flow: u64,
    pub(super) verified: bool,
    /// It may be a piece of a super-frame.
    pub(super) open: Option<Open>,
    /// Nothing may follow it in its super-frame.
    pub(super) push: bool,
}

impl Open {
    /// Whether `frame`, which is `new`, is the next segment of the super-frame that begins with `head`.
    pub(super) fn continues(&self, new: &Self, head: &[u8], frame: &[u8]) -> bool {
        let same = |from: usize, to: usize| head[from..to] == frame[from..to];
        let (network, transport) = (ethernet::HEADER, self.transport);
        let shape = self.kind == new.kind && self.v6 == new.v6 && self.headers == new.headers;
        if !shape || !same(0, network) {
            return false;
        }
        let network_same = if self.v6 {
            // All but the length.
            same(network, network + 4) && same(network + 6, transport)
        } else {
            // All but length, identification and checksum. Identifications count up, or stand still where
            // fragmentation is forbidden (RFC 6864 §4.1): what the kernel makes of a super-frame again.
            let still = frame[network + 6] & 0x40 != 0;
            let counted = new.identification == self.identification.wrapping_add(1);
            same(network, network + 2)
                && same(network + 6, network + 10)
                && same(network + 12, transport)
                && (counted || still)
        };
        network_same
            && match self.kind {
                // Ports, acknowledgement, offset, window, urgent pointer, options; flags but for PSH.
                Kind::Tcp => {
                    same(transport, transport + 4)
                        && new.sequence == self.sequence
                        && same(transport + 8, transport + 13)
                        && head[transport + 13] & !PSH == frame[transport + 13] & !PSH
                        && same(transport + 14, transport + 16)
                        && same(transport + 18, self.headers)
                }
                Kind::Udp => same(transport, transport + 4),
            }
    }
}

/// Looks at a frame; `None` where it is neither TCP nor UDP, and so of no flow.
pub(super) fn inspect(frame: &[u8], kinds: Kinds) -> Option<Segment> {
    let read = Frame::read(frame).ok()?;
    let packet = read.packet()?;
    let v6 = read.content == Content::V6;
    let header = frame.get(ethernet::HEADER..packet.transport)?;
    // Without a tag, options or extension headers, not a fragment, without padding behind it.
    let length = if v6 { ip::V6_HEADER } else { ip::V4_HEADER };
    let plain = !read.tagged
        && packet.fragment == Fragment::Whole
        && header.len() == length
        && packet.end == frame.len();
    // A super-frame gets a header with a right checksum, so that each of its pieces must have had one.
    if !plain || !v6 && Sum::default().with(header).finish() != [0, 0] {
        return None;
    }
    let (addresses, identification) = match v6 {
        false => (&header[12..20], u16::from_be_bytes([header[4], header[5]])),
        true => (&header[8..40], 0),
    };
    let (protocol, transport) = (packet.protocol, packet.transport);
    let segment = &frame[transport..];
    let pseudo = Sum::default()
        .with(addresses)
        .with_u16(protocol.into())
        .with_u16(u16::try_from(segment.len()).ok()?);
    let flow = pseudo_flow(addresses, packet.head, protocol);
    let (kind, headers, sequence, mergeable, push) = match protocol {
        ip::TCP => {
            let header: &[u8; TCP_HEADER] = segment.first_chunk()?;
            let length = usize::from(header[12] >> 4) * 4;
            let plain = header[13] & !PSH == ACK && length >= TCP_HEADER;
            let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (
                Kind::Tcp,
                transport + length,
                sequence,
                plain,
                header[13] & PSH != 0,
            )
        }
        ip::UDP => {
            let header: &[u8; UDP_HEADER] = segment.first_chunk()?;
            let whole = usize::from(u16::from_be_bytes([header[4], header[5]])) == segment.len();
            let summed = header[6..8] != [0, 0];
            if !summed {
                return Some(Segment {
                    flow,
                    verified: false,
                    open: None,
                    push: false,
                });
            }
            (
                Kind::Udp,
                transport + UDP_HEADER,
                0,
                whole && kinds == Kinds::TcpAndUdp,
                false,
            )
        }
        _ => return None,
    };
    let verified = pseudo.with(segment).finish() == [0, 0];
    let size = frame.len().saturating_sub(headers);
    let open = (mergeable && verified && size > 0).then_some(Open {
        kind,
        v6,
        transport,
        headers,
        size,
        sequence,
        identification,
    });
    Some(Segment {
        flow,
        verified,
        open,
        push,
    })
}

/// A number for the flow. Two flows with one number do not merge, because their headers differ; they only end each
/// other's super-frames.
fn pseudo_flow(addresses: &[u8], ports: [u8; 4], protocol: u8) -> u64 {
    let mut flow = u64::from(u32::from_ne_bytes(ports)) << 8 | u64::from(protocol);
    for word in addresses.chunks_exact(4) {
        let word = u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        flow = (flow.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    flow
}
