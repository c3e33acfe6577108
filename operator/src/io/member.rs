//! The member role at work: watches of two API servers in, writes to each out, as long as this process leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context;
use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod, Secret},
        networking::v1::ServiceCIDR,
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use slice_crds::{labels, names};
use slice_runtime::{
    admin::{self, Readiness},
    apply, client, lease, resolve, version,
};
use tokio::{
    sync::{mpsc, watch as state},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    BATCH, STALLED, TICK, hostnames,
    link::{Keeper, News, State},
    record,
    watch::{self, CHANNEL, Scope, Signal},
    write::{self, AT_ONCE, Done},
};
use crate::{
    args::ClusterArgs,
    control::{Kind, Now},
    member::{Event, Facts, Input, MANAGER, Member, Settings, Side, Source, cluster_dns, input::Object},
    metrics::{MemberMetrics, Metrics, number},
};

/// Facts of the cluster that nobody watches are asked for this often, and after a failure.
const FACTS: Duration = Duration::from_secs(300);
const FACTS_AGAIN: Duration = Duration::from_secs(5);
/// How often the cluster's DNS is asked, and how long for an answer of one server is waited.
const ASK_DNS: Duration = Duration::from_secs(5);
const DNS_PATIENCE: Duration = Duration::from_secs(2);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Runs until `stop`.
///
/// # Errors
/// Where the API server cannot be reached at the start, or the admin port is taken.
pub async fn run(args: ClusterArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client::local().await?;
    let registry = admin::registry("cluster");
    let metrics = Metrics::register(&registry);
    let own = MemberMetrics::register(&registry);
    let readiness = Readiness::default();
    let mut synced = Some(readiness.wait_for("watches"));
    let pulse = readiness.pulse("member loop", STALLED);
    let mut server = tokio::spawn(admin::serve(args.common.admin, registry, readiness, stop.clone()));
    let watching = CancellationToken::new();
    let (to, mut events) = mpsc::channel(CHANNEL);
    watch_local(&client, &args, &to, &watching);
    tokio::spawn(ask_facts(client.clone(), to.clone(), watching.clone()));
    if !args.coredns_config.ids().is_empty() {
        tokio::spawn(ask_dns(to.clone(), watching.clone()));
    }
    let identity = args.common.pod_name.clone();
    let notices = record::start(client.clone(), MANAGER, identity.clone(), metrics.clone());
    let mut claim = lease::claim(client.clone(), &args.common.namespace, MANAGER, identity);
    let (shared, link_state) = state::channel(State::default());
    let (news_to, mut news) = mpsc::channel(16);
    let (balancers, names) = state::channel(BTreeSet::new());
    tokio::spawn(hostnames::run(names, to.clone(), watching.clone()));
    let keeper = Keeper {
        local: client.clone(),
        namespace: args.common.namespace.clone(),
        secret: args.hub_secret.clone(),
        state: link_state,
        news: news_to,
        stop: watching.clone(),
    };
    tokio::spawn(keeper.run());
    let mut member = Member::new(Settings {
        version: version::VERSION,
        gateway_image: args.gateway_image.clone(),
        gateway_pod: args.gateway_pod.clone(),
        gateway_namespace: args.gateway_namespace.clone(),
        dns_service: args.dns_service.clone(),
        cluster_dns: args.coredns_config.clone(),
        inline: args.served_inline,
    });
    let begun = Instant::now();
    let now = || Now {
        clock: begun.elapsed(),
        wall: Timestamp::now(),
    };
    let mut flights = FuturesUnordered::new();
    let mut hub: Option<Hub> = None;
    let (mut leading, mut stopping) = (false, false);
    let mut next_gauge = Instant::now();
    loop {
        pulse.beat();
        if claim.is_valid() != leading && !stopping {
            leading = take_lead(&client, &mut member, claim.is_valid(), now()).await;
            if !leading {
                flights.clear();
            }
            metrics.leader.set(leading.into());
            shared.send_modify(|state| state.leading = leading);
        }
        // The claim is looked at before each write. Each server has its own share of those under way.
        while leading && !stopping && member.in_flight(Side::Local) < AT_ONCE && claim.is_valid() {
            let Some(write) = member.poll_write(Side::Local, now()) else {
                break;
            };
            flights.push(on(Side::Local, write::execute(client.clone(), MANAGER, write)));
        }
        if let Some(hub) = &hub {
            while leading && !stopping && member.in_flight(Side::Hub) < AT_ONCE && claim.is_valid() {
                let Some(write) = member.poll_write(Side::Hub, now()) else {
                    break;
                };
                flights.push(on(Side::Hub, write::execute(hub.client.clone(), MANAGER, write)));
            }
        }
        while let Some(notice) = member.poll_notice() {
            if notices.try_send(notice).is_err() {
                metrics.notices_dropped.inc();
            }
        }
        if leading && !stopping && member.has_left() {
            leave(&client, &args).await;
        }
        if Instant::now() >= next_gauge {
            gauge(&metrics, &own, &mut member);
            next_gauge = Instant::now() + TICK;
        }
        if let Some(hub) = &mut hub
            && let Some(namespaces) = member.take_followed()
        {
            hub.follow(&namespaces);
        }
        if let Some(names) = member.take_names() {
            balancers.send_replace(names);
        }
        if synced.is_some() && member.is_synced() {
            synced = None;
        }
        if stopping && flights.is_empty() {
            break;
        }
        let wake = member
            .next_timeout()
            .map_or(TICK, |at| at.saturating_sub(begun.elapsed()).min(TICK));
        tokio::select! {
            () = stop.cancelled(), if !stopping => stopping = true,
            ended = &mut server, if !stopping && !stop.is_cancelled() => return ended.context("admin listener")?,
            Some((side, done)) = flights.next(), if !flights.is_empty() => {
                finish(&mut member, &metrics, side, done, now());
            }
            Some(event) = events.recv() => {
                take(&mut member, event, &shared, now());
                for _ in 1..BATCH {
                    let Ok(event) = events.try_recv() else { break };
                    take(&mut member, event, &shared, now());
                }
            }
            Some(event) = Hub::next(&mut hub) => take(&mut member, event, &shared, now()),
            Some(news) = news.recv() => {
                match news {
                    News::Up { client, link } => {
                        // With the credential before it go its watches, and what they have seen that was not handled.
                        let watches = Hub::watch(client, &link.namespace);
                        hub = Some(watches);
                        member.handle(Event::Linked(Ok(link)), now());
                    }
                    News::Down(why) => {
                        hub = None;
                        member.handle(Event::Linked(Err(why)), now());
                    }
                    News::Heartbeat(result) => member.handle(Event::Heartbeat(result), now()),
                }
            }
            () = claim.changed() => {}
            () = sleep_until(Instant::now() + wake) => member.handle(Event::Tick, now()),
        }
    }
    watching.cancel();
    // After the last write: whoever leads next finds everything as it was left.
    claim.release().await;
    server.await.context("admin listener")?
}

/// The hub, as long as one credential for it lasts.
struct Hub {
    client: Client,
    to: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Watches of what the members of slices share, by namespace.
    shared: BTreeMap<String, CancellationToken>,
    stop: CancellationToken,
}

impl Hub {
    fn watch(client: Client, namespace: &str) -> Self {
        let stop = CancellationToken::new();
        let (to, events) = mpsc::channel(CHANNEL);
        for source in Source::HUB {
            let scope = Scope::inside(namespace);
            watch::whole(
                &client,
                &source.resource(),
                scope,
                to.clone(),
                stop.clone(),
                event(source),
            );
        }
        Self {
            client,
            to,
            events,
            shared: BTreeMap::new(),
            stop,
        }
    }

    /// Watches what is shared in these namespaces, and in no others any more.
    fn follow(&mut self, namespaces: &BTreeSet<String>) {
        self.shared.retain(|namespace, watch| {
            let stays = namespaces.contains(namespace);
            if !stays {
                watch.cancel();
            }
            stays
        });
        for namespace in namespaces {
            if self.shared.contains_key(namespace) {
                continue;
            }
            let stop = self.stop.child_token();
            self.shared.insert(namespace.clone(), stop.clone());
            let space: Box<str> = namespace.as_str().into();
            let source = Source::SliceShare;
            let event = move |signal| match signal {
                Signal::Listed(there) => Event::Shared(space.clone(), there),
                other => event(source)(other),
            };
            watch::whole(
                &self.client,
                &source.resource(),
                Scope::inside(namespace),
                self.to.clone(),
                stop,
                event,
            );
        }
    }

    /// The next event of the hub; none comes where there is none.
    async fn next(hub: &mut Option<Self>) -> Option<Event> {
        match hub {
            Some(hub) => hub.events.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn event(source: Source) -> impl Fn(Signal) -> Event + Send + Sync + 'static {
    move |signal| match signal {
        Signal::Seen(value) => Event::Seen(Box::new(Input::read(source, &value))),
        Signal::Gone(meta) => Event::Gone(source, meta),
        Signal::Listed(there) => Event::Listed(source, there),
    }
}

fn watch_local(client: &Client, args: &ClusterArgs, to: &mpsc::Sender<Event>, stop: &CancellationToken) {
    let gateways = format!("{}={}", labels::COMPONENT, labels::COMPONENT_GATEWAY);
    let own = &args.common.namespace;
    for source in Source::LOCAL {
        let scope = match source {
            Source::SliceGateway | Source::SliceService | Source::AgentLease => Scope::inside(own),
            Source::GatewayPod | Source::GatewaySet | Source::GatewayBudget | Source::GatewayService => {
                Scope::all().labelled(&gateways)
            }
            Source::ConfigMap => {
                watch_dns(client, &args.coredns_config, to, stop);
                continue;
            }
            _ => Scope::all(),
        };
        match source {
            Source::Pod => watch::metadata::<Pod, _>(client, to.clone(), stop.clone(), event(source)),
            Source::Namespace => {
                watch::metadata::<Namespace, _>(client, to.clone(), stop.clone(), event(source))
            }
            _ => watch::whole(
                client,
                &source.resource(),
                scope,
                to.clone(),
                stop.clone(),
                event(source),
            ),
        }
    }
}

/// Watches the ConfigMaps of the cluster's DNS, each by its name: no other may be read.
fn watch_dns(
    client: &Client,
    config: &cluster_dns::Config,
    to: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) {
    let source = Source::ConfigMap;
    let ids = config.ids();
    if ids.is_empty() {
        let _ = to.try_send(Event::Listed(source, BTreeSet::new()));
    }
    for id in ids {
        let scope = Scope::inside(&id.0).named(&id.1);
        let event = move |signal| match signal {
            Signal::Listed(there) => Event::DnsListed(id.clone(), there),
            other => event(source)(other),
        };
        watch::whole(client, &source.resource(), scope, to.clone(), stop.clone(), event);
    }
}

fn take(member: &mut Member, event: Event, shared: &state::Sender<State>, now: Now) {
    match &event {
        Event::Seen(input) => {
            if let Object::Hub(Ok(hub)) = &input.object
                && &*input.meta.name == names::MEMBER_HUB
            {
                shared.send_modify(|state| state.hub = Some(hub.clone()));
            }
        }
        Event::Facts(facts) => shared.send_modify(|state| state.facts = facts.clone()),
        _ => {}
    }
    member.handle(event, now);
}

/// Takes the lead, with the blocks as a quorum has them: what a watch shows may be older than what the last leader gave.
async fn take_lead(client: &Client, member: &mut Member, leads: bool, now: Now) -> bool {
    if !leads {
        member.handle(Event::Leading(false), now);
        return false;
    }
    for (kind, source) in [
        (Kind::Slice, Source::Slice),
        (Kind::SliceBlock, Source::SliceBlock),
    ] {
        match write::list(client, kind, "").await {
            Ok((objects, there)) => {
                for value in objects {
                    let input = Input::read(source, &value);
                    member.handle(Event::Seen(Box::new(input)), now);
                }
                member.handle(Event::Listed(source, there), now);
            }
            Err(error) => {
                let kind = format!("{kind:?}");
                tracing::warn!(
                    kind,
                    error = error.to_string(),
                    "what was given cannot be read, so nothing is decided yet"
                );
                return false;
            }
        }
    }
    member.handle(Event::Leading(true), now);
    true
}

async fn on(side: Side, done: impl Future<Output = Done>) -> (Side, Done) {
    (side, done.await)
}

fn finish(member: &mut Member, metrics: &Metrics, side: Side, done: Done, now: Now) {
    let Done {
        key,
        outcome,
        object,
        took,
    } = done;
    let server = match side {
        Side::Local => "local",
        Side::Hub => "hub",
    };
    metrics.wrote(server, &key, &outcome, took);
    let source = Source::of(side, key.kind);
    member.handle(Event::Written(side, key, outcome), now);
    // What was written counts at once, not when a watch comes round to it.
    if let Some((source, object)) = source.zip(object) {
        member.handle(Event::Seen(Box::new(Input::read(source, &object))), now);
    }
}

/// The cluster is off the hub: its credential goes too.
async fn leave(client: &Client, args: &ClusterArgs) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.common.namespace);
    match apply::delete(&secrets, &args.hub_secret).await {
        Ok(()) => tracing::info!("the cluster has left its hub"),
        Err(error) => tracing::warn!(
            error = format!("{error:#}"),
            "the credential for the hub could not be deleted"
        ),
    }
}

/// Asks the cluster's DNS for a name that every cluster has, as any pod does, again and again.
async fn ask_dns(to: mpsc::Sender<Event>, stop: CancellationToken) {
    loop {
        if to.send(Event::DnsAsked(resolve_api().await)).await.is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ASK_DNS) => {}
        }
    }
}

/// Whether the API server's name resolves; else why it does not, as each of the pod's servers has it.
async fn resolve_api() -> Result<(), String> {
    let text = tokio::fs::read_to_string(RESOLV_CONF).await;
    let config = resolve::Config::read(&text.map_err(|error| format!("{RESOLV_CONF}: {error}"))?);
    let Some(domain) = &config.domain else {
        return Err(format!(
            "{RESOLV_CONF} of the operator's pod names no domain of a cluster"
        ));
    };
    let name = format!("kubernetes.default.svc.{domain}");
    let mut failures = Vec::new();
    for server in &config.servers {
        let answer = resolve::ask((*server, 53).into(), &name, resolve::Kind::A, DNS_PATIENCE).await;
        failures.push(match answer {
            // A cluster with IPv6 only has other addresses for it.
            Ok(resolve::Answer::Records | resolve::Answer::NoData) => return Ok(()),
            Ok(resolve::Answer::Code(code)) => format!("{server} answers {code} for {name}"),
            Err(error) => format!("{server}: {error}"),
        });
    }
    match failures.is_empty() {
        true => Err(format!("{RESOLV_CONF} of the operator's pod names no server")),
        false => Err(failures.join(", ")),
    }
}

/// Asks for facts of the cluster that nobody watches, now and then.
async fn ask_facts(client: Client, to: mpsc::Sender<Event>, stop: CancellationToken) {
    loop {
        let again = match facts(&client).await {
            Ok(facts) => {
                if to.send(Event::Facts(facts)).await.is_err() {
                    return;
                }
                FACTS
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "facts of the cluster not read");
                FACTS_AGAIN
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(again) => {}
        }
    }
}

async fn facts(client: &Client) -> anyhow::Result<Facts> {
    let spaces: Api<Namespace> = Api::all(client.clone());
    let system = spaces
        .get("kube-system")
        .await
        .context("read namespace kube-system")?;
    let version = client
        .apiserver_version()
        .await
        .context("ask for the Kubernetes version")?;
    let cidrs: Api<ServiceCIDR> = Api::all(client.clone());
    let service_cidrs = match cidrs.list(&ListParams::default()).await {
        Ok(list) => list
            .items
            .into_iter()
            .filter_map(|item| item.spec?.cidrs)
            .flatten()
            .collect(),
        // Older than Kubernetes 1.33: the range is not in the API.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(error).context("list the Service networks"),
    };
    Ok(Facts {
        cluster_uid: system.uid().unwrap_or_default(),
        kubernetes_version: version.git_version,
        service_cidrs,
    })
}

fn gauge(metrics: &Metrics, own: &MemberMetrics, member: &mut Member) {
    let gauges = member.gauges();
    let nodes = |state: &str, count| own.nodes.with_label_values(&[state]).set(number(count));
    nodes("usable", gauges.nodes);
    nodes("left_out", gauges.nodes_left_out);
    own.hub_reachable.set(gauges.hub_reachable.into());
    metrics.slices.set(number(gauges.slices));
    metrics.queued("local", gauges.local);
    metrics.queued("hub", gauges.hub);
    metrics.take(&mut member.figures);
}
