//! Keys and certificates of one cluster: its authority, the servers, and a
//! client certificate for everybody who talks to the API server.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::family::Family;
use super::plan::{Cluster, Machine};

/// The clients, their user name and group. Kubernetes reads them from the certificate's subject
/// (kubernetes.io, "PKI certificates and requirements").
const CLIENTS: [(&str, &str, &str); 4] = [
    ("admin", "kubernetes-admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// Writes everything of one cluster into `dir`: `NAME.crt`, `NAME.key`, and `NAME.kubeconfig` for clients.
pub fn write(cluster: &Cluster, family: Family, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let authority = Authority::new(cluster, family, dir)?;

    let tokens = KeyPair::generate().context("generate the key of service account tokens")?;
    put(dir, "service-account.key", &tokens.serialize_pem())?;
    put(dir, "service-account.pub", &tokens.public_key_pem())?;

    let mut names = addresses(&cluster.control_plane, family);
    names.extend(family.ranges().iter().map(|ranges| ranges.api.to_string()));
    let fixed = [
        "127.0.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    names.extend(fixed.map(str::to_owned));
    authority.issue("apiserver", "kube-apiserver", "", names)?;
    authority.issue(
        "kubelet-client",
        "kube-apiserver-kubelet-client",
        "system:masters",
        vec![],
    )?;
    authority.issue("front-proxy", "front-proxy-client", "", vec![])?;
    for (file, user, group) in CLIENTS {
        authority.client(cluster, file, user, group, vec![])?;
    }
    for node in &cluster.nodes {
        let user = format!("system:node:{}", node.name);
        let mut names = addresses(node, family);
        names.extend([node.name.clone(), node.other_ip4().to_string()]);
        authority.client(cluster, &node.name, &user, "system:nodes", names)?;
    }
    Ok(())
}

fn addresses(machine: &Machine, family: Family) -> Vec<String> {
    let addresses = machine.addresses(family);
    addresses.iter().map(ToString::to_string).collect()
}

/// One kubeconfig with a context per cluster, named like the cluster, for its administrator.
pub fn kubeconfig<'a>(clusters: impl Iterator<Item = (&'a Cluster, &'a Path)>) -> Result<Value> {
    let mut merged =
        json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []});
    for (cluster, dir) in clusters {
        let text = fs::read(dir.join("admin.kubeconfig")).context("read the administrator's kubeconfig")?;
        let one: Value = serde_json::from_slice(&text).context("parse the administrator's kubeconfig")?;
        for list in ["clusters", "users", "contexts"] {
            let items = one[list].as_array().cloned().unwrap_or_default();
            merged[list].as_array_mut().context("a list")?.extend(items);
        }
        if merged.get("current-context").is_none() {
            merged["current-context"] = json!(cluster.name);
        }
    }
    Ok(merged)
}

struct Authority<'a> {
    dir: &'a Path,
    family: Family,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(cluster: &Cluster, family: Family, dir: &'a Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("weft-lab-{}", cluster.name), "");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().context("generate the authority's key")?;
        let certificate = params
            .self_signed(&key)
            .context("sign the authority's certificate")?
            .pem();
        put(dir, "ca.crt", &certificate)?;
        put(dir, "ca.key", &key.serialize_pem())?;
        Ok(Self {
            dir,
            family,
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Issues a certificate that may serve (when it has names) and call.
    fn issue(&self, file: &str, user: &str, group: &str, names: Vec<String>) -> Result<(String, String)> {
        let mut params = CertificateParams::new(names).with_context(|| format!("names of {file}"))?;
        params.distinguished_name = subject(user, group);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().with_context(|| format!("generate the key of {file}"))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign {file}"))?
            .pem();
        let key = key.serialize_pem();
        put(self.dir, &format!("{file}.crt"), &certificate)?;
        put(self.dir, &format!("{file}.key"), &key)?;
        Ok((certificate, key))
    }

    fn client(
        &self,
        cluster: &Cluster,
        file: &str,
        user: &str,
        group: &str,
        names: Vec<String>,
    ) -> Result<()> {
        let (certificate, key) = self.issue(file, user, group, names)?;
        // A context is named like its cluster, its user like both: files of several clusters can be merged.
        let user = format!("{}-{file}", cluster.name);
        let server = format!("https://{}", cluster.api_server(self.family));
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster.name,
            "clusters": [{"name": cluster.name, "cluster": {
                "server": server, "certificate-authority-data": base64(self.certificate.as_bytes())}}],
            "users": [{"name": user, "user": {
                "client-certificate-data": base64(certificate.as_bytes()), "client-key-data": base64(key.as_bytes())}}],
            "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": user}}],
        });
        put(self.dir, &format!("{file}.kubeconfig"), &config.to_string())
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn subject(user: &str, group: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !group.is_empty() {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
