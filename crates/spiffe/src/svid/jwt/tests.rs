use super::*;
use crate::clock::from_unix;
use crate::key::{KeyPair, KeyType, PublicKey};
use crate::x509::tests::at_once;
use serde_json::json;
use std::collections::BTreeMap;

const NOW: i64 = 1_700_000_000;
const ID: &str = "spiffe://example.org/w";

#[derive(Debug, Default)]
struct Bundles(BTreeMap<TrustDomain, Arc<JwtBundle>>);

impl JwtBundleSource for Bundles {
    fn jwt_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<JwtBundle>> {
        self.0.get(trust_domain).cloned()
    }
}

fn bundles(list: &[(&str, &str, &PublicKey)]) -> Bundles {
    let mut bundles = Bundles::default();
    for (name, kid, key) in list {
        let name = TrustDomain::parse(name).unwrap();
        let mut bundle = JwtBundle::new(name.clone());
        bundle.add(kid, (*key).clone());
        bundles.0.insert(name, Arc::new(bundle));
    }
    bundles
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k1"})
}

fn claims() -> Value {
    json!({"sub": ID, "aud": ["a"], "exp": NOW + 60})
}

/// A P-256 authority `k1` of example.org, and tokens it signs whatever they say.
struct Authority {
    key: KeyPair,
    bundles: Bundles,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let bundles = bundles(&[("example.org", "k1", key.public_key())]);
        Self { key, bundles }
    }

    fn token(&self, header: &str, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let der = self
            .key
            .sign_now(JwsAlgorithm::ES256.scheme(), signed.as_bytes())
            .unwrap();
        let raw = crate::key::jws_signature(JwsAlgorithm::ES256, der).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(raw))
    }

    fn verify(&self, token: &str) -> Result<VerifiedJwtSvid, JwtSvidError> {
        verify_jwt_svid(token, "a", &self.bundles, from_unix(NOW))
    }

    fn with_header(&self, header: &Value) -> Result<VerifiedJwtSvid, JwtSvidError> {
        self.verify(&self.token(&header.to_string(), &claims().to_string()))
    }

    fn with_claims(&self, claims: &Value) -> Result<VerifiedJwtSvid, JwtSvidError> {
        self.verify(&self.token(&header().to_string(), &claims.to_string()))
    }

    /// The outcome when one claim is set, or left out when `null`.
    fn with_claim(&self, name: &str, value: Value) -> Result<VerifiedJwtSvid, JwtSvidError> {
        let mut changed = claims();
        let members = changed.as_object_mut().unwrap();
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.to_owned(), value);
        }
        self.with_claims(&changed)
    }

    fn good(&self) -> String {
        self.token(&header().to_string(), &claims().to_string())
    }
}

fn template() -> JwtClaims {
    JwtClaims {
        subject: SpiffeId::parse(ID).unwrap(),
        audience: vec!["a".to_owned()],
        issued_at: NOW,
        expires_at: NOW + 300,
        issuer: None,
        jti: None,
        extra: Map::new(),
    }
}

#[test]
fn js_01_only_compact_jws_of_three_strict_parts() {
    let authority = Authority::new();
    let good = authority.good();
    authority.verify(&good).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let two = format!("{}.{}", parts[0], parts[1]);
    let padded = format!("{}=.{}.{}", parts[0], parts[1], parts[2]);
    let padded_signature = format!("{good}=");
    let flattened =
        json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]}).to_string();
    let general = json!({"payload": parts[1], "signatures": [{"protected": parts[0], "signature": parts[2]}]});
    let cases = [
        "",
        "a",
        "a.b",
        "..",
        "!!!.!!!.sig",
        &two,
        &format!("{good}.x"),
        &format!("{good}.x.y"),
        &padded,
        &flattened,
        &general.to_string(),
        &format!(" {good}"),
        &format!("{good}\n"),
        &padded_signature,
    ];
    for case in cases {
        assert!(authority.verify(case).is_err(), "{case:?}");
    }
    assert!(matches!(
        authority.verify(&two),
        Err(JwtSvidError::Form | JwtSvidError::Claims)
    ));
}

/// Another reader may believe the first of two claims, we the last.
#[test]
fn a_claim_that_comes_twice_is_refused() {
    let authority = Authority::new();
    let token = |claims: &str| authority.token(&header().to_string(), claims);
    let once = format!(r#"{{"sub":"{ID}","aud":["a"],"exp":{}}}"#, NOW + 60);
    authority.verify(&token(&once)).unwrap();
    let members = once.trim_end_matches('}');
    for again in [
        r#""sub":"spiffe://example.org/other""#.to_owned(),
        format!(r#""sub":"{ID}""#),
        r#""aud":["b"]"#.to_owned(),
        format!(r#""e\u0078p":{}"#, NOW + 600),
        r#""x":1,"x":1"#.to_owned(),
    ] {
        let doubled = token(&format!("{members},{again}}}"));
        assert_eq!(
            authority.verify(&doubled).unwrap_err(),
            JwtSvidError::Claims,
            "{again}"
        );
        assert_eq!(
            inspect_jwt_svid(&doubled).unwrap_err(),
            JwtSvidError::Claims,
            "{again}"
        );
    }
    // Within a claim of somebody's own it is that somebody's business.
    authority
        .verify(&token(&format!(r#"{members},"own":{{"x":1,"x":2}}}}"#)))
        .unwrap();
}

#[test]
fn js_01_segments_are_bounded() {
    let authority = Authority::new();
    let long = "A".repeat(MAX_SEGMENT + 1);
    assert_eq!(
        authority.verify(&format!("{long}.e30.AA")).unwrap_err(),
        JwtSvidError::TooLong
    );
    assert_eq!(
        authority.verify(&"A".repeat(4 * MAX_SEGMENT)).unwrap_err(),
        JwtSvidError::TooLong
    );
    let filled = |length: usize| {
        let mut claims = json!({"sub": ID, "aud": ["a"], "exp": NOW + 60, "x": ""});
        let room = length - claims.to_string().len();
        claims["x"] = json!("y".repeat(room));
        authority.verify(&authority.token(&header().to_string(), &claims.to_string()))
    };
    filled(MAX_CLAIMS).unwrap();
    let refused = filled(MAX_CLAIMS + 3).unwrap_err();
    assert_eq!(refused, JwtSvidError::TooLong);
    assert!(refused.to_string().contains("64 KiB"));
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep = authority.token(&header().to_string(), &format!(r#"{{"x":{nested}}}"#));
    assert_eq!(authority.verify(&deep).unwrap_err(), JwtSvidError::Claims);
}

#[test]
fn js_01_claims_that_nobody_would_read_are_not_signed() {
    let authority = Authority::new();
    let sign = |length: usize| {
        let mut claims = template();
        claims.extra.insert("x".to_owned(), "".into());
        let room = length - Value::Object(claims.to_json()).to_string().len();
        claims.extra.insert("x".to_owned(), "y".repeat(room).into());
        at_once(sign_jwt_svid(
            &claims,
            "k",
            JwsAlgorithm::ES256,
            &authority.key,
        ))
    };
    inspect_jwt_svid(sign(MAX_CLAIMS).unwrap().expose()).unwrap();
    assert_eq!(sign(MAX_CLAIMS + 1).unwrap_err(), JwtSvidError::TooLong);
}

#[test]
fn js_02_issued_headers_hold_alg_kid_and_typ() {
    let authority = Authority::new();
    let token = at_once(sign_jwt_svid(
        &template(),
        "k1",
        JwsAlgorithm::ES256,
        &authority.key,
    ))
    .unwrap();
    let header = URL_SAFE_NO_PAD
        .decode(token.expose().split('.').next().unwrap())
        .unwrap();
    assert_eq!(header, br#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#);
    authority.verify(token.expose()).unwrap();
    assert_eq!(format!("{token:?}"), "[redacted]");
}

#[test]
fn js_03_the_nine_algorithms_and_no_others() {
    let authority = Authority::new();
    for alg in ["none", "HS256", "EdDSA", "ES256K", "es256", "", "RS1"] {
        let refused = authority
            .with_header(&json!({"alg": alg, "kid": "k1"}))
            .unwrap_err();
        assert_eq!(refused, JwtSvidError::Algorithm, "{alg}");
    }
    assert_eq!(
        authority.with_header(&json!({"kid": "k1"})).unwrap_err(),
        JwtSvidError::Algorithm
    );
    assert_eq!(
        authority
            .with_header(&json!({"alg": 5, "kid": "k1"}))
            .unwrap_err(),
        JwtSvidError::Algorithm
    );

    let rsa = KeyPair::generate(KeyType::Rsa2048).unwrap();
    let p384 = KeyPair::generate(KeyType::EcP384).unwrap();
    for alg in JwsAlgorithm::ALL
        .into_iter()
        .filter(|alg| *alg != JwsAlgorithm::ES512)
    {
        let key = match alg {
            JwsAlgorithm::ES256 => &authority.key,
            JwsAlgorithm::ES384 => &p384,
            _ => &rsa,
        };
        let token = at_once(sign_jwt_svid(&template(), "k", alg, key)).unwrap();
        let known = bundles(&[("example.org", "k", key.public_key())]);
        assert!(
            verify_jwt_svid(token.expose(), "a", &known, from_unix(NOW)).is_ok(),
            "{alg}"
        );
    }
    assert_eq!(es512_outcome(), Ok(()));
}

/// A token signed on P-521, which we verify but do not sign with.
fn es512_outcome() -> Result<(), JwtSvidError> {
    use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let point = pair.public_key().as_ref();
    let text = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
    let jwk = crate::key::Jwk {
        kty: Some("EC".into()),
        crv: Some("P-521".into()),
        x: text(&point[1..67]),
        y: text(&point[67..]),
        ..Default::default()
    };
    let key = PublicKey::from_jwk(&jwk).unwrap();
    let header = r#"{"alg":"ES512","kid":"k"}"#;
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims().to_string())
    );
    let signature = pair
        .sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes())
        .unwrap();
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    verify_jwt_svid(
        &token,
        "a",
        &bundles(&[("example.org", "k", &key)]),
        from_unix(NOW),
    )
    .map(|_| ())
}

#[test]
fn js_04_the_algorithm_is_judged_before_everything_else() {
    let authority = Authority::new();
    let header = json!({"alg": "HS256", "typ": "wrong", "crit": ["x"]}).to_string();
    let token = authority.token(&header, r#"{"sub":"spiffe://unknown/w"}"#);
    assert_eq!(
        authority.verify(&token).unwrap_err(),
        JwtSvidError::Algorithm
    );
    let no_payload = format!("{}.!.!", URL_SAFE_NO_PAD.encode(header));
    assert_eq!(
        authority.verify(&no_payload).unwrap_err(),
        JwtSvidError::Algorithm
    );
}

#[test]
fn js_05_a_key_id_is_needed_to_choose_a_key() {
    let authority = Authority::new();
    for header in [
        json!({"alg": "ES256"}),
        json!({"alg": "ES256", "kid": ""}),
        json!({"alg": "ES256", "kid": 5}),
    ] {
        assert_eq!(
            authority.with_header(&header).unwrap_err(),
            JwtSvidError::NoKeyId
        );
    }
    let claims = template();
    let refused = at_once(sign_jwt_svid(
        &claims,
        "",
        JwsAlgorithm::ES256,
        &authority.key,
    ))
    .unwrap_err();
    assert_eq!(refused, JwtSvidError::NoKeyId);
}

#[test]
fn js_06_type_is_absent_jwt_or_jose() {
    let authority = Authority::new();
    for typ in ["JWT", "JOSE"] {
        authority
            .with_header(&json!({"alg": "ES256", "kid": "k1", "typ": typ}))
            .unwrap();
    }
    for typ in [
        json!("jwt"),
        json!("wit+jwt"),
        json!("at+jwt"),
        json!(5),
        json!(null),
        json!(""),
    ] {
        let refused = authority
            .with_header(&json!({"alg": "ES256", "kid": "k1", "typ": typ}))
            .unwrap_err();
        assert_eq!(refused, JwtSvidError::Type);
    }
}

#[test]
fn js_07_subject_is_a_spiffe_id() {
    let authority = Authority::new();
    assert_eq!(
        authority.with_claim("sub", json!(null)).unwrap_err(),
        JwtSvidError::NoSubject
    );
    assert_eq!(
        authority.with_claim("sub", json!(5)).unwrap_err(),
        JwtSvidError::NoSubject
    );
    for (sub, kind) in [
        ("", IdError::Empty),
        ("foo", IdError::WrongScheme),
        ("spiffe://d/", IdError::TrailingSlash),
    ] {
        assert_eq!(
            authority.with_claim("sub", json!(sub)).unwrap_err(),
            JwtSvidError::Subject(kind)
        );
    }
    // A subject without a path is taken but never given (AMB-17).
    authority
        .with_claim("sub", json!("spiffe://example.org"))
        .unwrap();
    let pathless = JwtClaims {
        subject: SpiffeId::parse("spiffe://example.org").unwrap(),
        ..template()
    };
    let refused = at_once(sign_jwt_svid(
        &pathless,
        "k1",
        JwsAlgorithm::ES256,
        &authority.key,
    ))
    .unwrap_err();
    assert_eq!(refused, JwtSvidError::UnfitId);
}

#[test]
fn js_08_audience_must_be_there_and_name_the_verifier() {
    let authority = Authority::new();
    for aud in [json!("a"), json!(["a"]), json!(["b", "a"])] {
        authority.with_claim("aud", aud).unwrap();
    }
    for aud in [json!(null), json!([])] {
        assert_eq!(
            authority.with_claim("aud", aud).unwrap_err(),
            JwtSvidError::NoAudience
        );
    }
    for aud in [json!(["b"]), json!("b"), json!("A"), json!("")] {
        assert_eq!(
            authority.with_claim("aud", aud).unwrap_err(),
            JwtSvidError::AudienceMismatch("a".into())
        );
    }
    for aud in [json!(5), json!(["a", 5]), json!({"a": 1})] {
        assert_eq!(
            authority.with_claim("aud", aud).unwrap_err(),
            JwtSvidError::AudienceForm
        );
    }
    let many = |n: usize| json!(vec!["a"; n]);
    authority.with_claim("aud", many(32)).unwrap();
    assert_eq!(
        authority.with_claim("aud", many(33)).unwrap_err(),
        JwtSvidError::TooManyAudiences
    );
    let refused =
        verify_jwt_svid(&authority.good(), "", &authority.bundles, from_unix(NOW)).unwrap_err();
    assert_eq!(refused, JwtSvidError::NoExpectedAudience);
    for audience in [vec![], vec![String::new()], vec!["a".to_owned(); 33]] {
        let claims = JwtClaims {
            audience,
            ..template()
        };
        at_once(sign_jwt_svid(
            &claims,
            "k1",
            JwsAlgorithm::ES256,
            &authority.key,
        ))
        .unwrap_err();
    }
}

#[test]
fn js_10_expiry_is_set_numeric_and_ahead() {
    let authority = Authority::new();
    assert_eq!(
        authority.with_claim("exp", json!(null)).unwrap_err(),
        JwtSvidError::NoExpiry
    );
    for exp in [json!("999"), json!([1]), json!(true)] {
        assert_eq!(
            authority.with_claim("exp", exp).unwrap_err(),
            JwtSvidError::NotNumeric("exp")
        );
    }
    for exp in [
        json!(NOW - 3600),
        json!(NOW - LEEWAY - 1),
        json!(1),
        json!(-5),
    ] {
        assert_eq!(
            authority.with_claim("exp", exp).unwrap_err(),
            JwtSvidError::Expired
        );
    }
    for exp in [json!(1e300), json!(-1e300), json!(253_402_300_800_i64)] {
        assert_eq!(
            authority.with_claim("exp", exp).unwrap_err(),
            JwtSvidError::NotDate("exp")
        );
    }
    authority.with_claim("exp", json!(NOW - LEEWAY)).unwrap();
    let fractional = authority.with_claim("exp", json!(1_700_000_060.5)).unwrap();
    assert_eq!(fractional.expires_at, NOW + 60);
    let stale = JwtClaims {
        expires_at: NOW,
        ..template()
    };
    at_once(sign_jwt_svid(
        &stale,
        "k1",
        JwsAlgorithm::ES256,
        &authority.key,
    ))
    .unwrap_err();
}

#[test]
fn js_11_start_of_validity_critical_parameters_and_signature() {
    let authority = Authority::new();
    assert_eq!(
        authority.with_claim("nbf", json!(NOW + 600)).unwrap_err(),
        JwtSvidError::NotYetValid
    );
    assert_eq!(
        authority.with_claim("nbf", json!("soon")).unwrap_err(),
        JwtSvidError::NotNumeric("nbf")
    );
    authority.with_claim("nbf", json!(NOW)).unwrap();
    // A peer's clock may be a minute ahead.
    authority.with_claim("nbf", json!(NOW + LEEWAY)).unwrap();
    authority.with_claim("iat", json!(NOW + LEEWAY)).unwrap();
    assert_eq!(
        authority
            .with_claim("iat", json!(NOW + LEEWAY + 1))
            .unwrap_err(),
        JwtSvidError::IssuedInFuture
    );
    assert_eq!(
        authority.with_claim("iat", json!("now")).unwrap_err(),
        JwtSvidError::NotNumeric("iat")
    );
    for crit in [json!(["x"]), json!([]), json!(null), json!(["exp"])] {
        let header = json!({"alg": "ES256", "kid": "k1", "crit": crit, "x": 1});
        assert_eq!(
            authority.with_header(&header).unwrap_err(),
            JwtSvidError::Critical
        );
    }
    authority
        .with_header(&json!({"alg": "ES256", "kid": "k1", "x": 1}))
        .unwrap();
    let twice = r#"{"alg":"ES256","alg":"ES256","kid":"k1"}"#;
    let refused = authority
        .verify(&authority.token(twice, &claims().to_string()))
        .unwrap_err();
    assert_eq!(refused, JwtSvidError::Header);

    let good = authority.good();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let mut raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    raw[5] ^= 1;
    let touched = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&raw));
    assert_eq!(
        authority.verify(&touched).unwrap_err(),
        JwtSvidError::Signature
    );
    assert_eq!(
        authority.verify(&format!("{signed}.")).unwrap_err(),
        JwtSvidError::Signature
    );
    let zero = format!("{signed}.{}", URL_SAFE_NO_PAD.encode([0; 64]));
    assert_eq!(
        authority.verify(&zero).unwrap_err(),
        JwtSvidError::Signature
    );
}

#[test]
fn sv_03_claims_are_inside_the_signed_bytes() {
    let authority = Authority::new();
    let good = authority.good();
    let parts: Vec<&str> = good.split('.').collect();
    let other =
        json!({"sub": "spiffe://example.org/admin", "aud": ["a"], "exp": NOW + 60}).to_string();
    let forged = format!(
        "{}.{}.{}",
        parts[0],
        URL_SAFE_NO_PAD.encode(other),
        parts[2]
    );
    assert_eq!(
        authority.verify(&forged).unwrap_err(),
        JwtSvidError::Signature
    );
}

#[test]
fn js_12_further_claims_are_carried_and_replay_is_not_tracked() {
    let authority = Authority::new();
    let extra = json!({"tier": "gold", "sub": "spiffe://example.org/forged"});
    let extra = extra.as_object().unwrap().clone();
    let jti = Some("id".to_owned());
    let claims = JwtClaims {
        jti,
        issuer: Some("https://issuer".into()),
        extra,
        ..template()
    };
    let token = at_once(sign_jwt_svid(
        &claims,
        "k1",
        JwsAlgorithm::ES256,
        &authority.key,
    ))
    .unwrap();
    for _ in 0..2 {
        let verified = authority.verify(token.expose()).unwrap();
        assert_eq!((verified.id.as_str(), verified.kid.as_str()), (ID, "k1"));
        assert_eq!(verified.claims["tier"], "gold");
        assert_eq!(verified.claims["jti"], "id");
        assert_eq!(verified.claims["iss"], "https://issuer");
        assert_eq!(verified.claims["aud"], json!(["a"]));
        assert_eq!(verified.claims["exp"], json!(NOW + 300));
    }
}

#[test]
fn js_13_the_key_comes_from_the_subjects_trust_domain() {
    let authority = Authority::new();
    let refused = authority
        .with_claim("sub", json!("spiffe://other/w"))
        .unwrap_err();
    assert_eq!(refused, JwtSvidError::NoBundle("other".into()));
    let stranger = KeyPair::generate(KeyType::EcP256).unwrap();
    let known = bundles(&[
        ("example.org", "k2", stranger.public_key()),
        ("b", "k1", authority.key.public_key()),
    ]);
    let refused = verify_jwt_svid(&authority.good(), "a", &known, from_unix(NOW)).unwrap_err();
    assert_eq!(
        refused,
        JwtSvidError::KeyNotFound {
            key_id: "k1".into(),
            trust_domain: "example.org".into()
        }
    );
    let known = bundles(&[("example.org", "k1", stranger.public_key())]);
    let refused = verify_jwt_svid(&authority.good(), "a", &known, from_unix(NOW)).unwrap_err();
    assert_eq!(refused, JwtSvidError::Signature);
}

#[test]
fn js_14_key_family_must_fit_the_algorithm() {
    let authority = Authority::new();
    for ty in [KeyType::Rsa2048, KeyType::EcP384] {
        let other = KeyPair::generate(ty).unwrap();
        let known = bundles(&[("example.org", "k1", other.public_key())]);
        let refused = verify_jwt_svid(&authority.good(), "a", &known, from_unix(NOW)).unwrap_err();
        assert_eq!(refused, JwtSvidError::AlgorithmMismatch);
        let refused =
            at_once(sign_jwt_svid(&template(), "k", JwsAlgorithm::ES256, &other)).unwrap_err();
        assert_eq!(refused, JwtSvidError::UnfitKey(JwsAlgorithm::ES256));
    }
}

#[test]
fn holders_read_their_own_tokens_without_verifying() {
    let authority = Authority::new();
    let token = at_once(sign_jwt_svid(
        &template(),
        "k1",
        JwsAlgorithm::ES256,
        &authority.key,
    ))
    .unwrap();
    let read = inspect_jwt_svid(token.expose()).unwrap();
    assert_eq!(
        (read.id.as_str(), read.audience.as_slice()),
        (ID, &["a".to_owned()][..])
    );
    assert_eq!(
        (read.issued_at, read.expires_at, read.kid.as_deref()),
        (NOW, NOW + 300, Some("k1"))
    );
    assert_eq!(inspect_jwt_svid("a.b.c").unwrap_err(), JwtSvidError::Form);
}

#[test]
fn headers_made_to_mislead_are_refused() {
    let authority = Authority::new();
    let cases = [
        (
            r#"{"alg":"none","alg":"ES256","kid":"k1"}"#,
            JwtSvidError::Header,
        ),
        (
            r#"{"alg":"ES256","kid":"k0","kid":"k1"}"#,
            JwtSvidError::Header,
        ),
        (
            r#"{"alg":"ES256","kid":"k1","crit":[]}"#,
            JwtSvidError::Critical,
        ),
        (
            r#"{"alg":"ES256","kid":"k1","crit":null}"#,
            JwtSvidError::Critical,
        ),
        (
            r#"{"alg":"ES256","kid":"k1","b64":false,"crit":["b64"]}"#,
            JwtSvidError::Critical,
        ),
        (r#"{"alg":["ES256"],"kid":"k1"}"#, JwtSvidError::Algorithm),
        (r#"{"alg":"ES256","kid":["k1"]}"#, JwtSvidError::NoKeyId),
        (r#"{"ALG":"ES256","kid":"k1"}"#, JwtSvidError::Algorithm),
        (r#"["ES256","JWT","k1"]"#, JwtSvidError::Header),
    ];
    for (header, reason) in cases {
        let token = authority.token(header, &claims().to_string());
        assert_eq!(authority.verify(&token).unwrap_err(), reason, "{header}");
    }
}

#[test]
fn the_error_about_a_huge_key_id_stays_small() {
    let authority = Authority::new();
    let refusal = |length: usize| {
        let header = json!({"alg": "ES256", "kid": "\u{1}".repeat(length)});
        authority.with_header(&header).unwrap_err()
    };
    assert_eq!(refusal(1 << 20), JwtSvidError::TooLong);
    let longest = refusal(10_000);
    assert!(matches!(longest, JwtSvidError::KeyNotFound { .. }));
    assert!(longest.to_string().len() < 2_000, "{longest}");
}

#[test]
fn refuses_audiences_that_are_many_long_or_empty_before_a_token_is_made() {
    let name = |length: usize| "a".repeat(length);
    for (audience, refusal) in [
        (vec![], JwtSvidError::NoAudience),
        (vec![name(1), String::new()], JwtSvidError::NoAudience),
        (vec![name(1); 33], JwtSvidError::TooManyAudiences),
        (vec![name(8 * 1024 + 1)], JwtSvidError::LongAudience),
        (vec![name(257); 32], JwtSvidError::LongAudience),
    ] {
        assert_eq!(check_audience(&audience).unwrap_err(), refusal);
    }
    check_audience(&vec![name(256); 32]).unwrap();
}
