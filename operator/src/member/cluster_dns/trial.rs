//! Whether the cluster's DNS goes on answering with the stub in it, and what follows where it does not.
//!
//! ```text
//!  names resolve ──► written, "checked" ──► they fail for 30 s, from within five minutes on ──► taken out, and not written
//!  names fail ─────► it waits for them, two minutes ──► written, "unchecked"                    again to the same configuration
//! ```
//!
//! Every pod of a cluster needs its DNS, few need names of slices. So in doubt it is the stub that goes: also where somebody
//! else changed the configuration in these minutes. A cluster whose DNS does not answer this operator, because it does not
//! answer anybody or because a NetworkPolicy is between them, gets the stub nevertheless, and nothing is concluded from it.
//!
//! What was done stands on the ConfigMap, in one write with the text ([`Mark`]): so the next leader goes on with it, and a person
//! who takes it away has the stub written again.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use serde_json::json;
use slice_crds::{annotations::DNS_STUB, names::MEMBER_NAMESPACE};

use super::plan::{Data, Id, Plan, Request, Warning, left};
use crate::control::{Now, content::Digest};

/// How long a name may not resolve before the stub is to blame: several questions in a row were not answered.
const FAILED: Duration = Duration::from_secs(30);
/// How long after it was written: the kubelet brings a ConfigMap to its pods within two minutes, and CoreDNS looks at it every 30
/// to 45 s.
const WATCHED: SignedDuration = SignedDuration::from_mins(5);
/// How long it is waited for names to resolve before the stub is written: a CoreDNS that restarts does within that.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What k3s writes into CoreDNS's ConfigMap whenever a node comes or goes.
const NODE_HOSTS: &str = "NodeHosts";
/// Characters of a cause that are written down.
const CAUSE: usize = 90;

/// What the cluster's DNS answers to this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// It was not asked yet.
    #[default]
    Unknown,
    Resolving,
    /// Every question since then has failed; why the first one did.
    Failing {
        since: Duration,
        why: String,
    },
}

impl Answers {
    /// Takes note of a question's end.
    pub fn note(&mut self, result: Result<(), String>, now: Now) {
        match (result, &self) {
            (Ok(()), _) => *self = Self::Resolving,
            (Err(_), Self::Failing { .. }) => {}
            (Err(why), _) => {
                let why = why.chars().take(CAUSE).collect();
                *self = Self::Failing {
                    since: now.clock,
                    why,
                };
            }
        }
    }

    /// For how long every question has failed, and why the first one did.
    fn failing(&self, now: Now) -> Option<(Duration, &str)> {
        match self {
            Self::Failing { since, why } => Some((now.clock.saturating_sub(*since), why)),
            _ => None,
        }
    }
}

/// What was done to a ConfigMap last: the value of [`DNS_STUB`] on it. Times are whole minutes, so that what is to be written
/// does not change with every look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    Written {
        at: Timestamp,
        /// Names resolved before.
        checked: bool,
    },
    TakenOut {
        at: Timestamp,
        /// The configuration that failed with the stub in it.
        of: String,
        why: String,
    },
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written { at, checked: true } => write!(f, "written {at} checked"),
            Self::Written { at, checked: false } => write!(f, "written {at} unchecked"),
            Self::TakenOut { at, of, why } => write!(f, "taken-out {at} {of} {why}"),
        }
    }
}

impl FromStr for Mark {
    type Err = ();

    /// What somebody else has made of it counts as no mark.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().ok_or(());
        let (what, at) = (word()?, word()?.parse().map_err(|_| ())?);
        match (what, word()?) {
            ("written", "checked") => Ok(Self::Written { at, checked: true }),
            ("written", "unchecked") => Ok(Self::Written { at, checked: false }),
            ("taken-out", of) => Ok(Self::TakenOut {
                at,
                of: of.to_owned(),
                why: words.next().unwrap_or_default().chars().take(CAUSE).collect(),
            }),
            _ => Err(()),
        }
    }
}

/// What is known beside the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    pub marks: &'a BTreeMap<Id, Mark>,
    pub answers: &'a Answers,
    pub now: Now,
}

impl Plan {
    /// The plan, with what the cluster's DNS made of the stub: what is written is marked, what broke it is taken out, what may
    /// break it waits.
    #[must_use]
    pub fn tried(mut self, request: &Request<'_>, trial: &Trial<'_>) -> Self {
        let configuration = digest(request);
        let minute = minute_of(trial.now.wall);
        self.forwards |= request.there.iter().any(|(id, data)| has_stub(request, id, data));
        let planned = std::mem::take(&mut self.data);
        for (id, data) in planned {
            let there = &request.there[&id];
            let changes = data.iter().any(|(key, text)| there.get(key) != text.as_ref());
            if !changes || !brings_stub(request, &id, &data) {
                self.data.insert(id, data);
                continue;
            }
            // One that is there and only corrected may be what is wrong: it does not wait.
            let is_there = has_stub(request, &id, there);
            let checked = match trial.may_write(&id, &configuration, is_there) {
                Ok(checked) => checked,
                Err(warning) => {
                    self.warnings.extend(warning);
                    continue;
                }
            };
            self.marks
                .insert(id.clone(), Mark::Written { at: minute, checked });
            self.data.insert(id, data);
        }
        for (id, mark) in trial.marks {
            let Some(there) = request.there.get(id).filter(|there| has_stub(request, id, there)) else {
                continue;
            };
            let Some((failed, why)) = trial.answers.failing(trial.now) else {
                continue;
            };
            let Mark::Written { at, checked } = mark else {
                continue;
            };
            if !*checked {
                self.unchecked = Some(format!(
                    "nobody knows whether the cluster's DNS goes on answering with it, because it did not answer before either: {why}"
                ));
                continue;
            }
            let begun = trial.now.wall - SignedDuration::try_from(failed).unwrap_or_default();
            // The clock that it was written by may be another.
            if failed < FAILED || begun.duration_since(*at).abs() > WATCHED {
                continue;
            }
            let mark = Mark::TakenOut {
                at: minute,
                of: configuration.clone(),
                why: why.to_owned(),
            };
            self.warnings.extend(taken_out(id, &mark));
            self.data.insert(id.clone(), left(id, there, Some(request.dns)));
            self.marks.insert(id.clone(), mark);
        }
        self
    }
}

impl Trial<'_> {
    /// Whether the stub may be written, and names resolve at that moment; else what there is to say.
    fn may_write(&self, id: &Id, configuration: &str, is_there: bool) -> Result<bool, Option<Warning>> {
        if is_there {
            return Ok(*self.answers == Answers::Resolving);
        }
        let mark = self.marks.get(id);
        let taken_out_of = match mark {
            Some(Mark::TakenOut { of, .. }) => Some(of),
            _ => None,
        };
        if taken_out_of.is_some_and(|of| of == configuration) {
            return Err(mark.and_then(|mark| taken_out(id, mark)));
        }
        let (failed, why) = match self.answers {
            Answers::Resolving => return Ok(true),
            Answers::Unknown => (self.now.clock, None),
            Answers::Failing { since, why } => (self.now.clock.saturating_sub(*since), Some(why)),
        };
        // Where it has answered once and failed with the stub, nobody is between it and the operator: it has to answer again.
        if failed >= PATIENCE && taken_out_of.is_none() {
            return Ok(false);
        }
        let until = match taken_out_of {
            Some(_) => String::new(),
            None => format!(", but not for more than {} s", PATIENCE.as_secs()),
        };
        Err(why.map(|why| Warning {
            config: Some(id.clone()),
            message: format!(
                "names of slices do not resolve yet: the cluster's DNS does not answer the operator ({why}), and ConfigMap {}/{} \
                 waits for it{until}. See `kubectl -n kube-system get pods`, and whether a NetworkPolicy keeps the pods of \
                 {MEMBER_NAMESPACE} from it",
                id.0, id.1
            ),
        }))
    }
}

fn taken_out(id: &Id, mark: &Mark) -> Option<Warning> {
    let Mark::TakenOut { at, why, .. } = mark else {
        return None;
    };
    let (namespace, name) = id;
    Some(Warning {
        config: Some(id.clone()),
        message: format!(
            "names of slices do not resolve: with the stub in ConfigMap {namespace}/{name} the cluster's DNS did not answer any more \
             ({why}), so it was taken out at {at}. See what CoreDNS logs; it is written again when the configuration changes, or \
             after `kubectl -n {namespace} annotate configmap {name} {DNS_STUB}-`"
        ),
    })
}

fn has_stub(request: &Request<'_>, id: &Id, data: &Data) -> bool {
    !left(id, data, Some(request.dns)).is_empty()
}

fn brings_stub(request: &Request<'_>, id: &Id, wanted: &BTreeMap<String, Option<String>>) -> bool {
    let wanted = wanted
        .iter()
        .filter_map(|(key, text)| Some((key.clone(), text.clone()?)));
    has_stub(request, id, &wanted.collect())
}

/// The whole configuration without what is ours.
fn digest(request: &Request<'_>) -> String {
    let own = |(id, data): (&Id, &Data)| {
        let mut data = data.clone();
        data.remove(NODE_HOSTS);
        for (key, text) in left(id, &data, Some(request.dns)) {
            match text {
                Some(text) => data.insert(key, text),
                None => data.remove(&key),
            };
        }
        json!([id.0, id.1, data])
    };
    let all: Vec<_> = request.there.iter().map(own).collect();
    Digest::of(&[&json!(all)]).text()
}

fn minute_of(time: Timestamp) -> Timestamp {
    let round = TimestampRound::new()
        .smallest(Unit::Minute)
        .mode(RoundMode::Trunc);
    time.round(round).unwrap_or(time)
}
