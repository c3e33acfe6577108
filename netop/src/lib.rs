//! The node agent: segments, attachments and the CNI plugin.
pub mod cni;
pub mod desired;
pub mod kernel;
pub mod model;
pub mod plan;
