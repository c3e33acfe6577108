//! From what slices and pods are given to the classes of the shaper. Pure.
//!
//! ```text
//!  1:2 egress    the uplink ─┬ a class for each slice with a gateway here: what goes to other clusters
//!  1:3 ingress   the uplink ─┴ the same for what comes from them
//!  a class for each limited attachment and flow, by itself
//! ```
//!
//! Where no slice here is given anything there is no tree: nobody waits. Where one is, all slices are in it, since who is
//! outside would take what the others are guaranteed.

use std::collections::{BTreeMap, BTreeSet};

use slice_crds::{Rate, v1alpha1::Shaping};

use crate::{
    model::{Class, ClassId, Flow, Name},
    shares::{Part, WHOLE},
};

/// The rate of a class that is guaranteed nothing: tc-htb(8) has no zero.
const LEAST: Rate = Rate(64_000);
/// What stands for an uplink that nobody knows.
const UNKNOWN_UPLINK: Rate = Rate(100_000_000_000);
/// The last in order, of tc-htb(8)'s eight.
const LAST_ORDER: u8 = 7;
/// Slices, and again attachments, that have classes at most.
const PLACES: u16 = 0x1000;

/// Who has a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Slice(String),
    /// By the host end's name, with its slice.
    Attachment(String, Name),
}

impl Owner {
    pub fn slice(&self) -> &str {
        match self {
            Self::Slice(slice) | Self::Attachment(slice, _) => slice,
        }
    }
}

/// What is asked of the shaper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish<'a> {
    pub uplink: Option<Rate>,
    /// Slices that have a gateway here: what they are given, and which part of it falls to this node.
    pub slices: BTreeMap<&'a str, (Option<Shaping>, Part)>,
    /// Limited attachments, with their slice.
    pub limits: BTreeMap<(&'a str, &'a Name), Rate>,
}

/// Which class everybody has, from one time to the next the same: what waits in a class stays in it. A number is always below
/// the same parent, which tc-htb(8) cannot change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<Owner, u16>);

impl Numbers {
    pub fn get(&self, owner: &Owner, flow: Flow) -> Option<ClassId> {
        self.0.get(owner).map(|place| id(owner, *place, flow))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Owner, Flow, ClassId)> {
        self.0.iter().flat_map(|(owner, place)| {
            let flows = Flow::ALL.into_iter();
            flows.map(move |flow| (owner, flow, id(owner, *place, flow)))
        })
    }

    /// Those of a slice and of its attachments.
    pub fn of_slice(&self, slice: &str) -> Self {
        let first = Owner::Attachment(slice.to_owned(), Name::new(""));
        let attachments = self.0.range(first..);
        let attachments = attachments.take_while(|(owner, _)| owner.slice() == slice);
        let own = self.0.get_key_value(&Owner::Slice(slice.to_owned()));
        let all = own.into_iter().chain(attachments);
        Self(all.map(|(owner, place)| (owner.clone(), *place)).collect())
    }

    /// Gives each of these owners a place of its own; with more of them than there are, some have none.
    fn assign(&mut self, owners: BTreeSet<Owner>) {
        self.0.retain(|owner, _| owners.contains(owner));
        let is_slice = |owner: &Owner| matches!(owner, Owner::Slice(_));
        for slices in [true, false] {
            let here = self.0.iter().filter(|(owner, _)| is_slice(owner) == slices);
            let taken: BTreeSet<u16> = here.map(|(_, place)| *place).collect();
            let mut free = (0..PLACES).filter(|place| !taken.contains(place));
            for owner in owners.iter().filter(|owner| is_slice(owner) == slices) {
                if !self.0.contains_key(owner)
                    && let Some(place) = free.next()
                {
                    self.0.insert(owner.clone(), place);
                }
            }
        }
    }
}

/// 1:1000 and 1:2000 are the first slice's, 1:3000 and 1:4000 the first attachment's.
const fn id(owner: &Owner, place: u16, flow: Flow) -> ClassId {
    let first = match (owner, flow) {
        (Owner::Slice(_), Flow::Egress) => ClassId::FIRST_LEAF.0,
        (Owner::Slice(_), Flow::Ingress) => 0x2000,
        (Owner::Attachment(..), Flow::Egress) => 0x3000,
        (Owner::Attachment(..), Flow::Ingress) => 0x4000,
    };
    ClassId(first + place)
}

/// The classes, by the numbers that their owners have or get.
pub fn classes(wish: &Wish<'_>, numbers: &mut Numbers) -> BTreeMap<ClassId, Class> {
    let shaped = wish.slices.values().any(|(shaping, _)| shaping.is_some());
    let slices = wish.slices.keys().filter(|_| shaped);
    let slices = slices.map(|slice| Owner::Slice((*slice).to_owned()));
    let attachment = |(slice, port): &(&str, &Name)| Owner::Attachment((*slice).to_owned(), (*port).clone());
    numbers.assign(slices.chain(wish.limits.keys().map(attachment)).collect());
    let uplink = wish.uplink.unwrap_or(UNKNOWN_UPLINK);
    let mut classes = BTreeMap::new();
    if shaped {
        let whole = Class {
            parent: None,
            rate: uplink,
            ceiling: uplink,
            order: 0,
        };
        classes.extend([(ClassId::EGRESS, whole), (ClassId::INGRESS, whole)]);
    }
    let promised = promised(wish);
    for (owner, flow, id) in numbers.iter() {
        let class = match owner {
            Owner::Slice(slice) => {
                let (shaping, part) = &wish.slices[slice.as_str()];
                of_slice(&shaping.unwrap_or_default(), part, flow, uplink, promised[&flow])
            }
            Owner::Attachment(slice, port) => {
                let limit = wish.limits[&(slice.as_str(), port)];
                Class {
                    parent: None,
                    rate: limit,
                    ceiling: limit,
                    order: 0,
                }
            }
        };
        classes.insert(id, class);
    }
    for class in classes.values_mut() {
        (class.rate, class.ceiling) = (in_bytes(class.rate), in_bytes(class.ceiling));
    }
    classes
}

/// As the kernel keeps it, by bytes: what it shows must be what it was told.
const fn in_bytes(rate: Rate) -> Rate {
    Rate(rate.0 / 8 * 8)
}

/// All that slices are guaranteed here.
pub fn promised(wish: &Wish<'_>) -> BTreeMap<Flow, Rate> {
    let of = |flow| {
        let all = wish.slices.values();
        let all = all.filter_map(|(shaping, part)| guaranteed(shaping.as_ref()?, part, flow));
        Rate(all.map(|rate| rate.0).sum())
    };
    Flow::ALL.map(|flow| (flow, of(flow))).into()
}

fn of_slice(shaping: &Shaping, part: &Part, flow: Flow, uplink: Rate, promised: Rate) -> Class {
    let parent = match flow {
        Flow::Egress => ClassId::EGRESS,
        Flow::Ingress => ClassId::INGRESS,
    };
    let guaranteed = guaranteed(shaping, part, flow).unwrap_or(LEAST);
    // What is promised beyond the uplink is cut for all alike: the classes of a parent must not have more than it has.
    let scaled = match promised > uplink {
        true => u128::from(guaranteed.0) * u128::from(uplink.0) / u128::from(promised.0),
        false => guaranteed.0.into(),
    };
    let ceiling = shaping
        .ceiling_mbps
        .map_or(uplink, |mbps| here(mbps, part, flow).min(uplink));
    let rate = Rate(u64::try_from(scaled).unwrap_or(u64::MAX)).max(LEAST);
    Class {
        parent: Some(parent),
        rate,
        ceiling: ceiling.max(rate),
        order: LAST_ORDER - shaping.priority.min(LAST_ORDER),
    }
}

/// What a slice is guaranteed here.
pub fn guaranteed(shaping: &Shaping, part: &Part, flow: Flow) -> Option<Rate> {
    Some(here(shaping.guaranteed_mbps?, part, flow))
}

/// This node's part of what is a cluster's.
fn here(mbps: u32, part: &Part, flow: Flow) -> Rate {
    Rate(Rate::from_mbps(mbps).0 / u64::from(WHOLE) * u64::from(part.of(flow))).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaping(guaranteed: Option<u32>, ceiling: Option<u32>, priority: u8) -> Option<Shaping> {
        Some(Shaping {
            guaranteed_mbps: guaranteed,
            ceiling_mbps: ceiling,
            priority,
        })
    }

    fn wish<'a>(slices: &[(&'a str, Option<Shaping>)]) -> Wish<'a> {
        Wish {
            uplink: Some(Rate::from_mbps(100)),
            slices: slices
                .iter()
                .map(|(slice, shaping)| (*slice, (*shaping, Part::default())))
                .collect(),
            limits: BTreeMap::new(),
        }
    }

    /// By owner and flow as text.
    fn text(wish: &Wish<'_>, numbers: &mut Numbers) -> String {
        let classes = classes(wish, numbers);
        let lines = classes.iter().map(|(id, class)| format!("{id} {class}\n"));
        lines.collect()
    }

    #[test]
    fn nobody_waits_where_nobody_is_given_anything() {
        let numbers = &mut Numbers::default();
        assert_eq!(text(&wish(&[("bank", None), ("shop", None)]), numbers), "");
    }

    #[test]
    fn who_is_given_nothing_has_what_is_left() {
        let slices = wish(&[("bank", None), ("shop", shaping(Some(40), Some(60), 5))]);
        expect_test::expect![[r#"
            1:2 root rate 100M ceil 100M prio 0
            1:3 root rate 100M ceil 100M prio 0
            1:1000 parent 1:2 rate 64k ceil 100M prio 7
            1:1001 parent 1:2 rate 40M ceil 60M prio 2
            1:2000 parent 1:3 rate 64k ceil 100M prio 7
            1:2001 parent 1:3 rate 40M ceil 60M prio 2
        "#]]
        .assert_eq(&text(&slices, &mut Numbers::default()));
    }

    #[test]
    fn more_than_there_is_is_cut_for_all_alike() {
        let slices = wish(&[
            ("bank", shaping(Some(150), None, 0)),
            ("shop", shaping(Some(50), None, 0)),
        ]);
        assert_eq!(promised(&slices)[&Flow::Egress], Rate::from_mbps(200));
        let classes = classes(&slices, &mut Numbers::default());
        let rates = classes
            .values()
            .filter(|class| class.parent == Some(ClassId::EGRESS));
        let rates: Vec<Rate> = rates.map(|class| class.rate).collect();
        assert_eq!(rates, [Rate::from_mbps(75), Rate::from_mbps(25)]);
    }

    #[test]
    fn a_class_stays_its_owners_while_others_come_and_go() {
        let numbers = &mut Numbers::default();
        let of = |numbers: &Numbers, slice: &str| numbers.get(&Owner::Slice(slice.to_owned()), Flow::Egress);
        let given = shaping(Some(1), None, 0);
        classes(&wish(&[("m", given)]), numbers);
        let first = of(numbers, "m").unwrap();
        classes(&wish(&[("a", given), ("m", given), ("z", given)]), numbers);
        assert_eq!(of(numbers, "m"), Some(first));
        let third = of(numbers, "z").unwrap();
        classes(&wish(&[("z", given)]), numbers);
        classes(&wish(&[("b", given), ("z", given)]), numbers);
        assert_eq!(of(numbers, "z"), Some(third));
        assert_eq!(of(numbers, "b"), Some(first), "what is free is given again");
    }

    #[test]
    fn a_slices_numbers_are_its_own_and_its_attachments() {
        let (a, b) = (Name::new("wp-a"), Name::new("wp-b"));
        let given = shaping(Some(1), None, 0);
        let mut wish = wish(&[("shop", given), ("shopping", given)]);
        let limit = Rate::from_mbps(5);
        wish.limits.extend([
            (("shop", &a), limit),
            (("shop", &b), limit),
            (("shopping", &a), limit),
        ]);
        let numbers = &mut Numbers::default();
        classes(&wish, numbers);
        let of_slice = numbers.of_slice("shop");
        let owners = [
            Owner::Slice("shop".to_owned()),
            Owner::Attachment("shop".to_owned(), a),
            Owner::Attachment("shop".to_owned(), b),
        ];
        assert!(of_slice.0.keys().eq(&owners));
        for owner in &owners {
            assert_eq!(
                of_slice.get(owner, Flow::Egress),
                numbers.get(owner, Flow::Egress)
            );
        }
        assert_eq!(numbers.of_slice("bank"), Numbers::default());
    }

    #[test]
    fn rates_are_those_that_the_kernel_shows() {
        let port = Name::new("wp-a");
        let mut wish = wish(&[
            ("bank", shaping(Some(90), None, 0)),
            ("shop", shaping(Some(77), Some(77), 0)),
        ]);
        wish.uplink = Some(Rate(100_000_007));
        wish.limits.insert(("shop", &port), Rate(64_001));
        let classes = classes(&wish, &mut Numbers::default());
        for (id, class) in classes {
            assert_eq!((class.rate.0 % 8, class.ceiling.0 % 8), (0, 0), "{id} {class}");
            assert!(class.rate <= class.ceiling, "{id} {class}");
        }
    }

    #[test]
    fn an_attachment_is_limited_by_itself() {
        let port = Name::new("wp-a");
        let mut wish = wish(&[]);
        wish.limits.insert(("shop", &port), Rate::from_mbps(5));
        expect_test::expect![[r#"
            1:3000 root rate 5M ceil 5M prio 0
            1:4000 root rate 5M ceil 5M prio 0
        "#]]
        .assert_eq(&text(&wish, &mut Numbers::default()));
    }
}
