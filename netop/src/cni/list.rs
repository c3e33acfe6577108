//! A configuration list as text: what others wrote stays as they wrote it, and the plugin's element is put in or taken out.

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

/// The version of the specification that the list asks for; empty where it asks for none, which means 0.1.0.
pub(super) fn version(text: &str) -> String {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        #[serde(default)]
        cni_version: String,
    }
    let list: List = serde_json::from_str(text).unwrap_or_default();
    list.cni_version
}

/// An element of the list, and where in the text it is.
struct Plugin {
    at: std::ops::Range<usize>,
    value: Value,
    ours: bool,
}

fn plugins(text: &str) -> anyhow::Result<Vec<Plugin>> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        plugins: Vec<&'a RawValue>,
    }
    let list: List<'_> = serde_json::from_str(text).context("not a list of plugins")?;
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
    list.plugins.into_iter().map(plugin).collect()
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
}
