//! SPIFFE IDs (SPIFFE-ID §2). The grammar is checked once, on construction; everything behind a [`SpiffeId`]
//! may rely on it.

use crate::trust_domain::{TrustDomain, check_name};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

mod membership;
#[cfg(test)]
mod tests;

pub use membership::MembershipError;

/// The scheme and the two slashes every SPIFFE ID starts with.
pub const SCHEME: &str = "spiffe://";
/// Longest ID we create, in bytes of the whole URI (SPIFFE-ID §2.3).
pub const MAX_ID_LEN: usize = 2048;
/// Longest foreign ID we look at. The standard sets no upper bound for readers; memory does.
pub const MAX_FOREIGN_ID_LEN: usize = 8192;

/// Why a text is not a SPIFFE ID or not a trust domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("cannot be empty")]
    Empty,
    #[error("scheme is missing or invalid")]
    WrongScheme,
    #[error("trust domain is missing")]
    MissingTrustDomain,
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    BadTrustDomainChar,
    #[error(
        "path segment characters are limited to letters, numbers, dots, dashes, and underscores"
    )]
    BadPathChar,
    #[error("path cannot contain empty segments")]
    EmptySegment,
    #[error("path cannot contain dot segments")]
    DotSegment,
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    #[error("is too long")]
    TooLong,
}

/// A SPIFFE ID: `spiffe://<trust domain>[/<path>]`. Compared byte for byte. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Length of `spiffe://<trust domain>`; where the path starts.
    path_at: u16,
}

impl SpiffeId {
    /// Parses a whole SPIFFE ID, up to [`MAX_FOREIGN_ID_LEN`] bytes.
    ///
    /// # Errors
    /// [`IdError`] naming the first broken rule: emptiness, scheme, trust domain, then the path from left to
    /// right.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(IdError::WrongScheme);
        };
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_name(name)?;
        check_path(path)?;
        if text.len() > MAX_FOREIGN_ID_LEN {
            return Err(IdError::TooLong);
        }
        Ok(Self::from_checked(Arc::from(text), name))
    }

    /// Like [`parse`](Self::parse), for what people type: scheme and trust domain are first folded to lower
    /// case (SPIFFE-ID §2.4). The path keeps its case.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_folding(text: &str) -> Result<Self, IdError> {
        let head = text.get(..SCHEME.len()).unwrap_or(text);
        if !head.eq_ignore_ascii_case(SCHEME) {
            return Self::parse(text);
        }
        let rest = text.get(SCHEME.len()..).unwrap_or_default();
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self::parse(&format!("{SCHEME}{}{path}", name.to_ascii_lowercase()))
    }

    /// Builds an ID from a trust domain and a path: empty, or one that starts with a slash.
    ///
    /// # Errors
    /// [`IdError`]; `TooLong` above [`MAX_ID_LEN`], since this ID is ours to make.
    pub fn from_path(trust_domain: &TrustDomain, path: &str) -> Result<Self, IdError> {
        check_path(path)?;
        let uri = format!("{SCHEME}{trust_domain}{path}");
        if uri.len() > MAX_ID_LEN {
            return Err(IdError::TooLong);
        }
        Ok(Self::from_checked(Arc::from(uri), trust_domain.as_str()))
    }

    /// Builds an ID from a trust domain and path segments; none gives the trust domain's own ID.
    ///
    /// # Errors
    /// [`IdError`]; a slash within a segment is `BadPathChar`.
    pub fn from_segments(trust_domain: &TrustDomain, segments: &[&str]) -> Result<Self, IdError> {
        let mut path = String::new();
        for segment in segments {
            check_segment(segment)?;
            path.push('/');
            path.push_str(segment);
        }
        Self::from_path(trust_domain, &path)
    }

    /// The SPIFFE ID of the trust domain itself.
    pub(crate) fn of_trust_domain(trust_domain: &TrustDomain) -> Self {
        Self::from_checked(Arc::from(trust_domain.id_string()), trust_domain.as_str())
    }

    /// The server's ID: `/spire/server`.
    #[must_use]
    pub fn server(trust_domain: &TrustDomain) -> Self {
        Self::from_checked(
            Arc::from(format!("{SCHEME}{trust_domain}/spire/server")),
            trust_domain.as_str(),
        )
    }

    /// An agent's ID: `/spire/agent` and `suffix`, which starts with a slash (`/join_token/<token>`).
    ///
    /// # Errors
    /// [`IdError`] when the suffix is not a path.
    pub fn agent(trust_domain: &TrustDomain, suffix: &str) -> Result<Self, IdError> {
        if !suffix.starts_with('/') {
            return Err(IdError::NoLeadingSlash);
        }
        Self::from_path(trust_domain, &format!("/spire/agent{suffix}"))
    }

    fn from_checked(uri: Arc<str>, name: &str) -> Self {
        // A name has at most 255 bytes, so the sum fits.
        let path_at = u16::try_from(SCHEME.len() + name.len()).unwrap_or(u16::MAX);
        Self { uri, path_at }
    }

    /// The trust domain this ID belongs to.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain::from_checked(self.trust_domain_name())
    }

    /// The name of the trust domain this ID belongs to.
    #[must_use]
    pub fn trust_domain_name(&self) -> &str {
        self.uri
            .get(SCHEME.len()..usize::from(self.path_at))
            .unwrap_or_default()
    }

    /// The path with its leading slash, or `""`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri
            .get(usize::from(self.path_at)..)
            .unwrap_or_default()
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Whether the ID has a path, that is, names something within its trust domain.
    #[must_use]
    pub fn has_path(&self) -> bool {
        !self.path().is_empty()
    }

    /// Whether the ID belongs to `trust_domain`.
    #[must_use]
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.as_str()
    }

    /// Whether the path is `/spire` or under it: kept for the control plane itself.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.path() == "/spire" || self.path().starts_with("/spire/")
    }

    /// Whether the path is under `/spire/agent/`.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }

    /// Whether the path is under `/spire/agent/<attestor>/`, the names that node attestor may give out.
    #[must_use]
    pub fn is_agent_of(&self, attestor: &str) -> bool {
        self.path()
            .strip_prefix("/spire/agent/")
            .and_then(|rest| rest.strip_prefix(attestor))
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(IdError::NoLeadingSlash);
    };
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_none() {
            return Err(IdError::TrailingSlash);
        }
        check_segment(segment)?;
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), IdError> {
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment),
        _ if segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) =>
        {
            Ok(())
        }
        _ => Err(IdError::BadPathChar),
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.uri
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}
