//! A path between clusters that carries less than the nodes: found, followed, told, and forgotten when it carries more.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use slice_crds::{conditions, v1alpha1::SliceConfig};
use slice_e2e::{
    harness::{Environment, Pace, Streams, poll, weft::Member},
    progress::say,
};

/// From a change of the path to that of every interface: 15 s at most until more is tried, and the hub's part.
const FOLLOWED: Duration = Duration::from_secs(60);
/// What an IPv4 underlay of 1400 bytes carries: [`slice_gateway`]'s headers take 110.
const NARROW: u16 = 1400 - 110;

/// Waits until a slice has this MTU and its condition says whether paths carry less.
async fn await_mtu(environment: &Environment, slice: &str, mtu: u16, narrow: bool) -> Result<()> {
    let is_so = |slice: &SliceConfig| {
        let found = conditions::of(slice);
        let says = match narrow {
            true => conditions::find_false(found, conditions::PATH_MTU).is_some_and(|one| {
                one.message.contains(&format!("carries packets of {mtu} bytes"))
                    && one.message.contains("from cluster a to cluster b")
            }),
            false => conditions::is_true(found, conditions::PATH_MTU),
        };
        says && slice.status.as_ref().and_then(|status| status.mtu) == Some(mtu)
    };
    let what = format!("an MTU of {mtu}");
    let slices = environment.slices()?;
    environment
        .hub()?
        .await_object(&slices, slice, &what, FOLLOWED, is_so)
        .await?;
    Ok(())
}

/// Waits until packets of so many bytes pass that may not be cut, and none longer leaves the pod.
async fn await_full_packets(from: &Member, to: &Member, mtu: u16) -> Result<()> {
    let address = to.v4()?.to_string();
    let try_size = async |size: u16| {
        let size = (size - 28).to_string();
        let ping = [
            "ping",
            &address,
            "--size",
            &size,
            "--df",
            "--count",
            "3",
            "--timeout",
            "300",
        ];
        let answer = from.probe(&ping).await?;
        Ok::<_, anyhow::Error>(answer["received"] == answer["sent"])
    };
    let what = format!("{from}: packets of {mtu} bytes to {to}, and no longer ones");
    poll(FOLLOWED, &what, async || {
        ensure!(try_size(mtu).await?, "lost");
        let longer = try_size(mtu + 1).await;
        ensure!(
            longer.is_err_and(|error| format!("{error:#}").contains("too long")),
            "a longer one was sent"
        );
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_narrows_is_followed_and_left_again() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    let (slice, namespace) = ("narrow", "weft-narrow");
    environment
        .slice(slice, json!({"subnets": ["10.88.0.0/16", "fd42:88::/64"]}))
        .await?;
    let members = environment.members(slice, namespace).await?;
    let (a, b) = (environment.cluster(0)?, environment.cluster(1)?);
    let (from, to) = (Member::of(&members, a)?, Member::of(&members, b)?);
    await_mtu(&environment, slice, 1370, false).await?;
    await_full_packets(from, to, 1370).await?;

    let pace = Pace {
        interval: Duration::from_millis(20),
        gap: Duration::from_millis(1000),
        lasts: Duration::from_secs(40),
    };
    let streams = Streams::start(from, to, pace).await?;
    let narrow = environment.narrow(&b.nodes().await?, &a.name, 1400)?;
    await_mtu(&environment, slice, NARROW, true).await?;
    await_full_packets(from, to, NARROW).await?;
    let rate = from.tcp(to, to.v4()?, "2").await?;
    ensure!(rate > 0.0, "nothing passes at full size");
    say("a path of 1400 bytes is followed");
    narrow.mend()?;
    await_mtu(&environment, slice, 1370, false).await?;
    await_full_packets(from, to, 1370).await?;
    let (udp, tcp) = streams.finish().await?;
    ensure!(tcp.broken.is_none(), "{tcp:?}");
    for conversation in [&udp, &tcp] {
        ensure!(
            conversation.longest_gap_ms < 2000.0,
            "small packets waited: {conversation:?}"
        );
    }
    say(format!(
        "and left again; small packets meanwhile: {} of {} lost by UDP, silent for {:.0} ms at most",
        udp.lost,
        udp.sent,
        udp.longest_gap_ms.max(tcp.longest_gap_ms)
    ));

    environment.remove_namespaces(namespace).await?;
    environment.remove_slice(slice).await
}
