//! Flags, each with its environment variable.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use slice_runtime::telemetry::LogArgs;

/// The node agent of Weft: makes slices on its node and attaches the node's pods to them.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "slice-netop", version)]
pub struct Args {
    #[command(flatten)]
    pub log: LogArgs,
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// This node's address in its cluster, until its blocks say it; the interface that has it gives the underlay's MTU.
    #[arg(long, env = "NODE_ADDRESS")]
    pub node_address: Option<IpAddr>,
    /// Print what the agent that runs on this node last saw there, as JSON, and do nothing else.
    #[arg(long)]
    pub show: bool,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "WEFT_ADMIN", default_value = "[::]:9401")]
    pub admin: SocketAddr,
    /// Sockets and records, at the same path on the host.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// What outlives a start of the node, at the same path on the host.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// The host's named network namespaces; their mounts must propagate from the host.
    #[arg(long, env = "WEFT_NETNS_DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// libcni's cache of results on the host.
    #[arg(long, env = "WEFT_CNI_RESULTS_DIR", default_value = "/var/lib/cni/results")]
    pub cni_results_dir: PathBuf,
    /// Where parts of the host's file system are mounted, each at its own path.
    #[arg(long, env = "WEFT_HOST_ROOT", default_value = "/host")]
    pub host_root: PathBuf,
    /// The container runtime's CNI configurations, on the host.
    #[arg(long, env = "WEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where the container runtime looks for CNI plugins, on the host.
    #[arg(
        long,
        env = "WEFT_CNI_BIN_DIR",
        default_value = "/opt/cni/bin",
        value_delimiter = ':'
    )]
    pub cni_bin_dir: Vec<PathBuf>,
    /// The CNI plugin to install; beside this program where it is not said.
    #[arg(long, env = "WEFT_CNI_PLUGIN")]
    pub cni_plugin: Option<PathBuf>,
}
