//! The gate: the one way by which a document leaves this server.
//!
//! Each document goes through the same steps: the grant is admitted; a template is made of it; the template is admitted
//! against the grant; the active authority signs it; what came out is read and compared with the template; the grant is
//! checked once more, since a signature may take its time; the audit trail takes it; and only then is it handed over. Every path
//! (agents, entries, administrators, servers below, the server itself) goes through them, so that no path can lack a check.
//!
//! The signature of each document is not verified again: that costs more than signing. Instead each authority proves
//! once, before it may sign, that what it signs verifies (see `authority`), and the key that signs is the one tried.

mod jwt;
mod x509;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::id::SpiffeId;
use spiffe::key::{PublicKey, Signer};
use spiffe::secret::Secret;

use super::grant::{Grant, GrantKind};
use super::{BACKDATE, Ca, IssueError, signing};
use crate::audit::{CallRecord, Fields, Outcome};
use crate::metrics::{ISSUED, NOT_ISSUED};
use jwt::JwtDocument;
use x509::{DownstreamCaDocument, X509Document};

/// An issued X.509 document: an SVID or a signing certificate.
#[derive(Debug, Clone)]
pub struct IssuedX509 {
    pub id: SpiffeId,
    /// DER, the leaf first.
    pub chain: Vec<Arc<[u8]>>,
    /// Decimal.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// An issued JWT-SVID.
#[derive(Debug)]
pub struct IssuedJwt {
    pub id: SpiffeId,
    pub token: Secret<String>,
    pub issued_at: SystemTime,
    pub expires_at: SystemTime,
}

/// An authority that signs documents.
trait SigningAuthority: Send + Sync + Sized + 'static {
    /// The one that is active and has not expired.
    fn active(ca: &Ca, now: SystemTime) -> Result<Arc<Self>, IssueError>;

    fn key(&self) -> &dyn Signer;
}

/// A kind of document.
trait Document: Sync {
    /// All that the document will say.
    type Template: Send + Sync + 'static;
    type Issuer: SigningAuthority;
    type Signed: Send + 'static;
    type Issued: Send;
    const NAME: &'static str;
    /// For the telemetry.
    const LABEL: &'static str;

    fn allowed_by(kind: GrantKind) -> bool;

    fn template(
        &self,
        ca: &Ca,
        grant: &Grant,
        issuer: &Self::Issuer,
        now: SystemTime,
    ) -> Result<Self::Template, IssueError>;

    /// Whether the template stays within the grant.
    fn admit(
        &self,
        template: &Self::Template,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<(), IssueError>;

    fn sign(
        template: Arc<Self::Template>,
        issuer: Arc<Self::Issuer>,
    ) -> impl Future<Output = Result<Self::Signed, IssueError>> + Send + 'static;

    /// Reads what was signed and compares it with the template: a fault in between shows.
    fn compare(
        signed: Self::Signed,
        template: &Self::Template,
        issuer: &Self::Issuer,
        now: SystemTime,
    ) -> Result<Self::Issued, IssueError>;

    /// Adds what the audit line says of the outcome.
    fn describe(issued: &Self::Issued, fields: &mut Fields);
}

impl Ca {
    /// Issues an X509-SVID for `key` to the grant's workload, agent or server.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued.
    pub async fn issue_x509(
        &self,
        grant: &Grant,
        key: &PublicKey,
        record: &CallRecord,
    ) -> Result<IssuedX509, IssueError> {
        let key = key.clone();
        self.issue(grant, &X509Document { key }, record).await
    }

    /// How many X509-SVIDs of one batch should be under way at the same time.
    pub fn x509_signatures_at_once(&self) -> usize {
        let active = self.x509.active();
        active.map_or(1, |issuer| signing::at_once(issuer.key.as_ref()))
    }

    /// Issues a JWT-SVID for the audience, empty names of which do not count.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued.
    pub async fn issue_jwt(
        &self,
        grant: &Grant,
        audience: &[String],
        record: &CallRecord,
    ) -> Result<IssuedJwt, IssueError> {
        let audience = audience.to_vec();
        self.issue(grant, &JwtDocument { audience }, record).await
    }

    /// Issues a signing certificate for `key` to a server below. The chain ends below the root.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued.
    pub async fn issue_downstream_ca(
        &self,
        grant: &Grant,
        key: &PublicKey,
        preferred_ttl: Option<Duration>,
        record: &CallRecord,
    ) -> Result<IssuedX509, IssueError> {
        let key = key.clone();
        self.issue(grant, &DownstreamCaDocument { key, preferred_ttl }, record)
            .await
    }

    /// The gate itself.
    async fn issue<D: Document>(
        &self,
        grant: &Grant,
        document: &D,
        record: &CallRecord,
    ) -> Result<D::Issued, IssueError> {
        let now = self.clock.now();
        let outcome = match self.admit::<D>(grant) {
            Ok(()) => self.make(grant, document, now).await,
            Err(refused) => Err(refused),
        };
        self.report::<D>(&outcome);
        if record.is_enabled() {
            let mut fields = grant.audit_fields();
            match &outcome {
                Ok(issued) => {
                    D::describe(issued, &mut fields);
                    record.document(D::NAME, fields).await?;
                }
                Err(error) => {
                    let outcome = Outcome::Error {
                        code: error.kind().name(),
                        message: error.to_string(),
                    };
                    record.item(outcome, fields);
                }
            }
        }
        if let Err(error @ IssueError::Mismatch(_)) = &outcome {
            tracing::error!(%error, spiffe_id = %grant.id, "issuance stopped");
        }
        outcome
    }

    fn report<D: Document>(&self, outcome: &Result<D::Issued, IssueError>) {
        match outcome {
            Ok(_) => self.telemetry.count(&ISSUED, [D::LABEL]),
            Err(error) => {
                let labels = [D::LABEL, error.kind().name()];
                self.telemetry.count(&NOT_ISSUED, labels);
            }
        }
    }

    async fn make<D: Document>(
        &self,
        grant: &Grant,
        document: &D,
        now: SystemTime,
    ) -> Result<D::Issued, IssueError> {
        // The call may have waited since its entry was read.
        self.check_downstream(grant)?;
        let issuer = D::Issuer::active(self, now)?;
        let template = Arc::new(document.template(self, grant, &issuer, now)?);
        document.admit(&template, grant, now)?;
        let work = D::sign(Arc::clone(&template), Arc::clone(&issuer));
        let signed = signing::run(issuer.key(), work).await?;
        let issued = D::compare(signed, &template, &issuer, now)?;
        if signing::is_direct(issuer.key()) {
            // Nothing was waited for.
            return Ok(issued);
        }
        self.check_downstream(grant)?;
        // An entry that was deleted while a remote key signed gives no identity any more.
        match &grant.entry {
            Some(entry) if !self.context.registry.is_still_authorized(entry) => {
                Err(IssueError::EntryWithdrawn)
            }
            _ => Ok(issued),
        }
    }

    /// Whether the entry of a server below still is the one that the grant was made of.
    fn check_downstream(&self, grant: &Grant) -> Result<(), IssueError> {
        let Some(granted) = &grant.downstream else {
            return Ok(());
        };
        let registry = &self.context.registry;
        match registry.entry(&granted.id) {
            Some(entry) if Arc::ptr_eq(&entry, granted) => Ok(()),
            Some(_) => Err(IssueError::EntryChanged),
            None => Err(IssueError::EntryWithdrawn),
        }
    }

    /// What holds for every grant, however it came about.
    fn admit<D: Document>(&self, grant: &Grant) -> Result<(), IssueError> {
        let id = &grant.id;
        if !id.is_member_of(&self.trust_domain) {
            return Err(IssueError::ForeignId {
                id: id.clone(),
                trust_domain: self.trust_domain.to_string(),
            });
        }
        let fits = match grant.kind {
            GrantKind::Workload => !id.is_reserved(),
            GrantKind::Agent => id.is_agent(),
            GrantKind::Server => *id == self.server_id,
            GrantKind::DownstreamCa => !id.has_path(),
        };
        if grant.kind != GrantKind::DownstreamCa && !id.has_path() {
            return Err(IssueError::IdWithoutPath(id.clone()));
        }
        if !fits || !D::allowed_by(grant.kind) {
            return Err(IssueError::NotGranted {
                id: id.clone(),
                document: D::NAME,
            });
        }
        Ok(())
    }
}

/// From `now`, a little backdated, for `ttl`, but never beyond the end of the authority or of the grant.
fn lifetime(
    now: SystemTime,
    ttl: Duration,
    authority_ends: SystemTime,
    grant: &Grant,
) -> Result<(SystemTime, SystemTime), IssueError> {
    let ends = grant
        .expires_at
        .map_or(authority_ends, |expires| expires.min(authority_ends));
    if ends <= now {
        return Err(IssueError::EntryWithdrawn);
    }
    // A sum that overflows is beyond any end.
    let not_after = now.checked_add(ttl).map_or(ends, |until| until.min(ends));
    Ok((now - BACKDATE, not_after))
}

/// Whether a lifetime stays within the grant's.
fn admit_lifetime(
    not_after: SystemTime,
    ttl: Option<Duration>,
    grant: &Grant,
    now: SystemTime,
) -> Result<(), IssueError> {
    let longest = ttl.and_then(|ttl| now.checked_add(ttl));
    require(
        longest.is_none_or(|longest| not_after <= longest),
        "it is valid for longer",
    )?;
    require(
        grant.expires_at.is_none_or(|expires| not_after <= expires),
        "it outlives its entry",
    )
}

fn mismatch(what: &'static str) -> IssueError {
    IssueError::Mismatch(what)
}

fn require(holds: bool, what: &'static str) -> Result<(), IssueError> {
    if holds { Ok(()) } else { Err(mismatch(what)) }
}

#[cfg(test)]
mod tests;
