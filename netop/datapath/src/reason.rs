/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Reason {
    /// It came by an interface, or with a number of a slice, that nobody knows here.
    NoSegment,
    /// Its headers cannot be read to the end, so that a receiver may see more in it than this node does.
    Unreadable,
    /// It gives an address as its sender's that is not.
    Spoofed,
    /// It has a VLAN tag, and the slice carries none.
    Tagged,
    /// It is not IP, and the slice carries nothing else.
    NotIp,
    /// It says that its sender is a router, or where else packets should go.
    Router,
    /// ARP or neighbour discovery, which is answered next to the asker or not at all.
    Neighbour,
    /// To a group address that no bridge forwards.
    LinkLocalGroup,
    /// To nobody.
    NoRoute,
    /// To another cluster, which no gateway reaches now.
    NoGateway,
    /// To a place where a frame that came this way never goes.
    Loop,
    /// More broadcast and multicast than the slice allows.
    Budget,
    /// The kernel did not take it: the interface is gone or full.
    Refused,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::NoSegment,
        Self::Unreadable,
        Self::Spoofed,
        Self::Tagged,
        Self::NotIp,
        Self::Router,
        Self::Neighbour,
        Self::LinkLocalGroup,
        Self::NoRoute,
        Self::NoGateway,
        Self::Loop,
        Self::Budget,
        Self::Refused,
    ];

    /// As it stands in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoSegment => "no_segment",
            Self::Unreadable => "unreadable",
            Self::Spoofed => "spoofed",
            Self::Tagged => "tagged",
            Self::NotIp => "not_ip",
            Self::Router => "router",
            Self::Neighbour => "neighbour",
            Self::LinkLocalGroup => "link_local_group",
            Self::NoRoute => "no_route",
            Self::NoGateway => "no_gateway",
            Self::Loop => "loop",
            Self::Budget => "budget",
            Self::Refused => "refused",
        }
    }
}

impl TryFrom<u32> for Reason {
    type Error = u32;

    /// # Errors
    /// The number, where it is no reason's.
    fn try_from(number: u32) -> Result<Self, u32> {
        Self::ALL
            .into_iter()
            .find(|reason| *reason as u32 == number)
            .ok_or(number)
    }
}

/// From where a frame comes, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Direction {
    FromPod,
    FromGateway,
    FromNode,
}

impl Direction {
    pub const ALL: [Self; 3] = [Self::FromPod, Self::FromGateway, Self::FromNode];

    /// As it stands in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromGateway => "from_gateway",
            Self::FromNode => "from_node",
        }
    }
}
