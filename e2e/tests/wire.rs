//! What passes between the clusters: WireGuard, and nothing that anybody could read.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use slice_crds::names;
use slice_e2e::harness::{Environment, poll};
use slice_e2e::progress::say;

/// Would be seen in a capture wherever it passes in the clear.
const MARKER: &str = "weft-plaintext-marker-5f1c";

#[tokio::test]
async fn nothing_readable_passes_between_the_clusters() -> Result<()> {
    let environment = Environment::open().await?;
    let lab = environment.lab()?;
    let (slice, namespace) = ("secret", "weft-secret");
    environment
        .slice(slice, json!({"subnets": ["10.84.0.0/16"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (from, to) = (&members[0], &members[members.len() - 1]);
    ensure!(from.cluster.name != to.cluster.name, "two clusters");

    let folder = tempfile::tempdir().context("a folder for the capture")?;
    let file = folder.path().join("wire.pcap");
    // Everything between nodes of different clusters, whatever it is.
    let filter =
        "(net 172.30.1.0/24 and net 172.30.2.0/24) or (ip6 net fd00:30:1::/64 and ip6 net fd00:30:2::/64)";
    let mut capture = lab.capture(&file, filter)?;
    poll(Duration::from_secs(10), "the capture runs", async || {
        Ok(file.exists().then_some(()))
    })
    .await?;
    let interface = names::pod_interface(slice);
    let heard = to
        .cluster
        .start_probe(
            &to.namespace,
            &to.name,
            &["frames", "receive", "--interface", &interface, "--expect", "50"],
        )
        .await?;
    from.probe(&[
        "frames",
        "send",
        "--interface",
        &interface,
        "--count",
        "50",
        "--text",
        MARKER,
    ])
    .await?;
    let heard = heard.finish().await?;
    ensure!(
        heard.stdout.contains("\"unique\":50"),
        "the marker did not even arrive: {heard:?}"
    );
    from.probe(&["tcp", &to.v4()?.to_string(), "--bytes", "100000"])
        .await?;
    capture.kill().context("end the capture")?;
    capture.wait().context("end the capture")?;

    let bytes = fs::read(&file).context("read the capture")?;
    let marker = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    ensure!(!marker(MARKER.as_bytes()), "the marker passed in the clear");
    ensure!(!marker(b"weftcnt1"), "a payload passed in the clear");
    let mut ports = Vec::new();
    for cluster in &environment.clusters {
        for gateway in cluster.gateways(slice).await? {
            ports.extend(gateway.spec.endpoints.iter().map(|endpoint| endpoint.port()));
        }
    }
    let datagrams = wireguard(&bytes, &ports).context("read the capture as packets")?;
    say(format!(
        "{} bytes captured, {datagrams} WireGuard datagrams",
        bytes.len()
    ));
    ensure!(
        datagrams > 50,
        "the frames took another way: {datagrams} datagrams seen"
    );
    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}

/// Counts WireGuard messages in a capture. An API server's TLS is the only other thing that may pass.
///
/// # Errors
/// Where a packet is neither.
fn wireguard(pcap: &[u8], ports: &[u16]) -> Result<usize> {
    let mut rest = pcap.get(24..).context("a capture's header")?;
    let mut found = 0;
    while rest.len() >= 16 {
        let length = u32::from_le_bytes(rest[8..12].try_into()?) as usize;
        let packet = rest.get(16..16 + length).unwrap_or_default();
        rest = rest.get(16 + length..).unwrap_or_default();
        // Ethernet 14, IPv4 20, UDP 8: the lab's nodes talk IPv4 to each other.
        let Some(ip) = packet.get(14..).filter(|ip| ip.len() >= 28 && ip[0] >> 4 == 4) else {
            continue;
        };
        let header = usize::from(ip[0] & 15) * 4;
        let transport = &ip[header..];
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        match ip[9] {
            17 if ports.contains(&port(0)) || ports.contains(&port(2)) => {
                // Message type 1 to 4, then three zero bytes (WireGuard paper §5.4).
                let message = &transport[8..];
                ensure!(
                    matches!(message, [1..=4, 0, 0, 0, ..]),
                    "not WireGuard: {:?}",
                    &message[..message.len().min(16)]
                );
                found += 1;
            }
            6 if port(0) == 6443 || port(2) == 6443 => {}
            protocol => anyhow::bail!(
                "protocol {protocol} between the clusters: {:?}",
                &ip[..ip.len().min(40)]
            ),
        }
    }
    Ok(found)
}
