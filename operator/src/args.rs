//! Flags, each with a twin in the environment.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, Subcommand};
use slice_crds::names;
use slice_runtime::telemetry::LogArgs;

use crate::member::{cluster_dns, gateways::PodSettings};

/// Weft's controllers.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs on the hub: slices are declared there.
    Hub(HubArgs),
    /// Takes off the hub what the hub role has put there; used while the chart is uninstalled.
    HubTeardown(HubTeardownArgs),
    /// Runs in each member cluster: pods are attached there.
    Cluster(Box<ClusterArgs>),
    /// Takes off the member cluster what Weft has put there; used while the chart is uninstalled.
    ClusterTeardown(TeardownArgs),
}

/// What both roles share.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// Name of this replica, as the Lease's holder.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "WEFT_ADMIN", default_value = "[::]:9400")]
    pub admin: SocketAddr,
}

#[derive(Clone, Debug, clap::Args)]
pub struct HubArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// URL at which members reach this hub's API server; empty leaves each with the one that it joined by.
    #[arg(long, env = "WEFT_MEMBER_SERVER", default_value = "")]
    pub member_server: String,
    /// Certificate authorities of that URL, PEM; empty leaves each member with those that it has.
    #[arg(long, env = "WEFT_MEMBER_CA", default_value = "")]
    pub member_ca: String,
    /// Seconds for which a slice, or a cluster in it, that was deleted while pods are attached stays as it was.
    #[arg(long, env = "WEFT_DELETION_GRACE", default_value = "300", value_parser = seconds)]
    pub deletion_grace: Duration,
}

#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Secret in this namespace with the credential for the hub.
    #[arg(long, env = "WEFT_HUB_SECRET", default_value = names::HUB_CREDENTIAL)]
    pub hub_secret: String,
    /// Image of the gateways.
    #[arg(long, env = "WEFT_GATEWAY_IMAGE")]
    pub gateway_image: String,
    /// What the gateways' pods get beside what is theirs, as JSON: imagePullSecrets (names), tolerations, priorityClassName,
    /// seLinuxOptions, resources, labels, annotations, serviceAnnotations.
    #[arg(long, env = "WEFT_GATEWAY_POD", default_value = "{}")]
    pub gateway_pod: PodSettings,
    /// Namespace of the gateways. Those that are in the operator's own move there, one by one.
    #[arg(long, env = "WEFT_GATEWAY_NAMESPACE", default_value = names::GATEWAY_NAMESPACE)]
    pub gateway_namespace: String,
    /// Service of slice-dns in this namespace; its address goes into the cluster DNS's configuration.
    #[arg(long, env = "WEFT_DNS_SERVICE", default_value = "weft-dns")]
    pub dns_service: String,
    /// Have the hub write peers and services into this member's own namespace: before going back to a version that reads
    /// them nowhere else.
    #[arg(long, env = "WEFT_SERVED_INLINE", default_value_t = false, action = clap::ArgAction::Set)]
    pub served_inline: bool,
    /// ConfigMap of the cluster's CoreDNS, `<namespace>/<name>`. The default finds those of other platforms too; empty leaves
    /// the cluster DNS alone.
    #[arg(long, env = "WEFT_COREDNS_CONFIG", default_value = "kube-system/coredns")]
    pub coredns_config: cluster_dns::Config,
}

#[derive(Clone, Debug, clap::Args)]
pub struct HubTeardownArgs {
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Seconds to wait for a member's namespace to go.
    #[arg(long, default_value = "90", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Clone, Debug, clap::Args)]
pub struct TeardownArgs {
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// As the operator's.
    #[arg(long, env = "WEFT_COREDNS_CONFIG", default_value = "kube-system/coredns")]
    pub coredns_config: cluster_dns::Config,
    /// As the operator's.
    #[arg(long, env = "WEFT_DNS_SERVICE", default_value = "weft-dns")]
    pub dns_service: String,
    /// Seconds to wait for the nodes.
    #[arg(long, default_value = "120", value_parser = seconds)]
    pub timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}
