//! Connections to the server: before attestation, as the node, and a probe.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use config::fault::{Code, Fault};
use plugin::key_manager::signing_key;
use rustls_pki_types::ServerName;
use spiffe::bundle::{Bundle, X509Bundle};
use spiffe::csr::{build_csr, build_csr_with};
use spiffe::digest::{hex, sha256_hex};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, Signer};
use spiffe::svid::x509::BundleSource;
use spiffe::tls::{
    CertResolver, Expected, InsecureServerVerifier, KeyExchange, SpiffeServerVerifier, TlsError,
    client_config, insecure_client_config,
};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::{Certificate, Subject};

use crate::bootstrap::Trust;
use crate::node::{Node, NodeIdentity};
use crate::server_client::ServerClient;

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The authorities that the server's certificate has to come from, as they are now.
#[derive(Debug, Clone)]
pub(crate) struct TrustStore(Arc<RwLock<Arc<X509Bundle>>>);

impl TrustStore {
    pub(crate) fn new(bundle: &Bundle) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(bundle.x509_bundle()))))
    }

    /// From the next handshake on.
    pub(crate) fn set(&self, bundle: &Bundle) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(bundle.x509_bundle());
    }
}

impl BundleSource for TrustStore {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        let bundle = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        (bundle.trust_domain() == trust_domain).then_some(bundle)
    }
}

/// A client for a node that has no SVID yet.
///
/// # Errors
/// When the server's address can't be used.
pub(crate) fn unattested(node: &Node, trust: &Trust) -> Result<ServerClient, Fault> {
    let expected = Expected::Id(SpiffeId::server(&node.config.trust_domain));
    let tls = match trust {
        Trust::Bundle(bundle) => {
            let bundles = Arc::new(TrustStore::new(bundle));
            verified_tls(node, SpiffeServerVerifier::new(expected, bundles), None)?
        }
        Trust::Insecure => insecure_tls(node, expected)?,
    };
    connect(node, tls)
}

/// A client for the attested node.
///
/// # Errors
/// When the server's address or the node's certificate can't be used.
pub(crate) fn as_node(
    node: &Node,
    identity: &NodeIdentity,
    trust: &TrustStore,
) -> Result<ServerClient, Fault> {
    let resolver = CertResolver::new();
    let chain = identity.svid.chain.iter().map(Certificate::der);
    let shown = match identity.key.local() {
        Some(key) => resolver.set(chain, key),
        None => resolver.set_signing(chain, signing_key(Arc::clone(&identity.key))),
    };
    shown.map_err(|error| {
        Fault::new(
            Code::AgentDataInvalid,
            "the node's SVID cannot be used for TLS",
        )
        .because(error)
    })?;
    let expected = Expected::Id(SpiffeId::server(&node.config.trust_domain));
    let verifier = SpiffeServerVerifier::new(expected, Arc::new(trust.clone()));
    connect(node, verified_tls(node, verifier, Some(resolver))?)
}

fn connect(node: &Node, tls: rustls::ClientConfig) -> Result<ServerClient, Fault> {
    let channel = proto::channel::lazy_tls(&node.config.server.authority(), tls);
    let client = |channel| ServerClient::new(channel, node.telemetry.clone());
    channel.map(client).map_err(|error| {
        Fault::new(Code::InvalidValue, "the server's address cannot be used")
            .at("agent.server_address")
            .because(error)
            .hint("a DNS name or an IP address")
    })
}

fn verified_tls(
    node: &Node,
    verifier: SpiffeServerVerifier,
    resolver: Option<CertResolver>,
) -> Result<rustls::ClientConfig, Fault> {
    let (clock, resolver) = (Arc::clone(&node.clock), resolver.map(Arc::new));
    client_config(Arc::new(verifier), resolver, clock, key_exchange(node)).map_err(no_tls)
}

fn insecure_tls(node: &Node, expected: Expected) -> Result<rustls::ClientConfig, Fault> {
    let (clock, verifier) = (
        Arc::clone(&node.clock),
        InsecureServerVerifier::new(expected),
    );
    insecure_client_config(Arc::new(verifier), clock, key_exchange(node)).map_err(no_tls)
}

fn key_exchange(node: &Node) -> KeyExchange {
    if node.config.server.require_pq_kem {
        KeyExchange::RequirePostQuantum
    } else {
        KeyExchange::PreferPostQuantum
    }
}

fn no_tls(error: TlsError) -> Fault {
    Fault::new(Code::Internal, "TLS cannot be set up").because(error)
}

/// The request for the node's own SVID. SPIRE: MakeCSRWithoutURISAN; the server gives the name.
///
/// # Errors
/// When the key can't sign it.
pub(crate) async fn agent_csr(key: &dyn Signer) -> Result<Vec<u8>, Fault> {
    let csr = build_csr_with(key, &Subject::spire(), &[], &[]).await;
    csr.map_err(|error| {
        Fault::new(Code::Internal, "the signing request cannot be made").because(error)
    })
}

/// The request for a workload's SVID. The server uses the key only; the name is SPIRE's habit.
pub(crate) fn workload_csr(
    key: &KeyPair,
    entry: &Entry,
) -> Result<Vec<u8>, spiffe::x509::BuildError> {
    build_csr(key, &Subject::spire(), &[entry.spiffe_id.as_str()], &[])
}

/// What a server showed to somebody who did not believe it.
#[derive(Debug)]
pub(crate) struct Shown(Vec<Certificate>);

impl Shown {
    /// The trust domain of the server's own name.
    pub(crate) fn trust_domain(&self) -> Option<TrustDomain> {
        let uri = self.0.first()?.uris().first()?;
        SpiffeId::parse(uri).ok().map(|id| id.trust_domain())
    }

    /// The last certificate, or who issued it, in words.
    pub(crate) fn describe(&self) -> String {
        let name = self.trust_domain().map_or_else(
            || "no SPIFFE ID".to_owned(),
            |trust_domain| trust_domain.to_string(),
        );
        match self.0.as_slice() {
            [.., last] if self.0.len() > 1 => format!("{} ({name})", fingerprint(last.der())),
            [leaf] => {
                let issuer = leaf
                    .authority_key_id()
                    .map(hex)
                    .unwrap_or_else(|| "unknown".to_owned());
                format!("a certificate of {name} signed by the CA with key id {issuer}")
            }
            _ => "no certificate".to_owned(),
        }
    }
}

/// Shakes hands with the server without believing it, to tell the operator who answers there.
pub(crate) async fn probe(node: &Node) -> Option<Shown> {
    let server = &node.config.server;
    let tls = Arc::new(insecure_tls(node, Expected::Any).ok()?);
    let name = ServerName::try_from(server.host().to_owned()).ok()?;
    let shake = async {
        let stream = proto::channel::connect_tcp(&server.authority())
            .await
            .ok()?;
        let stream = tokio_rustls::TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .ok()?;
        let certificates = stream.get_ref().1.peer_certificates()?;
        Some(Shown(
            certificates
                .iter()
                .filter_map(|der| Certificate::from_der(der).ok())
                .collect(),
        ))
    };
    tokio::time::timeout(PROBE_TIMEOUT, shake)
        .await
        .ok()
        .flatten()
}

/// `sha256:` and the digest of a certificate.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(der))
}
