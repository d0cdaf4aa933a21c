//! What every key manager must do. Each implementation runs these.

use super::KeyManager;
use crate::error::ErrorKind;
use spiffe::key::{KeyType, SignatureScheme, Signer};

const MESSAGE: &[u8] = b"message";

async fn signs_as_itself(key: &dyn Signer, scheme: SignatureScheme) {
    let signature = key.sign(scheme, MESSAGE).await.unwrap();
    let algorithm = match scheme {
        SignatureScheme::EcdsaSha384 => spiffe::key::JwsAlgorithm::ES384,
        SignatureScheme::RsaPkcs1Sha256 => spiffe::key::JwsAlgorithm::RS256,
        _ => spiffe::key::JwsAlgorithm::ES256,
    };
    // ECDSA comes as DER, a token's signature is raw: the RSA case and the length show enough here.
    if matches!(scheme, SignatureScheme::RsaPkcs1Sha256) {
        key.public_key()
            .verify_jws(algorithm, MESSAGE, &signature)
            .unwrap();
    }
    assert!(!signature.is_empty());
}

/// To be called with a key manager that has no keys.
pub(crate) async fn all(manager: &dyn KeyManager) {
    begins_empty(manager).await;
    makes_each_type_and_gives_it_back(manager).await;
    replaces_a_key_of_the_same_name(manager).await;
    lists_keys_by_name(manager).await;
    refuses_a_key_without_a_name(manager).await;
    makes_keys_at_the_same_time(manager).await;
}

async fn begins_empty(manager: &dyn KeyManager) {
    assert!(manager.keys().await.unwrap().is_empty());
    assert!(manager.key("x509-CA-A").await.unwrap().is_none());
}

async fn makes_each_type_and_gives_it_back(manager: &dyn KeyManager) {
    for (id, ty, scheme) in [
        ("x509-CA-A", KeyType::EcP256, SignatureScheme::EcdsaSha256),
        (
            "JWT-Signer-A",
            KeyType::EcP384,
            SignatureScheme::EcdsaSha384,
        ),
        (
            "x509-CA-B",
            KeyType::Rsa2048,
            SignatureScheme::RsaPkcs1Sha256,
        ),
    ] {
        let made = manager.generate_key(id, ty).await.unwrap();
        assert_eq!(made.public_key().key_type(), Some(ty));
        let found = manager.key(id).await.unwrap().unwrap();
        assert_eq!(found.public_key(), made.public_key());
        signs_as_itself(&*found, scheme).await;
    }
}

async fn replaces_a_key_of_the_same_name(manager: &dyn KeyManager) {
    let former = manager.key("x509-CA-A").await.unwrap().unwrap();
    let made = manager
        .generate_key("x509-CA-A", KeyType::EcP384)
        .await
        .unwrap();
    assert_ne!(former.public_key(), made.public_key());
    let found = manager.key("x509-CA-A").await.unwrap().unwrap();
    assert_eq!(found.public_key(), made.public_key());
    // A holder of the former key can still finish its work.
    signs_as_itself(&*former, SignatureScheme::EcdsaSha256).await;
}

async fn lists_keys_by_name(manager: &dyn KeyManager) {
    let keys = manager.keys().await.unwrap();
    let names: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(names, ["JWT-Signer-A", "x509-CA-A", "x509-CA-B"]);
    for (id, key) in &keys {
        let found = manager.key(id).await.unwrap().unwrap();
        assert_eq!(found.public_key(), key.public_key());
    }
}

async fn refuses_a_key_without_a_name(manager: &dyn KeyManager) {
    let refused = manager.generate_key("", KeyType::EcP256).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Permanent, "{refused:?}");
    assert_eq!(manager.keys().await.unwrap().len(), 3);
}

async fn makes_keys_at_the_same_time(manager: &dyn KeyManager) {
    let (a, b, c, d) = tokio::join!(
        manager.generate_key("a", KeyType::EcP256),
        manager.generate_key("b", KeyType::EcP256),
        manager.generate_key("c", KeyType::EcP256),
        manager.generate_key("c", KeyType::EcP256),
    );
    let made = [("a", a), ("b", b)];
    for (id, key) in made {
        let found = manager.key(id).await.unwrap().unwrap();
        assert_eq!(found.public_key(), key.unwrap().public_key(), "{id}");
    }
    let last = manager.key("c").await.unwrap().unwrap();
    let either = [c.unwrap(), d.unwrap()];
    assert!(
        either
            .iter()
            .any(|key| key.public_key() == last.public_key())
    );
}
