//! The documents that others ask for: minted by administrators, obtained by agents for their entries, and the signing
//! certificates of servers below.
//!
//! Reads what is asked for and makes the grant; what is issued is decided by the grant and checked by the gate in `ca`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use spiffe::csr::{Csr, CsrError, VerifiedCsr};
use spiffe::digest::sha256_hex;
use spiffe::entry::{check_wildcard_overlap, validate_dns_name};
use spiffe::id::SpiffeId;
use spiffe::svid::jwt::check_audience;
use spiffe::trust_domain::TrustDomain;

use super::{NOT_AUTHORIZED, not_issued};
use crate::audit::Fields;
use crate::ca::{Ca, Grant, IssuedJwt, IssuedX509};
use crate::caller::Caller;
use crate::error::{Kind, OpError, failed, malformed, refused};
use crate::registry::{Authorized, Registry};

#[derive(Debug)]
pub(crate) struct Svids {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ca: Arc<Ca>,
}

/// Which X509-SVID an agent asks for.
#[derive(Debug)]
pub(crate) struct X509Request {
    pub(crate) entry_id: String,
    /// DER. Only its key is used.
    pub(crate) csr: Vec<u8>,
}

/// A server below may sign with this.
#[derive(Debug)]
pub(crate) struct DownstreamCa {
    /// DER, the signing certificate first, without the root.
    pub(crate) chain: Vec<Arc<[u8]>>,
    /// DER, of the trust domain.
    pub(crate) roots: Vec<Vec<u8>>,
}

/// SPIRE: its agents ask for no more in one call, and its rate limit refuses more.
pub(crate) const MAX_BATCH: usize = 500;
/// Items of a batch between two moments at which other tasks of the thread may run.
const BATCH_STRIDE: usize = 16;

impl Svids {
    /// Issues an X509-SVID for what the administrator's CSR says. A `ttl` of 0 is the default.
    ///
    /// # Errors
    /// InvalidArgument for a CSR that no workload may have a certificate for.
    pub(crate) async fn mint_x509(
        &self,
        caller: &Caller,
        csr: &[u8],
        ttl: i32,
    ) -> Result<IssuedX509, OpError> {
        if csr.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing CSR"));
        }
        let digest = sha256_hex(csr);
        caller.describe(|| Fields::new().with("csr", &digest).with("ttl", ttl));
        let csr = verified(csr, "failed to verify CSR signature")?;
        let id = minted_identity(&self.trust_domain, &csr)?;
        let grant = Grant::minted(caller.admin()?, id, ttl)
            .with_names(csr.dns_names().to_vec(), csr.subject())
            .with_field("csr", digest);
        let issued = self.ca.issue_x509(&grant, csr.public_key(), &caller.record);
        issued.await.map_err(not_issued("failed to sign X509-SVID"))
    }

    /// Issues a JWT-SVID to the workload that the administrator names. A `ttl` of 0 is the default.
    ///
    /// # Errors
    /// Unimplemented when JWT-SVIDs are disabled; InvalidArgument without an audience.
    pub(crate) async fn mint_jwt(
        &self,
        caller: &Caller,
        id: SpiffeId,
        audience: &[String],
        ttl: i32,
    ) -> Result<IssuedJwt, OpError> {
        id.check_workload(&self.trust_domain)
            .map_err(malformed("invalid SPIFFE ID"))?;
        let grant = Grant::minted(caller.admin()?, id, ttl);
        self.jwt(caller, grant, audience).await
    }

    /// Issues an agent the SVIDs of entries that it is authorized for. Each item has an outcome of its own.
    ///
    /// # Errors
    /// ResourceExhausted for too many items; when the caller is no longer what it was let in as.
    pub(crate) async fn new_x509(
        &self,
        caller: &Caller,
        requests: &[X509Request],
    ) -> Result<Vec<Result<IssuedX509, OpError>>, OpError> {
        check_batch(requests.len())?;
        let agent = caller.agent()?;
        let items = requests.iter().enumerate();
        let items = items.map(|(at, request)| self.batch_item(caller, agent.id(), at, request));
        // A key in memory signs one after the other; one that has to be asked gets several requests at a time.
        let at_once = self.ca.x509_signatures_at_once();
        let mut results = Vec::with_capacity(requests.len());
        if at_once == 1 {
            for item in items {
                results.push(item.await?);
            }
        } else {
            let items: Vec<_> = items.collect();
            let mut signed = stream::iter(items).buffered(at_once);
            while let Some(result) = signed.next().await {
                results.push(result?);
            }
        }
        Ok(results)
    }

    /// Issues an agent a JWT-SVID of an entry that it is authorized for.
    ///
    /// # Errors
    /// Unimplemented when JWT-SVIDs are disabled; NotFound; InvalidArgument without an audience.
    pub(crate) async fn new_jwt(
        &self,
        caller: &Caller,
        entry_id: &str,
        audience: &[String],
    ) -> Result<IssuedJwt, OpError> {
        let entry = self.authorized(caller.agent()?.id(), entry_id)?;
        let ttl = entry.jwt_svid_ttl;
        let grant = Grant::entry(entry).with_field("ttl", ttl);
        self.jwt(caller, grant, audience).await
    }

    /// Issues a signing certificate to the calling server below, for the key of its CSR. `preferred_ttl` is a wish.
    ///
    /// # Errors
    /// InvalidArgument for a CSR that cannot be read or was not signed with its key.
    pub(crate) async fn new_downstream_ca(
        &self,
        caller: &Caller,
        csr: &[u8],
        preferred_ttl: Option<Duration>,
    ) -> Result<DownstreamCa, OpError> {
        let downstream = caller.downstream()?;
        let digest = sha256_hex(csr);
        caller.describe(|| {
            Fields::new()
                .with("agent_id", &downstream.entry().spiffe_id)
                .with("csr", &digest)
                .with("trust_domain_id", self.trust_domain.id())
        });
        let csr = verified(csr, "invalid CSR signature")?;
        let grant = Grant::downstream_ca(downstream, &self.trust_domain)
            .ok_or_else(|| refused(Kind::Internal, "caller is not a downstream workload"))?
            .with_field("csr", digest);
        let issued = self
            .ca
            .issue_downstream_ca(&grant, csr.public_key(), preferred_ttl, &caller.record)
            .await
            .map_err(not_issued("failed to sign downstream X.509 CA"))?;
        let bundle = self
            .registry
            .bundle(&self.trust_domain)
            .ok_or_else(super::bundles::not_found)?;
        let roots = bundle.x509_authorities.iter();
        Ok(DownstreamCa {
            chain: issued.chain,
            roots: roots
                .map(|authority| authority.certificate.der().to_vec())
                .collect(),
        })
    }

    /// Refuses calls about JWT-SVIDs where they are disabled, before anything else is said about them.
    ///
    /// # Errors
    /// Unimplemented.
    pub(crate) fn check_jwt_enabled(&self) -> Result<(), OpError> {
        if self.ca.issues_jwt() {
            return Ok(());
        }
        let disabled = "JWT functionality is disabled";
        Err(refused(Kind::Unimplemented, disabled))
    }

    /// Refuses audiences that make no token.
    ///
    /// # Errors
    /// InvalidArgument.
    pub(crate) fn check_audience(&self, audience: &[String]) -> Result<(), OpError> {
        if audience.is_empty() {
            let missing = "at least one audience is required";
            return Err(refused(Kind::InvalidArgument, missing));
        }
        check_audience(audience)
            .map_err(|error| failed(Kind::InvalidArgument, "failed to sign JWT-SVID", error))
    }

    /// The end of both ways to a JWT-SVID.
    async fn jwt(
        &self,
        caller: &Caller,
        mut grant: Grant,
        audience: &[String],
    ) -> Result<IssuedJwt, OpError> {
        self.check_jwt_enabled()?;
        self.check_audience(audience)?;
        if caller.record.is_enabled() {
            grant = grant.with_field("audience", audience.join(","));
        }
        let issued = self.ca.issue_jwt(&grant, audience, &caller.record);
        issued.await.map_err(not_issued("failed to sign JWT-SVID"))
    }

    async fn batch_item(
        &self,
        caller: &Caller,
        agent: &SpiffeId,
        at: usize,
        request: &X509Request,
    ) -> Result<Result<IssuedX509, OpError>, OpError> {
        if at % BATCH_STRIDE == BATCH_STRIDE - 1 {
            tokio::task::yield_now().await;
            caller.still_entitled()?;
        }
        Ok(self.x509_of_entry(caller, agent, request).await)
    }

    /// One item of a batch: the entry that this agent may have, and the key that the CSR proves to be held.
    async fn x509_of_entry(
        &self,
        caller: &Caller,
        agent: &SpiffeId,
        request: &X509Request,
    ) -> Result<IssuedX509, OpError> {
        let (entry, csr) = match self.read(agent, request) {
            Ok(read) => read,
            Err(refused) => {
                caller.item(Err(&refused), || {
                    Fields::new()
                        .with("csr", sha256_hex(&request.csr))
                        .with("entry_id", &request.entry_id)
                });
                return Err(refused);
            }
        };
        let mut grant = Grant::entry(entry);
        if caller.record.is_enabled() {
            grant = grant.with_field("csr", sha256_hex(&request.csr));
        }
        let issued = self.ca.issue_x509(&grant, csr.public_key(), &caller.record);
        issued.await.map_err(not_issued("failed to sign X509-SVID"))
    }

    fn read(
        &self,
        agent: &SpiffeId,
        request: &X509Request,
    ) -> Result<(Authorized, VerifiedCsr), OpError> {
        if request.entry_id.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing entry ID"));
        }
        if request.csr.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing CSR"));
        }
        let entry = self.authorized(agent, &request.entry_id)?;
        Ok((entry, verified(&request.csr, "invalid CSR signature")?))
    }

    fn authorized(&self, agent: &SpiffeId, entry_id: &str) -> Result<Authorized, OpError> {
        self.registry
            .authorized_entry(agent, entry_id)
            .ok_or_else(|| refused(Kind::NotFound, NOT_AUTHORIZED))
    }
}

/// Refuses more documents in one call than are issued in one call, also where no rate limit does.
///
/// # Errors
/// ResourceExhausted.
pub(crate) fn check_batch(count: usize) -> Result<(), OpError> {
    if count <= MAX_BATCH {
        return Ok(());
    }
    let many = format!("too many SVIDs in one call ({count}); ask for at most {MAX_BATCH}");
    Err(refused(Kind::ResourceExhausted, many))
}

/// The rules that SPIRE has for a minted certificate's request: one SPIFFE ID of a workload of ours, valid DNS names.
fn minted_identity(own: &TrustDomain, csr: &VerifiedCsr) -> Result<SpiffeId, OpError> {
    let uri = match csr.uris() {
        [] => return Err(refused(Kind::InvalidArgument, "CSR URI SAN is required")),
        [uri] => uri,
        _ => {
            let more = "only one URI SAN is expected";
            return Err(refused(Kind::InvalidArgument, more));
        }
    };
    let id = SpiffeId::parse(uri).map_err(malformed("CSR URI SAN is invalid"))?;
    id.check_workload(own)
        .map_err(malformed("CSR URI SAN is invalid"))?;
    for name in csr.dns_names() {
        validate_dns_name(name).map_err(malformed("CSR DNS name is invalid"))?;
    }
    check_wildcard_overlap(csr.dns_names()).map_err(malformed(
        "CSR DNS name contains a wildcard that covers another non-wildcard name",
    ))?;
    Ok(id)
}

/// A request whose signature was checked.
fn verified(csr: &[u8], bad_signature: &'static str) -> Result<VerifiedCsr, OpError> {
    Csr::parse_and_verify(csr).map_err(|error| match error {
        CsrError::Signature => refused(Kind::InvalidArgument, bad_signature),
        other => failed(Kind::InvalidArgument, "malformed CSR", other),
    })
}
