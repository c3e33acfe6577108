//! Writes the CustomResourceDefinitions into the folder given as the first argument (`crds/yaml`),
//! one file per chart that installs them.
//!
//! `make crds` runs it; `tests/yaml.rs` fails when the files in the tree are not what it would write.

use std::{error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: crdgen FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    for (name, text) in slice_crds::schema::files()? {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}
