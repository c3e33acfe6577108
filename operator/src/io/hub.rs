//! The hub role at work: watches in, writes out, as long as this process leads.

use anyhow::Context;
use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use slice_crds::{labels, names};
use slice_runtime::{
    admin::{self, Readiness},
    client, lease, version,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    BATCH, STALLED, TICK, record,
    watch::{self, CHANNEL, Scope, Signal},
    write::{self, AT_ONCE, Done},
};
use crate::{
    args::HubArgs,
    control::{Kind, Now},
    hub::{Event, Hub, Input, MANAGER, Settings, Source},
    metrics::{HubMetrics, Metrics, number},
};

/// Runs until `stop`.
///
/// # Errors
/// Where the API server cannot be reached at the start, or the admin port is taken.
pub async fn run(args: HubArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client::local().await?;
    let registry = admin::registry("hub");
    let metrics = Metrics::register(&registry);
    let own = HubMetrics::register(&registry);
    let readiness = Readiness::default();
    let mut synced = Some(readiness.wait_for("watches"));
    let pulse = readiness.pulse("hub loop", STALLED);
    let mut server = tokio::spawn(admin::serve(args.common.admin, registry, readiness, stop.clone()));
    let watching = CancellationToken::new();
    let mut events = watch_all(&client, &watching);
    let identity = args.common.pod_name.clone();
    let notices = record::start(client.clone(), MANAGER, identity.clone(), metrics.clone());
    let mut claim = lease::claim(client.clone(), &args.common.namespace, MANAGER, identity);
    let mut hub = Hub::new(Settings {
        version: version::VERSION,
        server: args.member_server,
        ca: args.member_ca,
        grace: SignedDuration::try_from(args.deletion_grace).context("--deletion-grace")?,
    });
    let begun = Instant::now();
    let now = || Now {
        clock: begun.elapsed(),
        wall: Timestamp::now(),
    };
    let mut flights = FuturesUnordered::new();
    let (mut leading, mut stopping) = (false, false);
    let mut next_gauge = Instant::now();
    loop {
        pulse.beat();
        if claim.is_valid() != leading && !stopping {
            leading = take_lead(&client, &mut hub, claim.is_valid(), now()).await;
            if !leading {
                flights.clear();
            }
            metrics.leader.set(leading.into());
        }
        // The claim is looked at before each write.
        while leading && !stopping && flights.len() < AT_ONCE && claim.is_valid() {
            let Some(write) = hub.poll_write(now()) else { break };
            flights.push(write::execute(client.clone(), MANAGER, write));
        }
        while let Some(notice) = hub.poll_notice() {
            if notices.try_send(notice).is_err() {
                metrics.notices_dropped.inc();
            }
        }
        if Instant::now() >= next_gauge {
            gauge(&metrics, &own, &mut hub);
            next_gauge = Instant::now() + TICK;
        }
        if synced.is_some() && hub.is_synced() {
            synced = None;
        }
        if stopping && flights.is_empty() {
            break;
        }
        let wake = hub
            .next_timeout()
            .map_or(TICK, |at| at.saturating_sub(begun.elapsed()).min(TICK));
        tokio::select! {
            () = stop.cancelled(), if !stopping => stopping = true,
            ended = &mut server, if !stopping && !stop.is_cancelled() => return ended.context("admin listener")?,
            Some(done) = flights.next(), if !flights.is_empty() => finish(&mut hub, &metrics, done, now()),
            Some(event) = events.recv() => {
                hub.handle(event, now());
                for _ in 1..BATCH {
                    let Ok(event) = events.try_recv() else { break };
                    hub.handle(event, now());
                }
            }
            () = claim.changed() => {}
            () = sleep_until(Instant::now() + wake) => hub.handle(Event::Tick, now()),
        }
    }
    watching.cancel();
    // After the last write: whoever leads next finds everything as it was left.
    claim.release().await;
    server.await.context("admin listener")?
}

fn watch_all(client: &Client, stop: &CancellationToken) -> mpsc::Receiver<Event> {
    let (to, events) = mpsc::channel(CHANNEL);
    let owned = format!("{}={MANAGER}", labels::MANAGED_BY);
    for source in Source::ALL {
        let scope = match source {
            Source::Hub | Source::SliceAllocation => Scope::inside(names::HUB_NAMESPACE),
            Source::Namespace | Source::ServiceAccount | Source::RoleBinding => Scope::all().labelled(&owned),
            Source::Lease => Scope::all().named(names::MEMBER_LEASE),
            _ => Scope::all(),
        };
        let event = move |signal| match signal {
            Signal::Seen(value) => Event::Seen(Box::new(Input::read(source, &value))),
            Signal::Gone(meta) => Event::Gone(source, meta),
            Signal::Listed(there) => Event::Listed(source, there),
        };
        watch::whole(client, &source.resource(), scope, to.clone(), stop.clone(), event);
    }
    events
}

/// Takes the lead, with what was given as a quorum has it: what a watch shows may be older than what the last leader wrote.
async fn take_lead(client: &Client, hub: &mut Hub, leads: bool, now: Now) -> bool {
    if !leads {
        hub.handle(Event::Leading(false), now);
        return false;
    }
    match write::list(client, Kind::SliceAllocation, names::HUB_NAMESPACE).await {
        Ok((allocations, there)) => {
            for value in allocations {
                let input = Input::read(Source::SliceAllocation, &value);
                hub.handle(Event::Seen(Box::new(input)), now);
            }
            hub.handle(Event::Listed(Source::SliceAllocation, there), now);
            hub.handle(Event::Leading(true), now);
            true
        }
        Err(error) => {
            tracing::warn!(
                error = error.to_string(),
                "the allocations cannot be read, so nothing is decided yet"
            );
            false
        }
    }
}

fn finish(hub: &mut Hub, metrics: &Metrics, done: Done, now: Now) {
    let Done {
        key,
        outcome,
        object,
        took,
    } = done;
    metrics.wrote("local", &key, &outcome, took);
    let source = Source::of(key.kind);
    hub.handle(Event::Written(key, outcome), now);
    // What was written counts at once, not when a watch comes round to it.
    if let Some((source, object)) = source.zip(object) {
        hub.handle(Event::Seen(Box::new(Input::read(source, &object))), now);
    }
}

fn gauge(metrics: &Metrics, own: &HubMetrics, hub: &mut Hub) {
    let gauges = hub.gauges();
    let clusters = |state: &str, count| own.clusters.with_label_values(&[state]).set(number(count));
    clusters("registered", gauges.clusters);
    clusters("reachable", gauges.reachable);
    clusters("untrusted", gauges.untrusted);
    let indices = |state: &str, count| own.indices.with_label_values(&[state]).set(number(count));
    indices("given", gauges.indices_held);
    indices("free", gauges.indices_free);
    metrics.slices.set(number(gauges.slices));
    metrics.queued("local", gauges.queue);
    metrics.take(&mut hub.figures);
    for seconds in hub.propagation_seconds.drain(..) {
        own.propagation_seconds.observe(seconds);
    }
}
