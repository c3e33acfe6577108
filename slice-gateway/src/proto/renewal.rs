//! From one key to the next, without a frame lost: make before break.
//!
//! ```text
//!  renew     a tunnel with the new key beside each one there is; Keys is told to all ─┐
//!            peers hear of the new key and shake hands ◄──────────────────────────────┘
//!            frames move to the new tunnels, each direction when its sender has a session there
//!  retire    nothing has come by the former key for a while, and nothing goes: it is wiped
//! ```

use std::{collections::BTreeSet, time::Instant};

use super::{
    Event, Gateway, Key, Keys,
    keyring::{Change, Serial},
    peer::Peer,
    tunnel::Tunnel,
};

/// Who needs the former key, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nobody.
    #[default]
    Nobody,
    /// A peer that is away may come back with it in mind.
    Absent,
    /// Frames go or come by it.
    Frames,
}

impl Gateway {
    /// What others need to know of our keys.
    pub fn keys(&self) -> Keys {
        self.keyring.keys()
    }

    /// Whether it is time for [`Self::renew`]. Only the first lane says so, and the others then take the same key.
    pub fn wants_key(&self, now: Instant) -> Option<Change> {
        self.keyring.wants_key(now).filter(|_| self.lane.is_first())
    }

    /// Takes a new key. With a revocation the ones before are wiped and every session with them; with a renewal
    /// sessions go on until there are new ones.
    pub fn renew(&mut self, now: Instant, key: Key, change: Change) {
        self.keyring.renew(key, change, now, &mut self.random);
        self.weave(now);
        self.push(Event::Keys);
    }

    /// Makes the tunnels those between all keys of ours and of the peers. Slots of tunnels that stay do not change.
    pub(super) fn weave(&mut self, now: Instant) {
        let used: BTreeSet<usize> = std::mem::take(&mut self.tunnels).into_values().collect();
        let mut free = (0..).filter(|slot| !used.contains(slot));
        let own: Vec<Serial> = self.keyring.identities().map(|(serial, _)| serial).collect();
        for peer in &mut self.peers {
            let lane = peer.lane;
            peer.weave(&own, |serial, key| {
                let identity = self.keyring.identity(serial).expect("a key of ours");
                let slot = free.next().expect("as many as wanted");
                Tunnel::new((serial, identity), key, (slot, lane), now, &mut self.random)
            });
        }
        self.slots.clear();
        for (peer, tunnel) in (self.peers.iter().enumerate())
            .flat_map(|(place, peer)| peer.tunnels().iter().map(move |tunnel| (place, tunnel)))
        {
            if self.slots.len() <= tunnel.slot {
                self.slots.resize(tunnel.slot + 1, None);
            }
            self.slots[tunnel.slot] = Some(peer);
            let lane = self.peers[peer].lane;
            self.tunnels.insert((tunnel.own, tunnel.key, lane), tunnel.slot);
        }
    }

    /// Forgets tunnels that only a peer begins and does not begin any more.
    pub(super) fn let_guests_go(&mut self, now: Instant) {
        let before = self.peers.len();
        self.peers.retain(|peer| !peer.has_left(now));
        if self.peers.len() != before {
            self.weave(now);
        }
    }

    /// Who needs the former key in this lane.
    pub fn need_of_former(&self, now: Instant) -> Need {
        let Some(former) = self.keyring.former() else {
            return Need::Nobody;
        };
        let current = self.keyring.current();
        let moved = |peer: &Peer| peer.has_session_of(current) || !peer.ours;
        if self.peers.iter().any(|peer| peer.relies_on(former, now)) {
            Need::Frames
        } else if self.peers.iter().all(moved) {
            Need::Nobody
        } else {
            Need::Absent
        }
    }

    /// Takes the greatest need of the other lanes: the first one decides for all.
    pub fn set_need_of_others(&mut self, need: Need) {
        self.need_of_others = need;
    }

    /// Wipes the former key once nobody needs it.
    pub(super) fn retire_when_due(&mut self, now: Instant) {
        if !self.lane.is_first() || self.keyring.former().is_none() {
            return;
        }
        let need = self.need_of_former(now).max(self.need_of_others);
        // Who is away may come back with that key, but does not hold the next one up.
        if need == Need::Nobody || need == Need::Absent && self.keyring.is_due(now) {
            self.retire(now);
        }
    }

    /// Whether there is a former key.
    pub fn has_former(&self) -> bool {
        self.keyring.former().is_some()
    }

    /// Wipes the former key.
    pub fn retire(&mut self, now: Instant) {
        if self.has_former() {
            self.keyring.retire();
            self.weave(now);
            self.push(Event::Keys);
        }
    }

    /// The peer that keeps a new key from being made, because it is only reached by the former one.
    pub(super) fn renewal_waits_for(&self, now: Instant) -> Option<&Peer> {
        let former = self.keyring.former().filter(|_| self.keyring.is_due(now))?;
        let mut peers = self.peers.iter();
        peers.find(|peer| peer.relies_on(former, now))
    }
}
