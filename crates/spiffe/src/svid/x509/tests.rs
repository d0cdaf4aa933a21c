use super::*;
use crate::x509::Subject;
use crate::x509::testing::{Bundles, CLIENT_AUTH, Ca, CertTemplate, NOW, SERVER_AUTH, now};

const ID: &str = "spiffe://example.org/w";

fn template() -> CertTemplate {
    CertTemplate::leaf(ID)
}

/// Verifies a leaf of `template` under a fresh root of example.org.
fn outcome(template: &CertTemplate) -> Result<VerifiedX509Svid, X509SvidError> {
    let root = Ca::root("example.org");
    verify_svid(
        &[&root.issue(template)],
        &Bundles::of(&[("example.org", &[&root])]),
        now(),
    )
}

#[track_caller]
fn refuses(template: &CertTemplate, reason: &X509SvidError) {
    assert_eq!(&outcome(template).unwrap_err(), reason);
}

#[test]
fn accepts_a_plain_leaf_and_says_who_it_is() {
    let verified = outcome(&template()).unwrap();
    assert_eq!(verified.id.as_str(), ID);
    assert_eq!(verified.leaf.uris(), [ID]);
}

#[test]
fn xs_01_exactly_one_uri_of_whatever_scheme() {
    let with = |uris: &[&str]| CertTemplate {
        uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
        ..template()
    };
    refuses(&with(&[]), &X509SvidError::UriCount(0));
    refuses(
        &with(&[ID, "spiffe://example.org/v"]),
        &X509SvidError::UriCount(2),
    );
    refuses(&with(&[ID, "https://x"]), &X509SvidError::UriCount(2));
    refuses(
        &with(&["https://x"]),
        &X509SvidError::Id(IdError::WrongScheme),
    );
    refuses(
        &with(&["sparfe://example.org/w"]),
        &X509SvidError::Id(IdError::WrongScheme),
    );
    refuses(
        &with(&["SPIFFE://example.org/w"]),
        &X509SvidError::Id(IdError::WrongScheme),
    );
    refuses(
        &CertTemplate {
            dns_names: vec!["a.example".into()],
            ..with(&[])
        },
        &X509SvidError::UriCount(0),
    );
}

#[test]
fn xs_02_other_names_in_any_number_are_fine() {
    let dns_names = vec!["a.example".into(), "b.example".into()];
    outcome(&CertTemplate {
        dns_names,
        ..template()
    })
    .unwrap();
}

#[test]
fn xs_03_leaf_without_a_path_is_refused() {
    refuses(
        &CertTemplate::leaf("spiffe://example.org"),
        &X509SvidError::IdWithoutPath,
    );
}

#[test]
fn xs_04_empty_subject_is_accepted_with_or_without_critical_names() {
    for san_critical in [false, true] {
        outcome(&CertTemplate {
            subject: Subject::default(),
            san_critical,
            ..template()
        })
        .unwrap();
    }
}

#[test]
fn xs_09_authorities_never_authenticate() {
    let root = Ca::root("example.org");
    let bundles = Bundles::of(&[("example.org", &[&root])]);
    assert_eq!(
        verify_svid(&[&root.der], &bundles, now()).unwrap_err(),
        X509SvidError::LeafIsAuthority
    );
    let pathy = Ca::self_signed(&CertTemplate::authority("x", ID));
    let bundles = Bundles::of(&[("example.org", &[&pathy])]);
    assert_eq!(
        verify_svid(&[&pathy.der], &bundles, now()).unwrap_err(),
        X509SvidError::LeafIsAuthority
    );
}

#[test]
fn xs_10_authority_leaf_is_refused_and_absent_basic_constraints_mean_no_authority() {
    let authority = Some(crate::x509::testing::AUTHORITY.to_vec());
    refuses(
        &CertTemplate {
            basic_constraints: authority,
            ..template()
        },
        &X509SvidError::LeafIsAuthority,
    );
    outcome(&CertTemplate {
        basic_constraints: None,
        ..template()
    })
    .unwrap();
}

#[test]
fn xs_15_xs_16_leaf_key_usage() {
    let with = |bits: &[u8]| CertTemplate {
        key_usage: Some(bits.to_vec()),
        ..template()
    };
    refuses(&with(&[2, 0x84]), &X509SvidError::LeafSignsCertificates);
    refuses(&with(&[1, 0x82]), &X509SvidError::LeafSignsCrls);
    refuses(
        &with(&[5, 0x20]),
        &X509SvidError::LeafWithoutDigitalSignature,
    );
    refuses(
        &CertTemplate {
            key_usage: None,
            ..template()
        },
        &X509SvidError::LeafWithoutDigitalSignature,
    );
    outcome(&with(&[7, 0x80])).unwrap();
    outcome(&with(&[3, 0xa8])).unwrap();
}

#[test]
fn xs_18_one_sided_purpose_serves_that_side_only() {
    let root = Ca::root("example.org");
    let bundles = Bundles::of(&[("example.org", &[&root])]);
    let verify = |purpose, usage: Vec<&'static [u8]>| {
        let leaf = root.issue(&CertTemplate {
            extended_key_usage: usage,
            ..template()
        });
        verify_svid_for(purpose, &[&leaf], &bundles, now()).map(|_| ())
    };
    verify(Purpose::Client, vec![CLIENT_AUTH]).unwrap();
    assert_eq!(
        verify(Purpose::Server, vec![CLIENT_AUTH]),
        Err(X509SvidError::Purpose("server"))
    );
    assert_eq!(
        verify(Purpose::Client, vec![SERVER_AUTH]),
        Err(X509SvidError::Purpose("client"))
    );
    verify(Purpose::Client, vec![]).unwrap();
    verify(Purpose::Server, vec![CLIENT_AUTH, SERVER_AUTH]).unwrap();
}

#[test]
fn xs_20_time_signature_issuer_and_unknown_critical_extensions() {
    let path = |fault| X509SvidError::Path(fault);
    refuses(
        &CertTemplate {
            not_before: NOW - 100,
            not_after: NOW - 1,
            ..template()
        },
        &path(PathError::Expired),
    );
    refuses(
        &CertTemplate {
            not_before: NOW + 1,
            ..template()
        },
        &path(PathError::NotYetValid),
    );
    let mut unknown = template();
    unknown.further.push((vec![0x2a, 3, 4], true, vec![5, 0]));
    refuses(&unknown, &path(PathError::CriticalExtension));
    let mut known = template();
    known.further.push((vec![0x2a, 3, 4], false, vec![5, 0]));
    outcome(&known).unwrap();

    let (root, other) = (Ca::root("example.org"), Ca::root("example.org"));
    let bundles = Bundles::of(&[("example.org", &[&root])]);
    let foreign = verify_svid(&[&other.issue(&template())], &bundles, now()).unwrap_err();
    assert!(matches!(
        foreign,
        X509SvidError::Path(PathError::BadSignature | PathError::UnknownIssuer)
    ));
    let stranger = Ca::self_signed(&CertTemplate::authority("stranger", "spiffe://example.org"));
    let foreign = verify_svid(&[&stranger.issue(&template())], &bundles, now()).unwrap_err();
    assert_eq!(foreign, path(PathError::UnknownIssuer));
    let mut touched = root.issue(&template());
    *touched.last_mut().unwrap() ^= 1;
    verify_svid(&[&touched], &bundles, now()).unwrap_err();
    let expired = Ca::self_signed(&CertTemplate {
        not_after: NOW - 1,
        ..CertTemplate::authority("r", "spiffe://example.org")
    });
    let bundles = Bundles::of(&[("example.org", &[&expired])]);
    let fault = verify_svid(&[&expired.issue(&template())], &bundles, now()).unwrap_err();
    assert_eq!(fault, path(PathError::Expired));
}

#[test]
fn xs_21_each_leaf_rule_has_its_own_refusal() {
    let refusals = [
        outcome(&CertTemplate {
            basic_constraints: Some(crate::x509::testing::AUTHORITY.to_vec()),
            ..template()
        }),
        outcome(&CertTemplate {
            key_usage: Some(vec![2, 0x84]),
            ..template()
        }),
        outcome(&CertTemplate {
            key_usage: Some(vec![1, 0x82]),
            ..template()
        }),
        outcome(&CertTemplate::leaf("https://example.org/w")),
        outcome(&CertTemplate::leaf("spiffe://example.org")),
        outcome(&CertTemplate {
            uris: vec![ID.into(), ID.into()],
            ..template()
        }),
    ];
    let texts: std::collections::BTreeSet<String> = refusals
        .into_iter()
        .map(|refusal| refusal.unwrap_err().to_string())
        .collect();
    assert_eq!(texts.len(), 6);
}

#[test]
fn sv_05_fd_22_only_authorities_of_the_leafs_own_trust_domain_count() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let bundles = Bundles::of(&[("a", &[&a]), ("b", &[&b])]);
    let leaf = b.issue(&CertTemplate::leaf("spiffe://a/w"));
    assert!(matches!(
        verify_svid(&[&leaf], &bundles, now()),
        Err(X509SvidError::Path(_))
    ));
    verify_svid(
        &[&a.issue(&CertTemplate::leaf("spiffe://a/w"))],
        &bundles,
        now(),
    )
    .unwrap();
}

#[test]
fn wa_11_xs_27_without_bundle_or_authorities_nothing_verifies() {
    let root = Ca::root("example.org");
    let leaf = root.issue(&template());
    let none = verify_svid(&[&leaf], &Bundles::default(), now()).unwrap_err();
    assert_eq!(none, X509SvidError::NoBundle("example.org".into()));
    let empty = verify_svid(&[&leaf], &Bundles::of(&[("example.org", &[])]), now()).unwrap_err();
    assert_eq!(empty, X509SvidError::EmptyBundle("example.org".into()));
    assert_eq!(
        verify_svid(&[], &Bundles::default(), now()).unwrap_err(),
        X509SvidError::EmptyChain
    );
}

#[test]
fn chains_are_bounded_and_their_certificates_must_parse() {
    let root = Ca::root("example.org");
    let leaf = root.issue(&template());
    let bundles = Bundles::of(&[("example.org", &[&root])]);
    let long: Vec<&[u8]> = vec![&leaf; 17];
    assert_eq!(
        verify_svid(&long, &bundles, now()).unwrap_err(),
        X509SvidError::ChainTooLong
    );
    assert_eq!(
        X509Svid::parse(&long).unwrap_err(),
        X509SvidError::ChainTooLong
    );
    let broken = verify_svid(&[&leaf, b"junk"], &bundles, now()).unwrap_err();
    assert_eq!(
        broken,
        X509SvidError::Certificate {
            at: 1,
            reason: CertificateError::Malformed
        }
    );
}

#[test]
fn own_chains_are_checked_on_loading() {
    let root = Ca::root("example.org");
    let middle = root.issue_ca(&CertTemplate::authority("middle", "spiffe://example.org"));
    let leaf = middle.issue(&template());
    let svid = X509Svid::parse(&[&leaf, &middle.der]).unwrap();
    assert_eq!((svid.id().as_str(), svid.chain().len()), (ID, 2));
    assert_eq!(
        X509Svid::parse_concatenated(&[&leaf[..], &middle.der].concat()).unwrap(),
        svid
    );
    let not_ca = root.issue_ca(&CertTemplate {
        basic_constraints: Some(vec![]),
        ..CertTemplate::authority("m", "spiffe://example.org")
    });
    assert_eq!(
        X509Svid::parse(&[&leaf, &not_ca.der]).unwrap_err(),
        X509SvidError::Intermediate { at: 1 }
    );
    let no_sign = root.issue_ca(&CertTemplate {
        key_usage: Some(vec![7, 0x80]),
        ..CertTemplate::authority("m", "spiffe://example.org")
    });
    assert_eq!(
        X509Svid::parse(&[&leaf, &no_sign.der]).unwrap_err(),
        X509SvidError::Intermediate { at: 1 }
    );
    assert_eq!(X509Svid::parse(&[]).unwrap_err(), X509SvidError::EmptyChain);
}

#[test]
fn uris_that_are_almost_spiffe_ids_name_nobody() {
    for uri in [
        "spiffe://example.org:443/w",
        "spiffe://user@example.org/w",
        "spiffe://example.org/w?query",
        "spiffe://example.org/w#part",
        "spiffe://example.org/%77",
        "spiffe://example.org/w/%2e%2e/v",
        "spiffe://example.org//w",
        "spiffe://example.org/w/",
        "spiffe://example.org/./w",
        "spiffe://example.org/v/../w",
        "spiffe://example.org/*",
        "spiffe://*.org/w",
        "spiffe:///w",
        "spiffe:example.org/w",
        " spiffe://example.org/w",
        "spiffe://example.org/w\n",
        "spiffe://example.org/w\0",
        "spiffe://ex\u{e4}mple.org/w",
        "spiffe://example.org/\u{202e}w",
        "spiffe://EXAMPLE.org/w",
    ] {
        outcome(&CertTemplate::leaf(uri)).unwrap_err();
    }
}

/// The certificate of `ca` again, changed, signed with the same key.
fn renewed(ca: &Ca, change: impl FnOnce(&mut CertTemplate)) -> Ca {
    let mut template = CertTemplate::authority("root", "spiffe://example.org");
    template.not_after += 3600;
    change(&mut template);
    let der = template.sign(ca.key.public_key(), &template.subject, &ca.key);
    Ca {
        key: ca.key.clone(),
        subject: template.subject.clone(),
        der,
    }
}

fn still_holds(authority: &Ca, bundle: &[&Ca]) -> bool {
    let bundles = Bundles::of(&[("example.org", bundle)]);
    let bundle = bundles.x509_bundle(&TrustDomain::parse("example.org").unwrap());
    bundle.unwrap().still_holds(&authority.certificate(), now())
}

#[test]
fn a_proof_holds_as_long_as_its_authority_or_one_renewed_with_its_key_is_there() {
    let root = Ca::root("example.org");
    let next = renewed(&root, |_| {});
    assert_ne!(root.certificate(), next.certificate());
    assert!(still_holds(&root, &[&root]));
    assert!(still_holds(&root, &[&Ca::root("example.org"), &next]));
    // The exact one stays good for what it vouched for, as its SVIDs say how long.
    let ended = renewed(&root, |template| template.not_after = NOW - 1);
    assert!(still_holds(&ended, &[&ended]));
    let leaf = root.issue(&CertTemplate::leaf("spiffe://example.org/w"));
    let bundles = Bundles::of(&[("example.org", &[&next])]);
    verify_svid(&[&leaf], &bundles, now()).unwrap();
}

#[test]
fn a_proof_does_not_hold_under_an_authority_that_might_not_verify_it() {
    let root = Ca::root("example.org");
    let cases: [(&str, Ca); 9] = [
        ("another key", Ca::root("example.org")),
        (
            "another name",
            renewed(&root, |template| {
                template.subject.common_name = Some("other".into());
            }),
        ),
        (
            "over",
            renewed(&root, |template| template.not_after = NOW - 1),
        ),
        (
            "not begun",
            renewed(&root, |template| template.not_before = NOW + 1),
        ),
        (
            "shorter paths",
            renewed(&root, |template| {
                *template = template.clone().with_path_len(0);
            }),
        ),
        (
            "no authority",
            renewed(&root, |template| template.basic_constraints = None),
        ),
        (
            "may not sign certificates",
            renewed(&root, |template| template.key_usage = Some(vec![7, 0x80])),
        ),
        (
            "fewer names",
            renewed(&root, |template| {
                *template = template.clone().with_names(&[(0x86, "other.org")], &[]);
            }),
        ),
        (
            "fewer addresses",
            renewed(&root, |template| {
                *template = template.clone().with_names(&[(0x87, "12345678")], &[]);
            }),
        ),
    ];
    for (what, other) in &cases {
        assert!(!still_holds(&root, &[other]), "{what}");
    }
    assert!(!still_holds(&root, &[]));
    // Constraints whose text is not kept cannot be compared.
    let addresses = |text: &'static str| {
        renewed(&root, |template| {
            *template = template.clone().with_names(&[(0x87, text)], &[]);
        })
    };
    assert!(!still_holds(
        &addresses("12345678"),
        &[&addresses("87654321")]
    ));
}
