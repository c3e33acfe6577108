//! The shaper: a pair of interfaces of which the first has the one queueing discipline with classes (tc-htb(8)), and the
//! second the program that takes up what had its turn.
//!
//! A pair, and not an IFB device: what comes back by IFB passes no program any more (`tc_skip_classify`), see ADR 19.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE, Nla};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcStats2},
};
use nix::errno::Errno;
use slice_crds::Rate;
use slice_datapath::SHAPER;

use super::rtnl::{Error, Rtnl};
use crate::model::{Carried, Class, ClassId};

const HTB: &str = "htb";
/// Of linux/pkt_sched.h.
const TCA_HTB_PARMS: u16 = 1;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_RATE64: u16 = 6;
const TCA_HTB_CEIL64: u16 = 7;
/// The version of tc-htb(8)'s interface.
const HTB_VERSION: u32 = 3;
/// `TC_LINKLAYER_ETHERNET`: the kernel reckons by itself, without tables.
const ETHERNET: u8 = 1;
const ROOT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xffff,
};
/// The queueing discipline itself.
const DISCIPLINE: TcHandle = TcHandle {
    major: SHAPER as u16,
    minor: 0,
};
/// Nanoseconds of a tick of the packet scheduler.
const TICK: u64 = 64;
/// Bytes that classes of one order send in turn: a super-frame, so that each has its turn whatever it sends.
const QUANTUM: u32 = 70_000;
/// How long a class that was idle may send at once: shorter than anybody notices, longer than a timer takes.
const BURST_MILLIS: u64 = 5;
/// How long a frame may wait at the class's ceiling.
const QUEUE_MILLIS: u64 = 50;
/// Bytes of a queue at least, which are some super-frames.
const SHORTEST_QUEUE: u64 = 256 << 10;
const LONGEST_QUEUE: u64 = 16 << 20;

/// A class as it is there.
pub(super) struct Seen {
    pub(super) class: Class,
    pub(super) carried: Carried,
}

fn handle(id: ClassId) -> TcHandle {
    TcHandle {
        major: SHAPER as u16,
        minor: id.0,
    }
}

fn message(interface: u32, parent: TcHandle, own: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = interface.cast_signed();
    message.header.parent = parent;
    message.header.handle = own;
    message.attributes.push(TcAttribute::Kind(kind.into()));
    message
}

/// Gives an interface the queueing discipline, in the place of any other; what has no class passes.
async fn create(rtnl: &mut Rtnl, interface: u32) -> Result<(), Error> {
    let mut discipline = message(interface, ROOT, DISCIPLINE, HTB);
    // Version, rate to quantum, default class, debugging, direct packets: struct tc_htb_glob.
    let init = [HTB_VERSION, 10, 0, 0, 0].map(u32::to_ne_bytes).concat();
    let options = vec![TcOption::Other(DefaultNla::new(TCA_HTB_INIT, init))];
    discipline.attributes.push(TcAttribute::Options(options));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    rtnl.request(RouteNetlinkMessage::NewQueueDiscipline(discipline), flags)
        .await
}

/// Makes a class, or changes it with what waits in it; and the queueing discipline, where it is not there.
pub(super) async fn set_class(
    rtnl: &mut Rtnl,
    interface: u32,
    id: ClassId,
    class: &Class,
) -> Result<(), Error> {
    let parent = class.parent.map_or(DISCIPLINE, handle);
    let mut request = message(interface, parent, handle(id), HTB);
    let long = |kind, rate: Rate| TcOption::Other(DefaultNla::new(kind, (rate.0 / 8).to_ne_bytes().to_vec()));
    request.attributes.push(TcAttribute::Options(vec![
        TcOption::Other(DefaultNla::new(TCA_HTB_PARMS, parameters(class))),
        long(TCA_HTB_RATE64, class.rate),
        long(TCA_HTB_CEIL64, class.ceiling),
    ]));
    let request = RouteNetlinkMessage::NewTrafficClass(request);
    let made = rtnl.request(request.clone(), NLM_F_CREATE).await;
    if made.is_err() && class.parent.is_none() && classes(rtnl, interface).await?.is_empty() {
        create(rtnl, interface).await?;
        rtnl.request(request, NLM_F_CREATE).await?;
    } else {
        made?;
    }
    if !id.is_leaf() {
        return Ok(());
    }
    // A queue by bytes, which are time; the kernel's own default counts frames, and one may be 64 KiB.
    let own = TcHandle {
        major: id.0,
        minor: 0,
    };
    let mut queue = message(interface, handle(id), own, "bfifo");
    // The options are a structure, tc_fifo_qopt, and not attributes.
    const TCA_OPTIONS: u16 = 2;
    let limit = queue_bytes(class).to_ne_bytes().to_vec();
    queue
        .attributes
        .push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, limit)));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    rtnl.request(RouteNetlinkMessage::NewQueueDiscipline(queue), flags)
        .await
}

fn queue_bytes(class: &Class) -> u32 {
    let bytes = class.ceiling.0 / 8 * QUEUE_MILLIS / 1000;
    bytes.clamp(SHORTEST_QUEUE, LONGEST_QUEUE) as u32
}

/// As struct tc_htb_opt has them.
fn parameters(class: &Class) -> Vec<u8> {
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate. What is longer is in an attribute of its own.
    let rate = |rate: Rate| {
        let bytes = u32::try_from(rate.0 / 8).unwrap_or(u32::MAX);
        let mut spec = [0; 12];
        spec[1] = ETHERNET;
        spec[8..].copy_from_slice(&bytes.to_ne_bytes());
        spec
    };
    let ticks = (BURST_MILLIS * 1_000_000 / TICK) as u32;
    let level = 0;
    let numbers = [ticks, ticks, QUANTUM, level, u32::from(class.order)].map(u32::to_ne_bytes);
    [&rate(class.rate)[..], &rate(class.ceiling), &numbers.concat()].concat()
}

pub(super) async fn del_class(rtnl: &mut Rtnl, interface: u32, id: ClassId) -> Result<(), Error> {
    let mut request = TcMessage::default();
    request.header.index = interface.cast_signed();
    request.header.handle = handle(id);
    rtnl.ensure(RouteNetlinkMessage::DelTrafficClass(request), 0, &[Errno::ENOENT])
        .await
}

/// The classes that are there.
pub(super) async fn classes(rtnl: &mut Rtnl, interface: u32) -> Result<BTreeMap<ClassId, Seen>, Error> {
    let mut request = TcMessage::default();
    request.header.index = interface.cast_signed();
    let messages = match rtnl.dump(RouteNetlinkMessage::GetTrafficClass(request)).await {
        Err(error) if error.is(Errno::ENODEV) => vec![],
        result => result?,
    };
    let classes = messages.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewTrafficClass(class) => seen(class),
        _ => None,
    });
    Ok(classes.collect())
}

/// Those of them in which frames wait.
pub(super) fn queued(classes: &BTreeMap<ClassId, Seen>) -> BTreeSet<ClassId> {
    let waiting = classes.iter().filter(|(_, seen)| seen.carried.backlog > 0);
    waiting.map(|(id, _)| *id).collect()
}

fn seen(message: &TcMessage) -> Option<(ClassId, Seen)> {
    let own = |handle: &TcHandle| handle.major == SHAPER as u16 && handle.minor != 0;
    let header = &message.header;
    if !own(&header.handle) {
        return None;
    }
    let (mut options, mut carried) = (vec![], Carried::default());
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Options(nested) => {
                for option in nested {
                    let mut bytes = vec![0; option.value_len()];
                    option.emit_value(&mut bytes);
                    options.extend(bytes);
                }
            }
            TcAttribute::Stats2(stats) => {
                for item in stats {
                    match item {
                        TcStats2::Basic(basic) => carried.bytes = basic.bytes,
                        TcStats2::Queue(queue) => {
                            carried.dropped = queue.drops.into();
                            carried.backlog = queue.backlog.into();
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let class = class(
        &options,
        own(&header.parent).then_some(ClassId(header.parent.minor)),
    )?;
    Some((ClassId(header.handle.minor), Seen { class, carried }))
}

/// From its attributes.
fn class(options: &[u8], parent: Option<ClassId>) -> Option<Class> {
    let mut class = Class {
        parent,
        rate: Rate(0),
        ceiling: Rate(0),
        order: 0,
    };
    let (mut long_rate, mut long_ceiling) = (None, None);
    for nla in netlink_packet_core::NlasIterator::new(options) {
        let nla = nla.ok()?;
        let value = nla.value();
        let word = |at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
        let long = || {
            Some(Rate(
                u64::from_ne_bytes(value.get(..8)?.try_into().ok()?).saturating_mul(8),
            ))
        };
        match nla.kind() {
            TCA_HTB_PARMS => {
                class.rate = Rate(u64::from(word(8)?) * 8);
                class.ceiling = Rate(u64::from(word(20)?) * 8);
                class.order = u8::try_from(word(40)?).ok()?;
            }
            TCA_HTB_RATE64 => long_rate = long(),
            TCA_HTB_CEIL64 => long_ceiling = long(),
            _ => {}
        }
    }
    class.rate = long_rate.unwrap_or(class.rate);
    class.ceiling = long_ceiling.unwrap_or(class.ceiling);
    Some(class)
}
