//! What runs on each machine and with which settings: files and [`Boot`]
//! orders, rendered from the plan. Pure but for the writing at the end.
//!
//! JSON is YAML, so every Kubernetes configuration file is written as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::dir::{LabDir, MachineDir, write_json};
use super::family::Family;
use super::options::{NODE_LOCAL_DNS, Options};
use super::plan::{Cluster, Machine, Role};
use super::unit::{Boot, Kind, Unit};

/// Where the stock CNI plugins of Debian's containernetworking-plugins are.
pub const STOCK_CNI: &str = "/usr/lib/cni";
/// containerd's socket inside a node.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The kubelet's configuration, in a machine's own `etc`.
pub const KUBELET: &str = "kubelet.json";

/// The paths that every rendering needs.
pub struct Site<'a> {
    pub dir: &'a LabDir,
    /// The folder of kube-apiserver, kubelet, ….
    pub programs: &'a Path,
    pub options: &'a Options,
}

/// Writes a machine's files and its orders.
pub fn write(site: &Site<'_>, cluster: &Cluster, machine: &Machine) -> Result<()> {
    let dir = site.dir.machine(&machine.name);
    dir.create()?;
    let mut units = Units {
        dir: &dir,
        all: Vec::new(),
    };
    match machine.role {
        Role::ControlPlane => control_plane(site, cluster, machine, &mut units)?,
        Role::Node(_) => node(site, cluster, machine, &mut units)?,
    }
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        site.programs.display()
    );
    let env = BTreeMap::from([("PATH".to_owned(), path), ("HOME".to_owned(), "/root".to_owned())]);
    write_json(
        &dir.units(),
        &Boot {
            hostname: machine.name.clone(),
            env,
            units: units.all,
        },
    )
}

struct Units<'a> {
    dir: &'a MachineDir,
    all: Vec<Unit>,
}

impl Units<'_> {
    fn add(&mut self, name: &str, kind: Kind, after: &[&str], argv: Vec<String>) {
        let after = after.iter().map(|name| (*name).to_owned()).collect();
        self.all.push(Unit {
            name: name.to_owned(),
            kind,
            argv,
            after,
            log: self.dir.log(name),
        });
    }
}

fn control_plane(site: &Site<'_>, cluster: &Cluster, machine: &Machine, units: &mut Units<'_>) -> Result<()> {
    let family = site.options.family;
    let (pods, services) = (
        family.list(|ranges| ranges.pods.to_owned()),
        family.list(|ranges| ranges.services.to_owned()),
    );
    let pki = site.dir.pki(&cluster.name);
    let file = |name: &str| pki.join(name).display().to_string();
    let etcd = "http://127.0.0.1:2379";
    let name = &cluster.name;
    units.add(
        "etcd",
        Kind::Service,
        &[],
        vec![
            "etcd".into(),
            format!("--name={name}"),
            format!("--data-dir=/var/lib/etcd/{name}"),
            // The data outlives killed processes in the page cache; only a power cut of the real machine loses it.
            "--unsafe-no-fsync".into(),
            format!("--listen-client-urls={etcd}"),
            format!("--advertise-client-urls={etcd}"),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
            format!("--initial-cluster={name}=http://127.0.0.1:2380"),
        ],
    );
    units.add(
        "etcd-answers",
        Kind::Task,
        &["etcd"],
        wait(site, &["tcp", "127.0.0.1:2379"]),
    );
    let mut argv = vec![
        "kube-apiserver".into(),
        format!("--etcd-servers={etcd}"),
        format!("--advertise-address={}", machine.address(family)),
        format!("--bind-address={}", family.any()),
        "--secure-port=6443".into(),
        format!("--service-cluster-ip-range={services}"),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!(
            "--service-account-signing-key-file={}",
            file("service-account.key")
        ),
        format!("--service-account-key-file={}", file("service-account.pub")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--requestheader-client-ca-file={}", file("ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        format!("--proxy-client-cert-file={}", file("front-proxy.crt")),
        format!("--proxy-client-key-file={}", file("front-proxy.key")),
        // No kube-proxy on this machine: webhooks are called on their pods' addresses.
        "--enable-aggregator-routing=true".into(),
    ];
    if site.options.priority_quota {
        let path = units.dir.etc().join("admission.json");
        write_json(&path, &limited_priorities())?;
        argv.push(format!("--admission-control-config-file={}", path.display()));
    }
    units.add("apiserver", Kind::Service, &["etcd-answers"], argv);
    // Both exit when there is no API server yet.
    units.add(
        "api-answers",
        Kind::Task,
        &["apiserver"],
        wait(site, &["api", &file("admin.kubeconfig")]),
    );
    let client = |config: &str| {
        [
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
        ]
        .map(|flag| format!("--{flag}={}", file(config)))
    };
    let mut argv = vec!["kube-controller-manager".to_owned()];
    argv.extend(client("controller-manager.kubeconfig"));
    argv.extend([
        "--bind-address=127.0.0.1".into(),
        // Node objects are made with their range: the lab wants the same one on node n of every cluster.
        "--allocate-node-cidrs=false".into(),
        format!("--cluster-cidr={pods}"),
        format!("--service-cluster-ip-range={services}"),
        format!("--root-ca-file={}", file("ca.crt")),
        format!(
            "--service-account-private-key-file={}",
            file("service-account.key")
        ),
        "--use-service-account-credentials".into(),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        "--node-monitor-grace-period=20s".into(),
        // Its own throttle makes the start of all controllers take five seconds.
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
        "--leader-elect=false".into(),
    ]);
    units.add("controller-manager", Kind::Service, &["api-answers"], argv);
    let mut argv = vec!["kube-scheduler".to_owned()];
    argv.extend(client("scheduler.kubeconfig"));
    argv.extend(["--bind-address=127.0.0.1".into(), "--leader-elect=false".into()]);
    units.add("scheduler", Kind::Service, &["api-answers"], argv);
    Ok(())
}

/// Pods of Kubernetes' own priority classes, only where a quota counts them (kubernetes.io, "Limit Priority Class consumption by
/// default").
fn limited_priorities() -> Value {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{"name": "ResourceQuota", "configuration": {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "ResourceQuotaConfiguration",
            "limitedResources": [{"resource": "pods", "matchScopes": [{
                "scopeName": "PriorityClass", "operator": "In",
                "values": ["system-node-critical", "system-cluster-critical"]
            }]}]
        }}]
    })
}

fn node(site: &Site<'_>, cluster: &Cluster, machine: &Machine, units: &mut Units<'_>) -> Result<()> {
    let pki = site.dir.pki(&cluster.name);
    let file = |name: &str| pki.join(name).display().to_string();
    let etc = units.dir.etc();
    let put = |name: &str, text: String| -> Result<PathBuf> {
        let path = etc.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let family = site.options.family;
    put("10-lab.conflist", cni(site.options, machine).to_string())?;
    // Pods that ask for the node's own resolver find none: the lab has no way out.
    let resolv = put("resolv.conf", String::new())?;
    let containerd = put(
        "containerd.toml",
        CONTAINERD_TOML.replace("@RUNC@", "/usr/sbin/runc"),
    )?;
    let kubelet = put(KUBELET, kubelet(site.options, &pki, machine, &resolv).to_string())?;
    let proxy = put("kube-proxy.json", proxy(site.options, &pki, machine).to_string())?;

    for ranges in family.ranges() {
        let (program, pods) = (ranges.iptables, ranges.pods);
        let words = format!("{program} -w -t nat -A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE");
        let argv = words.split(' ').map(str::to_owned).collect();
        units.add(&masquerade(program), Kind::Task, &[], argv);
    }
    units.add(
        "containerd",
        Kind::Service,
        &[],
        vec![
            "containerd".into(),
            "--config".into(),
            containerd.display().to_string(),
        ],
    );
    units.add(
        "containerd-answers",
        Kind::Task,
        &["containerd"],
        wait(site, &["socket", CONTAINERD]),
    );
    // A kubelet that starts before its API server loses seconds in its back-off.
    units.add(
        "api-answers",
        Kind::Task,
        &[],
        wait(site, &["api", &file(&format!("{}.kubeconfig", machine.name))]),
    );
    let mut argv = vec![
        "kubelet".into(),
        format!("--kubeconfig={}", file(&format!("{}.kubeconfig", machine.name))),
        format!("--config={}", kubelet.display()),
        format!("--hostname-override={}", machine.name),
        "--v=2".into(),
    ];
    // Unless told, a kubelet takes the IPv4 address of the default route, and follows it when it changes.
    if family != Family::Ipv4 {
        argv.push(format!("--node-ip={}", join(&machine.addresses(family))));
    }
    units.add(
        "kubelet",
        Kind::Service,
        &[
            "containerd-answers",
            "api-answers",
            &masquerade(family.ranges()[0].iptables),
        ],
        argv,
    );
    units.add(
        "kube-proxy",
        Kind::Service,
        &["api-answers"],
        vec![
            "kube-proxy".into(),
            format!("--config={}", proxy.display()),
            "--v=2".into(),
        ],
    );
    Ok(())
}

fn masquerade(program: &str) -> String {
    format!("masquerade-{program}")
}

fn join(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(",")
}

/// Our own program waits for things that others need; see `weft-lab machine wait`.
fn wait(site: &Site<'_>, what: &[&str]) -> Vec<String> {
    let mut argv = vec![
        site.dir.program().display().to_string(),
        "machine".into(),
        "wait".into(),
    ];
    argv.extend(what.iter().map(|word| (*word).to_owned()));
    argv
}

/// The chain that Weft's own plugin joins later: containerd reads the file again when it changes.
fn cni(options: &Options, machine: &Machine) -> Value {
    let ranges = machine.pod_ranges(options.family);
    let ranges: Vec<Value> = ranges
        .iter()
        .map(|(range, _)| json!([{"subnet": range}]))
        .collect();
    let routes = options.family.ranges().iter();
    let routes: Vec<Value> = routes.map(|of| json!({"dst": of.default_route})).collect();
    let mut list = json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": routes,
                    // Leases end with the machine, as its pods' namespaces do.
                    "dataDir": "/run/cni-ipam"
                }
            },
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    });
    if let Some(mtu) = options.mtu_of_pods() {
        list["plugins"][0]["mtu"] = json!(mtu);
    }
    list
}

fn kubelet(options: &Options, pki: &Path, machine: &Machine, resolv: &Path) -> Value {
    let dns = match options.node_local_dns {
        true => NODE_LOCAL_DNS.to_owned(),
        false => options.family.ranges()[0].dns.to_string(),
    };
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.join("ca.crt")}
        },
        "authorization": {"mode": "Webhook"},
        "address": options.family.any(),
        "tlsCertFile": pki.join(format!("{}.crt", machine.name)),
        "tlsPrivateKeyFile": pki.join(format!("{}.key", machine.name)),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "resolvConf": resolv,
        "clusterDomain": "cluster.local",
        "clusterDNS": [dns],
        "cgroupDriver": "cgroupfs",
        // kubelet 1.35 and later refuse v1 hosts unless told otherwise.
        "failCgroupV1": false,
        "failSwapOn": false,
        // A lower value needs CAP_SYS_RESOURCE, which a container that runs the lab may not have.
        "oomScoreAdj": 0,
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%",
            "imagefs.available": "1%", "nodefs.inodesFree": "1%"
        },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "30s",
        "nodeLeaseDurationSeconds": 20,
        // A changed ConfigMap is in its volume within seconds, not within a minute.
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "syncFrequency": "2s",
        "serializeImagePulls": false,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "maxPods": 110
    })
}

fn proxy(options: &Options, pki: &Path, machine: &Machine) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": pki.join("kube-proxy.kubeconfig")},
        "mode": options.kube_proxy.mode(),
        "clusterCIDR": options.family.list(|ranges| ranges.pods.to_owned()),
        "hostnameOverride": machine.name,
        "bindAddress": options.family.any(),
        "oomScoreAdj": 0,
        "iptables": {"minSyncPeriod": "100ms"},
        "nftables": {"minSyncPeriod": "100ms"},
        // Limits of connection tracking belong to the real machine and are read-only in a namespace.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    })
}

/// For containerd 1.6 and 1.7. Without `restrict_oom_score_adj` every sandbox fails where CAP_SYS_RESOURCE is
/// missing, with "runc create failed: can't get final child's PID from pipe: EOF".
pub const CONTAINERD_TOML: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  max_concurrent_downloads = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "@RUNC@"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::Plan;

    /// A unit that waits for a name nobody has would never start.
    #[test]
    fn every_unit_waits_for_units_that_exist() {
        let root = tempfile::tempdir().unwrap();
        let dir = LabDir::new(root.path());
        let site = Site {
            dir: &dir,
            programs: Path::new("/programs"),
            options: &Options::default(),
        };
        let plan: Plan = "a:2,b:1".parse().unwrap();
        for cluster in plan.clusters() {
            for machine in cluster.machines() {
                write(&site, cluster, machine).unwrap();
                let boot: Boot = super::super::dir::read_json(&dir.machine(&machine.name).units()).unwrap();
                let names: Vec<_> = boot.units.iter().map(|unit| &unit.name).collect();
                assert!(
                    boot.units
                        .iter()
                        .flat_map(|unit| &unit.after)
                        .all(|after| names.contains(&after))
                );
            }
        }
    }

    #[test]
    fn node_n_of_every_cluster_has_the_same_chain() {
        let plan: Plan = "a:1,b:1".parse().unwrap();
        let ranges: Vec<_> = plan.nodes().map(|node| cni(&Options::default(), node)).collect();
        assert_eq!(ranges[0], ranges[1]);
        assert_eq!(
            ranges[0]["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.1.0/24"
        );
    }
}
