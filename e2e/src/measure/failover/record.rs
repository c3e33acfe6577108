//! What is kept of runs: the rounds of the latest run of each fault, and the figures of them.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Fault, Round};
use crate::{
    measure::{Figures, docs},
    progress::say,
};

/// Rounds of all faults that were measured on one machine.
#[derive(Debug)]
pub(super) struct Record {
    kept: Kept,
    figures_file: PathBuf,
}

/// As it is in the file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    machine: String,
    rounds: Vec<Round>,
}

impl Record {
    /// Reads what earlier runs on this machine left beside `figures_file`. What another machine left is not mixed with
    /// what this one finds: it is forgotten with the next write.
    pub(super) fn open(figures_file: &Path, machine: &str) -> Result<Self> {
        let mut record = Self {
            kept: Kept::default(),
            figures_file: figures_file.to_owned(),
        };
        let path = record.rounds_file();
        record.kept = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        if record.kept.machine != machine {
            if !record.is_empty() {
                say(format!(
                    "{} is of another machine ({}) and is replaced",
                    path.display(),
                    record.kept.machine
                ));
                record.kept.rounds.clear();
                std::fs::remove_file(figures_file)
                    .or_else(|error| match error.kind() {
                        ErrorKind::NotFound => Ok(()),
                        _ => Err(error),
                    })
                    .with_context(|| format!("remove {}", figures_file.display()))?;
            }
            record.kept.machine = machine.to_owned();
        }
        Ok(record)
    }

    /// `failover-rounds.json` beside `failover.json`.
    pub(super) fn rounds_file(&self) -> PathBuf {
        let name = self.figures_file.file_stem().unwrap_or_default();
        self.figures_file
            .with_file_name(format!("{}-rounds.json", name.display()))
    }

    pub(super) fn machine(&self) -> &str {
        &self.kept.machine
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.kept.rounds.is_empty()
    }

    /// The rounds of each fault that was measured, in the order of [`Fault::ALL`].
    pub(super) fn faults(&self) -> impl Iterator<Item = (Fault, Vec<&Round>)> {
        Fault::ALL
            .into_iter()
            .map(|fault| (fault, self.of(fault).collect::<Vec<_>>()))
            .filter(|(_, rounds)| !rounds.is_empty())
    }

    fn of(&self, fault: Fault) -> impl Iterator<Item = &Round> {
        self.kept.rounds.iter().filter(move |round| round.fault == fault)
    }

    /// Puts these rounds in the place of all earlier ones of the fault.
    pub(super) fn replace(&mut self, fault: Fault, rounds: &[Round]) {
        self.kept.rounds.retain(|round| round.fault != fault);
        self.kept.rounds.extend_from_slice(rounds);
    }

    /// Writes rounds and figures.
    pub(super) fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.kept).context("encode the rounds")?;
        docs::write(&self.rounds_file(), &(text + "\n"))?;
        self.figures().write(&self.figures_file)
    }

    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for (fault, rounds) in self.faults() {
            let of =
                |value: fn(&Round) -> f64| -> Vec<f64> { rounds.iter().map(|round| value(round)).collect() };
            let (outages, silences) = (of(|round| round.outage_ms), of(|round| round.tcp_ms));
            let name = fault.name();
            for (share, label) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
                figures.add_quantile("weft", name, &format!("outage_ms_{label}"), "ms", &outages, share);
                figures.add_quantile(
                    "weft",
                    name,
                    &format!("tcp_silence_ms_{label}"),
                    "ms",
                    &silences,
                    share,
                );
            }
            figures.add("weft", name, "lost", "datagrams", &of(|round| round.lost));
        }
        figures
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rounds with these outages, a datagram each 5 ms.
    pub(in super::super) fn rounds(fault: Fault, outages: &[f64]) -> Vec<Round> {
        let round = |outage_ms: &f64| Round {
            fault,
            at: "2026-11-21T10:00:00Z".to_owned(),
            what: "weft-gateway-lasts-0 & [{\"ms\":345.0}]".to_owned(),
            outage_ms: *outage_ms,
            lost: (outage_ms / 5.0).floor(),
            tcp_ms: outage_ms * 1.5,
        };
        outages.iter().map(round).collect()
    }

    /// A record that is nowhere yet.
    pub(in super::super) fn record(all: &[(Fault, &[f64])]) -> Record {
        let mut record = Record {
            kept: Kept {
                machine: "a machine, 2 cores".to_owned(),
                rounds: Vec::new(),
            },
            figures_file: PathBuf::from("nowhere/failover.json"),
        };
        for (fault, outages) in all {
            record.replace(*fault, &rounds(*fault, outages));
        }
        record
    }

    /// A run of one fault on a machine.
    fn run(path: &Path, machine: &str, fault: Fault, outages: &[f64]) {
        let mut record = Record::open(path, machine).unwrap();
        record.replace(fault, &rounds(fault, outages));
        record.write().unwrap();
    }

    /// Maximum and number of outages in the figures, by fault.
    fn figures(path: &Path) -> Vec<(String, f64, u64)> {
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let max = rows.iter().filter(|row| row["metric"] == "outage_ms_max");
        max.map(|row| {
            (
                row["test"].as_str().unwrap().to_owned(),
                row["median"].as_f64().unwrap(),
                row["n"].as_u64().unwrap(),
            )
        })
        .collect()
    }

    #[test]
    fn a_run_of_one_fault_replaces_its_rounds_and_keeps_those_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench/failover.json");
        run(&path, "here", Fault::Drain, &[0.0, 7.0]);
        run(&path, "here", Fault::GatewayKill, &[300.0, 310.0, 320.0]);
        run(&path, "here", Fault::Drain, &[0.0]);
        let record = Record::open(&path, "here").unwrap();
        let kept: Vec<_> = record
            .faults()
            .map(|(fault, rounds)| {
                (
                    fault,
                    rounds.iter().map(|round| round.outage_ms).collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(
            kept,
            [
                (Fault::GatewayKill, vec![300.0, 310.0, 320.0]),
                (Fault::Drain, vec![0.0])
            ]
        );
        let expected = [
            ("gateway-kill".to_owned(), 320.0, 3),
            ("drain".to_owned(), 0.0, 1),
        ];
        assert_eq!(figures(&path), expected);
    }

    #[test]
    fn figures_whose_rounds_were_not_kept_stay_until_they_are_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failover.json");
        run(&path, "here", Fault::NodeCut, &[330.0]);
        std::fs::remove_file(folder.path().join("failover-rounds.json")).unwrap();
        run(&path, "here", Fault::Drain, &[0.0]);
        let expected = [("node-cut".to_owned(), 330.0, 1), ("drain".to_owned(), 0.0, 1)];
        assert_eq!(figures(&path), expected);
    }

    #[test]
    fn rounds_of_another_machine_are_not_mixed_with_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failover.json");
        run(&path, "there", Fault::NodeCut, &[900.0]);
        run(&path, "here", Fault::Drain, &[0.0]);
        assert_eq!(figures(&path), [("drain".to_owned(), 0.0, 1)]);
        let record = Record::open(&path, "here").unwrap();
        assert_eq!(record.faults().count(), 1);
    }
}
