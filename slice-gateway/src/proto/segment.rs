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

use std::ops::Range;

use slice_frame::{
    Content, Frame,
    checksum::Sum,
    ip::{self, Fragment},
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
/// Ethernet with a tag, IPv4 or IPv6 with some options, TCP with all options.
const MAX_HEADERS: usize = 192;

/// In UDP a sum of zero would mean that there is none (RFC 768).
const fn nonzero(sum: [u8; 2], udp: bool) -> [u8; 2] {
    if udp && sum[0] == 0 && sum[1] == 0 {
        [0xff, 0xff]
    } else {
        sum
    }
}

/// A super-frame that is being cut.
pub struct Segments {
    headers: [u8; MAX_HEADERS],
    /// Bytes of `headers` that are used.
    length: usize,
    network: usize,
    transport: usize,
    kind: Kind,
    v6: bool,
    size: usize,
    /// Bytes of the super-frame.
    total: usize,
    /// Payload bytes that have been cut off.
    done: usize,
    /// Over the addresses and the protocol.
    pseudo: Sum,
}

impl Segments {
    /// Takes a super-frame, which is `read` and whose transport header starts at `transport`.
    pub fn new(frame: &[u8], read: &Frame, transport: usize, gso: Gso) -> Result<Self, Reason> {
        Self::parse(frame, read, transport, gso).ok_or(Reason::BadOffload)
    }

    fn parse(frame: &[u8], read: &Frame, transport: usize, Gso { kind, size }: Gso) -> Option<Self> {
        let network = read.network;
        let packet = read.packet()?;
        let v6 = read.content == Content::V6;
        let whole = packet.protocol == kind.protocol()
            && packet.fragment == Fragment::Whole
            && packet.transport == transport
            && packet.end == frame.len();
        if !whole {
            return None;
        }
        let addresses = if v6 { 8..40 } else { 12..20 };
        let addresses = frame.get(network + addresses.start..network + addresses.end)?;
        let length = match kind {
            Kind::Tcp => {
                transport
                    + Some(usize::from(frame.get(transport + 12)? >> 4) * 4).filter(|n| *n >= TCP_HEADER)?
            }
            Kind::Udp => transport + UDP_HEADER,
        };
        if size == 0 || length > MAX_HEADERS || length >= frame.len() {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers[..length].copy_from_slice(&frame[..length]);
        let checksum = transport
            + if kind == Kind::Tcp {
                TCP_CHECKSUM
            } else {
                UDP_CHECKSUM
            };
        headers[checksum..checksum + 2].fill(0);
        if !v6 {
            headers[network + 10..network + 12].fill(0);
        }
        let pseudo = Sum::default().with(addresses).with_u16(kind.protocol().into());
        let total = frame.len();
        Some(Self {
            headers,
            length,
            network,
            transport,
            kind,
            v6,
            size,
            total,
            done: 0,
            pseudo,
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

        let length = |from: usize| u16::try_from(end - start - from).expect("shorter than a super-frame");
        let network_length = length(self.network);
        let transport_length = length(self.transport);
        let network = &mut segment[self.network..];
        if self.v6 {
            network[4..6].copy_from_slice(&(network_length - ip::V6_HEADER as u16).to_be_bytes());
        } else {
            network[2..4].copy_from_slice(&network_length.to_be_bytes());
            let count = (self.done / self.size) as u16;
            let identification = u16::from_be_bytes([network[4], network[5]]).wrapping_add(count);
            network[4..6].copy_from_slice(&identification.to_be_bytes());
            let sum = Sum::default()
                .with(&network[..self.transport - self.network])
                .finish();
            network[10..12].copy_from_slice(&sum);
        }
        let transport = &mut segment[self.transport..];
        let checksum = match self.kind {
            Kind::Tcp => {
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let sequence = sequence.wrapping_add(self.done as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                // What concerns the end belongs to the last, what concerns the beginning to the first (RFC 3168 §6.1.2).
                let gone = if last { 0 } else { FIN | PSH } | if first { 0 } else { CWR };
                transport[TCP_FLAGS] &= !gone;
                TCP_CHECKSUM
            }
            Kind::Udp => {
                transport[4..6].copy_from_slice(&transport_length.to_be_bytes());
                UDP_CHECKSUM
            }
        };
        let sum = self.pseudo.with_u16(transport_length).with(transport).finish();
        transport[checksum..checksum + 2].copy_from_slice(&nonzero(sum, self.kind == Kind::Udp));
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

    /// Whether both checksums are right, and the payload.
    pub(crate) fn verify(frame: &[u8], kind: Kind) -> &[u8] {
        let read = Frame::read(frame).unwrap();
        let packet = read.packet().unwrap();
        let header = &frame[read.network..packet.transport];
        let transport = &frame[packet.transport..packet.end];
        let addresses = match read.content {
            Content::V4 => {
                assert_eq!(Sum::default().with(header).finish(), [0, 0], "IPv4 checksum");
                &header[12..20]
            }
            _ => &header[8..40],
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
                    let segments = cut(&frame, start, Gso { kind, size });
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
    fn sequence_and_identification_count_up_and_wrap() {
        let (frame, start) = super_frame(Kind::Tcp, false, false, 900, 0x10);
        let segments = cut(
            &frame,
            start,
            Gso {
                kind: Kind::Tcp,
                size: 300,
            },
        );
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
        let segments = cut(
            &frame,
            start,
            Gso {
                kind: Kind::Tcp,
                size: 300,
            },
        );
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
        let gso = Gso {
            kind: Kind::Tcp,
            size: 300,
        };
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
            v6: bool, tcp: bool
        ) {
            let (good, _) = super_frame(if tcp { Kind::Tcp } else { Kind::Udp }, v6, false, 0, 0x10);
            let keep = frame.len().min(15);
            frame[..keep].copy_from_slice(&good[..keep]);
            let kind = if tcp { Kind::Tcp } else { Kind::Udp };
            if let Ok(mut segments) = open(&frame, start, Gso { kind, size }) {
                let longest = segments.longest();
                while let Some(range) = segments.next(&mut frame) {
                    prop_assert!(range.len() <= longest);
                }
            }
            let _ = complete(&mut frame, Checksum { start, offset: size });
        }
    }
}
