//! Carries a slice's Ethernet frames between clusters over WireGuard.
