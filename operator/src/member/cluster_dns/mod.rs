//! The cluster's own DNS: that pods outside of slices, and every resolver that asks it, get names of slices from `slice-dns`.
//! Pure.
//!
//! ```text
//!  ConfigMaps by name ──► plan ──► what each should hold      a Corefile, or what it imports
//!                          └─────► warnings                   what a person has to do, with the lines to add
//!  what DNS answers ────► trial ──► written, marked, taken out again
//! ```
//!
//! CoreDNS answers, caches and reloads as it did; the stub is one server block of its own ([`stub`]). Deliberately not here:
//! the DNS of platforms that undo what others write, such as OpenShift's, and kube-dns. A person adds the zone there.

pub mod corefile;
mod plan;
pub mod stub;
#[cfg(test)]
mod tests;
mod trial;

pub use self::plan::{Config, ConfigMaps, Data, Id, OPENSHIFT, Plan, Request, Warning, left, plan};
pub use self::trial::{Answers, Mark, PATIENCE, Trial};
