//! Which build this is.

/// `0.1.0`: the workspace's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
