//! What the TAP leaves to its reader: checksums, and the cutting of super-frames (TSO, USO) to the slice's MTU.
//!
//! ```text
//!  super-frame   │ headers │ payload 0 │ payload 1 │ payload 2 │
//!  segment 0     │ headers │ payload 0 │
//!  segment 1               │ headers │ payload 1 │               written over the end of payload 0
//!  segment 2                           │ headers │ payload 2 │   …
//! ```
//!
//! Segments are made one after the other, each in its place: the headers go right before their payload, over bytes
//! that have been encrypted to elsewhere by then. No payload is ever moved.
//!
//! The headers of a super-frame in a UDP tunnel (a VXLAN that pods make in the slice) are those of two packets, one in
//! the other; what is cut is the inner one's payload.

use std::ops::Range;

use slice_frame::{
    Frame,
    checksum::Sum,
    ip::{self, Fragment, Packet},
};

use super::reason::Reason;

/// What is still to be done to a frame, as its `virtio_net_hdr` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    pub checksum: Option<Checksum>,
    pub gso: Option<Gso>,
}

/// The sum over the frame from `start` goes to `start + offset`, where the pseudo-header's sum is already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    pub start: usize,
    pub offset: usize,
}

/// The frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    pub kind: Kind,
    /// Bytes of payload in each segment but the last.
    pub size: usize,
    /// What is cut is in a UDP tunnel.
    pub tunnel: Option<Tunnel>,
}

/// Where the headers around what is in a UDP tunnel are (VXLAN, RFC 7348; Geneve, RFC 8926).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The outer UDP header.
    pub transport: usize,
    /// The inner IP header.
    pub network: usize,
    /// The outer checksum is to be made. Otherwise there is none.
    pub checksum: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
}

impl Kind {
    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => ip::TCP,
            Self::Udp => ip::UDP,
        }
    }
}

/// Fills in the checksum of a whole frame.
pub fn complete(frame: &mut [u8], Checksum { start, offset }: Checksum) -> Result<(), Reason> {
    let sum = Sum::default()
        .with(frame.get(start..).ok_or(Reason::BadOffload)?)
        .finish();
    let field = frame
        .get_mut(start + offset..start + offset + 2)
        .ok_or(Reason::BadOffload)?;
    field.copy_from_slice(&nonzero(sum, offset == UDP_CHECKSUM));
    Ok(())
}

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Ethernet with a tag, IPv4 or IPv6 with some options, TCP with all options, and the same around them with a tunnel's
/// header.
const MAX_HEADERS: usize = 384;

/// In UDP a sum of zero would mean that there is none (RFC 768).
const fn nonzero(sum: [u8; 2], udp: bool) -> [u8; 2] {
    if udp && sum[0] == 0 && sum[1] == 0 {
        [0xff, 0xff]
    } else {
        sum
    }
}

/// The headers of an IP packet whose length differs from segment to segment.
#[derive(Clone, Copy)]
struct Layer {
    network: usize,
    transport: usize,
    v6: bool,
    kind: Kind,
    /// Whether the transport checksum is to be made.
    checksum: bool,
    /// Over the addresses and the protocol.
    pseudo: Sum,
}

impl Layer {
    /// Those of a packet that reaches to the end of the frame and is no fragment.
    fn new(frame: &[u8], network: usize, packet: &Packet, kind: Kind, checksum: bool) -> Option<Self> {
        let whole = packet.protocol == kind.protocol()
            && packet.fragment == Fragment::Whole
            && packet.end == frame.len();
        if !whole {
            return None;
        }
        let v6 = frame.get(network)? >> 4 == 6;
        let addresses = if v6 { 8..40 } else { 12..20 };
        let addresses = frame.get(network + addresses.start..network + addresses.end)?;
        Some(Self {
            network,
            transport: packet.transport,
            v6,
            kind,
            checksum,
            pseudo: Sum::default().with(addresses).with_u16(kind.protocol().into()),
        })
    }

    const fn checksum_at(&self) -> usize {
        self.transport
            + match self.kind {
                Kind::Tcp => TCP_CHECKSUM,
                Kind::Udp => UDP_CHECKSUM,
            }
    }

    /// Makes the fields zero that a sum is made over.
    fn clear(&self, headers: &mut [u8]) {
        headers[self.checksum_at()..][..2].fill(0);
        if !self.v6 {
            headers[self.network + 10..self.network + 12].fill(0);
        }
    }

    /// Writes lengths, and the IPv4 identification of the `count`th segment, which is all of `segment`.
    fn set_length(&self, segment: &mut [u8], count: u16) {
        let network_length = length(&segment[self.network..]);
        let transport_length = length(&segment[self.transport..]);
        let network = &mut segment[self.network..];
        if self.v6 {
            network[4..6].copy_from_slice(&(network_length - ip::V6_HEADER as u16).to_be_bytes());
        } else {
            network[2..4].copy_from_slice(&network_length.to_be_bytes());
            let identification = u16::from_be_bytes([network[4], network[5]]).wrapping_add(count);
            network[4..6].copy_from_slice(&identification.to_be_bytes());
            let sum = Sum::default()
                .with(&network[..self.transport - self.network])
                .finish();
            network[10..12].copy_from_slice(&sum);
        }
        if self.kind == Kind::Udp {
            segment[self.transport + 4..self.transport + 6].copy_from_slice(&transport_length.to_be_bytes());
        }
    }

    /// Over the whole pseudo-header.
    fn pseudo(&self, segment: &[u8]) -> Sum {
        self.pseudo.with_u16(length(&segment[self.transport..]))
    }

    fn set_checksum(&self, segment: &mut [u8], sum: Sum) {
        let sum = nonzero(sum.finish(), self.kind == Kind::Udp);
        segment[self.checksum_at()..][..2].copy_from_slice(&sum);
    }
}

fn length(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("shorter than a super-frame")
}

/// A super-frame that is being cut.
pub struct Segments {
    headers: [u8; MAX_HEADERS],
    /// Bytes of `headers` that are used.
    length: usize,
    /// Around the packet that is cut.
    outer: Option<Layer>,
    inner: Layer,
    size: usize,
    /// Bytes of the super-frame.
    total: usize,
    /// Payload bytes that have been cut off.
    done: usize,
}

impl Segments {
    /// Takes a super-frame, which is `read` and whose innermost transport header starts at `transport`.
    pub fn new(frame: &[u8], read: &Frame, transport: usize, gso: Gso) -> Result<Self, Reason> {
        Self::parse(frame, read, transport, gso).ok_or(Reason::BadOffload)
    }

    fn parse(frame: &[u8], read: &Frame, transport: usize, gso: Gso) -> Option<Self> {
        let Gso { kind, size, tunnel } = gso;
        let packet = read.packet()?;
        let (outer, inner) = match tunnel {
            None => (None, Layer::new(frame, read.network, packet, kind, true)?),
            Some(tunnel) => {
                let outer = Layer::new(frame, read.network, packet, Kind::Udp, tunnel.checksum)?;
                let behind = outer.transport + UDP_HEADER;
                if outer.transport != tunnel.transport || tunnel.network < behind {
                    return None;
                }
                let packet = Packet::read(frame, tunnel.network).ok()?;
                (
                    Some(outer),
                    Layer::new(frame, tunnel.network, &packet, kind, true)?,
                )
            }
        };
        if inner.transport != transport {
            return None;
        }
        let length = transport
            + match kind {
                Kind::Tcp => {
                    Some(usize::from(frame.get(transport + 12)? >> 4) * 4).filter(|n| *n >= TCP_HEADER)?
                }
                Kind::Udp => UDP_HEADER,
            };
        if size == 0 || length > MAX_HEADERS || length >= frame.len() {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers[..length].copy_from_slice(&frame[..length]);
        for layer in outer.iter().chain([&inner]) {
            layer.clear(&mut headers);
        }
        Some(Self {
            headers,
            length,
            outer,
            inner,
            size,
            total: frame.len(),
            done: 0,
        })
    }

    /// Bytes of the longest segment.
    pub fn longest(&self) -> usize {
        self.length + self.size.min(self.total - self.length)
    }

    /// Makes the next segment and returns where in `frame` it is. Everything before that may be overwritten.
    ///
    /// # Panics
    /// Where `frame` is not the super-frame.
    pub fn next(&mut self, frame: &mut [u8]) -> Option<Range<usize>> {
        let payload = self.length + self.done;
        if payload >= self.total {
            return None;
        }
        let end = (payload + self.size).min(self.total);
        let (first, last) = (self.done == 0, end == self.total);
        let start = self.done;
        let segment = &mut frame[start..end];
        segment[..self.length].copy_from_slice(&self.headers[..self.length]);
        let count = (self.done / self.size) as u16;
        for layer in self.outer.iter().chain([&self.inner]) {
            layer.set_length(segment, count);
        }
        let inner = self.inner;
        if inner.kind == Kind::Tcp {
            let transport = &mut segment[inner.transport..];
            let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = sequence.wrapping_add(self.done as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            // What concerns the end belongs to the last, what concerns the beginning to the first (RFC 3168 §6.1.2).
            let gone = if last { 0 } else { FIN | PSH } | if first { 0 } else { CWR };
            transport[TCP_FLAGS] &= !gone;
        }
        let pseudo = inner.pseudo(segment);
        inner.set_checksum(segment, pseudo.with(&segment[inner.transport..]));
        if let Some(outer) = self.outer.filter(|outer| outer.checksum) {
            // With its checksum, what is behind the inner headers sums up to the complement of the inner pseudo-header
            // (Documentation/networking/checksum-offloads.rst, "LCO").
            let between = &segment[outer.transport..inner.transport];
            let behind = u16::from_be_bytes(pseudo.finish());
            let sum = outer.pseudo(segment).with(between).with_u16(behind);
            outer.set_checksum(segment, sum);
        }
        self.done += end - payload;
        Some(start..end)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use slice_frame::{
        Mac,
        ethernet::{self, Header},
    };

    use super::*;

    /// A frame with `payload` bytes 0, 1, 2, …, its checksums not made.
    pub(crate) fn super_frame(
        kind: Kind,
        v6: bool,
        tag: bool,
        payload: usize,
        flags: u8,
    ) -> (Vec<u8>, usize) {
        let mut frame = vec![0; ethernet::HEADER];
        let inner = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let ethertype = if tag { ethernet::VLAN } else { inner };
        Header {
            destination: Mac::of_index(70),
            source: Mac::of_index(5),
            ethertype,
        }
        .write(&mut frame);
        if tag {
            frame.extend([0, 9]);
            frame.extend(inner.to_be_bytes());
        }
        let (protocol, transport) = match kind {
            Kind::Tcp => {
                let mut header = vec![0x10, 0, 0x20, 0, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1, 0x80, flags];
                header.extend([0x40, 0, 0xde, 0xad, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
                (ip::TCP, header)
            }
            Kind::Udp => (ip::UDP, vec![0x10, 0, 0x20, 0, 0, 0, 0xde, 0xad]),
        };
        let length = (transport.len() + payload) as u16;
        if v6 {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([0xfd; 15]);
            frame.extend([5]);
            frame.extend([0xfd; 15]);
            frame.extend([70]);
        } else {
            frame.extend([0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([
                0xff, 0xff, 0x40, 0, 64, protocol, 0xde, 0xad, 10, 80, 0, 5, 10, 80, 0, 70,
            ]);
        }
        let start = frame.len();
        frame.extend(transport);
        frame.extend((0..payload).map(|n| n as u8));
        (frame, start)
    }

    /// What is cut into segments of `size` bytes of payload, in no tunnel.
    pub(crate) fn plain(kind: Kind, size: usize) -> Gso {
        Gso {
            kind,
            size,
            tunnel: None,
        }
    }

    pub(crate) fn open(frame: &[u8], transport: usize, gso: Gso) -> Result<Segments, Reason> {
        let read = Frame::read(frame).map_err(|_| Reason::Unreadable)?;
        Segments::new(frame, &read, transport, gso)
    }

    fn cut(frame: &[u8], transport: usize, gso: Gso) -> Vec<Vec<u8>> {
        let mut frame = frame.to_vec();
        let mut segments = open(&frame, transport, gso).unwrap();
        let mut all = Vec::new();
        while let Some(range) = segments.next(&mut frame) {
            all.push(frame[range].to_vec());
        }
        all
    }

    /// Around a frame: Ethernet, IP, UDP and VXLAN. The outer checksums are not made.
    fn tunnelled((inner, transport): &(Vec<u8>, usize), v6: bool, checksum: bool) -> (Vec<u8>, Tunnel) {
        let (mut frame, udp) = super_frame(Kind::Udp, v6, false, VXLAN + inner.len(), 0);
        let headers = frame.len() - inner.len();
        frame[headers - VXLAN..headers].copy_from_slice(&[8, 0, 0, 0, 0, 0, 9, 0]);
        frame[headers..].copy_from_slice(inner);
        let network = Frame::read(&inner[..]).unwrap().network;
        assert!(*transport > network);
        let tunnel = Tunnel {
            transport: udp,
            network: headers + network,
            checksum,
        };
        (frame, tunnel)
    }

    /// Bytes of a VXLAN header.
    const VXLAN: usize = 8;

    /// Whether both checksums are right, and the payload.
    pub(crate) fn verify(frame: &[u8], kind: Kind) -> &[u8] {
        let read = Frame::read(frame).unwrap();
        let packet = read.packet().unwrap();
        let header = &frame[read.network..packet.transport];
        let transport = &frame[packet.transport..packet.end];
        let addresses = if header[0] >> 4 == 4 {
            assert_eq!(Sum::default().with(header).finish(), [0, 0], "IPv4 checksum");
            &header[12..20]
        } else {
            &header[8..40]
        };
        let pseudo = Sum::default()
            .with(addresses)
            .with_u16(packet.protocol.into())
            .with_u16(transport.len() as u16);
        assert_eq!(pseudo.with(transport).finish(), [0, 0], "transport checksum");
        if kind == Kind::Tcp {
            &transport[32..]
        } else {
            &transport[8..]
        }
    }

    /// Makes the checksum of a TCP segment that starts there.
    pub(crate) fn remake_transport(frame: &mut [u8], start: usize) {
        frame[start + 16..start + 18].fill(0);
        let length = (frame.len() - start) as u16;
        let addresses = if frame[12] == 8 { 26..34 } else { 22..54 };
        let pseudo = Sum::default()
            .with(&frame[addresses])
            .with_u16(ip::TCP.into())
            .with_u16(length);
        let sum = pseudo.with(&frame[start..]).finish();
        frame[start + 16..start + 18].copy_from_slice(&sum);
    }

    /// Makes both checksums of an IPv4/TCP frame right again after a change.
    pub(crate) fn remake(frame: &mut [u8]) {
        frame[24..26].fill(0);
        let sum = Sum::default().with(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&sum);
        remake_transport(frame, 34);
    }

    #[test]
    fn a_cut_payload_is_the_same_payload() {
        for kind in [Kind::Tcp, Kind::Udp] {
            for (v6, tag) in [(false, false), (true, false), (false, true), (true, true)] {
                for (payload, size) in [(1, 100), (100, 100), (101, 100), (5000, 1318), (60_000, 1318)] {
                    let (frame, start) = super_frame(kind, v6, tag, payload, 0x10);
                    let segments = cut(&frame, start, plain(kind, size));
                    assert_eq!(segments.len(), payload.div_ceil(size));
                    let joined: Vec<u8> = segments
                        .iter()
                        .flat_map(|segment| verify(segment, kind).to_vec())
                        .collect();
                    assert_eq!(joined, frame[frame.len() - payload..]);
                }
            }
        }
    }

    #[test]
    fn what_is_in_a_tunnel_is_cut_there() {
        for kind in [Kind::Tcp, Kind::Udp] {
            for (outer, inner, tag, checksum) in [
                (false, false, false, true),
                (false, true, false, false),
                (true, false, true, true),
                (true, true, true, true),
            ] {
                let inner = super_frame(kind, inner, tag, 5001, 0x10 | PSH);
                let (frame, tunnel) = tunnelled(&inner, outer, checksum);
                let gso = Gso {
                    kind,
                    size: 1268,
                    tunnel: Some(tunnel),
                };
                let headers = frame.len() - inner.0.len();
                let segments = cut(&frame, headers + inner.1, gso);
                assert_eq!(segments.len(), 4);
                let mut joined: Vec<u8> = Vec::new();
                for segment in &segments {
                    let sum = &segment[tunnel.transport + UDP_CHECKSUM..][..2];
                    assert_eq!(sum == [0, 0], !checksum);
                    let inner = if checksum {
                        verify(segment, Kind::Udp)
                    } else {
                        let read = Frame::read(&segment[..]).unwrap();
                        assert_eq!(read.packet().unwrap().end, segment.len());
                        &segment[headers - VXLAN..]
                    };
                    assert_eq!(inner[..VXLAN], frame[headers - VXLAN..headers]);
                    joined.extend(verify(&inner[VXLAN..], kind));
                }
                assert_eq!(joined, frame[frame.len() - 5001..]);
            }
        }
    }

    #[test]
    fn a_tunnel_that_is_none_is_refused() {
        let inner = super_frame(Kind::Tcp, false, false, 900, 0x10);
        let (mut frame, tunnel) = tunnelled(&inner, false, true);
        let start = frame.len() - inner.0.len() + inner.1;
        let gso = |tunnel| Gso {
            kind: Kind::Tcp,
            size: 300,
            tunnel: Some(tunnel),
        };
        assert!(open(&frame, start, gso(tunnel)).is_ok());
        assert!(open(&frame, start, plain(Kind::Tcp, 300)).is_err());
        assert!(open(&inner.0, inner.1, gso(tunnel)).is_err());
        for (transport, network) in [
            (tunnel.transport + 1, tunnel.network),
            (tunnel.transport, tunnel.transport),
            (tunnel.transport, tunnel.network + 1),
            (tunnel.transport, 60_000),
        ] {
            let lie = Tunnel {
                transport,
                network,
                ..tunnel
            };
            assert!(open(&frame, start, gso(lie)).is_err(), "{lie:?}");
        }
        // The inner packet ends before the outer one does.
        let length = &mut frame[tunnel.network + 3];
        *length = length.wrapping_sub(1);
        assert!(open(&frame, start, gso(tunnel)).is_err());
    }

    #[test]
    fn sequence_and_identification_count_up_and_wrap() {
        let (frame, start) = super_frame(Kind::Tcp, false, false, 900, 0x10);
        let segments = cut(&frame, start, plain(Kind::Tcp, 300));
        let sequences: Vec<&[u8]> = segments.iter().map(|segment| &segment[38..42]).collect();
        assert_eq!(
            sequences,
            [[0xff, 0xff, 0xff, 0x00], [0, 0, 0, 0x2c], [0, 0, 1, 0x58]]
        );
        let identifications: Vec<&[u8]> = segments.iter().map(|segment| &segment[18..20]).collect();
        assert_eq!(identifications, [[0xff, 0xff], [0, 0], [0, 1]]);
    }

    #[test]
    fn flags_go_where_they_belong() {
        let (frame, start) = super_frame(Kind::Tcp, true, false, 900, 0x10 | FIN | PSH | CWR);
        let segments = cut(&frame, start, plain(Kind::Tcp, 300));
        let flags: Vec<u8> = segments.iter().map(|segment| segment[54 + TCP_FLAGS]).collect();
        assert_eq!(flags, [0x10 | CWR, 0x10, 0x10 | FIN | PSH]);
    }

    #[test]
    fn a_checksum_can_be_filled_in() {
        for (kind, offset) in [(Kind::Tcp, TCP_CHECKSUM), (Kind::Udp, UDP_CHECKSUM)] {
            let (mut frame, start) = super_frame(kind, true, false, 333, 0x10);
            let length = (frame.len() - start) as u16;
            let protocol = if kind == Kind::Tcp { ip::TCP } else { ip::UDP };
            let pseudo = Sum::default()
                .with(&frame[22..54])
                .with_u16(protocol.into())
                .with_u16(length);
            frame[start + offset..start + offset + 2].copy_from_slice(&pseudo.partial());
            complete(&mut frame, Checksum { start, offset }).unwrap();
            assert_eq!(verify(&frame, kind).len(), 333);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let (frame, start) = super_frame(Kind::Tcp, false, false, 900, 0x10);
        let gso = plain(Kind::Tcp, 300);
        let refused = |frame: &[u8], start, gso| open(frame, start, gso).is_err();
        assert!(!refused(&frame, start, gso));
        assert!(refused(&frame, start + 4, gso));
        assert!(refused(&frame, 60_000, gso));
        assert!(refused(&frame, start, Gso { size: 0, ..gso }));
        assert!(refused(&frame[..start + 32], start, gso));
        assert!(refused(&frame[..start + 5], start, gso));
        assert!(complete(&mut [0; 20], Checksum { start: 21, offset: 6 }).is_err());
        assert!(complete(&mut [0; 20], Checksum { start: 10, offset: 9 }).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_cut_or_not(
            mut frame in prop::collection::vec(any::<u8>(), 0..400), start in 0usize..120, size in 0usize..200,
            v6: bool, tcp: bool, tunnel in prop::option::of((0usize..80, 0usize..120, any::<bool>()))
        ) {
            let (good, _) = super_frame(if tcp { Kind::Tcp } else { Kind::Udp }, v6, false, 0, 0x10);
            let keep = frame.len().min(15);
            frame[..keep].copy_from_slice(&good[..keep]);
            let kind = if tcp { Kind::Tcp } else { Kind::Udp };
            let tunnel = tunnel.map(|(transport, network, checksum)| Tunnel {
                transport,
                network,
                checksum,
            });
            if let Ok(mut segments) = open(&frame, start, Gso { kind, size, tunnel }) {
                let longest = segments.longest();
                while let Some(range) = segments.next(&mut frame) {
                    prop_assert!(range.len() <= longest);
                }
            }
            let _ = complete(&mut frame, Checksum { start, offset: size });
        }
    }
}
