//! Events on the users' own objects: one for each change for the worse, and one when it is over.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};

/// Notices that wait for an API server; more are dropped and counted. A condition says the same, and stays.
const MOST: usize = 256;

/// An event to be recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub regarding: ObjectReference,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// Notices that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Notices {
    queue: VecDeque<Notice>,
    dropped: u64,
    /// What was announced of an object last, by condition: status, reason, message.
    announced: BTreeMap<(String, String), (String, String, String)>,
}

impl Notices {
    pub fn push(&mut self, notice: Notice) {
        if self.queue.len() == MOST {
            self.dropped += 1;
        } else {
            self.queue.push_back(notice);
        }
    }

    pub fn pop(&mut self) -> Option<Notice> {
        self.queue.pop_front()
    }

    /// How many did not fit since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Announces what has changed in conditions that users act on. `before` is what the object content already: a process
    /// that starts does not say it again.
    pub fn conditions(&mut self, regarding: &ObjectReference, before: &[Condition], after: &[Condition]) {
        let object = regarding.uid.clone().unwrap_or_default();
        for condition in after {
            let key = (object.clone(), condition.type_.clone());
            let content = |condition: &Condition| {
                (
                    condition.status.clone(),
                    condition.reason.clone(),
                    condition.message.clone(),
                )
            };
            let known = self.announced.get(&key).cloned().or_else(|| {
                let old = before.iter().find(|old| old.type_ == condition.type_)?;
                Some(content(old))
            });
            let new = content(condition);
            let is_news = match &known {
                Some(known) => *known != new && (new.0 == "False" || known.0 != new.0),
                None => new.0 == "False",
            };
            if is_news {
                self.push(Notice {
                    regarding: regarding.clone(),
                    warning: new.0 == "False",
                    reason: new.1.clone(),
                    message: format!("{}={}: {}", condition.type_, new.0, new.2),
                });
            }
            self.announced.insert(key, new);
        }
    }

    /// The object is gone.
    pub fn forget(&mut self, uid: &str) {
        self.announced.retain(|(object, _), _| object != uid);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn condition(status: &str, message: &str) -> Condition {
        Condition {
            type_: "Accepted".into(),
            status: status.into(),
            reason: "R".into(),
            message: message.into(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn news_is_announced_once() {
        let (mut notices, object) = (Notices::default(), ObjectReference::default());
        let mut announced = |before: &[Condition], after: &[Condition]| {
            notices.conditions(&object, before, after);
            std::iter::from_fn(|| notices.pop())
                .map(|notice| notice.message)
                .collect::<Vec<_>>()
        };
        let (bad, worse, good) = (
            condition("False", "x"),
            condition("False", "y"),
            condition("True", "ok"),
        );
        let (bad, worse, good) = ([bad], [worse], [good]);
        assert!(announced(&[], &good).is_empty());
        assert_eq!(announced(&[], &bad), ["Accepted=False: x"]);
        assert!(announced(&[], &bad).is_empty());
        assert_eq!(announced(&[], &worse), ["Accepted=False: y"]);
        assert_eq!(announced(&[], &good), ["Accepted=True: ok"]);
        let mut restarted = Notices::default();
        restarted.conditions(&object, &worse, &worse);
        assert_eq!(restarted.pop(), None);
    }
}
