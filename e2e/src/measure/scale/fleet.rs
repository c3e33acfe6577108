//! Who is there: clusters, slices over them, services in the slices. Pure, and the same in every run.

use std::net::Ipv4Addr;

use slice_crds::Subnets;

/// Gateways of each cluster in each slice.
pub(super) const GATEWAYS: u32 = 2;

/// How large it is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Size {
    /// Member clusters.
    #[arg(long, default_value_t = 250)]
    pub clusters: usize,
    /// Slices: one over every cluster, the others over 2 to 20 of them.
    #[arg(long, default_value_t = 1000)]
    pub slices: usize,
    /// Exported services, in the smaller slices.
    #[arg(long, default_value_t = 5000)]
    pub services: usize,
}

#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) clusters: Vec<String>,
    pub(super) slices: Vec<PlayedSlice>,
    /// Slice and cluster of each service, as positions.
    pub(super) services: Vec<(usize, usize)>,
}

#[derive(Debug)]
pub(super) struct PlayedSlice {
    pub(super) name: String,
    pub(super) subnet: String,
    /// Positions of its clusters.
    pub(super) members: Vec<usize>,
}

impl Fleet {
    pub(super) fn new(size: Size) -> Self {
        let clusters: Vec<String> = (0..size.clusters).map(|one| format!("c{one:03}")).collect();
        let slices: Vec<PlayedSlice> = (0..size.slices).map(|one| slice(one, clusters.len())).collect();
        let small = slices.len().saturating_sub(1).max(1);
        let services = (0..size.services)
            .map(|one| {
                let slice = (1 + one % small) % slices.len();
                let members = &slices[slice].members;
                (slice, members[one / small % members.len()])
            })
            .collect();
        Self {
            clusters,
            slices,
            services,
        }
    }

    /// Number of gateways in all slices.
    pub(super) fn gateways(&self) -> usize {
        let places: usize = self.slices.iter().map(|slice| slice.members.len()).sum();
        places * GATEWAYS as usize
    }

    /// Slice, cluster and ordinal of the gateway at a position.
    pub(super) fn gateway(&self, position: usize) -> Option<(usize, usize, u32)> {
        let (place, ordinal) = (position / GATEWAYS as usize, position as u32 % GATEWAYS);
        let places = self
            .slices
            .iter()
            .enumerate()
            .flat_map(|(slice, played)| played.members.iter().map(move |cluster| (slice, *cluster)));
        let (slice, cluster) = places.into_iter().nth(place)?;
        Some((slice, cluster, ordinal))
    }

    /// Positions of gateways all over the fleet, none of them twice.
    pub(super) fn scattered(&self) -> impl Iterator<Item = usize> {
        let count = self.gateways();
        // About the golden section, so that neighbours are far apart.
        let stride = (count * 618 / 1000..)
            .find(|one| gcd(*one, count) == 1)
            .unwrap_or(1);
        (0..count).map(move |one| one * stride % count)
    }
}

fn slice(number: usize, clusters: usize) -> PlayedSlice {
    if number == 0 {
        return PlayedSlice {
            name: "everywhere".into(),
            subnet: "10.0.0.0/12".into(),
            members: (0..clusters).collect(),
        };
    }
    let many = (2 + number * 7 % 19).min(clusters);
    // Strides without a common divisor with the number of clusters meet none twice.
    let strides: Vec<usize> = (1..=clusters).filter(|one| gcd(*one, clusters) == 1).collect();
    let stride = strides[number % strides.len()];
    let address = u32::from(Ipv4Addr::new(10, 16, 0, 0)) + ((number as u32) << 13);
    PlayedSlice {
        name: format!("s{number:04}"),
        subnet: format!("{}/19", Ipv4Addr::from(address)),
        members: (0..many)
            .map(|one| (number * 31 + one * stride) % clusters)
            .collect(),
    }
}

impl PlayedSlice {
    pub(super) fn subnets(&self) -> Option<Subnets> {
        Subnets::new(&[self.subnet.parse().ok()?]).ok()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_slice_has_each_cluster_once() {
        let fleet = Fleet::new(Size {
            clusters: 250,
            slices: 1000,
            services: 5000,
        });
        assert_eq!(fleet.slices[0].members.len(), 250);
        let mut networks = BTreeSet::new();
        for slice in &fleet.slices {
            let members: BTreeSet<usize> = slice.members.iter().copied().collect();
            assert_eq!(members.len(), slice.members.len(), "{}", slice.name);
            assert!((2..=20).contains(&members.len()) || slice.name == "everywhere");
            assert!(slice.subnets().is_some() && networks.insert(slice.subnet.clone()));
        }
        let scattered: BTreeSet<usize> = fleet.scattered().collect();
        assert_eq!(scattered.len(), fleet.gateways());
        assert_eq!(fleet.gateway(1), Some((0, 0, 1)));
        assert_eq!(fleet.services.len(), 5000);
        for (slice, cluster) in &fleet.services {
            assert!(*slice > 0 && fleet.slices[*slice].members.contains(cluster));
        }
    }
}
