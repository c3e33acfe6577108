//! The lab's command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use slice_e2e::lab::dir::{self, LabDir};
use slice_e2e::lab::options::Options;
use slice_e2e::lab::plan::Plan;
use slice_e2e::lab::running::{self, Running};
use slice_e2e::lab::unit::Request;
use slice_e2e::lab::{images, init, ours, release, reload, remove, setup, up, wire};
use slice_e2e::matrix;
use slice_e2e::measure::{self, Part, failover, qos, scale};
use slice_e2e::platform::{Architecture, Platform};
use slice_e2e::progress::{Progress, say};

/// Real Kubernetes clusters on this machine, without a container engine.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where the lab keeps everything it makes.
    #[arg(long, global = true, env = "WEFT_LAB_DIR", default_value = dir::DEFAULT)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install missing packages, build Kubernetes and the images of the nodes. Once per machine.
    Setup,
    /// Start clusters and wait until their nodes and CoreDNS are ready.
    Up {
        /// NAME:NODES of every cluster.
        #[arg(long, env = "WEFT_LAB_CLUSTERS", default_value = "a:2,b:2")]
        clusters: Plan,
        #[command(flatten)]
        options: Options,
    },
    /// Remove everything that `up` made.
    Down,
    /// One line per machine.
    Status,
    /// Import image tars into every node that has not got them.
    Load {
        #[arg(required = true)]
        tars: Vec<PathBuf>,
        /// Only into this cluster.
        #[arg(long)]
        cluster: Option<String>,
    },
    /// Write image tars of our own programs.
    Images {
        /// The programs' folder.
        #[arg(long, default_value = "target/lab")]
        from: PathBuf,
        #[arg(long, default_value = "target/images")]
        to: PathBuf,
        #[arg(long, default_value = ours::TAG)]
        tag: String,
        /// Which images; all when none is named.
        names: Vec<String>,
    },
    /// Write one tar of images, charts and the command line, for machines without a registry.
    Release {
        /// The programs' folder.
        #[arg(long, default_value = "target/release")]
        from: PathBuf,
        #[arg(long, default_value = "target/dist")]
        to: PathBuf,
        /// amd64 or arm64; this machine's where absent.
        #[arg(long)]
        arch: Option<String>,
        /// Folder with an unpacked system of that architecture: its libraries and nft go into the images.
        #[arg(long, requires = "arch")]
        root: Option<PathBuf>,
    },
    /// Load what changed and replace the pods that use it.
    Reload {
        #[arg(long, default_value = "target/images")]
        images: PathBuf,
    },
    /// Print the kubeconfig of all clusters.
    Kubeconfig {
        /// Print where it is instead.
        #[arg(long)]
        path: bool,
    },
    /// Install Weft, make a slice, and print who can talk to whom.
    Demo,
    /// Try Weft on every kind of cluster that the lab imitates, one lab after the other; writes docs/matrix.md.
    Matrix(matrix::Selection),
    /// Measure Weft with real pods; prints a table and writes JSON.
    Measure {
        /// What to measure; everything when nothing is named.
        parts: Vec<Part>,
        #[arg(long, default_value = "target/bench/lab.json")]
        out: PathBuf,
    },
    /// Kill, cut off and drain gateways under traffic; prints outages, writes JSON and draws them.
    Failover(failover::Options),
    /// Have three slices compete for one node's uplink; prints what each gets, writes JSON and draws it.
    Qos(qos::Options),
    /// Measure the hub with 250 clusters and 1,000 slices on this lab's API server; fails where it takes more than it may.
    Scale(scale::hub::Options),
    /// Measure a member's operator with 100 nodes and 50 slices on this lab's API server; fails where it takes more than it
    /// may.
    ScaleMember(scale::member::Options),
    /// Print shell settings under which kubectl and helm work: eval "$(weft-lab env)".
    Env,
    /// A shell on a machine.
    Shell { machine: String },
    /// Run a command on a machine.
    Exec {
        machine: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Show a log, or which logs there are.
    Logs {
        /// MACHINE/UNIT, as a1/kubelet.
        component: Option<String>,
        /// Only the last lines.
        #[arg(short = 'n', long)]
        lines: Option<usize>,
    },
    /// Pull the plug of a cluster; what was on its disks stays.
    StopCluster {
        cluster: String,
        /// Leave the nodes running.
        #[arg(long)]
        control_plane: bool,
    },
    /// Boot what is stopped of a cluster and wait until it is ready.
    StartCluster { cluster: String },
    /// Pull the plug of one machine.
    StopMachine { machine: String },
    /// Boot a stopped machine.
    StartMachine { machine: String },
    /// Restart a cluster's API server and wait until it answers.
    RestartApiserver { cluster: String },
    /// Stop, start, restart or kill one program of a machine.
    Unit {
        action: Action,
        machine: String,
        unit: String,
    },
    #[command(subcommand, hide = true)]
    Machine(Inner),
}

/// What the lab runs of itself.
#[derive(Debug, Subcommand)]
enum Inner {
    Boot {
        name: String,
    },
    Init {
        name: String,
    },
    Import {
        root: PathBuf,
        images: PathBuf,
    },
    /// Carries frames between a cluster and the first one.
    Wire {
        cluster: String,
    },
    #[command(subcommand)]
    Wait(Wait),
}

#[derive(Debug, Subcommand)]
enum Wait {
    Tcp { address: String },
    Socket { path: PathBuf },
    Api { kubeconfig: PathBuf },
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("weft-lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let dir = LabDir::new(&args.dir);
    match &args.command {
        Verb::Setup => setup::setup(),
        Verb::Up { clusters, options } => up::up(&dir, clusters, options),
        Verb::Down => timed("down", || remove::all(&dir)),
        Verb::Status => status(&dir),
        Verb::Load { tars, cluster } => load(&dir, tars, cluster.as_deref()),
        Verb::Images { from, to, tag, names } => images_of_ours(from, to, tag, names),
        Verb::Release { from, to, arch, root } => {
            let architecture = arch
                .as_deref()
                .map_or_else(Architecture::here, Architecture::named)?;
            let platform = Platform::new(architecture, root.as_deref())?;
            say(format!(
                "wrote {}",
                release::write(from, to, &platform)?.display()
            ));
            Ok(())
        }
        Verb::Reload { images } => reload::reload(&Running::open(&dir)?, images),
        Verb::Kubeconfig { path } => kubeconfig(&dir, *path),
        Verb::Matrix(selection) => matrix::run(&dir, selection),
        Verb::Demo => up::runtime()?.block_on(slice_e2e::demo::run()),
        Verb::Measure { parts, out } => up::runtime()?.block_on(measure::run(parts, out)),
        Verb::Failover(options) => up::runtime()?.block_on(failover::run(options)),
        Verb::Qos(options) => up::runtime()?.block_on(qos::run(options)),
        Verb::Scale(options) => up::runtime()?.block_on(scale::hub::run(options)),
        Verb::ScaleMember(options) => up::runtime()?.block_on(scale::member::run(options)),
        Verb::Env => env(&dir),
        Verb::Shell { machine } => exec(&dir, machine, &["/bin/bash".to_owned()]),
        Verb::Exec { machine, command } => exec(&dir, machine, command),
        Verb::Logs { component, lines } => logs(&dir, component.as_deref(), *lines),
        Verb::StopCluster {
            cluster,
            control_plane,
        } => {
            let part = if *control_plane {
                running::Part::ControlPlane
            } else {
                running::Part::Whole
            };
            timed("stopped", || Running::open(&dir)?.stop_cluster(cluster, part))
        }
        Verb::StartCluster { cluster } => Running::open(&dir)?.start_cluster(cluster),
        Verb::StopMachine { machine } => timed("stopped", || Running::open(&dir)?.stop_machine(machine)),
        Verb::StartMachine { machine } => timed("booted", || Running::open(&dir)?.start_machine(machine)),
        Verb::RestartApiserver { cluster } => timed("the API server answers", || {
            Running::open(&dir)?.restart_apiserver(cluster)
        }),
        Verb::Unit {
            action,
            machine,
            unit,
        } => Running::open(&dir)?.order(machine, &action.request(unit)),
        Verb::Machine(Inner::Boot { name }) => init::boot(&dir, name),
        Verb::Machine(Inner::Init { name }) => init::init(&dir, name),
        Verb::Machine(Inner::Import { root, images }) => images::import(root, images),
        Verb::Machine(Inner::Wire { cluster }) => wire::run(&dir, cluster),
        Verb::Machine(Inner::Wait(wait)) => wait.run(),
    }
}

fn timed(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let progress = Progress::start();
    work()?;
    progress.done(what);
    Ok(())
}

fn status(dir: &LabDir) -> Result<()> {
    let rows = Running::open(dir)?.status();
    for [machine, cluster, address, state, units] in rows {
        say(format!(
            "{machine:<12} {cluster:<12} {address:<15} {state:<12} {units}"
        ));
    }
    Ok(())
}

fn load(dir: &LabDir, tars: &[PathBuf], cluster: Option<&str>) -> Result<()> {
    let tars: Vec<&Path> = tars.iter().map(PathBuf::as_path).collect();
    let progress = Progress::start();
    let changed = Running::open(dir)?.load(&tars, cluster)?;
    progress.done(match changed.is_empty() {
        true => "every node has these images already".to_owned(),
        false => format!("loaded {}", changed.join(", ")),
    });
    Ok(())
}

fn images_of_ours(from: &Path, to: &Path, tag: &str, names: &[String]) -> Result<()> {
    let progress = Progress::start();
    let changed = ours::build(from, to, tag, names)?;
    let changed: Vec<_> = changed.iter().map(|path| path.display().to_string()).collect();
    progress.done(match changed.is_empty() {
        true => "images are as they were".to_owned(),
        false => format!("wrote {}", changed.join(", ")),
    });
    Ok(())
}

fn kubeconfig(dir: &LabDir, path: bool) -> Result<()> {
    dir.expect_record()?;
    if path {
        say(dir.kubeconfig().display().to_string());
    } else {
        say(std::fs::read_to_string(dir.kubeconfig()).context("read the kubeconfig")?);
    }
    Ok(())
}

fn env(dir: &LabDir) -> Result<()> {
    let lab = Running::open(dir)?;
    say(format!("export KUBECONFIG={}", dir.kubeconfig().display()));
    say(format!("export PATH={}:$PATH", lab.programs().display()));
    // Discovery is cached by address, and the next lab has the same addresses.
    say(format!(
        "export KUBECACHEDIR={}",
        dir.root().join("kubectl-cache").display()
    ));
    Ok(())
}

/// Becomes the command; its exit code is ours.
fn exec(dir: &LabDir, machine: &str, command: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = Running::open(dir)?.command(machine, program)?;
    Err(command.args(arguments).exec()).with_context(|| format!("run {program} on {machine}"))
}

fn logs(dir: &LabDir, component: Option<&str>, lines: Option<usize>) -> Result<()> {
    let lab = Running::open(dir)?;
    if let Some((machine, unit)) = component.and_then(|component| component.split_once('/')) {
        lab.plan().machine(machine)?;
        say(running::tail(&dir.machine(machine).log(unit), lines)?);
        return Ok(());
    }
    let machines = lab
        .plan()
        .machines()
        .filter(|machine| component.is_none_or(|name| machine.name == name));
    for machine in machines {
        let folder = dir.machine(&machine.name).log("init");
        let folder = folder.parent().context("the folder of logs")?;
        for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry.context("read a folder of logs")?.path();
            say(format!(
                "{}/{}  {}",
                machine.name,
                path.file_stem().unwrap_or_default().display(),
                path.display()
            ));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Action {
    Stop,
    Start,
    Restart,
    Kill,
}

impl Action {
    fn request(self, unit: &str) -> Request {
        let unit = unit.to_owned();
        match self {
            Self::Stop => Request::Stop(unit),
            Self::Start => Request::Start(unit),
            Self::Restart => Request::Restart(unit),
            Self::Kill => Request::Kill(unit),
        }
    }
}

impl Wait {
    /// Comes back when the thing is there, or with an error; the supervisor asks again then.
    fn run(&self) -> Result<()> {
        let deadline = std::time::Duration::from_secs(60);
        match self {
            Self::Tcp { address } => images::wait_tcp(address, deadline),
            Self::Socket { path } => images::wait_socket(path, deadline),
            Self::Api { kubeconfig } => up::runtime()?.block_on(async {
                let config =
                    kube::config::Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
                let context = config
                    .current_context
                    .context("a kubeconfig without a current context")?;
                slice_e2e::harness::connect(kubeconfig, &context)
                    .await?
                    .await_api(deadline)
                    .await
            }),
        }
    }
}
