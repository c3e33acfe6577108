//! A configuration list as text: what others wrote stays as they wrote it, and the plugin's element is put in or taken out.
//!
//! The list may be that of a file of its own, or the first delegate of Multus, which runs it for the pod's own network.

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::install::PLUGIN;

/// The list with the plugin's element at its end, everything else as its owner wrote it; `None` where it is there as
/// it should be.
pub(super) fn with_plugin(text: &str, element: &Value) -> anyhow::Result<Option<String>> {
    let list = plugins(text)?;
    if list.iter().filter(|plugin| plugin.ours).count() == 1
        && list.last().is_some_and(|last| last.value == *element)
    {
        return Ok(None);
    }
    let clean = without_plugin(text).unwrap_or_else(|| text.to_owned());
    let list = plugins(&clean)?;
    let Some(last) = list.last() else {
        bail!("no plugin to chain to")
    };
    // As the owner separates elements.
    let separator = match list.as_slice() {
        [.., before, last] => &clean[before.at.end..last.at.start],
        _ => ",",
    };
    let (head, tail) = clean.split_at(last.at.end);
    Ok(Some(format!("{head}{separator}{element}{tail}")))
}

/// The list without the plugin; `None` where it is not in it, or the text is not a list.
pub(super) fn without_plugin(text: &str) -> Option<String> {
    let list = plugins(text).ok()?;
    let mut rest = text.to_owned();
    for (n, plugin) in list.iter().enumerate().rev().filter(|(_, plugin)| plugin.ours) {
        // With the comma before it, or where it is the first, with the one after it.
        let cut = match (n.checked_sub(1), list.get(n + 1)) {
            (Some(before), _) => list[before].at.end..plugin.at.end,
            (None, Some(next)) => plugin.at.start..next.at.start,
            (None, None) => plugin.at.clone(),
        };
        rest.replace_range(cut, "");
    }
    (rest != text).then_some(rest)
}

/// The types of its plugins; none of a text that is no list.
pub(super) fn plugin_types(text: &str) -> Vec<String> {
    let list = plugins(text).unwrap_or_default();
    let types = list
        .iter()
        .filter_map(|plugin| plugin.value.get("type")?.as_str());
    types.map(str::to_owned).collect()
}

/// What a file says beside its plugins.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct About {
    /// The version of the specification; empty where none is said, which means 0.1.0.
    #[serde(default)]
    pub(super) cni_version: String,
    #[serde(default)]
    pub(super) name: String,
    /// Of a single configuration.
    #[serde(default, rename = "type")]
    pub(super) plugin: String,
    /// Multus: the pod's own network, as a file or by its name.
    #[serde(default)]
    pub(super) cluster_network: String,
}

/// What is said of the list; of Multus' first delegate, where that is the list.
pub(super) fn about(text: &str) -> About {
    let list = List::read(text).ok();
    let inner = list.as_ref().and_then(List::delegate);
    serde_json::from_str(inner.unwrap_or(text)).unwrap_or_default()
}

/// A list of a single configuration, as libcni makes one of it (`ConfListFromConf`), with the plugin behind.
pub(super) fn wrapped(text: &str, element: &Value) -> anyhow::Result<String> {
    let conf: &RawValue = serde_json::from_str(text).context("not a configuration")?;
    let About {
        cni_version, name, ..
    } = serde_json::from_str(text).context("not a configuration")?;
    let (version, name) = (Value::from(cni_version), Value::from(name));
    Ok(format!(
        "{{\"cniVersion\":{version},\"name\":{name},\"plugins\":[{},{element}]}}\n",
        conf.get()
    ))
}

/// An element of the list, and where in the text it is.
struct Plugin {
    at: std::ops::Range<usize>,
    value: Value,
    ours: bool,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    plugins: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    delegates: Option<Vec<&'a RawValue>>,
}

impl<'a> List<'a> {
    fn read(text: &'a str) -> anyhow::Result<Self> {
        serde_json::from_str(text).context("not a list of plugins")
    }

    /// The delegate that is a list itself.
    fn delegate(&self) -> Option<&'a str> {
        let first = match (&self.plugins, &self.delegates) {
            (None, Some(delegates)) => delegates.first()?.get(),
            _ => return None,
        };
        List::read(first).ok()?.plugins.map(|_| first)
    }
}

fn plugins(text: &str) -> anyhow::Result<Vec<Plugin>> {
    let list = List::read(text)?;
    let list = match list.delegate() {
        Some(delegate) => List::read(delegate)?,
        None => list,
    };
    let plugin = |raw: &RawValue| {
        // A raw value borrows from the text it was read from.
        let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        let value: Value = serde_json::from_str(raw.get())?;
        let ours = value.get("type").and_then(Value::as_str) == Some(PLUGIN);
        Ok(Plugin {
            at: start..start + raw.get().len(),
            value,
            ours,
        })
    };
    let plugins = list.plugins.context("not a list of plugins")?;
    plugins.into_iter().map(plugin).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_owners_way_of_writing_stays() {
        let element = json!({"type": PLUGIN});
        let ours = r#"{"type":"slice-cni"}"#;
        for (before, after) in [
            (
                r#"{"plugins":[{"type":"a"}]}"#,
                r#"{"plugins":[{"type":"a"},OURS]}"#,
            ),
            (
                "{ \"plugins\": [\n  {\"type\": \"a\"},\n  {\"x\": 1.0}\n ] }\n",
                "{ \"plugins\": [\n  {\"type\": \"a\"},\n  {\"x\": 1.0},\n  OURS\n ] }\n",
            ),
        ] {
            let after = after.replace("OURS", ours);
            assert_eq!(
                with_plugin(before, &element).unwrap().as_deref(),
                Some(after.as_str())
            );
            assert_eq!(with_plugin(&after, &element).unwrap(), None);
            assert_eq!(without_plugin(&after).as_deref(), Some(before));
            assert_eq!(without_plugin(before), None);
        }
        let scattered = format!(r#"{{"plugins":[{ours}, {{"type":"a"}}, {ours}, {{"type":"b"}}]}}"#);
        let put_right = with_plugin(&scattered, &element).unwrap().unwrap();
        assert_eq!(
            put_right,
            format!(r#"{{"plugins":[{{"type":"a"}}, {{"type":"b"}}, {ours}]}}"#)
        );
        assert!(with_plugin(r#"{"plugins":[]}"#, &element).is_err() && with_plugin("{", &element).is_err());
    }

    /// As Multus' thin plugin writes it, shortened.
    const MULTUS: &str = r#"{ "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus",
  "delegates": [ {"cniVersion":"0.4.0","name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]},
                 {"type":"macvlan"} ] }"#;

    #[test]
    fn multus_runs_the_plugin_in_its_first_delegate() {
        let element = json!({"type": PLUGIN});
        let chained = with_plugin(MULTUS, &element).unwrap().unwrap();
        let expected = MULTUS.replace(
            r#"{"type":"portmap"}"#,
            r#"{"type":"portmap"},{"type":"slice-cni"}"#,
        );
        assert_eq!(chained, expected);
        assert_eq!(with_plugin(&chained, &element).unwrap(), None);
        assert_eq!(without_plugin(&chained).as_deref(), Some(MULTUS));
        assert_eq!(plugin_types(MULTUS), ["flannel", "portmap"]);
        let about = about(MULTUS);
        assert_eq!(
            (about.name.as_str(), about.cni_version.as_str()),
            ("cbr0", "0.4.0")
        );
        let single = r#"{"type":"multus","delegates":[{"type":"ovn-k8s-cni-overlay"}]}"#;
        assert!(with_plugin(single, &element).is_err() && without_plugin(single).is_none());
    }

    #[test]
    fn a_single_configuration_becomes_a_list_as_its_owner_wrote_it() {
        let conf = r#"{ "cniVersion":"1.0.0", "name":"ovn \"k8s\"", "type":"ovn" }"#;
        let list = wrapped(conf, &json!({"type": PLUGIN})).unwrap();
        assert!(list.contains(conf), "{list}");
        let value: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(
            (&value["name"], &value["cniVersion"]),
            (&json!("ovn \"k8s\""), &json!("1.0.0"))
        );
        assert_eq!(plugin_types(&list), ["ovn", PLUGIN]);
    }
}
