//! Corefiles as platforms have them, and what becomes of them.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use expect_test::{Expect, expect};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use slice_crds::names;

use super::{
    Answers, Config, ConfigMaps, Data, Mark, OPENSHIFT, Plan, Request, Trial, corefile, left, plan,
    stub::{own, with, without},
};
use crate::{
    control::{Change, Now},
    member::{Event, Input, Member, Settings, Side, Source},
};

const KUBEADM: &str = include_str!("corefiles/kubeadm");
const K3S: &str = include_str!("corefiles/k3s");
const RKE2: &str = include_str!("corefiles/rke2");
const AKS: &str = include_str!("corefiles/aks");
const OPENSHIFT_DNS: &str = include_str!("corefiles/openshift");
const GARDENER: &str = include_str!("corefiles/gardener");
const NODE_LOCAL: &str = include_str!("corefiles/node-local");
const ALL: [&str; 7] = [KUBEADM, K3S, RKE2, AKS, OPENSHIFT_DNS, GARDENER, NODE_LOCAL];

const BLOCK: &str = "slice.local:53 {\n    errors\n    forward . 10.96.7.7\n}\n";

fn dns() -> IpAddr {
    [10, 96, 7, 7].into()
}

/// What is put behind a Corefile, or why nothing is.
#[track_caller]
fn check(before: &str, wanted: Expect) {
    match with(before, dns()) {
        Err(trouble) => wanted.assert_eq(&trouble.to_string()),
        Ok(after) => {
            let added = after.strip_prefix(before).expect("what was there stays in front");
            wanted.assert_eq(added);
            assert_eq!(with(&after, dns()).as_ref(), Ok(&after), "it is put in once");
            assert_eq!(without(&after, None), before);
            // A tool drops the comments: the block stays, and is known by what it does.
            let bare = uncommented(&after);
            assert_eq!(
                with(&bare, dns()).as_ref(),
                Ok(&bare),
                "no second block, and no war"
            );
            assert_eq!(without(&bare, Some(dns())), uncommented(before));
            assert_eq!(without(&bare, None), bare, "nobody knows whose it is");
        }
    }
}

/// Without comments, and the lines that they leave empty.
fn uncommented(text: &str) -> String {
    let lines = text
        .split_inclusive('\n')
        .filter(|line| !line.trim_start().starts_with('#'));
    lines.collect()
}

#[test]
fn kubeadm() {
    check(
        KUBEADM,
        expect![[r"
            # weft begin: names of slices; kept by weft-operator, removed when Weft is uninstalled
            slice.local:53 {
                errors
                forward . 10.96.7.7
            }
            # weft end
        "]],
    );
}

#[test]
fn rke2() {
    let after = with(RKE2, dns()).unwrap();
    assert!(after.contains(BLOCK), "{after}");
}

#[test]
fn where_the_clusters_own_block_listens_there_it_listens_too() {
    check(
        OPENSHIFT_DNS,
        expect![[r"
            # weft begin: names of slices; kept by weft-operator, removed when Weft is uninstalled
            slice.local:5353 {
                errors
                forward . 10.96.7.7
            }
            # weft end
        "]],
    );
    assert!(with(GARDENER, dns()).unwrap().contains("\nslice.local:8053 {\n"));
    let line = |keys: &str| {
        let after = with(&format!("{keys} {{\n    kubernetes cluster.local\n}}\n"), dns()).unwrap();
        let line = after.lines().find(|line| line.contains("slice.local")).unwrap();
        line.to_owned()
    };
    assert_eq!(line("."), "slice.local {");
    assert_eq!(
        line("dns://.:53 tls://.:853 https://.:443"),
        "dns://slice.local:53 {"
    );
    assert_eq!(
        line("cluster.local:1053 in-addr.arpa:1053 .:53"),
        "slice.local:1053 slice.local:53 {"
    );
    assert_eq!(line(". cluster.local:53"), "slice.local {");
    assert_eq!(line(".:{$DNS_PORT}"), "slice.local:{$DNS_PORT} {");
}

#[test]
fn what_listens_elsewhere_and_is_not_the_clusters_own_does_not_matter() {
    let two = "example.org:5300 {\n    whoami\n}\n.:53 {\n}\n";
    assert!(with(two, dns()).unwrap().contains("\nslice.local:53 {\n"));
    let snippet = "(base) {\n    kubernetes cluster.local\n}\ncluster.local:1053 {\n    import base\n}\n";
    assert!(with(snippet, dns()).unwrap().contains("\nslice.local:1053 {\n"));
}

#[test]
fn node_local_is_bound_as_its_own_blocks_are() {
    check(
        NODE_LOCAL,
        expect![[r"
            # weft begin: names of slices; kept by weft-operator, removed when Weft is uninstalled
            slice.local:53 {
                errors
                bind 169.254.20.10 10.96.0.10
                forward . 10.96.7.7
            }
            # weft end
        "]],
    );
}

#[test]
fn what_cannot_be_read_or_answered_is_left_alone() {
    check(
        ".:53 {\n    errors\n",
        expect!["it cannot be read: line 1: a brace that is not closed"],
    );
    check(
        "example.org:53 {\n    errors\n}\n",
        expect![
            "no block in it serves the root or has the plugin kubernetes, so nobody knows on which port it is asked"
        ],
    );
    check(
        "tls://.:853 {\n}\n",
        expect!["its blocks for the cluster's names take no plain DNS"],
    );
    check(
        ".:53 {\n    bind eth0 {\n        except 10.0.0.1\n    }\n}\n",
        expect!["its blocks for the cluster's names are bound to different addresses, or bound with options"],
    );
    check(
        ".:53 {\n    bind 10.0.0.1\n}\ncluster.local:53 {\n    kubernetes cluster.local\n}\n",
        expect!["its blocks for the cluster's names are bound to different addresses, or bound with options"],
    );
}

#[test]
fn somebody_elses_block_for_the_zone_stays() {
    let elsewhere = "a block on line 3 that Weft has not made serves slice.local and forwards elsewhere";
    for block in [
        "slice.local:53 {\n    forward . 10.0.0.1\n}\n",
        "slice.local:53 {\n    hosts /etc/hosts\n}\n",
        "slice.local:53 example.org:53 {\n    forward . 10.96.7.7\n}\n",
        "SLICE.local. {\n    errors\n}\n",
    ] {
        let text = format!(".:53 {{\n}}\n{block}");
        assert_eq!(with(&text, dns()).unwrap_err().to_string(), elsewhere);
        assert_eq!(without(&text, Some(dns())), text);
    }
    // Asked in another way, it is no second one.
    let tls = ".:53 {\n}\ntls://slice.local:853 {\n    forward . 10.0.0.1\n}\n";
    assert!(with(tls, dns()).unwrap().ends_with("# weft end\n"));
}

#[test]
fn it_follows_its_address_and_the_port_and_is_one_again() {
    let old = with(KUBEADM, [10, 96, 8, 8].into()).unwrap();
    let new = with(KUBEADM, dns()).unwrap();
    assert_eq!(with(&old, dns()).as_ref(), Ok(&new));
    // A tool that drops comments, and an operator that did not know its own block.
    let twice = format!("{BLOCK}{new}");
    assert_eq!(with(&twice, dns()).as_ref(), Ok(&new));
    assert_eq!(without(&twice, Some(dns())), KUBEADM);
    let moved = new.replace(".:53 {", ".:5353 {");
    assert!(with(&moved, dns()).unwrap().contains("\nslice.local:5353 {\n"));
    // Changed between the marks, it is still the operator's.
    let changed = new.replace("    errors\n    forward . 10.96.7.7", "    forward . 10.0.0.1");
    assert_eq!(with(&changed, dns()).as_ref(), Ok(&new));
    assert_eq!(without(&changed, None), KUBEADM);
}

#[test]
fn what_others_add_around_it_stays() {
    let with_stub = with(KUBEADM, dns()).unwrap();
    let behind = format!("{with_stub}example.org:53 {{\n}}\n");
    assert_eq!(
        without(&behind, None),
        format!("{KUBEADM}example.org:53 {{\n}}\n")
    );
    let inside = with_stub.replace("# weft end", "example.org:53 {\n}\n# weft end");
    assert_eq!(
        without(&inside, Some(dns())),
        format!("{KUBEADM}example.org:53 {{\n}}\n")
    );
    let stray = format!("{KUBEADM}# weft end\n");
    assert_eq!(without(&stray, None), KUBEADM);
}

#[test]
fn a_corefile_that_somebody_broke_later_is_freed_of_the_stub() {
    let broken = with(KUBEADM, dns()).unwrap() + "example.org {\n";
    assert_eq!(without(&broken, None), format!("{KUBEADM}example.org {{\n"));
    let inside = broken.replace("# weft end", "}\n# weft end");
    assert_eq!(without(&inside, None), inside);
}

/// What is planned: the ConfigMaps' keys with what they get, and what is said.
#[track_caller]
fn check_plan(config: &str, there: &[(&str, &str, &str)], wanted: Expect) {
    let planned = planned(config, there, false);
    let mut lines = Vec::new();
    for ((namespace, name), keys) in planned.data {
        for (key, text) in keys {
            let before = there
                .iter()
                .find(|one| one.0 == format!("{namespace}/{name}") && one.1 == key);
            let change = match (before, text) {
                (None, None) => "stays away".to_owned(),
                (Some(_), None) => "goes".to_owned(),
                (Some((_, _, before)), Some(after)) if *before == after => "stays".to_owned(),
                (Some((_, _, before)), Some(after)) => match after.strip_prefix(before) {
                    Some(more) => format!("gets {} bytes more", more.len()),
                    None => format!("becomes\n{after}"),
                },
                (None, Some(after)) => format!("becomes\n{after}"),
            };
            lines.push(format!("{namespace}/{name} {key} {change}"));
        }
    }
    lines.extend(planned.warnings.into_iter().map(|warning| {
        let of = warning
            .config
            .map_or_else(|| "-".to_owned(), |id| format!("{}/{}", id.0, id.1));
        // The hub takes so many characters of a message.
        assert!(
            warning.message.chars().count() <= 500,
            "{}",
            warning.message.len()
        );
        format!("! {of}: {}", warning.message)
    }));
    wanted.assert_eq(&lines.join("\n"));
}

fn planned(config: &str, there: &[(&str, &str, &str)], is_openshift: bool) -> Plan {
    let mut maps = ConfigMaps::new();
    for (id, key, text) in there {
        let (namespace, name) = id.split_once('/').unwrap();
        let data: &mut Data = maps.entry((namespace.to_owned(), name.to_owned())).or_default();
        if !key.is_empty() {
            data.insert((*key).to_owned(), (*text).to_owned());
        }
    }
    let Ok(config) = config.parse::<Config>();
    plan(&Request {
        config: &config,
        there: &maps,
        is_openshift,
        dns: dns(),
    })
}

const KNOWN: &str = "kube-system/coredns";
const CUSTOM: &str = "kube-system/coredns-custom";

#[test]
fn the_known_corefiles_are_found() {
    check_plan(
        KNOWN,
        &[
            ("kube-system/rke2-coredns-rke2-coredns", "Corefile", RKE2),
            ("kube-system/node-local-dns", "Corefile", NODE_LOCAL),
        ],
        expect![[r#"
            kube-system/node-local-dns Corefile gets 186 bytes more
            kube-system/rke2-coredns-rke2-coredns Corefile gets 152 bytes more"#]],
    );
    assert_eq!(
        planned("", &[(KNOWN, "Corefile", KUBEADM)], true),
        Plan::default()
    );
    check_plan(
        "infra/names",
        &[("infra/names", "Corefile", KUBEADM)],
        expect!["infra/names Corefile gets 152 bytes more"],
    );
}

#[test]
fn where_the_platform_imports_blocks_of_users_it_goes_there() {
    for corefile in [K3S, AKS] {
        check_plan(
            KNOWN,
            &[(KNOWN, "Corefile", corefile), (CUSTOM, "", "")],
            expect![[r"
                kube-system/coredns-custom weft.server becomes
                slice.local:53 {
                    errors
                    forward . 10.96.7.7
                }
            "]],
        );
        check_plan(
            KNOWN,
            &[(KNOWN, "Corefile", corefile), (CUSTOM, "weft.server", BLOCK)],
            expect!["kube-system/coredns-custom weft.server stays"],
        );
    }
    let gardener = planned(KNOWN, &[(KNOWN, "Corefile", GARDENER), (CUSTOM, "", "")], false);
    assert!(
        format!("{gardener:?}").contains("slice.local:8053 {"),
        "{gardener:?}"
    );
    // k3s makes no such ConfigMap by itself.
    check_plan(
        KNOWN,
        &[(KNOWN, "Corefile", K3S)],
        expect!["kube-system/coredns Corefile gets 152 bytes more"],
    );
    // And where nothing is imported, it is not asked.
    check_plan(
        KNOWN,
        &[(KNOWN, "Corefile", KUBEADM), (CUSTOM, "", "")],
        expect!["kube-system/coredns Corefile gets 152 bytes more"],
    );
}

#[test]
fn it_moves_without_being_there_twice() {
    let stubbed = with(AKS, dns()).unwrap();
    let first = planned(KNOWN, &[(KNOWN, "Corefile", &stubbed), (CUSTOM, "", "")], false);
    let changes: Vec<_> = first
        .data
        .iter()
        .flat_map(|(id, keys)| keys.iter().map(move |key| (&*id.1, key)))
        .collect();
    assert_eq!(
        changes,
        [("coredns", (&"Corefile".to_owned(), &Some(AKS.to_owned())))]
    );
}

#[test]
fn blocks_of_users_in_such_a_configmap_count() {
    check_plan(
        KNOWN,
        &[
            (KNOWN, "Corefile", AKS),
            (CUSTOM, "own.server", BLOCK),
            (CUSTOM, "other.server", "example.org {\n"),
        ],
        expect!["kube-system/coredns-custom weft.server stays away"],
    );
    check_plan(
        KNOWN,
        &[
            (KNOWN, "Corefile", AKS),
            (
                CUSTOM,
                "own.server",
                "slice.local:53 {\n    forward . 1.1.1.1\n}\n",
            ),
        ],
        expect![
            "! kube-system/coredns-custom: names of slices do not resolve, own.server of ConfigMap kube-system/coredns-custom is left as it is: a block on line 1 that Weft has not made serves slice.local and forwards elsewhere. Delete that block, or have it forward to 10.96.7.7"
        ],
    );
}

#[test]
fn what_is_for_a_person_to_write_is_said_with_the_lines() {
    check_plan(
        KNOWN,
        &[(KNOWN, "Corefile", ".:53 {\n")],
        expect![[r#"
            ! kube-system/coredns: names of slices do not resolve, the Corefile of ConfigMap kube-system/coredns is left as it is: it cannot be read: line 1: a brace that is not closed. Correct it, or add these lines where it is asked, then set operator.corednsConfig of the chart to "":
            slice.local:53 {
                errors
                forward . 10.96.7.7
            }"#]],
    );
    check_plan(
        KNOWN,
        &[],
        expect![[
            r#"! -: names of slices do not resolve: no ConfigMap of a CoreDNS was found. Set operator.corednsConfig of the chart to it, or have the cluster's DNS forward slice.local to 10.96.7.7, then set operator.corednsConfig of the chart to """#
        ]],
    );
    check_plan(
        KNOWN,
        &[("kube-system/kube-dns", "", "")],
        expect![[r#"
            ! kube-system/kube-dns: names of slices do not resolve: kube-dns answers here, which nobody but its owner may configure. Add this to stubDomains in ConfigMap kube-system/kube-dns:
            {"slice.local": ["10.96.7.7"]}"#]],
    );
    check_plan(
        KNOWN,
        &[(
            "kube-system/kube-dns",
            "stubDomains",
            r#"{"slice.local": ["10.96.7.7"]}"#,
        )],
        expect![""],
    );
    check_plan(
        "infra/names",
        &[("infra/names", "other", "")],
        expect![[
            r#"! -: names of slices do not resolve: ConfigMap infra/names is not there or has no Corefile. Set operator.corednsConfig of the chart to that of the cluster's CoreDNS, or have its DNS forward slice.local to 10.96.7.7, then set operator.corednsConfig of the chart to """#
        ]],
    );
}

#[test]
fn what_an_operator_would_revert_is_not_written() {
    let named = format!("{OPENSHIFT}/dns-default");
    let by_name = planned(&named, &[(&named, "Corefile", OPENSHIFT_DNS)], false);
    let by_namespace = planned(KNOWN, &[], true);
    assert_eq!(by_name, by_namespace);
    assert!(by_name.data.is_empty());
    expect![[r#"
        names of slices do not resolve: OpenShift's DNS operator owns the configuration. Add this to spec.servers of dns.operator.openshift.io/default, then set operator.corednsConfig of the chart to "":
        - name: weft
          zones: [slice.local]
          forwardPlugin: {upstreams: ["10.96.7.7"]}"#]]
    .assert_eq(&by_name.warnings[0].message);
}

#[test]
fn what_is_left_is_what_was_there() {
    let id = |name: &str| ("kube-system".to_owned(), name.to_owned());
    let data = |key: &str, text: &str| Data::from([(key.to_owned(), text.to_owned())]);
    let stubbed = with(NODE_LOCAL, dns()).unwrap();
    let of = |name: &str, data: &Data, dns: Option<IpAddr>| {
        let left = left(&id(name), data, dns);
        left.into_iter().next()
    };
    assert_eq!(
        of("node-local-dns", &data("Corefile", &stubbed), None),
        Some(("Corefile".to_owned(), Some(NODE_LOCAL.to_owned())))
    );
    assert_eq!(of("coredns", &data("Corefile", NODE_LOCAL), Some(dns())), None);
    assert_eq!(
        of("coredns-custom", &data("weft.server", BLOCK), None),
        Some(("weft.server".to_owned(), None))
    );
    assert_eq!(
        of("coredns-custom", &data("own.server", BLOCK), Some(dns())),
        None
    );
}

#[test]
fn slices_wait_for_no_configuration_of_dns_and_it_for_all_of_them() {
    let now = Now {
        clock: Duration::from_secs(1),
        wall: Timestamp::UNIX_EPOCH,
    };
    let mut member = Member::new(Settings {
        dns_service: "weft-dns".to_owned(),
        cluster_dns: Config::Known,
        ..Settings::default()
    });
    let see = |member: &mut Member, source: Source, object: Value| {
        member.handle(Event::Seen(Box::new(Input::read(source, &object))), now);
    };
    let config = |version: &str, corefile: &str| {
        json!({
            "metadata": {"namespace": "kube-system", "name": "coredns", "uid": "u", "resourceVersion": version},
            "data": {"Corefile": corefile},
        })
    };
    for source in Source::LOCAL
        .into_iter()
        .filter(|source| *source != Source::ConfigMap)
    {
        member.handle(Event::Listed(source, BTreeSet::new()), now);
    }
    member.handle(Event::Leading(true), now);
    member.handle(Event::DnsAsked(Ok(())), now);
    assert!(member.is_synced());
    let service = json!({
        "metadata": {"namespace": names::MEMBER_NAMESPACE, "name": "weft-dns", "resourceVersion": "1"},
        "spec": {"clusterIP": dns()},
    });
    see(&mut member, Source::Service, service);
    see(&mut member, Source::ConfigMap, config("5", AKS));
    assert_eq!(
        member.poll_write(Side::Local, now),
        None,
        "it may have to go to another ConfigMap"
    );
    let there = BTreeSet::from([("kube-system".into(), "coredns".into())]);
    for id in Config::Known.ids() {
        member.handle(Event::DnsListed(id, there.clone()), now);
    }
    // Somebody writes it before the stub is on its way: what was added counts.
    see(&mut member, Source::ConfigMap, config("6", KUBEADM));
    let write = member.poll_write(Side::Local, now).unwrap();
    let Change::Patch { body } = write.change else {
        panic!("{write:?}")
    };
    assert_eq!(body["metadata"]["resourceVersion"], "6");
    assert_eq!(body["data"]["Corefile"], with(KUBEADM, dns()).unwrap());
    assert_eq!(member.poll_write(Side::Local, now), None);
}

/// A ConfigMap, with or without the stub, when its DNS has answered so, and what was noted on it before.
struct OnTrial {
    there: Vec<(&'static str, &'static str, String)>,
    mark: Option<&'static str>,
    answers: Answers,
    /// Since the process started, on the wall clock 12:00:00.
    clock: u64,
}

fn failing_since(clock: u64) -> Answers {
    Answers::Failing {
        since: Duration::from_secs(clock),
        why: "it does not answer".to_owned(),
    }
}

impl OnTrial {
    fn new(text: &str, mark: Option<&'static str>, answers: Answers, clock: u64) -> Self {
        Self {
            there: vec![(KNOWN, "Corefile", text.to_owned())],
            mark,
            answers,
            clock,
        }
    }

    fn tried(&self) -> Plan {
        let mut maps = ConfigMaps::new();
        for (id, key, text) in &self.there {
            let (namespace, name) = id.split_once('/').unwrap();
            let data: &mut Data = maps.entry((namespace.to_owned(), name.to_owned())).or_default();
            data.insert((*key).to_owned(), text.clone());
        }
        let id = ("kube-system".to_owned(), "coredns".to_owned());
        let marks = self.mark.map(|mark| (id, mark.parse::<Mark>().unwrap()));
        let start: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        let request = Request {
            config: &Config::Known,
            there: &maps,
            is_openshift: false,
            dns: dns(),
        };
        plan(&request).tried(
            &request,
            &Trial {
                marks: &marks.into_iter().collect(),
                answers: &self.answers,
                now: Now {
                    clock: Duration::from_secs(self.clock),
                    wall: start + Duration::from_secs(self.clock),
                },
            },
        )
    }

    /// What happens to the Corefile, and what is noted and said.
    #[track_caller]
    fn check(&self, wanted: &str) -> Plan {
        let plan = self.tried();
        let id = ("kube-system".to_owned(), "coredns".to_owned());
        let before = &self.there[0].2;
        let text = plan.data.get(&id).and_then(|data| data.get("Corefile"));
        let had = before.contains(BLOCK);
        let happens = match text {
            None => "waits",
            Some(Some(text)) if text == before => "stays",
            Some(Some(text)) if text.contains(BLOCK) => match had {
                true => "corrected",
                false => "written",
            },
            Some(_) => "taken out",
        };
        let mark = plan.marks.get(&id).map(|mark| match mark {
            Mark::Written { checked: true, .. } => "checked",
            Mark::Written { checked: false, .. } => "unchecked",
            Mark::TakenOut { .. } => "marked",
        });
        let is_said = !plan.warnings.is_empty();
        let words = [
            Some(happens),
            mark,
            is_said.then_some("warned"),
            plan.unchecked.is_some().then_some("unknown"),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        assert_eq!(words.join(" "), wanted, "{plan:?}");
        for warning in &plan.warnings {
            assert!(
                warning.message.chars().count() <= 500,
                "{}",
                warning.message.len()
            );
        }
        plan
    }
}

#[test]
fn what_may_break_dns_is_written_when_it_answers_or_after_a_while() {
    let check = |answers, clock, wanted| _ = OnTrial::new(KUBEADM, None, answers, clock).check(wanted);
    check(Answers::Resolving, 3, "written checked");
    check(Answers::Unknown, 3, "waits");
    check(Answers::Unknown, 120, "written unchecked");
    check(failing_since(100), 100, "waits warned");
    check(failing_since(100), 219, "waits warned");
    check(failing_since(100), 220, "written unchecked");
}

#[test]
fn what_broke_dns_is_taken_out_and_nothing_else_is() {
    let stubbed = with(KUBEADM, dns()).unwrap();
    let check = |mark, answers, clock, wanted| _ = OnTrial::new(&stubbed, mark, answers, clock).check(wanted);
    let checked = Some("written 2026-11-29T12:00:00Z checked");
    check(checked, Answers::Resolving, 200, "stays");
    check(checked, Answers::Unknown, 200, "stays");
    check(checked, failing_since(20), 49, "stays");
    check(checked, failing_since(20), 50, "taken out marked warned");
    check(checked, failing_since(300), 330, "taken out marked warned");
    check(checked, failing_since(301), 400, "stays");
    check(None, failing_since(20), 400, "stays");
    check(
        Some("written 2026-11-29T12:00:00Z unchecked"),
        failing_since(20),
        400,
        "stays unknown",
    );
    check(
        Some("written 2026-11-29T12:00:00Z unchecked"),
        Answers::Resolving,
        400,
        "stays",
    );
    // Somebody has broken the rest of it meanwhile.
    let broken = format!("{stubbed}example.org {{\n");
    OnTrial::new(&broken, checked, failing_since(20), 50).check("taken out marked warned");
    // What is there and wrong does not wait to be corrected.
    let moved = stubbed.replace(".:53 {", ".:53 .:1053 {");
    let corrected = OnTrial::new(&moved, checked, failing_since(45), 50).tried();
    assert!(
        format!("{corrected:?}").contains("slice.local:53 slice.local:1053 {"),
        "{corrected:?}"
    );
}

#[test]
fn what_was_taken_out_is_written_to_another_configuration_only() {
    let stubbed = with(KUBEADM, dns()).unwrap();
    let checked = Some("written 2026-11-29T12:00:00Z checked");
    let mut trial = OnTrial::new(&stubbed, checked, failing_since(20), 50);
    let plan = trial.check("taken out marked warned");
    let id = ("kube-system".to_owned(), "coredns".to_owned());
    assert_eq!(plan.data[&id]["Corefile"].as_deref(), Some(KUBEADM));
    expect![[r"
        names of slices do not resolve: with the stub in ConfigMap kube-system/coredns the cluster's DNS did not answer any more (it does not answer), so it was taken out at 2026-11-29T12:00:00Z. See what CoreDNS logs; it is written again when the configuration changes, or after `kubectl -n kube-system annotate configmap coredns weft.dev/dns-stub-`"]]
    .assert_eq(&plan.warnings[0].message);
    let mark = plan.marks[&id].to_string();
    assert_eq!(mark.parse(), Ok(plan.marks[&id].clone()));
    (trial.mark, trial.answers) = (Some(&*mark.leak()), Answers::Resolving);
    trial.there[0].2 = KUBEADM.to_owned();
    let said = trial.check("waits warned");
    assert_eq!(said.warnings, plan.warnings);
    // k3s does so whenever a node comes.
    trial
        .there
        .push((KNOWN, "NodeHosts", "172.30.1.9 node".to_owned()));
    trial.check("waits warned");
    // What CoreDNS reads beside it is of the configuration.
    trial
        .there
        .push((KNOWN, "more.server", "example.org {\n}\n".to_owned()));
    trial.check("written checked");
    // It has failed with the stub once: now it has to answer.
    (trial.answers, trial.clock) = (failing_since(20), 4000);
    trial.check("waits warned");
    (trial.mark, trial.answers) = (None, Answers::Resolving);
    trial.check("written checked");
}

#[test]
fn what_is_said_has_its_next_step_within_what_the_hub_takes() {
    let mut answers = Answers::default();
    let now = Now {
        clock: Duration::from_secs(20),
        wall: Timestamp::UNIX_EPOCH,
    };
    answers.note(Err("x".repeat(400)), now);
    let id = ("kube-system".to_owned(), "rke2-coredns-rke2-coredns".to_owned());
    let check = |text: &str, mark: Option<&str>, ends: &str| {
        let maps = ConfigMaps::from([(id.clone(), Data::from([("Corefile".to_owned(), text.to_owned())]))]);
        let marks = mark.map(|mark| (id.clone(), mark.parse::<Mark>().unwrap()));
        let request = Request {
            config: &Config::Known,
            there: &maps,
            is_openshift: false,
            dns: dns(),
        };
        let trial = Trial {
            marks: &marks.into_iter().collect(),
            answers: &answers,
            now: Now {
                clock: Duration::from_secs(60),
                wall: "1970-01-01T00:00:40Z".parse().unwrap(),
            },
        };
        let plan = plan(&request).tried(&request, &trial);
        let [warning] = plan.warnings.as_slice() else {
            panic!("{plan:?}")
        };
        assert!(
            warning.message.chars().count() <= 500,
            "{}",
            warning.message.chars().count()
        );
        assert!(warning.message.ends_with(ends), "{}", warning.message);
    };
    let stubbed = with(RKE2, dns()).unwrap();
    check(RKE2, None, "from it");
    check(
        &stubbed,
        Some("written 1970-01-01T00:00:00Z checked"),
        "weft.dev/dns-stub-`",
    );
}

#[test]
fn a_mark_that_somebody_has_changed_is_none() {
    for text in [
        "",
        "written",
        "written yesterday checked",
        "written 2026-11-29T12:00:00Z",
        "written 2026-11-29T12:00:00Z maybe",
    ] {
        assert_eq!(text.parse::<Mark>(), Err(()), "{text}");
    }
    assert!("taken-out 2026-11-29T12:00:00Z x".parse::<Mark>().is_ok());
}

/// Blocks, snippets, imports and comments in any order, and a text that may not end with a line break.
fn corefiles() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("# a comment\n".to_owned()),
        Just("\n  \n".to_owned()),
        Just("import /etc/x/*\n".to_owned()),
        Just("    # indented } {\r\n".to_owned()),
        ("[a-z]{1,8}", 1_u16.., proptest::bool::ANY).prop_map(|(zone, port, tls)| {
            let scheme = if tls { "tls://" } else { "" };
            format!("{scheme}{zone}.test:{port} {{ # why\n\terrors\n\ttemplate IN A \"}}{{\" {{\n\t\tx\n\t}}\n}}   \n")
        }),
    ];
    let pieces = proptest::collection::vec(piece, 0..6);
    (pieces, 0..=6_usize, 0..ALL.len(), 0..3_usize).prop_map(|(mut pieces, at, main, end)| {
        pieces.insert(at.min(pieces.len()), format!("{}\n", ALL[main]));
        let text = pieces.concat();
        match end {
            0 => text,
            1 => text.trim_end().to_owned(),
            _ => format!("{text}  "),
        }
    })
}

proptest! {
    #[test]
    fn any_corefile_is_what_it_was_when_the_stub_is_gone(text in corefiles()) {
        let after = with(&text, dns()).unwrap();
        prop_assert_eq!(with(&after, dns()), Ok(after.clone()));
        prop_assert_eq!(own(&after, &corefile::read(&after).unwrap(), None).len(), 1);
        prop_assert_eq!(&without(&after, None), &text);
        prop_assert_eq!(&without(&text, Some(dns())), &text);
        let bare = uncommented(&after);
        prop_assert_eq!(with(&bare, dns()), Ok(bare.clone()));
        // The line break between text and stub may not be known any more.
        let (rest, before) = (without(&bare, Some(dns())), uncommented(&text));
        prop_assert_eq!(rest.trim_end(), before.trim_end());
        let moved = with(&after, [10, 96, 8, 8].into()).unwrap();
        prop_assert_eq!(&without(&moved, None), &text);
    }

    #[test]
    fn no_text_is_too_odd(text in "[a.:{}#\"\\\\ \n\r,()]{0,40}") {
        if let Ok(after) = with(&text, dns()) {
            prop_assert_eq!(&without(&after, None), &text);
        }
        prop_assert_eq!(without(&text, Some(dns())), text);
    }
}
