//! Whether another program undoes what the agent writes into a list, and when it is written again.
//!
//! A network plugin that starts writes its list once or twice, and is followed at once. One that restores its own list
//! whenever it differs would be followed for ever: it is written less and less often, and never less than every [`MOST`].

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// So many writes within [`WINDOW`] are somebody's who undoes them.
const UNDONE: usize = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// Until the next write, at first; twice as long each time.
const LEAST: Duration = Duration::from_secs(1);
/// As long as pods may start without their interface once the other program has stopped.
pub const MOST: Duration = Duration::from_secs(30);
/// How long a write has to stand until it is forgotten that others did not.
const CALM: Duration = Duration::from_secs(60);

/// What was written into one list, and what became of it.
#[derive(Debug, Default)]
pub struct Contest {
    list: PathBuf,
    /// When it was written, [`UNDONE`] times at most.
    writes: VecDeque<Instant>,
    /// How long the next write waits after the last, where the writes are being undone.
    pause: Option<Duration>,
}

impl Contest {
    /// Until when nothing is written; `None` where it may be.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        let next = *self.writes.back()? + self.pause?;
        (next > now).then_some(next)
    }

    /// The plugin was put into the list. Whether somebody had taken it out since it was last.
    pub fn wrote(&mut self, list: &Path, now: Instant) -> bool {
        if self.list != list {
            *self = Self {
                list: list.to_owned(),
                ..Self::default()
            };
        }
        let again = !self.writes.is_empty();
        self.writes.push_back(now);
        if self.writes.len() > UNDONE {
            self.writes.pop_front();
        }
        let run = self.writes.len() == UNDONE && now - self.writes[0] <= WINDOW;
        self.pause = match self.pause {
            Some(pause) => Some((pause * 2).min(MOST)),
            None => run.then_some(LEAST),
        };
        again
    }

    /// The plugin is in the list as it was written.
    pub fn stands(&mut self, now: Instant) {
        if self.writes.back().is_some_and(|last| now - *last >= CALM) {
            *self = Self::default();
        }
    }

    /// The plugin was taken out by the agent itself: that it is not there says nothing of others.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The list whose changes are being undone.
    pub fn contested(&self) -> Option<&Path> {
        self.pause.map(|_| self.list.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody undoes each write after 20 ms. When the list was written, from the first time on.
    fn undone(contest: &mut Contest, begun: Instant, lasting: Duration) -> Vec<Duration> {
        let mut writes = vec![];
        let mut now = begun;
        while now - begun < lasting {
            match contest.until(now) {
                Some(until) => now = until,
                None => {
                    contest.wrote(Path::new("10.conflist"), now);
                    writes.push(now - begun);
                    now += Duration::from_millis(20);
                }
            }
        }
        writes
    }

    #[test]
    fn who_is_undone_at_once_writes_less_and_less_often() {
        let (mut contest, begun) = (Contest::default(), Instant::now());
        let writes = undone(&mut contest, begun, Duration::from_secs(600));
        let gaps: Vec<u64> = writes
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs())
            .collect();
        assert_eq!(gaps[..11], [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30]);
        assert!(gaps[11..].iter().all(|gap| *gap == 30), "{gaps:?}");
        assert_eq!(contest.contested(), Some(Path::new("10.conflist")));
    }

    #[test]
    fn a_plugin_that_writes_its_list_now_and_then_is_followed_at_once() {
        let (mut contest, begun) = (Contest::default(), Instant::now());
        let mut again = 0;
        for n in 0..20 {
            let now = begun + Duration::from_secs(3) * n;
            assert_eq!(contest.until(now), None);
            again += usize::from(contest.wrote(Path::new("10.conflist"), now));
            contest.stands(now + Duration::from_secs(1));
        }
        assert_eq!((again, contest.contested()), (19, None));
    }

    #[test]
    fn a_contest_is_over_when_a_write_has_stood_or_the_list_is_another() {
        let (mut contest, begun) = (Contest::default(), Instant::now());
        undone(&mut contest, begun, Duration::from_secs(100));
        let last = begun + Duration::from_secs(130);
        contest.wrote(Path::new("10.conflist"), last);
        contest.stands(last + CALM / 2);
        assert!(contest.contested().is_some());
        contest.stands(last + CALM);
        assert_eq!((contest.contested(), contest.until(last + CALM)), (None, None));
        undone(&mut contest, last + CALM, Duration::from_secs(100));
        assert!(contest.contested().is_some());
        let other = last + Duration::from_secs(300);
        assert!(!contest.wrote(Path::new("05.conflist"), other));
        assert_eq!((contest.contested(), contest.until(other)), (None, None));
    }
}
