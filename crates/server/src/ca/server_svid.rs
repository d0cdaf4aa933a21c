//! The server's own X509-SVID: what agents and administrators see when they connect.
//!
//! Its key lives in memory only. It is renewed at half of its life, and at once when what signed it is tainted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use spiffe::clock::unix_seconds;
use spiffe::key::KeyPair;
use spiffe::rotation::half_life;
use spiffe::tls::CertResolver;
use spiffe::x509::Certificate;

use super::authority::moment;
use super::gate::IssuedX509;
use super::grant::Grant;
use super::{Ca, CaError};
use crate::audit::{CallContext, Outcome};
use crate::metrics::SERVER_SVID_RENEWAL;

/// The current one, and where it is shown.
#[derive(Debug)]
pub(super) struct ServerSvid {
    resolver: Arc<CertResolver>,
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    svid: Arc<IssuedX509>,
    /// The authority key id of the leaf and of each certificate of the chain.
    signed_by: Vec<Vec<u8>>,
}

impl ServerSvid {
    pub(super) fn new(resolver: Arc<CertResolver>) -> Self {
        Self {
            resolver,
            current: Mutex::new(None),
        }
    }

    fn show(&self, svid: IssuedX509, key: &KeyPair) -> Result<(), CaError> {
        self.resolver
            .set(svid.chain.iter().map(AsRef::as_ref), key)
            .map_err(|error| CaError::Trial(error.to_string()))?;
        let certificates = svid
            .chain
            .iter()
            .filter_map(|der| Certificate::from_der(der).ok());
        let signed_by = certificates
            .filter_map(|one| one.authority_key_id().map(<[u8]>::to_vec))
            .collect();
        let current = Current {
            svid: Arc::new(svid),
            signed_by,
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
        Ok(())
    }

    /// The chain that is shown now, if there is one yet.
    pub(super) fn current(&self) -> Option<Arc<IssuedX509>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|current| Arc::clone(&current.svid))
    }

    fn is_due(&self, now: SystemTime, tainted: &[Vec<u8>]) -> bool {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().is_none_or(|current| {
            // One from the future was made before a clock was set back: nobody accepts it until then.
            now < current.svid.not_before
                || now >= half_life(current.svid.not_before, current.svid.not_after)
                || current.signed_by.iter().any(|id| tainted.contains(id))
        })
    }
}

impl Ca {
    /// Where TLS finds the server's certificate and key.
    pub fn resolver(&self) -> Arc<CertResolver> {
        Arc::clone(&self.server_svid.resolver)
    }

    /// The chain that the server shows now.
    pub fn server_svid(&self) -> Option<Arc<IssuedX509>> {
        self.server_svid.current()
    }

    /// Renews the server's SVID if it is due. SPIRE looks every five seconds.
    ///
    /// # Errors
    /// It is due and could not be renewed; the current one stays.
    pub async fn tick_server_svid(&self, now: SystemTime) -> Result<(), CaError> {
        let bundle = self.context.registry.bundle(&self.trust_domain);
        let tainted: Vec<Vec<u8>> = bundle
            .iter()
            .flat_map(|bundle| &bundle.x509_authorities)
            .filter(|authority| authority.tainted)
            .filter_map(|authority| authority.certificate.subject_key_id().map(<[u8]>::to_vec))
            .collect();
        if !self.server_svid.is_due(now, &tainted) {
            return Ok(());
        }
        let timer = self.telemetry.start(&SERVER_SVID_RENEWAL, []);
        let renewed = self.renew_server_svid().await;
        timer.end_with(&renewed);
        renewed
    }

    async fn renew_server_svid(&self) -> Result<(), CaError> {
        let key_type = self.profile.server_key_type;
        // An RSA key takes long enough to make others wait.
        let key = tokio::task::spawn_blocking(move || KeyPair::generate(key_type)).await;
        let key = key
            .map_err(|cut_off| CaError::Trial(cut_off.to_string()))?
            .map_err(|error| CaError::Trial(error.to_string()))?;
        let record = self.auditor.begin(|| CallContext {
            service: "server".to_owned(),
            method: "RenewServerSVID".to_owned(),
            ..CallContext::default()
        });
        let issued = self
            .issue_x509(
                &Grant::server(&self.trust_domain),
                key.public_key(),
                &record,
            )
            .await
            .map_err(|error| CaError::Trial(error.to_string()));
        record.finish_now(match &issued {
            Ok(_) => Outcome::Success,
            Err(error) => Outcome::Error {
                code: "Internal",
                message: error.to_string(),
            },
        });
        let issued = issued?;
        let (serial, expires_at) = (issued.serial.clone(), issued.not_after);
        self.server_svid.show(issued, &key)?;
        tracing::info!(
            serial,
            expiration = moment(unix_seconds(expires_at)),
            "server SVID renewed"
        );
        Ok(())
    }
}
