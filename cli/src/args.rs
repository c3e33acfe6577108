//! What can be said on the command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use slice_crds::Cidr;
use slice_runtime::handover::MAX_QUEUES;

/// Slices: private Ethernet segments across Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Args {
    #[command(flatten)]
    pub target: Target,
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as kubectl takes it.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// Kubeconfig file; $KUBECONFIG or ~/.kube/config where absent.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in it; the current one where absent.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Project namespace of slices, clusters and profiles on the hub.
    #[arg(short, long, global = true, default_value = "weft-default")]
    pub namespace: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install Weft on the hub or in a member cluster with its Helm chart.
    Install(Install),
    /// Take Weft off a cluster again, and everything that it has put there.
    Uninstall(Uninstall),
    /// Tokens that let a cluster join.
    #[command(subcommand)]
    Token(Token),
    /// Join this cluster to a hub.
    Join(Join),
    /// Create something on the hub.
    #[command(subcommand)]
    Create(Create),
    /// Delete something on the hub.
    #[command(subcommand)]
    Delete(Delete),
    /// Put pods into a slice, running ones included.
    #[command(subcommand)]
    Attach(Attach),
    /// Take pods out of a slice.
    #[command(subcommand)]
    Detach(Attach),
    /// Hosts outside every cluster that are in a slice without an agent.
    #[command(subcommand)]
    Peer(Peer),
    /// Have every gateway of a slice make itself a new key, without a frame lost.
    #[command(subcommand)]
    Renew(Keys),
    /// Have every gateway of a slice make itself a new key and wipe the one that it has, at once: nothing passes between
    /// the clusters until the new ones are known, seconds at most.
    #[command(subcommand)]
    Revoke(Keys),
    /// Show objects.
    Get(Get),
    /// Tell how slices are, and what to do where one is not well. Exits with 1 where one is not.
    Status(Status),
    /// Try a slice between every two of the named clusters: ping, TCP, UDP, DNS, packet size.
    Verify(Verify),
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Hub,
    Cluster,
}

#[derive(Debug, clap::Args)]
pub struct Install {
    pub part: Part,
    /// Print the manifests and change nothing.
    #[arg(long)]
    pub print: bool,
    #[command(flatten)]
    pub chart: Chart,
}

/// How the chart is installed.
#[derive(Clone, Debug, clap::Args)]
pub struct Chart {
    /// A value of the chart, as helm's --set.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Seconds to wait until everything runs.
    #[arg(long, default_value = "180", value_parser = seconds)]
    pub timeout: Duration,
    /// The helm program.
    #[arg(long, env = "WEFT_HELM", default_value = "helm")]
    pub helm: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Uninstall {
    pub part: Part,
    #[command(flatten)]
    pub chart: Chart,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Register a cluster on the hub and print a token for its `join`.
    Issue(TokenIssue),
}

#[derive(Debug, clap::Args)]
pub struct TokenIssue {
    /// The new member's name.
    pub cluster: String,
    /// Seconds within which it must be used; the member renews its own credential from then on.
    #[arg(long, default_value = "3600", value_parser = seconds)]
    pub expires: Duration,
    /// URL at which the member reaches this API server; the kubeconfig's where absent.
    #[arg(long)]
    pub server: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Join {
    /// What `slicectl token issue` printed on the hub; `-` reads it from standard input.
    #[arg(long)]
    pub token: String,
    #[command(flatten)]
    pub chart: Chart,
}

#[derive(Debug, Subcommand)]
pub enum Create {
    /// A slice.
    Slice(CreateSlice),
    /// A host outside every cluster, in a slice; `peer script` prints what to run there.
    Peer(CreatePeer),
}

#[derive(Debug, clap::Args)]
pub struct CreatePeer {
    pub name: String,
    /// The slice.
    #[arg(long)]
    pub slice: String,
    /// Its WireGuard public key, as `wg pubkey` prints it.
    #[arg(long, value_name = "KEY")]
    pub public_key: String,
    /// Address and port of its WireGuard, where it can be dialled.
    #[arg(long = "endpoint", value_name = "ADDRESS:PORT")]
    pub endpoints: Vec<SocketAddr>,
    /// Seconds to wait until it has its address; 0 does not wait.
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum Peer {
    /// Print the commands that turn a stock Linux host into the peer: give them to `sh` there, as root.
    Script(PeerScript),
}

#[derive(Debug, clap::Args)]
pub struct PeerScript {
    pub name: String,
    /// The slice.
    #[arg(long)]
    pub slice: String,
    /// File on that host with its private key, as `wg genkey` writes it.
    #[arg(long, default_value = "/etc/weft/peer.key", value_name = "FILE")]
    pub key: String,
    /// UDP port of its WireGuard; the one of its first endpoint, or 51820, where absent.
    #[arg(long)]
    pub port: Option<u16>,
}

#[derive(Debug, clap::Args)]
pub struct CreateSlice {
    pub name: String,
    /// A subnet, one per address family.
    #[arg(long = "subnet", required = true)]
    pub subnets: Vec<Cidr>,
    /// A member cluster.
    #[arg(long = "cluster", required = true)]
    pub clusters: Vec<String>,
    /// A namespace that is in it, in every member cluster.
    #[arg(long = "in")]
    pub namespaces: Vec<String>,
    /// Gateways per cluster.
    #[arg(long, default_value_t = 2)]
    pub gateways: u32,
    /// Threads of each gateway: more for more than some Gbit/s.
    #[arg(long, default_value_t = 1, value_name = "THREADS", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_QUEUES)))]
    pub gateway_threads: u8,
    /// Age at which a gateway makes itself a new key, at least 1m.
    #[arg(long, default_value = "24h", value_name = "DURATION")]
    pub rotation: kube::core::Duration,
    /// Print the object and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds to wait until it is ready; 0 does not wait.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// The keys of a slice's gateways.
    Keys(ChangeKeys),
}

#[derive(Debug, clap::Args)]
pub struct ChangeKeys {
    pub slice: String,
    /// Seconds to wait until every gateway has a new key and none has a former one; 0 does not wait.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum Delete {
    /// A slice: its pods lose their interface and go on without.
    Slice(DeleteSlice),
    /// A host outside every cluster: the slice does not hear it any more.
    Peer(DeletePeer),
}

#[derive(Debug, clap::Args)]
pub struct DeletePeer {
    pub name: String,
    /// The slice.
    #[arg(long)]
    pub slice: String,
}

#[derive(Debug, clap::Args)]
pub struct DeleteSlice {
    pub name: String,
}

#[derive(Debug, Subcommand)]
pub enum Attach {
    /// Every pod of a namespace of this cluster.
    Ns {
        #[arg(value_name = "NAMESPACE")]
        name: String,
        slice: String,
    },
    /// One pod of this cluster, `<namespace>/<name>`.
    Pod {
        #[arg(value_name = "POD")]
        name: String,
        slice: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct Get {
    pub what: Kind,
    /// Only the one of this name.
    pub name: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// On the hub: the slices.
    #[value(alias = "slice")]
    Slices,
    /// On the hub: the member clusters.
    #[value(alias = "cluster")]
    Clusters,
    /// In a member: its gateways.
    #[value(alias = "gateway")]
    Gateways,
    /// In a member: its nodes.
    #[value(alias = "node")]
    Nodes,
    /// In a member: attached pods and their addresses.
    #[value(alias = "attachment")]
    Attachments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Debug, clap::Args)]
pub struct Status {
    /// Only this slice.
    pub slice: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Verify {
    pub slice: String,
    /// Contexts of the member clusters, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub contexts: Vec<String>,
    /// Image with weft-probe in it.
    #[arg(long, env = "WEFT_PROBE_IMAGE", default_value = concat!("localhost/weft/probe:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// Seconds that the probes may take to start.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_the_readme_says_can_be_said() {
        for line in [
            "slicectl --context a install hub --set image.tag=dev",
            "slicectl --context a token issue b",
            "slicectl --context b join --token abc",
            "slicectl --context a create slice shop --subnet 10.80.0.0/16 --subnet fd42:80::/64 --cluster a --cluster b",
            "slicectl --context b attach ns cart shop",
            "slicectl --context a get slices -o yaml",
            "slicectl --context a status shop",
            "slicectl verify shop --contexts a,b",
            "slicectl --context a create peer db1 --slice shop --public-key k --endpoint 192.0.2.9:51820",
            "slicectl --context a peer script db1 --slice shop --key /etc/weft/shop.key",
            "slicectl --context a delete peer db1 --slice shop",
            "slicectl --context a renew keys shop",
            "slicectl --context a revoke keys shop --timeout 0",
            "slicectl completion bash",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
