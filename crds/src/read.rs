//! From a raw object to one of this build's types, or to a sentence that says where it is not one.
//!
//! Objects are read one by one: a list in which one cannot be read is as good as any other.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

/// Longest value that is quoted, in bytes.
const MAX_QUOTE: usize = 200;

/// Reads an object.
///
/// # Errors
/// Where this build's type does not hold it: the field, what is wrong with it, and the value that it has. The API server
/// took it by a schema that is newer, or that cannot say everything.
pub fn read<T: DeserializeOwned>(object: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path();
        let mut value = Some(object);
        for segment in path {
            value = match segment {
                Segment::Seq { index } => value.and_then(|value| value.get(index)),
                Segment::Map { key } => value.and_then(|value| value.get(key)),
                Segment::Enum { .. } | Segment::Unknown => value,
            };
        }
        let has = value
            .map(Value::to_string)
            .filter(|text| text.len() <= MAX_QUOTE)
            .map(|text| format!(" (it is {text})"));
        format!("{path}{}: {}", has.unwrap_or_default(), error.inner())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1alpha1::Cluster;
    use serde_json::json;

    #[test]
    fn what_cannot_be_read_is_named_with_its_value() {
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": "b"},
            "spec": {"gateway": {"advertise": ["192.0.2.1", "gw.example.com"]}},
        });
        assert_eq!(
            read::<Cluster>(&object).unwrap_err(),
            "spec.gateway.advertise[1] (it is \"gw.example.com\"): invalid IP address syntax"
        );
    }
}
