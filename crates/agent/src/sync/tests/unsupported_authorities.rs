//! Bundles from the server with an authority whose key this agent does not support beside a good one.

use proto::plastron::server::v1::WatchEvent;
use proto::spire::api::types;
use spiffe::trust_domain::TrustDomain;

use super::{Fixture, add_with_partners, own_authorities, start};
use crate::testing::{Authority, bundle, ed25519_bundle};

/// The good authority of the trust domain, after one that cannot be used.
fn half_supported_bundle(name: &str) -> types::Bundle {
    let mut wire = proto::convert::bundle_to_wire(&bundle(name), None);
    let unsupported = ed25519_bundle(name).x509_authorities;
    wire.x509_authorities.splice(0..0, unsupported);
    wire
}

async fn partner_of_first_workload(f: &Fixture, authorities: usize) {
    f.until(&["unix:uid:1"], |update| {
        update.federated.iter().any(|federated| {
            federated.bundle.trust_domain.as_str() == "partner.test"
                && federated.bundle.x509_authorities.len() == authorities
        })
    })
    .await;
}

#[tokio::test]
async fn an_unsupported_authority_of_a_partner_holds_up_no_other_of_its_bundle() {
    let f = start(|server| {
        add_with_partners(server);
        server.change(|state| {
            let half = half_supported_bundle("partner.test");
            state.federated_as_sent.insert("partner.test".into(), half);
        });
    })
    .await;
    partner_of_first_workload(&f, 1).await;
    let update = f
        .until(&["unix:uid:1"], |update| update.federated.len() == 2)
        .await;
    let good = bundle("partner.test");
    assert!(
        update
            .federated
            .iter()
            .any(|partner| *partner.bundle == good)
    );
}

#[tokio::test]
async fn a_stream_with_an_unsupported_authority_brings_the_others_of_its_bundle() {
    let f = start(|server| {
        server.change(|state| state.watch = true);
        add_with_partners(server);
    })
    .await;
    f.until(&["unix:uid:1"], |update| update.has_identity())
        .await;
    let next = |name: &str| {
        let mut wire = half_supported_bundle(name);
        let added = Authority::new(&TrustDomain::parse(name).unwrap());
        wire.x509_authorities.push(types::X509Certificate {
            asn1: added.certificate.der().to_vec(),
            tainted: false,
        });
        wire
    };
    let own = {
        let mut wire = ed25519_bundle("example.org");
        let state = f.server.state.lock().unwrap();
        let good = proto::convert::bundle_to_wire(&state.bundle, None);
        wire.x509_authorities.extend(good.x509_authorities.clone());
        wire.x509_authorities
            .extend(next("example.org").x509_authorities);
        wire
    };
    let event = WatchEvent {
        revision: 2,
        epoch: "e1".into(),
        bundles: vec![next("partner.test"), own],
        ..Default::default()
    };
    f.server.events.send(event).unwrap();
    partner_of_first_workload(&f, 2).await;
    f.until(&["unix:uid:2"], |update| own_authorities(update) > 1)
        .await;
}
