//! What a measurement writes: files, and parts of docs/.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Writes a file, and the folder that it is in.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a page.
///
/// # Errors
/// Where the marks are not there.
pub(super) fn replace(page: &str, name: &str, text: &str) -> Result<()> {
    let path = folder().join(page);
    let before = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let after = between(&before, name, text).with_context(|| {
        format!(
            "{}: add the lines <!-- {name} --> and <!-- /{name} -->",
            path.display()
        )
    })?;
    std::fs::write(&path, after).with_context(|| format!("write {}", path.display()))
}

fn between(page: &str, name: &str, text: &str) -> Option<String> {
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&open)?;
    let (_, after) = rest.split_once(&close)?;
    Some(format!("{before}{open}{text}{close}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n";
        let new = between(page, "one", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- one -->\nnew\n<!-- /one -->\nb\n");
        assert_eq!(between(&new, "one", "new\n").unwrap(), new);
        assert_eq!(between(page, "two", "new\n"), None);
    }

    #[test]
    fn the_page_has_the_marks() {
        let page = std::fs::read_to_string(folder().join("benchmarks.md")).unwrap();
        for name in ["failover", "qos"] {
            assert!(between(&page, name, "").is_some(), "{name}");
        }
    }
}
