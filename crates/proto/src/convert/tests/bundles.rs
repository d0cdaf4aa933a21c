//! Bundles.

use std::time::Duration;

use spiffe::{
    Bundle, CaTemplate, Certificate, Clock as _, JwtAuthority, KeyPair, KeyType, ManualClock,
    Subject, X509Authority, from_unix, issue_ca,
};

use super::{
    super::{
        bundle_from_caller, bundle_from_wire, bundle_to_wire, jwt_authorities_from_wire,
        wit_authorities_from_wire, x509_authorities_from_wire,
    },
    domain, refusal,
};
use crate::spire::api::types::{self, BundleMask};

async fn bundle() -> Bundle {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let now = ManualClock::new(from_unix(1_000_000)).now();
    let template = CaTemplate {
        serial: [1; 16],
        subject: Subject {
            common_name: Some("test".into()),
            ..Subject::default()
        },
        id: domain().id(),
        public_key: key.public_key().clone(),
        not_before: now,
        not_after: now + Duration::from_secs(3600),
        path_len: None,
        subject_key_id: None,
    };
    let der = issue_ca(&template, None, &key).await.unwrap();
    let authority = |key_id: &str, expires_at, tainted| JwtAuthority {
        key_id: key_id.into(),
        public_key: key.public_key().clone(),
        expires_at,
        tainted,
        source: spiffe::bundle::AuthoritySource::Unknown,
    };
    Bundle {
        trust_domain: domain(),
        x509_authorities: vec![X509Authority {
            certificate: Certificate::from_der(&der).unwrap(),
            tainted: true,
            source: spiffe::bundle::AuthoritySource::Unknown,
        }],
        jwt_authorities: vec![
            authority("one", Some(2000), false),
            authority("two", None, true),
        ],
        wit_authorities: vec![authority("three", Some(3000), true)],
        refresh_hint: 60,
        sequence_number: 5,
    }
}

#[tokio::test]
async fn a_bundle_survives_the_wire() {
    let bundle = bundle().await;
    assert_eq!(
        bundle_from_wire(&bundle_to_wire(&bundle, None)).unwrap(),
        bundle
    );
}

#[tokio::test]
async fn each_field_of_the_mask_selects_its_field() {
    let bundle = bundle().await;
    let whole = bundle_to_wire(&bundle, None);
    let bare = types::Bundle {
        trust_domain: "example.org".into(),
        ..types::Bundle::default()
    };
    let none = BundleMask::default();
    assert_eq!(bundle_to_wire(&bundle, Some(&none)), bare);
    let cases = [
        (
            BundleMask {
                x509_authorities: true,
                ..none
            },
            types::Bundle {
                x509_authorities: whole.x509_authorities.clone(),
                ..bare.clone()
            },
        ),
        (
            BundleMask {
                jwt_authorities: true,
                ..none
            },
            types::Bundle {
                jwt_authorities: whole.jwt_authorities.clone(),
                ..bare.clone()
            },
        ),
        (
            BundleMask {
                wit_authorities: true,
                ..none
            },
            types::Bundle {
                wit_authorities: whole.wit_authorities.clone(),
                ..bare.clone()
            },
        ),
        (
            BundleMask {
                refresh_hint: true,
                ..none
            },
            types::Bundle {
                refresh_hint: 60,
                ..bare.clone()
            },
        ),
        (
            BundleMask {
                sequence_number: true,
                ..none
            },
            types::Bundle {
                sequence_number: 5,
                ..bare.clone()
            },
        ),
    ];
    for (mask, expected) in cases {
        assert_eq!(bundle_to_wire(&bundle, Some(&mask)), expected);
    }
}

#[tokio::test]
async fn a_caller_cannot_taint() {
    let wire = bundle_to_wire(&bundle().await, None);
    let read = bundle_from_caller(Some(&wire)).unwrap();
    assert!(
        read.x509_authorities
            .iter()
            .all(|authority| !authority.tainted)
    );
    assert!(
        read.jwt_authorities
            .iter()
            .chain(&read.wit_authorities)
            .all(|authority| !authority.tainted)
    );
}

#[tokio::test]
async fn a_caller_cannot_give_two_keys_one_key_id() {
    let whole = bundle_to_wire(&bundle().await, None);
    let mut doubled = whole.clone();
    doubled.jwt_authorities[1].key_id = doubled.jwt_authorities[0].key_id.clone();
    let refused = refusal(bundle_from_caller(Some(&doubled)));
    assert!(refused.ends_with("names two keys"), "{refused}");
    // What a server tells is taken as it comes.
    bundle_from_wire(&doubled).unwrap();
    let mut doubled = whole;
    doubled.wit_authorities[0].key_id = doubled.jwt_authorities[0].key_id.clone();
    let refused = refusal(bundle_from_caller(Some(&doubled)));
    assert!(refused.ends_with("names two keys"), "{refused}");
}

#[tokio::test]
async fn refuses_broken_bundles_in_the_words_of_spire() {
    let whole = bundle_to_wire(&bundle().await, None);
    assert_eq!(refusal(bundle_from_caller(None)), "no bundle provided");
    let nameless = types::Bundle {
        trust_domain: String::new(),
        ..whole.clone()
    };
    assert_eq!(
        refusal(bundle_from_wire(&nameless)),
        "invalid trust domain: trust domain is missing"
    );

    let mut broken = whole.clone();
    broken.x509_authorities[0].asn1 = b"no certificate".to_vec();
    assert!(refusal(bundle_from_wire(&broken)).starts_with("unable to parse X.509 authority: "));
    let mut broken = whole.clone();
    broken.jwt_authorities[1].public_key.truncate(20);
    assert!(refusal(bundle_from_wire(&broken)).starts_with("unable to parse JWT authority: "));
    let mut broken = whole;
    broken.jwt_authorities[0].key_id.clear();
    assert_eq!(
        refusal(bundle_from_wire(&broken)),
        "unable to parse JWT authority: missing key ID"
    );
}

#[test]
fn refuses_an_authority_that_is_nothing() {
    refusal(x509_authorities_from_wire(&[
        types::X509Certificate::default(),
    ]));
    refusal(jwt_authorities_from_wire(&[types::JwtKey::default()]));
    refusal(wit_authorities_from_wire(&[types::WitKey::default()]));
    assert!(x509_authorities_from_wire(&[]).unwrap().is_empty());
}
