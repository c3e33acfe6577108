//! `status`: how Weft is, in words, with what to do next. On a hub, in a member, or both where a cluster is both.
//!
//! ```text
//!  gather (a list of each kind) ──► hub::Facts, member::Facts ──► render ──► text, and whether everything is in order
//! ```
//!
//! What cannot be listed is named and left out; an object that cannot be read is named and spoils no other.

mod hub;
mod member;

use std::fmt::{Arguments, Write};

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Api, Client, Resource, api::ListParams};
use serde::de::DeserializeOwned;
use slice_crds::{GROUP, VERSION};

use crate::{
    Outcome,
    age::{self, Heartbeat},
    args::{Status, Target},
    connect,
    objects::{self, Found},
    output,
};

const NOT_INSTALLED: &str = "Weft is not installed in this cluster: `slicectl install hub`, or `slicectl join` with a token of the hub";

pub(crate) async fn run(target: &Target, status: Status) -> anyhow::Result<Outcome> {
    let client = connect::client(target).await?;
    let kinds = kinds(&client).await?;
    let is_there = |plural: &str| kinds.iter().any(|kind| kind == plural);
    let only = status.slice.as_deref();
    let mut report = Report::new(Timestamp::now());
    let mut known = false;
    // What people write stays where a hub was; what was given goes with it.
    let is_hub = is_there("sliceallocations");
    if !is_hub && !is_there("slices") {
        bail!(NOT_INSTALLED);
    }
    if is_hub {
        let facts = hub::gather(&client, &target.namespace).await;
        known |= facts.knows(only);
        hub::render(&facts, only, &mut report);
    }
    if is_there("slices") {
        let facts = member::gather(&client).await;
        known |= facts.knows(only);
        member::render(&facts, only, &mut report);
    }
    output::print(&report.text)?;
    if let Some(name) = only.filter(|_| !known) {
        bail!(
            "there is no slice {name} here, and none in namespace {}; see `slicectl get slices` on the hub",
            target.namespace
        );
    }
    Ok(if report.good { Outcome::Good } else { Outcome::Bad })
}

/// Weft's kinds that the cluster has.
async fn kinds(client: &Client) -> anyhow::Result<Vec<String>> {
    let version = format!("{GROUP}/{VERSION}");
    match client.list_api_group_resources(&version).await {
        Ok(list) => Ok(list.resources.into_iter().map(|resource| resource.name).collect()),
        Err(kube::Error::Api(status)) if status.code == 404 => bail!(NOT_INSTALLED),
        Err(error) => Err(error).with_context(|| format!("ask which kinds of {version} the cluster has")),
    }
}

/// A kind's objects, or why they cannot be listed.
type Listed<T> = Result<Vec<Found<T>>, String>;

async fn list<K>(client: &Client, namespace: Option<&str>, params: &ListParams) -> Listed<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    objects::list(client, namespace, params)
        .await
        .map_err(|error| objects::explain(&error))
}

/// A Lease, where it is there.
async fn lease(client: &Client, namespace: &str, name: &str) -> Result<Option<Lease>, String> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await;
    let found = found.with_context(|| format!("read lease {name} in namespace {namespace}"));
    found.map_err(|error| objects::explain(&error))
}

/// What is printed, and whether everything is in order.
struct Report {
    now: Timestamp,
    text: String,
    good: bool,
}

impl Report {
    const fn new(now: Timestamp) -> Self {
        Self {
            now,
            text: String::new(),
            good: true,
        }
    }

    fn line(&mut self, line: Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a String");
    }

    /// Something that is not in order.
    fn bad(&mut self, line: Arguments<'_>) {
        self.good = false;
        self.line(line);
    }

    fn gap(&mut self) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    fn ago(&self, then: Timestamp) -> String {
        age::ago(then, self.now)
    }

    /// ", observed 12 s ago", where the object has such a time.
    fn observed(&self, at: Option<Timestamp>) -> String {
        at.map(|at| format!(", observed {}", self.ago(at)))
            .unwrap_or_default()
    }

    /// A kind that could not be listed, and objects that could not be read. Who may not see everything may still see that
    /// the slices are well.
    fn unreadable<T>(&mut self, kind: &str, listed: &Listed<T>) {
        match listed {
            Err(why) => self.line(format_args!("NOT shown: {why}")),
            Ok(objects) => {
                for object in objects {
                    if let Err(why) = &object.object {
                        let namespace = match object.namespace() {
                            "" => String::new(),
                            namespace => format!("{namespace}/"),
                        };
                        self.bad(format_args!(
                            "NOT readable by this slicectl: {kind} {namespace}{}: {why}",
                            object.name()
                        ));
                    }
                }
            }
        }
    }

    /// A condition; whether it is `True`.
    fn condition(&mut self, condition: &Condition) {
        let mark = match condition.status.as_str() {
            "True" => "ok  ",
            "False" => "NOT ",
            _ => "?   ",
        };
        let since = self.now.duration_since(condition.last_transition_time.0);
        self.line(format_args!(
            "  {mark}{} ({}, for {}): {}",
            condition.type_,
            condition.reason,
            age::long(since.max(jiff::SignedDuration::ZERO)),
            condition.message
        ));
    }

    /// An operator, by the Lease that its leader renews.
    fn operator(&mut self, what: &str, lease: &Result<Option<Lease>, String>, remedy: &str) {
        let heartbeat = match lease {
            Err(why) => return self.line(format_args!("{what}  NOT shown: {why}")),
            Ok(None) => {
                return self.bad(format_args!(
                    "{what}  NOT running: no operator has ever led; {remedy}"
                ));
            }
            Ok(Some(lease)) => Heartbeat::of(lease, self.now),
        };
        let shown = heartbeat.show(self.now);
        match heartbeat.holder {
            Some(holder) if !heartbeat.overdue => self.line(format_args!("{what}  ok  led by {holder}, {shown}")),
            Some(holder) => self.bad(format_args!(
                "{what}  AWAY: {holder} led last, {shown}; what is below is as it was then; {remedy}"
            )),
            None => self.bad(format_args!(
                "{what}  AWAY: its last leader has stopped, {shown}; what is below is as it was then; {remedy}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn report() -> Report {
        Report::new("2027-01-15T08:00:00Z".parse().unwrap())
    }

    pub(super) fn lease_of(holder: Option<&str>, renewed: &str, seconds: i32) -> Lease {
        serde_json::from_value(json!({
            "spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": seconds},
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(lease: Result<Option<Lease>, String>, words: &str, good: bool) {
        let mut report = report();
        report.operator("hub", &lease, "see its pods");
        assert!(report.text.contains(words), "{}", report.text);
        assert_eq!(report.good, good);
    }

    #[test]
    fn an_operator_that_is_away_is_named_with_the_age_of_its_last_heartbeat() {
        let lease = |holder, renewed: &str| Ok(Some(lease_of(holder, renewed, 15)));
        check(
            lease(Some("weft-hub-0"), "2027-01-15T07:59:58.000000Z"),
            "ok  led by weft-hub-0, heartbeat 2 s ago",
            true,
        );
        check(
            lease(Some("weft-hub-0"), "2027-01-15T07:50:00.000000Z"),
            "AWAY: weft-hub-0 led last, heartbeat 10 min ago",
            false,
        );
        check(
            lease(None, "2027-01-15T07:50:00.000000Z"),
            "AWAY: its last leader has stopped",
            false,
        );
        check(Ok(None), "NOT running", false);
        check(Err("forbidden".to_owned()), "NOT shown: forbidden", true);
    }
}
