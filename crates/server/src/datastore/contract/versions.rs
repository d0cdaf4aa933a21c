//! Servers of several versions on one database: what a newer one wrote survives an older one's writes.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::clock::from_unix;

use super::agents::agent;
use super::bundles::jwt;
use super::{NOW, Subject, create, entry, id, on_every_database, td};
use crate::datastore::{Datastore, EntryPatch, JoinToken};
use crate::registry::{BundleEndpointProfile, FederationRelationship, Kind};

on_every_database!(
    members_of_a_newer_version_survive_a_write,
    members_of_a_newer_version_go_with_their_object,
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
