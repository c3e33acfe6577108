//! The commands that turn a stock Linux host into a peer of a slice: the kernel's VXLAN device over WireGuard, no agent
//! of ours. Pure: what is known of the slice in, a script for `sh` out.
//!
//! ```text
//!   sl-shop   VXLAN device: MAC, addresses and MTU of the slice; static FDB and neighbours, nothing is learned
//!      │
//!   wg-…      WireGuard (kernel or wireguard-go): one peer per gateway, which may speak for its VTEP only
//!      │
//!   underlay
//! ```
//!
//! Who has which address follows from the index, so the host needs no ARP: neighbours and FDB of the clusters' ranges
//! are written down. A cluster that grows gets another range; the script is printed and run again then.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
};

use slice_crds::{IndexRange, Mac, Subnets, names};

/// Bytes around a packet of the slice inside WireGuard: IPv4 20, UDP 8, VXLAN 8, Ethernet 14.
const OVERHEAD: u16 = 50;

/// A host, and what it must know of its slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    pub slice: String,
    pub vni: u32,
    /// Of the slice.
    pub mtu: u16,
    pub subnets: Subnets,
    /// The host's attachment.
    pub index: u32,
    pub vtep: Ipv4Addr,
    /// UDP port of its WireGuard.
    pub port: u16,
    /// File on the host with its private key, as `wg genkey` writes it.
    pub key: String,
    pub sites: Vec<Site>,
}

/// Another side of the slice: a member cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub name: String,
    pub ranges: Vec<IndexRange>,
    pub gateways: Vec<Gateway>,
}

/// A gateway of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub public_key: String,
    pub vtep: Ipv4Addr,
    /// Where it listens, best first; none where only it can dial.
    pub endpoints: Vec<SocketAddr>,
}

/// The script. Running it again brings the host up to date.
pub fn script(host: &Host) -> String {
    let (device, wireguard) = (names::pod_interface(&host.slice), names::host_tunnel(&host.slice));
    let mut out = String::new();
    let _ = write!(
        out,
        "#!/bin/sh\n\
         # Makes this host the peer {name} of slice {slice}. Needs root, iproute2, wireguard-tools, and WireGuard in\n\
         # the kernel or the program wireguard-go. Run it again, newly printed, when the slice has changed.\n\
         # To leave: ip link delete {device}; ip link delete {wireguard}\n\
         set -eu\n\n",
        name = host.name,
        slice = host.slice,
    );
    tunnels(host, &wireguard, &mut out);
    segment(host, &device, &mut out);
    neighbours(host, &device, &mut out);
    out
}

fn tunnels(host: &Host, wireguard: &str, out: &mut String) {
    let gateways = || host.sites.iter().flat_map(|site| &site.gateways);
    let keys: Vec<&str> = gateways().map(|gateway| gateway.public_key.as_str()).collect();
    let _ = write!(
        out,
        "# Tunnels, one to each gateway.\n\
         ip link show {wireguard} >/dev/null 2>&1 || ip link add {wireguard} type wireguard 2>/dev/null || wireguard-go {wireguard}\n\
         wg set {wireguard} listen-port {port} private-key {key}\n\
         for old in $(wg show {wireguard} peers); do\n  \
         case ' {keys} ' in *\" $old \"*) ;; *) wg set {wireguard} peer \"$old\" remove ;; esac\n\
         done\n\
         ip address replace {vtep}/32 dev {wireguard}\n\
         ip link set {wireguard} mtu {mtu} up\n",
        port = host.port,
        key = host.key,
        keys = keys.join(" "),
        vtep = host.vtep,
        mtu = host.mtu + OVERHEAD,
    );
    for Gateway {
        public_key,
        vtep,
        endpoints,
    } in gateways()
    {
        let endpoint = endpoints
            .first()
            .map(|endpoint| format!(" endpoint {endpoint}"))
            .unwrap_or_default();
        let _ = write!(
            out,
            "wg set {wireguard} peer {public_key} allowed-ips {vtep}/32 persistent-keepalive 25{endpoint}\n\
             ip route replace {vtep}/32 dev {wireguard} src {own}\n",
            own = host.vtep,
        );
    }
}

fn segment(host: &Host, device: &str, out: &mut String) {
    let Host { vni, vtep, mtu, .. } = host;
    let _ = write!(
        out,
        "\n# The segment. Broadcast goes to one gateway of each cluster.\n\
         ip link show {device} >/dev/null 2>&1 || ip link add {device} type vxlan id {vni} local {vtep} dstport 4789 nolearning\n\
         ip link set {device} address {mac} mtu {mtu} up\n",
        mac = Mac::of_index(host.index),
    );
    for address in host.subnets.addresses(host.index) {
        let once = if address.addr().is_ipv6() {
            " nodad"
        } else {
            " broadcast +"
        };
        let _ = writeln!(out, "ip address replace {address}{once} dev {device}");
    }
    let _ = writeln!(
        out,
        "while bridge fdb delete 00:00:00:00:00:00 dev {device} 2>/dev/null; do :; done"
    );
    for gateway in host.sites.iter().filter_map(|site| site.gateways.first()) {
        let _ = writeln!(
            out,
            "bridge fdb append 00:00:00:00:00:00 dev {device} dst {} self permanent",
            gateway.vtep
        );
    }
}

/// Where every address of the clusters is: a line for each, written by loops.
fn neighbours(host: &Host, device: &str, out: &mut String) {
    let bytes = |number: &str| {
        [24, 16, 8, 0]
            .map(|shift| format!("$(({number} >> {shift} & 255))"))
            .join(" ")
    };
    let mac = "02:5c:%02x:%02x:%02x:%02x";
    let _ = write!(
        out,
        "\n# Where each address is: it follows from the number of an attachment.\n\
         # fdb FIRST LAST VTEP…: behind these gateways, in turn.\n\
         fdb() {{\n  \
           i=$1 last=$2; shift 2\n  \
           while [ \"$i\" -le \"$last\" ]; do\n    \
             printf 'fdb replace {mac} dev {device} dst %s self permanent\\n' {own} \"$1\"\n    \
             set -- \"$@\" \"$1\"; shift; i=$((i + 1))\n  \
           done\n\
         }}\n\
         # neighbours FIRST LAST\n\
         neighbours() {{\n  \
           i=$1\n  \
           while [ \"$i\" -le \"$2\" ]; do\n",
        own = bytes("i"),
    );
    if let Some(net) = host.subnets.v4 {
        let sum = format!("({} + i)", net.network().to_bits());
        let _ = writeln!(
            out,
            "    printf 'neigh replace %d.%d.%d.%d lladdr {mac} dev {device} nud permanent\\n' {} {}",
            bytes(&sum),
            bytes("i")
        );
    }
    if let Some(net) = host.subnets.v6 {
        let [a, b, c, d, e, f, ..] = net.network().segments();
        let low = net.network().to_bits() as u32;
        let _ = writeln!(
            out,
            "    printf 'neigh replace {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}:%x:%x lladdr {mac} dev {device} nud permanent\\n' \
             $((({low} + i) >> 16 & 65535)) $((({low} + i) & 65535)) {}",
            bytes("i")
        );
    }
    out.push_str("    i=$((i + 1))\n  done\n}\n");
    for site in host.sites.iter().filter(|site| !site.gateways.is_empty()) {
        let vteps: Vec<String> = site
            .gateways
            .iter()
            .map(|gateway| gateway.vtep.to_string())
            .collect();
        let _ = writeln!(out, "# {}", site.name);
        for range in &site.ranges {
            let (mut first, mut last) = (range.start, range.start + (range.size - 1));
            first += u32::from(!host.subnets.usable(first));
            last -= u32::from(!host.subnets.usable(last));
            if first > last {
                continue;
            }
            let _ = write!(
                out,
                "fdb {first} {last} {} | bridge -batch -\nneighbours {first} {last} | ip -batch -\n",
                vteps.join(" ")
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_says_what_the_host_must_know() {
        let host = Host {
            name: "db1".into(),
            slice: "shop".into(),
            vni: 4097,
            mtu: 1370,
            subnets: Subnets::new(&["10.80.0.0/16".parse().unwrap(), "fd42:80::/64".parse().unwrap()])
                .unwrap(),
            index: 200,
            vtep: Ipv4Addr::new(198, 19, 255, 1),
            port: 51820,
            key: "/etc/weft/shop.key".into(),
            sites: vec![Site {
                name: "a".into(),
                ranges: vec![IndexRange::new(0, 64)],
                gateways: vec![Gateway {
                    public_key: "AAAA=".into(),
                    vtep: Ipv4Addr::new(198, 18, 1, 1),
                    endpoints: vec!["192.0.2.1:31820".parse().unwrap()],
                }],
            }],
        };
        let script = script(&host);
        for line in [
            "wg set wg-7fq4f2cu peer AAAA= allowed-ips 198.18.1.1/32 persistent-keepalive 25 endpoint 192.0.2.1:31820",
            "ip link set sl-shop address 02:5c:00:00:00:c8 mtu 1370 up",
            "ip address replace 10.80.0.200/16 broadcast + dev sl-shop",
            "ip address replace fd42:80::c8/64 nodad dev sl-shop",
            "bridge fdb append 00:00:00:00:00:00 dev sl-shop dst 198.18.1.1 self permanent",
            "fdb 1 63 198.18.1.1 | bridge -batch -",
        ] {
            let line = line.replace("wg-7fq4f2cu", &names::host_tunnel("shop"));
            assert!(
                script.lines().any(|found| found == line),
                "{line} is not in\n{script}"
            );
        }
    }
}
