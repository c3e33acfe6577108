//! Programs at what interfaces receive: the clsact queueing discipline and its one filter of ours (tc-bpf(8)).
//!
//! The filter has the first priority and one handle, so that a new program takes the place of an old one at one moment,
//! and no frame is seen by both or neither. It holds its program, and that its maps: they outlive the agent.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use nix::errno::Errno;

use super::rtnl::{Error, Rtnl};
use crate::programs::Loaded;

/// Of linux/if_ether.h.
const ETH_P_ALL: u16 = 3;
const PRIORITY: u32 = 1;
/// Of the filter itself.
const HANDLE: u32 = 1;

/// Of the queueing discipline (linux/pkt_sched.h).
const CLSACT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff2,
};

/// Makes a program the first to see what an interface receives.
pub(super) async fn attach(
    rtnl: &mut Rtnl,
    interface: u32,
    name: &str,
    program: Loaded,
) -> Result<(), Error> {
    match put(rtnl, interface, name, program).await {
        // Somebody put a filter of another kind in our place.
        Err(error) if error.is(Errno::EINVAL) || error.is(Errno::ENOENT) => {
            let gone = RouteNetlinkMessage::DelQueueDiscipline(discipline(interface));
            rtnl.ensure(gone, 0, &[Errno::ENOENT]).await?;
            put(rtnl, interface, name, program).await
        }
        result => result,
    }
}

async fn put(rtnl: &mut Rtnl, interface: u32, name: &str, program: Loaded) -> Result<(), Error> {
    let discipline = RouteNetlinkMessage::NewQueueDiscipline(discipline(interface));
    rtnl.ensure(discipline, NLM_F_CREATE | NLM_F_EXCL, &[Errno::EEXIST])
        .await?;
    let mut filter = filter(interface);
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.fd.cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(format!("weft_{name}"))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    rtnl.request(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE)
        .await
}

fn discipline(interface: u32) -> TcMessage {
    let mut discipline = TcMessage::default();
    discipline.header.index = interface.cast_signed();
    discipline.header.parent = CLSACT;
    discipline.header.handle = TcHandle::from(0xffff_0000);
    discipline.attributes.push(TcAttribute::Kind("clsact".into()));
    discipline
}

/// The program that is first to see what an interface receives, by the kernel's number; `None` where none of ours is.
pub(super) async fn attached(rtnl: &mut Rtnl, interface: u32) -> Result<Option<u32>, Error> {
    let request = RouteNetlinkMessage::GetTrafficFilter(filter(interface));
    let filter = match rtnl.get(request).await {
        Ok(RouteNetlinkMessage::NewTrafficFilter(filter)) => filter,
        Ok(_) => return Ok(None),
        // Without a queueing discipline, or a filter of ours in it.
        Err(error)
            if [Errno::EINVAL, Errno::ENOENT, Errno::ENODEV]
                .iter()
                .any(|errno| error.is(*errno)) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    Ok(options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    }))
}

fn filter(interface: u32) -> TcMessage {
    let mut filter = TcMessage::default();
    filter.header.index = interface.cast_signed();
    filter.header.parent = INGRESS;
    filter.header.handle = TcHandle::from(HANDLE);
    filter.header.info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    filter
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    filter
}
