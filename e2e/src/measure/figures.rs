//! Figures: what was measured, as a table for people and as JSON for tools.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One row: `metric` of `test` as done by `system`, over `n` values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    pub(super) system: String,
    pub(super) test: String,
    pub(super) metric: String,
    pub(super) unit: &'static str,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) n: usize,
}

#[derive(Debug, Default)]
pub(super) struct Figures(Vec<Figure>);

impl Figures {
    /// Adds the row of some values; no values, no row.
    pub(super) fn add(&mut self, system: &str, test: &str, metric: &str, unit: &'static str, values: &[f64]) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max), Some(median)) = (sorted.first(), sorted.last(), quantile(&sorted, 0.5))
        else {
            return;
        };
        self.0.push(Figure {
            system: system.to_owned(),
            test: test.to_owned(),
            metric: metric.to_owned(),
            unit,
            median: round(median),
            min: round(*min),
            max: round(*max),
            n: sorted.len(),
        });
    }

    /// Adds the values' own row, and one of their 99th percentile.
    pub(super) fn add_times(&mut self, system: &str, test: &str, unit: &'static str, values: &[f64]) {
        self.add(system, test, unit, unit, values);
        self.add_quantile(system, test, &format!("{unit}_p99"), unit, values, 0.99);
    }

    /// Adds a row of one value: what so large a share of the values does not exceed.
    pub(super) fn add_quantile(
        &mut self,
        system: &str,
        test: &str,
        metric: &str,
        unit: &'static str,
        values: &[f64],
        share: f64,
    ) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let Some(value) = quantile(&sorted, share) else {
            return;
        };
        self.add(system, test, metric, unit, &[value]);
        if let Some(last) = self.0.last_mut() {
            last.n = sorted.len();
        }
    }

    /// The median of a row.
    pub(super) fn median(&self, system: &str, test: &str, metric: &str) -> Option<f64> {
        let row = self
            .0
            .iter()
            .find(|row| row.system == system && row.test == test && row.metric == metric)?;
        Some(row.median)
    }

    pub(super) fn rows(&self) -> &[Figure] {
        &self.0
    }

    pub(super) fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<22} {:<18} {:<13} {:>10} {:>10} {:>10} {:<8} {:>5}",
            "SYSTEM", "TEST", "METRIC", "MEDIAN", "MIN", "MAX", "UNIT", "N"
        )];
        for row in &self.0 {
            lines.push(format!(
                "{:<22} {:<18} {:<13} {:>10} {:>10} {:>10} {:<8} {:>5}",
                row.system, row.test, row.metric, row.median, row.min, row.max, row.unit, row.n
            ));
        }
        lines.join("\n")
    }

    /// Writes the rows; rows of an earlier run that this one has not measured again are kept.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Key {
            system: String,
            test: String,
            metric: String,
        }
        let mut rows: Vec<serde_json::Value> = match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?
            }
            Err(_) => Vec::new(),
        };
        rows.retain(|row| {
            let key: Option<Key> = serde_json::from_value(row.clone()).ok();
            key.is_some_and(|key| self.median(&key.system, &key.test, &key.metric).is_none())
        });
        for row in &self.0 {
            rows.push(serde_json::to_value(row).context("encode a figure")?);
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let lines: Vec<String> = rows.iter().map(|row| format!("  {row}")).collect();
        std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// By nearest rank, of sorted values.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((share * last as f64).round() as usize).copied()
}

/// Four significant digits: more is noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_median_and_the_ends() {
        let mut figures = Figures::default();
        let values: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        figures.add_times("weft", "attach", "ms", &values);
        let [whole, p99] = &figures.0[..] else {
            panic!("{figures:?}")
        };
        assert_eq!(
            (whole.median, whole.min, whole.max, whole.n),
            (51.0, 1.0, 101.0, 101)
        );
        assert_eq!((p99.metric.as_str(), p99.median, p99.n), ("ms_p99", 100.0, 101));
        figures.add("weft", "nothing", "ms", "ms", &[]);
        assert_eq!(figures.0.len(), 2);
    }

    #[test]
    fn a_later_run_replaces_what_it_measured_and_keeps_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench/lab.json");
        let mut first = Figures::default();
        first.add("weft", "rtt", "ms", "ms", &[1.0]);
        first.add("weft", "tcp1", "gbps", "Gbit/s", &[2.0]);
        first.write(&path).unwrap();
        let mut second = Figures::default();
        second.add("weft", "tcp1", "gbps", "Gbit/s", &[3.12345]);
        second.write(&path).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row["test"].as_str().unwrap(), row["median"].as_f64().unwrap()))
            .collect();
        assert_eq!(seen, [("rtt", 1.0), ("tcp1", 3.123)]);
    }
}
