//! `status`: how slices are, in words, with what to do next.

use std::fmt::Write;

use anyhow::{Context, bail};
use kube::{Api, ResourceExt, api::ListParams};
use slice_crds::{conditions, v1alpha1::SliceConfig};

use crate::{
    Outcome,
    args::{Status, Target},
    connect, output,
};

pub(crate) async fn run(target: &Target, status: Status) -> anyhow::Result<Outcome> {
    let api: Api<SliceConfig> = Api::namespaced(connect::client(target).await?, &target.namespace);
    let mut slices = api
        .list(&ListParams::default())
        .await
        .context("list slices; is this the hub?")?
        .items;
    if let Some(name) = &status.slice {
        slices.retain(|slice| slice.name_any() == *name);
        if slices.is_empty() {
            bail!(
                "there is no slice {name} in namespace {}; see `slicectl get slices`",
                target.namespace
            );
        }
    }
    if slices.is_empty() {
        eprintln!("No slices yet. Create one with `slicectl create slice`.");
    }
    let good = slices.iter().all(is_ready);
    let texts: Vec<_> = slices.iter().map(explain).collect();
    output::print(&texts.join("\n"))?;
    Ok(if good { Outcome::Good } else { Outcome::Bad })
}

fn is_ready(slice: &SliceConfig) -> bool {
    let status = slice.status.as_ref();
    status.is_some_and(|status| conditions::is_true(&status.conditions, conditions::READY))
}

/// A slice as a short text. Pure.
fn explain(slice: &SliceConfig) -> String {
    let status = slice.status.clone().unwrap_or_default();
    let subnets: Vec<_> = slice.spec.subnets.iter().map(ToString::to_string).collect();
    let mut text = format!("slice {}  {}", slice.name_any(), subnets.join(" "));
    let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    line(
        &mut text,
        format_args!(
            "  vni {}  mtu {}",
            number(status.vni),
            number(status.mtu.map(u32::from))
        ),
    );
    text.push('\n');
    for condition in &status.conditions {
        let mark = if condition.status == "True" {
            "ok  "
        } else {
            "NOT "
        };
        line(
            &mut text,
            format_args!(
                "  {mark}{} ({}): {}\n",
                condition.type_, condition.reason, condition.message
            ),
        );
    }
    for cluster in &status.clusters {
        line(
            &mut text,
            format_args!("  cluster {}: {} pods\n", cluster.name, cluster.attachments),
        );
        for gateway in &cluster.gateways {
            let endpoints: Vec<_> = gateway.endpoints.iter().map(ToString::to_string).collect();
            let state = if gateway.up { "up" } else { "down" };
            let node = gateway.node.as_deref().unwrap_or("no node");
            line(
                &mut text,
                format_args!(
                    "    gateway {} {state} on {node} at {}\n",
                    gateway.ordinal,
                    endpoints.join(", ")
                ),
            );
            for tunnel in &gateway.tunnels {
                let state = if tunnel.up { "up" } else { "down" };
                let rtt = tunnel
                    .rtt_micros
                    .map(|rtt| format!(", {:.1} ms", f64::from(rtt) / 1000.0));
                line(
                    &mut text,
                    format_args!(
                        "      tunnel to {} {state}{}\n",
                        tunnel.peer,
                        rtt.unwrap_or_default()
                    ),
                );
            }
        }
        for problem in &cluster.problems {
            line(&mut text, format_args!("    problem: {problem}\n"));
        }
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a String");
}
