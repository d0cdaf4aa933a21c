//! Whole lives of authorities, through restarts.

use spiffe::bundle::JwtBundle;
use spiffe::svid::jwt::{JwtBundleSource, JwtSvidError, verify_jwt_svid};

use super::*;
use crate::datastore::DeleteMode;
use config::fault::Code;

#[derive(Debug)]
struct Keys(Arc<JwtBundle>);

impl JwtBundleSource for Keys {
    fn jwt_bundle(&self, _: &TrustDomain) -> Option<Arc<JwtBundle>> {
        Some(Arc::clone(&self.0))
    }
}

async fn token(ca: &Ca) -> Result<IssuedJwt, IssueError> {
    ca.issue_jwt(&minted(id("/w"), 60), &["peer".to_owned()], &quiet())
        .await
}

fn believed(fixture: &Fixture, issued: &IssuedJwt) -> Result<(), JwtSvidError> {
    let keys = Keys(Arc::new(fixture.bundle().jwt_bundle()));
    verify_jwt_svid(issued.token.expose(), "peer", &keys, fixture.clock.now()).map(|_| ())
}

async fn svid(ca: &Ca) -> IssuedX509 {
    ca.issue_x509(&minted(id("/w"), 600), &key(), &quiet())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_first_start_makes_and_publishes_one_authority_of_each_kind() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let (x509, jwt) = active(&ca);
    assert_eq!(published(&fixture.bundle()), [x509, jwt.clone()]);
    assert_eq!(prepared(&ca), (None, None));
    assert!(
        jwt.len() == 32 && jwt.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{jwt}"
    );
    assert_eq!(ca.fault(), None);
}

#[tokio::test]
async fn prepares_at_half_of_life_and_activates_at_five_sixths_and_not_a_second_sooner() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let first = active(&ca);
    fixture.later(&ca, HOUR * 12 - Duration::from_secs(1)).await;
    assert_eq!(prepared(&ca), (None, None));
    fixture.later(&ca, Duration::from_secs(1)).await;
    let (Some(x509), Some(jwt)) = prepared(&ca) else {
        panic!("not prepared")
    };
    assert_eq!(active(&ca), first);
    assert!(
        published(&fixture.bundle()).contains(&x509) && published(&fixture.bundle()).contains(&jwt)
    );
    fixture.later(&ca, HOUR * 8 - Duration::from_secs(1)).await;
    assert_eq!(active(&ca), first);
    fixture.later(&ca, Duration::from_secs(1)).await;
    assert_eq!(active(&ca), (x509, jwt));
    assert_eq!(prepared(&ca), (None, None));
    let old = ca
        .authorities(AuthorityKind::X509)
        .unwrap()
        .old
        .clone()
        .unwrap();
    assert_eq!(old.authority_id, first.0);
}

#[tokio::test]
async fn never_signs_with_what_was_not_published_before_through_days_of_restarts() {
    let fixture = Fixture::new().await;
    let mut ca = fixture.server().await;
    let mut seen = vec![active(&ca)];
    for step in 0..24 * 6 * 2 {
        let known = published(&fixture.bundle());
        fixture.later(&ca, HOUR / 2).await;
        if step % 7 == 0 {
            drop(ca);
            ca = fixture.server().await;
        }
        let (x509, jwt) = active(&ca);
        assert!(known.contains(&x509) && known.contains(&jwt), "step {step}");
        if seen.last() != Some(&(x509.clone(), jwt.clone())) {
            seen.push((x509, jwt));
        }
        assert!(
            svid(&ca).await.not_after >= fixture.clock.now() + Duration::from_secs(600),
            "step {step}"
        );
        assert_eq!(fixture.verify(&svid(&ca).await).unwrap().id(), &id("/w"));
        believed(&fixture, &token(&ca).await.unwrap()).unwrap();
        ca.prune_bundle(fixture.clock.now()).await.unwrap();
    }
    // The first signs for twenty hours; each later one was prepared eight hours before it began, and signs for twelve.
    assert_eq!(seen.len(), 12, "{seen:?}");
    assert!(
        published(&fixture.bundle()).len() <= 12,
        "{:?}",
        published(&fixture.bundle())
    );
    assert_eq!(fixture.datastore.journals.all().len(), 1);
}

#[tokio::test]
async fn a_restart_resumes_the_authorities_whose_keys_are_on_disk() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    fixture.later(&ca, HOUR * 13).await;
    let (before, next) = (active(&ca), prepared(&ca));
    drop(ca);
    let ca = fixture.server().await;
    assert_eq!((active(&ca), prepared(&ca)), (before, next.clone()));
    fixture.later(&ca, HOUR * 7).await;
    assert_eq!(Some(active(&ca).0), next.0);
    drop(ca);
    let ca = fixture.server().await;
    assert_eq!(Some(active(&ca).1), next.1);
    assert_eq!(published(&fixture.bundle()).len(), 4);
}

#[tokio::test]
async fn a_restart_without_keys_creates_new_authorities_and_leaves_the_former_ones_trusted() {
    let fixture = Fixture::new().await;
    let first = fixture
        .try_server(Fixture::memory(), config())
        .await
        .unwrap();
    let (former, issued) = (active(&first), svid(&first).await);
    drop(first);
    let second = fixture
        .try_server(Fixture::memory(), config())
        .await
        .unwrap();
    assert_ne!(active(&second), former);
    assert_eq!(published(&fixture.bundle()).len(), 4);
    fixture.verify(&issued).unwrap();
}

#[tokio::test]
async fn an_authority_whose_key_was_replaced_is_a_reason_not_to_start() {
    let mut fixture = Fixture::new().await;
    let former = active(&fixture.server().await);
    fixture
        .disk()
        .generate_key("x509-CA-A", KeyType::EcP256)
        .await
        .unwrap();
    let refused = fixture
        .try_server(fixture.disk(), config())
        .await
        .unwrap_err();
    assert_eq!(refused.to_fault().code, Code::KeyLost, "{refused}");
    assert!(refused.to_string().contains(&former.0), "{refused}");
    fixture.lost_keys = LostKeys::Replace;
    let ca = fixture.server().await;
    let now = active(&ca);
    // The journal was found by the key that is still there.
    assert_eq!((now.0 != former.0, now.1 == former.1), (true, true));
    fixture.verify(&svid(&ca).await).unwrap();
    drop(ca);
    // Once is enough.
    fixture.lost_keys = LostKeys::Refuse;
    assert_eq!(active(&fixture.server().await), now);
}

#[tokio::test]
async fn a_lost_key_file_is_a_reason_not_to_start() {
    let mut fixture = Fixture::new().await;
    let former = active(&fixture.server().await);
    std::fs::remove_file(fixture.directory.path().join("keys.json")).unwrap();
    let refused = fixture
        .try_server(fixture.disk(), config())
        .await
        .unwrap_err();
    assert_eq!(refused.to_fault().code, Code::KeyLost, "{refused}");
    assert_eq!(published(&fixture.bundle()), [former.0.clone(), former.1]);
    fixture.lost_keys = LostKeys::Replace;
    let ca = fixture.server().await;
    assert_ne!(active(&ca).0, former.0);
    // What the former authority signed stays valid.
    assert!(published(&fixture.bundle()).contains(&former.0));
}

#[tokio::test]
async fn keys_that_were_never_kept_are_not_missed() {
    let fixture = Fixture::new().await;
    for _ in 0..2 {
        fixture
            .try_server(Fixture::memory(), config())
            .await
            .unwrap();
    }
    // An authority that has expired is not missed either.
    fixture.clock.advance(HOUR * 25);
    drop(fixture.server().await);
    std::fs::remove_file(fixture.directory.path().join("keys.json")).unwrap();
    fixture.clock.advance(HOUR * 25);
    drop(fixture.server().await);
}

#[tokio::test]
async fn a_further_server_on_a_shared_database_starts_with_authorities_of_its_own() {
    let mut fixture = Fixture::new().await;
    let first = fixture.server().await;
    fixture.sole_server = false;
    let keys = DiskKeyManager::open(&fixture.directory.path().join("second.json")).unwrap();
    let second = fixture.try_server(Arc::new(keys), config()).await.unwrap();
    assert_ne!(active(&first).0, active(&second).0);
}

/// An upstream authority is free in the choice of subject key IDs.
#[tokio::test]
async fn the_journal_is_found_by_its_keys_whatever_the_certificates_call_them() {
    let fixture = Fixture::new().await;
    let former = active(&fixture.server().await);
    let journal = fixture.datastore.journals.all().remove(0);
    let mut entries: serde_json::Value = serde_json::from_slice(&journal.data).unwrap();
    entries["x509"][0]["authority_id"] = "0123".into();
    let changed = serde_json::to_vec(&entries).unwrap();
    fixture
        .datastore
        .journals
        .save(&journal.id, changed)
        .await
        .unwrap();
    let ca = fixture.server().await;
    assert_eq!(ca.context.journal.id(), journal.id);
    assert_eq!(active(&ca), ("0123".to_owned(), former.1));
}

#[tokio::test]
async fn a_record_of_an_earlier_version_says_its_origin_by_its_upstream_id() {
    let fixture = Fixture::new().await;
    let former = active(&fixture.server().await);
    let journal = fixture.datastore.journals.all().remove(0);
    let mut entries: serde_json::Value = serde_json::from_slice(&journal.data).unwrap();
    assert_eq!(entries["x509"][0]["origin"], "self_signed");
    entries["x509"][0].as_object_mut().unwrap().remove("origin");
    let earlier = serde_json::to_vec(&entries).unwrap();
    fixture
        .datastore
        .journals
        .save(&journal.id, earlier)
        .await
        .unwrap();
    assert_eq!(active(&fixture.server().await), former);
}

#[tokio::test]
async fn does_not_resume_an_authority_that_the_bundle_lost() {
    let fixture = Fixture::new().await;
    let former = active(&fixture.server().await);
    let mut bundle = Bundle::clone(&fixture.bundle());
    bundle.x509_authorities.clear();
    bundle.jwt_authorities.clear();
    let own = trust_domain();
    let deleted = fixture.datastore.bundles.delete(&own, DeleteMode::Restrict);
    deleted.await.unwrap();
    fixture.datastore.bundles.create(bundle).await.unwrap();
    let ca = fixture.server().await;
    let now = active(&ca);
    assert_ne!((now.0 != former.0, now.1 != former.1), (false, false));
    assert_eq!(published(&fixture.bundle()), [now.0, now.1]);
    fixture.verify(&svid(&ca).await).unwrap();
}

#[tokio::test]
async fn does_not_trust_a_journal_that_was_tampered_with() {
    let fixture = Fixture::new().await;
    let former = active(&fixture.server().await);
    let journal = fixture.datastore.journals.all().remove(0);
    // Another key under the published key id.
    let mut entries: serde_json::Value = serde_json::from_slice(&journal.data).unwrap();
    let foreign =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key().spki_der());
    entries["jwt"][0]["public_key"] = foreign.into();
    fixture
        .datastore
        .journals
        .save(&journal.id, serde_json::to_vec(&entries).unwrap())
        .await
        .unwrap();
    let now = active(&fixture.server().await);
    assert_eq!(now.0, former.0);
    assert_ne!(now.1, former.1);
}

#[tokio::test]
async fn leaves_an_unreadable_journal_alone_and_starts() {
    let fixture = Fixture::new().await;
    fixture
        .datastore
        .journals
        .save("somebody", b"\xff not json".to_vec())
        .await
        .unwrap();
    drop(fixture.server().await);
    assert_eq!(fixture.datastore.journals.all().len(), 2);
}

#[tokio::test]
async fn refuses_to_issue_with_expired_authorities_until_new_ones_are_made() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let former = active(&ca);
    fixture.clock.advance(HOUR * 24);
    let grant = minted(id("/w"), 60);
    let refused = ca.issue_x509(&grant, &key(), &quiet()).await.unwrap_err();
    assert!(matches!(refused, IssueError::AuthorityExpired), "{refused}");
    assert!(matches!(
        token(&ca).await.unwrap_err(),
        IssueError::AuthorityExpired
    ));
    assert!(ca.fault().is_some());
    ca.tick(fixture.clock.now()).await.unwrap();
    assert_ne!(active(&ca), former);
    fixture.verify(&svid(&ca).await).unwrap();
    assert_eq!(ca.fault(), None);
}

#[tokio::test]
async fn a_prepared_authority_takes_over_at_once_when_the_active_one_ended_during_a_pause() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    fixture.later(&ca, HOUR * 13).await;
    let next = prepared(&ca);
    drop(ca);
    fixture.clock.advance(HOUR * 12);
    let ca = fixture.server().await;
    assert_eq!(Some(active(&ca).0), next.0);
}

#[tokio::test]
async fn two_servers_on_one_database_keep_apart_and_share_the_bundle() {
    let fixture = Fixture::new().await;
    let (one_keys, two_keys) = (Fixture::memory(), Fixture::memory());
    let one = fixture
        .try_server(Arc::clone(&one_keys), config())
        .await
        .unwrap();
    let two = fixture
        .try_server(Arc::clone(&two_keys), config())
        .await
        .unwrap();
    let (first, second) = (active(&one), active(&two));
    assert_ne!(first, second);
    assert_eq!(published(&fixture.bundle()).len(), 4);
    assert_eq!(fixture.datastore.journals.all().len(), 2);
    fixture.verify(&svid(&one).await).unwrap();
    fixture.verify(&svid(&two).await).unwrap();
    drop((one, two));
    // Each finds its own journal again.
    assert_eq!(
        active(&fixture.try_server(two_keys, config()).await.unwrap()),
        second
    );
    assert_eq!(
        active(&fixture.try_server(one_keys, config()).await.unwrap()),
        first
    );
}

#[tokio::test]
async fn forgets_the_journals_of_servers_that_are_no_more() {
    let mut fixture = Fixture::new().await;
    drop(
        fixture
            .try_server(Fixture::memory(), config())
            .await
            .unwrap(),
    );
    fixture.sole_server = false;
    let ca = fixture.server().await;
    ca.context
        .journal
        .prune_others(unix_seconds(fixture.clock.now() + HOUR * 23))
        .await
        .unwrap();
    assert_eq!(fixture.datastore.journals.all().len(), 2);
    ca.context
        .journal
        .prune_others(unix_seconds(fixture.clock.now() + HOUR * 25))
        .await
        .unwrap();
    assert_eq!(fixture.datastore.journals.all().len(), 1);
    let before = active(&ca);
    drop(ca);
    assert_eq!(active(&fixture.server().await), before);
}

#[tokio::test]
async fn keeps_no_more_than_ten_records_of_a_kind() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    for _ in 0..12 {
        ca.prepare(AuthorityKind::Jwt).await.unwrap();
    }
    assert_eq!(
        ca.context.journal.records(journal::Series::Jwt).await.len(),
        10
    );
}

#[tokio::test]
async fn signs_with_every_type_of_key() {
    let fixture = Fixture::new().await;
    for (ca_key_type, jwt_key_type) in [
        (KeyType::EcP384, KeyType::Rsa2048),
        (KeyType::Rsa2048, KeyType::EcP384),
    ] {
        let config = IssuanceConfig {
            ca_key_type,
            jwt_key_type,
            ..config()
        };
        let ca = fixture.try_server(Fixture::memory(), config).await.unwrap();
        fixture.verify(&svid(&ca).await).unwrap();
        believed(&fixture, &token(&ca).await.unwrap()).unwrap();
    }
}

#[tokio::test]
async fn makes_no_jwt_authority_when_jwt_svids_are_disabled() {
    let fixture = Fixture::new().await;
    let config = IssuanceConfig {
        jwt_svids: false,
        ..config()
    };
    let ca = fixture.try_server(Fixture::memory(), config).await.unwrap();
    assert!(fixture.bundle().jwt_authorities.is_empty());
    assert!(matches!(
        token(&ca).await.unwrap_err(),
        IssueError::JwtDisabled
    ));
    assert!(matches!(
        ca.authorities(AuthorityKind::Jwt),
        Err(OperationError::JwtDisabled)
    ));
}

#[tokio::test]
async fn renews_the_servers_own_svid_when_the_clock_was_set_back() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let first = ca.server_svid().unwrap();
    let second = Duration::from_secs(1);
    let tick = async |now| ca.tick_server_svid(now).await.unwrap();
    tick(first.not_before).await;
    assert_eq!(ca.server_svid().unwrap().serial, first.serial);
    tick(first.not_before - second).await;
    assert_ne!(ca.server_svid().unwrap().serial, first.serial);
}

#[tokio::test]
async fn replaces_authorities_from_the_future_when_the_clock_was_set_back() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let first = active(&ca);
    fixture.clock.set(fixture.clock.now() - HOUR * 2);
    ca.tick(fixture.clock.now()).await.unwrap();
    let second = active(&ca);
    assert!(first.0 != second.0 && first.1 != second.1);
    fixture.verify(&svid(&ca).await).unwrap();
    token(&ca).await.unwrap();
    // Once is enough, also when the time has come to which the clock was set before.
    ca.tick(fixture.clock.now()).await.unwrap();
    fixture.later(&ca, HOUR * 2).await;
    assert_eq!(active(&ca), second);
}

#[tokio::test]
async fn renews_the_servers_own_svid_at_half_of_its_life() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let first = ca.server_svid().unwrap();
    assert_eq!(
        fixture.verify(&first).unwrap().id(),
        &SpiffeId::server(&trust_domain())
    );
    fixture.clock.advance(HOUR / 2 - Duration::from_secs(10));
    ca.tick_server_svid(fixture.clock.now()).await.unwrap();
    assert_eq!(ca.server_svid().unwrap().serial, first.serial);
    fixture.clock.advance(Duration::from_secs(10));
    ca.tick_server_svid(fixture.clock.now()).await.unwrap();
    assert_ne!(ca.server_svid().unwrap().serial, first.serial);
}
