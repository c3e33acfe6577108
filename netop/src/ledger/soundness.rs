//! Whatever comes and goes, and whatever an agent that starts again is shown.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    MIN_REST, REST,
    tests::{at, give, grant, leave, ledger, pod, subnets},
};

/// What comes and goes.
#[derive(Clone, Debug)]
enum Step {
    Comes(u32),
    Goes(u32),
    /// The operator writes which of the four blocks the node has, and which of these are releasing.
    Spec {
        has: [bool; 4],
        releasing: [bool; 4],
    },
    /// A spec from before comes again, as from a watch that is behind.
    Stale,
    /// The agent starts again, with what was saved.
    Restart,
    Passes(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..12).prop_map(Step::Comes),
        4 => (0u32..12).prop_map(Step::Goes),
        2 => (any::<[bool; 4]>(), any::<[bool; 4]>()).prop_map(|(has, releasing)| Step::Spec { has, releasing }),
        1 => Just(Step::Stale),
        1 => Just(Step::Restart),
        3 => (0i64..400).prop_map(Step::Passes),
    ]
}

proptest! {
    /// Whatever comes and goes: no index twice, none moved under a pod, none out of a block that is not the node's
    /// or that is to be given back, none before it has rested, and the figures add up.
    #[test]
    fn indices_are_handed_out_soundly(steps in prop::collection::vec(step(), 1..200)) {
        const BLOCKS: [(u32, u32); 4] = [(0, 4), (8, 4), (16, 4), (60, 4)];
        let mut ledger = ledger(&BLOCKS);
        let mut newest = grant(1, &BLOCKS, &[]);
        let mut specs = vec![newest.clone()];
        let mut freed: BTreeMap<u32, (i64, u32)> = BTreeMap::new();
        let mut has: BTreeMap<u32, u32> = BTreeMap::new();
        let mut clock = 0;
        for step in steps {
            match step {
                Step::Comes(n) => {
                    let before = ledger.usage("shop", subnets(), at(clock));
                    match give(&mut ledger, n, clock) {
                        Ok(index) => match has.insert(n, index) {
                            Some(known) => prop_assert_eq!(known, index),
                            None => {
                                prop_assert!(newest.blocks.iter().any(|block| block.contains(index)));
                                prop_assert!(!newest.releasing.iter().any(|block| block.contains(index)));
                                prop_assert!(subnets().usable(index));
                                let rest = match before.free {
                                    0 => MIN_REST,
                                    _ => REST,
                                };
                                let rested = freed.get(&index).is_none_or(|(since, of)| {
                                    *of == n || clock - since >= rest.as_secs()
                                });
                                prop_assert!(rested, "{} was free since {:?}", index, freed.get(&index));
                            }
                        },
                        Err(exhausted) => {
                            prop_assert_eq!(before.free, 0);
                            prop_assert!(exhausted.next.is_none_or(|next| next > at(clock)));
                        }
                    }
                }
                Step::Goes(n) => {
                    if let Some(index) = has.remove(&n) {
                        freed.insert(index, (clock, n));
                    }
                    leave(&mut ledger, n, clock);
                }
                Step::Spec { has, releasing } => {
                    let chosen = |which: [bool; 4]| {
                        let blocks = BLOCKS.into_iter().zip(which);
                        blocks.filter(|(_, chosen)| *chosen).map(|(block, _)| block).collect::<Vec<_>>()
                    };
                    newest = grant(newest.generation + 1, &chosen(has), &chosen(releasing));
                    ledger.accept("shop", newest.clone()).unwrap();
                    specs.push(newest.clone());
                }
                Step::Stale => {
                    for spec in &specs {
                        let taken = ledger.accept("shop", spec.clone()).is_ok();
                        prop_assert_eq!(taken, spec.generation == newest.generation);
                    }
                }
                Step::Restart => {
                    let directory = tempfile::tempdir().unwrap();
                    let path = directory.path().join("attachments.json");
                    crate::checkpoint::save(&path, &ledger).unwrap();
                    let loaded = crate::checkpoint::load(&path).unwrap().unwrap();
                    prop_assert_eq!(&loaded, &ledger);
                    ledger = loaded;
                }
                Step::Passes(seconds) => clock += seconds,
            }
            ledger.retain(at(clock), |_, _| true);
            let held = ledger.pages["shop"].held.clone();
            let of_pod = |index: &u32| held.get(index).map(|holder| holder.uid.clone());
            prop_assert_eq!(held.len(), has.len());
            for (n, index) in &has {
                prop_assert_eq!(of_pod(index), Some(pod(*n).uid));
            }
            prop_assert_eq!(has.values().collect::<BTreeSet<_>>().len(), has.len());
            let usage = ledger.usage("shop", subnets(), at(clock));
            prop_assert!(usage.free + usage.resting <= usage.usable);
            for block in ledger.released("shop").iter().chain(&ledger.idle("shop", at(clock))) {
                prop_assert!(!has.values().any(|index| block.contains(*index)));
            }
        }
    }
}
