//! The node agent: segments, attachments and the CNI plugin.
pub mod desired;
pub mod kernel;
pub mod model;
pub mod plan;
