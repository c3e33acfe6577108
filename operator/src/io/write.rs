//! Carrying writes out.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{
    Api, Client, Error, ResourceExt,
    api::{
        DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
        PropagationPolicy,
    },
};
use serde_json::{Value, json};
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
        Change::Apply { body } => {
            let applied = api.patch(name, &apply, &Patch::Apply(body)).await?;
            let Some(owners) = owners_by_apply(&applied, manager) else {
                return Ok(Some(applied));
            };
            let adopt = json!({
                "metadata": {"resourceVersion": applied.resource_version(), "managedFields": owners},
            });
            let adopted = api
                .patch(name, &PatchParams::default(), &Patch::Merge(adopt))
                .await?;
            let mut body = body.clone();
            body["metadata"]["resourceVersion"] = json!(adopted.resource_version());
            api.patch(name, &apply, &Patch::Apply(body)).await.map(Some)
        }
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

/// Who owns which fields of an object, where this manager owns some by another way than apply, as those of an object that it has
/// made: all of its own by apply then. Only so does the server take off what an apply leaves out (KEP-555; the same is done for
/// kubectl by client-go's `csaupgrade`).
fn owners_by_apply(object: &DynamicObject, manager: &str) -> Option<Vec<ManagedFieldsEntry>> {
    let is_own = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(manager)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    };
    let entries = object.metadata.managed_fields.as_ref()?;
    let (own, mut owners): (Vec<_>, Vec<_>) = entries.iter().cloned().partition(is_own);
    if !own
        .iter()
        .any(|entry| entry.operation.as_deref() == Some("Update"))
    {
        return None;
    }
    let mut all = own.first()?.clone();
    for entry in &own[1..] {
        if let (Some(all), Some(more)) = (&mut all.fields_v1, &entry.fields_v1) {
            unite(&mut all.0, &more.0);
        }
    }
    all.operation = Some("Apply".to_owned());
    owners.push(all);
    Some(owners)
}

/// Adds one set of fields to another; both are trees of names.
fn unite(all: &mut Value, more: &Value) {
    if let (Value::Object(all), Value::Object(more)) = (all, more) {
        for (name, below) in more {
            unite(all.entry(name).or_insert_with(|| json!({})), below);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_by_another_way_becomes_ones_own_by_apply() {
        let entry = |manager: &str, operation: &str, subresource: &str, fields: Value| json!({"manager": manager, "operation": operation, "subresource": subresource, "fieldsV1": fields});
        let object = |entries: Value| -> DynamicObject {
            serde_json::from_value(json!({"metadata": {"name": "shop", "managedFields": entries}})).unwrap()
        };
        let other = entry(
            "kubectl",
            "Update",
            "",
            json!({"f:metadata": {"f:labels": {"f:team": {}}}}),
        );
        let status = entry("weft", "Apply", "status", json!({"f:status": {}}));
        let made = json!({"f:spec": {"f:vni": {}, "f:peers": {"k:{\"name\":\"b\"}": {"f:name": {}}}}});
        let applied = json!({"f:spec": {"f:vni": {}, "f:mtu": {}}});
        let mixed = json!([
            other,
            entry("weft", "Update", "", made),
            status,
            entry("weft", "Apply", "", applied)
        ]);
        let owners = json!(owners_by_apply(&object(mixed), "weft").unwrap());
        let all =
            json!({"f:spec": {"f:vni": {}, "f:mtu": {}, "f:peers": {"k:{\"name\":\"b\"}": {"f:name": {}}}}});
        assert_eq!(owners, json!([other, status, entry("weft", "Apply", "", all)]));
        assert!(owners_by_apply(&object(owners), "weft").is_none());
        assert!(owners_by_apply(&object(json!([other])), "weft").is_none());
    }
}
