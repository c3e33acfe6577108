//! From objects to tables: which names there are and what they stand for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use hickory_proto::rr::{LowerName, Name};
use slice_crds::{names::SLICE_ZONE, v1alpha1::SliceServiceSpec};

/// What one name stands for. A name that is only on the way to others stands for nothing, but it exists (RFC 8020).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: BTreeSet<Ipv4Addr>,
    pub v6: BTreeSet<Ipv6Addr>,
}

/// The names of one view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneTable {
    names: BTreeMap<LowerName, Addresses>,
    /// Of the zone's SOA record: changes with the content.
    pub serial: u32,
}

/// Every view's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// What the cluster's own DNS is told: all slices; a short name where one slice only has it.
    pub all: ZoneTable,
    /// What is said inside a slice: its own names, long and short.
    pub by_slice: BTreeMap<String, ZoneTable>,
}

impl ZoneTable {
    pub fn get(&self, name: &LowerName) -> Option<&Addresses> {
        self.names.get(name)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        let Ok(name) = Name::from_str(name) else { return };
        let mut name = LowerName::new(&name);
        let entry = self.names.entry(name.clone()).or_default();
        for address in addresses {
            match address {
                IpAddr::V4(ip) => _ = entry.v4.insert(ip),
                IpAddr::V6(ip) => _ = entry.v6.insert(ip),
            }
        }
        let zone = apex();
        while name != zone && !name.is_root() {
            name = name.base_name();
            self.names.entry(name.clone()).or_default();
        }
    }

    fn sealed(mut self) -> Self {
        let mut hasher = DefaultHasher::new();
        for (name, addresses) in &self.names {
            name.to_string().hash(&mut hasher);
            (&addresses.v4, &addresses.v6).hash(&mut hasher);
        }
        self.serial = u32::try_from(hasher.finish() & 0xffff_ffff).expect("32 bits");
        self
    }
}

/// `slice.local.`
pub fn apex() -> LowerName {
    LowerName::new(&Name::from_str(&format!("{SLICE_ZONE}.")).expect("a constant name"))
}

/// The tables of all services. `slices` are those that have a view of their own, also with no service in it.
pub fn tables<'a>(
    slices: impl IntoIterator<Item = &'a str>,
    services: impl IntoIterator<Item = &'a SliceServiceSpec> + Clone,
) -> Tables {
    let mut short: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for service in services.clone() {
        short
            .entry((&service.namespace, &service.name))
            .or_default()
            .insert(&service.slice);
    }
    let mut tables = Tables::default();
    let zone = format!("{SLICE_ZONE}.");
    tables.all.add(&zone, []);
    for slice in slices {
        tables
            .by_slice
            .entry(slice.to_owned())
            .or_default()
            .add(&zone, []);
    }
    for service in services {
        let long = format!("svc.{}.{zone}", service.slice);
        let brief = format!("svc.{zone}");
        let alone = short
            .get(&(service.namespace.as_str(), service.name.as_str()))
            .is_some_and(|in_slices| in_slices.len() == 1);
        names(&mut tables.all, service, &long);
        if alone {
            names(&mut tables.all, service, &brief);
        }
        if let Some(own) = tables.by_slice.get_mut(&service.slice) {
            names(own, service, &long);
            names(own, service, &brief);
        }
    }
    tables.all = tables.all.sealed();
    tables.by_slice = tables
        .by_slice
        .into_iter()
        .map(|(slice, table)| (slice, table.sealed()))
        .collect();
    tables
}

/// A service's name, and for a headless one a name for each of its pods with the cluster in it: hostnames are unique
/// within a cluster only.
fn names(table: &mut ZoneTable, service: &SliceServiceSpec, suffix: &str) {
    let name = format!("{}.{}.{suffix}", service.name, service.namespace);
    let all = service
        .endpoints
        .iter()
        .flat_map(|endpoint| endpoint.addresses.iter().copied());
    table.add(&name, all);
    if service.headless {
        for endpoint in &service.endpoints {
            let pod = format!("{}.{}.{name}", endpoint.hostname, service.cluster);
            table.add(&pod, endpoint.addresses.iter().copied());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use slice_crds::v1alpha1::ServiceEndpoint;

    use super::*;

    pub(crate) fn service(
        slice: &str,
        cluster: &str,
        headless: bool,
        addresses: &[&str],
    ) -> SliceServiceSpec {
        SliceServiceSpec {
            slice: slice.into(),
            cluster: cluster.into(),
            namespace: "cart".into(),
            name: "web".into(),
            headless,
            ports: vec![],
            endpoints: addresses
                .iter()
                .enumerate()
                .map(|(n, address)| ServiceEndpoint {
                    hostname: format!("web-{n}"),
                    addresses: vec![address.parse().unwrap()],
                })
                .collect(),
        }
    }

    #[track_caller]
    fn check(table: &ZoneTable, name: &str, expected: Option<&[&str]>) {
        let found = table.get(&LowerName::from_str(name).unwrap()).map(|addresses| {
            let v4 = addresses.v4.iter().map(ToString::to_string);
            v4.chain(addresses.v6.iter().map(ToString::to_string))
                .collect::<Vec<_>>()
        });
        assert_eq!(
            found.as_deref(),
            expected
                .map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>())
                .as_deref()
        );
    }

    #[test]
    fn the_pods_of_all_clusters_are_one_service() {
        let services = [
            service("shop", "a", false, &["10.80.0.1"]),
            service("shop", "b", false, &["10.80.64.1", "fd42::1"]),
        ];
        let tables = tables(["shop"], &services);
        let expected: Option<&[&str]> = Some(&["10.80.0.1", "10.80.64.1", "fd42::1"]);
        for table in [&tables.all, &tables.by_slice["shop"]] {
            check(table, "web.cart.svc.shop.slice.local.", expected);
            check(table, "web.cart.svc.slice.local.", expected);
        }
    }

    #[test]
    fn a_short_name_in_two_slices_means_something_inside_them_only() {
        let services = [
            service("shop", "a", false, &["10.80.0.1"]),
            service("bank", "a", false, &["10.80.0.2"]),
        ];
        let tables = tables(["shop", "bank"], &services);
        check(&tables.all, "web.cart.svc.slice.local.", None);
        check(
            &tables.by_slice["shop"],
            "web.cart.svc.slice.local.",
            Some(&["10.80.0.1"]),
        );
        check(
            &tables.by_slice["bank"],
            "web.cart.svc.slice.local.",
            Some(&["10.80.0.2"]),
        );
        check(&tables.by_slice["bank"], "web.cart.svc.shop.slice.local.", None);
    }

    #[test]
    fn headless_pods_have_names_with_their_cluster() {
        let tables = tables(
            ["shop"],
            &[service("shop", "a", true, &["10.80.0.1", "10.80.0.2"])],
        );
        check(
            &tables.all,
            "web-1.a.web.cart.svc.shop.slice.local.",
            Some(&["10.80.0.2"]),
        );
        check(&tables.all, "a.web.cart.svc.shop.slice.local.", Some(&[]));
        check(&tables.all, "web-2.a.web.cart.svc.shop.slice.local.", None);
    }

    #[test]
    fn the_serial_follows_the_content() {
        let one = tables(["shop"], &[service("shop", "a", false, &["10.80.0.1"])]);
        let same = tables(["shop"], &[service("shop", "a", false, &["10.80.0.1"])]);
        let other = tables(["shop"], &[service("shop", "a", false, &["10.80.0.2"])]);
        assert_eq!(one.all.serial, same.all.serial);
        assert_ne!(one.all.serial, other.all.serial);
    }
}
