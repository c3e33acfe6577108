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
    keyring::Serial,
    peer::{Link, Peer},
};

impl Gateway {
    /// What others need to know of our keys.
    pub fn keys(&self) -> Keys {
        self.keyring.keys()
    }

    /// Whether it is time for [`Self::renew`].
    pub fn wants_key(&self, now: Instant) -> bool {
        self.keyring.wants_key(now)
    }

    /// Takes a new key. Where that was asked for by a revocation, the ones before are wiped and every session with
    /// them; otherwise sessions go on until there are new ones.
    pub fn renew(&mut self, now: Instant, key: Key) {
        self.keyring.renew(key, now, &mut self.random);
        self.weave(now);
        self.push(Event::Keys);
    }

    /// Makes the tunnels those between all keys of ours and of the peers. Slots of tunnels that stay do not change.
    pub(super) fn weave(&mut self, now: Instant) {
        let Some(config) = &self.config else { return };
        let used: BTreeSet<usize> = std::mem::take(&mut self.tunnels).into_values().collect();
        let mut free = (0..).filter(|slot| !used.contains(slot));
        let own: Vec<Serial> = self.keyring.identities().map(|(serial, _)| serial).collect();
        for (peer, gateway) in self.peers.iter_mut().zip(&config.gateways) {
            peer.weave(&own, &gateway.public_keys, |serial, key| {
                let mut identities = self.keyring.identities();
                let identity = identities
                    .find(|(other, _)| *other == serial)
                    .expect("a key of ours");
                let slot = free.next().expect("as many as wanted");
                Link::new(identity, key, slot, now, &mut self.random)
            });
        }
        self.slots.clear();
        for (peer, link) in (self.peers.iter().enumerate())
            .flat_map(|(place, peer)| peer.links().iter().map(move |link| (place, link)))
        {
            if self.slots.len() <= link.slot {
                self.slots.resize(link.slot + 1, None);
            }
            self.slots[link.slot] = Some(peer);
            self.tunnels.insert((link.own, link.key), link.slot);
        }
    }

    /// Wipes the former key once nobody needs it.
    pub(super) fn retire(&mut self, now: Instant) {
        let Some(former) = self.keyring.former() else {
            return;
        };
        let current = self.keyring.current();
        let moved = |peer: &Peer| peer.has_session_of(current);
        let relied_on = self.peers.iter().any(|peer| peer.relies_on(former, now));
        // Who is away may come back with that key, but does not hold the next one up.
        if !relied_on && (self.keyring.is_due(now) || self.peers.iter().all(moved)) {
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
