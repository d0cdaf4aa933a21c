//! TLS for the database driver, by rustls.

use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;

use super::conninfo::CONNECTION_STRING;
use super::tls_options::{Mode, Roots, TlsOptions, Verify};
use crate::datastore::error::SettingsError;

/// Where distributions keep the authorities they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// A file that is named and cannot be used.
fn unusable(path: &Path, because: impl std::fmt::Display) -> SettingsError {
    SettingsError {
        what: "a file for TLS with the database cannot be used".to_owned(),
        at: path.display().to_string(),
        because: because.to_string(),
        hint: "it must be PEM, and readable for the server's user".to_owned(),
    }
}

fn refused(error: &rustls::Error) -> SettingsError {
    SettingsError {
        what: "TLS with the database cannot be set up".to_owned(),
        at: CONNECTION_STRING.to_owned(),
        because: error.to_string(),
        hint: "check sslrootcert, sslcert and sslkey".to_owned(),
    }
}

impl Tls {
    /// Reads the files that the options name. Blocks.
    pub(super) fn new(options: &TlsOptions) -> Result<Self, SettingsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let is_used = options.mode != Mode::Disable;
        let roots = options.roots().filter(|_| is_used);
        let verify = options.verify(roots.as_ref());
        let inner = match verify {
            Verify::Nothing => None,
            Verify::Authority | Verify::Full => {
                let roots = Arc::new(read_roots(roots.as_ref().unwrap_or(&Roots::System))?);
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                        .build();
                Some(
                    verifier
                        .map_err(|error| refused(&rustls::Error::General(error.to_string())))?,
                )
            }
        };
        let verifier = Arc::new(Verifier {
            inner,
            provider: Arc::clone(&provider),
            verify,
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(options.versions)
            .map_err(|error| refused(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let client = if is_used { options.client()? } else { None };
        let mut config = match client {
            Some((cert, key)) => {
                let (chain, private_key) = read_client(&cert, &key)?;
                builder
                    .with_client_auth_cert(chain, private_key)
                    .map_err(|error| unusable(&cert, error))?
            }
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = options.sends_name;
        if options.is_direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
        })
    }
}

fn read_client(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SettingsError> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(cert, error))?;
    let metadata = std::fs::metadata(key).map_err(|error| unusable(key, error))?;
    // libpq: for the owner's eyes only, or for a group's when the owner is root.
    let mode = metadata.mode() & 0o7777;
    let allowed = if metadata.uid() == 0 { 0o640 } else { 0o600 };
    if mode & !allowed & 0o777 != 0 {
        return Err(SettingsError {
            what: "the key to sign in to the database with is not private".to_owned(),
            at: key.display().to_string(),
            because: format!("its mode is {mode:04o}"),
            hint: format!("run: chmod 0600 {} (0640 when root owns it)", key.display()),
        });
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error))?;
    Ok((chain, key))
}

fn read_roots(roots: &Roots) -> Result<RootCertStore, SettingsError> {
    let path = match roots {
        Roots::File(path) => path,
        Roots::System => SYSTEM_ROOTS
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or_else(|| SettingsError {
                what: "the database's certificate cannot be verified".to_owned(),
                at: CONNECTION_STRING.to_owned(),
                because: "no sslrootcert is set, and this system has no authorities of its own"
                    .to_owned(),
                hint: "set sslrootcert (or root_ca_path) to the CA of the database's certificate"
                    .to_owned(),
            })?,
    };
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(path, error))?;
    store.add_parsable_certificates(certificates);
    if store.is_empty() {
        Err(unusable(path, "it holds no certificate"))
    } else {
        Ok(store)
    }
}

/// The verification that the mode asks for, and no more.
#[derive(Debug)]
struct Verifier {
    /// None: the operator asked for encryption alone.
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    verify: Verify,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else {
            return Ok(ServerCertVerified::assertion());
        };
        match inner.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            // The chain is checked before the name, so a wrong name is all that is wrong.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Authority => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl<S> MakeTlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = TlsStream<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, io::Error> {
        // The driver asks for every connection, also for those without TLS and without a name.
        Ok(Handshake {
            connector: self.connector.clone(),
            name: ServerName::try_from(host.to_owned()),
        })
    }
}

/// A connection about to begin TLS.
pub(super) struct Handshake {
    connector: TlsConnector,
    name: Result<ServerName<'static>, InvalidDnsNameError>,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = TlsStream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TlsStream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let name = self.name.map_err(io::Error::other)?;
            self.connector
                .connect(name, stream)
                .await
                .map(|stream| TlsStream(Box::new(stream)))
        })
    }
}

/// The encrypted stream.
#[derive(Debug)]
pub(super) struct TlsStream<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> tokio_postgres::tls::TlsStream for TlsStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        // The driver then authenticates without binding to this channel, as libpq does by default with others.
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }
}
