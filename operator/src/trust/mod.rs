//! What of a member's reports is believed. Pure.
//!
//! A member's credential can be stolen, and a member can be wrong. What it writes is a claim: it is checked against what
//! the member was given and against what others reported first. What passes becomes typed values ([`Facts`], [`Claim`],
//! [`Service`]); what does not is left out, one by one, and is a [`Violation`]: a condition `Trusted=False` on its Cluster
//! that says what was refused. Nobody else notices.

mod facts;
mod keys;
mod service;
mod slice;

use std::fmt;

pub use facts::{Facts, facts};
pub use keys::{Trusted, keys};
pub use service::{Exporter, service};
pub(crate) use slice::MOST_ENDPOINTS;
pub use slice::{Claim, Given, claim};

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation(String);

impl Violation {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The start of a text that somebody else wrote, to be shown to a person.
fn shown(text: &str) -> String {
    const MOST: usize = 80;
    let clean: String = text
        .chars()
        .filter(|char| !char.is_control())
        .take(MOST)
        .collect();
    match text.chars().count() > MOST {
        true => format!("{clean}…"),
        false => clean,
    }
}

/// At most so many of a list that somebody else wrote; the rest is refused.
fn at_most<'a, T>(list: &'a [T], most: usize, what: &str, violations: &mut Vec<Violation>) -> &'a [T] {
    if list.len() > most {
        violations.push(Violation::new(format!(
            "{} {what}, of which the first {most} are taken",
            list.len()
        )));
    }
    &list[..list.len().min(most)]
}
