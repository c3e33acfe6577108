//! Where a segment's uplink leads, as the kernel's nexthop objects have it (linux/nexthop.h, Linux 5.8).
//!
//! ```text
//!  all-zero entry of the VXLAN device ──► group ──► nexthop ──► node
//! ```
//!
//! The entry could list the node itself, but a list cannot be changed at one moment: vxlan_changelink adds the new
//! node before it takes the old one away, and whoever sends meanwhile reads the list without a lock and sends to both
//! (drivers/net/vxlan/vxlan_core.c). A nexthop is replaced by writing one pointer (net/ipv4/nexthop.c,
//! replace_nexthop_single), so every frame goes to one of the two.
//!
//! Both objects are named by numbers that hold for the whole network namespace; ours are the segment's VNI with a byte
//! before it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_CREATE, NLM_F_REPLACE, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlasIterator,
};
use nix::{errno::Errno, libc};

use super::rtnl::{Error, Rtnl};

/// Before a VNI: the number of its nexthop, and of the group of that one.
const NEXTHOP: u32 = 0x57 << 24;
const GROUP: u32 = 0x58 << 24;
const VNI: u32 = 0x00ff_ffff;

// linux/rtnetlink.h and linux/nexthop.h
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const HEADER: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GATEWAY: u16 = 6;
const NHA_FDB: u16 = 11;
/// Of the attribute of a forwarding entry that names a nexthop (linux/neighbour.h).
pub(super) const NDA_NH_ID: u16 = 13;

/// The nexthop group that the entry of a segment's uplink names.
pub(super) const fn group(vni: u32) -> u32 {
    GROUP | (vni & VNI)
}

/// Its one member.
const fn nexthop(vni: u32) -> u32 {
    NEXTHOP | (vni & VNI)
}

/// A nexthop of a forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nexthop {
    id: u32,
    leads: Leads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    Node(IpAddr),
    /// To another nexthop; a group with one member.
    Nexthop(u32),
    /// Elsewhere: not one of ours.
    Elsewhere,
}

/// What is said about nexthops; netlink-packet-route has no words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    New(Nexthop),
    Del(u32),
    Get,
}

/// Makes the uplink's group lead to a node, from one frame to the next where it led to another.
///
/// # Errors
/// [`Errno::EINVAL`] or [`Errno::EOPNOTSUPP`] on a kernel that has no such nexthops.
pub(super) async fn lead(rtnl: &mut Rtnl<Message>, vni: u32, node: IpAddr) -> Result<(), Error> {
    let id = nexthop(vni);
    let nexthop = Nexthop {
        id,
        leads: Leads::Node(node),
    };
    let group = Nexthop {
        id: group(vni),
        leads: Leads::Nexthop(id),
    };
    for message in [nexthop, group].map(Message::New) {
        rtnl.request(message, NLM_F_CREATE | NLM_F_REPLACE).await?;
    }
    Ok(())
}

/// Whether this kernel has them. Tried with VNI 0, which no slice has.
pub(super) async fn available(namespace: Option<&Path>) -> bool {
    let Ok(mut rtnl) = Rtnl::open(namespace) else {
        return false;
    };
    let made = lead(&mut rtnl, 0, Ipv4Addr::LOCALHOST.into()).await.is_ok();
    made & forget(&mut rtnl, 0).await.is_ok()
}

/// Removes what [`lead`] made, and with it the entry that names it.
pub(super) async fn forget(rtnl: &mut Rtnl<Message>, vni: u32) -> Result<(), Error> {
    for id in [group(vni), nexthop(vni)] {
        let gone = [Errno::ENOENT, Errno::EINVAL, Errno::EOPNOTSUPP];
        rtnl.ensure(Message::Del(id), 0, &gone).await?;
    }
    Ok(())
}

/// To which node each group leads.
pub(super) async fn list(rtnl: &mut Rtnl<Message>) -> Result<BTreeMap<u32, IpAddr>, Error> {
    let all = match rtnl.dump(Message::Get).await {
        Ok(all) => all,
        // Before Linux 5.3 there is nothing to list.
        Err(error) if error.is(Errno::EOPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let (mut nodes, mut groups) = (BTreeMap::new(), BTreeMap::new());
    for message in all {
        match message {
            Message::New(Nexthop { id, leads }) => match leads {
                Leads::Node(node) => _ = nodes.insert(id, node),
                Leads::Nexthop(member) => _ = groups.insert(id, member),
                Leads::Elsewhere => {}
            },
            Message::Del(_) | Message::Get => {}
        }
    }
    let known = groups
        .into_iter()
        .filter_map(|(group, member)| Some((group, *nodes.get(&member)?)));
    Ok(known.collect())
}

impl Message {
    fn attributes(&self) -> Vec<DefaultNla> {
        let number = |kind, number: u32| DefaultNla::new(kind, number.to_ne_bytes().to_vec());
        match self {
            Self::Get => vec![],
            Self::Del(id) => vec![number(NHA_ID, *id)],
            Self::New(Nexthop { id, leads }) => {
                let leads = match leads {
                    Leads::Node(IpAddr::V4(ip)) => {
                        vec![DefaultNla::new(NHA_GATEWAY, ip.octets().to_vec())]
                    }
                    Leads::Node(IpAddr::V6(ip)) => {
                        vec![DefaultNla::new(NHA_GATEWAY, ip.octets().to_vec())]
                    }
                    // struct nexthop_grp: the number, a weight that is one more than it says, reserved bytes.
                    Leads::Nexthop(member) => {
                        let mut value = member.to_ne_bytes().to_vec();
                        value.extend([0; 4]);
                        vec![DefaultNla::new(NHA_GROUP, value)]
                    }
                    Leads::Elsewhere => vec![],
                };
                let mut all = vec![number(NHA_ID, *id), DefaultNla::new(NHA_FDB, vec![])];
                all.extend(leads);
                all
            }
        }
    }

    fn family(&self) -> u8 {
        let family = match self {
            Self::New(Nexthop {
                leads: Leads::Node(IpAddr::V4(_)),
                ..
            }) => libc::AF_INET,
            Self::New(Nexthop {
                leads: Leads::Node(IpAddr::V6(_)),
                ..
            }) => libc::AF_INET6,
            Self::New(_) | Self::Del(_) | Self::Get => libc::AF_UNSPEC,
        };
        family as u8
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::New(_) => RTM_NEWNEXTHOP,
            Self::Del(_) => RTM_DELNEXTHOP,
            Self::Get => RTM_GETNEXTHOP,
        }
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes().as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, rest) = buffer.split_at_mut(HEADER);
        header.fill(0);
        header[0] = self.family();
        self.attributes().as_slice().emit(rest);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        if header.message_type != RTM_NEWNEXTHOP {
            return Err(format!("message of type {} about nexthops", header.message_type).into());
        }
        let (mut id, mut leads) = (0, Leads::Elsewhere);
        let word = |value: &[u8]| value.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                NHA_ID => id = word(value),
                NHA_GROUP if value.len() == 8 => leads = Leads::Nexthop(word(value)),
                NHA_GATEWAY => {
                    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(value).map(IpAddr::from);
                    leads = v4.or(v6).map_or(Leads::Elsewhere, Leads::Node);
                }
                _ => {}
            }
        }
        Ok(Self::New(Nexthop { id, leads }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(leads: Leads) {
        let message = Message::New(Nexthop { id: 7, leads });
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut header = NetlinkHeader::default();
        header.message_type = message.message_type();
        assert_eq!(Message::deserialize(&header, &bytes).unwrap(), message);
    }

    #[test]
    fn nexthops_are_read_as_they_are_written() {
        check(Leads::Node("192.0.2.1".parse().unwrap()));
        check(Leads::Node("2001:db8::1".parse().unwrap()));
        check(Leads::Nexthop(0x5700_0001));
        check(Leads::Elsewhere);
    }
}
