//! The stub in the cluster DNS's configuration that sends the slice zone to `slice-dns`. Pure text.
//!
//! CoreDNS answers, caches and reloads as it did; the stub is one server block of its own between two marks, so that
//! it can be put in, corrected and taken out without touching what anybody else wrote.

use std::net::IpAddr;

use slice_crds::names::SLICE_ZONE;

const BEGIN: &str = "# weft begin: names of slices; kept by weft-operator, removed when Weft is uninstalled";
const END: &str = "# weft end";

/// The configuration with the stub, once, at its end.
pub fn with_stub(corefile: &str, dns: IpAddr) -> String {
    let rest = without_stub(corefile);
    let gap = if rest.is_empty() || rest.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    // No cache: an endpoint that is no longer ready must be gone from the next answer.
    format!("{rest}{gap}{BEGIN}\n{SLICE_ZONE}:53 {{\n    errors\n    forward . {dns}\n}}\n{END}\n")
}

/// The configuration without the stub: as it was before.
pub fn without_stub(corefile: &str) -> String {
    let Some(begin) = corefile.find(BEGIN) else {
        return corefile.to_owned();
    };
    let behind = match corefile[begin..].find(END) {
        Some(end) => corefile[begin + end + END.len()..].trim_start_matches('\n'),
        None => "",
    };
    format!("{}{behind}", &corefile[..begin])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = ".:53 {\n    errors\n    reload\n}\n";

    #[test]
    fn the_stub_is_put_in_once_and_taken_out_without_a_trace() {
        let dns: IpAddr = [10, 96, 7, 7].into();
        let with = with_stub(BEFORE, dns);
        assert!(
            with.starts_with(BEFORE)
                && with.contains("slice.local:53 {")
                && with.contains("forward . 10.96.7.7")
        );
        assert_eq!(with_stub(&with, dns), with);
        assert_eq!(without_stub(&with), BEFORE);
        let moved = with_stub(&with, [10, 96, 8, 8].into());
        assert!(moved.contains("10.96.8.8") && !moved.contains("10.96.7.7"));
    }

    #[test]
    fn what_others_add_behind_it_stays() {
        let with = with_stub(BEFORE, [10, 96, 7, 7].into()) + "example.org:53 {\n}\n";
        assert_eq!(without_stub(&with), format!("{BEFORE}example.org:53 {{\n}}\n"));
    }
}
