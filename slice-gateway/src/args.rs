//! Flags, each with an environment twin.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use slice_runtime::telemetry::LogArgs;

use crate::proto::lane::MAX_LANES;

/// Carries a slice's Ethernet frames between clusters over WireGuard.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "slice-gateway", version)]
pub struct Args {
    /// Socket of the node agent.
    #[arg(
        long,
        env = "WEFT_SOCKET",
        default_value = "/run/weft/gateway/netop.sock",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
    /// Which replica this is; by default the number at the end of POD_NAME.
    #[arg(long, env = "WEFT_ORDINAL", value_name = "NUMBER")]
    pub ordinal: Option<u32>,
    /// Name of the own pod, as a StatefulSet gives it.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    /// Where to receive WireGuard; [::] is both families.
    #[arg(
        long,
        env = "WEFT_LISTEN",
        default_value = "[::]:51820",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,
    /// Threads that carry frames, each with a queue of the TAP device and a tunnel to each peer.
    #[arg(
        long,
        env = "WEFT_THREADS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_LANES)),
        value_name = "NUMBER"
    )]
    pub threads: u8,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "WEFT_ADMIN", default_value = "[::]:9402", value_name = "ADDRESS")]
    pub admin: SocketAddr,
    #[command(flatten)]
    pub log: LogArgs,
}

impl Args {
    /// # Errors
    /// Where neither flag nor pod name says it.
    pub fn ordinal(&self) -> anyhow::Result<u32> {
        if let Some(ordinal) = self.ordinal {
            return Ok(ordinal);
        }
        let name = self
            .pod_name
            .as_deref()
            .context("say which replica this is with --ordinal or POD_NAME")?;
        let suffix = name.rsplit_once('-').and_then(|(_, suffix)| suffix.parse().ok());
        suffix.with_context(|| {
            format!("POD_NAME \"{name}\" does not end in a number as a StatefulSet's pods do; use --ordinal")
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[track_caller]
    fn check(flags: &[&str], expected: Result<u32, &str>) {
        let args = Args::parse_from(["slice-gateway"].iter().chain(flags));
        assert_eq!(
            args.ordinal().map_err(|error| error.to_string()),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn the_replica_is_known_by_its_number() {
        check(&["--ordinal", "3", "--pod-name", "gateway-shop-1"], Ok(3));
        check(&["--pod-name", "gateway-shop-12"], Ok(12));
        check(
            &["--pod-name", "gateway"],
            Err("POD_NAME \"gateway\" does not end in a number as a StatefulSet's pods do; use --ordinal"),
        );
    }
}
