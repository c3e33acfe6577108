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

#[test]
fn a_gateway_that_stood_still_takes_none_of_forty_peers_for_dead() {
    let lab = Lab::new(&[1, 1], Underlay::V4);
    let _farm = Farm::start(&lab, 40);
    let gateway = Pid::from_raw(lab.pids()[0].cast_signed());
    for stall in [500, 2000] {
        for _ in 0..3 {
            kill(gateway, Signal::SIGSTOP).unwrap();
            thread::sleep(Duration::from_millis(stall));
            kill(gateway, Signal::SIGCONT).unwrap();
            let before = total(&lab, "weft_gateway_echoes_total");
            eventually("the peers answer again, each several times", || {
                (total(&lab, "weft_gateway_echoes_total") > before + 41 * 5).then_some(())
            });
            assert_eq!(
                total(&lab, "weft_gateway_tunnel_downs_total"),
                0,
                "after {stall} ms"
            );
        }
    }
}
