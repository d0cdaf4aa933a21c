use super::*;
use crate::key::{KeyPair, KeyType};
use crate::x509::testing::Ca;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn jwt_authority(key_id: &str) -> JwtAuthority {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: key.public_key().clone(),
        expires_at: None,
        tainted: false,
        source: AuthoritySource::Unknown,
    }
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::new(td("example.org"));
    bundle.add_x509_authority(Ca::root("example.org").certificate());
    bundle.add_x509_authority(Ca::root("example.org").certificate());
    bundle.jwt_authorities = vec![jwt_authority("j1"), jwt_authority("j2")];
    bundle.wit_authorities = vec![jwt_authority("w1")];
    bundle.refresh_hint = 300;
    bundle.sequence_number = 7;
    bundle
}

fn document() -> Value {
    serde_json::from_slice(&bundle().to_spiffe_json()).unwrap()
}

fn read(document: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_spiffe_json(td("example.org"), document.to_string().as_bytes())
}

/// The document with one entry changed.
fn with_key(at: usize, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut changed = document();
    change(changed["keys"][at].as_object_mut().unwrap());
    changed
}

fn counts(bundle: &Bundle) -> (usize, usize, usize) {
    (
        bundle.x509_authorities.len(),
        bundle.jwt_authorities.len(),
        bundle.wit_authorities.len(),
    )
}

#[test]
fn bd_01_documents_round_trip_beside_their_trust_domain() {
    let original = bundle();
    let again = Bundle::from_spiffe_json(td("example.org"), &original.to_spiffe_json()).unwrap();
    assert_eq!(again, original);
    assert_eq!(again.trust_domain, td("example.org"));
    let json = serde_json::to_string(&original).unwrap();
    assert_eq!(serde_json::from_str::<Bundle>(&json).unwrap(), original);
}

#[test]
fn bd_02_further_members_are_allowed() {
    let read = read(&json!({"keys": [], "x": 1})).unwrap();
    assert_eq!(counts(&read), (0, 0, 0));
}

#[test]
fn bd_03_bd_04_sequence_is_an_exact_64_bit_number() {
    for (number, expected) in [
        ("0", 0),
        ("9007199254740993", (1 << 53) + 1),
        ("9223372036854775808", 1 << 63),
        ("18446744073709551615", u64::MAX),
    ] {
        let text = format!(r#"{{"keys":[],"spiffe_sequence":{number}}}"#);
        let read = Bundle::from_spiffe_json(td("a"), text.as_bytes()).unwrap();
        assert_eq!(read.sequence_number, expected);
        assert_eq!(
            Bundle::from_spiffe_json(td("a"), &read.to_spiffe_json()).unwrap(),
            read
        );
    }
    for sequence in [json!(-1), json!(1.5), json!("1"), json!(null)] {
        assert_eq!(
            read(&json!({"keys": [], "spiffe_sequence": sequence})),
            Err(BundleError::Sequence)
        );
    }
    // Names are matched exactly.
    assert_eq!(
        read(&json!({"keys": [], "SPIFFE_SEQUENCE": 4}))
            .unwrap()
            .sequence_number,
        0
    );
}

#[test]
fn bd_05_refresh_hint_is_whole_seconds_and_clamped() {
    let hint = |hint: Value| {
        read(&json!({"keys": [], "spiffe_refresh_hint": hint})).map(|read| read.refresh_hint)
    };
    assert_eq!(hint(json!(300)), Ok(300));
    assert_eq!(hint(json!(-5)), Ok(0));
    assert_eq!(hint(json!(u64::MAX)), Ok(MAX_REFRESH_HINT));
    assert_eq!(hint(json!(1.5)), Err(BundleError::RefreshHint));
    assert_eq!(hint(json!("300")), Err(BundleError::RefreshHint));
}

#[test]
fn bd_07_keys_must_be_there() {
    for document in [json!({}), json!({"keys": null})] {
        assert_eq!(read(&document), Err(BundleError::NoKeys));
    }
    for document in [
        json!([]),
        json!({"keys": 5}),
        json!({"keys": {}}),
        json!("x"),
    ] {
        assert!(
            matches!(read(&document), Err(BundleError::Json(_))),
            "{document}"
        );
    }
    let twice = br#"{"keys":[],"keys":[]}"#;
    assert!(matches!(
        Bundle::from_spiffe_json(td("a"), twice),
        Err(BundleError::Json(_))
    ));
    assert!(matches!(
        Bundle::from_spiffe_json(td("a"), b""),
        Err(BundleError::Json(_))
    ));
}

#[test]
fn bd_08_bd_09_no_keys_and_no_usable_keys_are_an_empty_bundle() {
    for document in [
        json!({"keys": []}),
        json!({"keys": [{"kty": "EC", "use": "future-svid"}]}),
    ] {
        let read = read(&document).unwrap();
        assert!(read.x509_bundle().is_empty() && read.jwt_bundle().is_empty());
    }
}

#[test]
fn bd_10_unknown_key_types_and_curves_are_skipped() {
    for change in [("kty", "FOO"), ("kty", "OKP"), ("crv", "secp256k1")] {
        let changed = with_key(2, |key| {
            key.insert(change.0.to_owned(), json!(change.1));
        });
        assert_eq!(counts(&read(&changed).unwrap()), (2, 1, 1));
    }
    let good = document()["keys"][0].clone();
    let odd = json!({"keys": [{"kty": "FOO", "use": "x509-svid", "x5c": ["!"]}, {"kty": 5}, 5, "x", [], {"kty": "EC", "x": 5}, good]});
    assert_eq!(counts(&read(&odd).unwrap()), (1, 0, 0));
}

#[test]
fn bd_11_missing_and_unknown_uses_are_skipped() {
    let missing = with_key(2, |key| {
        key.remove("use");
    });
    assert_eq!(counts(&read(&missing).unwrap()), (2, 1, 1));
    for name in ["JWT-SVID", "sig", "future-svid", ""] {
        let changed = with_key(2, |key| {
            key.insert("use".to_owned(), json!(name));
        });
        assert_eq!(counts(&read(&changed).unwrap()), (2, 1, 1), "{name}");
    }
}

#[test]
fn bd_12_bd_13_xs_23_xs_24_js_16_ws_20_published_entries_have_the_members_of_the_standard_and_no_others()
 {
    let original = bundle();
    for (at, key) in document()["keys"].as_array().unwrap().iter().enumerate() {
        let names: Vec<&str> = key
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        match key["use"].as_str().unwrap() {
            "x509-svid" => {
                assert_eq!(names, ["crv", "kty", "use", "x", "x5c", "y"]);
                let list = key["x5c"].as_array().unwrap();
                assert_eq!(list.len(), 1);
                let der = STANDARD.decode(list[0].as_str().unwrap()).unwrap();
                let jwk = serde_json::from_value(key.clone()).unwrap();
                assert_eq!(
                    &PublicKey::from_jwk(&jwk).unwrap(),
                    Certificate::from_der(&der).unwrap().public_key()
                );
            }
            "jwt-svid" | "wit-svid" => assert_eq!(names, ["crv", "kid", "kty", "use", "x", "y"]),
            other => panic!("{at}: {other}"),
        }
    }
    assert_eq!(counts(&original), (2, 2, 1));
    let text = String::from_utf8(original.to_spiffe_json()).unwrap();
    assert!(text.starts_with("{\n    \"keys\": [\n        {\n            \"use\": \"x509-svid\",\n            \"kty\": \"EC\","));
    let bare = Bundle::new(td("a")).to_spiffe_json();
    assert_eq!(bare, b"{\n    \"keys\": []\n}");
}

#[test]
fn ws_20_key_ids_are_unique_in_the_whole_bundle() {
    let mut twice = bundle();
    twice.wit_authorities = vec![jwt_authority("j1")];
    let refused = Bundle::from_spiffe_json(td("example.org"), &twice.to_spiffe_json());
    assert_eq!(refused, Err(BundleError::DuplicateKeyId("j1".into())));
}

#[test]
fn xs_25_entries_without_certificate_are_skipped() {
    for x5c in [None, Some(json!([])), Some(json!(null))] {
        let changed = with_key(0, |key| match x5c {
            Some(value) => {
                key.insert("x5c".to_owned(), value);
            }
            None => {
                key.remove("x5c");
            }
        });
        assert_eq!(counts(&read(&changed).unwrap()), (1, 2, 1));
    }
}

#[test]
fn xs_26_of_several_certificates_the_first_counts() {
    let (a, b) = (Ca::root("a").certificate(), Ca::root("b").certificate());
    let list = json!([STANDARD.encode(a.der()), STANDARD.encode(b.der())]);
    let read = read(&json!({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": list}]})).unwrap();
    assert_eq!(read.x509_bundle().authorities(), [a]);
}

#[test]
fn broken_certificates_and_keys_refuse_the_document() {
    for text in ["!", "AAAA", ""] {
        let changed = with_key(0, |key| {
            key.insert("x5c".to_owned(), json!([text]));
        });
        assert!(
            matches!(read(&changed), Err(BundleError::Key { at: 0, .. })),
            "{text:?}"
        );
    }
    let changed = with_key(2, |key| {
        key.insert("x".to_owned(), json!("AQ"));
    });
    assert!(matches!(
        read(&changed),
        Err(BundleError::Key { at: 2, .. })
    ));
}

#[test]
fn xs_27_the_authorities_are_the_union_and_duplicates_fold() {
    let mut twice = document();
    let first = twice["keys"][0].clone();
    twice["keys"].as_array_mut().unwrap().push(first);
    assert_eq!(counts(&read(&twice).unwrap()), (2, 2, 1));
}

#[test]
fn js_17_ws_21_only_keys_for_tokens_verify_tokens() {
    let changed = with_key(0, |key| {
        key.insert("kid".to_owned(), json!("x1"));
    });
    let read = read(&changed).unwrap();
    let keys = read.jwt_bundle();
    assert!(keys.authority("j1").is_some() && keys.authority("j2").is_some());
    assert!(
        keys.authority("x1").is_none()
            && keys.authority("w1").is_none()
            && keys.authority("J1").is_none()
    );
}

#[test]
fn token_keys_without_id_are_skipped() {
    for kid in [json!(null), json!("")] {
        let changed = with_key(2, |key| {
            key.insert("kid".to_owned(), kid);
        });
        assert_eq!(counts(&read(&changed).unwrap()), (2, 1, 1));
    }
}

#[test]
fn no_empty_bundle_comes_of_a_document_whose_keys_lack_something() {
    let (certificate, token) = (document()["keys"][0].clone(), document()["keys"][2].clone());
    let lacking = |key: &Value, member: &str, value: Option<Value>| {
        let mut key = key.clone();
        let members = key.as_object_mut().unwrap();
        match value {
            Some(value) => members.insert(member.to_owned(), value),
            None => members.remove(member),
        };
        key
    };
    for x5c in [None, Some(json!([])), Some(json!(null))] {
        let key = lacking(&certificate, "x5c", x5c);
        let refused = read(&json!({"keys": [token, key]})).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "bundle key 1 is a x509-svid key without x5c, and there is no other that can be used"
        );
    }
    for kid in [None, Some(json!("")), Some(json!(null))] {
        let key = lacking(&token, "kid", kid);
        let refused = read(&json!({"keys": [certificate, key]})).unwrap_err();
        let (at, key_use, member) = (1, "jwt-svid", "kid");
        assert_eq!(
            refused,
            BundleError::Lacking {
                at,
                key_use,
                member
            }
        );
    }
    let key = lacking(&certificate, "x5c", Some(json!("a text")));
    assert!(matches!(
        read(&json!({"keys": [certificate, key]})),
        Err(BundleError::Key { at: 1, .. })
    ));
    let key = lacking(&certificate, "kty", Some(json!("OKP")));
    assert_eq!(
        read(&json!({"keys": [key]})),
        Err(BundleError::NothingSupported)
    );
    assert_eq!(counts(&read(&json!({"keys": []})).unwrap()), (0, 0, 0));
}

#[test]
fn documents_are_bounded() {
    let keys = vec![json!({}); MAX_KEYS + 1];
    assert_eq!(read(&json!({"keys": keys})), Err(BundleError::TooManyKeys));
    let long = vec![b' '; MAX_BUNDLE_LEN + 1];
    assert_eq!(
        Bundle::from_spiffe_json(td("a"), &long),
        Err(BundleError::TooLong)
    );
    assert_eq!(
        JwtBundle::from_jwks(td("a"), &long),
        Err(BundleError::TooLong)
    );
}

#[test]
fn wa_24_plain_sets_hold_token_keys_only() {
    let original = bundle();
    let json: Value = serde_json::from_slice(&original.to_jwks_jwt_only()).unwrap();
    let keys = json["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys {
        let names: Vec<&str> = key
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(names, ["crv", "kid", "kty", "x", "y"]);
    }
    let read = JwtBundle::from_jwks(td("example.org"), &original.to_jwks_jwt_only()).unwrap();
    assert_eq!(read, original.jwt_bundle());
    assert_eq!(
        Bundle::from_jwks(td("example.org"), &original.to_jwks_jwt_only())
            .unwrap()
            .jwt_authorities,
        original.jwt_authorities
    );
}

#[test]
fn wa_17_plain_sets_take_token_uses_only() {
    let with_use = |key_use: &str| {
        let mut set: Value = serde_json::from_slice(&bundle().to_jwks_jwt_only()).unwrap();
        set["keys"][0]["use"] = json!(key_use);
        JwtBundle::from_jwks(td("a"), set.to_string().as_bytes())
            .unwrap()
            .len()
    };
    assert_eq!((with_use("sig"), with_use("jwt-svid")), (2, 2));
    assert_eq!(
        (with_use("wit-svid"), with_use("x509-svid"), with_use("enc")),
        (1, 1, 1)
    );
    assert_eq!(
        JwtBundle::from_jwks(td("a"), b"{}"),
        Err(BundleError::NoKeys)
    );
}

#[test]
fn bd_16_maps_name_trust_domains_and_may_be_empty() {
    assert_eq!(
        BundleMap::from_json(b"{}"),
        Err(BundleError::NoTrustDomains)
    );
    assert_eq!(
        BundleMap::from_json(br#"{"trust_domains":{}}"#),
        Ok(BundleMap::default())
    );
    let uri = br#"{"trust_domains":{"spiffe://a":{"keys":[]}}}"#;
    assert_eq!(
        BundleMap::from_json(uri),
        Err(BundleError::TrustDomainName("spiffe://a".into()))
    );
    let map = BundleMap([(td("example.org"), bundle())].into());
    let again = BundleMap::from_json(&map.to_json()).unwrap();
    assert!(again.0[&td("example.org")].same_authorities(&bundle_of(&map)));
}

fn bundle_of(map: &BundleMap) -> Bundle {
    map.0[&td("example.org")].clone()
}

#[test]
fn bd_17_a_trust_domain_named_twice_refuses_the_map() {
    for text in [
        r#"{"trust_domains":{"a.b":{"keys":[]},"a.b":{"keys":[]}}}"#,
        r#"{"trust_domains":{"\u0061.b":{"keys":[]},"a.b":{"keys":[]}}}"#,
    ] {
        assert!(matches!(
            BundleMap::from_json(text.as_bytes()),
            Err(BundleError::Json(_))
        ));
    }
}

/// serde reads a struct from a list of its members' values, too; no other reader of such a document would.
#[test]
fn a_list_in_the_place_of_an_object_is_no_bundle() {
    let keys = document()["keys"].clone();
    for list in [
        json!([keys]),
        json!([keys, 1, 60]),
        json!([]),
        json!([{"keys": keys}]),
    ] {
        let text = list.to_string();
        assert!(matches!(read(&list), Err(BundleError::Json(_))), "{text}");
        assert!(
            Bundle::from_jwks(td("example.org"), text.as_bytes()).is_err(),
            "{text}"
        );
        let map = json!({"trust_domains": {"example.org": list}}).to_string();
        assert!(BundleMap::from_json(map.as_bytes()).is_err(), "{map}");
    }
    let map = json!([{"example.org": document()}]).to_string();
    assert!(BundleMap::from_json(map.as_bytes()).is_err(), "{map}");
}

#[test]
fn a_list_in_the_place_of_a_jwk_is_passed_over() {
    let key = document()["keys"][2].clone();
    // The values of `use`, `kty`, `kid`, `crv`, `alg`, `x` and `y`, in the order of the struct's fields.
    let by_place = json!([
        "jwt-svid", "EC", "by-place", "P-256", null, key["x"], key["y"]
    ]);
    let mut listed = document();
    listed["keys"].as_array_mut().unwrap().push(by_place);
    assert_eq!(counts(&read(&listed).unwrap()), counts(&bundle()));
}

#[test]
fn bd_18_bd_19_hints_within_a_map_are_ignored_and_one_bad_bundle_refuses_it() {
    let hinted = br#"{"trust_domains":{"a":{"keys":[],"spiffe_refresh_hint":1}}}"#;
    assert_eq!(
        BundleMap::from_json(hinted).unwrap().0[&td("a")].refresh_hint,
        0
    );
    let bad = br#"{"trust_domains":{"a":{"keys":[]},"b":{}}}"#;
    assert_eq!(BundleMap::from_json(bad), Err(BundleError::NoKeys));
}

#[test]
fn fd_22_bundles_of_two_trust_domains_are_never_merged() {
    let mut mine = bundle();
    let mut theirs = bundle();
    theirs.trust_domain = td("other");
    assert!(!mine.append(&theirs));
    theirs.trust_domain = mine.trust_domain.clone();
    theirs.jwt_authorities.clear();
    assert!(mine.append(&theirs));
    assert_eq!(counts(&mine), (4, 2, 1));
    assert!(!mine.append(&theirs));
}

#[test]
fn pem_and_concatenated_der_hold_the_certificates() {
    let original = bundle();
    let read =
        Bundle::from_pem(td("example.org"), &(original.to_pem() + &original.to_pem())).unwrap();
    assert_eq!(read.x509_authorities, original.x509_authorities);
    let der = Certificate::parse_concatenated(&original.to_concatenated_der()).unwrap();
    assert_eq!(der, original.x509_bundle().authorities());
    Bundle::from_pem(td("example.org"), "none").unwrap_err();
}
