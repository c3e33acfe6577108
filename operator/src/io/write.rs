//! Carrying writes out.

use std::{collections::BTreeSet, time::Duration};

use kube::{
    Api, Client, Error,
    api::{
        DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
        PropagationPolicy,
    },
};
use serde_json::Value;
use slice_runtime::lease;

use super::watch::raw;
use crate::control::{Change, Failure, Id, Key, Kind, Meta, Observed, Outcome, Reason, Write, kind::Manner};

/// Writes to one API server at once.
pub(super) const AT_ONCE: usize = 16;
/// How long one write may take: it is over before anybody else may lead.
const DEADLINE: Duration = lease::WRITE;

/// How long the list may take that a controller takes the lead with.
const LIST_DEADLINE: Duration = Duration::from_secs(30);

/// What became of a write, and the object where there is one.
pub(super) struct Done {
    pub(super) key: Key,
    pub(super) outcome: Outcome,
    pub(super) object: Option<Value>,
    pub(super) took: Duration,
}

/// Carries one write out.
pub(super) async fn execute(client: Client, manager: &'static str, write: Write) -> Done {
    let started = tokio::time::Instant::now();
    let result = match tokio::time::timeout(DEADLINE, send(&client, manager, &write)).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(failure(&error)),
        Err(_) => Err(Failure {
            reason: Reason::Timeout,
            message: format!("the API server did not answer within {DEADLINE:?}"),
        }),
    };
    let (outcome, object) = match result {
        Ok(Some(object)) => {
            let object = raw(object);
            (
                Outcome::Written(Observed::of(write.key.kind, &object)),
                Some(object),
            )
        }
        Ok(None) => (Outcome::Deleted, None),
        Err(failure) => (Outcome::Failed(failure), None),
    };
    Done {
        key: write.key,
        outcome,
        object,
        took: started.elapsed(),
    }
}

async fn send(client: &Client, manager: &'static str, write: &Write) -> kube::Result<Option<DynamicObject>> {
    let Key {
        kind,
        namespace,
        name,
    } = &write.key;
    let resource = kind.resource();
    let api: Api<DynamicObject> = match kind.is_namespaced() {
        true => Api::namespaced_with(client.clone(), namespace, &resource),
        false => Api::all_with(client.clone(), &resource),
    };
    let apply = PatchParams::apply(manager).force();
    match &write.change {
        Change::Create { body } => {
            let object: DynamicObject = serde_json::from_value(body.clone()).map_err(Error::SerdeError)?;
            let params = PostParams {
                field_manager: Some(manager.to_owned()),
                ..PostParams::default()
            };
            match api.create(&params, &object).await {
                // Nobody watches it, so nobody knew.
                Err(Error::Api(status)) if status.code == 409 && !kind.is_watched() => {
                    api.get(name).await.map(Some)
                }
                answer => answer.map(Some),
            }
        }
        Change::Apply { body } if kind.manner() == Manner::Status => api
            .patch_status(name, &apply, &Patch::Apply(body))
            .await
            .map(Some),
        Change::Apply { body } => api.patch(name, &apply, &Patch::Apply(body)).await.map(Some),
        Change::Patch { body } => api
            .patch(name, &PatchParams::default(), &Patch::Merge(body))
            .await
            .map(Some),
        Change::Delete { uid } => {
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                preconditions: Some(Preconditions {
                    uid: Some(uid.to_string()),
                    ..Preconditions::default()
                }),
                ..DeleteParams::default()
            };
            match api.delete(name, &params).await {
                Ok(_) => Ok(None),
                Err(Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(error),
            }
        }
    }
}

fn failure(error: &Error) -> Failure {
    let reason = match error {
        Error::Api(status) => match status.code {
            404 => Reason::NotFound,
            409 => Reason::Conflict,
            400 | 413 | 422 => Reason::Refused,
            401 | 403 => Reason::Forbidden,
            _ => Reason::Unavailable,
        },
        Error::SerdeError(_) => Reason::Refused,
        _ => Reason::Unavailable,
    };
    Failure {
        reason,
        message: match error {
            Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        },
    }
}

/// Everything of a kind as a quorum has it, and what it is called: what a controller takes the lead with.
pub(super) async fn list(
    client: &Client,
    kind: Kind,
    namespace: &str,
) -> kube::Result<(Vec<Value>, BTreeSet<Id>)> {
    let resource = kind.resource();
    let api: Api<DynamicObject> = match kind.is_namespaced() {
        true => Api::namespaced_with(client.clone(), namespace, &resource),
        false => Api::all_with(client.clone(), &resource),
    };
    // Without a resource version: the newest there is.
    let params = ListParams::default();
    match tokio::time::timeout(LIST_DEADLINE, api.list(&params)).await {
        Ok(list) => {
            let objects: Vec<Value> = list?.items.into_iter().map(raw).collect();
            let there = objects.iter().map(|object| Meta::of(object).id()).collect();
            Ok((objects, there))
        }
        Err(_) => Err(Error::Service("the API server did not answer a list".into())),
    }
}
