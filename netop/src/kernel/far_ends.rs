//! In which network namespaces the far ends of interfaces are.
//!
//! The kernel numbers, per namespace, the others that it has to do with: an interface says the number of its far end's
//! (`IFLA_LINK_NETNSID`), a namespace's file is asked for its own (`RTM_GETNSID`). A pod cannot change either.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::Context;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::LinkAttribute,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{netns, rtnl::Rtnl};

/// Names of the files in a directory of named namespaces, by the interface whose far end is there; only of those that are
/// found. `space` is the namespace that the interfaces are in, if not this process's own.
///
/// # Errors
/// Where the kernel cannot be asked, or the directory not be listed.
pub async fn far_ends(
    space: Option<&Path>,
    interfaces: &BTreeSet<String>,
    directory: &Path,
) -> anyhow::Result<BTreeMap<String, OsString>> {
    let mut rtnl = Rtnl::open(space).context("open a netlink socket")?;
    let mut numbers = BTreeMap::new();
    for interface in interfaces {
        let link = rtnl.link(interface).await;
        let link = link.with_context(|| format!("look up interface {interface}"))?;
        let attributes = link.into_iter().flat_map(|link| link.attributes);
        let number = attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkNetNsId(number) => Some(number),
            _ => None,
        });
        numbers.extend(number.map(|number| (interface, number)));
    }
    if numbers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut files = BTreeMap::new();
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        // One that has just ended leads nowhere.
        let Some(file) = File::open(&path).ok().filter(|_| netns::exists(&path)) else {
            continue;
        };
        let mut question = NsidMessage::default();
        let descriptor = u32::try_from(file.as_raw_fd()).context("a descriptor")?;
        question.attributes.push(NsidAttribute::Fd(descriptor));
        let answer = rtnl.get(RouteNetlinkMessage::GetNsId(question)).await;
        let answer = answer.with_context(|| format!("ask for the number of {}", path.display()))?;
        if let RouteNetlinkMessage::NewNsId(answer) = answer {
            // -1 is that of one that has nothing to do with this.
            let number = answer.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(number) if *number >= 0 => Some(*number),
                _ => None,
            });
            files.extend(number.map(|number| (number, entry.file_name())));
        }
    }
    let found = numbers.into_iter();
    Ok(found
        .filter_map(|(interface, number)| Some((interface.clone(), files.get(&number)?.clone())))
        .collect())
}
