//! The server block that sends the slice zone to `slice-dns`, in a Corefile: put in, corrected and taken out.
//!
//! ```text
//!  # weft begin: …             the block is ours by these lines, and where a tool has dropped them
//!  slice.local:53 {            by its zone and the address that it forwards to
//!      errors
//!      forward . 10.96.7.7
//!  }
//!  # weft end
//! ```
//!
//! It listens where the cluster's own block does, so that it is asked, and CoreDNS opens no port that it has not open.
//! What is around it stays byte for byte. A Corefile that cannot be read is left alone.

use std::{net::IpAddr, ops::Range};

use slice_crds::names::SLICE_ZONE;

use super::corefile::{self, Block, Corefile, Directive, Key};

const BEGIN: &str = "# weft begin: names of slices; kept by weft-operator, removed when Weft is uninstalled";
const END: &str = "# weft end";

/// Why a Corefile is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] corefile::Error),
    #[error(
        "no block in it serves the root or has the plugin kubernetes, so nobody knows on which port it is asked"
    )]
    NoMain,
    #[error("its blocks for the cluster's names take no plain DNS")]
    NotPlain,
    #[error("its blocks for the cluster's names are bound to different addresses, or bound with options")]
    Bound,
    #[error("a block on line {0} that Weft has not made serves {SLICE_ZONE} and forwards elsewhere")]
    Foreign(usize),
}

/// The block, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    keys: Vec<Key>,
    bind: Vec<String>,
    dns: IpAddr,
}

impl Stub {
    /// For a CoreDNS of which nothing is known.
    pub fn usual(dns: IpAddr) -> Self {
        let key = Key {
            scheme: None,
            zone: SLICE_ZONE.to_owned(),
            port: Some("53".to_owned()),
        };
        Self {
            keys: vec![key],
            bind: vec![],
            dns,
        }
    }

    /// For a Corefile: where the blocks listen that serve the root, or the cluster's own names.
    fn of(corefile: &Corefile, dns: IpAddr) -> Result<Self, Trouble> {
        let is_main = |block: &&Block| {
            let has_kubernetes = || {
                corefile
                    .plugins(block)
                    .iter()
                    .any(|plugin| plugin.name == "kubernetes")
            };
            block.keys.iter().any(|key| key.zone.is_empty()) || has_kubernetes()
        };
        let main: Vec<&Block> = corefile.blocks.iter().filter(is_main).collect();
        if main.is_empty() {
            return Err(Trouble::NoMain);
        }
        // A block without plain DNS may be bound to what it likes.
        let main: Vec<&Block> = main
            .into_iter()
            .filter(|block| block.keys.iter().any(Key::is_plain))
            .collect();
        let [first, rest @ ..] = main.as_slice() else {
            return Err(Trouble::NotPlain);
        };
        let bind = bind(corefile, first)?;
        for block in rest {
            if self::bind(corefile, block)? != bind {
                return Err(Trouble::Bound);
            }
        }
        let mut keys: Vec<Key> = Vec::new();
        for key in main
            .iter()
            .flat_map(|block| &block.keys)
            .filter(|key| key.is_plain())
        {
            let key = Key {
                zone: SLICE_ZONE.to_owned(),
                ..key.clone()
            };
            // Twice the same would stop CoreDNS.
            if !keys.iter().any(|known| port(known) == port(&key)) {
                keys.push(key);
            }
        }
        Ok(Self { keys, bind, dns })
    }

    /// The block as text, without the marks.
    pub fn render(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let bind = match self.bind.is_empty() {
            true => String::new(),
            false => format!("    bind {}\n", self.bind.join(" ")),
        };
        // No cache: an endpoint that is no longer ready must be gone from the next answer.
        format!(
            "{} {{\n    errors\n{bind}    forward . {}\n}}\n",
            keys.join(" "),
            self.dns
        )
    }

    /// Whether a block is this one, whatever it looks like.
    fn is(&self, block: &Block) -> bool {
        let plugin = |name: &str, arguments: &[String]| Directive {
            name: name.to_owned(),
            arguments: arguments.to_vec(),
            is_block: false,
        };
        let mut wanted = vec![plugin("errors", &[])];
        if !self.bind.is_empty() {
            wanted.push(plugin("bind", &self.bind));
        }
        wanted.push(plugin("forward", &[".".to_owned(), self.dns.to_string()]));
        let keys = || block.keys.iter().zip(&self.keys);
        block.keys.len() == self.keys.len()
            && keys().all(|(there, wanted)| is_same_listener(there, wanted))
            && block.directives == wanted
    }
}

/// A Corefile with the block, once. One that has it is not touched, with the marks or without.
///
/// # Errors
/// Where it is left as it is.
pub fn with(text: &str, dns: IpAddr) -> Result<String, Trouble> {
    let corefile = corefile::read(text)?;
    if let Some(line) = foreign(text, &corefile, dns) {
        return Err(Trouble::Foreign(line));
    }
    let stub = Stub::of(&corefile, dns)?;
    if let [own] = own(text, &corefile, Some(dns)).as_slice()
        && stub.is(own)
    {
        return Ok(text.to_owned());
    }
    let rest = without(text, Some(dns));
    let block = stub.render();
    // Whether the text ended with a line break can be seen from how the block ends.
    let after = match rest.is_empty() || rest.ends_with('\n') {
        true => format!("{rest}{BEGIN}\n{block}{END}\n"),
        false => format!("{rest}\n{BEGIN}\n{block}{END}"),
    };
    // What CoreDNS would not take is not written.
    let read = corefile::read(&after)?;
    debug_assert_eq!(own(&after, &read, Some(dns)).len(), 1, "{after}");
    Ok(after)
}

/// What belongs into a ConfigMap whose blocks a Corefile imports.
///
/// # Errors
/// Where nobody knows what that is.
pub fn imported(text: &str, dns: IpAddr) -> Result<Stub, Trouble> {
    Stub::of(&corefile::read(text)?, dns)
}

/// A Corefile without the block: as it was before. `dns` is where it forwards to, where that is known.
pub fn without(text: &str, dns: Option<IpAddr>) -> String {
    let ranges = match corefile::read(text) {
        Ok(corefile) => {
            let blocks = own(text, &corefile, dns);
            let blocks = blocks.into_iter().map(|block| block.span.clone());
            let marks = marks(text, &corefile).map(|(_, span)| span.clone());
            blocks.chain(marks).collect()
        }
        // Between the marks, where nothing but the block is there.
        Err(_) => section(text).into_iter().collect(),
    };
    cut(text, ranges)
}

/// The line of a block that serves the zone and is somebody else's.
pub fn foreign(text: &str, corefile: &Corefile, dns: IpAddr) -> Option<usize> {
    let own = own(text, corefile, Some(dns));
    let is_own = |block: &Block| own.iter().any(|own| own.span == block.span);
    let serves = |block: &&Block| {
        let mut keys = block.keys.iter().filter(|key| key.is_plain());
        keys.any(|key| key.zone == SLICE_ZONE)
    };
    let mut blocks = corefile.blocks.iter().filter(serves);
    blocks.find(|block| !is_own(block)).map(|block| block.line)
}

/// The blocks that are ours: they serve the zone and no other, and stand between the marks or forward to `dns`.
pub fn own<'a>(text: &str, corefile: &'a Corefile, dns: Option<IpAddr>) -> Vec<&'a Block> {
    let is_own = |block: &&Block| {
        block.keys.iter().all(|key| key.zone == SLICE_ZONE)
            && (is_marked(text, corefile, block) || dns.is_some_and(|dns| forwards(block, dns)))
    };
    corefile.blocks.iter().filter(is_own).collect()
}

fn bind(corefile: &Corefile, block: &Block) -> Result<Vec<String>, Trouble> {
    let mut arguments = Vec::new();
    for plugin in corefile.plugins(block) {
        if plugin.name != "bind" {
            continue;
        }
        let is_word = |word: &String| !word.is_empty() && !word.contains([' ', '"', '#', '\t', '\n']);
        if plugin.is_block || !plugin.arguments.iter().all(is_word) {
            return Err(Trouble::Bound);
        }
        arguments.extend(plugin.arguments.iter().cloned());
    }
    Ok(arguments)
}

fn is_same_listener(a: &Key, b: &Key) -> bool {
    a.is_plain() && b.is_plain() && a.zone == b.zone && a.port == b.port
}

/// Where a block listens that names no port, unless CoreDNS was told otherwise on its command line.
fn port(key: &Key) -> &str {
    key.port.as_deref().unwrap_or("53")
}

fn forwards(block: &Block, dns: IpAddr) -> bool {
    let is_ours = |directive: &Directive| match directive.arguments.as_slice() {
        [from, to] => directive.name == "forward" && from == "." && to.parse() == Ok(dns),
        _ => false,
    };
    block.directives.iter().any(is_ours)
}

/// The lines that mark the block.
fn marks<'a>(text: &'a str, corefile: &'a Corefile) -> impl Iterator<Item = (&'a str, &'a Range<usize>)> {
    let comments = corefile.comments.iter();
    let marks = comments.map(|comment| (text[comment.span.clone()].trim_end(), &comment.span));
    marks.filter(|(mark, _)| [BEGIN, END].contains(mark))
}

/// Whether the last mark before a block begins and the first behind it ends.
fn is_marked(text: &str, corefile: &Corefile, block: &Block) -> bool {
    let before = marks(text, corefile).take_while(|(_, span)| span.end <= block.span.start);
    let behind = marks(text, corefile).find(|(_, span)| span.start >= block.span.end);
    before.last().is_some_and(|(mark, _)| mark == BEGIN) && behind.is_some_and(|(mark, _)| mark == END)
}

/// From mark to mark, where one block of our zone is between them and nothing else.
fn section(text: &str) -> Option<Range<usize>> {
    let begin = text.find(BEGIN)?;
    let end = begin + text[begin..].find(END)? + END.len();
    let inside = corefile::read(&text[begin..end]).ok()?;
    let is_ours = inside.blocks.len() == 1 && inside.imports.is_empty();
    (is_ours && own(&text[begin..end], &inside, None).len() == 1).then_some(begin..end)
}

/// The text without these pieces, and without the lines on which nothing else stands.
fn cut(text: &str, mut ranges: Vec<Range<usize>>) -> String {
    ranges.sort_by_key(|range| range.start);
    let mut rest = String::new();
    let mut from = 0;
    let mut ends_open = false;
    for range in ranges {
        let line = text[..range.start].rfind('\n').map_or(0, |end| end + 1);
        let end = text[range.end..].find('\n').map(|length| range.end + length);
        let begins_line = text[line..range.start].trim().is_empty();
        let ends_line = text[range.end..end.unwrap_or(text.len())].trim().is_empty();
        let whole = match (begins_line && ends_line, end) {
            (true, Some(end)) => line..end + 1,
            (true, None) => line..text.len(),
            (false, _) => range,
        };
        ends_open = begins_line && ends_line && end.is_none();
        rest.push_str(&text[from..whole.start.max(from)]);
        from = whole.end.max(from);
    }
    rest.push_str(&text[from..]);
    // The line break before what was at the end was put there with it.
    if ends_open && rest.ends_with('\n') {
        rest.pop();
    }
    rest
}
