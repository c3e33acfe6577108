//! What stands in docs/benchmarks.md.

use std::fmt::Write as _;

use super::{LIMIT_MS, Round, record::Record};
use crate::measure::figures::quantile;

/// Up to so many rounds p99, by nearest rank, is the maximum.
const FEW: usize = 51;

pub(super) fn text(record: &Record) -> String {
    let mut text = format!("{}; {}, in ms.", record.machine(), days(record));
    if record.faults().any(|(_, rounds)| rounds.len() <= FEW) {
        let _ = write!(text, " With {FEW} rounds or fewer p99 is the maximum.");
    }
    text += "\n\n| struck | rounds | of them felt | outage p50 | p99 | max | most datagrams lost | longest TCP silence \
             | required | met |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for (fault, rounds) in record.faults() {
        let sorted = |value: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(|round| value(round)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let of = |values: &[f64], share| quantile(values, share).unwrap_or_default();
        let (outages, lost, silences) = (
            sorted(|round| round.outage_ms),
            sorted(|round| round.lost),
            sorted(|round| round.tcp_ms),
        );
        let (required, met) = if fault.is_planned() {
            ("nothing lost".to_owned(), of(&lost, 1.0) == 0.0)
        } else {
            (format!("p99 ≤ {LIMIT_MS}"), of(&outages, 0.99) <= LIMIT_MS)
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {} | {:.0} | {required} | {} |",
            fault.name(),
            rounds.len(),
            lost.iter().filter(|lost| **lost > 0.0).count(),
            of(&outages, 0.5),
            of(&outages, 0.99),
            of(&outages, 1.0),
            of(&lost, 1.0),
            of(&silences, 1.0),
            if met { "yes" } else { "NO" }
        );
    }
    text + "\n![outages](plots/failover.svg)\n"
}

/// On which days the rounds were made.
fn days(record: &Record) -> String {
    let all = record.faults().flat_map(|(_, rounds)| rounds);
    let mut days: Vec<&str> = all.filter_map(|round| round.at.get(..10)).collect();
    days.sort_unstable();
    match (days.first(), days.last()) {
        (Some(first), Some(last)) if first != last => format!("from {first} to {last}"),
        (Some(day), _) => (*day).to_owned(),
        _ => "without a date".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Fault, super::record::tests::record, *};

    #[test]
    fn each_fault_has_a_row_that_says_whether_the_limit_is_kept() {
        let mut cuts = [0.0; 100];
        cuts[..3].copy_from_slice(&[300.0, 501.0, 600.0]);
        let text = text(&record(&[
            (Fault::NodeCut, &[0.0, 310.0, 320.0]),
            (Fault::PathCut, &cuts),
            (Fault::Drain, &[0.0, 5.0]),
            (Fault::RollingUpdate, &[0.0]),
        ]));
        let rows: Vec<&str> = text.lines().filter(|line| line.contains(" | ")).skip(1).collect();
        assert_eq!(
            rows,
            [
                "| node-cut | 3 | 2 | 310 | 320 | 320 | 64 | 480 | p99 ≤ 500 | yes |",
                "| path-cut | 100 | 3 | 0 | 501 | 600 | 120 | 900 | p99 ≤ 500 | NO |",
                "| drain | 2 | 1 | 5 | 5 | 5 | 1 | 8 | nothing lost | NO |",
                "| rolling-update | 1 | 0 | 0 | 0 | 0 | 0 | 0 | nothing lost | yes |",
            ]
        );
        assert!(
            text.starts_with("a machine, 2 cores; 2026-11-21, in ms. With 51 rounds"),
            "{text}"
        );
        assert!(text.ends_with("![outages](plots/failover.svg)\n"));
    }
}
