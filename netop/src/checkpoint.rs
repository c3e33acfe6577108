//! The ledger as a file. It saves an agent that starts again from looking into every pod, whose interfaces win over it;
//! and it says which version of each SliceBlock was acted upon, so that no older one ever is.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use slice_crds::IndexRange;

use crate::{
    files::write,
    ledger::{Grant, Holder, Ledger, Page, Rest},
};

#[derive(Serialize, Deserialize)]
struct File {
    slices: BTreeMap<String, FilePage>,
}

#[derive(Serialize, Deserialize)]
struct FilePage {
    /// Absent before it was kept, and while there is no SliceBlock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant: Option<FileGrant>,
    last: u32,
    held: BTreeMap<u32, FileHolder>,
    resting: BTreeMap<u32, FileRest>,
}

#[derive(Serialize, Deserialize)]
struct FileGrant {
    uid: String,
    generation: i64,
    blocks: Vec<IndexRange>,
    releasing: Vec<IndexRange>,
}

#[derive(Serialize, Deserialize)]
struct FileRest {
    since: Timestamp,
    uid: String,
    /// Absent before they were kept.
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Serialize, Deserialize)]
struct FileHolder {
    uid: String,
    namespace: String,
    name: String,
}

/// # Errors
/// Where the file cannot be written.
pub fn save(path: &Path, ledger: &Ledger) -> anyhow::Result<()> {
    let grant = |grant: &Grant| FileGrant {
        uid: grant.uid.clone(),
        generation: grant.generation,
        blocks: grant.blocks.clone(),
        releasing: grant.releasing.clone(),
    };
    let page = |page: &Page| FilePage {
        grant: page.grant.as_ref().map(grant),
        last: page.last,
        held: (page.held.iter())
            .map(|(index, Holder { uid, namespace, name })| {
                let [uid, namespace, name] = [uid, namespace, name].map(Clone::clone);
                (*index, FileHolder { uid, namespace, name })
            })
            .collect(),
        resting: (page.resting.iter())
            .map(|(index, Rest { since, holder })| {
                let Holder { uid, namespace, name } = holder.clone();
                let since = *since;
                (
                    *index,
                    FileRest {
                        since,
                        uid,
                        namespace,
                        name,
                    },
                )
            })
            .collect(),
    };
    let file = File {
        slices: ledger
            .pages
            .iter()
            .map(|(slice, of)| (slice.clone(), page(of)))
            .collect(),
    };
    let text = serde_json::to_vec(&file)?;
    write(path, &text).with_context(|| format!("write {}", path.display()))
}

/// The ledger as it was last saved, or none where there is no such file.
///
/// # Errors
/// Where the file is there and cannot be read; the pods' interfaces tell then.
pub fn load(path: &Path) -> anyhow::Result<Option<Ledger>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let file: File =
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))?;
    let grant = |grant: FileGrant| Grant {
        uid: grant.uid,
        generation: grant.generation,
        blocks: grant.blocks,
        releasing: grant.releasing,
    };
    let page = |page: FilePage| Page {
        grant: page.grant.map(grant),
        last: page.last,
        held: (page.held.into_iter())
            .map(|(index, FileHolder { uid, namespace, name })| (index, Holder { uid, namespace, name }))
            .collect(),
        resting: (page.resting.into_iter())
            .map(|(index, rest)| {
                let FileRest {
                    since,
                    uid,
                    namespace,
                    name,
                } = rest;
                let holder = Holder { uid, namespace, name };
                (index, Rest { since, holder })
            })
            .collect(),
    };
    Ok(Some(Ledger {
        pages: file
            .slices
            .into_iter()
            .map(|(slice, of)| (slice, page(of)))
            .collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_survives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attachments.json");
        assert_eq!(load(&path).unwrap(), None);
        let holder = Holder {
            uid: "u".into(),
            namespace: "cart".into(),
            name: "web".into(),
        };
        let grant = Grant {
            uid: "b".into(),
            generation: 3,
            blocks: vec![IndexRange::new(8, 8)],
            releasing: vec![IndexRange::new(8, 8)],
        };
        let page = Page {
            grant: Some(grant),
            held: BTreeMap::from([(8, holder)]),
            resting: BTreeMap::from([(
                9,
                Rest {
                    since: Timestamp::from_second(100).unwrap(),
                    holder: Holder {
                        uid: "v".into(),
                        namespace: "cart".into(),
                        name: "web-0".into(),
                    },
                },
            )]),
            last: 9,
        };
        let ledger = Ledger {
            pages: BTreeMap::from([("shop".to_owned(), page)]),
        };
        save(&path, &ledger).unwrap();
        assert_eq!(load(&path).unwrap(), Some(ledger));
        let before = r#"{"slices":{"shop":{"last":9,"held":{},"resting":{}}}}"#;
        std::fs::write(&path, before).unwrap();
        assert_eq!(
            load(&path).unwrap().unwrap().pages["shop"].grant,
            None,
            "an earlier version's file"
        );
        std::fs::write(&path, "{").unwrap();
        assert!(load(&path).is_err());
    }
}
