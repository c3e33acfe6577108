//! Making super-frames of what arrived: consecutive segments of a flow go to the TAP in one write, and through the
//! node, the pod's interface and its TCP as one packet.
//!
//! Only what the kernel's own GRO would merge is merged (net/ipv4/tcp_offload.c), and only with a checksum that was
//! verified here: the kernel is told to trust it. Frames of one flow keep their order; no frame waits for another
//! beyond the batch that it came in.

use slice_frame::{checksum::Sum, ethernet, ip};

use super::{
    inspect::{Kinds, Open, inspect},
    vnet::Meta,
};
use crate::proto::segment::Kind;

const PSH: u8 = 0x08;
/// Pieces of one super-frame: more would not fit 64 KiB at common MTUs.
pub const MAX_PIECES: usize = 64;
/// Bytes of a super-frame, below what an IPv4 packet can say of itself.
const MAX_BYTES: usize = 65_000;
/// How far back an open super-frame of the same flow is looked for. Flows beyond that are not merged as well.
const LOOK_BACK: usize = 32;

/// Where a frame is, or the payload of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: usize,
    pub end: usize,
    /// The next piece of the same super-frame.
    next: Option<u32>,
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    first: u32,
    last: u32,
    count: usize,
    bytes: usize,
    /// What may be merged into it; `None` when nothing may.
    open: Option<Open>,
    merged: Option<Open>,
    verified: bool,
    flow: Option<u64>,
}

/// A batch of frames on its way to the TAP. Kept for its memory.
#[derive(Default)]
pub struct Merger {
    pieces: Vec<Piece>,
    items: Vec<Item>,
}

impl Merger {
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.items.clear();
    }

    /// Adds the frame `bytes[start..end]`. `kinds` says what may be merged.
    pub fn push(&mut self, bytes: &[u8], (start, end): (usize, usize), kinds: Kinds) {
        let segment = if kinds == Kinds::None {
            None
        } else {
            inspect(&bytes[start..end], kinds)
        };
        let Some(segment) = segment else {
            self.add(
                Piece {
                    start,
                    end,
                    next: None,
                },
                None,
                false,
                None,
            );
            return;
        };
        let window = self.items.len().saturating_sub(LOOK_BACK);
        let same = self.items[window..]
            .iter_mut()
            .rev()
            .find(|item| item.flow == Some(segment.flow));
        if let Some(item) = same {
            if let (Some(open), Some(new)) = (&mut item.open, segment.open) {
                let first = self.pieces[item.first as usize];
                let head = &bytes[first.start..first.start + open.headers];
                let payload = end - start - new.headers;
                let fits = item.count < MAX_PIECES && item.bytes + payload <= MAX_BYTES;
                if fits && payload <= open.size && open.continues(&new, head, &bytes[start..end]) {
                    open.sequence = new.sequence.wrapping_add(payload as u32);
                    open.identification = new.identification;
                    item.merged = Some(*open);
                    if payload < open.size || segment.push {
                        item.open = None;
                    }
                    let place = self.pieces.len() as u32;
                    self.pieces.push(Piece {
                        start: start + new.headers,
                        end,
                        next: None,
                    });
                    self.pieces[item.last as usize].next = Some(place);
                    (item.last, item.count, item.bytes) = (place, item.count + 1, item.bytes + payload);
                    return;
                }
            }
            item.open = None;
        }
        let open = segment.open.filter(|_| !segment.push).map(|open| {
            let payload = end - start - open.headers;
            Open {
                sequence: open.sequence.wrapping_add(payload as u32),
                ..open
            }
        });
        self.add(
            Piece {
                start,
                end,
                next: None,
            },
            open,
            segment.verified,
            Some(segment.flow),
        );
    }

    fn add(&mut self, piece: Piece, open: Option<Open>, verified: bool, flow: Option<u64>) {
        let place = self.pieces.len() as u32;
        self.pieces.push(piece);
        let bytes = piece.end - piece.start;
        self.items.push(Item {
            first: place,
            last: place,
            count: 1,
            bytes,
            open,
            merged: None,
            verified,
            flow,
        });
    }

    /// The writes, in order.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// How many frames a write holds.
    pub fn count(&self, item: usize) -> usize {
        self.items[item].count
    }

    /// The pieces of a write.
    pub fn pieces(&self, item: usize) -> impl Iterator<Item = Piece> + '_ {
        std::iter::successors(
            self.pieces.get(self.items[item].first as usize).copied(),
            |piece| self.pieces.get(piece.next? as usize).copied(),
        )
    }

    /// Makes the headers of a write say what it is, and returns what its `virtio_net_hdr` must say.
    pub fn finish(&self, item: usize, bytes: &mut [u8]) -> Meta {
        let item = &self.items[item];
        let Some(open) = item.merged else {
            return if item.verified {
                Meta::Verified
            } else {
                Meta::Plain
            };
        };
        let (first, last) = (self.pieces[item.first as usize], self.pieces[item.last as usize]);
        let last_flags = last.start.wrapping_sub(open.headers) + open.transport + 13;
        let push = if open.kind == Kind::Tcp {
            bytes[last_flags] & PSH
        } else {
            0
        };
        let head = &mut bytes[first.start..first.start + open.headers];
        let length = |from: usize| u16::try_from(item.bytes - from).expect("bounded by MAX_BYTES");
        let transport_length = length(open.transport);
        let network = &mut head[ethernet::HEADER..];
        let addresses = if open.v6 {
            let payload = length(ethernet::HEADER + ip::V6_HEADER);
            network[4..6].copy_from_slice(&payload.to_be_bytes());
            Sum::default().with(&network[8..40])
        } else {
            network[2..4].copy_from_slice(&length(ethernet::HEADER).to_be_bytes());
            network[10..12].fill(0);
            let sum = Sum::default().with(&network[..ip::V4_HEADER]).finish();
            network[10..12].copy_from_slice(&sum);
            Sum::default().with(&network[12..20])
        };
        let transport = &mut head[open.transport..];
        let (protocol, checksum_offset) = match open.kind {
            Kind::Tcp => {
                transport[13] |= push;
                (ip::TCP, 16)
            }
            Kind::Udp => {
                transport[4..6].copy_from_slice(&transport_length.to_be_bytes());
                (ip::UDP, 6)
            }
        };
        // The kernel fills in the rest where it must (include/linux/skbuff.h: CHECKSUM_PARTIAL).
        let partial = addresses
            .with_u16(protocol.into())
            .with_u16(transport_length)
            .partial();
        transport[checksum_offset..checksum_offset + 2].copy_from_slice(&partial);
        Meta::Super {
            kind: open.kind,
            v6: open.v6,
            size: open.size as u16,
            transport: open.transport as u16,
            headers: open.headers as u16,
            checksum_offset: checksum_offset as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::segment::{
        Checksum,
        tests::{open, plain, super_frame},
    };

    const ACK: u8 = 0x10;

    /// Frames of one flow, cut from a super-frame; `port` tells flows apart.
    fn flow(kind: Kind, v6: bool, payload: usize, size: usize, port: u8, flags: u8) -> Vec<Vec<u8>> {
        let (mut frame, start) = super_frame(kind, v6, false, payload, flags);
        frame[start + 1] = port;
        let mut segments = open(&frame, start, plain(kind, size)).unwrap();
        let mut all = Vec::new();
        while let Some(range) = segments.next(&mut frame) {
            all.push(frame[range].to_vec());
        }
        all
    }

    /// Merges frames; each write with what its header says.
    fn merge(frames: &[Vec<u8>], kinds: Kinds) -> Vec<(Meta, Vec<u8>, usize)> {
        let mut bytes = frames.concat();
        let (mut merger, mut at) = (Merger::default(), 0);
        for frame in frames {
            merger.push(&bytes, (at, at + frame.len()), kinds);
            at += frame.len();
        }
        let write = |item: usize, bytes: &mut Vec<u8>| {
            let meta = merger.finish(item, bytes);
            let joined = merger
                .pieces(item)
                .flat_map(|piece| bytes[piece.start..piece.end].to_vec())
                .collect();
            (meta, joined, merger.count(item))
        };
        (0..merger.items()).map(|item| write(item, &mut bytes)).collect()
    }

    /// What the kernel makes of a write: frames again.
    fn cut((meta, mut frame, _): (Meta, Vec<u8>, usize)) -> Vec<Vec<u8>> {
        let Meta::Super {
            kind,
            size,
            transport,
            checksum_offset,
            ..
        } = meta
        else {
            return vec![frame];
        };
        let checksum = Checksum {
            start: transport.into(),
            offset: checksum_offset.into(),
        };
        // The sum that was left in the super-frame must complete to a right one.
        let mut whole = frame.clone();
        crate::proto::segment::complete(&mut whole, checksum).unwrap();
        crate::proto::segment::tests::verify(&whole, kind);
        let mut segments = open(&frame, transport.into(), plain(kind, size.into())).unwrap();
        let mut all = Vec::new();
        while let Some(range) = segments.next(&mut frame) {
            all.push(frame[range].to_vec());
        }
        all
    }

    /// How many frames each write holds.
    #[track_caller]
    fn check(frames: &[Vec<u8>], counts: &[usize]) {
        let writes = merge(frames, Kinds::TcpAndUdp);
        assert_eq!(
            writes.iter().map(|(_, _, count)| *count).collect::<Vec<_>>(),
            counts
        );
        let frames_again: Vec<_> = writes.into_iter().flat_map(cut).collect();
        let mut sorted = [frames.to_vec(), frames_again];
        sorted.iter_mut().for_each(|frames| frames.sort());
        assert_eq!(sorted[0], sorted[1]);
    }

    #[test]
    fn segments_of_a_flow_become_one() {
        for kind in [Kind::Tcp, Kind::Udp] {
            for v6 in [false, true] {
                check(&flow(kind, v6, 5000, 1000, 1, ACK), &[5]);
                check(&flow(kind, v6, 5001, 1000, 1, ACK), &[6]);
            }
        }
    }

    #[test]
    fn a_super_frame_is_bounded() {
        check(&flow(Kind::Tcp, false, 6500, 100, 1, ACK), &[64, 1]);
        check(&flow(Kind::Tcp, false, 48 * 1318, 1318, 1, ACK), &[48]);
        let mut two = flow(Kind::Tcp, false, 48 * 1318, 1318, 1, ACK);
        two.extend(flow(Kind::Tcp, false, 1000, 1000, 2, ACK));
        check(&two, &[48, 1]);
    }

    #[test]
    fn flows_are_merged_side_by_side() {
        let (a, b) = (
            flow(Kind::Tcp, false, 3000, 1000, 1, ACK),
            flow(Kind::Tcp, false, 3000, 1000, 2, ACK),
        );
        let mixed: Vec<_> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
        check(&mixed, &[3, 3]);
    }

    #[test]
    fn what_must_arrive_soon_ends_a_super_frame() {
        let mut frames = flow(Kind::Tcp, false, 3000, 1000, 1, ACK | PSH);
        frames.extend(flow(Kind::Tcp, false, 1000, 1000, 1, ACK));
        check(&frames, &[3, 1]);
    }

    #[test]
    fn only_plain_segments_are_merged() {
        for flags in [ACK | 0x01, ACK | 0x02, ACK | 0x04, ACK | 0x20, ACK | 0x40, 0] {
            let frames = flow(Kind::Tcp, false, 1000, 1000, 1, flags);
            check(&[frames[0].clone(), frames[0].clone()], &[1, 1]);
        }
    }

    #[test]
    fn a_gap_or_a_change_ends_a_super_frame() {
        let frames = flow(Kind::Tcp, false, 4000, 1000, 1, ACK);
        check(
            &[frames[0].clone(), frames[2].clone(), frames[3].clone()],
            &[1, 2],
        );
        let change = |at: usize| {
            let mut changed = frames[1].clone();
            changed[at] ^= 1;
            crate::proto::segment::tests::remake(&mut changed);
            check(&[frames[0].clone(), changed, frames[2].clone()], &[1, 1, 1]);
        };
        // Source MAC, time to live, acknowledgement, window, an option.
        for at in [11, 22, 45, 49, 64] {
            change(at);
        }
    }

    #[test]
    fn a_wrong_checksum_is_not_hidden() {
        let mut frames = flow(Kind::Tcp, false, 3000, 1000, 1, ACK);
        *frames[1].last_mut().unwrap() ^= 1;
        let writes = merge(&frames, Kinds::TcpAndUdp);
        assert_eq!(
            writes.iter().map(|write| write.0).collect::<Vec<_>>(),
            [Meta::Verified, Meta::Plain, Meta::Verified]
        );
        assert_eq!(writes[1].1, frames[1]);
    }

    #[test]
    fn a_wrong_header_checksum_is_not_hidden() {
        let mut frames = flow(Kind::Tcp, false, 3000, 1000, 1, ACK);
        frames[1][24] ^= 1;
        let writes = merge(&frames, Kinds::TcpAndUdp);
        assert_eq!(writes[1], (Meta::Plain, frames[1].clone(), 1));
    }

    #[test]
    fn what_the_device_does_not_take_is_not_merged() {
        let frames = flow(Kind::Udp, false, 3000, 1000, 1, 0);
        let metas: Vec<_> = merge(&frames, Kinds::Tcp).iter().map(|write| write.0).collect();
        assert_eq!(metas, [Meta::Verified; 3]);
        let metas: Vec<_> = merge(&frames, Kinds::None).iter().map(|write| write.0).collect();
        assert_eq!(metas, [Meta::Plain; 3]);
    }

    #[test]
    fn other_frames_pass_as_they_are() {
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        check(&[arp.clone(), vec![1; 10], arp], &[1, 1, 1]);
    }

    proptest! {
        /// Whatever is lost, doubled and reordered on the way: every flow comes out as it went in.
        #[test]
        fn merging_changes_no_flow(
            picks in prop::collection::vec((0u8..4, 0usize..12), 0..60), sizes in prop::array::uniform4(1usize..1400)
        ) {
            let flows: Vec<_> = (0..4u8).map(|n| {
                let kind = if n % 2 == 0 { Kind::Tcp } else { Kind::Udp };
                let size = sizes[usize::from(n)];
                flow(kind, n >= 2, (size * 12).min(60_000), size, n, ACK | PSH)
            }).collect();
            let frames: Vec<_> =
                picks.iter().filter_map(|(n, at)| flows[usize::from(*n)].get(*at).cloned()).collect();
            let merged: Vec<_> = merge(&frames, Kinds::TcpAndUdp).into_iter().flat_map(cut).collect();
            for n in 0..4u8 {
                let of = |frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    let at = if n >= 2 { 54 } else { 34 };
                    frames.iter().filter(|frame| (frame[12] == 8) == (n < 2) && frame[at + 1] == n).cloned().collect()
                };
                prop_assert_eq!(of(&frames).len(), of(&merged).len());
                for (mut before, mut after) in of(&frames).into_iter().zip(of(&merged)) {
                    if n < 2 {
                        // A kernel that cuts counts identifications up, and they mean nothing here: DF is set.
                        for frame in [&mut before, &mut after] {
                            frame[18..20].fill(0);
                            frame[24..26].fill(0);
                        }
                    }
                    prop_assert_eq!(before, after);
                }
            }
        }

        #[test]
        fn any_bytes_can_be_merged(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..8)) {
            let good = flow(Kind::Tcp, false, 10, 10, 1, ACK);
            let frames: Vec<_> = frames.into_iter().map(|mut frame| {
                let keep = frame.len().min(38);
                frame[..keep].copy_from_slice(&good[0][..keep]);
                frame
            }).collect();
            prop_assert_eq!(merge(&frames, Kinds::TcpAndUdp).len(), frames.len());
        }
    }
}
