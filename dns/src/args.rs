//! Flags, each with a twin in the environment.

use std::net::SocketAddr;

use clap::Parser;
use slice_runtime::telemetry::LogArgs;

/// Answers the slice zone.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    #[command(flatten)]
    pub log: LogArgs,
    /// Namespace of the SliceService objects.
    #[arg(long, env = "POD_NAMESPACE", default_value = slice_crds::names::MEMBER_NAMESPACE)]
    pub namespace: String,
    /// Where every slice is answered for, and the port on the slices' interfaces.
    #[arg(long, env = "WEFT_DNS_LISTEN", default_value = "[::]:53")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "WEFT_ADMIN", default_value = "[::]:9403")]
    pub admin: SocketAddr,
}
