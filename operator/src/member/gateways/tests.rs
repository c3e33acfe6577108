use k8s_openapi::api::core::v1::Container;
use kube::CustomResourceExt;
use serde_json::json;
use slice_crds::{names, v1alpha1::SliceConfig};
use slice_runtime::handover::MAX_QUEUES;

use super::{workload::container, *};

fn shop(threads: u8) -> Slice {
    let slice = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "Slice", "metadata": {"name": "shop"}, "spec": {
            "vni": 7, "subnets": ["10.80.0.0/16"], "mtu": 1370, "blockSize": 8, "cluster": "paris",
            "clusterNumber": 1, "ranges": [], "gateway": {"replicas": 2, "threads": threads},
        },
    });
    serde_json::from_value(slice).unwrap()
}

fn container_of(threads: u8) -> Container {
    container(&shop(threads), "gateway:1", &PodSettings::default())
}

/// The StatefulSets and pods of a slice, and what the cluster makes of a plan.
#[derive(Default)]
struct Cluster {
    sets: Vec<Arc<StatefulSet>>,
    pods: Vec<Arc<Pod>>,
}

impl Cluster {
    fn plan(&self) -> Workload {
        plan(&Request {
            slice: &shop(1),
            image: "gateway:1",
            pod: &PodSettings::default(),
            namespace: "weft-gateways",
            nodes: &Nodes::default(),
            lost: &BTreeSet::new(),
            sets: &self.sets,
            pods: &self.pods,
            services: &[],
            gateways: &BTreeMap::new(),
            resolved: &BTreeMap::new(),
        })
    }

    /// Writes a plan; `all_ready` says whether new pods have become ready.
    fn step(&mut self, all_ready: bool) -> Vec<String> {
        let workload = self.plan();
        let mut running = Vec::new();
        self.sets = workload
            .sets
            .into_iter()
            .map(|mut set| {
                let spec = set.spec.clone().unwrap();
                let start = spec
                    .ordinals
                    .and_then(|ordinals| ordinals.start)
                    .unwrap_or_default();
                let replicas = spec.replicas.unwrap();
                let namespace = set.namespace().unwrap();
                running.extend((start..start + replicas).map(|ordinal| format!("{namespace}/{ordinal}")));
                let old = namespace == "weft-system";
                let image = spec.template.spec.unwrap().containers[0].image.clone();
                // Another template would replace what stays, at the same moment.
                assert_eq!(
                    image.as_deref(),
                    Some(if old { "gateway:0" } else { "gateway:1" })
                );
                set.status = Some(
                    serde_json::from_value(json!({
                    "replicas": replicas, "readyReplicas": if old || all_ready { replicas } else { 0 }}))
                    .unwrap(),
                );
                Arc::new(set)
            })
            .collect();
        self.pods = running.iter().map(|id| pod_of(id)).collect();
        running.sort();
        running
    }
}

#[test]
fn pods_get_what_the_clusters_owner_gives_them_and_keep_what_they_are_found_by() {
    let given = json!({
        "imagePullSecrets": ["registry"], "tolerations": [{"key": "infra", "operator": "Exists"}],
        "priorityClassName": "gateways", "seLinuxOptions": {"type": "spc_t"}, "resources": {"limits": {"cpu": "2"}}, "annotations": {"example.org/cost": "net"},
        "labels": {"team": "network", labels::SLICE: "bank"},
    });
    let settings: PodSettings = given.to_string().parse().unwrap();
    let slice = shop(1);
    let request = Request {
        slice: &slice,
        image: "gateway:1",
        pod: &settings,
        namespace: "weft-gateways",
        nodes: &Nodes::default(),
        lost: &BTreeSet::new(),
        sets: &[],
        pods: &[],
        services: &[],
        gateways: &BTreeMap::new(),
        resolved: &BTreeMap::new(),
    };
    let template = plan(&request).sets.remove(0).spec.unwrap().template;
    let (metadata, spec) = (template.metadata.unwrap(), template.spec.unwrap());
    assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "registry");
    assert_eq!(spec.tolerations.unwrap()[0].key.as_deref(), Some("infra"));
    assert_eq!(spec.priority_class_name.as_deref(), Some("gateways"));
    let resources = spec.containers[0].resources.clone();
    assert_eq!(
        serde_json::to_value(resources).unwrap(),
        json!({"limits": {"cpu": "2"}})
    );
    let selinux = spec.security_context.unwrap().se_linux_options.unwrap();
    assert_eq!(selinux.type_.as_deref(), Some("spc_t"));
    assert_eq!(metadata.annotations.unwrap()["example.org/cost"], "net");
    let found = metadata.labels.unwrap();
    assert_eq!(found["team"], "network");
    assert!(
        selector(&slice)
            .iter()
            .all(|(key, value)| found.get(key) == Some(value)),
        "{found:?}"
    );

    // The Cluster's own take their place, and nodes with another system than Linux stay out in any case.
    let mut slice = shop(1);
    let own = json!([{"key": "edge", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
    slice.spec.gateway.tolerations = serde_json::from_value(own.clone()).unwrap();
    slice.spec.gateway.node_selector = BTreeMap::from([("pool".to_owned(), "edge".to_owned())]);
    let request = Request {
        slice: &slice,
        ..request
    };
    let spec = plan(&request).sets.remove(0).spec.unwrap().template.spec.unwrap();
    assert_eq!(serde_json::to_value(spec.tolerations).unwrap(), own);
    assert_eq!(
        serde_json::to_value(spec.node_selector).unwrap(),
        json!({"kubernetes.io/os": "linux", "pool": "edge"})
    );

    let error = r#"{"toleration": []}"#.parse::<PodSettings>().unwrap_err().to_string();
    assert!(
        error.contains("toleration") && error.contains("expected"),
        "{error}"
    );
}

#[track_caller]
fn obstacle_of(status: serde_json::Value, says: &str) {
    let pod = json!({"metadata": {"namespace": "weft-gateways", "name": "g-0"}, "status": status});
    let pod = Arc::new(serde_json::from_value(pod).unwrap());
    assert_eq!(obstacle([&pod], "paris").unwrap_or_default(), says);
}

#[test]
fn what_keeps_a_gateway_from_running_is_said_with_the_remedy() {
    let unscheduled = |message: &str| {
        json!({"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]})
    };
    let waiting = |reason: &str, message: &str| {
        let waiting = json!({"waiting": {"reason": reason, "message": message}});
        json!({"containerStatuses": [{"name": "gateway", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": waiting}]})
    };
    obstacle_of(
        unscheduled(
            "0/2 nodes are available: 2 node(s) had untolerated taint {infra: }. preemption: 0/2 nodes are available.",
        ),
        "pod weft-gateways/g-0 is on no node: 0/2 nodes are available: 2 node(s) had untolerated taint {infra: }; on the \
         hub, tolerate the taint with spec.gateway.tolerations of Cluster paris",
    );
    obstacle_of(
        unscheduled(
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector.",
        ),
        "pod weft-gateways/g-0 is on no node: 0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's \
         node affinity/selector; on the hub, name nodes that exist with spec.gateway.nodeSelector of Cluster paris",
    );
    obstacle_of(
        waiting("ImagePullBackOff", "Back-off pulling image \"gateway:1\""),
        "pod weft-gateways/g-0 waits, ImagePullBackOff: Back-off pulling image \"gateway:1\"",
    );
    obstacle_of(waiting("ContainerCreating", ""), "");
    obstacle_of(json!({"phase": "Running"}), "");
}

fn pod_of(id: &str) -> Arc<Pod> {
    let (namespace, ordinal) = id.split_once('/').unwrap();
    let name = names::gateway("shop", ordinal.parse().unwrap());
    Arc::new(serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}})).unwrap())
}

#[test]
fn gateways_move_one_by_one_and_each_waits_for_the_one_before() {
    let mut cluster = Cluster::default();
    let old = json!({"metadata": {"namespace": "weft-system", "name": "weft-gateway-shop"},
        "spec": {"replicas": 2, "selector": {}, "serviceName": "",
            "template": {"spec": {"containers": [{"name": "gateway", "image": "gateway:0"}]}}},
        "status": {"replicas": 2, "readyReplicas": 2}});
    cluster.sets.push(Arc::new(serde_json::from_value(old).unwrap()));
    cluster.pods = vec![pod_of("weft-system/0"), pod_of("weft-system/1")];
    let (old0, old1, new0, new1) = (
        "weft-system/0",
        "weft-system/1",
        "weft-gateways/0",
        "weft-gateways/1",
    );
    assert_eq!(cluster.step(false), [old0]);
    // The old pod ends, then its successor starts.
    cluster.pods.push(pod_of(old1));
    assert_eq!(cluster.step(false), [old0]);
    assert_eq!(cluster.step(false), [new1, old0]);
    assert_eq!(cluster.step(false), [new1, old0]);
    assert_eq!(cluster.step(true), [new1, old0]);
    assert_eq!(cluster.step(true), [new1]);
    assert_eq!(cluster.step(false), [new0, new1]);
    assert_eq!(cluster.plan().sets.len(), 2, "the last is not ready yet");
    cluster.step(true);
    assert_eq!(cluster.step(true), [new0, new1]);
    assert_eq!(cluster.plan().sets.len(), 1);
}

#[test]
fn each_thread_asks_for_its_share_of_a_processor() {
    for (threads, cpu) in [(1, "50m"), (4, "200m"), (16, "800m")] {
        let container = container_of(threads);
        let argument = format!("--threads={threads}");
        assert!(container.args.unwrap().contains(&argument));
        let requests = container.resources.unwrap().requests.unwrap();
        assert_eq!(requests["cpu"].0, cpu);
    }
}

#[test]
fn no_more_threads_can_be_asked_for_than_a_device_gives_queues() {
    let crd = serde_json::to_value(SliceConfig::crd()).unwrap();
    let threads =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/gateway/properties/threads";
    let most = crd
        .pointer(threads)
        .and_then(|threads| threads["maximum"].as_f64());
    assert_eq!(most, Some(f64::from(MAX_QUEUES)));
}
