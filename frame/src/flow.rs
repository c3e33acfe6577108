//! Which flow a frame belongs to.

use core::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::{Frame, ip::Fragment};

impl Frame {
    /// The flow that the frame belongs to: frames of one connection have one number, and so have all fragments of a
    /// packet, of which only the first has ports.
    #[must_use]
    pub fn flow(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        match self.packet() {
            Some(packet) => {
                hasher.write_u128(packet.source.to_bits());
                hasher.write_u128(packet.destination.to_bits());
                if packet.fragment == Fragment::Whole && packet.ports().is_some() {
                    hasher.write_u8(packet.protocol);
                    hasher.write(&packet.head);
                }
            }
            None => {
                hasher.write(&self.source.0);
                hasher.write(&self.destination.0);
                hasher.write_u16(self.ethertype);
            }
        }
        hasher.finish()
    }
}
