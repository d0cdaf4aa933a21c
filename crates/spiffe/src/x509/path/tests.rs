use super::*;
use crate::svid::x509::{X509SvidError, verify_svid};
use crate::x509::testing::{Bundles, Ca, CertTemplate, NOW, now};

const URI: u8 = 0x86;
const DNS: u8 = 0x82;
const EMAIL: u8 = 0x81;

fn authority(name: &str) -> CertTemplate {
    CertTemplate::authority(name, "spiffe://example.org")
}

fn leaf() -> CertTemplate {
    CertTemplate::leaf("spiffe://example.org/w")
}

/// Verifies `leaf` and then `chain` under `root`.
fn verify_under(root: &Ca, leaf: &[u8], chain: &[&Ca]) -> Result<(), PathError> {
    let mut ders: Vec<&[u8]> = vec![leaf];
    ders.extend(chain.iter().map(|ca| ca.der.as_slice()));
    match verify_svid(&ders, &Bundles::of(&[("example.org", &[root])]), now()) {
        Ok(_) => Ok(()),
        Err(X509SvidError::Path(fault)) => Err(fault),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn xs_08_intermediates_lead_to_the_root_in_any_order() {
    let root = Ca::root("example.org");
    let one = root.issue_ca(&authority("one"));
    let two = one.issue_ca(&authority("two"));
    let leaf = two.issue(&leaf());
    assert_eq!(verify_under(&root, &leaf, &[&two, &one]), Ok(()));
    assert_eq!(verify_under(&root, &leaf, &[&one, &two]), Ok(()));
    assert_eq!(
        verify_under(&root, &leaf, &[&two]),
        Err(PathError::UnknownIssuer)
    );
    assert_eq!(verify_under(&two, &leaf, &[]), Ok(()));
}

#[test]
fn xs_11_path_length_is_enforced_on_roots_and_intermediates() {
    let root = Ca::self_signed(&authority("root").with_path_len(0));
    let one = root.issue_ca(&authority("one"));
    assert_eq!(verify_under(&root, &root.issue(&leaf()), &[]), Ok(()));
    assert_eq!(
        verify_under(&root, &one.issue(&leaf()), &[&one]),
        Err(PathError::PathLength)
    );
    let root = Ca::root("example.org");
    let one = root.issue_ca(&authority("one").with_path_len(0));
    let two = one.issue_ca(&authority("two"));
    assert_eq!(verify_under(&root, &one.issue(&leaf()), &[&one]), Ok(()));
    assert_eq!(
        verify_under(&root, &two.issue(&leaf()), &[&two, &one]),
        Err(PathError::PathLength)
    );
}

#[test]
fn xs_05_xs_20_intermediates_must_be_authorities_valid_and_allowed_to_sign() {
    let root = Ca::root("example.org");
    let refused = |template: CertTemplate| {
        let middle = root.issue_ca(&template);
        verify_under(&root, &middle.issue(&leaf()), &[&middle]).unwrap_err()
    };
    assert_eq!(
        refused(CertTemplate {
            basic_constraints: Some(vec![]),
            ..authority("m")
        }),
        PathError::NotAuthority
    );
    assert_eq!(
        refused(CertTemplate {
            basic_constraints: None,
            ..authority("m")
        }),
        PathError::NotAuthority
    );
    assert_eq!(
        refused(CertTemplate {
            key_usage: Some(vec![7, 0x80]),
            ..authority("m")
        }),
        PathError::KeyUsage
    );
    assert_eq!(
        refused(CertTemplate {
            not_after: NOW - 1,
            ..authority("m")
        }),
        PathError::Expired
    );
    assert_eq!(
        refused(CertTemplate {
            not_before: NOW + 1,
            ..authority("m")
        }),
        PathError::NotYetValid
    );
    let mut unknown = authority("m");
    unknown.further.push((vec![0x2a, 3, 4], true, vec![5, 0]));
    assert_eq!(refused(unknown), PathError::CriticalExtension);
    let root = Ca::self_signed(&CertTemplate {
        key_usage: Some(vec![7, 0x80]),
        ..authority("root")
    });
    assert_eq!(
        verify_under(&root, &root.issue(&leaf()), &[]),
        Err(PathError::KeyUsage)
    );
    let root = Ca::self_signed(&CertTemplate {
        basic_constraints: Some(vec![]),
        ..authority("root")
    });
    assert_eq!(
        verify_under(&root, &root.issue(&leaf()), &[]),
        Err(PathError::NotAuthority)
    );
}

/// Permitted subtrees, excluded ones, and the outcome.
type Case = (Subtrees, Subtrees, Result<(), PathError>);
type Subtrees = &'static [(u8, &'static str)];

#[test]
fn xs_12_uri_name_constraints_are_enforced_on_roots_and_intermediates() {
    let cases: [Case; 8] = [
        (&[(URI, "example.org")], &[], Ok(())),
        (&[(URI, "other.org"), (URI, "EXAMPLE.org")], &[], Ok(())),
        (&[(URI, "other.org")], &[], Err(PathError::NameConstraint)),
        (
            &[(URI, ".example.org")],
            &[],
            Err(PathError::NameConstraint),
        ),
        (&[(URI, ".org")], &[], Ok(())),
        (&[], &[(URI, "example.org")], Err(PathError::NameConstraint)),
        (&[], &[(URI, "other.org")], Ok(())),
        (
            &[(URI, "example.org"), (EMAIL, "a@b")],
            &[],
            Err(PathError::UnsupportedConstraint),
        ),
    ];
    for (permitted, excluded, expected) in cases {
        let root = Ca::self_signed(&authority("root").with_names(permitted, excluded));
        assert_eq!(
            verify_under(&root, &root.issue(&leaf()), &[]),
            expected,
            "{permitted:?} {excluded:?}"
        );
        let root = Ca::root("example.org");
        let middle = root.issue_ca(&authority("m").with_names(permitted, excluded));
        let outcome = verify_under(&root, &middle.issue(&leaf()), &[&middle]);
        assert_eq!(outcome, expected, "{permitted:?} {excluded:?}");
    }
}

#[test]
fn xs_12_dns_name_constraints_are_enforced_with_and_without_uri_ones() {
    let named = |name: &str| CertTemplate {
        dns_names: vec![name.to_owned()],
        ..leaf()
    };
    for uri in [&[][..], &[(URI, "example.org")]] {
        let permitted = [&[(DNS, "db.example")][..], uri].concat();
        let root = Ca::self_signed(&authority("root").with_names(&permitted, &[]));
        assert_eq!(
            verify_under(&root, &root.issue(&named("x.db.example")), &[]),
            Ok(())
        );
        let refused = verify_under(&root, &root.issue(&named("xdb.example")), &[]);
        assert_eq!(refused, Err(PathError::NameConstraint));
    }
}

#[test]
fn chains_longer_than_webpki_goes_are_walked_in_order() {
    let root = Ca::root("example.org");
    let mut chain = vec![root.issue_ca(&authority("0"))];
    for depth in 1..15 {
        let next = chain[0].issue_ca(&authority(&depth.to_string()));
        chain.insert(0, next);
    }
    let chain: Vec<&Ca> = chain.iter().collect();
    let leaf = chain[0].issue(&leaf());
    assert_eq!(verify_under(&root, &leaf, &chain), Ok(()));
    let mut swapped = chain.clone();
    swapped.swap(3, 4);
    assert_eq!(
        verify_under(&root, &leaf, &swapped),
        Err(PathError::UnknownIssuer)
    );
    let other = Ca::root("example.org");
    assert_eq!(
        verify_under(&other, &leaf, &chain),
        Err(PathError::UnknownIssuer)
    );
    let mut touched = leaf.clone();
    *touched.last_mut().unwrap() ^= 1;
    assert_eq!(
        verify_under(&root, &touched, &chain),
        Err(PathError::BadSignature)
    );
}

/// Longer than webpki goes: the first of `certificates` is the leaf's issuer, the last is issued by `root`.
fn long_chain(root: &Ca) -> Vec<Ca> {
    let mut chain = vec![root.issue_ca(&authority("0"))];
    for depth in 1..12 {
        let next = chain[0].issue_ca(&authority(&depth.to_string()));
        chain.insert(0, next);
    }
    chain
}

#[test]
fn no_signature_counts_before_an_authority_is_known_to_stand_above_it() {
    let (root, stranger) = (Ca::root("example.org"), Ca::root("elsewhere"));
    let chain = long_chain(&stranger);
    let mut leaf = chain[0].issue(&leaf());
    *leaf.last_mut().unwrap() ^= 1;
    let chain: Vec<&Ca> = chain.iter().collect();
    // From below, the leaf's bad signature would have been found first.
    assert_eq!(
        verify_under(&root, &leaf, &chain),
        Err(PathError::UnknownIssuer)
    );
    assert_eq!(
        verify_under(&stranger, &leaf, &chain),
        Err(PathError::BadSignature)
    );
}

#[test]
fn a_chain_that_only_claims_an_authority_s_name_is_refused_at_its_top() {
    let (root, forger) = (Ca::root("example.org"), Ca::root("example.org"));
    let chain = long_chain(&forger);
    let expired = chain[0].issue(&CertTemplate {
        not_after: NOW - 1,
        ..leaf()
    });
    let chain: Vec<&Ca> = chain.iter().collect();
    assert_eq!(
        verify_under(&root, &expired, &chain),
        Err(PathError::UnknownIssuer),
        "nothing below the forged link is looked at"
    );
}

#[test]
fn few_of_the_paths_that_a_peer_can_make_up_are_tried() {
    // Every certificate names the same issuer as the roots do.
    let forger = Ca::root("example.org");
    let same_name = || authority("root");
    let mut chain = vec![forger.issue_ca(&same_name())];
    for _ in 1..15 {
        let next = chain[0].issue_ca(&same_name());
        chain.insert(0, next);
    }
    let leaf = chain[0].issue(&leaf());
    let roots: Vec<Ca> = (0..8).map(|_| Ca::root("example.org")).collect();
    let roots: Vec<&Ca> = roots.iter().collect();
    let ders: Vec<&[u8]> = std::iter::once(leaf.as_slice())
        .chain(chain.iter().map(|ca| ca.der.as_slice()))
        .collect();
    let refused = verify_svid(&ders, &Bundles::of(&[("example.org", &roots)]), now()).unwrap_err();
    assert_eq!(refused, X509SvidError::Path(PathError::TooManyPaths));
}

#[test]
fn walked_chains_obey_the_same_rules() {
    let root = Ca::root("example.org");
    let constrained = |template: CertTemplate| template.with_names(&[(URI, "example.org")], &[]);
    let refused = |template: CertTemplate| {
        let middle = root.issue_ca(&constrained(template));
        verify_under(&root, &middle.issue(&leaf()), &[&middle]).unwrap_err()
    };
    assert_eq!(
        refused(CertTemplate {
            basic_constraints: None,
            ..authority("m")
        }),
        PathError::NotAuthority
    );
    assert_eq!(
        refused(CertTemplate {
            key_usage: Some(vec![7, 0x80]),
            ..authority("m")
        }),
        PathError::KeyUsage
    );
    assert_eq!(
        refused(CertTemplate {
            not_after: NOW - 1,
            ..authority("m")
        }),
        PathError::Expired
    );
    let middle = root.issue_ca(&constrained(authority("m")));
    let expired = middle.issue(&CertTemplate {
        not_after: NOW - 1,
        ..leaf()
    });
    assert_eq!(
        verify_under(&root, &expired, &[&middle]),
        Err(PathError::Expired)
    );
    let mut unknown = leaf();
    unknown.further.push((vec![0x2a, 3, 4], true, vec![5, 0]));
    assert_eq!(
        verify_under(&root, &middle.issue(&unknown), &[&middle]),
        Err(PathError::CriticalExtension)
    );
    let short = root.issue_ca(&constrained(authority("s").with_path_len(0)));
    let below = short.issue_ca(&authority("b"));
    assert_eq!(
        verify_under(&root, &below.issue(&leaf()), &[&below, &short]),
        Err(PathError::PathLength)
    );
}

#[test]
fn xs_19_extended_key_usage_of_authorities_does_not_nest() {
    let root = Ca::root("example.org");
    let server_only = CertTemplate {
        extended_key_usage: vec![crate::x509::testing::SERVER_AUTH],
        ..authority("m")
    };
    let middle = root.issue_ca(&server_only);
    assert_eq!(
        verify_under(&root, &middle.issue(&leaf()), &[&middle]),
        Ok(())
    );
}

#[test]
fn successive_roots_of_one_name_are_all_tried() {
    let (old, new) = (Ca::root("example.org"), Ca::root("example.org"));
    let leaf = new.issue(&leaf());
    let bundles = Bundles::of(&[("example.org", &[&old, &new])]);
    verify_svid(&[&leaf], &bundles, now()).unwrap();
}
