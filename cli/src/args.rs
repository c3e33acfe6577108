//! What the command line takes.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use base64::Engine;
use clap::{Parser, Subcommand, ValueEnum};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
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
    /// Take this cluster off its hub: its pods lose their slices and go on without.
    Leave(Leave),
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
    /// Show how Weft is here, on a hub and in a member, and what to do where something is wrong. Exits with 1 where
    /// something is.
    Status(Status),
    /// Show what a node holds: ports, where frames go, what was carried and dropped.
    Node(Node),
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
    /// A file with values of the chart, as helm's --values.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// A value of the chart, as helm's --set.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How long to wait until everything runs, such as 90s or 5m.
    #[arg(long, default_value = "3m", value_parser = duration)]
    pub timeout: Duration,
    /// The helm program.
    #[arg(long, env = "WEFT_HELM", default_value = "helm")]
    pub helm: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Uninstall {
    pub part: Part,
    /// Remove also what people wrote: on the hub slices, clusters and profiles with the project's namespace, in a member
    /// ServiceExports, if their kind is Weft's.
    #[arg(long)]
    pub purge: bool,
    #[command(flatten)]
    pub chart: Chart,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Register a cluster on the hub and print a token for its `join`.
    Issue(TokenIssue),
    /// Show the tokens of every cluster.
    List(TokenList),
    /// Make a token void, or with --cluster everything that a member has.
    Revoke(TokenRevoke),
}

#[derive(Debug, clap::Args)]
pub struct TokenIssue {
    /// The member's name.
    pub cluster: String,
    /// Time within which it must be used, 10m to 7d. A member renews its own credential.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub expires: Duration,
    /// URL at which the member reaches this API server; the kubeconfig's where absent.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// File with the certificate authorities of that URL, PEM; an empty one for those that every system knows. The
    /// kubeconfig's where absent.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The cluster that joins takes the place of the one that has the name.
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub networks: Networks,
    /// How long to wait for the hub.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

/// Networks of a cluster that its API does not name: no slice of the cluster may overlap them.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Networks {
    /// A network of the cluster's pods that its API does not name, such as a pool of its CNI.
    #[arg(long = "pod-network", value_name = "CIDR")]
    pub pods: Vec<Cidr>,
    /// A network of its Services, for Kubernetes before 1.33.
    #[arg(long = "service-network", value_name = "CIDR")]
    pub services: Vec<Cidr>,
    /// A network of its nodes.
    #[arg(long = "node-network", value_name = "CIDR")]
    pub nodes: Vec<Cidr>,
}

#[derive(Debug, clap::Args)]
pub struct TokenList {
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Debug, clap::Args)]
pub struct TokenRevoke {
    /// The token's name, as `token list` shows it.
    #[arg(
        value_name = "TOKEN",
        required_unless_present = "cluster",
        conflicts_with = "cluster"
    )]
    pub tokens: Vec<String>,
    /// Every credential of this member: its own, and its tokens. It must join again.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Do it, having read what follows from it.
    #[arg(short, long)]
    pub yes: bool,
    /// How long to wait for the hub.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub struct Join {
    /// What `slicectl token issue` printed on the hub; `-` reads it from standard input.
    #[arg(long)]
    pub token: String,
    /// Take the place of the credential for another hub, or under another name.
    #[arg(long)]
    pub replace: bool,
    /// Weft is installed here already, by other means.
    #[arg(long)]
    pub no_install: bool,
    #[command(flatten)]
    pub chart: Chart,
}

#[derive(Debug, clap::Args)]
pub struct Leave {
    /// Do it, having read what follows from it.
    #[arg(short, long)]
    pub yes: bool,
    /// How long to wait until nothing is left.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
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
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    pub public_key: String,
    /// Address and port of its WireGuard, where it can be dialled.
    #[arg(long = "endpoint", value_name = "ADDRESS:PORT")]
    pub endpoints: Vec<SocketAddr>,
    /// How long to wait until it has its address; 0 does not wait.
    #[arg(long, default_value = "30s", value_parser = duration)]
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
    /// Only namespaces with these labels, and their pods, may join by the label weft.dev/slice, such as team=shop.
    #[arg(long, value_name = "SELECTOR", value_parser = crate::selector::parse)]
    pub join_selector: Option<LabelSelector>,
    /// The label on a namespace does not count.
    #[arg(long)]
    pub no_namespace_labels: bool,
    /// The label on a pod counts outside the slice's namespaces too.
    #[arg(long)]
    pub pod_labels: bool,
    /// Gateways per cluster.
    #[arg(long, default_value_t = 2)]
    pub gateways: u32,
    /// Threads of each gateway: more for more than some Gbit/s.
    #[arg(long, default_value_t = 1, value_name = "THREADS", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_QUEUES)))]
    pub gateway_threads: u8,
    /// Age at which a gateway makes itself a new key, at least 1m.
    #[arg(long, default_value = "24h", value_name = "DURATION")]
    pub rotation: kube::core::Duration,
    #[command(flatten)]
    pub qos: Qos,
    /// Print the object and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait until it is ready; 0 does not wait.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
}

/// What a slice is given between clusters.
#[derive(Debug, Default, clap::Args)]
pub struct Qos {
    /// A QoSProfile that says what the slice is given between clusters.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["guaranteed_mbps", "ceiling_mbps", "priority", "dscp"])]
    pub qos_profile: Option<String>,
    /// Mbit/s that it has whatever other slices do, in each cluster and direction.
    #[arg(long, value_name = "MBPS")]
    pub guaranteed_mbps: Option<u32>,
    /// Mbit/s that it never has more than.
    #[arg(long, value_name = "MBPS")]
    pub ceiling_mbps: Option<u32>,
    /// Who goes first to what no slice is guaranteed: 7 before 6, and 0 last.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=7))]
    pub priority: Option<u8>,
    /// Code point of the datagrams between gateways (RFC 2474).
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=63))]
    pub dscp: Option<u8>,
}

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// The keys of a slice's gateways.
    Keys(ChangeKeys),
}

#[derive(Debug, clap::Args)]
pub struct ChangeKeys {
    pub slice: String,
    /// How long to wait until every gateway has a new key and none has a former one; 0 does not wait.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum Delete {
    /// A slice: its pods lose their interface and go on without.
    Slice(DeleteSlice),
    /// A member cluster: its pods lose every slice and go on without.
    Cluster(DeleteCluster),
    /// A host outside every cluster: the slice takes nothing from it any more.
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
    /// Do it although pods are attached.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, clap::Args)]
pub struct DeleteCluster {
    pub name: String,
    /// Do it although pods are attached.
    #[arg(short, long)]
    pub yes: bool,
    /// The cluster is no more: what it has is not waited for, and others are given it.
    #[arg(long)]
    pub gone: bool,
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
    /// On the hub: the tokens that let clusters join.
    #[value(alias = "token")]
    Tokens,
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
    /// Only this slice, and its clusters.
    pub slice: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Node {
    /// Name of the Node object, in this member cluster.
    pub node: String,
    /// Only this slice.
    #[arg(long)]
    pub slice: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
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
    /// Nodes of each cluster that a probe runs on: so many, in the order of their names, instead of all.
    #[arg(long)]
    pub nodes: Option<usize>,
    /// A label for the probe's namespace, where the slice's spec.join lets only some namespaces join.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// How long the probes may take to start.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `90s`, `5m`, `1h30m`, `7d`; a plain number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    if let Some(days) = days {
        return Ok(Duration::from_secs(u64::from(days) * 86400));
    }
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let parsed = text.parse::<kube::core::Duration>();
    match parsed {
        Ok(duration) if !duration.is_negative() && !text.is_empty() => Ok(duration.into()),
        _ => Err("write such as 90s, 5m, 1h30m or 7d".to_owned()),
    }
}

/// 32 bytes in base64.
fn public_key(text: &str) -> Result<String, String> {
    let bytes = base64::prelude::BASE64_STANDARD.decode(text);
    match bytes.is_ok_and(|bytes| bytes.len() == 32) {
        true => Ok(text.to_owned()),
        false => Err("a WireGuard public key has 44 characters, as `wg pubkey` prints it".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
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
    fn the_lines_of_the_readme_are_taken() {
        for line in [
            "slicectl --context a install hub --set image.tag=dev",
            "slicectl --context a token issue b",
            "slicectl --context a token issue b --expires 30m --replace --server https://192.0.2.1:6443 --ca ca.pem",
            "slicectl --context a token issue b --pod-network 10.42.0.0/16 --node-network 192.0.2.0/24",
            "slicectl --context a token list -o wide",
            "slicectl --context a token revoke b-k3x9qa",
            "slicectl --context a token revoke --cluster b --yes",
            "slicectl --context b join --token abc",
            "slicectl --context b join --token - --replace --no-install --timeout 150",
            "slicectl --context b leave --yes",
            "slicectl --context a create slice shop --subnet 10.80.0.0/16 --subnet fd42:80::/64 --cluster a --cluster b",
            "slicectl create slice shop --subnet 10.80.0.0/16 --cluster a --join-selector team=shop,tier!=db --pod-labels",
            "slicectl create slice shop --subnet 10.80.0.0/16 --cluster a --in cart --no-namespace-labels",
            "slicectl --context a delete slice shop --yes",
            "slicectl --context a delete cluster b --gone --yes",
            "slicectl --context b attach ns cart shop",
            "slicectl --context a get slices -o yaml",
            "slicectl --context a status shop",
            "slicectl --context b status",
            "slicectl --context a get tokens",
            "slicectl verify shop --contexts a,b",
            "slicectl verify shop --contexts a,b --label team=shop",
            "slicectl --context a create peer db1 --slice shop --public-key AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= --endpoint 192.0.2.9:51820",
            "slicectl --context a peer script db1 --slice shop --key /etc/weft/shop.key",
            "slicectl --context a delete peer db1 --slice shop",
            "slicectl --context a renew keys shop",
            "slicectl --context a revoke keys shop --timeout 0",
            "slicectl completion bash",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn durations_are_kubectls_days_and_seconds() {
        let check =
            |text: &str, seconds| assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        check("0", 0);
        check("150", 150);
        check("90s", 90);
        check("1h30m", 5400);
        check("7d", 604_800);
        for text in ["", "-5s", "soon", "5 m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn revoke_takes_tokens_or_a_cluster() {
        for line in [
            "slicectl token revoke",
            "slicectl token revoke b-k3x9qa --cluster b",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
