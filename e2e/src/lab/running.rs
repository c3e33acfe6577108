//! A lab that is up: what tests and the command line do with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Taint;
use serde_json::{Value, json};

use super::cgroup::Layout;
use super::config;
use super::dir::{LabDir, Record, read_json, write_json};
use super::machine;
use super::network;
use super::options::Options;
use super::plan::{Cluster, Machine, Plan};
use super::process::run;
use super::unit::{Request, State};
use super::up;
use crate::image;
use crate::progress::Progress;

/// Image digests by node.
type Loaded = BTreeMap<String, BTreeMap<String, String>>;

pub struct Running {
    pub dir: LabDir,
    record: Record,
    groups: Layout,
}

impl Running {
    /// Opens the lab of a state directory.
    pub fn open(dir: &LabDir) -> Result<Self> {
        Ok(Self {
            dir: dir.clone(),
            record: dir.expect_record()?,
            groups: Layout::detect()?,
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.record.plan
    }

    pub fn options(&self) -> &Options {
        &self.record.options
    }

    /// The folder of kubectl and helm.
    pub fn programs(&self) -> &Path {
        &self.record.programs
    }

    /// A command in all namespaces of a machine.
    pub fn command(&self, name: &str, program: &str) -> Result<Command> {
        self.plan().machine(name)?;
        machine::command(&self.dir, name, program)
    }

    /// A capture of what passes the switch: everything between machines. Ends when the process is killed.
    pub fn capture(&self, file: &Path, filter: &str) -> Result<std::process::Child> {
        let mut tcpdump = network::command_in(network::SWITCH, "tcpdump");
        tcpdump
            .args(["-i", "br0", "-U", "-s", "0", "-w"])
            .arg(file)
            .arg(filter);
        tcpdump
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        tcpdump.spawn().context("run tcpdump on the switch")
    }

    /// Pulls a machine's plug.
    pub fn stop_machine(&self, name: &str) -> Result<()> {
        machine::stop(&self.dir, &self.groups, self.plan().machine(name)?)
    }

    /// Boots a machine that was stopped, with the disk it had. Does not wait for Kubernetes.
    pub fn start_machine(&self, name: &str) -> Result<()> {
        let machine = self.plan().machine(name)?;
        if machine::is_running(&self.dir, name) {
            bail!("machine {name} is running already");
        }
        // Also after a machine that was killed by somebody else: its links and groups are still there.
        machine::stop(&self.dir, &self.groups, machine)?;
        let cluster = self.plan().cluster(&machine.cluster)?;
        machine::start(&self.dir, &self.groups, self.options(), cluster, machine)
    }

    /// Puts a new machine in a node's place, as a node pool does: with the name, the address and the images of the one before
    /// and nothing else of it, on its disk or in the cluster. Its kubelet registers it with these taints. Returns once it has.
    pub fn replace_node(&self, name: &str, taints: &[Taint]) -> Result<()> {
        let machine = self.plan().machine(name)?;
        let cluster = self.plan().cluster(&machine.cluster)?;
        self.stop_machine(name)?;
        let dir = self.dir.machine(name);
        dir.empty()?;
        let settings = dir.etc().join(config::KUBELET);
        let mut kubelet: Value = read_json(&settings)?;
        kubelet["registerWithTaints"] = json!(taints);
        write_json(&settings, &kubelet)?;
        let renewed = up::renew_node(&self.dir, self.options(), cluster, machine, || {
            self.start_machine(name)
        });
        up::runtime()?.block_on(renewed)
    }

    /// Gives a running node another IPv4 address in place of the one it has, as another lease of DHCP does; what routes to its
    /// pods follows, as a cluster's network does. Its kubelet is started again, as by a hook of the DHCP client: by itself it takes
    /// 45 s to give its connection up. The next boot is with the address of the plan.
    pub fn move_node(&self, name: &str, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
        let machine = self.plan().machine(name)?;
        let cluster = self.plan().cluster(&machine.cluster)?;
        network::move_machine(cluster, machine, from, to)?;
        self.order(name, &Request::Restart("kubelet".to_owned()))
    }

    /// Pulls the plug of a whole cluster, or of its control plane only.
    pub fn stop_cluster(&self, name: &str, part: Part) -> Result<()> {
        self.part(name, part)?
            .iter()
            .try_for_each(|machine| self.stop_machine(&machine.name))
    }

    /// Starts what is not running of a cluster and waits until its nodes are Ready.
    pub fn start_cluster(&self, name: &str) -> Result<()> {
        let cluster = self.plan().cluster(name)?;
        let stopped = |machine: &&Machine| !machine::is_running(&self.dir, &machine.name);
        let booted: Vec<&str> = cluster
            .machines()
            .filter(stopped)
            .map(|machine| machine.name.as_str())
            .collect();
        let since = jiff::Timestamp::now();
        booted.iter().try_for_each(|name| self.start_machine(name))?;
        let restart = up::Restart {
            booted: &booted,
            since,
        };
        up::runtime()?.block_on(up::bring_up(
            &self.dir,
            self.options(),
            cluster,
            Some(&restart),
            &Progress::start(),
        ))
    }

    fn part(&self, name: &str, part: Part) -> Result<Vec<&Machine>> {
        let cluster = self.plan().cluster(name)?;
        Ok(match part {
            Part::Whole => cluster.machines().collect(),
            Part::ControlPlane => vec![&cluster.control_plane],
        })
    }

    /// Gives an order about one unit.
    pub fn order(&self, machine: &str, request: &Request) -> Result<()> {
        self.plan().machine(machine)?;
        machine::order(&self.dir, machine, request).map(drop)
    }

    /// Restarts an API server and waits until it answers again.
    pub fn restart_apiserver(&self, cluster: &str) -> Result<()> {
        let cluster = self.plan().cluster(cluster)?;
        let plane = &cluster.control_plane.name;
        let starts = || -> Result<u32> {
            let units = machine::units(&self.dir, plane)?;
            Ok(units
                .iter()
                .find(|unit| unit.name == "apiserver")
                .map_or(0, |unit| unit.starts))
        };
        let before = starts()?;
        self.order(plane, &Request::Restart("apiserver".to_owned()))?;
        // Its supervisor kills it after some seconds when it does not end; then it must be a new one that answers.
        let until = std::time::Instant::now() + machine::END;
        while starts()? == before {
            if std::time::Instant::now() > until {
                bail!("the API server of {} did not restart", cluster.name);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        up::runtime()?.block_on(async {
            let api = crate::harness::connect(&self.dir.kubeconfig(), &cluster.name).await?;
            api.await_api(machine::END * 3).await
        })
    }

    /// Imports image tars into every node that has not got their content yet, all nodes at once; names what changed.
    pub fn load(&self, tars: &[&Path], only: Option<&str>) -> Result<Vec<String>> {
        let clusters: Vec<&Cluster> = match only {
            Some(name) => vec![self.plan().cluster(name)?],
            None => self.plan().clusters().iter().collect(),
        };
        let mut loaded: Loaded = match self.dir.loaded().exists() {
            true => read_json(&self.dir.loaded())?,
            false => Loaded::new(),
        };
        let mut images = Vec::new();
        for tar in tars {
            let named = image::digest_of(tar)?;
            let (name, digest) = named.split_once('@').context("an image without a digest")?;
            images.push((*tar, name.to_owned(), digest.to_owned()));
        }
        let mut work = Vec::new();
        for node in clusters.iter().flat_map(|cluster| &cluster.nodes) {
            let has = loaded.entry(node.name.clone()).or_default();
            let missing = images
                .iter()
                .filter(|(_, name, digest)| has.get(name) != Some(digest));
            work.extend(missing.map(|image| (node.name.clone(), image)));
        }
        std::thread::scope(|scope| {
            let jobs: Vec<_> = work
                .iter()
                .map(|(node, (tar, ..))| scope.spawn(|| self.import(node, tar)))
                .collect();
            jobs.into_iter()
                .try_for_each(|job| job.join().unwrap_or_else(|_| bail!("an import panicked")))
        })?;
        let mut changed: Vec<String> = work.iter().map(|(_, (_, name, _))| name.clone()).collect();
        for (node, (_, name, digest)) in work {
            loaded
                .entry(node)
                .or_default()
                .insert(name.clone(), digest.clone());
        }
        write_json(&self.dir.loaded(), &loaded)?;
        changed.sort();
        changed.dedup();
        Ok(changed)
    }

    fn import(&self, node: &str, tar: &Path) -> Result<()> {
        let file = File::open(tar).with_context(|| format!("open {}", tar.display()))?;
        let mut ctr = machine::command(&self.dir, node, "ctr")?;
        ctr.args(["-n", "k8s.io", "images", "import", "-"]).stdin(file);
        let output = ctr.output().context("run ctr")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("import {} on {node}: {}", tar.display(), words.trim());
        }
        Ok(())
    }

    /// One line per machine and what is wrong with it.
    pub fn status(&self) -> Vec<[String; 5]> {
        self.plan()
            .machines()
            .map(|machine| self.describe(machine))
            .collect()
    }

    fn describe(&self, machine: &Machine) -> [String; 5] {
        let (state, units) = match machine::pid(&self.dir, &machine.name) {
            Ok(pid) => (format!("pid {pid}"), self.describe_units(&machine.name)),
            Err(_) => ("stopped".to_owned(), String::new()),
        };
        [
            machine.name.clone(),
            machine.cluster.clone(),
            machine.address(self.options().family).to_string(),
            state,
            units,
        ]
    }

    fn describe_units(&self, name: &str) -> String {
        let units = match machine::units(&self.dir, name) {
            Ok(units) => units,
            Err(error) => return format!("{error:#}"),
        };
        let odd = units
            .iter()
            .filter(|unit| matches!(unit.state, State::Waiting | State::Stopped) || unit.starts > 1);
        let odd: Vec<_> = odd
            .map(|unit| format!("{} {:?}, started {} times", unit.name, unit.state, unit.starts))
            .collect();
        if odd.is_empty() {
            format!("{} units well", units.len())
        } else {
            odd.join("; ")
        }
    }
}

/// How much of a cluster is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    ControlPlane,
}

/// The end of a log file, or all of it.
pub fn tail(file: &Path, lines: Option<usize>) -> Result<String> {
    match lines {
        Some(lines) => run(Command::new("tail").arg(format!("-n{lines}")).arg(file)),
        None => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display())),
    }
}
