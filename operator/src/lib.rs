//! Hub and cluster controllers.
