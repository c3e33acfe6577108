//! A gateway process that stands still: the machine is busy, a hypervisor takes the processor away, a debugger looks in.

use std::{thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    farm::Farm,
    lab::{Lab, Underlay, eventually},
};

/// The sum of a metric of a-gw0 over all its peers.
fn total(lab: &Lab, metric: &str) -> u64 {
    let metrics = lab.admin("a-gw0", "/metrics");
    let start = format!("{metric}{{");
    let values = (metrics.lines())
        .filter(|line| line.starts_with(&start))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    values.sum()
}

/// Stops the gateway for so long, and tells how many peers it took for dead by that.
fn downs_by_a_stall(lab: &Lab, stall: u64) -> u64 {
    let gateway = Pid::from_raw(lab.pids()[0].cast_signed());
    let before = total(lab, "weft_gateway_tunnel_downs_total");
    kill(gateway, Signal::SIGSTOP).unwrap();
    thread::sleep(Duration::from_millis(stall));
    kill(gateway, Signal::SIGCONT).unwrap();
    let echoes = total(lab, "weft_gateway_echoes_total");
    eventually("the peers answer again, each several times", || {
        (total(lab, "weft_gateway_echoes_total") > echoes + 41 * 5).then_some(())
    });
    total(lab, "weft_gateway_tunnel_downs_total") - before
}

#[test]
fn a_gateway_that_stood_still_takes_none_of_forty_peers_for_dead() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let farm = Farm::start(&lab, 40);
    for stall in [500, 500, 2000, 2000] {
        let undisturbed = (0..10).find_map(|_| {
            farm.was_away();
            let downs = downs_by_a_stall(&lab, stall);
            let away = farm.was_away();
            // On a busy machine the peers themselves may stand still.
            (downs == 0 || away < Duration::from_millis(150)).then_some(downs)
        });
        assert_eq!(undisturbed, Some(0), "after {stall} ms");
    }
}
