//! Where a signature runs, and for how long.
//!
//! An ECDSA key in memory signs right here: a change of threads would cost more than the signature. An RSA key in memory
//! takes milliseconds, so it signs where it holds up nobody. A key that lives elsewhere is awaited, with a limit.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt as _;
use spiffe::key::{KeyType, Signer};

use super::IssueError;

/// How long a signature by a remote key may take.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Signatures of one batch that a remote key, or an RSA key in memory, makes at the same time.
const SIGNATURES_AT_ONCE: usize = 16;

/// Whether signatures of this key are made at once, on the caller's thread.
pub(super) fn is_direct(key: &dyn Signer) -> bool {
    let elliptic = matches!(
        key.public_key().key_type(),
        Some(KeyType::EcP256 | KeyType::EcP384)
    );
    key.local().is_some() && elliptic
}

/// How many signatures of one batch should be under way.
pub(super) fn at_once(key: &dyn Signer) -> usize {
    if is_direct(key) {
        1
    } else {
        SIGNATURES_AT_ONCE
    }
}

/// Runs `work`, whose only wait is for a signature by `key`.
///
/// # Errors
/// The signature's own, or that it took too long.
pub(super) async fn run<T, W>(key: &dyn Signer, work: W) -> Result<T, IssueError>
where
    T: Send + 'static,
    W: Future<Output = Result<T, IssueError>> + Send + 'static,
{
    if is_direct(key) {
        return work.await;
    }
    if key.local().is_none() {
        let signed = tokio::time::timeout(SIGN_TIMEOUT, work).await;
        return signed.unwrap_or(Err(IssueError::SignatureTimedOut));
    }
    // A key in memory never suspends.
    let signed = tokio::task::spawn_blocking(move || work.now_or_never()).await;
    match signed {
        Ok(Some(outcome)) => outcome,
        Ok(None) | Err(_) => Err(IssueError::SignatureInterrupted),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use async_trait::async_trait;
    use spiffe::key::{KeyPair, PublicKey, SignError, SignatureScheme};

    use super::*;

    /// A key that another machine holds, which never answers.
    #[derive(Debug)]
    struct Away(PublicKey);

    #[async_trait]
    impl Signer for Away {
        fn public_key(&self) -> &PublicKey {
            &self.0
        }

        async fn sign(&self, _: SignatureScheme, _: &[u8]) -> Result<Vec<u8>, SignError> {
            std::future::pending().await
        }
    }

    async fn sign(key: Arc<dyn Signer>) -> Result<thread::ThreadId, IssueError> {
        let signer = Arc::clone(&key);
        let work = async move {
            let scheme = match signer.public_key().key_type() {
                Some(KeyType::Rsa2048) => SignatureScheme::RsaPkcs1Sha256,
                _ => SignatureScheme::EcdsaSha256,
            };
            let signed = signer.sign(scheme, b"m").await;
            signed.map_err(|_failed| IssueError::SignatureInterrupted)?;
            Ok(thread::current().id())
        };
        run(key.as_ref(), work).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_remote_key_that_does_not_answer_is_given_up() {
        let pair = KeyPair::generate(KeyType::EcP256).unwrap();
        let key = Arc::new(Away(pair.public_key().clone()));
        assert_eq!(at_once(key.as_ref()), SIGNATURES_AT_ONCE);
        let refused = sign(key).await.unwrap_err();
        assert!(
            matches!(refused, IssueError::SignatureTimedOut),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn only_rsa_keys_in_memory_change_the_thread() {
        let here = thread::current().id();
        for (ty, direct) in [(KeyType::EcP256, true), (KeyType::Rsa2048, false)] {
            let key = Arc::new(KeyPair::generate(ty).unwrap());
            assert_eq!(at_once(key.as_ref()) == 1, direct);
            assert_eq!(sign(key).await.unwrap() == here, direct, "{ty:?}");
        }
    }
}
