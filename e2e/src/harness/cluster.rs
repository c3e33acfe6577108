//! A cluster as a client sees it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    Api, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::core::Resource;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, ResourceExt, discovery};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The field manager of everything that tests and the lab apply.
const MANAGER: &str = "weft-lab";
/// Making and removing namespaces.
const TIDY: Duration = Duration::from_secs(60);
/// Pause between two tries where the API server itself is what is awaited.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Cluster {
    /// The kubeconfig context.
    pub name: String,
    pub client: Client,
    config: Config,
}

/// Opens a client for one context of a kubeconfig file. Makes no request yet.
pub async fn connect(kubeconfig: &Path, context: &str) -> Result<Cluster> {
    let config =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let options = KubeConfigOptions {
        context: Some(context.to_owned()),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(config, &options)
        .await
        .with_context(|| format!("context \"{context}\" of {}", kubeconfig.display()))?;
    let client = Client::try_from(config.clone())
        .with_context(|| format!("make a client of context \"{context}\""))?;
    Ok(Cluster {
        name: context.to_owned(),
        client,
        config,
    })
}

impl Cluster {
    /// A client that logs in with a token.
    pub fn with_token(&self, token: &str) -> Result<Client> {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        Client::try_from(config).context("make a client with a token")
    }

    /// A client as a service account; bound to a pod, its token has the claims that a kubelet's would have.
    pub async fn as_account(&self, namespace: &str, account: &str, pod: Option<&Pod>) -> Result<Client> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let bound = pod.map(|pod| BoundObjectReference {
            kind: Some("Pod".to_owned()),
            api_version: Some("v1".to_owned()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec {
                bound_object_ref: bound,
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("ask for a token of {namespace}/{account}"))?;
        self.with_token(&answer.status.context("a token")?.token)
    }

    /// Waits until the API server says that it is ready.
    pub async fn await_api(&self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        loop {
            let request = http_get("/readyz")?;
            let answer =
                tokio::time::timeout(Duration::from_secs(2), self.client.request_text(request)).await;
            let trouble = match answer {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() > until {
                bail!(
                    "the API server of cluster {} is not ready after {deadline:?}: {trouble}",
                    self.name
                );
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Applies every document of a YAML text, server-side, as the whole truth about the fields it names.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            self.apply_object(&object, &PatchParams::apply(MANAGER).force())
                .await?;
        }
        Ok(())
    }

    /// Has the API server check every document of a YAML text as if it were applied: unknown fields are errors, nothing
    /// changes.
    pub async fn check(&self, yaml: &str) -> Result<()> {
        let strict = PatchParams::apply(MANAGER).force().dry_run().validation_strict();
        for object in documents(yaml)? {
            self.apply_object(&object, &strict).await?;
        }
        Ok(())
    }

    /// Deletes every object of a YAML text; those that are gone already are fine.
    pub async fn delete(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            let deleted = self
                .api_of(&object)
                .await?
                .delete(&object.name_any(), &DeleteParams::default())
                .await;
            forgive_absence(deleted).with_context(|| format!("delete {}", object.name_any()))?;
        }
        Ok(())
    }

    /// Makes a namespace with the given labels, empty even if an earlier run left one of this name behind.
    pub async fn fresh_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.remove_namespace(name).await?;
        self.await_no_namespace(name).await?;
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("create namespace {name} in cluster {}", self.name))?;
        // Pods are refused until the controller has made it.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        self.await_object(&accounts, "default", "service account default", TIDY, |_| true)
            .await?;
        Ok(())
    }

    /// Removes a namespace. Kubernetes takes some seconds to empty it, for which nobody waits here.
    pub async fn remove_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let deleted = namespaces.delete(name, &DeleteParams::default()).await;
        forgive_absence(deleted).with_context(|| format!("delete namespace {name} in cluster {}", self.name))
    }

    /// Waits until a namespace and everything in it is gone.
    pub async fn await_no_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        poll(
            TIDY,
            &format!("cluster {}: namespace {name} gone", self.name),
            async || {
                Ok(namespaces
                    .get_opt(name)
                    .await
                    .context("ask for it")?
                    .is_none()
                    .then_some(()))
            },
        )
        .await
    }

    /// Names of the nodes, sorted.
    pub async fn nodes(&self) -> Result<Vec<String>> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let nodes = nodes.list(&ListParams::default()).await.context("list nodes")?;
        let mut names: Vec<String> = nodes.iter().map(ResourceExt::name_any).collect();
        names.sort();
        Ok(names)
    }

    async fn apply_object(&self, object: &DynamicObject, params: &PatchParams) -> Result<()> {
        let what = format!(
            "{} {}",
            object
                .types
                .as_ref()
                .map_or("object", |types| types.kind.as_str()),
            object.name_any()
        );
        let api = self.api_of(object).await?;
        api.patch(&object.name_any(), params, &Patch::Apply(object))
            .await
            .with_context(|| format!("apply {what} in cluster {}", self.name))?;
        Ok(())
    }

    async fn api_of(&self, object: &DynamicObject) -> Result<Api<DynamicObject>> {
        let types = object
            .types
            .as_ref()
            .context("an object without apiVersion and kind")?;
        let gvk = GroupVersionKind::try_from(types).context("read apiVersion")?;
        let (resource, capabilities) =
            discovery::pinned_kind(&self.client, &gvk)
                .await
                .with_context(|| {
                    format!(
                        "cluster {} knows no {} {}",
                        self.name, types.api_version, types.kind
                    )
                })?;
        let namespaced = capabilities.scope == discovery::Scope::Namespaced;
        let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
        Ok(match namespaced {
            true => Api::namespaced_with(self.client.clone(), &namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// Waits until an object exists and `holds` says yes; the error shows what was seen last.
    pub async fn await_object<K>(
        &self,
        api: &Api<K>,
        name: &str,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&K) -> bool,
    ) -> Result<K>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let mut last = None;
        let watch = async {
            let mut objects = std::pin::pin!(
                watcher(
                    api.clone(),
                    watcher::Config::default().fields(&format!("metadata.name={name}"))
                )
                .default_backoff()
                .applied_objects()
            );
            loop {
                match objects.try_next().await {
                    Ok(Some(object)) if holds(&object) => return object,
                    Ok(Some(mut object)) => {
                        // Long, and never the reason.
                        object.meta_mut().managed_fields = None;
                        last = Some(object);
                    }
                    // The watcher tries again by itself, with its back-off.
                    Ok(None) | Err(_) => {}
                }
            }
        };
        match tokio::time::timeout(deadline, watch).await {
            Ok(object) => Ok(object),
            Err(_) => bail!(
                "cluster {}: {what} is not so after {deadline:?}; last seen: {last:?}",
                self.name
            ),
        }
    }
}

/// What is gone already is deleted.
pub fn forgive_absence<T>(answer: kube::Result<T>) -> kube::Result<()> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Whether a pod's containers all say that they are ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Asks until there is an answer: for conditions over many objects, which no single watch can see.
pub async fn poll<T>(
    deadline: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + deadline;
    loop {
        let trouble = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if Instant::now() > until {
            bail!("{what}: not so after {deadline:?}{trouble}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn documents(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut found = Vec::new();
    for text in yaml.split("\n---") {
        let value: serde_json::Value =
            serde_saphyr::from_str(text).with_context(|| format!("parse YAML:\n{text}"))?;
        if !value.is_null() {
            found.push(DynamicObject::deserialize(value).context("read a Kubernetes object")?);
        }
    }
    Ok(found)
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .context("make a request")
}
