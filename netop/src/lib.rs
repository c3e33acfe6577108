//! The node agent: it makes slices on its node, attaches the node's pods to them, and hands gateways their TAP.
//!
//! ```text
//!  watch ─► world ─┐                                             ┌─► kernel   links, programs, maps, pods' ends
//!  cni, pods ──────┼─► agent: intent ─► desired ─► plan ─────────┤
//!  gateways ───────┘     ledger: who has which index             └─► status ─► report   to the API server
//!                                                                              heartbeat
//! ```
//!
//! Reading order: [`model`] is what a kernel holds, [`desired`] what it should hold, [`plan`] the difference in an
//! order in which no frame can go astray; [`world`], [`ledger`] and [`intent`] say where the wish comes from;
//! [`agent`] is the loop around it, [`driver`] the clocks and sockets around that. The small program `slice-cni` of
//! this package is [`cni::plugin`] and nothing else.
//!
//! Deliberately not here: who is in a slice ([`slice_crds::membership`] says), which node has which block (the cluster
//! operator decides), anything between clusters (gateways), any key. `model`, `desired`, `plan`, `world`, `ledger`,
//! `intent`, `classes`, `shares`, `pod_network` and `status` name no netlink, client, socket, file or clock.

pub mod model;
pub mod names;

pub mod blocks;
pub mod classes;
pub mod desired;
pub mod intent;
pub mod ledger;
pub mod liveness;
pub mod mesh;
pub mod plan;
pub mod pod_network;
pub mod programs;
pub mod shares;
pub mod status;
pub mod world;

pub mod agent;
pub mod args;
pub mod chain;
pub mod checkpoint;
pub mod cni;
pub mod directories;
pub mod driver;
pub mod files;
pub mod gateways;
pub mod heartbeat;
pub mod kernel;
pub mod metrics;
pub mod pods;
pub mod report;
pub mod sandboxes;
pub mod show;
pub mod watch;
