//! Handshake messages: who sent one, which lane it is for, and the tunnel that takes it.
//!
//! ```text
//!  initiation ──► first lane: keyring, guard ──► lane of the tunnel ──► tunnel, made here where only the peer begins it
//!  answer ──────► the lane that began ─────────────────────────────────► tunnel, by its session number
//! ```

use std::time::Instant;

use super::{
    Endpoint, Gateway, Output, endpoint,
    lane::{Initiation, Note},
    noise::{self, Handshake, MAX_HANDSHAKE},
    peer::Peer,
    reason::Reason,
    tunnel::Tunnel,
};

impl Gateway {
    /// Takes a message that is no data.
    pub(super) fn handshake(&mut self, now: Instant, from: Endpoint, datagram: &[u8], out: &mut impl Output) {
        let mut reply = [0; MAX_HANDSHAKE];
        let result = match self
            .keyring
            .identify(now, from.address.ip(), datagram, &mut reply)
        {
            Ok((own, Handshake::Initiation { key, tunnel })) => {
                let initiation = Initiation {
                    own,
                    key,
                    tunnel,
                    from,
                };
                self.admit(now, initiation, datagram, out)
            }
            Ok((_, Handshake::Answer { receiver })) => {
                let slot = noise::slot_of(receiver);
                self.converse(now, slot, from, datagram, out)
            }
            Err((reason, cookie)) => {
                endpoint::write(out, from, &reply[..cookie]);
                Err(reason)
            }
        };
        if let Err(reason) = result {
            self.drops.add(reason, 1);
        }
    }

    /// Gives a handshake that somebody began to the lane that it is for.
    fn admit(
        &mut self,
        now: Instant,
        initiation: Initiation,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let Initiation { own, key, tunnel, .. } = initiation;
        // Every peer has a tunnel of the first lane there, and of this one elsewhere.
        let known = self.tunnels.get(&(own, key, self.lane.number()));
        let known = known.and_then(|slot| self.slots[*slot]);
        let peer = &self.peers[known.ok_or(Reason::UnknownPeer)?];
        // Others than our kind number their sessions as they like.
        let tunnel = if peer.path.liveness.is_stock() { 0 } else { tunnel };
        let initiation = Initiation { tunnel, ..initiation };
        let lane = self.lane.of_tunnel(tunnel);
        if lane == self.lane.number() {
            self.answer(now, &initiation, datagram, out)
        } else if out.leave(lane, Note::Initiation(initiation), datagram) {
            Ok(())
        } else {
            Err(Reason::LaneFull)
        }
    }

    /// Answers a handshake that somebody began with this lane.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        initiation: &Initiation,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let known = (initiation.own, initiation.key, initiation.tunnel);
        match self.tunnels.get(&known).copied() {
            Some(slot) => self.converse(now, slot, initiation.from, datagram, out),
            None => self.host(now, initiation, datagram, out),
        }
    }

    /// Takes in a tunnel that a lane begins which only the peer has. Its initiation only says whose it is: anybody who
    /// knows the peer's public key can say so, and what proves it is read by the tunnel. A stranger leaves nothing here.
    fn host(
        &mut self,
        now: Instant,
        initiation: &Initiation,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let Initiation {
            own,
            key,
            tunnel: lane,
            from,
        } = *initiation;
        let config = self.config.as_ref().ok_or(Reason::NotConfigured)?;
        let mut gateways = config.gateways.iter();
        let gateway = gateways.find(|gateway| gateway.public_keys.contains(&key));
        let gateway = gateway.ok_or(Reason::UnknownPeer)?;
        let identity = self.keyring.identity(own).ok_or(Reason::UnknownPeer)?;
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        let mut tunnel = Tunnel::new((own, identity), key, (slot, lane), now, &mut self.random);
        tunnel.handshake(now, from, datagram, out)?;
        let guest = Peer::guest((config.vtep, config.vni), gateway, lane, tunnel, now);
        self.tunnels.insert((own, key, lane), slot);
        self.peers.push(guest);
        self.weave(now);
        Ok(())
    }

    /// Takes a handshake message for the tunnel with this slot.
    fn converse(
        &mut self,
        now: Instant,
        slot: usize,
        from: Endpoint,
        datagram: &[u8],
        out: &mut impl Output,
    ) -> Result<(), Reason> {
        let peer = self.slots.get(slot).copied().flatten();
        let peer = &mut self.peers[peer.ok_or(Reason::UnknownSession)?];
        if let Err(reason) = peer.handshake(slot, now, from, datagram, out) {
            peer.drops.add(reason, 1);
        }
        Ok(())
    }
}
