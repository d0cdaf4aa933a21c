//! The upstream authority on real files.

use super::*;
use crate::error::ErrorKind;
use config::fault::Code;
use spiffe::clock::{ManualClock, from_unix};
use spiffe::csr::build_csr;
use spiffe::key::KeyType;
use spiffe::random::SystemRandom;
use spiffe::x509::Subject;

const NOW: i64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);

struct Ca {
    key: KeyPair,
    certificate: Certificate,
}

fn subject(name: &str) -> Subject {
    Subject {
        common_name: Some(name.to_owned()),
        ..Subject::default()
    }
}

async fn ca(name: &str, by: Option<&Ca>, lifetime: Duration) -> Ca {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let template = CaTemplate {
        serial: random_serial(&SystemRandom),
        subject: subject(name),
        id: TrustDomain::parse("upstream.test").unwrap().id(),
        public_key: key.public_key().clone(),
        not_before: from_unix(NOW) - HOUR,
        not_after: from_unix(NOW) + lifetime,
        path_len: None,
        subject_key_id: None,
    };
    let key_id = by
        .map(|by| by.certificate.subject_key_id().unwrap().to_vec())
        .unwrap_or_default();
    let issuer = by.map(|by| Issuer {
        subject_der: by.certificate.subject_der(),
        key_id: &key_id,
        signer: &by.key,
    });
    let der = issue_ca(&template, issuer.as_ref(), by.map_or(&key, |by| &by.key))
        .await
        .unwrap();
    Ca {
        certificate: Certificate::from_der(&der).unwrap(),
        key,
    }
}

struct Files {
    directory: tempfile::TempDir,
    with_bundle: bool,
}

impl Files {
    fn new(key: &KeyPair, chain: &[&Certificate], roots: Option<&[&Certificate]>) -> Self {
        let files = Self {
            directory: tempfile::tempdir().unwrap(),
            with_bundle: roots.is_some(),
        };
        files.write(key, chain, roots.unwrap_or_default());
        files
    }

    fn write(&self, key: &KeyPair, chain: &[&Certificate], roots: &[&Certificate]) {
        use base64::Engine;
        let der = key.to_pkcs8_der().unwrap();
        let body = base64::engine::general_purpose::STANDARD.encode(der.expose());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        std::fs::write(self.path("key"), pem).unwrap();
        let pems = |certificates: &[&Certificate]| {
            certificates
                .iter()
                .map(|one| one.to_pem())
                .collect::<String>()
        };
        std::fs::write(self.path("cert"), pems(chain)).unwrap();
        std::fs::write(self.path("bundle"), pems(roots)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> DiskUpstreamConfig {
        DiskUpstreamConfig {
            cert_file_path: self.path("cert"),
            key_file_path: self.path("key"),
            bundle_file_path: self.with_bundle.then(|| self.path("bundle")),
        }
    }

    fn load(&self) -> Result<Upstream, Problem> {
        load(&self.config(), from_unix(NOW))
    }

    fn open(&self) -> Result<DiskUpstreamAuthority, Error> {
        let clock = Arc::new(ManualClock::new(from_unix(NOW)));
        DiskUpstreamAuthority::open(
            self.config(),
            TrustDomain::parse("example.org").unwrap(),
            clock,
            Arc::new(SystemRandom),
        )
    }
}

fn request(uris: &[&str]) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate(KeyType::EcP384).unwrap();
    let csr = build_csr(&key, &subject("wanted"), uris, &[]).unwrap();
    (key, csr)
}

#[tokio::test]
async fn a_self_signed_authority_signs_and_is_the_root() {
    let root = ca("root", None, 100 * HOUR).await;
    let authority = Files::new(&root.key, &[&root.certificate], None)
        .open()
        .unwrap();
    let (key, csr) = request(&["spiffe://example.org"]);
    let (minted, _) = authority.mint_x509_ca(&csr, 2 * HOUR).await.unwrap();
    assert_eq!(minted.chain.len(), 1);
    let certificate = &minted.chain[0];
    assert!(certificate.is_ca() && certificate.is_signed_by(&root.certificate));
    assert_eq!(certificate.public_key(), key.public_key());
    assert_eq!(certificate.uris(), ["spiffe://example.org"]);
    assert_eq!(certificate.subject_common_name().as_deref(), Some("wanted"));
    assert_eq!(certificate.not_before(), from_unix(NOW - 10));
    assert_eq!(certificate.not_after(), from_unix(NOW) + 2 * HOUR);
    assert_eq!(
        certificate.authority_key_id(),
        root.certificate.subject_key_id()
    );
    assert_eq!(minted.roots.len(), 1);
    assert_eq!(minted.roots[0].certificate.der(), root.certificate.der());
}

#[tokio::test]
async fn an_intermediate_gives_its_chain_and_the_bundle() {
    let root = ca("root", None, 100 * HOUR).await;
    let middle = ca("middle", Some(&root), 50 * HOUR).await;
    let low = ca("low", Some(&middle), 50 * HOUR).await;
    let files = Files::new(
        &low.key,
        &[&low.certificate, &middle.certificate],
        Some(&[&root.certificate]),
    );
    let authority = files.open().unwrap();
    let (_, csr) = request(&["spiffe://example.org"]);
    let (minted, _) = authority.mint_x509_ca(&csr, Duration::ZERO).await.unwrap();
    let names: Vec<_> = minted
        .chain
        .iter()
        .filter_map(Certificate::subject_common_name)
        .collect();
    assert_eq!(names, ["wanted", "low", "middle"]);
    assert_eq!(minted.roots[0].certificate.der(), root.certificate.der());
    assert_eq!(minted.chain[0].not_after(), from_unix(NOW) + HOUR);
    assert!(minted.chain[0].is_signed_by(&low.certificate));
}

#[tokio::test]
async fn nothing_outlives_the_upstream_certificate() {
    let root = ca("root", None, HOUR).await;
    let authority = Files::new(&root.key, &[&root.certificate], None)
        .open()
        .unwrap();
    let (_, csr) = request(&["spiffe://example.org"]);
    for ttl in [10 * HOUR, Duration::MAX] {
        let (minted, _) = authority.mint_x509_ca(&csr, ttl).await.unwrap();
        assert_eq!(minted.chain[0].not_after(), from_unix(NOW) + HOUR);
    }
}

#[tokio::test]
async fn new_files_are_used_and_broken_ones_are_not() {
    let (first, second) = (
        ca("first", None, 9 * HOUR).await,
        ca("second", None, 9 * HOUR).await,
    );
    let files = Files::new(&first.key, &[&first.certificate], None);
    let authority = files.open().unwrap();
    files.write(&second.key, &[&second.certificate], &[]);
    let (_, csr) = request(&["spiffe://example.org"]);
    let (minted, _) = authority.mint_x509_ca(&csr, HOUR).await.unwrap();
    assert!(minted.chain[0].is_signed_by(&second.certificate));
    std::fs::write(files.path("cert"), "broken").unwrap();
    let (minted, _) = authority.mint_x509_ca(&csr, HOUR).await.unwrap();
    assert!(minted.chain[0].is_signed_by(&second.certificate));
    assert_eq!(minted.roots[0].certificate.der(), second.certificate.der());
}

#[tokio::test]
async fn requests_for_anything_but_the_trust_domain_are_refused() {
    let root = ca("root", None, 100 * HOUR).await;
    let authority = Files::new(&root.key, &[&root.certificate], None)
        .open()
        .unwrap();
    for uris in [
        &[][..],
        &["spiffe://example.org/web"],
        &["spiffe://other.org"],
        &["spiffe://example.org", "spiffe://example.org"],
        &["https://example.org"],
    ] {
        let (_, csr) = request(uris);
        let refused = authority.mint_x509_ca(&csr, HOUR).await;
        let error = refused.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{uris:?}");
        assert!(
            error.to_string().starts_with("unable to sign CSR"),
            "{error}"
        );
    }
    let (_, mut forged) = request(&["spiffe://example.org"]);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for csr in [&forged[..], b"", b"junk"] {
        let error = authority.mint_x509_ca(csr, HOUR).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(
            error.to_string().starts_with("unable to sign CSR"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn files_that_do_not_fit_are_refused_at_the_start() {
    let root = ca("root", None, 9 * HOUR).await;
    let low = ca("low", Some(&root), 9 * HOUR).await;
    let other = ca("root", None, 9 * HOUR).await;
    let refused = |key: &KeyPair, chain: &[&Certificate], roots: Option<&[&Certificate]>| {
        Files::new(key, chain, roots)
            .load()
            .expect_err("must be refused")
    };
    let (r, l, o) = (&root.certificate, &low.certificate, &other.certificate);
    assert!(matches!(
        refused(&low.key, &[l, r], None),
        Problem::NotSelfSigned
    ));
    // SPIRE: a lone certificate is taken as the root, whoever signed it.
    Files::new(&low.key, &[l], None).open().unwrap();
    assert!(matches!(
        refused(&low.key, &[l], Some(&[o])),
        Problem::NoPath
    ));
    assert!(matches!(
        refused(&low.key, &[r], None),
        Problem::KeyMismatch
    ));
    assert!(matches!(
        refused(&root.key, &[l], Some(&[r])),
        Problem::KeyMismatch
    ));
    assert!(matches!(
        refused(&root.key, &[], None),
        Problem::Content { .. }
    ));
    assert!(matches!(
        refused(&low.key, &[l], Some(&[])),
        Problem::Content { .. }
    ));
    let past = ca("past", None, Duration::ZERO).await;
    let files = Files::new(&past.key, &[&past.certificate], None);
    files.open().unwrap();
    let late = Arc::new(ManualClock::new(from_unix(NOW + 1)));
    let config = files.config();
    let domain = TrustDomain::parse("example.org").unwrap();
    let expired = DiskUpstreamAuthority::open(config, domain, late, Arc::new(SystemRandom));
    let expired = expired.unwrap_err();
    assert_eq!(expired.to_string(), Problem::NotValidNow.to_string());
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let root = ca("root", None, 9 * HOUR).await;
    for name in ["cert", "key", "bundle"] {
        let files = Files::new(&root.key, &[&root.certificate], Some(&[&root.certificate]));
        std::fs::remove_file(files.path(name)).unwrap();
        let fault = files.open().unwrap_err().to_fault();
        assert_eq!(fault.code, Code::UpstreamInvalid);
        assert!(
            fault.what.contains(files.path(name).to_str().unwrap()),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn publishing_a_token_key_is_not_offered() {
    let root = ca("root", None, 9 * HOUR).await;
    let authority = Files::new(&root.key, &[&root.certificate], None)
        .open()
        .unwrap();
    let key = spiffe::bundle::JwtAuthority {
        key_id: "k".to_owned(),
        public_key: root.key.public_key().clone(),
        expires_at: None,
        tainted: false,
        source: AuthoritySource::Unknown,
    };
    let error = authority.publish_jwt_key(&key).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotOffered);
}

/// The common names of the roots of the next update.
async fn next_roots(updates: &mut Updates<X509Authority>) -> Vec<String> {
    let roots = updates.next().await.unwrap().unwrap();
    let names = roots.iter();
    names
        .filter_map(|root| root.certificate.subject_common_name())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn who_follows_the_roots_sees_each_change_of_the_files() {
    let (one, two) = (
        ca("one", None, 9 * HOUR).await,
        ca("two", None, 9 * HOUR).await,
    );
    let (one_root, two_root) = (&one.certificate, &two.certificate);
    let files = Files::new(&one.key, &[one_root], Some(&[one_root]));
    let authority = files.open().unwrap();
    let (_, csr) = request(&["spiffe://example.org"]);
    let (minted, mut updates) = authority.mint_x509_ca(&csr, HOUR).await.unwrap();
    assert_eq!(minted.roots.len(), 1);
    files.write(&one.key, &[one_root], &[one_root, two_root]);
    assert_eq!(next_roots(&mut updates).await, ["one", "two"]);
    // Both files change, one after the other: what does not fit together is never seen.
    files.write(&two.key, &[two_root], &[two_root]);
    assert_eq!(next_roots(&mut updates).await, ["two"]);
    // A root of the same name with another key is another root.
    let other = ca("two", None, 9 * HOUR).await;
    files.write(&other.key, &[&other.certificate], &[&other.certificate]);
    let roots = updates.next().await.unwrap().unwrap();
    assert_eq!(roots[0].certificate, other.certificate);
}

#[tokio::test(start_paused = true)]
async fn broken_and_unchanged_files_are_no_update() {
    let root = ca("one", None, 9 * HOUR).await;
    let files = Files::new(&root.key, &[&root.certificate], Some(&[&root.certificate]));
    let authority = files.open().unwrap();
    let mut updates = authority.subscribe_roots().await.unwrap();
    assert_eq!(next_roots(&mut updates).await, ["one"]);
    let stays_quiet = async |updates: &mut Updates<X509Authority>| {
        tokio::time::timeout(10 * LOOK_EVERY, updates.next())
            .await
            .is_err()
    };
    for content in ["broken", ""] {
        std::fs::write(files.path("bundle"), content).unwrap();
        assert!(stays_quiet(&mut updates).await, "{content:?}");
    }
    std::fs::remove_file(files.path("bundle")).unwrap();
    assert!(stays_quiet(&mut updates).await, "it was removed");
    files.write(&root.key, &[&root.certificate], &[&root.certificate]);
    assert!(stays_quiet(&mut updates).await, "nothing new came back");
}

#[tokio::test(start_paused = true)]
async fn another_configuration_brings_its_roots() {
    let (one, two) = (
        ca("one", None, 9 * HOUR).await,
        ca("two", None, 9 * HOUR).await,
    );
    let files = Files::new(&one.key, &[&one.certificate], None);
    let others = Files::new(&two.key, &[&two.certificate], None);
    let authority = files.open().unwrap();
    let mut updates = authority.subscribe_roots().await.unwrap();
    assert_eq!(next_roots(&mut updates).await, ["one"]);
    std::fs::write(files.path("cert"), "broken").unwrap();
    authority.reconfigure(others.config()).await.unwrap();
    assert_eq!(next_roots(&mut updates).await, ["two"]);
    authority.reconfigure(files.config()).await.unwrap_err();
}
