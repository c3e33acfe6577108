//! The lab: real Kubernetes clusters on one machine, and the end-to-end tests.
