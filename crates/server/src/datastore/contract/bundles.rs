//! Bundles, federation relationships, journals and leases.

use std::time::{Duration, SystemTime};

use spiffe::bundle::{AuthoritySource, Bundle, JwtAuthority, X509Authority};
use spiffe::clock::{Clock, from_unix};
use spiffe::entry::Entry;
use spiffe::key::{KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::x509::{CaTemplate, Certificate, Subject as Name, issue_ca, random_serial};

use super::{NOW, Subject, content, create, entry, id, on_every_database, td};
use crate::datastore::{BundleError, BundleMask, DeleteMode, RelationshipError};
use crate::registry::{BundleEndpointProfile, EntryFilter, FederationRelationship};

on_every_database!(
    appending_counts_up_when_something_is_new,
    creating_refuses_an_existing_bundle,
    updating_writes_the_masked_parts_only,
    no_write_takes_all_keys_of_a_bundle_away,
    no_more_jwt_authorities_are_appended_than_there_is_room_for,
    a_referenced_bundle_is_deleted_as_the_mode_says,
    only_a_tainted_x509_authority_is_revoked,
    only_a_tainted_jwt_authority_is_revoked,
    pruning_never_empties_a_bundle,
    a_list_that_would_be_emptied_does_not_keep_the_other_from_being_pruned,
    relationships_are_created_changed_and_deleted,
    a_journal_survives_a_restart,
    a_lease_has_one_holder_until_it_ends,
);

pub(super) async fn x509(not_after: SystemTime) -> X509Authority {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let template = CaTemplate {
        serial: random_serial(&SystemRandom),
        subject: Name {
            common_name: Some("ca".to_owned()),
            ..Name::default()
        },
        id: td("example.org").id(),
        public_key: key.public_key().clone(),
        not_before: from_unix(NOW - 100),
        not_after,
        path_len: None,
        subject_key_id: None,
    };
    let der = issue_ca(&template, None, &key).await.unwrap();
    X509Authority {
        certificate: Certificate::from_der(&der).unwrap(),
        tainted: false,
        source: AuthoritySource::Upstream("disk".to_owned()),
    }
}

pub(super) fn jwt(key_id: &str, expires_at: i64) -> JwtAuthority {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: key.public_key().clone(),
        expires_at: Some(expires_at),
        tainted: false,
        source: AuthoritySource::Own,
    }
}

async fn bundle(name: &str) -> Bundle {
    Bundle {
        x509_authorities: vec![x509(from_unix(NOW + 100)).await],
        jwt_authorities: vec![jwt("one", NOW + 100)],
        refresh_hint: 60,
        sequence_number: 3,
        ..Bundle::new(td(name))
    }
}

fn key_id(authority: &X509Authority) -> String {
    spiffe::digest::hex(authority.certificate.subject_key_id().unwrap())
}

async fn appending_counts_up_when_something_is_new(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let first = bundle("example.org").await;
    assert_eq!(
        datastore
            .bundles
            .append(first.clone())
            .await
            .unwrap()
            .sequence_number,
        3
    );
    let revision = registry.revision();
    assert_eq!(
        datastore
            .bundles
            .append(first.clone())
            .await
            .unwrap()
            .sequence_number,
        3
    );
    assert_eq!(registry.revision(), revision, "nothing new is no write");

    let mut impostor = jwt("one", NOW + 200);
    impostor.tainted = true;
    let more = Bundle {
        x509_authorities: vec![x509(from_unix(NOW + 200)).await],
        jwt_authorities: vec![impostor, jwt("two", NOW + 200)],
        ..Bundle::new(td("example.org"))
    };
    let merged = datastore.bundles.append(more).await.unwrap();
    assert_eq!((merged.sequence_number, merged.refresh_hint), (4, 60));
    assert_eq!(merged.x509_authorities.len(), 2);
    assert_eq!(merged.jwt_authorities.len(), 2);
    assert_eq!(
        merged.jwt_authorities[0], first.jwt_authorities[0],
        "a known key ID keeps its key"
    );
    let (_again, reloaded) = subject.open().await;
    assert_eq!(content(&reloaded), content(&registry));
}

async fn creating_refuses_an_existing_bundle(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let first = datastore
        .bundles
        .create(bundle("other.org").await)
        .await
        .unwrap();
    let again = datastore.bundles.create(bundle("other.org").await).await;
    assert_eq!(again, Err(BundleError::Exists));
    assert_eq!(registry.bundle(&td("other.org")), Some(first));
    let replaced = datastore
        .bundles
        .set(bundle("other.org").await)
        .await
        .unwrap();
    assert_eq!(registry.bundle(&td("other.org")), Some(replaced));
}

async fn updating_writes_the_masked_parts_only(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let old = datastore
        .bundles
        .create(bundle("other.org").await)
        .await
        .unwrap();
    let new = Bundle {
        refresh_hint: 5,
        sequence_number: 9,
        ..bundle("other.org").await
    };
    let mask = BundleMask {
        x509_authorities: false,
        jwt_authorities: true,
        wit_authorities: false,
        refresh_hint: true,
        sequence_number: false,
    };
    datastore.bundles.update(new.clone(), mask).await.unwrap();
    let stored = registry.bundle(&td("other.org")).unwrap();
    assert_eq!(stored.x509_authorities, old.x509_authorities);
    assert_eq!(stored.jwt_authorities, new.jwt_authorities);
    assert_eq!((stored.refresh_hint, stored.sequence_number), (5, 3));
    let absent = datastore
        .bundles
        .update(Bundle::new(td("third.org")), BundleMask::ALL)
        .await;
    assert_eq!(absent, Err(BundleError::NotFound));
}

async fn no_write_takes_all_keys_of_a_bundle_away(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let other = td("other.org");
    let keys = bundle("other.org").await;
    let of_one_kind = Bundle {
        x509_authorities: Vec::new(),
        ..keys.clone()
    };
    let stored = datastore.bundles.create(of_one_kind).await.unwrap();
    let empty = || Bundle::new(other.clone());
    let refused = Err(BundleError::Keyless);
    assert_eq!(datastore.bundles.set(empty()).await, refused);
    let jwt_only = BundleMask {
        x509_authorities: false,
        ..BundleMask::ALL
    };
    for mask in [BundleMask::ALL, jwt_only] {
        assert_eq!(datastore.bundles.update(empty(), mask).await, refused);
    }
    assert_eq!(registry.bundle(&other), Some(stored));
    // One that keeps keys of another kind may lose these.
    datastore.bundles.set(keys).await.unwrap();
    let kept = datastore.bundles.update(empty(), jwt_only).await.unwrap();
    assert!(kept.jwt_authorities.is_empty() && !kept.x509_authorities.is_empty());
}

async fn no_more_jwt_authorities_are_appended_than_there_is_room_for(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let publish = |key_id: &str| {
        let mut more = Bundle::new(td("example.org"));
        more.jwt_authorities = vec![jwt(key_id, NOW + 60)];
        datastore.bundles.append_up_to(more, 2)
    };
    // All at once: each is checked against what the others wrote.
    let (a, b, c) = tokio::join!(publish("a"), publish("b"), publish("c"));
    assert_eq!((a.is_ok(), b.is_ok()), (true, true));
    assert_eq!(c, Err(BundleError::JwtAuthoritiesFull(2)));
    publish("a").await.unwrap();
    let own = registry.bundle(&td("example.org")).unwrap();
    assert_eq!(own.jwt_authorities.len(), 2);
}

async fn a_referenced_bundle_is_deleted_as_the_mode_says(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let (one, two) = (td("one.org"), td("two.org"));
    for name in ["one.org", "two.org"] {
        datastore.bundles.create(bundle(name).await).await.unwrap();
    }
    let federated = |path: &str, with: &[&str]| Entry {
        federates_with: with.iter().map(|name| td(name)).collect(),
        ..entry("/spire/agent/x", path, &["a:1"])
    };
    create(&datastore, federated("/both", &["one.org", "two.org"])).await;
    create(&datastore, federated("/two", &["two.org"])).await;
    create(&datastore, federated("/none", &[])).await;
    let refused = datastore
        .bundles
        .delete(&one, DeleteMode::Restrict)
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot delete bundle; federated with 1 registration entries"
    );
    datastore
        .bundles
        .delete(&one, DeleteMode::Dissociate)
        .await
        .unwrap();
    let dissociated = &registry.entries_for_spiffe_id(&id("/both"))[0];
    assert_eq!(dissociated.federates_with, std::slice::from_ref(&two));
    assert_eq!(
        dissociated.revision_number, 1,
        "agents are to fetch it again"
    );
    datastore
        .bundles
        .delete(&two, DeleteMode::Delete)
        .await
        .unwrap();
    assert_eq!(registry.entry_count(&EntryFilter::default()), 1);
    assert_eq!(registry.bundles(), []);
    assert_eq!(
        datastore.bundles.delete(&two, DeleteMode::Restrict).await,
        Err(BundleError::NotFound)
    );
    let (_again, reloaded) = subject.open().await;
    assert_eq!(content(&reloaded), content(&registry));
}

async fn only_a_tainted_x509_authority_is_revoked(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let own = td("example.org");
    assert_eq!(
        datastore.bundles.taint_x509_authority(&own, "00").await,
        Err(BundleError::NotFound)
    );
    let stored = datastore
        .bundles
        .append(bundle("example.org").await)
        .await
        .unwrap();
    let key = key_id(&stored.x509_authorities[0]);
    assert_eq!(
        datastore.bundles.taint_x509_authority(&own, "00").await,
        Err(BundleError::NoX509Authority)
    );
    assert_eq!(
        datastore.bundles.revoke_x509_authority(&own, &key).await,
        Err(BundleError::X509NotTainted)
    );
    let tainted = datastore
        .bundles
        .taint_x509_authority(&own, &key)
        .await
        .unwrap();
    assert!(tainted.x509_authorities[0].tainted);
    assert_eq!(tainted.sequence_number, 4);
    assert_eq!(
        datastore.bundles.taint_x509_authority(&own, &key).await,
        Err(BundleError::X509AlreadyTainted)
    );
    let appended = datastore
        .bundles
        .append(Bundle::clone(&stored))
        .await
        .unwrap();
    assert!(
        appended.x509_authorities[0].tainted,
        "appending lifts no taint"
    );
    datastore
        .bundles
        .revoke_x509_authority(&own, &key)
        .await
        .unwrap();
    assert_eq!(registry.bundle(&own).unwrap().x509_authorities.len(), 0);
    assert_eq!(
        datastore.bundles.revoke_x509_authority(&own, &key).await,
        Err(BundleError::NoX509Authority)
    );
}

async fn only_a_tainted_jwt_authority_is_revoked(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let own = td("example.org");
    datastore
        .bundles
        .append(bundle("example.org").await)
        .await
        .unwrap();
    assert_eq!(
        datastore.bundles.taint_jwt_authority(&own, "none").await,
        Err(BundleError::NoJwtAuthority)
    );
    assert_eq!(
        datastore.bundles.revoke_jwt_authority(&own, "one").await,
        Err(BundleError::JwtNotTainted)
    );
    datastore
        .bundles
        .taint_jwt_authority(&own, "one")
        .await
        .unwrap();
    assert_eq!(
        datastore.bundles.taint_jwt_authority(&own, "one").await,
        Err(BundleError::JwtAlreadyTainted)
    );
    let (_again, reloaded) = subject.open().await;
    assert!(reloaded.bundle(&own).unwrap().jwt_authorities[0].tainted);
    datastore
        .bundles
        .revoke_jwt_authority(&own, "one")
        .await
        .unwrap();
    assert_eq!(registry.bundle(&own).unwrap().jwt_authorities.len(), 0);
    assert_eq!(
        datastore.bundles.revoke_jwt_authority(&own, "one").await,
        Err(BundleError::NoJwtAuthority)
    );
}

async fn pruning_never_empties_a_bundle(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let own = td("example.org");
    assert_eq!(
        datastore.bundles.prune(&own, subject.now()).await,
        Ok(false)
    );
    let full = Bundle {
        x509_authorities: vec![
            x509(from_unix(NOW + 10)).await,
            x509(from_unix(NOW + 50)).await,
        ],
        jwt_authorities: vec![jwt("a", NOW + 10), jwt("b", NOW + 60)],
        ..Bundle::new(own.clone())
    };
    datastore.bundles.append(full).await.unwrap();
    assert_eq!(
        datastore.bundles.prune(&own, from_unix(NOW)).await,
        Ok(false)
    );
    assert_eq!(
        datastore.bundles.prune(&own, from_unix(NOW + 10)).await,
        Ok(true)
    );
    let pruned = registry.bundle(&own).unwrap();
    assert_eq!(
        (
            pruned.x509_authorities.len(),
            pruned.jwt_authorities.len(),
            pruned.sequence_number
        ),
        (1, 1, 1)
    );
    let all_x509 = datastore.bundles.prune(&own, from_unix(NOW + 50)).await;
    assert_eq!(all_x509, Err(BundleError::WouldPruneAllX509));
    assert_eq!(registry.bundle(&own), Some(pruned));
}

/// A server that had JWT authorities and makes none any more must still get rid of its old X.509 ones.
async fn a_list_that_would_be_emptied_does_not_keep_the_other_from_being_pruned(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let own = td("example.org");
    let full = Bundle {
        x509_authorities: vec![
            x509(from_unix(NOW + 10)).await,
            x509(from_unix(NOW + 50)).await,
        ],
        jwt_authorities: vec![jwt("a", NOW + 10)],
        ..Bundle::new(own.clone())
    };
    datastore.bundles.append(full).await.unwrap();
    let prune = || datastore.bundles.prune(&own, from_unix(NOW + 20));
    assert_eq!(prune().await, Ok(true));
    let pruned = registry.bundle(&own).unwrap();
    assert_eq!(pruned.x509_authorities.len(), 1);
    assert_eq!(pruned.jwt_authorities.len(), 1, "the last one stays");
    assert_eq!(prune().await, Err(BundleError::WouldPruneAllJwt));
    assert_eq!(registry.bundle(&own), Some(pruned));
}

async fn relationships_are_created_changed_and_deleted(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let other = td("other.org");
    let web = FederationRelationship {
        trust_domain: other.clone(),
        bundle_endpoint_url: "https://other.org/bundle".to_owned(),
        bundle_endpoint_profile: BundleEndpointProfile::HttpsWeb,
    };
    let carried = bundle("other.org").await;
    datastore
        .federation_relationships
        .create(web.clone(), Some(carried.clone()))
        .await
        .unwrap();
    let again = datastore
        .federation_relationships
        .create(web.clone(), None)
        .await;
    assert_eq!(again, Err(RelationshipError::Exists));
    assert_eq!(*registry.bundle(&other).unwrap(), carried);
    let endpoint_spiffe_id = other.id();
    let spiffe = BundleEndpointProfile::HttpsSpiffe { endpoint_spiffe_id };
    datastore
        .federation_relationships
        .update(&other, None, Some(spiffe.clone()), None)
        .await
        .unwrap();
    let expected = FederationRelationship {
        bundle_endpoint_profile: spiffe,
        ..web
    };
    let (_again, reloaded) = subject.open().await;
    assert_eq!(*reloaded.federation_relationship(&other).unwrap(), expected);
    datastore
        .federation_relationships
        .delete(&other)
        .await
        .unwrap();
    let absent = datastore.federation_relationships.delete(&other).await;
    assert_eq!(absent, Err(RelationshipError::NotFound));
    let absent = datastore
        .federation_relationships
        .update(&other, None, None, None)
        .await;
    assert_eq!(absent, Err(RelationshipError::NotFound));
    assert!(registry.federation_relationship(&other).is_none());
}

async fn a_journal_survives_a_restart(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    datastore.journals.save("a", vec![0, 255, 7]).await.unwrap();
    datastore.journals.save("b", Vec::new()).await.unwrap();
    datastore.journals.save("b", vec![1]).await.unwrap();
    datastore.journals.delete("absent").await.unwrap();
    let (again, reloaded) = subject.open().await;
    let journals = again.journals.all();
    assert_eq!(
        journals
            .iter()
            .map(|j| (j.id.as_str(), j.data.as_slice()))
            .collect::<Vec<_>>(),
        [("a", &[0, 255, 7][..]), ("b", &[1][..])]
    );
    assert_eq!(content(&reloaded), content(&registry));
}

async fn a_lease_has_one_holder_until_it_ends(subject: Subject) {
    let (first, _) = subject.open().await;
    let (second, _) = subject.open().await;
    let minute = Duration::from_secs(60);
    assert_eq!(
        first
            .leases
            .acquire("prune", "a", minute, subject.now())
            .await,
        Ok(true)
    );
    assert_eq!(
        second
            .leases
            .acquire("prune", "b", minute, subject.now())
            .await,
        Ok(false)
    );
    assert_eq!(
        second
            .leases
            .acquire("other", "b", minute, subject.now())
            .await,
        Ok(true)
    );
    assert_eq!(
        first
            .leases
            .acquire("prune", "a", minute, subject.now())
            .await,
        Ok(true)
    );
    subject.clock.advance(minute);
    assert_eq!(
        second
            .leases
            .acquire("prune", "b", minute, subject.clock.now())
            .await,
        Ok(true)
    );
    assert_eq!(
        first
            .leases
            .acquire("prune", "a", minute, subject.clock.now())
            .await,
        Ok(false)
    );
}
