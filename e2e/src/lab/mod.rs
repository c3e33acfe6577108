//! The lab: which machines there are ([`plan`]), what of other
//! people's clusters it imitates ([`options`]), what runs on them ([`config`]), how a machine is made ([`init`], [`machine`]) and how
//! everything begins ([`up`]) and ends ([`remove`]).

pub mod cgroup;
pub mod cluster_dns;
pub mod config;
pub mod dir;
pub mod family;
pub mod images;
pub mod init;
pub mod machine;
pub mod network;
pub mod options;
pub mod ours;
pub mod pki;
pub mod plan;
pub mod preflight;
pub mod process;
pub mod programs;
pub mod release;
pub mod reload;
pub mod remove;
pub mod running;
pub mod setup;
pub mod supervise;
pub mod sysctl;
pub mod unit;
pub mod up;
pub mod wire;
