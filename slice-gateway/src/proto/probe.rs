//! Liveness in band: an ICMP echo (RFC 792) between the two VTEPs, inside the tunnel.
//!
//! Any Linux host answers it, so a stock peer is probed as well as one of ours. The payload is ours: it tells a peer
//! that runs this code whether we receive it, as the state field of BFD does (RFC 5880 §6.8.1), so that both ends of a
//! path that works one way only learn of it; and whether we want frames, as its AdminDown does, so that a planned
//! stop moves them elsewhere first; and how soon the next probe comes ([`super::liveness`]).
//!
//! ```text
//!  ICMP: type 8, code 0, checksum, identifier, sequence │ "weft" │ version 1 │ flags │ 0 0
//!                                                                             bit 0: I receive you
//!                                                                             bit 1: send your frames elsewhere
//!                                                                             bit 2: I answer padded ones
//!                                                                             bit 3: I follow bits 4 and 5
//!                                                                             bit 4: the next comes in two seconds
//!                                                                             bit 5: probe me fast, I send frames
//! ```
//!
//! A probe that is padded with zeros to the length of a large frame finds out whether the path carries that
//! ([`super::path_mtu`]); the answer to it is short, or it would say something about the path back.

use std::net::Ipv4Addr;

use slice_frame::checksum::Sum;

use super::ip;

/// Bytes of an ICMP echo header.
const ICMP_HEADER: usize = 8;
/// Bytes of our payload.
const PAYLOAD: usize = 8;
/// Bytes of a probe without padding, with its IPv4 header.
pub const PROBE: usize = ip::V4_HEADER + ICMP_HEADER + PAYLOAD;
/// Echo requests up to this many bytes of ICMP are answered.
pub const MAX_ECHO: usize = 128;

const MAGIC: [u8; 5] = *b"weft\x01";
const RECEIVES: u8 = 1;
const AWAY: u8 = 2;
const ANSWERS_PADDED: u8 = 4;
const PACED: u8 = 8;
const SLOW: u8 = 16;
const IN_USE: u8 = 32;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;

/// What a gateway of our kind says of itself in a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// It receives what is sent to it.
    pub receives: bool,
    /// It wants no frames: it cannot deliver them, or is about to stop. It still carries what it gets.
    pub away: bool,
    /// It sends frames on this path, and wants to be probed fast.
    pub in_use: bool,
    /// Its next probe may take two seconds.
    pub slow: bool,
    /// It judges by what `slow` says, and does as `in_use` asks: not so in the release before.
    pub paced: bool,
}

impl Report {
    fn read(flags: u8) -> Self {
        Self {
            receives: flags & RECEIVES != 0,
            away: flags & AWAY != 0,
            in_use: flags & IN_USE != 0,
            slow: flags & SLOW != 0,
            paced: flags & PACED != 0,
        }
    }

    fn flags(self) -> u8 {
        let flags = [
            (self.receives, RECEIVES),
            (self.away, AWAY),
            (self.in_use, IN_USE),
            (self.slow, SLOW),
            (self.paced, PACED),
        ];
        flags.into_iter().map(|(set, flag)| u8::from(set) * flag).sum()
    }
}

/// An ICMP message out of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To be answered. The report is there where a peer of our kind asks.
    Request {
        identifier: u16,
        sequence: u16,
        report: Option<Report>,
        /// It answers requests of any length.
        answers_padded: bool,
    },
    /// The answer to our own request.
    Reply { identifier: u16, sequence: u16 },
    /// Neither: an error message, for instance.
    Other,
}

/// Reads an ICMP message. The checksum is not looked at: the packet has just been authenticated.
pub fn parse(icmp: &[u8]) -> Message {
    let Some(([kind, 0, _, _, i0, i1, s0, s1], payload)) = icmp.split_first_chunk::<ICMP_HEADER>() else {
        return Message::Other;
    };
    let (identifier, sequence) = (u16::from_be_bytes([*i0, *i1]), u16::from_be_bytes([*s0, *s1]));
    match *kind {
        REQUEST => {
            let ours = payload
                .first_chunk::<PAYLOAD>()
                .filter(|payload| payload.starts_with(&MAGIC));
            if ours.is_none() && icmp.len() > MAX_ECHO {
                return Message::Other;
            }
            Message::Request {
                identifier,
                sequence,
                report: ours.map(|payload| Report::read(payload[5])),
                answers_padded: ours.is_some_and(|payload| payload[5] & ANSWERS_PADDED != 0),
            }
        }
        REPLY => Message::Reply { identifier, sequence },
        _ => Message::Other,
    }
}

/// Writes a probe as long as `out`, which is [`PROBE`] bytes at least.
pub fn request(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    identifier: u16,
    sequence: u16,
    report: Report,
    out: &mut [u8],
) {
    let icmp = &mut out[ip::V4_HEADER..];
    icmp.fill(0);
    icmp[0] = REQUEST;
    icmp[4..6].copy_from_slice(&identifier.to_be_bytes());
    icmp[6..8].copy_from_slice(&sequence.to_be_bytes());
    icmp[8..13].copy_from_slice(&MAGIC);
    icmp[13] = report.flags() | ANSWERS_PADDED;
    let checksum = Sum::default().with(icmp).finish();
    icmp[2..4].copy_from_slice(&checksum);
    let payload = out.len() - ip::V4_HEADER;
    write_header(source, destination, payload, out);
}

/// Writes the answer to a request and returns its length; of a request that is longer than [`MAX_ECHO`] only the
/// beginning comes back.
///
/// # Panics
/// Where `icmp` is not a [`Message::Request`].
pub fn reply(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    icmp: &[u8],
    out: &mut [u8; ip::V4_HEADER + MAX_ECHO],
) -> usize {
    let icmp = match icmp.get(..MAX_ECHO + 1) {
        Some(padded) => &padded[..ICMP_HEADER + PAYLOAD],
        None => icmp,
    };
    let length = ip::V4_HEADER + icmp.len();
    let answer = &mut out[ip::V4_HEADER..length];
    answer.copy_from_slice(icmp);
    answer[0] = REPLY;
    answer[2..4].fill(0);
    let checksum = Sum::default().with(answer).finish();
    answer[2..4].copy_from_slice(&checksum);
    write_header(source, destination, icmp.len(), out);
    length
}

fn write_header(source: Ipv4Addr, destination: Ipv4Addr, payload: usize, out: &mut [u8]) {
    let header = &mut out[..ip::V4_HEADER];
    let total = u16::try_from(ip::V4_HEADER + payload).expect("a short packet");
    header.fill(0);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[6] = 0x40;
    header[8] = 64;
    header[9] = ip::ICMP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let checksum = Sum::default().with(header).finish();
    header[10..12].copy_from_slice(&checksum);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
    const B: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 1);

    fn icmp(packet: &[u8]) -> &[u8] {
        let parsed = ip::V4::parse(packet).unwrap();
        assert_eq!(parsed.protocol, ip::ICMP);
        assert_eq!(Sum::default().with(&packet[..20]).finish(), [0, 0]);
        assert_eq!(Sum::default().with(parsed.payload).finish(), [0, 0]);
        parsed.payload
    }

    #[test]
    fn a_probe_is_answered_like_a_ping() {
        let mut probe = [0; PROBE];
        for flags in (0..64).filter(|flags| flags & ANSWERS_PADDED == 0) {
            let report = Report::read(flags);
            assert_eq!(report.flags(), flags);
            request(A, B, 7, 9, report, &mut probe);
            assert_eq!(
                parse(icmp(&probe)),
                Message::Request {
                    identifier: 7,
                    sequence: 9,
                    report: Some(report),
                    answers_padded: true
                }
            );
        }
        let mut answer = [0; 148];
        let length = reply(B, A, icmp(&probe), &mut answer);
        assert_eq!(
            parse(icmp(&answer[..length])),
            Message::Reply {
                identifier: 7,
                sequence: 9
            }
        );
        assert_eq!(ip::V4::parse(&answer[..length]).unwrap().source, B);
    }

    #[test]
    fn a_strangers_ping_says_nothing_about_us() {
        let ping = [8, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        assert_eq!(
            parse(&ping),
            Message::Request {
                identifier: 0x102,
                sequence: 0x304,
                report: None,
                answers_padded: false
            }
        );
    }

    #[test]
    fn a_padded_probe_gets_a_short_answer() {
        let mut probe = vec![0xff; 1420];
        request(A, B, 7, 9, Report::read(RECEIVES), &mut probe);
        let icmp = icmp(&probe).to_vec();
        assert_eq!(icmp.len(), 1400);
        let mut answer = [0; 148];
        assert_eq!(reply(B, A, &icmp, &mut answer), PROBE);
        let reply = Message::Reply {
            identifier: 7,
            sequence: 9,
        };
        assert_eq!(parse(&answer[20..PROBE]), reply);
        let stranger = [&[8; 8][..], &[0; 1000]].concat();
        assert_eq!(
            parse(&stranger),
            Message::Other,
            "nobody else is answered at length"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_do_not(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..10) {
            let mut icmp = bytes;
            if let Some(first) = icmp.first_mut() {
                *first = kind;
            }
            if let Message::Request { .. } = parse(&icmp) {
                let mut answer = [0; 148];
                let length = if icmp.len() > MAX_ECHO { 16 } else { icmp.len() };
                prop_assert_eq!(reply(B, A, &icmp, &mut answer), length + 20);
            }
        }
    }
}
