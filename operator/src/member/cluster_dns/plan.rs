//! Which ConfigMaps hold the cluster DNS's configuration, and what each should hold.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use serde_json::Value;
use slice_crds::names::SLICE_ZONE;

use super::{
    corefile,
    stub::{self, Stub, Trouble},
    trial::Mark,
};

/// Where it exists, the cluster's DNS is written by an operator that takes everything else out.
pub const OPENSHIFT: &str = "openshift-dns";
const SYSTEM: &str = "kube-system";
/// CoreDNS of kubeadm, k3s, AKS, EKS, Gardener and others, and of RKE2.
const COREDNS: [&str; 2] = ["coredns", "rke2-coredns-rke2-coredns"];
/// Blocks of users, where the platform's Corefile imports them: k3s, AKS, Gardener.
const CUSTOM: &str = "coredns-custom";
/// How such a Corefile does so.
const CUSTOM_IMPORTS: [&str; 2] = ["custom/*.server", "/etc/coredns/custom/*.server"];
const CUSTOM_SUFFIX: &str = ".server";
const CUSTOM_KEY: &str = "weft.server";
/// A cache on each node, in front of CoreDNS: what it has no zone for, it asks of the outside.
const NODE_LOCAL: &str = "node-local-dns";
/// The DNS of GKE.
const KUBE_DNS: &str = "kube-dns";
const COREFILE: &str = "Corefile";

/// Namespace and name of a ConfigMap.
pub type Id = (String, String);
pub type Data = BTreeMap<String, String>;
pub type ConfigMaps = BTreeMap<Id, Data>;

/// Where the configuration is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Config {
    /// The cluster DNS is left alone.
    #[default]
    Off,
    /// In the ConfigMaps that are known.
    Known,
    Named(String, String),
}

impl FromStr for Config {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once('/') {
            None => Self::Off,
            Some((SYSTEM, "coredns")) => Self::Known,
            Some((namespace, name)) => Self::Named(namespace.to_owned(), name.to_owned()),
        })
    }
}

impl Config {
    /// The ConfigMaps that matter.
    pub fn ids(&self) -> Vec<Id> {
        let id = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let mut ids = match self {
            Self::Off => return vec![],
            Self::Known => [COREDNS.as_slice(), &[CUSTOM, KUBE_DNS]]
                .concat()
                .into_iter()
                .map(|name| id(SYSTEM, name))
                .collect(),
            Self::Named(namespace, name) => vec![id(namespace, name), id(namespace, CUSTOM)],
        };
        ids.push(id(SYSTEM, NODE_LOCAL));
        ids.sort();
        ids.dedup();
        ids
    }

    /// Whether it names OpenShift's own, which an operator there writes over.
    fn is_openshift(&self) -> bool {
        matches!(self, Self::Named(namespace, _) if namespace == OPENSHIFT)
    }

    /// Those of them with a Corefile of the cluster's DNS.
    fn corefiles<'a>(&self, there: &'a ConfigMaps) -> Vec<(&'a Id, &'a Data)> {
        let is_corefile = |(namespace, name): &Id| match self {
            Self::Off => false,
            Self::Known => namespace == SYSTEM && COREDNS.contains(&name.as_str()),
            Self::Named(of, named) => (namespace, name) == (of, named),
        };
        let found = there.iter().filter(|(id, _)| is_corefile(id));
        found.filter(|(_, data)| data.contains_key(COREFILE)).collect()
    }
}

/// What is known of the cluster's DNS.
#[derive(Debug)]
pub struct Request<'a> {
    pub config: &'a Config,
    /// Those of [`Config::ids`] that are there.
    pub there: &'a ConfigMaps,
    /// Whether the namespace [`OPENSHIFT`] is there.
    pub is_openshift: bool,
    /// Where `slice-dns` answers.
    pub dns: IpAddr,
}

/// What follows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Keys of ConfigMaps, with what they should hold; `None` for those that should not be there. What is not named stays.
    pub data: BTreeMap<Id, BTreeMap<String, Option<String>>>,
    pub warnings: Vec<Warning>,
    /// Whether the zone is forwarded, as far as the configuration says.
    pub forwards: bool,
    /// What is noted on a ConfigMap with its new text.
    pub marks: BTreeMap<Id, Mark>,
    /// Why nobody knows whether the cluster's DNS goes on answering with the stub in it.
    pub unchecked: Option<String>,
}

/// Why names of slices do not resolve by the cluster's DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The ConfigMap that it is about; none where there is none.
    pub config: Option<Id>,
    /// A sentence for a person, with what to add by hand.
    pub message: String,
}

pub fn plan(request: &Request<'_>) -> Plan {
    let mut plan = Plan::default();
    if *request.config == Config::Off {
        return plan;
    }
    let corefiles = request.config.corefiles(request.there);
    if corefiles.is_empty() || request.config.is_openshift() {
        plan.warnings.extend(unknown(request));
        // What there is to be done somebody has done.
        plan.forwards = plan.warnings.is_empty();
        return plan;
    }
    for (id, data) in corefiles {
        plan_corefile(request, id, &data[COREFILE], &mut plan);
    }
    let node_local = id(SYSTEM, NODE_LOCAL);
    if let Some(text) = request.there.get(&node_local).and_then(|data| data.get(COREFILE)) {
        match stub::with(text, request.dns) {
            Ok(after) => plan.set(&node_local, COREFILE, Some(after)),
            Err(trouble) => plan.warn(&node_local, &trouble, request.dns),
        }
    }
    plan
}

/// What a ConfigMap should hold when Weft is gone, by key, where that is something else than what it holds.
pub fn left(id: &Id, data: &Data, dns: Option<IpAddr>) -> BTreeMap<String, Option<String>> {
    let mut left = BTreeMap::new();
    if id.1 == CUSTOM && data.contains_key(CUSTOM_KEY) {
        left.insert(CUSTOM_KEY.to_owned(), None);
    }
    if let Some(before) = data.get(COREFILE) {
        let after = stub::without(before, dns);
        if after != *before {
            left.insert(COREFILE.to_owned(), Some(after));
        }
    }
    left
}

fn plan_corefile(request: &Request<'_>, id: &Id, text: &str, plan: &mut Plan) {
    let custom = (id.0.clone(), CUSTOM.to_owned());
    let imported = request.there.get(&custom).filter(|_| imports_custom(text));
    let Some(data) = imported else {
        return match stub::with(text, request.dns) {
            Ok(after) => plan.set(id, COREFILE, Some(after)),
            Err(trouble) => plan.warn(id, &trouble, request.dns),
        };
    };
    match plan_custom(request, text, data) {
        Err((Some(key), trouble)) => {
            plan.warn_of(
                &custom,
                &format!("{key} of ConfigMap {}/{CUSTOM}", id.0),
                &trouble,
                request.dns,
            );
        }
        Err((None, trouble)) => plan.warn(id, &trouble, request.dns),
        Ok(wanted) => {
            // Two blocks for one zone would stop CoreDNS: the one goes before the other comes.
            let rest = stub::without(text, Some(request.dns));
            match rest == text {
                true => plan.set(&custom, CUSTOM_KEY, wanted),
                false => plan.set(id, COREFILE, Some(rest)),
            }
        }
    }
}

/// What should stand in our key of the ConfigMap that a Corefile imports; nothing where a person has put the block in
/// another. An error names the key that it is about, where it is not the Corefile.
fn plan_custom(
    request: &Request<'_>,
    text: &str,
    data: &Data,
) -> Result<Option<String>, (Option<String>, Trouble)> {
    let read = corefile::read(text).map_err(|error| (None, error.into()))?;
    if let Some(line) = stub::foreign(text, &read, request.dns) {
        return Err((None, Trouble::Foreign(line)));
    }
    let wanted = stub::imported(text, request.dns).map_err(|trouble| (None, trouble))?;
    let others = data
        .iter()
        .filter(|(key, _)| key.ends_with(CUSTOM_SUFFIX) && *key != CUSTOM_KEY);
    let mut is_there = false;
    for (key, text) in others {
        let read = match corefile::read(text) {
            Ok(read) => read,
            Err(error) if text.contains(SLICE_ZONE) => return Err((Some(key.clone()), error.into())),
            // It is CoreDNS that has trouble with it.
            Err(_) => continue,
        };
        if let Some(line) = stub::foreign(text, &read, request.dns) {
            return Err((Some(key.clone()), Trouble::Foreign(line)));
        }
        is_there |= !stub::own(text, &read, Some(request.dns)).is_empty();
    }
    Ok((!is_there).then(|| wanted.render()))
}

fn imports_custom(text: &str) -> bool {
    let read = corefile::read(text);
    read.is_ok_and(|corefile| {
        let mut imports = corefile.imports.iter();
        imports.any(|import| CUSTOM_IMPORTS.contains(&import.as_str()))
    })
}

/// What to do where there is no Corefile that may be written.
fn unknown(request: &Request<'_>) -> Option<Warning> {
    let Request { config, dns, .. } = request;
    let off = "then set operator.corednsConfig of the chart to \"\"";
    if request.is_openshift || config.is_openshift() {
        let message = format!(
            "names of slices do not resolve: OpenShift's DNS operator owns the configuration. Add this to spec.servers of \
             dns.operator.openshift.io/default, {off}:\n- name: weft\n  zones: [{SLICE_ZONE}]\n  forwardPlugin: {{upstreams: \
             [\"{dns}\"]}}"
        );
        return Some(Warning {
            config: None,
            message,
        });
    }
    if let Config::Named(namespace, name) = config {
        let message = format!(
            "names of slices do not resolve: ConfigMap {namespace}/{name} is not there or has no {COREFILE}. Set \
             operator.corednsConfig of the chart to that of the cluster's CoreDNS, or have its DNS forward {SLICE_ZONE} to {dns}, \
             {off}"
        );
        return Some(Warning {
            config: None,
            message,
        });
    }
    let kube_dns = id(SYSTEM, KUBE_DNS);
    let Some(data) = request.there.get(&kube_dns) else {
        let message = format!(
            "names of slices do not resolve: no ConfigMap of a CoreDNS was found. Set operator.corednsConfig of the chart to it, \
             or have the cluster's DNS forward {SLICE_ZONE} to {dns}, {off}"
        );
        return Some(Warning {
            config: None,
            message,
        });
    };
    let stub_domains = data.get("stubDomains").map(String::as_str).unwrap_or_default();
    let stub_domains: Value = serde_json::from_str(stub_domains).unwrap_or_default();
    let servers = stub_domains[SLICE_ZONE].as_array();
    if servers.is_some_and(|servers| servers.iter().any(|server| *server == dns.to_string())) {
        return None;
    }
    Some(Warning {
        message: format!(
            "names of slices do not resolve: kube-dns answers here, which nobody but its owner may configure. Add this to \
             stubDomains in ConfigMap {SYSTEM}/{KUBE_DNS}:\n{{\"{SLICE_ZONE}\": [\"{dns}\"]}}"
        ),
        config: Some(kube_dns),
    })
}

fn id(namespace: &str, name: &str) -> Id {
    (namespace.to_owned(), name.to_owned())
}

impl Plan {
    fn set(&mut self, id: &Id, key: &str, text: Option<String>) {
        self.data
            .entry(id.clone())
            .or_default()
            .insert(key.to_owned(), text);
    }

    fn warn(&mut self, id: &Id, trouble: &Trouble, dns: IpAddr) {
        self.warn_of(
            id,
            &format!("the Corefile of ConfigMap {}/{}", id.0, id.1),
            trouble,
            dns,
        );
    }

    fn warn_of(&mut self, id: &Id, what: &str, trouble: &Trouble, dns: IpAddr) {
        let next = match trouble {
            Trouble::Foreign(_) => format!("Delete that block, or have it forward to {dns}"),
            _ => format!(
                "Correct it, or add these lines where it is asked, then set operator.corednsConfig of the chart to \"\":\n{}",
                Stub::usual(dns).render().trim_end()
            ),
        };
        self.warnings.push(Warning {
            config: Some(id.clone()),
            message: format!("names of slices do not resolve, {what} is left as it is: {trouble}. {next}"),
        });
    }
}
