//! Results of a benchmark: collected by name, summed up as medians, written as JSON, and drawn.

pub(crate) mod plot;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// What was measured of one thing, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) test: String,
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// How many values these are of.
    pub(crate) n: usize,
}

/// Measured values, in the order in which things were first measured.
#[derive(Default)]
pub(crate) struct Results {
    order: Vec<[String; 4]>,
    values: BTreeMap<[String; 4], Vec<f64>>,
}

impl Results {
    pub(crate) fn add(&mut self, system: &str, test: &str, (metric, unit): (&str, &str), value: f64) {
        let name = [system, test, metric, unit].map(str::to_owned);
        let values = self.values.entry(name.clone()).or_default();
        if values.is_empty() {
            self.order.push(name);
        }
        values.push(value);
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        let row = |name: &[String; 4]| {
            let mut values = self.values[name].clone();
            values.sort_by(f64::total_cmp);
            let [system, test, metric, unit] = name.clone();
            Row {
                system,
                test,
                metric,
                unit,
                median: median(&values),
                min: values[0],
                max: values[values.len() - 1],
                n: values.len(),
            }
        };
        self.order.iter().map(row).collect()
    }
}

/// Of sorted values.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        sorted[middle - 1].midpoint(sorted[middle])
    } else {
        sorted[middle]
    }
}

/// The row of a system, test and metric.
pub(crate) fn find<'a>(rows: &'a [Row], system: &str, test: &str, metric: &str) -> Option<&'a Row> {
    rows.iter()
        .find(|row| row.system == system && row.test == test && row.metric == metric)
}

/// Where results go: `bench` in the target directory.
pub(crate) fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let directory = target.join("bench");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Writes `NAME.json`.
pub(crate) fn write_json(name: &str, rows: &[Row]) -> PathBuf {
    let path = directory().join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(rows).unwrap() + "\n").unwrap();
    path
}

/// Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in `docs/benchmarks.md`.
///
/// # Panics
/// Where the marks are not there.
pub(crate) fn write_docs(name: &str, text: &str) {
    let path = docs().join("benchmarks.md");
    let page = fs::read_to_string(&path).unwrap();
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&open).expect("the opening mark");
    let (_, after) = rest.split_once(&close).expect("the closing mark");
    fs::write(&path, format!("{before}{open}{text}{close}{after}")).unwrap();
}

pub(crate) fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The machine, in a line.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, model)| model);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let wide = if cpu.contains("avx512ifma") {
        ", AVX-512"
    } else {
        ""
    };
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}{wide}, {cores} cores, Linux {}", kernel.trim())
}
