//! Parse, watch, answer until told to stop.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::Parser;
use kube::{Api, ResourceExt, runtime::watcher};
use slice_crds::v1alpha1::{Slice, SliceService};
use slice_dns::{
    args::Args,
    handler::{Metrics, View},
    serve::{self, Links, Views},
    zone::{self, Tables},
};
use slice_runtime::{
    admin::{self, Readiness},
    client, shutdown,
    store::Watches,
    telemetry, version,
};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped by an error");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::init(&args.log)?;
    tracing::info!(version = version::VERSION, listen = %args.listen, "starting");
    let stop = shutdown::on_signal()?;
    let registry = admin::registry("dns");
    let metrics = Metrics::register(&registry);
    let watches = Watches::new(stop.clone());
    watches.undecodable().register(&registry, "dns");
    let readiness = Readiness::default();
    let synced = readiness.wait_for("watches");
    let admin = tokio::spawn(admin::serve(args.admin, registry, readiness, stop.clone()));

    let client = client::local().await?;
    let slices = watches.watch::<Slice>(Api::all(client.clone()), watcher::Config::default());
    let services = watches.watch::<SliceService>(
        Api::namespaced(client, &args.namespace),
        watcher::Config::default(),
    );
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        result = async { slices.wait_until_ready().await?; services.wait_until_ready().await } => result?,
    }
    let tables = Arc::new(ArcSwap::from_pointee(Tables::default()));
    let mut all = serve::start(args.listen, None, View::All, &tables, &metrics)?;
    let mut views = Views::default();
    let mut links = Links::watch()?;
    let mut synced = Some(synced);
    loop {
        let mut names: Vec<String> = slices.state().iter().map(|slice| slice.name_any()).collect();
        names.sort();
        let state = services.state();
        let fresh = zone::tables(
            names.iter().map(String::as_str),
            state.iter().map(|service| &service.spec),
        );
        metrics
            .names
            .set(i64::try_from(fresh.all.len()).unwrap_or(i64::MAX));
        tables.store(Arc::new(fresh));
        views
            .follow(
                names.iter().map(String::as_str),
                &links.up().await?,
                args.listen.port(),
                &tables,
                &metrics,
            )
            .await;
        drop(synced.take());
        tokio::select! {
            () = stop.cancelled() => break,
            () = watches.changed() => {}
            () = links.changed() => {}
        }
    }
    all.shutdown_gracefully().await.context("end the DNS server")?;
    admin.await.context("admin listener")?
}
