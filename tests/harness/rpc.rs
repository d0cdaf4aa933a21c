//! gRPC connections of the tests' own, for calls that no command makes: on Unix sockets, and over TLS as an agent.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_request, attest_agent_response,
};
use proto::spire::api::types::AttestationData;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// The connector brings its own transport, so the URI is only the `:authority`.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

/// A channel over a Unix socket.
pub async fn unix(path: &Path) -> Result<Channel> {
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Ok(endpoint().connect_with_connector(connector).await?)
}

/// A certificate chain and its key.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8.
    pub key: Vec<u8>,
}

/// A channel over TLS to a server whose certificate is not looked at.
pub async fn tls(address: SocketAddr, credentials: Option<&Credentials>) -> Result<Channel> {
    tls_from(None, address, credentials).await
}

/// As [`tls`], from an address of this machine: many of them are as many clients to the server.
pub async fn tls_from(
    source: Option<Ipv4Addr>,
    address: SocketAddr,
    credentials: Option<&Credentials>,
) -> Result<Channel> {
    let connector = TlsConnector::from(Arc::new(client_config(credentials)?));
    let service = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = match source {
                Some(source) => {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind((source, 0).into())?;
                    socket.connect(address).await?
                }
                None => TcpStream::connect(address).await?,
            };
            stream.set_nodelay(true)?;
            let name = ServerName::IpAddress(address.ip().into());
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Ok(endpoint().connect_with_connector(service).await?)
}

/// TLS of a client that trusts every server: the servers of the tests are its own.
pub fn client_config(credentials: Option<&Credentials>) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll(provider)));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(credentials) => {
            let chain = credentials
                .chain
                .iter()
                .cloned()
                .map(CertificateDer::from)
                .collect();
            let key = PrivateKeyDer::Pkcs8(credentials.key.clone().into());
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct TrustAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate request for `id` as SPIRE's agents make it, and its key (PKCS #8). Both DER.
pub fn certificate_request(id: Option<&str>) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut parameters = rcgen::CertificateParams::default();
    if let Some(id) = id {
        parameters
            .subject_alt_names
            .push(rcgen::SanType::URI(id.try_into()?));
    }
    let key = rcgen::KeyPair::generate()?;
    Ok((
        parameters.serialize_request(&key)?.der().to_vec(),
        key.serialize_der(),
    ))
}

/// Joins as an agent, as SPIRE's agent does on the wire, and returns the agent's credentials.
pub async fn attest(server: SocketAddr, join_token: &str) -> Result<Credentials> {
    attest_over(tls(server, None).await?, join_token).await
}

/// As [`attest`], over a connection without a client certificate.
pub async fn attest_over(channel: Channel, join_token: &str) -> Result<Credentials> {
    let (csr, key) = certificate_request(None)?;
    let data = AttestationData {
        r#type: "join_token".to_owned(),
        payload: join_token.as_bytes().to_vec(),
    };
    let params = attest_agent_request::Params {
        data: Some(data),
        params: Some(AgentX509svidParams { csr }),
    };
    let request = AttestAgentRequest {
        step: Some(attest_agent_request::Step::Params(params)),
    };
    let mut client = AgentClient::new(channel);
    let mut answers = client
        .attest_agent(tokio_stream::once(request))
        .await?
        .into_inner();
    let answer = answers
        .message()
        .await?
        .context("the server closed the stream")?;
    match answer.step {
        Some(attest_agent_response::Step::Result(result)) => {
            let chain = result.svid.context("no SVID in the answer")?.cert_chain;
            Ok(Credentials { chain, key })
        }
        other => anyhow::bail!("expected the result, got {other:?}"),
    }
}
