//! The picture: a row for each fault, a dot for each round.

use std::fmt::Write as _;

use super::{Fault, LIMIT_MS, record::Record};
use crate::measure::figures::quantile;

const WIDTH: f64 = 760.0;
/// Left of the axis: names.
const LABELS: f64 = 160.0;
/// Right of it: three columns of numbers.
const COLUMN: f64 = 46.0;
const AXIS: f64 = WIDTH - LABELS - 3.0 * COLUMN - 26.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 30.0;
const ROW: f64 = 58.0;
/// Of a row, what dots may fill.
const ROOM: f64 = 46.0;
const RADIUS: f64 = 2.6;
const DOT: &str = "#0b5fa5";
const BAD: &str = "#c0392b";

/// Outages of all rounds, with p50, p99 and the limit as lines.
pub(super) fn svg(record: &Record) -> String {
    let rows: Vec<(Fault, Vec<f64>)> = record
        .faults()
        .map(|(fault, rounds)| {
            let mut outages: Vec<f64> = rounds.iter().map(|round| round.outage_ms).collect();
            outages.sort_by(f64::total_cmp);
            (fault, outages)
        })
        .collect();
    let largest = rows
        .iter()
        .filter_map(|(_, outages)| outages.last())
        .fold(LIMIT_MS, |largest, outage| largest.max(*outage))
        * 1.06;
    let scale = AXIS / largest;
    let height = TOP + ROW * rows.len() as f64 + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">Outage of a UDP flow when something goes, \
         ms</text>\n"
    );
    legend(&mut svg);
    axis(&mut svg, largest, scale, height);
    for (place, (fault, outages)) in (0u32..).zip(&rows) {
        row(
            &mut svg,
            *fault,
            outages,
            scale,
            TOP + ROW * (f64::from(place) + 0.5),
        );
    }
    svg + "</svg>\n"
}

fn legend(svg: &mut String) {
    let (x, y) = (LABELS, 40.0);
    let _ = writeln!(
        svg,
        "<circle cx=\"{}\" cy=\"{y}\" r=\"{RADIUS}\" fill=\"{DOT}\"/><text x=\"{}\" y=\"{}\">a round</text>",
        x + 3.0,
        x + 11.0,
        y + 4.0
    );
    for (at, style, name) in [
        (80.0, P50, "p50"),
        (140.0, P99, "p99"),
        (200.0, LIMIT, "limit of p99"),
    ] {
        let x = x + at;
        let _ = writeln!(
            svg,
            "<path d=\"M{x} {}V{}\" {style}/><text x=\"{}\" y=\"{}\">{name}</text>",
            y - 7.0,
            y + 7.0,
            x + 7.0,
            y + 4.0
        );
    }
}

const P50: &str = "stroke=\"#000000\" stroke-width=\"1.5\"";
const P99: &str = "stroke=\"#000000\" stroke-width=\"1.5\" stroke-dasharray=\"2 2\"";
const LIMIT: &str = "stroke=\"#c0392b\" stroke-width=\"1.5\" stroke-dasharray=\"7 3\"";

fn axis(svg: &mut String, largest: f64, scale: f64, height: f64) {
    let bottom = height - BOTTOM + 4.0;
    let mut mark = 0.0;
    while mark <= largest {
        let x = LABELS + mark * scale;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {}V{bottom}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{mark}</text>",
            TOP - 6.0,
            bottom + 15.0
        );
        mark += step(largest);
    }
    let x = LABELS + LIMIT_MS * scale;
    let _ = writeln!(svg, "<path d=\"M{x:.1} {}V{bottom}\" {LIMIT}/>", TOP - 6.0);
    for (column, name) in (1u32..).zip(["p50", "p99", "max"]) {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#555555\">{name}</text>",
            at_column(column),
            TOP - 12.0
        );
    }
}

fn row(svg: &mut String, fault: Fault, sorted: &[f64], scale: f64, middle: f64) {
    let struck = sorted.iter().filter(|outage| **outage > 0.0).count();
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" text-anchor=\"end\" font-weight=\"bold\">{}</text>\
         <text x=\"{x}\" y=\"{}\" text-anchor=\"end\" font-size=\"10\" fill=\"#555555\">{} rounds, {struck} felt \
         it</text>",
        middle - 1.0,
        fault.name(),
        middle + 13.0,
        sorted.len(),
        x = LABELS - 12.0,
    );
    for (outage, x, y) in stack(sorted, scale) {
        let colour = if is_bad(fault, outage) { BAD } else { DOT };
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{RADIUS}\" fill=\"{colour}\" fill-opacity=\"0.6\"/>",
            LABELS + x,
            middle + y
        );
    }
    let shares = [(0.5, Some(P50)), (0.99, Some(P99)), (1.0, None)];
    for (column, (share, style)) in (1u32..).zip(shares) {
        let Some(value) = quantile(sorted, share) else {
            continue;
        };
        if let Some(style) = style {
            let x = LABELS + value * scale;
            let (from, to) = (middle - ROW / 2.0 + 3.0, middle + ROW / 2.0 - 3.0);
            let _ = writeln!(svg, "<path d=\"M{x:.1} {from:.1}V{to:.1}\" {style}/>");
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}</text>",
            at_column(column),
            middle + 4.0
        );
    }
}

/// The right edge of a column of numbers.
fn at_column(column: u32) -> f64 {
    LABELS + AXIS + 14.0 + COLUMN * f64::from(column)
}

fn is_bad(fault: Fault, outage: f64) -> bool {
    outage > if fault.is_planned() { 0.0 } else { LIMIT_MS }
}

/// Where dots go, from the middle of the left edge. Those that would lie on each other are stacked, the closer the more
/// they are.
fn stack(sorted: &[f64], scale: f64) -> Vec<(f64, f64, f64)> {
    let place = |outage: f64| (outage * scale / (2.0 * RADIUS)).floor();
    let mut placed = Vec::new();
    for same in sorted.chunk_by(|one, other| place(*one) == place(*other)) {
        let step = (2.0 * RADIUS).min(ROOM / same.len() as f64);
        let middle = (same.len() - 1) as f64 / 2.0;
        for (number, outage) in (0u32..).zip(same) {
            placed.push((*outage, outage * scale, (f64::from(number) - middle) * step));
        }
    }
    placed
}

/// Between two marks on the axis, so that there are ten at most.
fn step(largest: f64) -> f64 {
    let steps = [100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];
    let found = steps.into_iter().find(|step| largest / step <= 10.0);
    found.unwrap_or(10_000.0)
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::record, *};

    /// Fails unless every element ends where it must, every attribute is in quotes, and no character is forbidden.
    fn check_well_formed(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg.trim_end();
        while let Some(start) = rest.find('<') {
            let text = &rest[..start];
            assert!(!text.contains(['&', '>']), "text {text:?}");
            assert!(
                text.trim().is_empty() || !open.is_empty(),
                "text outside: {text:?}"
            );
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
                assert!(!open.is_empty() || rest.is_empty(), "one element holds all");
                continue;
            }
            let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            let mut seen = Vec::new();
            while !attributes.trim().is_empty() {
                let (key, value) = attributes.trim_start().split_once("=\"").expect("key=\"value\"");
                assert!(
                    key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
                    "{key:?}"
                );
                assert!(!seen.contains(&key), "{key} twice in {tag}");
                seen.push(key);
                let (value, more) = value.split_once('"').expect("the value ends");
                assert!(
                    !value.contains(['<', '&']) && !value.contains("NaN") && !value.contains("inf"),
                    "{tag}"
                );
                attributes = more;
            }
            if !alone {
                open.push(name);
            }
        }
        assert!(rest.is_empty() && open.is_empty(), "{open:?} {rest:?}");
    }

    #[test]
    fn every_round_is_a_dot_and_the_text_is_well_formed() {
        let many: Vec<f64> = (0..100)
            .map(|n| if n % 2 == 0 { 0.0 } else { 300.0 + f64::from(n) })
            .collect();
        let svg = svg(&record(&[
            (Fault::GatewayKill, &many),
            (Fault::PathCut, &[0.0, 310.0, 620.0]),
            (Fault::Drain, &[0.0]),
        ]));
        check_well_formed(&svg);
        // One more is in the legend.
        assert_eq!(svg.matches("<circle").count(), 104 + 1);
        assert_eq!(
            svg.matches(&format!("fill=\"{BAD}\"")).count(),
            1,
            "620 ms is too long"
        );
        for expected in [
            "100 rounds, 50 felt it",
            ">310</text>",
            ">620</text>",
            "limit of p99",
        ] {
            assert!(svg.contains(expected), "{expected} is missing in\n{svg}");
        }
    }

    #[test]
    fn a_planned_stop_that_loses_anything_is_bad() {
        assert!(is_bad(Fault::Drain, 5.0) && is_bad(Fault::NodeCut, 501.0));
        assert!(!is_bad(Fault::Drain, 0.0) && !is_bad(Fault::NodeCut, 499.0));
    }

    #[test]
    fn dots_stay_in_their_row() {
        let placed = stack(&[0.0; 100], 1.0);
        assert_eq!(placed.len(), 100);
        assert!(placed.iter().all(|(_, x, y)| *x == 0.0 && y.abs() <= ROOM / 2.0));
        let apart = stack(&[100.0, 100.0, 400.0], 1.0);
        assert_eq!(
            apart,
            [
                (100.0, 100.0, -RADIUS),
                (100.0, 100.0, RADIUS),
                (400.0, 400.0, 0.0)
            ]
        );
    }
}
