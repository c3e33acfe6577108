//! What an end-to-end test needs of a cluster, whoever runs it: a client per
//! kubeconfig context, and verbs that wait for conditions with a deadline.

mod cluster;

pub use cluster::{Cluster, connect, is_ready, poll};
