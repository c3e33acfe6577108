//! Test pods and commands in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::cluster::{Cluster, is_ready};
use crate::probe::LOST;

/// Commands in pods end by themselves long before this.
const COMMAND: Duration = Duration::from_secs(120);

/// A test pod: one container that runs `weft-probe serve` unless told otherwise.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub name: String,
    image: String,
    command: Option<Vec<String>>,
    readiness: Option<Value>,
    node: Option<String>,
    labels: BTreeMap<String, String>,
    spec: Value,
}

impl PodSpec {
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            command: None,
            readiness: None,
            node: None,
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            spec: json!({}),
        }
    }

    pub fn node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn command(mut self, argv: &[&str]) -> Self {
        self.command = Some(argv.iter().map(|word| (*word).to_owned()).collect());
        self
    }

    /// A readiness probe of its own.
    pub fn readiness(mut self, probe: Value) -> Self {
        self.readiness = Some(probe);
        self
    }

    /// Further fields of the pod's spec, as `{"hostNetwork": true}`.
    pub fn spec(mut self, more: Value) -> Self {
        merge(&mut self.spec, more);
        self
    }

    fn object(&self) -> Result<Pod> {
        let mut container = json!({
            "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent",
            // Raw sockets and interface settings, for the probe.
            "securityContext": {"capabilities": {"add": ["NET_RAW", "NET_ADMIN"]}}
        });
        match &self.command {
            Some(command) => container["command"] = json!(command),
            None => {
                container["command"] = json!(["/usr/bin/weft-probe", "serve"]);
                container["readinessProbe"] = json!({"tcpSocket": {"port": 7777}, "periodSeconds": 1});
            }
        }
        if let Some(readiness) = &self.readiness {
            container["readinessProbe"] = readiness.clone();
        }
        let mut spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
        if let Some(node) = &self.node {
            spec["nodeName"] = json!(node);
        }
        merge(&mut spec, self.spec.clone());
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name, "labels": self.labels}, "spec": spec
        }))
        .with_context(|| format!("pod {}", self.name))
    }
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

/// What a command in a pod said and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Output {
    /// The last line of standard output, as the probe prints its result.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let line = self.stdout.lines().next_back().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("no JSON result, code {}: {self:?}", self.code))
    }
}

impl Cluster {
    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates a pod without waiting for it.
    pub async fn create_pod(&self, namespace: &str, spec: &PodSpec) -> Result<Pod> {
        let pods = self.pods(namespace);
        let created = pods.create(&PostParams::default(), &spec.object()?).await;
        created.with_context(|| format!("create pod {namespace}/{} in cluster {}", spec.name, self.name))
    }

    /// Waits until a pod is Ready.
    pub async fn await_pod(&self, namespace: &str, name: &str, deadline: Duration) -> Result<Pod> {
        let what = format!("pod {namespace}/{name} Ready");
        self.await_object(&self.pods(namespace), name, &what, deadline, is_ready)
            .await
    }

    /// Runs a command in a pod to its end.
    pub async fn exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<Output> {
        let session = self.start(namespace, pod, argv).await?;
        let what = format!(
            "{} in pod {namespace}/{pod} of cluster {}",
            argv.join(" "),
            self.name
        );
        tokio::time::timeout(COMMAND, session.finish())
            .await
            .with_context(|| format!("{what}: no end after {COMMAND:?}"))?
            .context(what)
    }

    /// Runs `weft-probe` in a pod and reads its result, which also says what was lost. A probe that fails is an error with its
    /// words.
    pub async fn probe(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Value> {
        let argv: Vec<&str> = std::iter::once("/usr/bin/weft-probe")
            .chain(arguments.iter().copied())
            .collect();
        let output = self.exec(namespace, pod, &argv).await?;
        if ![0, LOST.into()].contains(&output.code) {
            bail!(
                "{} in {}/{namespace}/{pod}: {}{}",
                argv.join(" "),
                self.name,
                output.stdout.trim(),
                output.stderr.trim()
            );
        }
        output.json()
    }

    /// Starts `weft-probe` in a pod and waits until it says that it is ready.
    pub async fn start_probe(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<Session> {
        let argv: Vec<&str> = std::iter::once("/usr/bin/weft-probe")
            .chain(arguments.iter().copied())
            .collect();
        let mut session = self.start(namespace, pod, &argv).await?;
        let line = session.line().await?;
        if !line.contains("\"ready\":true") {
            bail!(
                "{} in {}/{namespace}/{pod} is not ready but says {line}",
                argv.join(" "),
                self.name
            );
        }
        Ok(session)
    }

    /// Starts a command in a pod.
    pub async fn start(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<Session> {
        let parameters = AttachParams::default().stdin(false).stdout(true).stderr(true);
        let mut process = self
            .pods(namespace)
            .exec(pod, argv.iter().copied(), &parameters)
            .await
            .with_context(|| format!("run {} in {}/{namespace}/{pod}", argv.join(" "), self.name))?;
        let stdout: Box<dyn AsyncRead + Send + Unpin> = Box::new(process.stdout().context("its output")?);
        let stderr: Box<dyn AsyncRead + Send + Unpin> = Box::new(process.stderr().context("its messages")?);
        Ok(Session {
            stdout: BufReader::new(stdout),
            stderr,
            process,
        })
    }
}

/// A command that runs in a pod.
pub struct Session {
    process: AttachedProcess,
    stdout: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    stderr: Box<dyn AsyncRead + Send + Unpin>,
}

impl Session {
    /// The next line of its output.
    pub async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        tokio::time::timeout(COMMAND, self.stdout.read_line(&mut line))
            .await
            .with_context(|| format!("no line after {COMMAND:?}"))?
            .context("read a line")?;
        Ok(line)
    }

    /// Waits for the end; what [`Session::line`] has read already is not repeated.
    pub async fn finish(mut self) -> Result<Output> {
        let status = self.process.take_status().context("its status")?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (out, err) = tokio::join!(
            self.stdout.read_to_string(&mut stdout),
            self.stderr.read_to_string(&mut stderr)
        );
        out.context("read its output")?;
        err.context("read its messages")?;
        let status = status.await.context("the connection ended before the command")?;
        let causes = status
            .details
            .and_then(|details| details.causes)
            .unwrap_or_default();
        let code = match status.status.as_deref() {
            Some("Success") => 0,
            _ => {
                let exit = causes
                    .iter()
                    .find(|cause| cause.reason.as_deref() == Some("ExitCode"));
                let code = exit.and_then(|cause| cause.message.as_deref()?.parse().ok());
                code.with_context(|| format!("not run: {}", status.message.unwrap_or_default()))?
            }
        };
        Ok(Output { stdout, stderr, code })
    }
}
