//! The SPIFFE standards as types: identifiers, SVIDs, bundles, keys. No I/O, no runtime, no wire.
//!
//! Everything that reads bytes from outside lives here, bounded and fuzzed: SPIFFE IDs, certificates, signing
//! requests, tokens, bundles, socket addresses. A value of one of these types has passed its checks; code
//! above this crate never looks at the raw form again. Time and randomness are parameters ([`Clock`],
//! [`Random`]); signing is synchronous when the key is in memory ([`Signer::local`]).

pub mod clock;
pub mod entry;
pub mod id;
pub mod key;
pub mod pem;
pub mod random;
pub mod secret;
pub mod selector;
pub mod trust_domain;

pub use clock::{Clock, ManualClock, SystemClock, from_unix, unix_seconds};
pub use entry::{Entry, EntryError};
pub use id::{IdError, SpiffeId};
pub use key::{JwsAlgorithm, KeyPair, KeyType, PublicKey, SignError, SignatureScheme, Signer};
pub use random::{Random, SystemRandom};
pub use secret::Secret;
pub use selector::{Selector, SelectorError, SelectorSet};
pub use trust_domain::TrustDomain;
