//! The lab: real Kubernetes clusters on one Linux machine, and the harness of
//! the end-to-end tests.
//!
//! ```text
//!   the machine's own namespaces          switch (a network namespace)
//!   kubectl, tests ── weft-lab0 ────────── br0 ──┬── cp-a   etcd, apiserver, controllers, scheduler
//!                     172.30.0.1                 ├── a1     containerd, kubelet, kube-proxy, pods
//!                                                ├── a2
//!                                                ├── cp-b
//!                                                ├── b1     every "machine" has its own net, pid,
//!                                                └── b2     mount, uts, ipc and cgroup namespaces
//! ```
//!
//! [`lab`] makes and removes the machines, [`image`] writes OCI image tars
//! without a container engine, [`harness`] is what the tests in `e2e/tests` use
//! and runs as well against clusters that somebody already has.
//!
//! [`demo`] shows Weft on it, and [`measure`] measures it there; [`matrix`]
//! tries it on every kind of cluster that the lab imitates.
//!
//! Deliberately not here: Weft itself. The lab knows no slice; it installs
//! nothing into its clusters but CoreDNS. Weft comes by its charts.

pub mod demo;
pub mod harness;
pub mod image;
pub mod lab;
pub mod matrix;
pub mod measure;
pub mod platform;
pub mod probe;
pub mod progress;
