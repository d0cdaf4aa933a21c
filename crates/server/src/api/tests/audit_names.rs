//! The names of an event's details: those that SPIRE's audit log has for the same method, so that searches of operators go on
//! working.

use std::collections::BTreeSet;

use super::*;

/// By method, the details that SPIRE names of the request that [`Fixture::granted`] makes, and of what comes of it.
const SPIRE: &[(&str, &[&str])] = &[
    ("ActivateJWTAuthority", &["local_authority_id"]),
    ("ActivateX509Authority", &["local_authority_id"]),
    ("AttestAgent", &["agent_id", "node_attestor_type"]),
    ("BanAgent", &["spiffe_id"]),
    (
        "BatchNewX509SVID",
        &["csr", "entry_id", "expires_at", "spiffe_id"],
    ),
    ("CreateJoinToken", &["ttl"]),
    ("DeleteAgent", &["spiffe_id"]),
    ("GetAgent", &["spiffe_id"]),
    ("GetBundle", &["trust_domain_id"]),
    ("GetEntry", &["entry_id"]),
    ("GetFederatedBundle", &["trust_domain_id"]),
    ("GetFederationRelationship", &["trust_domain_id"]),
    ("MintJWTSVID", &["audience", "spiffe_id", "ttl"]),
    ("MintX509SVID", &["csr", "expires_at", "spiffe_id", "ttl"]),
    (
        "NewDownstreamX509CA",
        &["csr", "expires_at", "trust_domain_id"],
    ),
    ("NewJWTSVID", &["audience", "entry_id", "spiffe_id", "ttl"]),
    ("PostStatus", &["spiffe_id"]),
    (
        "PublishJWTAuthority",
        &[
            "jwt_authority_expires_at",
            "jwt_authority_key_id",
            "jwt_authority_public_key_sha256",
        ],
    ),
    ("RenewAgent", &["csr"]),
    ("RevokeJWTAuthority", &["local_authority_id"]),
    ("RevokeX509Authority", &["local_authority_id"]),
    ("TaintJWTAuthority", &["local_authority_id"]),
    ("TaintX509Authority", &["local_authority_id"]),
];

/// What Plastron says beyond that, by names that SPIRE's audit log or its lines about the same thing have.
const BEYOND: &[(&str, &[&str])] = &[
    ("AppendBundle", &["trust_domain_id"]),
    ("AttestAgent", &["expires_at", "serial_num", "spiffe_id"]),
    ("BatchNewX509SVID", &["serial_num"]),
    ("MintJWTSVID", &["expires_at"]),
    ("MintX509SVID", &["serial_num"]),
    (
        "NewDownstreamX509CA",
        &["agent_id", "entry_id", "serial_num", "spiffe_id"],
    ),
    ("NewJWTSVID", &["expires_at"]),
    ("RenewAgent", &["expires_at", "serial_num", "spiffe_id"]),
];

fn of(table: &[(&str, &'static [&'static str])], method: &str) -> BTreeSet<&'static str> {
    let rows = table.iter().filter(|(name, _)| *name == method);
    rows.flat_map(|(_, names)| names.iter().copied()).collect()
}

fn names(events: &[Event]) -> BTreeSet<&'static str> {
    let mut names = BTreeSet::new();
    for event in events {
        let (fields, items) = match &event.kind {
            EventKind::Document { fields, .. } => (fields, &[][..]),
            EventKind::Call { fields, items, .. } => (fields, items.as_slice()),
        };
        names.extend(fields.iter().map(|(name, _)| name));
        for item in items {
            names.extend(item.fields.iter().map(|(name, _)| name));
        }
    }
    names
}

#[tokio::test]
async fn a_methods_details_have_the_names_that_spire_gives_them() {
    let fixture = Fixture::new().await;
    let mut wrong = Vec::new();
    // The event of a subscription comes when its caller has left.
    let rows = rows().iter();
    for row in rows.filter(|row| row.lifetime != Lifetime::Subscription) {
        let (_, method) = row.names();
        let message = fixture.granted(row).await;
        let caller = fixture.entitled(row).await;
        drop(call(caller, row, message).await);
        let found = names(&fixture.sink.take());
        let expected = &of(SPIRE, method) | &of(BEYOND, method);
        if found != expected {
            wrong.push(format!("{method}: {found:?}, expected: {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
