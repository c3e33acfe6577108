//! What must hold for any bytes, one function per parser. A panic is a finding.

use std::net::Ipv4Addr;

use slice_frame::{
    Content, Frame, Mac,
    checksum::Sum,
    ethernet::{self, Header},
    ip::TCP,
};
use slice_gateway::{
    io::{
        inspect::Kinds,
        merge::Merger,
        vnet::{self, Meta},
    },
    proto::{
        Config, Offload,
        admit::{FRAME_OVERHEAD, Outbound, Owner, Segment},
        config::subnets,
        ecn,
        ip::{self, UDP},
        lane::Lane,
        probe::{self, Message},
        route::Table,
        segment::{self, Gso, Segments},
        vxlan::{self, Inner},
    },
};
use slice_runtime::handover::{self, Frames, Range};

const MTU: usize = 1370;

/// Own 0+64; cluster 0 has 64+64, cluster 1 has 128+64.
fn rules(frames: Frames) -> Segment {
    let mut owners = Table::default();
    for (start, owner) in [(0, Owner::Own), (64, Owner::Peer(0)), (128, Owner::Peer(1))] {
        owners.insert(Range { start, size: 64 }, owner).expect("aligned");
    }
    let networks = ["10.80.0.0/16", "fd42:80::/64"].map(|net| net.parse().expect("a network"));
    Segment {
        largest: MTU,
        subnets: subnets(&networks),
        frames,
        owners,
    }
}

/// A frame from the slice, and the same bytes out of a tunnel. The first byte says what the slice carries.
pub(crate) fn frame(bytes: &[u8]) {
    let Some((options, bytes)) = bytes.split_first() else {
        return;
    };
    let rules = rules(Frames {
        non_ip: options & 1 != 0,
        tagged: options & 2 != 0,
        routers: options & 4 != 0,
    });
    let inbound = [0, 1].map(|cluster| rules.inbound(bytes, cluster));
    let Ok(frame) = Frame::read(bytes) else {
        assert!(
            inbound.iter().all(Result::is_err),
            "nobody forwards what cannot be read"
        );
        return;
    };
    let source = frame.source.index();
    let outbound = rules.outbound(bytes, &frame);
    if outbound.is_ok() {
        assert!(source.is_some_and(|index| index < 64), "only own sources leave");
        assert!(inbound.iter().all(Result::is_err), "nothing crosses twice");
    }
    match outbound {
        Ok(Outbound::Unicast(cluster)) => {
            let to = frame.destination.index().expect("unicast goes to an attachment");
            assert_eq!(to / 64, u32::from(cluster) + 1);
        }
        Ok(Outbound::Arp(_, mac) | Outbound::Nd(_, mac)) => {
            let index = mac.index().expect("an attachment's MAC");
            assert!(
                (64..192).contains(&index),
                "only for addresses elsewhere is answered here"
            );
        }
        Ok(Outbound::Group) => assert!(frame.destination.is_group()),
        Err(_) => {}
    }
    if matches!(outbound, Ok(Outbound::Unicast(_) | Outbound::Group)) {
        carried(&rules, &frame);
    }
    for (cluster, result) in (0..).zip(inbound) {
        if result.is_ok() {
            assert!(bytes.len() <= MTU + FRAME_OVERHEAD);
            assert_eq!(
                source.map(|index| index / 64),
                Some(cluster + 1),
                "a cluster speaks for itself"
            );
            let own = frame.destination.index().is_some_and(|index| index < 64);
            assert!(
                own || frame.destination.is_group(),
                "what came over the WAN stays"
            );
            carried(&rules, &frame);
        }
    }
    for outer in 0..4 {
        let mut marked = bytes.to_vec();
        let _ = ecn::decapsulate(&mut marked, &frame, outer);
        let differs = |from: usize, to: usize| marked.get(from..to) != bytes.get(from..to);
        // Only the code point and the IPv4 checksum may change.
        let network = frame.network;
        assert!(
            !differs(0, network) && !differs(network + 12, bytes.len()),
            "a mark changed the frame"
        );
    }
}

/// What holds for every frame that crosses between clusters.
fn carried(rules: &Segment, frame: &Frame) {
    assert!(!frame.tagged || rules.frames.tagged);
    assert!(frame.content != Content::Other || rules.frames.non_ip);
    if frame.vlan().is_none() {
        let routes = rules.frames.routers && frame.is_from_router();
        assert!(routes || !frame.is_neighbour_discovery() && !frame.is_from_router());
        let index = frame.source.index().expect("an attachment's");
        assert!(
            frame.is_from(index, &rules.subnets),
            "an address of somebody else"
        );
    }
}

/// A packet that came out of a tunnel.
pub(crate) fn packet(bytes: &[u8]) {
    let (peer, own) = (Ipv4Addr::new(198, 18, 1, 1), Ipv4Addr::new(198, 18, 2, 1));
    match vxlan::parse(bytes, peer, own, 7) {
        Ok(Inner::Frame(frame)) => {
            assert_eq!(
                frame.as_ptr(),
                bytes[vxlan::HEADER..].as_ptr(),
                "where the caller looks for it"
            );
            assert!(frame.len() + vxlan::HEADER <= bytes.len());
            assert_eq!(
                (&bytes[12..16], &bytes[16..20]),
                (&peer.octets()[..], &own.octets()[..])
            );
        }
        Ok(Inner::Icmp(icmp)) => {
            if let Message::Request { .. } = probe::parse(icmp) {
                let mut answer = [0; ip::V4_HEADER + probe::MAX_ECHO];
                let length = probe::reply(own, peer, icmp, &mut answer);
                assert!(length <= bytes.len(), "an answer is not longer than its question");
                let parsed = ip::V4::parse(&answer[..length]).expect("a packet");
                assert_eq!((parsed.source, parsed.destination), (own, peer));
                assert!(matches!(probe::parse(parsed.payload), Message::Reply { .. }));
            }
        }
        Err(_) => {}
    }
    let _ = (ip::V4::parse(bytes), probe::parse(bytes));
}

/// What the TAP hands over: a `virtio_net_hdr` and a frame. The header's bytes that only a tunnel has are there where it
/// says that there is one.
pub(crate) fn superframe(bytes: &[u8]) {
    let tunnel = bytes.get(1).is_some_and(|kind| kind & 0x60 != 0);
    let length = if tunnel { vnet::HEADER } else { 10 };
    let Some((head, frame)) = bytes.split_at_checked(length) else {
        return;
    };
    let mut header = [0; vnet::HEADER];
    header[..length].copy_from_slice(head);
    let Ok(offload) = vnet::parse(&header) else { return };
    let mut frame = frame.to_vec();
    let original = frame.clone();
    match offload {
        Offload {
            gso: Some(gso),
            checksum: Some(checksum),
        } => {
            let segments =
                Frame::read(&frame[..]).map(|read| Segments::new(&frame, &read, checksum.start, gso));
            let Ok(Ok(mut segments)) = segments else {
                return;
            };
            let (longest, mut all) = (segments.longest(), Vec::new());
            while let Some(range) = segments.next(&mut frame) {
                assert!(range.len() <= longest);
                all.push(frame[range].to_vec());
                assert!(all.len() <= original.len(), "cutting makes no bytes");
            }
            if let [one] = all.as_slice() {
                assert_eq!(one.len(), original.len());
                return;
            }
            let headers = longest - gso.size;
            let payload: Vec<u8> = all
                .iter()
                .flat_map(|segment| segment[headers..].to_vec())
                .collect();
            assert_eq!(
                payload,
                original[headers..],
                "every byte of payload is in one segment"
            );
        }
        Offload {
            checksum: Some(checksum),
            gso: None,
        } => {
            if segment::complete(&mut frame, checksum).is_ok() {
                let at = checksum.start + checksum.offset;
                assert_eq!(frame[..at], original[..at]);
                assert_eq!(frame[at + 2..], original[at + 2..]);
            }
        }
        Offload { checksum: None, .. } => {}
    }
}

/// Frames that arrived, each with its length before it, on their way to the TAP. Some are segments of one flow, made
/// from the bytes.
pub(crate) fn merge(mut bytes: &[u8]) {
    let (mut frames, mut sequence) = (Vec::new(), 0u32);
    while let Some(([kind, length], rest)) = bytes.split_first_chunk::<2>() {
        let payload = &rest[..rest.len().min(usize::from(*length))];
        bytes = &rest[payload.len()..];
        let mut frame = match kind % 4 {
            0 => payload.to_vec(),
            flow => segment_of(flow, sequence, payload),
        };
        if kind & 0x80 == 0 {
            sequence = sequence.wrapping_add(payload.len() as u32);
        }
        if kind & 0x40 != 0
            && let Some(byte) = frame.get_mut(usize::from(*length) / 2)
        {
            *byte ^= 1;
        }
        frames.push(frame);
    }
    for kinds in [Kinds::None, Kinds::Tcp, Kinds::TcpAndUdp] {
        let mut buffer = frames.concat();
        let (mut merger, mut at) = (Merger::default(), 0);
        for frame in &frames {
            merger.push(&buffer, (at, at + frame.len()), kinds);
            at += frame.len();
        }
        let (mut count, mut out) = (0, Vec::new());
        for item in 0..merger.items() {
            let meta = merger.finish(item, &mut buffer);
            let joined: Vec<u8> = merger
                .pieces(item)
                .flat_map(|piece| buffer[piece.start..piece.end].to_vec())
                .collect();
            count += merger.count(item);
            out.extend(cut(meta, joined));
        }
        assert_eq!(count, frames.len(), "every frame is in one write");
        let mut sorted = [frames.clone(), out];
        for frames in &mut sorted {
            frames.iter_mut().for_each(|frame| forget_identification(frame));
            frames.sort();
        }
        assert!(
            sorted[0] == sorted[1],
            "what the kernel makes of the writes is what arrived"
        );
    }
}

/// Where fragmentation is forbidden identifications mean nothing (RFC 6864 §4.1), and those that stood still count up
/// after joining and cutting. Whether the header's checksum is right must stay as it was.
fn forget_identification(frame: &mut [u8]) {
    if frame.len() >= 34 && frame[12..15] == [8, 0, 0x45] && frame[20] & 0x40 != 0 {
        let right = Sum::default().with(&frame[14..34]).finish() == [0, 0];
        frame[18..20].fill(0);
        frame[24..26].copy_from_slice(&[u8::from(right), 0]);
    }
}

/// A segment of TCP (1, 2) or UDP (3) over IPv4 with right checksums.
fn segment_of(flow: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let tcp = flow < 3;
    let transport = if tcp { 20 } else { 8 };
    let mut frame = vec![0; 34 + transport];
    Header {
        destination: Mac::of_index(5),
        source: Mac::of_index(70),
        ethertype: ethernet::IPV4,
    }
    .write(&mut frame);
    frame.extend_from_slice(payload);
    let total = (frame.len() - 14) as u16;
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[20] = 0x40;
    frame[23] = if tcp { TCP } else { UDP };
    frame[26..34].copy_from_slice(&[10, 80, 0, 70, 10, 80, 0, 5]);
    frame[35] = flow;
    if tcp {
        frame[38..42].copy_from_slice(&sequence.to_be_bytes());
        frame[46] = 0x50;
        frame[47] = 0x10;
    } else {
        frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    }
    let checksum = Sum::default().with(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&checksum);
    let pseudo = Sum::default()
        .with(&frame[26..34])
        .with_u16(frame[23].into())
        .with_u16(total - 20);
    let checksum = match pseudo.with(&frame[34..]).finish() {
        [0, 0] if !tcp => [0xff, 0xff],
        checksum => checksum,
    };
    let at = 34 + if tcp { 16 } else { 6 };
    frame[at..at + 2].copy_from_slice(&checksum);
    frame
}

/// What the kernel makes of a write: frames again.
fn cut(meta: Meta, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    let Meta::Super {
        kind,
        size,
        transport,
        ..
    } = meta
    else {
        return vec![frame];
    };
    let size = usize::from(size);
    let read = Frame::read(&frame[..]).expect("what was joined can be read");
    let gso = Gso {
        kind,
        size,
        tunnel: None,
    };
    let mut segments =
        Segments::new(&frame, &read, transport.into(), gso).expect("what was joined can be cut");
    let mut all = Vec::new();
    while let Some(range) = segments.next(&mut frame) {
        all.push(frame[range].to_vec());
    }
    all
}

/// A configuration, as the agent might send it.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(received) = serde_json::from_slice::<handover::Config>(bytes) else {
        return;
    };
    let Ok((config, problems)) = Config::new(&received) else {
        return;
    };
    let offered: usize = received.peers.iter().map(|peer| peer.gateways.len()).sum();
    assert!(config.gateways.len() <= offered);
    assert!(
        config.gateways.len() == offered || !problems.is_empty(),
        "what is left out is named"
    );
    for gateway in &config.gateways {
        assert!(usize::from(gateway.cluster) < config.clusters.len());
    }
    let gateways = config.gateways.iter();
    let mut keys: Vec<_> = gateways
        .flat_map(|gateway| &gateway.public_keys)
        .copied()
        .collect();
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count, "one tunnel for each key");
    let now = std::time::Instant::now();
    let key = slice_gateway::proto::Key::from_random([1; 32].into());
    slice_gateway::proto::Gateway::new(Lane::ONLY, key, 1, now).reconfigure(now, config);
}

/// Bytes on the hand-over socket.
pub(crate) fn handover(bytes: &[u8]) {
    let (mut writer, reader) = std::os::unix::net::UnixStream::pair().expect("sockets");
    // What does not fit the socket's buffer would wait for a reader.
    let length = bytes.len().min(32 << 10);
    std::io::Write::write_all(&mut writer, &bytes[..length]).expect("write");
    drop(writer);
    while let Ok((_, fds)) = handover::receive::<handover::ToGateway>(&reader) {
        assert!(fds.is_empty());
    }
}
