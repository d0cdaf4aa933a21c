//! JWT-SVIDs.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spiffe::clock::{from_unix, unix_seconds};
use spiffe::key::Signer;
use spiffe::secret::Secret;
use spiffe::svid::jwt::{JwtClaims, inspect_jwt_svid, sign_jwt_svid};

use super::super::grant::{Grant, GrantKind};
use super::super::jwt::JwtIssuer;
use super::super::{Ca, IssueError};
use super::{Document, IssuedJwt, SigningAuthority, admit_lifetime, lifetime, mismatch, require};
use crate::audit::Fields;

impl SigningAuthority for JwtIssuer {
    fn active(ca: &Ca, now: SystemTime) -> Result<Arc<Self>, IssueError> {
        let authority = ca.jwt.as_ref().ok_or(IssueError::JwtDisabled)?;
        let issuer = authority.active().ok_or(IssueError::NoJwtAuthority)?;
        if issuer.not_after <= now {
            return Err(IssueError::AuthorityExpired);
        }
        Ok(issuer)
    }

    fn key(&self) -> &dyn Signer {
        self.key.as_ref()
    }
}

/// A JWT-SVID for an audience.
pub(super) struct JwtDocument {
    pub(super) audience: Vec<String>,
}

impl Document for JwtDocument {
    type Template = JwtClaims;
    type Issuer = JwtIssuer;
    type Signed = Secret<String>;
    type Issued = IssuedJwt;
    const NAME: &'static str = "a JWT-SVID";
    const LABEL: &'static str = "jwt_svid";

    fn allowed_by(kind: GrantKind) -> bool {
        match kind {
            GrantKind::Workload => true,
            GrantKind::Agent | GrantKind::Server | GrantKind::DownstreamCa => false,
        }
    }

    fn template(
        &self,
        ca: &Ca,
        grant: &Grant,
        issuer: &JwtIssuer,
        now: SystemTime,
    ) -> Result<JwtClaims, IssueError> {
        let named = self.audience.iter().filter(|name| !name.is_empty());
        let audience: Vec<String> = named.cloned().collect();
        if audience.is_empty() {
            return Err(IssueError::NoAudience);
        }
        let ttl = grant.jwt_ttl.unwrap_or(ca.profile.jwt_svid_ttl);
        let (_, expires_at) = lifetime(now, ttl, issuer.not_after, grant)?;
        Ok(JwtClaims {
            subject: grant.id.clone(),
            audience,
            issued_at: unix_seconds(now),
            expires_at: unix_seconds(expires_at),
            issuer: ca.profile.jwt_issuer.clone(),
            jti: grant
                .with_jti
                .then(|| URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes())),
            extra: serde_json::Map::new(),
        })
    }

    fn admit(
        &self,
        template: &JwtClaims,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<(), IssueError> {
        require(template.subject == grant.id, "its subject is another one")?;
        admit_lifetime(from_unix(template.expires_at), grant.jwt_ttl, grant, now)
    }

    async fn sign(
        template: Arc<JwtClaims>,
        issuer: Arc<JwtIssuer>,
    ) -> Result<Secret<String>, IssueError> {
        let JwtIssuer {
            key_id,
            key,
            algorithm,
            ..
        } = &*issuer;
        Ok(sign_jwt_svid(&template, key_id, *algorithm, key.as_ref()).await?)
    }

    fn compare(
        token: Secret<String>,
        template: &JwtClaims,
        issuer: &JwtIssuer,
        now: SystemTime,
    ) -> Result<IssuedJwt, IssueError> {
        let read = inspect_jwt_svid(token.expose())
            .map_err(|_unreadable| mismatch("it cannot be read"))?;
        require(
            header_is(token.expose(), issuer),
            "its header is another one",
        )?;
        require(read.id == template.subject, "its subject is another one")?;
        require(
            read.audience == template.audience,
            "its audience is another one",
        )?;
        require(read.expires_at > unix_seconds(now), "it has expired")?;
        require(
            read.expires_at <= template.expires_at,
            "it is valid for longer",
        )?;
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
