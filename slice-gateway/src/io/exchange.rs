//! Where lanes send each other what is not theirs ([`crate::proto::lane`]): handshakes and frames for hosts outside the
//! clusters, both rare. Nothing else passes between threads per packet.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::proto::{HEADROOM, lane::Note};

/// What may wait for one lane; each is up to 64 KiB.
const WAITING: usize = 64;

/// What is sent: a note and, after [`HEADROOM`] bytes, those that come with it.
pub struct Message {
    pub note: Note,
    pub buffer: Vec<u8>,
}

/// The lanes' mailboxes.
pub struct Exchange {
    mailboxes: Vec<Mailbox>,
    /// Buffers that nobody uses; as many as were ever in use at once.
    free: ArrayQueue<Vec<u8>>,
    made: AtomicUsize,
}

struct Mailbox {
    messages: ArrayQueue<Message>,
    wake: EventFd,
}

impl Exchange {
    /// # Errors
    /// Where the kernel has no descriptors left.
    pub fn new(lanes: usize) -> io::Result<Self> {
        let mailbox = |_| {
            Ok(Mailbox {
                messages: ArrayQueue::new(WAITING),
                wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            })
        };
        Ok(Self {
            mailboxes: (0..lanes).map(mailbox).collect::<io::Result<_>>()?,
            free: ArrayQueue::new(WAITING * lanes),
            made: AtomicUsize::new(0),
        })
    }

    /// Becomes readable when the lane is wanted.
    pub fn wake(&self, lane: usize) -> &EventFd {
        &self.mailboxes[lane].wake
    }

    /// Wakes a lane.
    pub fn call(&self, lane: usize) {
        // It cannot fail but by being awake already.
        let _ = self.mailboxes[lane].wake.write(1);
    }

    /// Puts a message into the mailbox of a lane; `false` where there is no room.
    pub fn send(&self, lane: u8, note: Note, bytes: &[u8]) -> bool {
        let lane = usize::from(lane);
        let Some(mut buffer) = self.buffer() else {
            return false;
        };
        buffer.clear();
        buffer.resize(HEADROOM, 0);
        buffer.extend_from_slice(bytes);
        match self.mailboxes[lane].messages.push(Message { note, buffer }) {
            Ok(()) => {
                self.call(lane);
                true
            }
            Err(message) => {
                self.give_back(message.buffer);
                false
            }
        }
    }

    /// The next message for a lane. Its buffer is to be given back.
    pub fn receive(&self, lane: usize) -> Option<Message> {
        self.mailboxes[lane].messages.pop()
    }

    pub fn give_back(&self, buffer: Vec<u8>) {
        // There is room for all that were made.
        let _ = self.free.push(buffer);
    }

    /// A buffer that nobody uses.
    fn buffer(&self) -> Option<Vec<u8>> {
        self.free.pop().or_else(|| {
            let another = |made| (made < self.free.capacity()).then_some(made + 1);
            let made = (self.made).fetch_update(Ordering::Relaxed, Ordering::Relaxed, another);
            made.is_ok().then(Vec::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Offload;

    const NOTE: Note = Note::Frame(Offload {
        gso: None,
        checksum: None,
    });

    #[test]
    fn what_is_left_is_found_by_its_lane() {
        let exchange = Exchange::new(2).unwrap();
        assert!(exchange.send(1, NOTE, b"one") && exchange.send(1, NOTE, b"two"));
        assert!(exchange.wake(0).read().is_err() && exchange.wake(1).read().is_ok());
        assert!(exchange.receive(0).is_none());
        for expected in [b"one", b"two"] {
            let message = exchange.receive(1).unwrap();
            assert_eq!(&message.buffer[HEADROOM..], expected);
            exchange.give_back(message.buffer);
        }
        assert!(exchange.receive(1).is_none());
    }

    #[test]
    fn what_waits_is_bounded_and_buffers_are_used_again() {
        let exchange = Exchange::new(2).unwrap();
        for _ in 0..3 {
            assert!((0..WAITING).all(|_| exchange.send(0, NOTE, b"frame")));
            assert!(!exchange.send(0, NOTE, b"one too many"));
            while let Some(message) = exchange.receive(0) {
                exchange.give_back(message.buffer);
            }
        }
        assert!(exchange.made.load(Ordering::Relaxed) <= WAITING + 1);
    }
}
