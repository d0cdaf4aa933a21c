//! The gate: the one way by which a document leaves this server.
//!
//! [`Ca::issue`] admits a grant, lets the document be signed by the active authority, reads what came out and compares
//! it with the grant, records it in the audit trail, and only then hands it over. Every path (agents, entries, administrators,
//! servers below, the server itself) goes through it, so that no path can lack a check.
//!
//! The signature of each document is not verified again: that costs more than signing. Instead each authority proves
//! once, before it may sign, that what it signs verifies (see `authority`), and the key that signs is the one tried.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spiffe::clock::{from_unix, unix_seconds};
use spiffe::id::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::secret::Secret;
use spiffe::svid::jwt::{JwtClaims, inspect_jwt_svid, sign_jwt_svid};
use spiffe::svid::x509::X509Svid;
use spiffe::x509::{
    CaTemplate, Certificate, LeafTemplate, Subject, issue_ca, issue_leaf, random_serial,
    serial_to_decimal,
};

use super::grant::{Extent, Grant};
use super::jwt::JwtIssuer;
use super::x509::X509Issuer;
use super::{BACKDATE, Ca, IssueError};
use crate::audit::{CallRecord, Fields, Outcome};

/// Documents of a batch between two moments at which other tasks of the thread may run.
const BATCH_STRIDE: usize = 16;

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

/// A kind of document. There are the three below.
trait Document: Sync {
    type Issued: Send;
    const NAME: &'static str;

    fn allowed_by(extent: Extent) -> bool;

    /// Signs what the grant says with the active authority.
    fn sign(
        &self,
        ca: &Ca,
        grant: &Grant,
        now: SystemTime,
    ) -> impl Future<Output = Result<Self::Issued, IssueError>> + Send;

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
        self.issue(grant, &X509Document { key }, record).await
    }

    /// Issues many X509-SVIDs, each with its own outcome, in order. No lock is held; other tasks get their turn.
    pub async fn issue_x509_batch(
        &self,
        requests: &[(Grant, PublicKey)],
        record: &CallRecord,
    ) -> Vec<Result<IssuedX509, IssueError>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for (done, (grant, key)) in requests.iter().enumerate() {
            if done % BATCH_STRIDE == BATCH_STRIDE - 1 {
                tokio::task::yield_now().await;
            }
            outcomes.push(self.issue_x509(grant, key, record).await);
        }
        outcomes
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
            Ok(()) => document.sign(self, grant, now).await,
            Err(refused) => Err(refused),
        };
        if record.is_enabled() {
            let mut fields = grant.audit_fields();
            match &outcome {
                Ok(issued) => {
                    D::describe(issued, &mut fields);
                    record.document(D::NAME, fields).await?;
                }
                Err(error) => {
                    let outcome = Outcome::Error {
                        code: "Internal",
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

    /// What holds for every grant, however it came about.
    fn admit<D: Document>(&self, grant: &Grant) -> Result<(), IssueError> {
        let id = &grant.id;
        if !id.is_member_of(&self.trust_domain) {
            return Err(IssueError::ForeignId {
                id: id.clone(),
                trust_domain: self.trust_domain.to_string(),
            });
        }
        let fits = match grant.extent {
            Extent::Workload => !id.is_reserved(),
            Extent::Agent => id.is_agent(),
            Extent::Server => *id == self.server_id,
            Extent::DownstreamCa => !id.has_path(),
        };
        if grant.extent != Extent::DownstreamCa && !id.has_path() {
            return Err(IssueError::IdWithoutPath(id.clone()));
        }
        if !fits || !D::allowed_by(grant.extent) {
            return Err(IssueError::NotGranted {
                id: id.clone(),
                document: D::NAME,
            });
        }
        Ok(())
    }

    fn x509_authority(&self, now: SystemTime) -> Result<Arc<X509Issuer>, IssueError> {
        let issuer = self.x509.active().ok_or(IssueError::NoX509Authority)?;
        if issuer.certificate.not_after() <= now {
            return Err(IssueError::AuthorityExpired);
        }
        Ok(issuer)
    }
}

/// From `now`, a little backdated, for `ttl`, but never beyond the authority's own end.
fn lifetime(now: SystemTime, ttl: Duration, end: SystemTime) -> (SystemTime, SystemTime) {
    // A sum that overflows is beyond any end.
    (
        now - BACKDATE,
        now.checked_add(ttl).map_or(end, |until| until.min(end)),
    )
}

fn mismatch(what: &'static str) -> IssueError {
    IssueError::Mismatch(what)
}

fn require(holds: bool, what: &'static str) -> Result<(), IssueError> {
    if holds { Ok(()) } else { Err(mismatch(what)) }
}

struct X509Document<'a> {
    key: &'a PublicKey,
}

impl X509Document<'_> {
    fn template(&self, ca: &Ca, grant: &Grant, now: SystemTime, end: SystemTime) -> LeafTemplate {
        let default_ttl = if grant.extent == Extent::Agent {
            ca.profile.agent_ttl
        } else {
            ca.profile.x509_svid_ttl
        };
        let (not_before, not_after) = lifetime(now, grant.x509_ttl.unwrap_or(default_ttl), end);
        let mut subject = grant.subject.clone().unwrap_or_else(Subject::spire);
        if let Some(first) = grant.dns_names.first() {
            subject.common_name = Some(first.clone());
        }
        LeafTemplate {
            serial: random_serial(ca.random.as_ref()),
            subject,
            id: grant.id.clone(),
            dns_names: grant.dns_names.clone(),
            public_key: self.key.clone(),
            not_before,
            not_after,
        }
    }

    /// Compares what was signed with the grant, not with the template: a fault in between shows.
    fn check(
        &self,
        leaf: Certificate,
        grant: &Grant,
        issuer: &X509Issuer,
        now: SystemTime,
    ) -> Result<(), IssueError> {
        require(leaf.public_key() == self.key, "its key is another one")?;
        require(
            leaf.dns_names() == grant.dns_names,
            "its DNS names are others",
        )?;
        check_issuer(&leaf, issuer, now)?;
        if let Some(ttl) = grant.x509_ttl {
            let longest =
                unix_seconds(now).saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
            require(
                unix_seconds(leaf.not_after()) <= longest,
                "it is valid for longer",
            )?;
        }
        // One URI, no CA, key usage of a leaf.
        let svid = X509Svid::from_certificates(vec![leaf])
            .map_err(|_not_a_leaf| mismatch("it is not an X509-SVID"))?;
        require(*svid.id() == grant.id, "its SPIFFE ID is another one")
    }
}

impl Document for X509Document<'_> {
    type Issued = IssuedX509;
    const NAME: &'static str = "an X509-SVID";

    fn allowed_by(extent: Extent) -> bool {
        match extent {
            Extent::Workload | Extent::Agent | Extent::Server => true,
            Extent::DownstreamCa => false,
        }
    }

    async fn sign(
        &self,
        ca: &Ca,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<IssuedX509, IssueError> {
        let issuer = ca.x509_authority(now)?;
        let template = self.template(ca, grant, now, issuer.certificate.not_after());
        let der = issue_leaf(&template, &issuer.as_issuer()).await?;
        let leaf =
            Certificate::from_der(&der).map_err(|_unreadable| mismatch("it cannot be read"))?;
        require(
            leaf.serial_bytes().ends_with(significant(&template.serial)),
            "its serial number is another one",
        )?;
        self.check(leaf.clone(), grant, &issuer, now)?;
        Ok(issued(grant.id.clone(), &leaf, &issuer.presented))
    }

    fn describe(issued: &IssuedX509, fields: &mut Fields) {
        describe_x509(issued, fields);
    }
}

struct DownstreamCaDocument<'a> {
    key: &'a PublicKey,
    preferred_ttl: Option<Duration>,
}

impl Document for DownstreamCaDocument<'_> {
    type Issued = IssuedX509;
    const NAME: &'static str = "a signing certificate";

    fn allowed_by(extent: Extent) -> bool {
        match extent {
            Extent::DownstreamCa => true,
            Extent::Workload | Extent::Agent | Extent::Server => false,
        }
    }

    async fn sign(
        &self,
        ca: &Ca,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<IssuedX509, IssueError> {
        let issuer = ca.x509_authority(now)?;
        let ttl = self
            .preferred_ttl
            .filter(|ttl| !ttl.is_zero())
            .unwrap_or(ca.profile.ca_ttl);
        let (not_before, not_after) = lifetime(now, ttl, issuer.certificate.not_after());
        let mut subject = issuer.certificate.subject();
        // SPIRE: the level below is told by the length of the chain above.
        subject.organizational_unit = vec![format!("DOWNSTREAM-{}", issuer.presented.len().max(1))];
        let template = CaTemplate {
            serial: random_serial(ca.random.as_ref()),
            subject,
            id: ca.trust_domain.id(),
            public_key: self.key.clone(),
            not_before,
            not_after,
            path_len: None,
            subject_key_id: None,
        };
        let der = issue_ca(&template, Some(&issuer.as_issuer()), issuer.key.as_ref()).await?;
        let certificate =
            Certificate::from_der(&der).map_err(|_unreadable| mismatch("it cannot be read"))?;
        require(certificate.is_ca(), "it is not a CA's")?;
        require(
            certificate.public_key() == self.key,
            "its key is another one",
        )?;
        require(
            certificate.uris() == [grant.id.as_str()],
            "its trust domain is another one",
        )?;
        check_issuer(&certificate, &issuer, now)?;
        Ok(issued(grant.id.clone(), &certificate, &issuer.presented))
    }

    fn describe(issued: &IssuedX509, fields: &mut Fields) {
        describe_x509(issued, fields);
    }
}

fn check_issuer(
    certificate: &Certificate,
    issuer: &X509Issuer,
    now: SystemTime,
) -> Result<(), IssueError> {
    require(
        certificate.issuer_der() == issuer.certificate.subject_der(),
        "its issuer is another one",
    )?;
    require(
        certificate.authority_key_id() == Some(issuer.key_id()),
        "its issuer's key is another one",
    )?;
    require(certificate.not_before() <= now, "it is not valid yet")?;
    require(certificate.not_after() > now, "it has expired")?;
    require(
        certificate.not_after() <= issuer.certificate.not_after(),
        "it outlives its issuer",
    )?;
    require(
        certificate.signature_scheme() == issuer.key.public_key().x509_scheme(),
        "it is signed in another way",
    )
}

/// Whether a token says the algorithm and key that were asked for, and nothing else.
fn header_is(token: &str, issuer: &JwtIssuer) -> bool {
    let header = token
        .split('.')
        .next()
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let header = header.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
    let wanted = serde_json::json!({
        "alg": issuer.algorithm.as_str(),
        "kid": issuer.key_id,
        "typ": "JWT",
    });
    header == Some(wanted)
}

/// A serial number without leading zeros, as it is encoded up to a sign byte.
fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}

fn issued(id: SpiffeId, certificate: &Certificate, presented: &[Arc<[u8]>]) -> IssuedX509 {
    let mut chain = Vec::with_capacity(presented.len() + 1);
    chain.push(Arc::from(certificate.der()));
    chain.extend(presented.iter().cloned());
    IssuedX509 {
        id,
        chain,
        serial: serial_to_decimal(certificate.serial_bytes()),
        not_before: certificate.not_before(),
        not_after: certificate.not_after(),
    }
}

fn describe_x509(issued: &IssuedX509, fields: &mut Fields) {
    fields.add("serial_num", &issued.serial);
    fields.add("expires_at", unix_seconds(issued.not_after));
}

struct JwtDocument<'a> {
    audience: &'a [String],
}

impl Document for JwtDocument<'_> {
    type Issued = IssuedJwt;
    const NAME: &'static str = "a JWT-SVID";

    fn allowed_by(extent: Extent) -> bool {
        match extent {
            Extent::Workload => true,
            Extent::Agent | Extent::Server | Extent::DownstreamCa => false,
        }
    }

    async fn sign(&self, ca: &Ca, grant: &Grant, now: SystemTime) -> Result<IssuedJwt, IssueError> {
        let authority = ca.jwt.as_ref().ok_or(IssueError::JwtDisabled)?;
        let issuer = authority.active().ok_or(IssueError::NoJwtAuthority)?;
        if issuer.not_after <= now {
            return Err(IssueError::AuthorityExpired);
        }
        let audience: Vec<String> = self
            .audience
            .iter()
            .filter(|name| !name.is_empty())
            .cloned()
            .collect();
        if audience.is_empty() {
            return Err(IssueError::NoAudience);
        }
        let ttl = grant.jwt_ttl.unwrap_or(ca.profile.jwt_svid_ttl);
        let (_, expires_at) = lifetime(now, ttl, issuer.not_after);
        let claims = JwtClaims {
            subject: grant.id.clone(),
            audience,
            issued_at: unix_seconds(now),
            expires_at: unix_seconds(expires_at),
            issuer: ca.profile.jwt_issuer.clone(),
            jti: grant
                .with_jti
                .then(|| URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes())),
            extra: serde_json::Map::new(),
        };
        let token = sign_jwt_svid(
            &claims,
            &issuer.key_id,
            issuer.algorithm,
            issuer.key.as_ref(),
        )
        .await?;
        let read = inspect_jwt_svid(token.expose())
            .map_err(|_unreadable| mismatch("it cannot be read"))?;
        require(
            header_is(token.expose(), &issuer),
            "its header is another one",
        )?;
        require(read.id == grant.id, "its subject is another one")?;
        require(
            read.audience == claims.audience,
            "its audience is another one",
        )?;
        require(read.expires_at > unix_seconds(now), "it has expired")?;
        require(
            read.expires_at <= unix_seconds(issuer.not_after),
            "it outlives its authority",
        )?;
        Ok(IssuedJwt {
            id: read.id,
            token,
            issued_at: from_unix(read.issued_at),
            expires_at: from_unix(read.expires_at),
        })
    }

    fn describe(issued: &IssuedJwt, fields: &mut Fields) {
        fields.add("expires_at", unix_seconds(issued.expires_at));
    }
}

#[cfg(test)]
mod tests;
