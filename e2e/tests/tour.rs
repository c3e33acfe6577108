//! The README's five-minute tour, line by line as it stands there.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use slice_e2e::{harness::Environment, progress::say};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The shell block behind the mark.
fn tour(readme: &str) -> Result<&str> {
    let behind = readme
        .split_once("<!-- tour -->\n```sh\n")
        .context("the README has no tour")?
        .1;
    Ok(behind.split_once("\n```").context("the tour has no end")?.0)
}

#[tokio::test]
async fn the_tour_of_the_readme_works() -> Result<()> {
    let environment = Environment::open().await?;
    environment.lab()?;
    environment.install().await?;
    environment.remove_slice("shop").await?;
    for cluster in &environment.clusters {
        cluster.remove_namespace("cart").await?;
        cluster.await_no_namespace("cart").await?;
    }
    let readme = std::fs::read_to_string(format!("{ROOT}/README.md")).context("read the README")?;
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", tour(&readme)?])
        .current_dir(ROOT)
        .output()
        .context("run bash")?;
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    say(&said);
    ensure!(
        output.status.success(),
        "the tour ended with {}:\n{said}\n{complained}",
        output.status
    );
    ensure!(
        said.contains("0% packet loss") && !said.contains("FAILED"),
        "{said}"
    );
    Ok(())
}
