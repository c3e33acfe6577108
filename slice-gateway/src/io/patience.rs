//! Whether to look again before going to sleep.
//!
//! To wake a thread takes 5 to 50 µs, most of it where the processor itself sleeps (in a virtual machine that is a call
//! to the hypervisor). Who asks one question after another pays that four times per answer. So while something has
//! lately come soon after the last wait began, the loop looks again for a while, and lets others run in between; where
//! nothing came soon it sleeps at once, and an idle gateway costs nothing. The kernel's idle loop does the same
//! (drivers/cpuidle/governors/haltpoll.c).

use std::time::Duration;

/// What comes later than this is not waited for. It covers a peer in the same place: a machine, a rack, a data centre.
/// Across a WAN the wake-ups are a small share of the round trip.
const LIMIT: Duration = Duration::from_micros(100);
/// The first time after something came soon.
const FIRST: Duration = Duration::from_micros(10);

/// How long to look before sleeping. See the module's documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience(Duration);

impl Patience {
    /// How long to look; zero is not at all.
    pub fn window(self) -> Duration {
        self.0
    }

    /// Nothing came within the window, and something after so long, counted from the window's begin.
    pub fn after_sleep(&mut self, waited: Duration) {
        self.0 = if waited <= LIMIT {
            (self.0 * 2).clamp(FIRST, LIMIT)
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window in microseconds after sleeps of so many microseconds.
    #[track_caller]
    fn check(sleeps: &[u64], expected: u128) {
        let mut patience = Patience::default();
        for sleep in sleeps {
            patience.after_sleep(Duration::from_micros(*sleep));
        }
        assert_eq!(patience.window().as_micros(), expected);
    }

    #[test]
    fn an_idle_gateway_sleeps() {
        check(&[], 0);
        check(&[50_000, 50_000], 0);
        check(&[20, 20, 20, 101], 0);
    }

    #[test]
    fn what_comes_soon_is_waited_for() {
        check(&[20], 10);
        check(&[20, 20], 20);
        check(&[20, 20, 30], 40);
        check(&[20; 20], 100);
    }
}
