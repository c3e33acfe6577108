//! Answers the slice zone.
