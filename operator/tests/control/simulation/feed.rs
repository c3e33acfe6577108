//! A watch of one kind: it lags behind the server's log, and is listed anew where it was broken.

use std::collections::BTreeSet;

use serde_json::Value;
use slice_operator::control::{Id, Meta};

use crate::server::{Server, Watched};

pub(crate) enum Signal {
    Seen(Value),
    Gone(Meta),
    /// Everything there is in the feed's namespace.
    Listed(Box<str>, BTreeSet<Id>),
}

pub(crate) struct Feed<S> {
    pub(crate) source: S,
    kind: String,
    /// The one namespace that it follows.
    pub(crate) namespace: Box<str>,
    /// It was begun because the role asked for its namespace, and ends so.
    pub(crate) comes_and_goes: bool,
    cursor: usize,
    is_listed: bool,
    takes: Box<dyn Fn(&Value) -> bool>,
}

impl<S: Copy> Feed<S> {
    pub(crate) fn new(source: S, kind: &str, takes: impl Fn(&Value) -> bool + 'static) -> Self {
        Self {
            source,
            kind: kind.to_owned(),
            namespace: "".into(),
            comes_and_goes: false,
            cursor: 0,
            is_listed: false,
            takes: Box::new(takes),
        }
    }

    /// Of one namespace.
    pub(crate) fn inside(source: S, kind: &str, namespace: &str) -> Self {
        let space = namespace.to_owned();
        Self {
            namespace: namespace.into(),
            ..Self::new(source, kind, move |object| {
                object["metadata"]["namespace"] == space.as_str()
            })
        }
    }

    /// The next changes: everything that there is, where it was not listed yet, and one afterwards.
    pub(crate) fn next(&mut self, server: &Server) -> Vec<Signal> {
        if !self.is_listed {
            return self.list(server);
        }
        while let Some((kind, change)) = server.log.get(self.cursor) {
            self.cursor += 1;
            if *kind != self.kind {
                continue;
            }
            match change {
                Watched::Applied(object) if (self.takes)(object) => {
                    return vec![Signal::Seen(object.clone())];
                }
                Watched::Deleted(object) if (self.takes)(object) => {
                    return vec![Signal::Gone(Meta::of(object))];
                }
                _ => {}
            }
        }
        vec![]
    }

    /// Everything that there is.
    pub(crate) fn list(&mut self, server: &Server) -> Vec<Signal> {
        self.cursor = server.log.len();
        self.is_listed = true;
        let objects: Vec<Value> = server
            .list(&self.kind)
            .filter(|object| (self.takes)(object))
            .cloned()
            .collect();
        let there = objects.iter().map(|object| {
            let meta = Meta::of(object);
            (meta.namespace, meta.name)
        });
        let there = there.collect();
        let mut signals: Vec<Signal> = objects.into_iter().map(Signal::Seen).collect();
        signals.push(Signal::Listed(self.namespace.clone(), there));
        signals
    }
}
