//! What the gateway must reach, as ratios of medians of one run, and the tables.

use std::fmt::Write as _;

use crate::{
    report::{Row, find, plot::number},
    systems::Carries,
};

/// A requirement.
pub(crate) struct Floor {
    pub(crate) what: &'static str,
    /// What was found, unless something was not measured.
    pub(crate) ratio: Option<f64>,
    pub(crate) bound: Bound,
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Floor {
    /// Yes, no, or not measured.
    pub(crate) fn met(&self) -> &'static str {
        match (self.ratio, self.bound) {
            (None, _) => "not measured",
            (Some(ratio), Bound::AtLeast(bound)) if ratio >= bound => "yes",
            (Some(ratio), Bound::AtMost(bound)) if ratio <= bound => "yes",
            _ => "NO",
        }
    }
}

/// The encrypted systems that carry frames, as we do.
const PEERS_L2: [&str; 3] = ["wireguard-go-vxlan", "boringtun-vxlan", "openvpn-tap"];

pub(crate) fn floors(rows: &[Row]) -> Vec<Floor> {
    let value =
        |system: &str, test: &str, metric: &str| find(rows, system, test, metric).map(|row| row.median);
    let ours = |test: &str, metric: &str| value("weft", test, metric);
    let over = |ours: Option<f64>, theirs: Option<f64>| Some(ours? / theirs?);
    let l2 = |test: &str, metric: &str, better: fn(f64, f64) -> f64| {
        let all: Option<Vec<f64>> = PEERS_L2
            .map(|peer| value(peer, test, metric))
            .into_iter()
            .collect();
        all?.into_iter().reduce(better)
    };
    let tcp1 = |peer| over(ours("tcp1", "gbps"), value(peer, "tcp1", "gbps"));
    let floor = |what, bound, ratio| Floor { what, ratio, bound };
    use Bound::{AtLeast, AtMost};
    vec![
        floor(
            "TCP, one stream: weft / wireguard-go",
            AtLeast(1.4),
            tcp1("wireguard-go"),
        ),
        floor(
            "TCP, one stream: weft / wireguard-go + VXLAN",
            AtLeast(10.0),
            tcp1("wireguard-go-vxlan"),
        ),
        floor(
            "TCP, one stream: weft / OpenVPN TAP",
            AtLeast(7.0),
            tcp1("openvpn-tap"),
        ),
        floor(
            "TCP, one stream: weft / boringtun + VXLAN",
            AtLeast(6.0),
            tcp1("boringtun-vxlan"),
        ),
        floor(
            "TCP: four streams / one stream of weft",
            AtLeast(1.0),
            over(ours("tcp4", "gbps"), ours("tcp1", "gbps")),
        ),
        floor(
            "TCP on a plain wire: weft / kernel VXLAN in clear",
            AtLeast(0.65),
            over(ours("tcp1-wire", "gbps"), value("vxlan", "tcp1-wire", "gbps")),
        ),
        floor(
            "UDP: weft / best encrypted L2 peer",
            AtLeast(2.0),
            over(ours("udp", "pps"), l2("udp", "pps", f64::max)),
        ),
        floor(
            "request-response p50: weft / best encrypted L2 peer",
            AtMost(1.0),
            over(ours("rr", "p50_us"), l2("rr", "p50_us", f64::min)),
        ),
        floor(
            "request-response p99: weft / best encrypted L2 peer",
            AtMost(1.1),
            over(ours("rr", "p99_us"), l2("rr", "p99_us", f64::min)),
        ),
        floor(
            "TCP, one stream: with 64 peers / with 1",
            AtLeast(0.95),
            over(ours("peers-64", "gbps"), ours("peers-1", "gbps")),
        ),
    ]
}

/// The table of requirements, in Markdown.
pub(crate) fn requirements(floors: &[Floor]) -> String {
    let mut text = String::from("| required | bound | seen | met |\n|---|---|---|---|\n");
    for floor in floors {
        let bound = match floor.bound {
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::AtMost(bound) => format!("≤ {bound}"),
        };
        let seen = floor
            .ratio
            .map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(text, "| {} | {bound} | {seen} | {} |", floor.what, floor.met());
    }
    text
}

/// The table of systems, in Markdown.
pub(crate) fn table(rows: &[Row], systems: &[(&str, &str, Carries)]) -> String {
    let mut text = String::from(
        "| system | way | carries | TCP ×1 Gbit/s [min–max] | TCP ×4 | ns/KiB | UDP kpps | RR p50 / p99 / p99.9 µs | \
         RSS MiB |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for (system, what, carries) in systems {
        let cell = |test: &str, metric: &str, scale: f64| {
            find(rows, system, test, metric).map_or_else(|| "-".into(), |row| number(row.median * scale))
        };
        let tcp = find(rows, system, "tcp1", "gbps").map_or_else(
            || "-".into(),
            |row| format!("{} [{}–{}]", number(row.median), number(row.min), number(row.max)),
        );
        let carries = match carries {
            Carries::Clear => "frames, in clear",
            Carries::Packets => "packets",
            Carries::Frames => "frames",
        };
        let _ = writeln!(
            text,
            "| {system} | {what} | {carries} | {tcp} | {} | {} | {} | {} / {} / {} | {} |",
            cell("tcp4", "gbps", 1.0),
            cell("tcp1", "cpu_ns_per_kb", 1.0),
            cell("udp", "pps", 1e-3),
            cell("rr", "p50_us", 1.0),
            cell("rr", "p99_us", 1.0),
            cell("rr", "p999_us", 1.0),
            cell("tcp1", "rss_kib", 1.0 / 1024.0),
        );
    }
    text
}

/// One flow with other peers configured, in Markdown.
pub(crate) fn peers(rows: &[Row]) -> String {
    let mut text = String::from(
        "| peers configured | TCP ×1 Gbit/s [min–max] | own ns/KiB | RSS MiB |\n|---|---|---|---|\n",
    );
    for row in rows
        .iter()
        .filter(|row| row.test.starts_with("peers-") && row.metric == "gbps")
    {
        let cell = |metric: &str, scale: f64| {
            find(rows, &row.system, &row.test, metric)
                .map_or_else(|| "-".into(), |row| number(row.median * scale))
        };
        let _ = writeln!(
            text,
            "| {} | {} [{}–{}] | {} | {} |",
            row.test.trim_start_matches("peers-"),
            number(row.median),
            number(row.min),
            number(row.max),
            cell("own_cpu_ns_per_kb", 1.0),
            cell("rss_kib", 1.0 / 1024.0)
        );
    }
    text
}
