//! Servers of several versions on one database: what a newer one wrote survives an older one's writes.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::clock::from_unix;

use super::agents::agent;
use super::bundles::{jwt, x509};
use super::{NOW, Subject, create, entry, id, on_every_database, td};
use crate::datastore::{Datastore, EntryPatch, JoinToken};
use crate::registry::{BundleEndpointProfile, FederationRelationship, Kind};

on_every_database!(
    members_of_a_newer_version_survive_a_write,
    members_of_a_newer_version_go_with_their_object,
    members_of_a_newer_version_stay_with_their_authority,
);

/// Makes one object of each kind.
async fn one_of_each(datastore: &Datastore) {
    create(datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    datastore.agents.put(agent("/spire/agent/x")).await.unwrap();
    datastore
        .bundles
        .set(Bundle::new(td("other.org")))
        .await
        .unwrap();
    let relationship = FederationRelationship {
        trust_domain: td("other.org"),
        bundle_endpoint_url: "https://other.org/bundle".to_owned(),
        bundle_endpoint_profile: BundleEndpointProfile::HttpsWeb,
    };
    let made = datastore
        .federation_relationships
        .create(relationship, None);
    made.await.unwrap();
    let token = JoinToken {
        token: "t".to_owned(),
        expires_at: NOW + 60,
        alias: Some(id("/node")),
    };
    datastore.tokens.create(token).await.unwrap();
    datastore.journals.save("j", vec![1]).await.unwrap();
    let lease = std::time::Duration::from_secs(60);
    datastore
        .leases
        .acquire("l", "h", lease, from_unix(NOW))
        .await
        .unwrap();
}

/// Writes a member that this version does not know into each row, as a newer version would.
async fn write_as_newer(subject: &Subject) {
    for kind in Kind::ALL {
        let table = kind.table();
        let newer = format!(
            "UPDATE {table} SET body = substr(body, 1, length(body) - 1) || ',\"newer\":{{\"a\":[1]}}}}'"
        );
        subject.sql(&newer).await;
    }
}

async fn newer(subject: &Subject, table: &str) -> i64 {
    let with = format!("{table} WHERE body LIKE '%\"newer\":{{\"a\":[1]}}%'");
    subject.count(&with).await
}

async fn members_of_a_newer_version_survive_a_write(subject: Subject) {
    let (datastore, _) = subject.open().await;
    one_of_each(&datastore).await;
    datastore.close().await;
    write_as_newer(&subject).await;
    let (datastore, registry) = subject.open().await;
    let made = registry.entries_for_spiffe_id(&id("/web")).remove(0);
    let patch = EntryPatch {
        id: made.id.to_string(),
        hint: Some("changed".to_owned()),
        ..EntryPatch::default()
    };
    datastore
        .entries
        .update(vec![patch])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    datastore.agents.ban(&id("/spire/agent/x")).await.unwrap();
    let more = Bundle {
        jwt_authorities: vec![jwt("k", NOW + 60)],
        ..Bundle::new(td("other.org"))
    };
    datastore.bundles.append(more).await.unwrap();
    let url = Some("https://other.org/other".to_owned());
    let other = td("other.org");
    let updated = datastore
        .federation_relationships
        .update(&other, url, None, None);
    updated.await.unwrap();
    datastore.journals.save("j", vec![2]).await.unwrap();
    let lease = std::time::Duration::from_secs(90);
    assert!(
        datastore
            .leases
            .acquire("l", "h", lease, from_unix(NOW))
            .await
            .unwrap()
    );
    for kind in Kind::ALL {
        assert_eq!(newer(&subject, kind.table()).await, 1, "{kind:?}");
    }
    assert_eq!(
        subject.count("entries WHERE body LIKE '%changed%'").await,
        1
    );
    // And when they come by the log instead of a load.
    let (second, _) = subject.open().await;
    second.journals.save("j", vec![3]).await.unwrap();
    datastore.journals.save("j", vec![4]).await.unwrap();
    assert_eq!(newer(&subject, "journals").await, 1);
}

async fn members_of_a_newer_version_go_with_their_object(subject: Subject) {
    let (datastore, _) = subject.open().await;
    one_of_each(&datastore).await;
    datastore.close().await;
    write_as_newer(&subject).await;
    let (datastore, registry) = subject.open().await;
    let node = id("/spire/agent/x");
    let known = Arc::clone(&registry.agent(&node).unwrap());
    datastore.agents.delete(&node).await.unwrap();
    datastore.agents.put(known.as_ref().clone()).await.unwrap();
    assert_eq!(
        newer(&subject, "agents").await,
        0,
        "it is another agent now"
    );
}

async fn members_of_a_newer_version_stay_with_their_authority(subject: Subject) {
    let (datastore, _) = subject.open().await;
    let other = td("other.org");
    let first = Bundle {
        x509_authorities: vec![x509(from_unix(NOW + 60)).await],
        jwt_authorities: vec![jwt("stays", NOW + 60), jwt("goes", NOW + 60)],
        ..Bundle::new(other.clone())
    };
    datastore.bundles.set(first.clone()).await.unwrap();
    datastore.close().await;
    // As a newer server would write it: a member in each authority, whose name may be that of a list.
    let newer = "UPDATE bundles SET body = replace(replace(body, '\"der\":', '\"newer\":\"x509\",\"der\":'), \
                 '\"key_id\":', '\"jwt_authorities\":[7],\"key_id\":')";
    subject.sql(newer).await;

    let (datastore, registry) = subject.open().await;
    assert!(registry.bundle(&other).unwrap().same_authorities(&first));
    let more = Bundle {
        jwt_authorities: vec![jwt("new", NOW + 60)],
        ..Bundle::new(other.clone())
    };
    datastore.bundles.append(more).await.unwrap();
    // The members of an object are sorted in a row that carries any from a newer version.
    let (jwt_newer, x509_newer) = ("%\"jwt_authorities\":[7]", "%\"newer\":\"x509\"");
    let stored = async |pattern: String| {
        let with = format!("bundles WHERE body LIKE '{pattern}%'");
        subject.count(&with).await == 1
    };
    assert!(stored(format!("{jwt_newer}{jwt_newer}{x509_newer}")).await);
    let appended = registry.bundle(&other).unwrap();
    assert_eq!(appended.jwt_authorities.len(), 3);
    assert!(
        !stored(format!("{jwt_newer}{jwt_newer}{jwt_newer}")).await,
        "the new one has none"
    );

    let mut fewer = Bundle::clone(&appended);
    fewer
        .jwt_authorities
        .retain(|authority| authority.key_id != "goes");
    datastore.bundles.set(fewer).await.unwrap();
    assert!(stored(format!("{jwt_newer}{x509_newer}")).await);
    assert!(
        !stored(format!("{jwt_newer}{jwt_newer}")).await,
        "it went with its authority"
    );
}
