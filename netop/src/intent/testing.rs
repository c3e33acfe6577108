//! Worlds of a few lines, for the tests of this module.

use std::{net::IpAddr, sync::Arc};

use slice_crds::{
    IndexRange,
    v1alpha1::{
        AttachMode, Broadcast, GatewayPlacement, PeerCluster, PeerGateway, Slice, SliceBlock, SliceBlockSpec,
        SliceGateway, SliceGatewaySpec, SliceGatewayStatus, SliceSpec,
    },
};

use super::Local;
use crate::world::{SliceFacts, World};

/// A slice with one other cluster that has a gateway.
pub(super) fn facts() -> SliceFacts {
    let peer = PeerCluster {
        name: "tokyo".into(),
        number: 2,
        ranges: vec![],
        gateways: vec![PeerGateway {
            ordinal: 0,
            public_key: String::new(),
            former_key: None,
            endpoints: vec![],
        }],
    };
    let spec = SliceSpec {
        vni: 7,
        subnets: vec!["10.80.0.0/16".parse().unwrap()],
        mtu: 1370,
        largest_mtu: None,
        block_size: 8,
        cluster: "paris".into(),
        cluster_number: 1,
        ranges: vec![],
        releasing: vec![],
        peers: vec![peer],
        namespaces: vec![],
        join: None,
        attach: AttachMode::Required,
        gateway: GatewayPlacement::default(),
        frames: None,
        broadcast: Broadcast::default(),
        dscp: 0,
        shaping: None,
        source: None,
    };
    SliceFacts::parse(&Slice::new("shop", spec)).unwrap()
}

/// Nodes n0, n1, … of which the first so many have a gateway.
pub(super) fn cluster(nodes: u32, gateways: u32) -> World {
    let mut world = World::default();
    for n in 0..nodes {
        let spec = SliceBlockSpec {
            slice: "shop".into(),
            node: format!("n{n}"),
            node_address: IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]),
            blocks: vec![IndexRange::new(n * 8, 8)],
            releasing: vec![],
            withdrawn: None,
        };
        let block = SliceBlock::new(&format!("shop.n{n}"), spec);
        world.blocks.insert(Arc::new(block));
    }
    for ordinal in 0..gateways {
        let spec = SliceGatewaySpec {
            slice: "shop".into(),
            ordinal,
            endpoints: vec![],
            node: None,
            lost: false,
        };
        let mut gateway = SliceGateway::new(&format!("weft-gateway-shop-{ordinal}"), spec);
        let node = Some(format!("n{ordinal}"));
        gateway.status = Some(SliceGatewayStatus {
            node,
            connected: true,
            ..SliceGatewayStatus::default()
        });
        world.gateways.insert(("shop".into(), ordinal), Arc::new(gateway));
    }
    world
}

pub(super) fn node(n: u32) -> Local {
    Local {
        node: format!("n{n}"),
        ..Local::default()
    }
}

pub(super) fn edit_block(world: &mut World, node: u32, change: impl FnOnce(&mut SliceBlockSpec)) {
    let block = world.blocks.get_mut("shop", &format!("n{node}")).unwrap();
    change(&mut block.spec);
}
