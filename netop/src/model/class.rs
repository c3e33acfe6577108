//! Classes of the shaper: who gets how much of what a node carries to and from other clusters (tc-htb(8)).

use std::fmt;

use slice_crds::Rate;

/// The minor number of a class of the shaper's one queueing discipline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u16);

impl ClassId {
    /// Above the classes of all slices for what goes to other clusters.
    pub const EGRESS: Self = Self(2);
    /// The same for what comes from them.
    pub const INGRESS: Self = Self(3);
    /// The first in which frames wait.
    pub const FIRST_LEAF: Self = Self(0x1000);

    /// Whether frames wait in it.
    pub fn is_leaf(self) -> bool {
        self >= Self::FIRST_LEAF
    }
}

/// Which way frames go: of a slice to other clusters or from them, of a pod what it sends or gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flow {
    Egress,
    Ingress,
}

impl Flow {
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// One class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The class that it borrows from.
    pub parent: Option<ClassId>,
    /// Its own, whatever others do.
    pub rate: Rate,
    /// With what it borrows.
    pub ceiling: Rate,
    /// Who borrows first: 0 before 7, the other way round than users write it.
    pub order: u8,
}

/// What a class has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes of frames, those of each packet of a super-frame counted.
    pub bytes: u64,
    /// Frames that found its queue full.
    pub dropped: u64,
    /// Bytes that wait.
    pub backlog: u64,
}

impl fmt::Display for ClassId {
    /// As tc(8) writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", slice_datapath::SHAPER, self.0)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parent,
            rate,
            ceiling,
            order,
        } = self;
        match parent {
            Some(parent) => write!(f, "parent {parent}")?,
            None => f.write_str("root")?,
        }
        write!(f, " rate {rate} ceil {ceiling} prio {order}")
    }
}
