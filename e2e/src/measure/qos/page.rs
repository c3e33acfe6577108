//! The table in docs/benchmarks.md, and the picture beside it: what each slice got, and what it was to get.

use std::fmt::Write as _;

use super::{DIRECTIONS, SLICES, UPLINK_MBPS, Wanted, tests};
use crate::measure::figures::Figures;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 190.0;
const AXIS: f64 = WIDTH - LABELS - 70.0;
const TOP: f64 = 54.0;
const BAR: f64 = 14.0;
const ROW: f64 = 3.0 * BAR + 22.0;
const COLOURS: [&str; 3] = ["#c9a227", "#7f8c8d", "#a0522d"];

pub(super) fn text(figures: &Figures, machine: &str) -> String {
    let mut text = format!(
        "{machine}. Uplink {UPLINK_MBPS} Mbit/s; medians.\n\n| test | direction | slice | was to get | got, Mbit/s | missed by, % |\n\
         |---|---|---|---|---|---|\n"
    );
    for test in tests() {
        for direction in DIRECTIONS {
            for (slice, wanted) in SLICES.into_iter().zip(test.wanted) {
                let name = format!("{}/{direction}/{slice}", test.name);
                let median = |metric: &str| figures.median("weft", &name, metric);
                let (what, metric) = match wanted {
                    Wanted::AtLeast(mbps) => (format!("at least {mbps}"), "guarantee_error_pct"),
                    Wanted::Exactly(mbps) => (format!("{mbps}"), "ceiling_error_pct"),
                    Wanted::Anything => ("what is left".to_owned(), ""),
                };
                let missed = median(metric).map_or(String::new(), |error| format!("{error:.1}"));
                let got = median("mbps").unwrap_or_default();
                let _ = writeln!(
                    text,
                    "| {} | {direction} | {slice} | {what} | {got:.0} | {missed} |",
                    test.name
                );
            }
        }
    }
    text += "\n| p99 of a round trip of the first in order, ms | idle | others fill the uplink | ratio |\n|---|---|---|---|\n";
    for direction in DIRECTIONS {
        let name = format!("priority/{direction}/gold");
        let median = |metric: &str| figures.median("weft", &name, metric).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {direction} | {:.2} | {:.2} | {:.2} |",
            median("idle_p99_ms"),
            median("loaded_p99_ms"),
            median("high_prio_p99_ratio")
        );
    }
    text + "\n![rates](plots/qos.svg)\n"
}

pub(super) fn svg(figures: &Figures) -> String {
    let tests = tests();
    let rows = tests.len() * DIRECTIONS.len();
    let height = TOP + ROW * rows as f64 + 26.0;
    let scale = AXIS / UPLINK_MBPS;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">Three slices on one uplink of {UPLINK_MBPS} Mbit/s; \
         black: what each was to get</text>\n"
    );
    for mark in [0.0, 50.0, 100.0, 150.0, 200.0] {
        let x = LABELS + mark * scale;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {}V{}\" stroke=\"#e4e4e4\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" \
             fill=\"#555555\">{mark}</text>",
            TOP - 8.0,
            height - 22.0,
            height - 8.0
        );
    }
    let places = tests
        .iter()
        .flat_map(|test| DIRECTIONS.map(|direction| (test, direction)));
    for (place, (test, direction)) in (0u32..).zip(places) {
        let top = TOP + ROW * f64::from(place);
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{}\">{}, {direction}</text>",
            top + 1.8 * BAR,
            test.name
        );
        for (line, (slice, wanted)) in (0u32..).zip(SLICES.into_iter().zip(test.wanted)) {
            let y = top + BAR * f64::from(line);
            let name = format!("{}/{direction}/{slice}", test.name);
            let got = figures.median("weft", &name, "mbps").unwrap_or_default();
            let _ = writeln!(
                svg,
                "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{slice} {got:.0}</text>",
                got * scale,
                BAR - 2.0,
                COLOURS[line as usize % COLOURS.len()],
                LABELS + got * scale + 5.0,
                y + BAR - 4.0
            );
            if let Wanted::AtLeast(mbps) | Wanted::Exactly(mbps) = wanted {
                let x = LABELS + mbps * scale;
                let _ = writeln!(
                    svg,
                    "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"#000000\" stroke-width=\"2\"/>",
                    y - 1.0,
                    y + BAR - 1.0
                );
            }
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_in_the_table() {
        let mut figures = Figures::default();
        figures.add("weft", "ceilings/egress/gold", "mbps", "Mbit/s", &[97.0]);
        figures.add("weft", "ceilings/egress/gold", "ceiling_error_pct", "%", &[3.0]);
        figures.add("weft", "priority/ingress/gold", "high_prio_p99_ratio", "", &[1.5]);
        let text = text(&figures, "a machine");
        assert!(
            text.contains("| ceilings | egress | gold | 100 | 97 | 3.0 |"),
            "{text}"
        );
        assert!(text.contains("| ingress | 0.00 | 0.00 | 1.50 |"), "{text}");
        assert_eq!(svg(&figures).matches("<rect").count(), 1 + 18);
    }
}
