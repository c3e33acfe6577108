//! `weft-lab demo`: Weft on the lab as a user installs it, a slice, and a table of who can talk to whom.
//!
//! Everything goes through `slicectl`, charts and YAML; the lab is left up to play with.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    harness::{
        Environment,
        weft::{Member, PROJECT},
    },
    progress::{Progress, say},
};

/// Name of the slice and of the namespace that it is shown with.
const SLICE: &str = "demo";
const NAMESPACE: &str = "weft-demo";
/// Bytes of one transfer.
const TRANSFER: &str = "20000000";

/// Shows Weft on the clusters of the environment.
///
/// # Errors
/// Where a step fails; the message names it and says what to look at.
pub async fn run() -> Result<()> {
    let progress = Progress::start();
    let environment = Environment::open().await?;
    let names: Vec<&str> = environment
        .clusters
        .iter()
        .map(|cluster| cluster.name.as_str())
        .collect();
    progress.done(format!(
        "installing the hub in {}, joining {}",
        names[0],
        names.join(" and ")
    ));
    environment
        .install()
        .await
        .context("install Weft with its charts")?;
    progress.done(format!(
        "slice {SLICE}: 10.77.0.0/16 and fd42:77::/64 across {}",
        names.join(" and ")
    ));
    let spec = json!({"subnets": ["10.77.0.0/16", "fd42:77::/64"]});
    environment
        .slice(SLICE, spec)
        .await
        .context("create the slice; see `slicectl status`")?;
    progress.done(format!(
        "a pod on every node, in namespaces labelled weft.dev/slice={SLICE}"
    ));
    let members = environment.members(SLICE, NAMESPACE).await?;
    progress.done("who can talk to whom");
    let mut lines = vec![format!(
        "{:<14} {:<14} {:<12} {:>8} {:>9} {:>12}  {}",
        "FROM", "TO", "ADDRESS", "IPv4 ms", "IPv6 ms", "TCP Mbit/s", "PATH"
    )];
    for from in &members {
        for to in members.iter().filter(|to| !std::ptr::eq(from, *to)) {
            lines.push(row(from, to).await.with_context(|| format!("{from} → {to}"))?);
        }
    }
    say(lines.join("\n"));
    progress.done("done; the clusters stay up");
    say(format!(
        "\nTo look around:\n  eval \"$(target/lab/weft-lab env)\"\n  kubectl --context {0} -n {PROJECT} get weft\n  \
         target/lab/slicectl --context {0} status {SLICE}\n  kubectl --context {1} -n {NAMESPACE} exec -it on-{1}1 -- sh\n\
         To end it:\n  make lab-down",
        names[0],
        names.last().context("a cluster")?
    ));
    Ok(())
}

async fn row(from: &Member, to: &Member) -> Result<String> {
    let ip = |v4: bool| {
        to.attachment
            .ips
            .iter()
            .find(move |ip| ip.is_ipv4() == v4)
            .map(ToString::to_string)
    };
    let (v4, v6) = (
        ip(true).context("an IPv4 address")?,
        ip(false).context("an IPv6 address")?,
    );
    let rtt = async |address: &str| -> Result<f64> {
        let answer = from.probe(&["ping", address, "--count", "20"]).await?;
        number(&answer, "/rtt_ms/p50")
    };
    let (rtt4, rtt6) = (rtt(&v4).await?, rtt(&v6).await?);
    let tcp = from
        .probe(&["tcp", &v4, "--bytes", TRANSFER, "--timeout", "60"])
        .await?;
    let path = if from.cluster.name == to.cluster.name {
        "VXLAN in the cluster"
    } else {
        "WireGuard between clusters"
    };
    Ok(format!(
        "{:<14} {:<14} {v4:<12} {rtt4:>8.2} {rtt6:>9.2} {:>12.0}  {path}",
        format!("{}/{}", from.cluster.name, from.name),
        format!("{}/{}", to.cluster.name, to.name),
        number(&tcp, "/mbit")?
    ))
}

fn number(answer: &Value, pointer: &str) -> Result<f64> {
    answer
        .pointer(pointer)
        .and_then(Value::as_f64)
        .with_context(|| format!("no {pointer} in {answer}"))
}
