//! Recording events on the users' objects.

use std::time::Duration;

use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;

use crate::{control::Notice, metrics::Metrics};

/// Notices on their way; more are dropped and counted.
const QUEUE: usize = 64;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Starts the recorder; what is sent to it becomes an event.
pub(super) fn start(
    client: Client,
    controller: &'static str,
    instance: String,
    metrics: Metrics,
) -> mpsc::Sender<Notice> {
    let (sender, mut notices) = mpsc::channel::<Notice>(QUEUE);
    let reporter = Reporter {
        controller: controller.into(),
        instance: Some(instance),
    };
    let recorder = Recorder::new(client, reporter);
    tokio::spawn(async move {
        while let Some(notice) = notices.recv().await {
            let event = Event {
                type_: if notice.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: notice.reason,
                note: Some(notice.message.chars().take(1000).collect()),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            let published = tokio::time::timeout(DEADLINE, recorder.publish(&event, &notice.regarding)).await;
            if !matches!(published, Ok(Ok(()))) {
                metrics.notices_dropped.inc();
            }
        }
    });
    sender
}
