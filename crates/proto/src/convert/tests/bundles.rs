//! Bundles.

use std::time::Duration;

use spiffe::{
    Bundle, CaTemplate, Certificate, Clock as _, JwtAuthority, KeyPair, KeyType, ManualClock,
    Subject, X509Authority, from_unix, issue_ca,
};

use super::{
    super::{
        ReceivedBundle, bundle_from_caller, bundle_from_server, bundle_from_wire, bundle_to_wire,
        jwt_authorities_from_wire, wit_authorities_from_wire, x509_authorities_from_wire,
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

/// A certificate authority with a key that we do not support.
fn ed25519_authority() -> types::X509Certificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    types::X509Certificate {
        asn1: params.self_signed(&key).unwrap().der().to_vec(),
        tainted: false,
    }
}

/// An RSA key of 1024 bits.
fn short_rsa_key() -> Vec<u8> {
    let mut spki =
        b"\x30\x81\x9f\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x81\x8d\x00\
        \x30\x81\x89\x02\x81\x81\x00"
            .to_vec();
    spki.extend([0xc5; 128]);
    spki.extend(b"\x02\x03\x01\x00\x01");
    spki
}

fn skipped(read: &ReceivedBundle) -> Vec<String> {
    read.skipped.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn an_unsupported_authority_from_a_server_leaves_the_others_in_the_bundle() {
    let good = bundle().await;
    let mut wire = bundle_to_wire(&good, None);
    wire.x509_authorities.insert(0, ed25519_authority());
    wire.jwt_authorities[0].public_key = short_rsa_key();
    let read = bundle_from_server(&wire).unwrap();
    assert_eq!(
        skipped(&read),
        [
            "unable to parse X.509 authority: certificate public key: public key is neither EC P-256, P-384, P-521 nor RSA",
            "unable to parse JWT authority: RSA public key must have 2048 to 8192 bits",
        ]
    );
    let mut expected = good;
    expected.jwt_authorities.remove(0);
    assert_eq!(read.bundle, expected);
}

#[tokio::test]
async fn a_bundle_from_a_server_that_is_whole_is_read_whole() {
    let good = bundle().await;
    let read = bundle_from_server(&bundle_to_wire(&good, None)).unwrap();
    assert!(read.skipped.is_empty());
    assert_eq!(read.bundle, good);
}

#[tokio::test]
async fn nobody_but_a_server_gives_an_unsupported_authority() {
    let mut wire = bundle_to_wire(&bundle().await, None);
    wire.x509_authorities.push(ed25519_authority());
    for refused in [
        bundle_from_wire(&wire).unwrap_err(),
        bundle_from_caller(Some(&wire)).unwrap_err(),
    ] {
        assert!(refused.is_unsupported_authority(), "{refused}");
    }
}

#[tokio::test]
async fn a_bundle_from_a_server_is_refused_when_no_x509_authority_of_it_is_supported() {
    let mut wire = bundle_to_wire(&bundle().await, None);
    wire.x509_authorities = vec![ed25519_authority(), ed25519_authority()];
    let refused = bundle_from_server(&wire).unwrap_err().to_string();
    assert!(
        refused.starts_with("unable to parse X.509 authority: "),
        "{refused}"
    );
    // One without any says that nobody is to be trusted.
    wire.x509_authorities.clear();
    wire.jwt_authorities[0].public_key = short_rsa_key();
    assert_eq!(skipped(&bundle_from_server(&wire).unwrap()).len(), 1);
}

#[tokio::test]
async fn a_malformed_authority_refuses_a_bundle_from_a_server() {
    let whole = bundle_to_wire(&bundle().await, None);
    type Break = fn(&mut types::Bundle);
    let cases: [Break; 6] = [
        |wire| wire.x509_authorities[0].asn1.truncate(40),
        |wire| {
            let last = wire.x509_authorities[0].asn1.len() - 1;
            wire.x509_authorities[0].asn1.truncate(last);
        },
        |wire| {
            wire.x509_authorities
                .push(types::X509Certificate::default());
        },
        |wire| wire.jwt_authorities[1].public_key.truncate(20),
        |wire| wire.wit_authorities[0].key_id.clear(),
        |wire| wire.trust_domain.clear(),
    ];
    for (at, breaks) in cases.iter().enumerate() {
        let mut wire = whole.clone();
        wire.x509_authorities.push(ed25519_authority());
        breaks(&mut wire);
        let refused = bundle_from_server(&wire).unwrap_err();
        assert!(!refused.is_unsupported_authority(), "{at}: {refused}");
    }
}
