//! The SPIFFE standards as types: identifiers, SVIDs, bundles, keys. No I/O, no runtime, no wire.
//!
//! Everything that reads bytes from outside lives here, bounded and fuzzed: SPIFFE IDs, certificates, CSRs,
//! tokens, bundles, socket addresses. A value of one of these types has passed its checks; code
//! above this crate never looks at the raw form again. Time and randomness are parameters ([`Clock`],
//! [`Random`]); signing is synchronous when the key is in memory ([`Signer::local`]).
//!
//! | To | use |
//! |---|---|
//! | name things | [`SpiffeId`], [`TrustDomain`], [`Selector`], [`Entry`] |
//! | sign | [`KeyPair`], [`Signer`], [`issue_leaf`], [`issue_ca`], [`sign_jwt_svid`] |
//! | verify a peer | [`verify_svid`], [`verify_jwt_svid`], the verifiers of [`tls`] |
//! | carry trust | [`Bundle`] and its formats; [`X509Bundle`], [`JwtBundle`] to verify with |
//! | know when | [`rotation`] |
//!
//! Two rules hold throughout. A document is trusted only under an authority of its own trust domain, and only
//! what the verifying function returns is used afterwards. What is broken, unknown or too large is refused;
//! where a standard says to skip instead, the type's documentation says so.
//!
//! ```
//! use plastron_spiffe::{IdError, SpiffeId, TrustDomain};
//!
//! let id = SpiffeId::parse("spiffe://example.org/billing/db")?;
//! assert!(id.is_member_of(&TrustDomain::parse("example.org")?));
//! assert_eq!(id.path(), "/billing/db");
//! assert_eq!(SpiffeId::parse("spiffe://Example.org/db"), Err(IdError::BadTrustDomainChar));
//! # Ok::<(), IdError>(())
//! ```

pub mod bundle;
pub mod clock;
pub mod csr;
pub mod digest;
pub mod entry;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod id;
mod json;
pub mod key;
pub mod pem;
pub mod random;
pub mod rotation;
pub mod secret;
pub mod selector;
pub mod socket_addr;
pub mod svid;
pub mod tls;
pub mod trust_domain;
pub mod x509;

pub use bundle::{Bundle, BundleError, JwtAuthority, JwtBundle, X509Authority, X509Bundle};
pub use clock::{Clock, ManualClock, SystemClock, from_unix, unix_seconds};
pub use csr::{Csr, CsrError, VerifiedCsr, build_csr};
pub use entry::{Entry, EntryError};
pub use id::{IdError, SpiffeId};
pub use key::{JwsAlgorithm, KeyPair, KeyType, PublicKey, SignError, SignatureScheme, Signer};
pub use random::{Random, SystemRandom};
pub use secret::Secret;
pub use selector::{Selector, SelectorError, SelectorSet};
pub use svid::jwt::{
    JwtBundleSource, JwtClaims, JwtSvidError, VerifiedJwtSvid, sign_jwt_svid, verify_jwt_svid,
};
pub use svid::x509::{BundleSource, VerifiedX509Svid, X509Svid, X509SvidError, verify_svid};
pub use trust_domain::TrustDomain;
pub use x509::{
    BuildError, CaTemplate, Certificate, CertificateError, Issuer, LeafTemplate, Subject,
    build_ca_csr, issue_ca, issue_leaf, random_serial,
};
