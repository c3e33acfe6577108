//! What a person sees while waiting: one line per finished phase with the time
//! it took, and a repeated line for phases that take minutes.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Prints a line to standard output and ends the program quietly when nobody reads it any more.
pub fn say(line: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{}", line.as_ref())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

/// Measures a command as a whole; every line carries the seconds since its start.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Reports one finished step.
    pub fn done(&self, what: impl AsRef<str>) {
        say(format!(
            "{:6.1}s  {}",
            self.elapsed().as_secs_f64(),
            what.as_ref()
        ));
    }
}

/// Writes a duration as a person would say it: `42s`, `3m07s`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        _ => format!("{}m{:02}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_speech() {
        assert_eq!(short(Duration::from_secs(42)), "42s");
        assert_eq!(short(Duration::from_secs(187)), "3m07s");
    }
}
