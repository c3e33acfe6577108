//! The generated CustomResourceDefinitions equal the files that the charts install.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use slice_crds::schema;

#[test]
fn generated_yaml_is_what_is_in_the_tree() {
    for (name, text) in schema::files().unwrap() {
        let path = format!("{}/yaml/{name}", env!("CARGO_MANIFEST_DIR"));
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{path} is stale: run `make crds`");
    }
}
