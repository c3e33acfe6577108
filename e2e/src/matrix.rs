//! Weft over every kind of network and cluster that the lab imitates: for each row a lab of its own, and on it the tests of
//! connectivity, Services and `slicectl verify`. The table of it is docs/matrix.md.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::lab::dir::{LabDir, read_json, write_json};
use crate::lab::options::Options;
use crate::lab::plan::Plan;
use crate::lab::running::Running;
use crate::lab::{process, remove, up};
use crate::progress::{say, short};

/// The files of e2e/tests that run in every row.
const TESTS: [&str; 3] = ["connectivity", "services", "verify"];
const TOLERATED: &str = r#"[{"key": "dedicated", "operator": "Exists"}]"#;

/// One lab.
struct Row {
    name: &'static str,
    /// Where people have it.
    imitates: &'static str,
    /// As on the command line of `weft-lab up`.
    options: &'static str,
}

const fn row(name: &'static str, options: &'static str, imitates: &'static str) -> Row {
    Row {
        name,
        imitates,
        options,
    }
}

const ROWS: [Row; 16] = [
    row("plain", "", "kubeadm, kind"),
    row(
        "pod-mtu-1450",
        "--pod-mtu 1450",
        "flannel in k3s, Calico and Cilium with VXLAN",
    ),
    row(
        "jumbo",
        "--node-mtu 9000 --path-mtu 1500",
        "nodes of a cloud with jumbo frames, the internet between clusters",
    ),
    row(
        "path-1400",
        "--path-mtu 1400",
        "a tunnel between the sites that says nothing of what it drops",
    ),
    row(
        "path-1280",
        "--path-mtu 1280",
        "the least that IPv6 allows a link",
    ),
    row("loss", "--loss 10", "a line that loses one packet of a hundred"),
    row("delay", "--delay 40", "80 ms of round trip: across an ocean"),
    row(
        "firewall",
        "--firewall",
        "only node ports and API servers are open between the sites",
    ),
    row("snat", "--snat", "a NAT gateway before each cluster"),
    row(
        "nftables",
        "--kube-proxy nftables",
        "kube-proxy as Kubernetes recommends it since 1.33",
    ),
    row(
        "dns-5353",
        "--dns-port 5353",
        "OpenShift's CoreDNS (8053 at Gardener)",
    ),
    row(
        "node-local-dns",
        "--node-local-dns",
        "NodeLocal DNSCache (default at GKE Autopilot, an addon elsewhere)",
    ),
    row(
        "tainted",
        "--taint dedicated=infra:NoSchedule",
        "all nodes tainted; charts with tolerations",
    ),
    row(
        "priority-quota",
        "--priority-quota",
        "GKE's quota of priority classes",
    ),
    row("dual", "--family dual", "dual-stack clusters"),
    row("ipv6", "--family ipv6", "clusters without IPv4"),
];

/// Which rows, and where what is needed and found is.
#[derive(Debug, Parser)]
pub struct Selection {
    /// Only these rows; the others keep what an earlier run found.
    rows: Vec<String>,
    #[arg(long, default_value = "target/images")]
    images: PathBuf,
    /// Logs and results.
    #[arg(long, default_value = "target/matrix")]
    out: PathBuf,
    #[arg(long, default_value = "docs/matrix.md")]
    page: PathBuf,
}

/// What a row showed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Outcome {
    /// Of the commit that was tried.
    commit: String,
    day: String,
    /// By test file: how many tests passed, or which failed.
    tests: BTreeMap<String, Result<usize, Vec<String>>>,
}

type Outcomes = BTreeMap<String, Outcome>;

/// Tries the rows and writes the page after each.
///
/// # Errors
/// Unknown rows, a lab that does not come up, and at the end rows in which a test failed.
pub fn run(dir: &LabDir, selection: &Selection) -> Result<()> {
    let unknown: Vec<&String> = (selection.rows.iter())
        .filter(|name| !ROWS.iter().any(|row| row.name == **name))
        .collect();
    if !unknown.is_empty() {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        bail!("no row {unknown:?}; the matrix has {}", known.join(", "));
    }
    fs::create_dir_all(&selection.out).with_context(|| format!("create {}", selection.out.display()))?;
    let results = selection.out.join("results.json");
    let mut outcomes: Outcomes = match results.exists() {
        true => read_json(&results)?,
        false => Outcomes::new(),
    };
    let wanted = |row: &&Row| selection.rows.is_empty() || selection.rows.iter().any(|name| name == row.name);
    let mut failed = Vec::new();
    for row in ROWS.iter().filter(wanted) {
        let begun = Instant::now();
        let outcome = attempt(dir, row, selection).with_context(|| format!("row {}", row.name))?;
        let verdict = match outcome.failures() {
            failures if failures.is_empty() => "passed".to_owned(),
            failures => {
                failed.push(row.name);
                format!("FAILED: {}", failures.join(", "))
            }
        };
        say(format!(
            "==> {}: {verdict}, after {}",
            row.name,
            short(begun.elapsed())
        ));
        outcomes.insert(row.name.to_owned(), outcome);
        write_json(&results, &outcomes)?;
        fs::write(&selection.page, page(&outcomes))
            .with_context(|| format!("write {}", selection.page.display()))?;
    }
    remove::all(dir)?;
    match failed.is_empty() {
        true => Ok(()),
        false => bail!(
            "failed: {}; see {}/ROW.log",
            failed.join(", "),
            selection.out.display()
        ),
    }
}

fn attempt(dir: &LabDir, row: &Row, selection: &Selection) -> Result<Outcome> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let words = std::iter::once("up").chain(row.options.split_whitespace());
    let options = Line::try_parse_from(words).context("the row's options")?.options;
    say(format!("==> {}: {}", row.name, row.imitates));
    remove::all(dir)?;
    up::up(dir, &"a:2,b:2".parse::<Plan>()?, &options)?;
    let mut tars = Vec::new();
    let images = &selection.images;
    for entry in fs::read_dir(images).with_context(|| format!("read {}: `make images`", images.display()))? {
        tars.push(entry.context("read the images")?.path());
    }
    let tars: Vec<&Path> = (tars.iter().map(PathBuf::as_path))
        .filter(|path| path.extension().is_some_and(|end| end == "tar"))
        .collect();
    Running::open(dir)?.load(&tars, None)?;

    let values = |name: &str, keys: &[&str]| -> Result<PathBuf> {
        let tolerating = keys.iter().map(|key| match options.taint {
            None => String::new(),
            Some(_) if key.is_empty() => format!("tolerations: {TOLERATED}\n"),
            Some(_) => format!("{key}: {{tolerations: {TOLERATED}}}\n"),
        });
        let path = selection.out.join(format!("{}-{name}.yaml", row.name));
        fs::write(&path, tolerating.collect::<String>()).context("write the charts' values")?;
        fs::canonicalize(&path).context("find the charts' values")
    };
    let hub = values("hub", &[""])?;
    let member = values("member", &["operator", "gateway", "dns"])?;
    let mut outcome = Outcome {
        commit: process::run(Command::new("git").args(["describe", "--always", "--dirty"]))?
            .trim()
            .to_owned(),
        day: jiff::Zoned::now().date().to_string(),
        tests: BTreeMap::new(),
    };
    let log = selection.out.join(format!("{}.log", row.name));
    fs::write(&log, "").with_context(|| format!("write {}", log.display()))?;
    for test in TESTS {
        let before = fs::metadata(&log).context("the log")?.len();
        let out = File::options().append(true).open(&log).context("open the log")?;
        let ended = Command::new("cargo")
            .args([
                "test",
                "--package",
                "slice-e2e",
                "--test",
                test,
                "--",
                "--test-threads=1",
            ])
            .env("WEFT_LAB_DIR", dir.root())
            .env("WEFT_E2E_HUB_VALUES", &hub)
            .env("WEFT_E2E_MEMBER_VALUES", &member)
            .stdout(out.try_clone().context("share the log")?)
            .stderr(out)
            .status()
            .context("run cargo")?;
        let text = fs::read_to_string(&log).context("read the log")?;
        let text = text
            .get(usize::try_from(before)?..)
            .context("what the test printed")?;
        let result = verdict(text, ended.success());
        outcome.tests.insert(test.to_owned(), result);
    }
    Ok(outcome)
}

/// From what libtest prints at its end: how many passed, or which did not.
fn verdict(text: &str, good: bool) -> Result<usize, Vec<String>> {
    // test result: ok. 2 passed; 0 failed; …
    let result = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("test result: "));
    let passed = result.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    match passed {
        Some(passed) if good && passed > 0 => return Ok(passed),
        None | Some(0) if good => return Err(vec!["no test ran".to_owned()]),
        _ => {}
    }
    let list = text.rsplit_once("\nfailures:\n").map_or("", |(_, list)| list);
    let failed = list.lines().map_while(|line| line.strip_prefix("    "));
    let failed: Vec<String> = failed.map(str::to_owned).collect();
    Err(match failed.is_empty() {
        true => vec!["it did not come to an end".to_owned()],
        false => failed,
    })
}

impl Outcome {
    fn failures(&self) -> Vec<String> {
        let failed = self.tests.values().filter_map(|result| result.as_ref().err());
        failed.flatten().cloned().collect()
    }
}

fn page(outcomes: &Outcomes) -> String {
    let mut text = format!(
        "# Networks and clusters that were tried\n\n\
         Each row is a lab of two clusters with two nodes each that imitates what people have (`weft-lab up OPTIONS`, see\n\
         [lab.md](lab.md#imitations)); on it ran the end-to-end tests of {} with charts and\n\
         CRDs as they are. `make test-matrix` runs and writes all of it (ROWS=\"dual loss\" some of it); where a row comes from an older\n\
         commit, that is what it says.\n\n\
         | row | imitates | options | {} | commit |\n|---|---|---|{}---|\n",
        TESTS.join(", "),
        TESTS.join(" | "),
        "---|".repeat(TESTS.len())
    );
    for row in &ROWS {
        let outcome = outcomes.get(row.name);
        let cells = TESTS.map(|test| match outcome.and_then(|outcome| outcome.tests.get(test)) {
            None => "not run".to_owned(),
            Some(Ok(passed)) => format!("{passed} passed"),
            Some(Err(failed)) => format!("**failed**: {}", failed.join(", ")),
        });
        let at = outcome.map_or(String::new(), |outcome| {
            format!("{}, {}", outcome.commit, outcome.day)
        });
        let options = match row.options {
            "" => String::new(),
            options => format!("`{options}`"),
        };
        text += &format!(
            "| {} | {} | {options} | {} | {at} |\n",
            row.name,
            row.imitates,
            cells.join(" | ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_tests_has_not_passed() {
        let good = "test one ... it prints this\nok\n\ntest result: ok. 2 passed; 0 failed; 0 ignored\n";
        assert_eq!(verdict(good, true), Ok(2));
        let bad = "test two ... FAILED\n\nfailures:\n\nfailures:\n    two\n    three\n\n\
                   test result: FAILED. 1 passed; 2 failed\n";
        assert_eq!(
            verdict(bad, false),
            Err(vec!["two".to_owned(), "three".to_owned()])
        );
        assert!(verdict("test result: ok. 0 passed; 0 failed", true).is_err());
        assert!(verdict("", true).is_err());
        assert!(verdict("error: could not compile", false).is_err());
    }

    #[test]
    fn the_page_names_what_was_not_run() {
        let text = page(&Outcomes::new());
        for row in &ROWS {
            assert!(text.contains(&format!("| {} | {} |", row.name, row.imitates)));
        }
        assert_eq!(text.matches("not run").count(), ROWS.len() * TESTS.len());
    }
}
