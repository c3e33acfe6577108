//! Whether names of slices resolve as a pod of this node sees it: by the cluster's DNS, which forwards the zone to slice DNS.
//!
//! ```text
//!  a pod's network namespace ── SOA of the zone ──► the pod's nameserver ──► slice DNS          all is well
//!                           where that fails:  ├──► the same, for the API server's name         the cluster's DNS
//!                                              └──► slice DNS itself                            slice DNS, or between the two
//! ```
//!
//! It is asked from namespaces of attached pods, since their way to the cluster's DNS need not be the node's; from the node's own
//! where there is no such pod. The nameserver is what the kubelet tells every pod: the agent's own `/etc/resolv.conf` has it
//! (`dnsPolicy: ClusterFirstWithHostNet`). Deliberately not here: sockets, namespaces and the clock, which are [`task`]'s; whether
//! it is asked at all, which the cluster operator says (`spec.sliceDns` of the SliceNode).

pub mod task;

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use slice_crds::{
    conditions::{self, NAMES_RESOLVE, Verdict, reason},
    names::{MEMBER_NAMESPACE, SLICE_ZONE},
};
use slice_runtime::resolve::{Answer, Code};

/// Pods that it is asked from in one round. One that a NetworkPolicy keeps from DNS is no trouble of the node.
pub const MOST_ASKERS: usize = 2;
/// Rounds that must have failed, however long one takes.
const ROUNDS: u32 = 2;

/// How often, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two rounds.
    pub every: Duration,
    /// By how much more, at random: nodes that start together do not go on together.
    pub jitter: Duration,
    /// How long for one answer is waited.
    pub patience: Duration,
    /// How long it fails before that is said.
    pub doubt: Duration,
    /// The same where it has never been seen to resolve.
    pub first_doubt: Duration,
}

impl Default for Pace {
    /// A thousand nodes ask the cluster's DNS 70 times a second. A CoreDNS takes two minutes and more to take up a new
    /// configuration.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(12),
            jitter: Duration::from_secs(6),
            patience: Duration::from_secs(2),
            doubt: Duration::from_secs(30),
            first_doubt: Duration::from_secs(180),
        }
    }
}

/// What the agent wants to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Local {
    /// Where slice DNS answers in the cluster; `None` where nothing is asked.
    pub slice_dns: Option<IpAddr>,
    /// Pods of slices on this node, [`MOST_ASKERS`] at most.
    pub pods: Vec<Pod>,
    /// What an earlier agent reported: so it is until it is seen to be otherwise.
    pub before: Option<Verdict>,
}

/// A pod that it is asked from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub netns: PathBuf,
}

/// What is reported; nothing where nothing is known.
pub type View = Option<Verdict>;

/// What came of a question.
pub type Reply = Result<Answer, String>;

/// What came of one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// This server resolves them.
    Resolves(IpAddr),
    Fails(Fault),
    /// There is nobody to ask.
    NoServer,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub part: Part,
    /// The pod's nameserver.
    pub server: IpAddr,
    pub slice_dns: IpAddr,
    /// What it said for the zone.
    pub said: String,
    /// Namespace and name of the pod that asked; the node itself where there is none.
    pub pod: Option<(String, String)>,
}

/// Which part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The cluster's DNS answers nothing, also not for the cluster's own names.
    ClusterDns,
    /// It answers, and does not know the zone.
    Zone,
    /// Slice DNS answers nobody.
    SliceDns,
    /// Slice DNS answers the asker and not the cluster's DNS.
    Between,
    /// The node itself is told what its pods are not.
    Pods,
}

/// Which part is to blame where the zone was not answered: by what else was. `api` is absent where the cluster's domain is unknown.
pub fn blame(zone: &Reply, api: Option<&Reply>, slice_dns: &Reply) -> Part {
    match (api, zone, slice_dns) {
        (Some(Err(_) | Ok(Answer::Code(_))), ..) => Part::ClusterDns,
        (_, Ok(Answer::NoData | Answer::Code(Code::NxDomain | Code::Refused)), _) => Part::Zone,
        (_, _, Ok(Answer::Records)) => Part::Between,
        // Nothing tells the cluster's DNS from what is behind it.
        (None, Err(_), _) => Part::ClusterDns,
        _ => Part::SliceDns,
    }
}

/// A reply in words.
pub fn words(reply: &Reply) -> String {
    match reply {
        Ok(Answer::Records) => "it is answered".to_owned(),
        Ok(Answer::NoData) => "it has no such record".to_owned(),
        Ok(Answer::Code(code)) => code.to_string(),
        Err(why) => why.clone(),
    }
}

/// What an earlier agent reported, by its condition.
pub fn recorded(conditions: &[Condition]) -> View {
    let found = conditions::find(conditions, NAMES_RESOLVE)?;
    let reasons = [
        Part::ClusterDns,
        Part::Zone,
        Part::SliceDns,
        Part::Between,
        Part::Pods,
    ];
    let reason = reasons
        .into_iter()
        .map(Part::reason)
        .find(|reason| *reason == found.reason);
    match (found.status.as_str(), reason) {
        ("True", _) => Some(Verdict::yes(
            NAMES_RESOLVE,
            reason::NAMES_RESOLVE,
            found.message.clone(),
        )),
        ("False", Some(reason)) => Some(Verdict::no(NAMES_RESOLVE, reason, found.message.clone())),
        _ => None,
    }
}

impl Part {
    const fn reason(self) -> &'static str {
        match self {
            Self::ClusterDns => reason::CLUSTER_DNS_FAILS,
            Self::Zone => reason::ZONE_UNKNOWN,
            Self::SliceDns => reason::SLICE_DNS_FAILS,
            Self::Between => reason::FORWARDING_FAILS,
            Self::Pods => reason::PODS_CUT_OFF,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            server,
            slice_dns,
            said,
            pod,
            ..
        } = self;
        let who = match pod {
            Some((namespace, name)) => format!("pod {namespace}/{name}"),
            None => "the node".to_owned(),
        };
        let ask = |server: &IpAddr| match pod {
            Some((namespace, name)) => {
                format!("`kubectl -n {namespace} exec {name} -- nslookup -type=soa {SLICE_ZONE}. {server}`")
            }
            None => format!("`dig @{server} {SLICE_ZONE} SOA` on the node"),
        };
        match self.part {
            Part::ClusterDns => write!(
                f,
                "the cluster's DNS, {server} UDP port 53, does not answer {who} ({said}), also not for the cluster's own names: see its \
                 pods, `kubectl -n kube-system get pods -l k8s-app=kube-dns`, and try {}",
                ask(server)
            ),
            Part::Zone => write!(
                f,
                "the cluster's DNS, {server} UDP port 53, answers {who} and does not know {SLICE_ZONE} ({said}): ZoneForwarded of the \
                 Cluster says whether its configuration forwards that to {slice_dns}, and a CoreDNS without the plugin reload \
                 must be restarted; try {}",
                ask(server)
            ),
            Part::SliceDns => write!(
                f,
                "slice DNS, {slice_dns} UDP port 53, answers neither {who} nor the cluster's DNS {server} ({said}): see its pods, \
                 `kubectl -n {MEMBER_NAMESPACE} get pods -l app.kubernetes.io/name=weft-dns`, and try {}",
                ask(slice_dns)
            ),
            Part::Between => write!(
                f,
                "the cluster's DNS, {server} UDP port 53, gets no answer from slice DNS, {slice_dns} UDP port 53, which answers {who} \
                 ({said}): a NetworkPolicy of kube-system or {MEMBER_NAMESPACE} may be between them; try {}",
                ask(server)
            ),
            Part::Pods => write!(
                f,
                "the cluster's DNS, {server} UDP port 53, does not answer {who} ({said}), and answers the node: a NetworkPolicy may \
                 keep its pods from DNS; try {}",
                ask(server)
            ),
        }
    }
}

/// What is known so far. One round says little: a datagram is lost, a CoreDNS starts again.
#[derive(Clone, Debug)]
pub struct State {
    pace: Pace,
    /// It was seen to resolve, by this agent or the one before.
    resolved: bool,
    /// Since when every round has failed, and how many.
    failing: Option<(Duration, u32)>,
    said: View,
}

impl State {
    pub fn new(pace: Pace, before: View) -> Self {
        let resolved = before.as_ref().is_some_and(|before| before.status == Some(true));
        Self {
            pace,
            resolved,
            failing: None,
            said: before,
        }
    }

    /// Takes note of a round that ended at `now`, of whichever clock.
    pub fn note(&mut self, finding: &Finding, now: Duration) -> &View {
        match finding {
            Finding::Resolves(server) => {
                (self.resolved, self.failing) = (true, None);
                let text = format!("the cluster's DNS, {server}, resolves names of slices");
                self.said = Some(Verdict::yes(NAMES_RESOLVE, reason::NAMES_RESOLVE, text));
            }
            Finding::NoServer => {
                self.failing = None;
                let text = "/etc/resolv.conf of the agent names no server, so nothing is known: its pod must have dnsPolicy \
                            ClusterFirstWithHostNet";
                self.said = Some(Verdict::unknown(NAMES_RESOLVE, reason::PENDING, text));
            }
            Finding::Fails(fault) => {
                let (since, rounds) = self.failing.get_or_insert((now, 0));
                *rounds += 1;
                let doubt = match self.resolved {
                    true => self.pace.doubt,
                    false => self.pace.first_doubt,
                };
                let is_so = *rounds >= ROUNDS && now.saturating_sub(*since) >= doubt;
                let said = self.said.as_ref().filter(|said| said.status == Some(false));
                // The pod that asks, and what exactly it is told, change from round to round: that is no news.
                let is_said = said.is_some_and(|said| said.reason == fault.part.reason());
                if (is_so || said.is_some()) && !is_said {
                    let text = fault.to_string();
                    self.said = Some(Verdict::no(NAMES_RESOLVE, fault.part.reason(), text));
                }
            }
        }
        &self.said
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const SILENT: &str = "it does not answer";

    fn silent() -> Reply {
        Err(SILENT.to_owned())
    }

    fn code(code: Code) -> Reply {
        Ok(Answer::Code(code))
    }

    #[test]
    fn the_part_that_fails_is_told_by_what_else_answers() {
        let well = Ok(Answer::Records);
        let check = |zone: Reply, api: Option<Reply>, slice_dns: &Reply, wanted| {
            assert_eq!(blame(&zone, api.as_ref(), slice_dns), wanted);
        };
        check(silent(), Some(silent()), &well, Part::ClusterDns);
        check(
            code(Code::ServFail),
            Some(code(Code::ServFail)),
            &silent(),
            Part::ClusterDns,
        );
        check(code(Code::NxDomain), Some(well.clone()), &well, Part::Zone);
        check(code(Code::Refused), Some(well.clone()), &silent(), Part::Zone);
        check(Ok(Answer::NoData), None, &well, Part::Zone);
        check(
            code(Code::ServFail),
            Some(well.clone()),
            &silent(),
            Part::SliceDns,
        );
        check(
            silent(),
            Some(well.clone()),
            &code(Code::ServFail),
            Part::SliceDns,
        );
        check(code(Code::ServFail), Some(well.clone()), &well, Part::Between);
        check(silent(), Some(Ok(Answer::NoData)), &well, Part::Between);
        check(silent(), None, &silent(), Part::ClusterDns);
        check(code(Code::ServFail), None, &silent(), Part::SliceDns);
    }

    fn fault(part: Part, of_pod: bool) -> Fault {
        Fault {
            part,
            server: [10, 96, 0, 10].into(),
            slice_dns: [10, 96, 7, 7].into(),
            said: SILENT.to_owned(),
            pod: of_pod.then(|| ("shop".to_owned(), "web-0".to_owned())),
        }
    }

    fn check(part: Part, of_pod: bool, wanted: &Expect) {
        wanted.assert_eq(&fault(part, of_pod).to_string());
    }

    #[test]
    fn what_is_wrong_is_said_with_the_command_to_try() {
        check(
            Part::ClusterDns,
            true,
            &expect![
                "the cluster's DNS, 10.96.0.10 UDP port 53, does not answer pod shop/web-0 (it does not answer), also not for the cluster's own names: see its pods, `kubectl -n kube-system get pods -l k8s-app=kube-dns`, and try `kubectl -n shop exec web-0 -- nslookup -type=soa slice.local. 10.96.0.10`"
            ],
        );
        check(
            Part::Zone,
            false,
            &expect![
                "the cluster's DNS, 10.96.0.10 UDP port 53, answers the node and does not know slice.local (it does not answer): ZoneForwarded of the Cluster says whether its configuration forwards that to 10.96.7.7, and a CoreDNS without the plugin reload must be restarted; try `dig @10.96.0.10 slice.local SOA` on the node"
            ],
        );
        check(
            Part::SliceDns,
            true,
            &expect![
                "slice DNS, 10.96.7.7 UDP port 53, answers neither pod shop/web-0 nor the cluster's DNS 10.96.0.10 (it does not answer): see its pods, `kubectl -n weft-system get pods -l app.kubernetes.io/name=weft-dns`, and try `kubectl -n shop exec web-0 -- nslookup -type=soa slice.local. 10.96.7.7`"
            ],
        );
        check(
            Part::Between,
            true,
            &expect![
                "the cluster's DNS, 10.96.0.10 UDP port 53, gets no answer from slice DNS, 10.96.7.7 UDP port 53, which answers pod shop/web-0 (it does not answer): a NetworkPolicy of kube-system or weft-system may be between them; try `kubectl -n shop exec web-0 -- nslookup -type=soa slice.local. 10.96.0.10`"
            ],
        );
        check(
            Part::Pods,
            true,
            &expect![
                "the cluster's DNS, 10.96.0.10 UDP port 53, does not answer pod shop/web-0 (it does not answer), and answers the node: a NetworkPolicy may keep its pods from DNS; try `kubectl -n shop exec web-0 -- nslookup -type=soa slice.local. 10.96.0.10`"
            ],
        );
    }

    /// Rounds at these seconds, each of which resolves or fails, and what is said after each.
    #[track_caller]
    fn check_rounds(before: Option<bool>, rounds: &[(u64, bool, Option<bool>)]) {
        let before = before.map(|well| match well {
            true => Verdict::yes(NAMES_RESOLVE, reason::NAMES_RESOLVE, "before"),
            false => Verdict::no(NAMES_RESOLVE, reason::ZONE_UNKNOWN, "before"),
        });
        let mut state = State::new(Pace::default(), before);
        for (at, resolves, wanted) in rounds {
            let finding = match resolves {
                true => Finding::Resolves([10, 96, 0, 10].into()),
                false => Finding::Fails(fault(Part::Zone, true)),
            };
            let said = state.note(&finding, Duration::from_secs(*at));
            assert_eq!(said.as_ref().and_then(|said| said.status), *wanted, "at {at} s");
        }
    }

    #[test]
    fn what_fails_for_half_a_minute_is_said_and_what_resolves_at_once() {
        let well = Some(true);
        check_rounds(
            None,
            &[
                (0, true, well),
                (15, false, well),
                (30, false, well),
                (44, false, well),
                (45, false, Some(false)),
                (60, true, well),
                (75, false, well),
            ],
        );
        // One round may take as long.
        check_rounds(
            None,
            &[(0, true, well), (50, false, well), (85, false, Some(false))],
        );
    }

    #[test]
    fn what_has_never_resolved_has_time_to_begin() {
        check_rounds(
            None,
            &[(0, false, None), (170, false, None), (180, false, Some(false))],
        );
        check_rounds(
            None,
            &[
                (0, false, None),
                (170, true, Some(true)),
                (180, false, Some(true)),
            ],
        );
    }

    #[test]
    fn what_the_agent_before_said_stays_until_it_is_otherwise() {
        check_rounds(Some(false), &[(0, false, Some(false)), (15, true, Some(true))]);
        check_rounds(Some(true), &[(0, false, Some(true)), (30, false, Some(false))]);
    }

    #[test]
    fn what_is_said_changes_with_the_fault_and_with_nothing_else() {
        let mut state = State::new(
            Pace::default(),
            Some(Verdict::yes(NAMES_RESOLVE, reason::NAMES_RESOLVE, "")),
        );
        let mut note = |fault: Fault, at| {
            let said = state.note(&Finding::Fails(fault), Duration::from_secs(at));
            said.clone().unwrap()
        };
        note(fault(Part::Zone, true), 0);
        let first = note(fault(Part::Zone, true), 30);
        assert_eq!((first.status, first.reason), (Some(false), reason::ZONE_UNKNOWN));
        assert_eq!(note(fault(Part::Zone, false), 45), first);
        assert_eq!(
            note(fault(Part::SliceDns, true), 60).reason,
            reason::SLICE_DNS_FAILS
        );
        assert_eq!(
            *state
                .note(&Finding::NoServer, Duration::from_secs(75))
                .as_ref()
                .map(|said| &said.status)
                .unwrap(),
            None
        );
    }
}
