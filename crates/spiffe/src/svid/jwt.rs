//! JWT-SVIDs: signed tokens that prove a SPIFFE ID to their audience (JWT-SVID §2-4). The JOSE
//! code is our own and knows compact serialisation, nine algorithms and three header members; the algorithm is
//! judged before anything else of a token is looked at.

mod header;
#[cfg(test)]
mod tests;

use crate::bundle::JwtBundle;
use crate::clock::unix_seconds;
use crate::id::{IdError, MAX_ID_LEN, SpiffeId};
use crate::json::UniqueMembers;
use crate::key::{JwsAlgorithm, SignError, Signer, VerifyError, sign_with};
use crate::secret::Secret;
use crate::trust_domain::TrustDomain;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use header::Header;
use serde_json::{Map, Value};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest claims of a token, in bytes of JSON.
pub const MAX_CLAIMS: usize = 64 * 1024;
/// Longest segment of a token, in characters: that of the largest claims.
const MAX_SEGMENT: usize = MAX_CLAIMS.div_ceil(3) * 4;
/// How far the clocks of an issuer and of who verifies may differ, in seconds. SPIRE: go-jose's default.
pub const LEEWAY: i64 = 60;
/// The last second of the year 9999: what a certificate or a log can still show as a date.
const LAST_DATE: f64 = 253_402_300_799.0;
/// As much of a key ID as an error repeats, in characters: whoever presents a token makes it up, and an error has to fit into
/// the trailers of a call.
const SHOWN_KEY_ID: usize = 128;
/// Most audiences in one token.
pub const MAX_AUDIENCES: usize = 32;
/// Bytes of all audiences of a token together: they are host names and URLs.
pub const MAX_AUDIENCE_BYTES: usize = 8 << 10;

/// Why a token is not a valid JWT-SVID, or was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidError {
    #[error("token is not a JWS in compact serialisation")]
    Form,
    #[error("token is too long: its claims may have 64 KiB")]
    TooLong,
    #[error("token signature algorithm is missing or not allowed")]
    Algorithm,
    #[error("token header is not valid")]
    Header,
    #[error("token type is neither JWT nor JOSE")]
    Type,
    #[error("token has critical header parameters")]
    Critical,
    #[error("token header has no key id")]
    NoKeyId,
    #[error("token claims are not a JSON object, each claim once")]
    Claims,
    #[error("token has no subject")]
    NoSubject,
    #[error("token subject is not a SPIFFE ID: {0}")]
    Subject(IdError),
    #[error("no JWT bundle for trust domain {0:?}")]
    NoBundle(String),
    #[error("no JWT authority {key_id:?} found for trust domain {trust_domain:?}")]
    KeyNotFound {
        key_id: String,
        trust_domain: String,
    },
    #[error("token signature algorithm does not fit the authority's key")]
    AlgorithmMismatch,
    #[error("token signature does not verify")]
    Signature,
    #[error("token has no expiry")]
    NoExpiry,
    #[error("token claim {0:?} is not a number of seconds")]
    NotNumeric(&'static str),
    #[error("token claim {0:?} is not a date before the year 10000")]
    NotDate(&'static str),
    #[error("token has expired")]
    Expired,
    #[error("token is not valid yet")]
    NotYetValid,
    #[error("token was issued in the future")]
    IssuedInFuture,
    #[error("token has no audience")]
    NoAudience,
    #[error("token audience is not a text or a list of texts")]
    AudienceForm,
    #[error("token has more than 32 audiences")]
    TooManyAudiences,
    #[error("the audiences of the token have more than 8 KiB")]
    LongAudience,
    #[error("token is not meant for audience {0:?}")]
    AudienceMismatch(String),
    #[error("no audience to verify for")]
    NoExpectedAudience,
    #[error("SPIFFE ID of a JWT-SVID must have a path and at most 2048 bytes")]
    UnfitId,
    #[error("key does not sign with {0}")]
    UnfitKey(JwsAlgorithm),
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Where bundles to verify tokens against come from.
pub trait JwtBundleSource: Send + Sync + Debug {
    /// The JWT bundle of `trust_domain`, if we trust it at all.
    fn jwt_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<JwtBundle>>;
}

/// What a token will say.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtClaims {
    pub subject: SpiffeId,
    /// 1 to 32 names, none empty.
    pub audience: Vec<String>,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
    pub issuer: Option<String>,
    pub jti: Option<String>,
    /// Further claims; the ones above win.
    pub extra: Map<String, Value>,
}

impl JwtClaims {
    fn to_json(&self) -> Map<String, Value> {
        let mut claims = self.extra.clone();
        claims.insert("sub".to_owned(), self.subject.as_str().into());
        claims.insert("aud".to_owned(), self.audience.clone().into());
        claims.insert("iat".to_owned(), self.issued_at.into());
        claims.insert("exp".to_owned(), self.expires_at.into());
        if let Some(issuer) = &self.issuer {
            claims.insert("iss".to_owned(), issuer.as_str().into());
        }
        if let Some(jti) = &self.jti {
            claims.insert("jti".to_owned(), jti.as_str().into());
        }
        claims
    }

    fn check(&self) -> Result<(), JwtSvidError> {
        if !self.subject.has_path() || self.subject.as_str().len() > MAX_ID_LEN {
            return Err(JwtSvidError::UnfitId);
        }
        check_audience(&self.audience)?;
        if self.expires_at <= self.issued_at {
            return Err(JwtSvidError::Expired);
        }
        Ok(())
    }
}

/// Whether a token may be made for these audiences. To be asked before a request for a token is kept: a list of a million
/// short names is small on the wire and large in memory.
///
/// # Errors
/// [`JwtSvidError::NoAudience`], [`JwtSvidError::TooManyAudiences`], [`JwtSvidError::LongAudience`].
pub fn check_audience(audience: &[String]) -> Result<(), JwtSvidError> {
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(JwtSvidError::NoAudience);
    }
    if audience.len() > MAX_AUDIENCES {
        return Err(JwtSvidError::TooManyAudiences);
    }
    if audience.iter().map(String::len).sum::<usize>() > MAX_AUDIENCE_BYTES {
        return Err(JwtSvidError::LongAudience);
    }
    Ok(())
}

/// Signs a JWT-SVID. Does not suspend when the key is in memory.
///
/// # Errors
/// [`JwtSvidError`] when the claims make no JWT-SVID, the key does not fit `alg`, or signing fails.
pub async fn sign_jwt_svid(
    claims: &JwtClaims,
    kid: &str,
    alg: JwsAlgorithm,
    signer: &dyn Signer,
) -> Result<Secret<String>, JwtSvidError> {
    claims.check()?;
    if kid.is_empty() {
        return Err(JwtSvidError::NoKeyId);
    }
    if !signer.public_key().fits(alg) {
        return Err(JwtSvidError::UnfitKey(alg));
    }
    let body = Value::Object(claims.to_json()).to_string();
    if body.len() > MAX_CLAIMS {
        return Err(JwtSvidError::TooLong);
    }
    let mut token = URL_SAFE_NO_PAD.encode(Header::write(alg, kid));
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(body, &mut token);
    let signature = sign_with(signer, alg.scheme(), token.as_bytes()).await?;
    let signature = crate::key::jws_signature(alg, signature).ok_or(SignError::Failed)?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(Secret::new(token))
}

/// A token's identity, proved, and what it says. Only verification makes one:
///
/// ```compile_fail,E0451
/// # fn forge(id: plastron_spiffe::SpiffeId) {
/// let forged = plastron_spiffe::VerifiedJwtSvid {
///     id,
///     audience: vec![],
///     claims: Default::default(),
///     expires_at: i64::MAX,
///     kid: String::new(),
/// };
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct VerifiedJwtSvid {
    id: SpiffeId,
    audience: Vec<String>,
    claims: Map<String, Value>,
    expires_at: i64,
    kid: String,
}

impl VerifiedJwtSvid {
    /// The identity: the token's subject.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Everybody whom the token is for.
    #[must_use]
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// Every claim of the token.
    #[must_use]
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The same, to keep.
    #[must_use]
    pub fn into_claims(self) -> Map<String, Value> {
        self.claims
    }

    /// Unix seconds.
    #[must_use]
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// The authority whose signature it is.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

/// Verifies a token: its form and algorithm, then the signature by an authority of the subject's own trust
/// domain, then expiry, start of validity and that `audience` is among its audiences. Clocks may differ by [`LEEWAY`].
///
/// # Errors
/// [`JwtSvidError`], of the first check that failed.
pub fn verify_jwt_svid(
    token: &str,
    audience: &str,
    bundles: &dyn JwtBundleSource,
    now: SystemTime,
) -> Result<VerifiedJwtSvid, JwtSvidError> {
    if audience.is_empty() {
        return Err(JwtSvidError::NoExpectedAudience);
    }
    let token = Token::parse(token)?;
    let kid = token.header.kid.clone().ok_or(JwtSvidError::NoKeyId)?;
    let claims = token.claims()?;
    let id = subject(&claims)?;

    let trust_domain = id.trust_domain();
    let bundle = bundles
        .jwt_bundle(&trust_domain)
        .filter(|bundle| bundle.trust_domain() == &trust_domain)
        .ok_or_else(|| JwtSvidError::NoBundle(trust_domain.to_string()))?;
    let authority = bundle
        .authority(&kid)
        .ok_or_else(|| JwtSvidError::KeyNotFound {
            key_id: kid.chars().take(SHOWN_KEY_ID).collect(),
            trust_domain: trust_domain.to_string(),
        })?;
    let signature = URL_SAFE_NO_PAD
        .decode(token.signature)
        .map_err(|_not_base64url| JwtSvidError::Form)?;
    authority
        .verify_jws(token.header.alg, token.signed.as_bytes(), &signature)
        .map_err(|fault| match fault {
            VerifyError::WrongAlgorithm => JwtSvidError::AlgorithmMismatch,
            VerifyError::BadSignature => JwtSvidError::Signature,
        })?;

    let expires_at = check_times(&claims, unix_seconds(now))?;
    let audiences = audiences(&claims)?;
    if !audiences.iter().any(|one| one == audience) {
        return Err(JwtSvidError::AudienceMismatch(audience.to_owned()));
    }
    Ok(VerifiedJwtSvid {
        id,
        audience: audiences,
        claims,
        expires_at,
        kid,
    })
}

/// What a token says of itself, unproved.
#[derive(Debug, Clone)]
pub struct UnverifiedJwtSvid {
    pub id: SpiffeId,
    pub audience: Vec<String>,
    /// Unix seconds; equal to `expires_at` when the token does not say.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
    pub kid: Option<String>,
}

/// Reads a token without verifying it: for a holder that got it from its own server and must know when to
/// renew it.
///
/// # Errors
/// [`JwtSvidError`] when the form is wrong. Says nothing about signature or expiry.
pub fn inspect_jwt_svid(token: &str) -> Result<UnverifiedJwtSvid, JwtSvidError> {
    let token = Token::parse(token)?;
    let claims = token.claims()?;
    let expires_at = seconds(&claims, "exp")?.ok_or(JwtSvidError::NoExpiry)?;
    let expires_at = whole(expires_at);
    Ok(UnverifiedJwtSvid {
        id: subject(&claims)?,
        audience: audiences(&claims)?,
        issued_at: seconds(&claims, "iat")?.map_or(expires_at, whole),
        expires_at,
        kid: token.header.kid,
    })
}

/// A compact JWS taken apart; its header has been judged.
struct Token<'a> {
    header: Header,
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Token<'a> {
    fn parse(token: &'a str) -> Result<Self, JwtSvidError> {
        if token.len() > 3 * MAX_SEGMENT + 2 {
            return Err(JwtSvidError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtSvidError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(JwtSvidError::Form)?;
        if payload.contains('.') {
            return Err(JwtSvidError::Form);
        }
        if [header, payload, signature]
            .iter()
            .any(|segment| segment.len() > MAX_SEGMENT)
        {
            return Err(JwtSvidError::TooLong);
        }
        let header = URL_SAFE_NO_PAD
            .decode(header)
            .map_err(|_not_base64url| JwtSvidError::Form)?;
        Ok(Self {
            header: Header::read(&header)?,
            signed,
            payload,
            signature,
        })
    }

    fn claims(&self) -> Result<Map<String, Value>, JwtSvidError> {
        let payload = URL_SAFE_NO_PAD
            .decode(self.payload)
            .map_err(|_not_base64url| JwtSvidError::Form)?;
        // RFC 7519 §4 leaves it to the reader whether a claim that comes twice is refused.
        let claims: UniqueMembers =
            serde_json::from_slice(&payload).map_err(|_unfit| JwtSvidError::Claims)?;
        Ok(claims.0)
    }
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtSvidError> {
    let subject = claims
        .get("sub")
        .and_then(Value::as_str)
        .ok_or(JwtSvidError::NoSubject)?;
    SpiffeId::parse(subject).map_err(JwtSvidError::Subject)
}

/// Checks `exp`, `nbf` and the form of `iat`; gives the expiry in whole seconds.
fn check_times(claims: &Map<String, Value>, now: i64) -> Result<i64, JwtSvidError> {
    let expires_at = seconds(claims, "exp")?.ok_or(JwtSvidError::NoExpiry)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact for any date within 285 million years"
    )]
    let now = now as f64;
    #[expect(clippy::cast_precision_loss, reason = "a minute")]
    let leeway = LEEWAY as f64;
    if now - leeway > expires_at {
        return Err(JwtSvidError::Expired);
    }
    let not_before = seconds(claims, "nbf")?;
    let issued_at = seconds(claims, "iat")?;
    if not_before.is_some_and(|not_before| now + leeway < not_before) {
        return Err(JwtSvidError::NotYetValid);
    }
    // SPIRE: refused by go-jose, although RFC 7519 §4.1.6 does not ask for it.
    if issued_at.is_some_and(|issued_at| now + leeway < issued_at) {
        return Err(JwtSvidError::IssuedInFuture);
    }
    Ok(whole(expires_at))
}

/// A NumericDate: seconds, perhaps with a fraction.
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<Option<f64>, JwtSvidError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_f64().ok_or(JwtSvidError::NotNumeric(name))?;
            if seconds.abs() <= LAST_DATE {
                Ok(Some(seconds))
            } else {
                Err(JwtSvidError::NotDate(name))
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "within the years that are dates"
)]
fn whole(seconds: f64) -> i64 {
    seconds.floor() as i64
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtSvidError> {
    match claims.get("aud") {
        None => Err(JwtSvidError::NoAudience),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) if list.is_empty() => Err(JwtSvidError::NoAudience),
        Some(Value::Array(list)) if list.len() > MAX_AUDIENCES => {
            Err(JwtSvidError::TooManyAudiences)
        }
        Some(Value::Array(list)) => {
            let texts: Option<Vec<String>> = list
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect();
            texts.ok_or(JwtSvidError::AudienceForm)
        }
        Some(_) => Err(JwtSvidError::AudienceForm),
    }
}
