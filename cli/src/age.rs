//! Ages of what was observed, and whether a Lease is still renewed. Pure: the clock is passed in.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

/// Clocks of two machines agree to within this.
const CLOCKS: SignedDuration = SignedDuration::from_secs(5);
/// How much later than it promises a Lease may be renewed before its holder counts as away: a slow API server, and clocks.
const SLACK: SignedDuration = SignedDuration::from_secs(15);

/// "12 s ago", "3 min ago"; "in 5 min" for what is to come.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let age = now.duration_since(then);
    if age < -CLOCKS {
        format!("in {}", long(-age))
    } else {
        format!("{} ago", long(age.max(SignedDuration::ZERO)))
    }
}

/// "12 s", "3 min".
pub(crate) fn long(age: SignedDuration) -> String {
    let (number, unit) = scale(age);
    let unit = if unit == "m" { "min" } else { unit };
    format!("{number} {unit}")
}

/// As columns have it: "12s", "3m"; "in 5m" for what is to come, "-" where there is no time.
pub(crate) fn column(then: Option<Timestamp>, now: Timestamp) -> String {
    let Some(then) = then else { return "-".to_owned() };
    let age = now.duration_since(then);
    let (number, unit) = scale(age.abs());
    if age < -CLOCKS {
        format!("in {number}{unit}")
    } else {
        format!("{number}{unit}")
    }
}

/// Two digits of precision at least, as kubectl has it.
fn scale(age: SignedDuration) -> (i64, &'static str) {
    match age.as_secs() {
        seconds @ ..120 => (seconds, "s"),
        seconds @ ..7200 => (seconds / 60, "m"),
        seconds @ ..172_800 => (seconds / 3600, "h"),
        seconds => (seconds / 86400, "d"),
    }
}

/// What a Lease shows of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// None where it was given back.
    pub(crate) holder: Option<String>,
    pub(crate) renewed: Option<Timestamp>,
    /// It is later than it promised.
    pub(crate) overdue: bool,
}

impl Heartbeat {
    /// Judged by the clock of this machine; the operators judge by when they saw it change.
    pub(crate) fn of(lease: &Lease, now: Timestamp) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let renewed = spec.renew_time.map(|time| time.0);
        let promised = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or_default().into());
        Self {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            renewed,
            overdue: renewed.is_none_or(|renewed| now.duration_since(renewed) > promised + SLACK),
        }
    }

    /// "heartbeat 12 s ago".
    pub(crate) fn show(&self, now: Timestamp) -> String {
        let Some(renewed) = self.renewed else {
            return "no heartbeat yet".to_owned();
        };
        let ahead = renewed.duration_since(now);
        if ahead > CLOCKS {
            format!("heartbeat dated {} ahead: the clocks differ", long(ahead))
        } else {
            format!("heartbeat {}", ago(renewed, now))
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn ages_are_read_as_people_say_them() {
        let check = |seconds: i64, sentence: &str, cell: &str| {
            assert_eq!(ago(at(-seconds), at(0)), sentence);
            assert_eq!(column(Some(at(-seconds)), at(0)), cell);
        };
        check(0, "0 s ago", "0s");
        check(119, "119 s ago", "119s");
        check(180, "3 min ago", "3m");
        check(7300, "2 h ago", "2h");
        check(200_000, "2 d ago", "2d");
        check(-3, "0 s ago", "3s");
        check(-3600, "in 60 min", "in 60m");
        assert_eq!(column(None, at(0)), "-");
    }

    #[test]
    fn a_lease_is_overdue_when_its_promise_and_some_slack_are_over() {
        let lease = Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some("weft-hub-0".into()),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(at(0))),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        assert!(!Heartbeat::of(&lease, at(30)).overdue);
        assert!(Heartbeat::of(&lease, at(31)).overdue);
        assert_eq!(Heartbeat::of(&lease, at(31)).show(at(31)), "heartbeat 31 s ago");
        assert!(
            Heartbeat::of(&lease, at(-60))
                .show(at(-60))
                .contains("60 s ahead")
        );
        let empty = Heartbeat::of(&Lease::default(), at(0));
        assert!(empty.overdue && empty.show(at(0)) == "no heartbeat yet");
    }
}
