//! Kubernetes clients.
//!
//! A way to an API server can be lost without a word: a firewall that drops, a translator that has forgotten a connection.
//! A watch would wait for minutes on such a connection. So the kernel asks the peer every few seconds whether it is there
//! (TCP keepalive), and gives up on data that nobody acknowledges (RFC 5482): what waits on the connection then fails, and
//! is taken up again on another.

use std::time::Duration;

use anyhow::Context;
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt},
};
use tower::{BoxError, ServiceBuilder};

/// After this long without traffic the peer is asked whether it is there, and so often again.
const KEEPALIVE: Duration = Duration::from_secs(4);
/// Questions without an answer after which the connection is given up.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent data may stay unacknowledged before the connection is given up.
pub const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Installs the process's TLS provider. Call it once, before the first client.
pub fn install_crypto_provider() {
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for the cluster that the process runs in, or for the kubeconfig's current context outside one.
///
/// # Errors
/// Where neither a service account nor a kubeconfig can be read.
pub async fn local() -> anyhow::Result<Client> {
    install_crypto_provider();
    let config = Config::infer()
        .await
        .context("find a service account or a kubeconfig")?;
    with(config).context("set up the Kubernetes client")
}

/// A client that notices a way that is lost. It follows the files of a service account where the configuration names
/// them, and asks again by itself nothing that changes anything: that is its user's to decide.
///
/// # Errors
/// Where certificates or credentials of the configuration cannot be used.
pub fn with(config: Config) -> anyhow::Result<Client> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build::<_, Body>(https));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
