//! `slice-gateway`: see the library's documentation.

use std::{os::fd::AsFd, process::ExitCode, sync::Arc, thread, time::Instant};

use anyhow::Context;
use clap::Parser;
use slice_gateway::{
    args::Args,
    control::{self, Caller, Waiting},
    driver::Driver,
    entropy,
    io::sockets::Sockets,
    metrics::Metrics,
    proto::{Gateway, Key, lane::Lane},
    shared::Shared,
};
use slice_runtime::{
    admin::{self, Readiness},
    shutdown,
    telemetry::{self, LogArgs},
    version::VERSION,
};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "gateway ends");
            #[expect(clippy::print_stderr, reason = "logging may not have been set up")]
            {
                eprintln!("slice-gateway: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    // boringtun reports a peer that is away as an error, every time; that is told as "tunnel is down", once.
    telemetry::init(&LogArgs {
        filter: format!("boringtun=off,{}", args.log.filter),
        ..args.log.clone()
    })?;
    let ordinal = args.ordinal()?;
    let key = Key::from_random(entropy::bytes().context("read random bytes")?);
    let sockets =
        Sockets::bind(args.listen, args.threads).with_context(|| format!("listen on UDP {}", args.listen))?;
    let udp_port = sockets[0]
        .listening()
        .local_address()
        .context("read the own UDP address")?
        .port();
    tracing::info!(version = VERSION, ordinal, socket = %args.socket.display(), udp_port, admin = %args.admin, threads = sockets.len(), "gateway starts");

    let shared = Shared::new(sockets.len()).context("make event descriptors")?;
    let caller = Caller {
        socket: args.socket.clone(),
        ordinal,
        udp_port,
        udp: sockets
            .iter()
            .flat_map(Sockets::iter)
            .map(|udp| udp.as_fd().try_clone_to_owned())
            .collect::<Result<_, _>>()
            .context("copy the UDP sockets' descriptors")?,
    };
    let readiness = Readiness::default();
    let waiting = Waiting {
        config: Some(readiness.wait_for("configuration from the node agent")),
        tap: Some(readiness.wait_for("TAP device from the node agent")),
        tunnels: Some(readiness.wait_for("tunnels to the other clusters")),
        since: None,
    };

    let mut threads = Vec::new();
    let lanes = u8::try_from(sockets.len()).context("count the threads")?;
    for (lane, sockets) in Lane::all(lanes).zip(sockets) {
        let seed = u64::from_ne_bytes(*entropy::bytes().context("read random bytes")?);
        let gateway = Gateway::new(lane, key.clone(), seed, Instant::now());
        let driver = Driver::new(lane, gateway, sockets, shared.clone());
        let name = format!("data-{}", lane.number());
        threads.push(spawn(&name, &shared, move || {
            driver.run().context("run the data path")
        })?);
    }
    let control = spawn("control", &shared, {
        let shared = shared.clone();
        move || {
            control::run(&caller, &shared, waiting);
            Ok(())
        }
    })?;
    threads.push(control);
    let served = serve(args, &shared, readiness);
    shared.stop();
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    tracing::info!("gateway stopped");
    served
}

/// Admin endpoints and signals, until a signal or the end of another thread.
fn serve(args: &Args, shared: &Arc<Shared>, readiness: Readiness) -> anyhow::Result<()> {
    let registry = admin::registry("gateway");
    registry
        .register(Box::new(Metrics::new(shared.clone())))
        .context("register the metrics")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the admin runtime")?;
    runtime.block_on(async {
        let stop = shutdown::on_signal().context("listen for signals")?;
        let serving = admin::serve(args.admin, registry, readiness, stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            // A signal also ends the admin endpoints: which of the two is seen first must not matter.
            biased;
            () = stop.cancelled() => {
                let served = serving.await;
                // The data path stays until nothing comes any more.
                shared.drain();
                shared.stopping().cancelled().await;
                served
            }
            result = &mut serving => result,
            () = shared.stopping().cancelled() => {
                stop.cancel();
                serving.await
            }
        }
    })
}

/// Starts a thread; when it ends, everything does.
fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    work: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<()>>> {
    let shared = shared.clone();
    let work = move || {
        let _stop = StopOnDrop(shared);
        work()
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .with_context(|| format!("start the {name} thread"))
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
