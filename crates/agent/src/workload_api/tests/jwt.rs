//! FetchJWTSVID and ValidateJWTSVID.

use super::*;

#[tokio::test]
async fn wa_09_and_wa_23_malformed_jwt_requests_are_invalid_and_foreign_ids_denied() {
    let f = start(FixtureOptions::default()).await;
    f.entry("a", "/a");
    let mut client = f.client().await;
    let mut fetch = async |audience: &[&str], spiffe_id: &str| {
        let message = JwtsvidRequest {
            audience: audience.iter().map(|a| (*a).to_owned()).collect(),
            spiffe_id: spiffe_id.into(),
        };
        client.fetch_jwtsvid(request(message)).await.unwrap_err()
    };
    assert_eq!(fetch(&[], "").await.message(), "audience must be specified");
    assert_eq!(fetch(&["a", ""], "").await.code(), Code::InvalidArgument);
    assert_eq!(fetch(&["a"], "foo").await.code(), Code::InvalidArgument);
    let denied = fetch(&["a"], "spiffe://example.org/other").await;
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().starts_with("no identity issued"));
    // No server behind this agent.
    assert_eq!(
        fetch(&["a"], "spiffe://example.org/a").await.code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn wa_22_one_token_for_each_identity_or_the_one_asked_for() {
    let f = start(FixtureOptions::default()).await;
    for (entry_id, path) in [("a", "/a"), ("b", "/b"), ("c", "/c")] {
        let made = f.entry(entry_id, path);
        let key = crate::cache::jwt::JwtKey::new(&id(path), &["y".into(), "x".into()]);
        let now = SystemClock.now();
        let token = crate::cache::jwt::JwtToken {
            token: spiffe::secret::Secret::new(path.into()),
            issued_at: now,
            expires_at: now + LONG,
            key_id: None,
        };
        f.context.gate.cache.put_jwt(&made, key, Arc::new(token));
    }
    let mut client = f.client().await;
    let all = client
        .fetch_jwtsvid(request(JwtsvidRequest {
            audience: vec!["x".into(), "y".into()],
            spiffe_id: String::new(),
        }))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        all.svids
            .iter()
            .map(|svid| svid.svid.as_str())
            .collect::<Vec<_>>(),
        ["/a", "/b", "/c"]
    );
    let one = client
        .fetch_jwtsvid(request(JwtsvidRequest {
            audience: vec!["x".into(), "y".into()],
            spiffe_id: "spiffe://example.org/b".into(),
        }))
        .await;
    assert_eq!(one.unwrap().into_inner().svids.len(), 1);
}

#[tokio::test]
async fn wa_26_validated_claims_come_back_with_aud_as_a_list() {
    let f = start(FixtureOptions::default()).await;
    f.entry("a", "/a");
    let token = f.token(&id("/peer"), &["me"], "k1");
    let answer = f
        .client()
        .await
        .validate_jwtsvid(request(ValidateJwtsvidRequest {
            audience: "me".into(),
            svid: token,
        }))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/peer");
    let claims = answer.claims.unwrap().fields;
    assert!(matches!(
        claims["aud"].kind,
        Some(prost_types::value::Kind::ListValue(_))
    ));
    for name in ["sub", "exp", "iat", "jti", "color"] {
        assert!(claims.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn wa_26_claims_of_foreign_tokens_are_filtered() {
    let f = start(FixtureOptions::default()).await;
    let foreign = TrustDomain::parse("other.test").unwrap();
    let mut federated = Entry::clone(&entry("a", "/a", &[&own_uid()]));
    federated.federates_with = vec![foreign.clone()];
    let mut bundle = Bundle::new(foreign.clone());
    bundle.jwt_authorities.push(spiffe::bundle::JwtAuthority {
        key_id: "f1".into(),
        public_key: f.authority.key.public_key().clone(),
        expires_at: None,
        tainted: false,
        source: spiffe::bundle::AuthoritySource::Unknown,
    });
    let token = f.token(
        &SpiffeId::from_path(&foreign, "/peer").unwrap(),
        &["me"],
        "f1",
    );
    let validate = ValidateJwtsvidRequest {
        audience: "me".into(),
        svid: token,
    };
    f.context.gate.cache.apply(Delta {
        bundles: vec![bundle],
        ..Delta::default()
    });
    let mut client = f.client().await;
    assert_eq!(
        client
            .validate_jwtsvid(request(validate.clone()))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument,
        "not federated with"
    );
    f.context.gate.cache.apply(Delta {
        entries: vec![Arc::new(federated)],
        ..Delta::default()
    });
    let claims = client
        .validate_jwtsvid(request(validate))
        .await
        .unwrap()
        .into_inner()
        .claims
        .unwrap()
        .fields;
    assert_eq!(
        claims.keys().collect::<Vec<_>>(),
        ["aud", "exp", "jti", "sub"]
    );
}

#[tokio::test]
async fn wa_25_bad_tokens_and_missing_fields_are_invalid_arguments() {
    let f = start(FixtureOptions::default()).await;
    f.entry("a", "/a");
    let good = f.token(&id("/peer"), &["me"], "k1");
    let mut client = f.client().await;
    let mut refused = async |audience: &str, svid: &str| {
        client
            .validate_jwtsvid(request(ValidateJwtsvidRequest {
                audience: audience.into(),
                svid: svid.into(),
            }))
            .await
            .unwrap_err()
    };
    assert_eq!(
        refused("", &good).await.message(),
        "audience must be specified"
    );
    assert_eq!(refused("me", "").await.message(), "svid must be specified");
    let unknown_key = f.token(&id("/peer"), &["me"], "k9");
    let mut broken = good.clone();
    broken.replace_range(good.len() - 8.., "AAAAAAAA");
    for (audience, svid) in [
        ("you", good.as_str()),
        ("me", "garbage"),
        ("me", "a.b.c"),
        ("me", &unknown_key),
        ("me", &broken),
    ] {
        let status = refused(audience, svid).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{svid}");
        assert!(
            !status.message().contains(svid),
            "a refused token is not repeated"
        );
    }
}

#[tokio::test]
async fn audiences_that_make_no_token_are_refused_before_anything_waits_for_the_server() {
    let f = start(FixtureOptions::default()).await;
    f.entry("a", "/a");
    let mut asked = f.hanging_server();
    let mut client = f.client().await;
    // A letter each: a small message that would be a large list.
    for audience in [vec!["a".to_owned(); 40_000], vec!["a".repeat(9 << 10)]] {
        let message = JwtsvidRequest {
            audience,
            spiffe_id: String::new(),
        };
        let refused = client.fetch_jwtsvid(request(message)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    asked.try_recv().unwrap_err();
}

#[tokio::test]
async fn one_user_s_calls_leave_places_for_those_of_others() {
    let f = start(FixtureOptions::default()).await;
    let made = f.entry("a", "/a");
    f.connected();
    let (requests, mut asked) = mpsc::channel(JWT_WAITING);
    f.requests.send_replace(Some(requests));
    let call = |user: u32, name: String| {
        let (context, entry) = (Arc::clone(&f.context), Arc::clone(&made));
        tokio::spawn(async move {
            crate::workload_api::jwt::request(&context, user, &entry, &[name]).await
        })
    };
    let many: Vec<_> = (0..2 * JWT_WAITING)
        .map(|one| call(1, one.to_string()))
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(asked.len(), JWT_TURNS_OF_USER);
    // Those who leave keep their places until their requests are taken up.
    for one in many {
        one.abort();
    }
    let again = call(1, "again".to_owned());
    let other = call(2, "other".to_owned());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(asked.len(), JWT_TURNS_OF_USER + 1);
    let mut names = Vec::new();
    while names.len() < JWT_TURNS_OF_USER + 2 {
        names.extend(asked.recv().await.unwrap().audience);
    }
    assert!(names.contains(&"other".to_owned()) && names.contains(&"again".to_owned()));
    again.abort();
    other.abort();
}
