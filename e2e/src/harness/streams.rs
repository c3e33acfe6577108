//! Two conversations that go on while something else is done to the clusters.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join;

use super::{Session, weft::Member};
use crate::probe::Conversation;

/// Both are over so long after their last message, or never.
const END: Duration = Duration::from_secs(60);

/// How both talk.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two messages.
    pub interval: Duration,
    /// Silences so long are listed.
    pub gap: Duration,
    pub lasts: Duration,
}

/// A UDP conversation and a TCP connection from one pod to another, echoed there.
pub struct Streams {
    udp: Session,
    tcp: Session,
    deadline: Duration,
}

impl Streams {
    /// Comes back when both talk.
    pub async fn start(from: &Member, to: &Member, pace: Pace) -> Result<Self> {
        let address = to.v4()?.to_string();
        let [interval, gap] = [pace.interval, pace.gap].map(|time| time.as_millis().to_string());
        let seconds = pace.lasts.as_secs().to_string();
        let start = async |over: &str| {
            let stream = [
                "stream",
                &address,
                "--over",
                over,
                "--interval",
                &interval,
                "--gap",
                &gap,
                "--seconds",
                &seconds,
            ];
            from.cluster
                .start_probe(&from.namespace, &from.name, &stream)
                .await
        };
        Ok(Self {
            udp: start("udp").await?,
            tcp: start("tcp").await?,
            deadline: pace.lasts + END,
        })
    }

    /// Waits for the end of both; what UDP and TCP went through.
    pub async fn finish(self) -> Result<(Conversation, Conversation)> {
        let ends = tokio::time::timeout(self.deadline, try_join(self.udp.finish(), self.tcp.finish()));
        let (udp, tcp) = ends.await.context("the conversations do not end")??;
        Ok((udp.json()?, tcp.json()?))
    }
}
