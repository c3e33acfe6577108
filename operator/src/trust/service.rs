//! What a member exports.

use std::net::IpAddr;

use slice_crds::{
    IndexRange, Subnets, labels,
    wire::{Endpoint, Service},
};

use super::{Violation, at_most, shown};

/// Endpoints of one service of one cluster.
const MOST_ENDPOINTS: usize = 1000;
/// Ports of one service.
const MOST_PORTS: usize = 100;

/// The member that exports into a slice.
#[derive(Clone, Debug)]
pub struct Exporter<'a> {
    pub cluster: &'a str,
    pub subnets: Subnets,
    pub ranges: &'a [IndexRange],
}

/// Checks one exported service.
///
/// # Errors
/// Nothing of it can be passed on.
pub fn service(claimed: &Service, exporter: &Exporter<'_>) -> Result<(Service, Vec<Violation>), Violation> {
    let what = format!("service {}/{}", shown(&claimed.namespace), shown(&claimed.name));
    if claimed.cluster != exporter.cluster {
        return Err(Violation::new(format!(
            "{what} in the name of cluster {}",
            shown(&claimed.cluster)
        )));
    }
    if !labels::is_name(&claimed.namespace) || !labels::is_name(&claimed.name) {
        return Err(Violation::new(format!(
            "{what}, whose name is none that a Service can have"
        )));
    }
    let mut violations = Vec::new();
    let own = |text: &String| {
        let address: Option<IpAddr> = text.parse().ok();
        let index = address.and_then(|address| exporter.subnets.index_of(address));
        index.is_some_and(|index| exporter.ranges.iter().any(|range| range.contains(index)))
    };
    let mut endpoints = Vec::new();
    for endpoint in at_most(
        &claimed.endpoints,
        MOST_ENDPOINTS,
        &format!("endpoints of {what}"),
        &mut violations,
    ) {
        if !labels::is_name(&endpoint.hostname) {
            violations.push(Violation::new(format!(
                "{what} with an endpoint named \"{}\"",
                shown(&endpoint.hostname)
            )));
            continue;
        }
        if let Some(foreign) = endpoint.addresses.iter().find(|text| !own(text)) {
            violations.push(Violation::new(format!(
                "{what} with the address {}, which is not the cluster's in the slice",
                shown(foreign)
            )));
        }
        let addresses: Vec<String> = endpoint
            .addresses
            .iter()
            .filter(|text| own(text))
            .cloned()
            .collect();
        if !addresses.is_empty() {
            endpoints.push(Endpoint {
                hostname: endpoint.hostname.clone(),
                addresses,
            });
        }
    }
    let service = Service {
        ports: at_most(
            &claimed.ports,
            MOST_PORTS,
            &format!("ports of {what}"),
            &mut violations,
        )
        .to_vec(),
        endpoints,
        ..claimed.clone()
    };
    Ok((service, violations))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(claimed: Value) -> Result<(Service, Vec<Violation>), Violation> {
        let exporter = Exporter {
            cluster: "a",
            subnets: Subnets::new(&["10.80.0.0/16".parse().unwrap()]).unwrap(),
            ranges: &[IndexRange::new(0, 8192)],
        };
        service(&serde_json::from_value(claimed).unwrap(), &exporter)
    }

    fn web(more: Value) -> Value {
        let mut service = json!({"slice": "shop", "cluster": "a", "namespace": "cart", "name": "web"});
        service
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        service
    }

    #[test]
    fn addresses_of_others_are_told_to_nobody() {
        let endpoints = json!([
            {"hostname": "web-0", "addresses": ["10.80.0.5", "10.80.64.1"]},
            {"hostname": "web-1", "addresses": ["8.8.8.8"]},
            {"hostname": "web 2", "addresses": ["10.80.0.6"]},
        ]);
        let (service, violations) = check(web(json!({"endpoints": endpoints}))).unwrap();
        assert_eq!(service.endpoints.len(), 1);
        assert_eq!(service.endpoints[0].addresses, ["10.80.0.5"]);
        assert_eq!(violations.len(), 3, "{violations:?}");
    }

    #[test]
    fn nobody_speaks_for_another_cluster() {
        let error = check(web(json!({"cluster": "b"}))).unwrap_err();
        assert_eq!(error.to_string(), "service cart/web in the name of cluster b");
    }

    #[test]
    fn names_are_names() {
        for name in ["", "web.evil", "Web", "*"] {
            assert!(check(web(json!({"name": name}))).is_err(), "{name}");
        }
    }
}
