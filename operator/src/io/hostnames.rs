//! Addresses of load balancers that have a name: asked for once a minute, and as soon as there is another name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch as state};
use tokio_util::sync::CancellationToken;

use crate::member::Event;

const PERIOD: Duration = Duration::from_secs(60);
/// The least between two rounds, however often names change.
const LEAST: Duration = Duration::from_secs(5);
/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names that are asked for; one gateway's load balancer has one.
const MOST_NAMES: usize = 256;
/// That are asked for at once.
const AT_ONCE: usize = 8;

/// Until `stop`. An answer is told each time; one like the last changes nothing.
pub(super) async fn run(
    mut names: state::Receiver<BTreeSet<String>>,
    to: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let ask = async {
        loop {
            let wanted: Vec<String> = names
                .borrow_and_update()
                .iter()
                .take(MOST_NAMES)
                .cloned()
                .collect();
            if !wanted.is_empty() {
                if to.send(Event::Resolved(all(wanted).await)).await.is_err() {
                    return;
                }
                tokio::time::sleep(LEAST).await;
            }
            let changed = tokio::time::timeout(PERIOD, names.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = ask => {}
    }
}

async fn all(names: Vec<String>) -> BTreeMap<String, Result<Vec<IpAddr>, String>> {
    let ask = |name: String| async move {
        let answer = one(&name).await;
        (name, answer)
    };
    let answers = stream::iter(names).map(ask);
    answers.buffer_unordered(AT_ONCE).collect().await
}

async fn one(name: &str) -> Result<Vec<IpAddr>, String> {
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(answers)) => Ok(answers.map(|answer| answer.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_asked_for_as_soon_as_they_are_known_and_each_has_its_own_answer() {
        let (names, asked) = state::channel(BTreeSet::new());
        let (to, mut events) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let asking = tokio::spawn(run(asked, to, stop.clone()));
        // A label of more than 63 characters is no name (RFC 1035 §2.3.4).
        let none = "x".repeat(64);
        names.send_replace(BTreeSet::from(["localhost".to_owned(), none.clone()]));
        let answer = tokio::time::timeout(Duration::from_secs(30), events.recv()).await;
        let Ok(Some(Event::Resolved(mut answers))) = answer else {
            panic!("{answer:?}");
        };
        let found = answers.remove("localhost").unwrap().unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
        assert!(answers[&none].is_err(), "{answers:?}");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), asking)
            .await
            .unwrap()
            .unwrap();
    }
}
