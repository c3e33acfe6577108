use std::net::IpAddr;

use slice_crds::{
    names,
    v1alpha1::{AttachMode, SliceBlockStatus},
};

use super::*;
use crate::member::nodes::NodeAddress;

/// A slice, its nodes and its blocks; agents obey at once.
struct Scene {
    spec: SliceSpec,
    nodes: Nodes,
    there: BTreeMap<String, Arc<SliceBlock>>,
    gone: BTreeMap<String, Duration>,
    used: BTreeMap<(String, String), Vec<IpAddr>>,
}

fn scene(subnet: &str, block: u32, ranges: &[(u32, u32)], nodes: &[&str]) -> Scene {
    Scene {
        spec: SliceSpec {
            vni: 4097,
            subnets: vec![subnet.parse().unwrap()],
            mtu: 1370,
            largest_mtu: None,
            block_size: block,
            cluster: "a".into(),
            cluster_number: 1,
            ranges: ranges
                .iter()
                .map(|(start, size)| IndexRange::new(*start, *size))
                .collect(),
            releasing: vec![],
            peers: vec![],
            namespaces: vec![],
            join: None,
            attach: AttachMode::Required,
            gateway: Default::default(),
            frames: None,
            broadcast: Default::default(),
            dscp: 0,
            shaping: None,
            source: None,
        },
        nodes: Nodes {
            usable: nodes
                .iter()
                .enumerate()
                .map(|(n, name)| ((*name).to_owned(), address(name, n)))
                .collect(),
            ..Nodes::default()
        },
        there: BTreeMap::new(),
        gone: BTreeMap::new(),
        used: BTreeMap::new(),
    }
}

fn address(name: &str, n: usize) -> NodeAddress {
    NodeAddress {
        name: name.to_owned(),
        address: IpAddr::from([172, 30, 1, u8::try_from(n).unwrap()]),
    }
}

impl Scene {
    fn plan(&self) -> Plan {
        plan(&Request {
            slice: "shop",
            spec: &self.spec,
            nodes: &self.nodes,
            there: &self.there,
            gone: &self.gone,
            used: &self.used,
        })
    }

    /// Writes the plan.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        for node in &plan.remove {
            self.there.remove(node);
        }
        for (node, spec) in plan.specs.clone() {
            let old = self.there.get(&node);
            let generation = old.map_or(0, |old| old.metadata.generation.unwrap_or_default());
            let changed = old.is_none_or(|old| old.spec != spec);
            let mut block = SliceBlock::new(&names::block("shop", &node), spec);
            block.metadata.generation = Some(generation + i64::from(changed));
            block.status = old.and_then(|old| old.status.clone());
            self.there.insert(node, Arc::new(block));
        }
        plan
    }

    /// What a node's agent reports, of the spec that is there.
    fn report(&mut self, node: &str, free: u32, idle: &[(u32, u32)]) -> &mut Self {
        let block = Arc::make_mut(self.there.get_mut(node).unwrap());
        block.status = Some(SliceBlockStatus {
            free,
            usable: 64,
            idle: idle
                .iter()
                .map(|(start, size)| IndexRange::new(*start, *size))
                .collect(),
            released: block.spec.releasing.clone(),
            present: Some(true),
            observed_generation: block.metadata.generation,
            ..SliceBlockStatus::default()
        });
        self
    }

    fn text(&self) -> Vec<String> {
        let line = |(node, block): (&String, &Arc<SliceBlock>)| {
            let blocks: Vec<String> = block
                .spec
                .blocks
                .iter()
                .map(|run| {
                    format!(
                        "{}{run}",
                        if block.spec.releasing.contains(run) {
                            "!"
                        } else {
                            ""
                        }
                    )
                })
                .collect();
            let withdrawn = if block.spec.withdrawn.is_some() {
                " withdrawn"
            } else {
                ""
            };
            format!("{node} {}{withdrawn}", blocks.join(" "))
        };
        self.there.iter().map(line).collect()
    }
}

#[test]
fn every_node_has_a_block_and_keeps_it() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 256)], &["n1", "n2"]);
    scene.step();
    assert_eq!(scene.text(), ["n1 0+64", "n2 64+64"]);
    scene.nodes.usable.insert("n0".into(), address("n0", 9));
    scene.step();
    assert_eq!(scene.text(), ["n0 128+64", "n1 0+64", "n2 64+64"]);
}

#[test]
fn a_node_that_runs_out_gets_one_block_for_each_report() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 1024)], &["n1"]);
    scene.step();
    scene.report("n1", 3, &[]);
    for _ in 0..20 {
        scene.step();
    }
    assert_eq!(scene.text(), ["n1 0+64 64+64"]);
    assert_eq!(scene.report("n1", 3, &[]).step().needed, 3);
}

#[test]
fn a_node_that_is_gone_keeps_its_blocks_for_a_while() {
    let mut scene = scene("10.80.0.0/24", 32, &[(0, 64)], &["n1", "n2"]);
    scene.step();
    scene.nodes.usable.remove("n2");
    scene.nodes.usable.insert("n3".into(), address("n3", 7));
    scene.gone.insert("n2".into(), Duration::from_secs(599));
    let plan = scene.step();
    assert_eq!(scene.text(), ["n1 0+32", "n2 32+32 withdrawn", "n3 "]);
    assert_eq!((plan.needed, plan.short.len()), (3, 1));
    scene.gone.insert("n2".into(), REST);
    scene.step();
    assert_eq!(scene.text(), ["n1 0+32", "n3 32+32"]);
}

#[test]
fn an_odd_node_is_withdrawn_and_the_others_go_on() {
    let mut scene = scene("10.80.0.0/24", 32, &[(0, 128)], &["n1", "n2"]);
    scene.step();
    scene.nodes.usable.remove("n2");
    scene
        .nodes
        .left_out
        .insert("n2".into(), "it has the address of n1".into());
    scene.nodes.left_out.insert("n9".into(), "Windows".into());
    scene.step();
    assert_eq!(scene.text(), ["n1 0+32", "n2 32+32 withdrawn"]);
    scene.nodes.left_out.remove("n2");
    scene.nodes.usable.insert("n2".into(), address("n2", 1));
    scene.step();
    assert_eq!(scene.text(), ["n1 0+32", "n2 32+32"]);
}

#[test]
fn one_node_does_not_keep_what_others_need() {
    let mut scene = scene("10.80.0.0/26", 8, &[(0, 64)], &["n1"]);
    scene.step();
    for _ in 0..6 {
        scene.report("n1", 0, &[]).step();
    }
    assert_eq!(scene.text(), ["n1 0+8 8+8 16+8 24+8 32+8 40+8 48+8"]);
    scene.nodes.usable.insert("n2".into(), address("n2", 2));
    scene.nodes.usable.insert("n3".into(), address("n3", 3));
    scene.step();
    assert_eq!(scene.text()[1..], ["n2 56+8", "n3 "]);
    // Its pods are gone, and their indices have rested.
    scene.report("n1", 3, &[(16, 8), (24, 8)]).step();
    assert_eq!(scene.text()[0], "n1 0+8 8+8 !16+8 24+8 32+8 40+8 48+8");
    scene.report("n1", 3, &[(24, 8)]).step();
    assert_eq!(
        scene.text(),
        ["n1 0+8 8+8 24+8 32+8 40+8 48+8", "n2 56+8", "n3 16+8"]
    );
}

#[test]
fn what_a_node_does_not_need_comes_back_one_by_one() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 1024)], &["n1"]);
    scene.step();
    scene.report("n1", 0, &[]).step();
    scene.report("n1", 0, &[]).step();
    let idle = [(64, 64), (128, 64)];
    scene.report("n1", 160, &idle).step();
    assert_eq!(scene.text(), ["n1 0+64 !64+64 128+64"]);
    // A report that is older than the spec changes nothing.
    scene.step();
    assert_eq!(scene.text(), ["n1 0+64 !64+64 128+64"]);
    scene.report("n1", 96, &[(128, 64)]).step();
    assert_eq!(scene.text(), ["n1 0+64 !128+64"]);
    scene.report("n1", 40, &[]).step();
    assert_eq!(scene.text(), ["n1 0+64"]);
}

#[test]
fn a_range_is_given_back_when_no_node_has_a_block_of_it() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 64), (64, 64)], &["n1", "n2"]);
    scene.step();
    scene.spec.releasing = vec![IndexRange::new(64, 64)];
    let plan = scene.step();
    assert_eq!(
        (scene.text()[1].as_str(), plan.given_back.len()),
        ("n2 !64+64", 0)
    );
    let plan = scene.report("n2", 0, &[]).step();
    assert_eq!(
        (scene.text()[1].as_str(), plan.given_back.as_slice()),
        ("n2 ", [IndexRange::new(64, 64)].as_slice())
    );
    assert_eq!(plan.short.len(), 1);
}

#[test]
fn idle_runs_are_as_large_as_they_can_be() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 1024), (4096, 256)], &["n1"]);
    let plan = scene.step();
    let idle: Vec<String> = plan.idle.iter().map(ToString::to_string).collect();
    assert_eq!(idle, ["64+64", "128+128", "256+256", "512+512", "4096+256"]);
}

#[test]
fn a_block_goes_when_its_node_has_taken_the_slice_down() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 256)], &["n1"]);
    scene.step();
    let known = BTreeSet::from(["n1".to_owned()]);
    let nodes = scene.nodes.clone();
    let step = |block: &SliceBlock, known: &BTreeSet<String>, gone| take_down(block, &nodes, known, gone);
    let block = |scene: &Scene| (*scene.there["n1"]).clone();
    assert_eq!(
        step(&block(&scene), &known, None),
        TakeDown::Wait,
        "its agent has not reported"
    );
    scene.report("n1", 3, &[]);
    let mut down = block(&scene);
    down.status.as_mut().unwrap().present = Some(false);
    // That it was absent says nothing: it may be from before the slice was set up.
    let TakeDown::Ask(spec) = step(&down, &known, None) else {
        panic!()
    };
    assert_eq!(spec.releasing, spec.blocks);
    (down.spec, down.metadata.generation) = (spec, Some(2));
    assert_eq!(
        step(&down, &known, None),
        TakeDown::Wait,
        "not for this generation"
    );
    down.status.as_mut().unwrap().observed_generation = Some(2);
    assert_eq!(step(&down, &known, None), TakeDown::Remove);
    down.status.as_mut().unwrap().present = Some(true);
    assert_eq!(step(&down, &known, None), TakeDown::Wait);
    // Cut off, and its Node is gone.
    let nobody = BTreeSet::new();
    assert_eq!(
        step(&down, &nobody, Some(Duration::from_secs(599))),
        TakeDown::Wait
    );
    assert_eq!(step(&down, &nobody, Some(REST)), TakeDown::Remove);
    // An agent from before.
    down.status = Some(SliceBlockStatus::default());
    assert_eq!(step(&down, &known, None), TakeDown::Remove);
}

#[test]
fn indices_of_pods_are_given_to_nobody_although_their_block_was_lost() {
    let mut scene = scene("10.80.0.0/16", 64, &[(0, 256)], &["n1", "n2"]);
    scene.step();
    scene.there.clear();
    let address = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
    scene
        .used
        .insert(("shop".into(), "web-0".into()), address("10.80.0.70"));
    scene
        .used
        .insert(("shop".into(), "web-1".into()), address("10.80.0.71"));
    scene
        .used
        .insert(("shop".into(), "other".into()), address("192.0.2.1"));
    scene.step();
    assert_eq!(scene.text(), ["n1 0+64", "n2 128+64"]);
    // When its agent has reported them, the node that they are on has them again.
    scene.report("n2", 60, &[]);
    let block = Arc::make_mut(scene.there.get_mut("n2").unwrap());
    block.status.as_mut().unwrap().strays = vec![IndexRange::new(70, 1), IndexRange::new(71, 1)];
    scene.step();
    assert_eq!(scene.text(), ["n1 0+64", "n2 128+64 64+64"]);
}
