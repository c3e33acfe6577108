//! Both roles in random histories: events that lag, writes that are lost, reordered or late, crashes, changes of the lead,
//! a hub that loses its memory, a member that lies, people who delete what is in use.
//!
//! At every moment: no index is owned by two nodes that can meet, no two slices share a VNI in a cluster, and no pod of a
//! slice that nobody deleted loses its attachment. When the faults are over, what should be there is there, and nothing
//! is written any more.
//!
//! `WEFT_SIMULATION_SEED=n` runs one history, `WEFT_SIMULATION_RUNS=n` as many.

mod agent;
mod check;
mod controller;
mod events;
mod feed;
mod random;
mod world;

pub(crate) use agent::Agent;
pub(crate) use world::{World, node};

/// Things that happen in one history.
const STEPS: usize = 1500;
const RUNS: u64 = 16;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run(seed: u64) -> Result<(), String> {
    // In every fourth history the Lease protects nothing.
    let mut world = World::new(seed, seed % 4 == 3);
    let in_history = |world: &World, why: String| {
        let from = world.history.len().saturating_sub(60);
        format!("{}\n{}\n{why}", world.dump(), world.history[from..].join("\n"))
    };
    world.begin();
    world
        .check_rest()
        .map_err(|why| in_history(&world, format!("at the start: {why}")))?;
    for step in 0..STEPS {
        world.step();
        world
            .check()
            .map_err(|why| in_history(&world, format!("step {step}: {why}")))?;
    }
    world.heal();
    // An hour: longer than every grace and rest.
    for _ in 0..36 {
        world.heal();
        world.calm(10);
        world
            .check()
            .map_err(|why| in_history(&world, format!("at rest: {why}")))?;
    }
    world
        .check_rest()
        .map_err(|why| in_history(&world, format!("at rest: {why}")))?;
    let before = world.writes();
    world.calm(12);
    match world.writes() - before {
        0 => Ok(()),
        more => Err(in_history(
            &world,
            format!("{more} writes although nothing happens"),
        )),
    }
}

#[test]
fn no_history_gives_an_index_twice_or_takes_one_from_a_pod() {
    let seeds = match number("WEFT_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WEFT_SIMULATION_RUNS").unwrap_or(RUNS),
    };
    println!("seeds {seeds:?}, {STEPS} steps each");
    for seed in seeds {
        if let Err(why) = run(seed) {
            panic!("{why}\nWEFT_SIMULATION_SEED={seed} repeats it");
        }
    }
}
