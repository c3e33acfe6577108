//! The node agent: segments, attachments and the CNI plugin.
pub mod checkpoint;
pub mod cni;
pub mod desired;
pub mod files;
pub mod intent;
pub mod kernel;
pub mod ledger;
pub mod model;
pub mod plan;
pub mod pods;
pub mod world;
