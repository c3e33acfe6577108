//! Bar charts as SVG: a group of bars for each system, whiskers from the smallest to the largest value.

use std::fmt::Write as _;

/// A bar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) value: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// A picture.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) unit: &'a str,
    /// What the bars of a group are.
    pub(crate) series: &'a [&'a str],
    /// Name and bars of each group; a bar that was not measured is left out.
    pub(crate) groups: Vec<(String, Vec<Option<Bar>>)>,
    /// The group that is drawn in full colour.
    pub(crate) ours: &'a str,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 170.0;
const NUMBERS: f64 = 70.0;
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;
const TOP: f64 = 58.0;
/// Of the series, for the group that is ours and for the others.
const OURS: [&str; 3] = ["#0b5fa5", "#5b9bd5", "#a9cdee"];
const OTHERS: [&str; 3] = ["#6b6b6b", "#a0a0a0", "#cfcfcf"];

impl Chart<'_> {
    pub(crate) fn svg(&self) -> String {
        let bars = |group: &(String, Vec<Option<Bar>>)| group.1.iter().flatten().count() as f64;
        let height = TOP
            + 24.0
            + self
                .groups
                .iter()
                .map(|group| bars(group) * BAR + GAP)
                .sum::<f64>();
        let all = self.groups.iter().flat_map(|group| group.1.iter().flatten());
        let largest = all.map(|bar| bar.max).fold(0.0, f64::max);
        let step = step(largest);
        let scale = (WIDTH - LABELS - NUMBERS) / largest.max(f64::MIN_POSITIVE);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}, {}</text>\n",
            escape(self.title),
            escape(self.unit)
        );
        for (place, series) in self.series.iter().enumerate() {
            let x = LABELS + 150.0 * place as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"32\" width=\"11\" height=\"11\" fill=\"{}\"/>\
                 <rect x=\"{}\" y=\"32\" width=\"11\" height=\"11\" fill=\"{}\"/>\
                 <text x=\"{}\" y=\"42\">{}</text>",
                OURS[place % 3],
                x + 13.0,
                OTHERS[place % 3],
                x + 29.0,
                escape(series)
            );
        }
        let mut mark = 0.0;
        while mark <= largest {
            let x = LABELS + mark * scale;
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
                TOP - 6.0,
                height - 20.0,
                height - 6.0,
                number(mark)
            );
            mark += step;
        }
        let mut y = TOP;
        for group in &self.groups {
            let (name, colours) = (&group.0, if group.0 == self.ours { OURS } else { OTHERS });
            let weight = if name == self.ours { "bold" } else { "normal" };
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-weight=\"{weight}\">{}</text>",
                LABELS - 8.0,
                y + bars(group) * BAR / 2.0 + 4.0,
                escape(name)
            );
            for (bar, colour) in group.1.iter().zip(colours) {
                let Some(bar) = bar else { continue };
                let at = |value: f64| LABELS + value * scale;
                let middle = y + BAR / 2.0 - 1.0;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                     <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#000000\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    bar.value * scale,
                    BAR - 2.0,
                    at(bar.min),
                    at(bar.max),
                    at(bar.max) + 5.0,
                    y + BAR - 3.0,
                    number(bar.value)
                );
                y += BAR;
            }
            y += GAP;
        }
        svg + "</svg>\n"
    }
}

/// Between two marks on the axis: 1, 2 or 5 times a power of ten, so that there are four to ten.
fn step(largest: f64) -> f64 {
    let power = 10f64.powf((largest / 4.0).max(1e-9).log10().floor());
    let found = [5.0, 2.0, 1.0]
        .into_iter()
        .find(|factor| largest / (factor * power) >= 4.0);
    found.unwrap_or(1.0) * power
}

/// With three digits that count.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 99.95 || value == 0.0 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
