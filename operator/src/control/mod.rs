//! What both roles are built from. Pure: no client, no clock.
//!
//! A controller is a value that events are handed to and writes are taken from, as the gateway's core is one for
//! datagrams:
//!
//! ```text
//!   watches, answers ──► handle(event) ──► indexes, dirty sets ──► plan ──► Outputs ──► poll_write ──► an API server
//!                                                                             ▲                            │
//!                                                                             └────── written ◄────────────┘
//! ```
//!
//! [`read`] turns raw objects into types, [`content`] says when an object holds what it should, [`outputs`] which write is
//! next, [`notice`] which events are recorded on people's own objects, [`figures`] what is counted.

pub mod content;
pub mod figures;
pub mod kind;
pub mod notice;
pub mod outputs;
pub mod read;
pub mod time;

pub use content::{Content, Observed};
pub use figures::Figures;
pub use kind::{Key, Kind};
pub use notice::Notice;
pub use outputs::{Change, Depth, Failure, Outcome, Outputs, Reason, Write};
pub use read::{Id, Meta};
pub use time::Now;
