use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spiffe::clock::unix_seconds;
use spiffe::key::SignatureScheme;
use spiffe::svid::jwt::inspect_jwt_svid;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::{
    CaTemplate, Certificate, LeafTemplate, Subject, issue_ca, issue_leaf, random_serial,
};

use super::*;
use crate::audit::LogSink;
use crate::audit::tests::Recording;
use crate::ca::IssuanceConfig;
use crate::ca::tests::{
    Fixture, HOUR, agent, config, id, key, minted, quiet, trust_domain, workload,
};
use crate::ca::x509::X509Issuer;
use crate::caller::DownstreamCaller;

fn entry() -> spiffe::entry::Entry {
    let mut entry = crate::ca::tests::entry();
    entry.spiffe_id = id("/w");
    entry
}

async fn refused_x509(ca: &Ca, grant: &Grant) -> IssueError {
    ca.issue_x509(grant, &key(), &quiet())
        .await
        .expect_err("it was issued")
}

#[tokio::test]
async fn issues_what_the_entry_says_and_nothing_else() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let mut entry = entry();
    entry.dns_names = vec!["a.example.org".to_owned(), "b.example.org".to_owned()];
    entry.x509_svid_ttl = 600;
    let key = key();
    let issued = ca
        .issue_x509(&workload(&entry), &key, &quiet())
        .await
        .unwrap();
    assert_eq!(issued.chain.len(), 1);
    assert_eq!(fixture.verify(&issued).unwrap().id(), &id("/w"));
    let leaf = Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.public_key(), &key);
    assert_eq!(leaf.dns_names(), entry.dns_names);
    assert_eq!(leaf.subject_common_name().as_deref(), Some("a.example.org"));
    assert_eq!(
        (leaf.subject().country, leaf.subject().organization),
        (vec!["US".to_owned()], vec!["SPIRE".to_owned()])
    );
    let now = unix_seconds(ca.clock.now());
    assert_eq!(leaf.validity_unix(), (now - 10, now + 600));
    assert_eq!(leaf.serial(), issued.serial);
}

#[tokio::test]
async fn gives_each_kind_of_subject_its_own_default_lifetime() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let now = ca.clock.now();
    let svid = ca
        .issue_x509(&workload(&entry()), &key(), &quiet())
        .await
        .unwrap();
    assert_eq!(svid.not_after, now + HOUR);
    let of_agent = ca
        .issue_x509(&agent(id("/spire/agent/x")), &key(), &quiet())
        .await
        .unwrap();
    assert_eq!(of_agent.not_after, now + HOUR * 2);
    let token = ca
        .issue_jwt(&workload(&entry()), &["a".to_owned()], &quiet())
        .await
        .unwrap();
    assert_eq!(token.expires_at, now + Duration::from_secs(300));
}

#[tokio::test]
async fn never_lets_a_document_outlive_its_authority() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let end = ca.clock.now() + HOUR * 24;
    let grant = minted(id("/w"), i32::MAX);
    assert_eq!(
        ca.issue_x509(&grant, &key(), &quiet())
            .await
            .unwrap()
            .not_after,
        end
    );
    assert_eq!(
        ca.issue_jwt(&grant, &["a".to_owned()], &quiet())
            .await
            .unwrap()
            .expires_at,
        end
    );
    let mut entry = entry();
    entry.downstream = true;
    let grant = Grant::downstream_ca(DownstreamCaller::for_tests(&entry), &trust_domain()).unwrap();
    let issued = ca
        .issue_downstream_ca(&grant, &key(), Some(HOUR * 1000), &quiet())
        .await
        .unwrap();
    assert_eq!(issued.not_after, end);
    let issued = ca
        .issue_downstream_ca(&grant, &key(), Some(HOUR), &quiet())
        .await
        .unwrap();
    assert_eq!(issued.not_after, ca.clock.now() + HOUR);
}

#[tokio::test]
async fn takes_a_ttl_of_nothing_or_less_as_the_default() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    for ttl in [0, -1, i32::MIN] {
        let issued = ca
            .issue_x509(&minted(id("/w"), ttl), &key(), &quiet())
            .await
            .unwrap();
        assert_eq!(issued.not_after, ca.clock.now() + HOUR);
    }
}

#[tokio::test]
async fn denies_names_of_another_trust_domain_and_of_none() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let foreign = SpiffeId::parse("spiffe://other.test/w").unwrap();
    let refused = refused_x509(&ca, &minted(foreign.clone(), 60)).await;
    assert!(matches!(refused, IssueError::ForeignId { .. }), "{refused}");
    let refused = ca
        .issue_jwt(&minted(foreign, 60), &["a".to_owned()], &quiet())
        .await
        .unwrap_err();
    assert!(matches!(refused, IssueError::ForeignId { .. }), "{refused}");
    let refused = refused_x509(&ca, &minted(trust_domain().id(), 60)).await;
    assert!(matches!(refused, IssueError::IdWithoutPath(_)), "{refused}");
}

#[tokio::test]
async fn denies_a_workload_the_names_of_servers_and_agents() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    for path in ["/spire", "/spire/server", "/spire/agent/join_token/x"] {
        let refused = refused_x509(&ca, &minted(id(path), 60)).await;
        assert!(
            matches!(refused, IssueError::NotGranted { .. }),
            "{path}: {refused}"
        );
        let refused = ca
            .issue_jwt(&minted(id(path), 60), &["a".to_owned()], &quiet())
            .await
            .unwrap_err();
        assert!(
            matches!(refused, IssueError::NotGranted { .. }),
            "{path}: {refused}"
        );
    }
}

#[tokio::test]
async fn denies_an_agent_any_name_but_an_agents() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    for path in ["/w", "/spire/server", "/spire/agent"] {
        let refused = refused_x509(&ca, &agent(id(path))).await;
        assert!(
            matches!(refused, IssueError::NotGranted { .. }),
            "{path}: {refused}"
        );
    }
}

#[tokio::test]
async fn denies_a_grant_documents_it_does_not_extend_to() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let audience = ["a".to_owned()];
    let agent = agent(id("/spire/agent/x"));
    assert!(matches!(
        ca.issue_jwt(&agent, &audience, &quiet()).await,
        Err(IssueError::NotGranted { .. })
    ));
    let server = Grant::server(&trust_domain());
    assert!(matches!(
        ca.issue_jwt(&server, &audience, &quiet()).await,
        Err(IssueError::NotGranted { .. })
    ));
    let workload = workload(&entry());
    let refused = ca
        .issue_downstream_ca(&workload, &key(), None, &quiet())
        .await;
    assert!(matches!(refused, Err(IssueError::NotGranted { .. })));
    let mut below = entry();
    below.downstream = true;
    let below = Grant::downstream_ca(DownstreamCaller::for_tests(&below), &trust_domain()).unwrap();
    assert!(matches!(
        refused_x509(&ca, &below).await,
        IssueError::NotGranted { .. }
    ));
    assert!(matches!(
        ca.issue_jwt(&below, &audience, &quiet()).await,
        Err(IssueError::NotGranted { .. })
    ));
}

#[tokio::test]
async fn grants_no_ca_to_an_entry_that_is_not_downstream_or_not_ours() {
    assert!(Grant::downstream_ca(DownstreamCaller::for_tests(&entry()), &trust_domain()).is_none());
    let mut admin = entry();
    admin.admin = true;
    assert!(Grant::downstream_ca(DownstreamCaller::for_tests(&admin), &trust_domain()).is_none());
    let mut foreign = entry();
    foreign.downstream = true;
    assert!(
        Grant::downstream_ca(
            DownstreamCaller::for_tests(&foreign),
            &TrustDomain::parse("other.test").unwrap()
        )
        .is_none()
    );
}

#[tokio::test]
async fn denies_a_token_without_an_audience() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    for audience in [
        vec![],
        vec![String::new()],
        vec![String::new(), String::new()],
    ] {
        let refused = ca
            .issue_jwt(&workload(&entry()), &audience, &quiet())
            .await
            .unwrap_err();
        assert!(matches!(refused, IssueError::NoAudience), "{refused}");
    }
    let mixed = ["".to_owned(), "a".to_owned()];
    let token = ca
        .issue_jwt(&workload(&entry()), &mixed, &quiet())
        .await
        .unwrap();
    assert_eq!(
        inspect_jwt_svid(token.token.expose()).unwrap().audience,
        ["a"]
    );
}

#[tokio::test]
async fn adds_issuer_and_token_id_only_when_asked_for() {
    let fixture = Fixture::new().await;
    let claims = |token: &IssuedJwt| {
        let body = token.token.expose().split('.').nth(1).unwrap().to_owned();
        serde_json::from_slice::<serde_json::Value>(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
    };
    let audience = ["a".to_owned()];
    let plain = fixture
        .server()
        .await
        .issue_jwt(&workload(&entry()), &audience, &quiet())
        .await
        .unwrap();
    let plain = claims(&plain);
    assert_eq!(
        plain.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["aud", "exp", "iat", "sub"]
    );
    assert_eq!(plain["aud"], serde_json::json!(["a"]));
    let with_issuer = IssuanceConfig {
        jwt_issuer: Some("https://issuer".to_owned()),
        ..config()
    };
    let ca = fixture
        .try_server(Fixture::memory(), with_issuer)
        .await
        .unwrap();
    let mut entry = entry();
    entry.jwt_svid_include_jti = true;
    let full = claims(
        &ca.issue_jwt(&workload(&entry), &audience, &quiet())
            .await
            .unwrap(),
    );
    assert_eq!(full["iss"], "https://issuer");
    assert_eq!(
        URL_SAFE_NO_PAD
            .decode(full["jti"].as_str().unwrap())
            .unwrap()
            .len(),
        16
    );
}

#[tokio::test]
async fn no_document_outlives_its_entry() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let now = unix_seconds(ca.clock.now());
    let mut entry = entry();
    entry.expires_at = now + 120;
    entry.jwt_svid_ttl = 600;
    let grant = workload(&entry);
    let svid = ca.issue_x509(&grant, &key(), &quiet()).await.unwrap();
    assert_eq!(unix_seconds(svid.not_after), now + 120);
    let audience = ["a".to_owned()];
    let token = ca.issue_jwt(&grant, &audience, &quiet()).await.unwrap();
    assert_eq!(unix_seconds(token.expires_at), now + 120);
    // One that lives shorter by itself is not made longer.
    entry.x509_svid_ttl = 60;
    let short = ca.issue_x509(&workload(&entry), &key(), &quiet()).await;
    assert_eq!(unix_seconds(short.unwrap().not_after), now + 60);

    entry.downstream = true;
    let below = DownstreamCaller::for_tests(&entry);
    let below = Grant::downstream_ca(below, &trust_domain());
    let below = below.unwrap_or_else(|| panic!("it is not downstream"));
    let issued = ca.issue_downstream_ca(&below, &key(), None, &quiet()).await;
    assert_eq!(unix_seconds(issued.unwrap().not_after), now + 120);
}

#[tokio::test]
async fn no_ca_is_made_of_an_entry_that_changed_while_the_call_waited() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let mut below = entry();
    below.downstream = true;
    below.selectors = vec![spiffe::selector::Selector::parse("a:1").unwrap()].into();
    let register = async |entry: &spiffe::entry::Entry| {
        let created = fixture.datastore.entries.create(vec![entry.clone()]).await;
        created.unwrap().remove(0).unwrap().entry
    };
    let found = register(&below).await;
    let grant = Grant::downstream_ca(
        DownstreamCaller::registered_for_tests(&found),
        &trust_domain(),
    );
    let grant = grant.unwrap();
    let issue = async || ca.issue_downstream_ca(&grant, &key(), None, &quiet()).await;
    issue().await.unwrap();
    let deleted = fixture.datastore.entries.delete(vec![found.id.to_string()]);
    deleted.await.unwrap().remove(0).unwrap();
    let refused = issue().await.unwrap_err();
    assert!(matches!(refused, IssueError::EntryWithdrawn), "{refused}");
    // Under the same ID, with an earlier end.
    below.expires_at = unix_seconds(ca.clock.now()) + 60;
    register(&below).await;
    let refused = issue().await.unwrap_err();
    assert!(matches!(refused, IssueError::EntryChanged), "{refused}");
}

#[tokio::test]
async fn an_expired_entry_gives_nothing() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let now = unix_seconds(ca.clock.now());
    for expires_at in [now, now - 1, 1] {
        let mut entry = entry();
        entry.expires_at = expires_at;
        let grant = workload(&entry);
        let refused = refused_x509(&ca, &grant).await;
        assert!(matches!(refused, IssueError::EntryWithdrawn), "{refused}");
        let audience = ["a".to_owned()];
        let refused = ca.issue_jwt(&grant, &audience, &quiet()).await.unwrap_err();
        assert!(matches!(refused, IssueError::EntryWithdrawn), "{refused}");
    }
}

#[tokio::test]
async fn a_template_beyond_its_grant_is_not_signed() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let now = ca.clock.now();
    let issuer = X509Issuer::active(&ca, now).unwrap();
    let key = key();
    let grant = minted(id("/w"), 600).with_names(vec!["a.test".to_owned()], Subject::default());
    let document = X509Document { key: key.clone() };
    let good = document.template(&ca, &grant, &issuer, now).unwrap();
    document.admit(&good, &grant, now).unwrap();
    let with = |change: &dyn Fn(&mut LeafTemplate)| {
        let mut template = good.clone();
        change(&mut template);
        template
    };
    for (what, template) in [
        ("SPIFFE ID", with(&|one| one.id = id("/admin"))),
        (
            "DNS names",
            with(&|one| one.dns_names.push("b.test".to_owned())),
        ),
        (
            "key",
            with(&|one| one.public_key = issuer.key.public_key().clone()),
        ),
        (
            "longer",
            with(&|one| one.not_after += Duration::from_secs(1)),
        ),
    ] {
        let refused = document.admit(&template, &grant, now).unwrap_err();
        assert!(refused.to_string().contains(what), "{what}: {refused}");
    }
}

#[tokio::test]
async fn stops_a_document_that_is_not_what_was_granted() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let now = ca.clock.now();
    let issuer = X509Issuer::active(&ca, now).unwrap();
    let (key, other) = (key(), key());
    let grant = minted(id("/w"), 600).with_names(vec!["a.test".to_owned()], Subject::default());
    let document = X509Document { key: key.clone() };
    let good = document.template(&ca, &grant, &issuer, now).unwrap();
    let with = |change: &dyn Fn(&mut LeafTemplate)| {
        let mut template = good.clone();
        change(&mut template);
        template
    };
    let wrong = [
        ("SPIFFE ID", with(&|one| one.id = id("/admin"))),
        ("DNS names", with(&|one| one.dns_names.clear())),
        (
            "DNS names",
            with(&|one| one.dns_names.push("b.test".to_owned())),
        ),
        (
            "longer",
            with(&|one| one.not_after += Duration::from_secs(1)),
        ),
        ("valid yet", with(&|one| one.not_before += HOUR / 10)),
        (
            "expired",
            with(&|one| one.not_after = one.not_before + Duration::from_secs(5)),
        ),
    ];
    let sign =
        async |template: &LeafTemplate| issue_leaf(template, &issuer.as_issuer()).await.unwrap();
    X509Document::compare(sign(&good).await, &good, &issuer, now).unwrap();
    for (what, template) in wrong {
        let signed = sign(&template).await;
        let refused = X509Document::compare(signed, &good, &issuer, now).unwrap_err();
        assert!(refused.to_string().contains(what), "{what}: {refused}");
    }
    let mut stolen = good.clone();
    stolen.public_key = other;
    let refused = X509Document::compare(sign(&good).await, &stolen, &issuer, now).unwrap_err();
    assert!(refused.to_string().contains("key"), "{refused}");
}

#[tokio::test]
async fn stops_a_document_of_another_authority() {
    let (fixture, elsewhere) = (Fixture::new().await, Fixture::new().await);
    let (ca, impostor) = (fixture.server().await, elsewhere.server().await);
    let now = ca.clock.now();
    let (issuer, wrong) = (
        X509Issuer::active(&ca, now).unwrap(),
        X509Issuer::active(&impostor, now).unwrap(),
    );
    let key = key();
    let grant = minted(id("/w"), 600);
    let document = X509Document { key: key.clone() };
    let template = document.template(&ca, &grant, &wrong, now).unwrap();
    let leaf = issue_leaf(&template, &wrong.as_issuer()).await.unwrap();
    let refused = X509Document::compare(leaf, &template, &issuer, now).unwrap_err();
    assert!(refused.to_string().contains("issuer"), "{refused}");
}

#[tokio::test]
async fn stops_a_signing_certificate_in_place_of_a_leaf() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let now = ca.clock.now();
    let issuer = X509Issuer::active(&ca, now).unwrap();
    let key = key();
    let template = CaTemplate {
        serial: random_serial(ca.random.as_ref()),
        subject: Subject::spire(),
        id: trust_domain().id(),
        public_key: key.clone(),
        not_before: now,
        not_after: now + Duration::from_secs(60),
        path_len: None,
        subject_key_id: None,
    };
    let der = issue_ca(&template, Some(&issuer.as_issuer()), issuer.key.as_ref())
        .await
        .unwrap();
    let document = X509Document { key: key.clone() };
    let grant = minted(id("/w"), 600);
    let mut leaf = document.template(&ca, &grant, &issuer, now).unwrap();
    leaf.serial.clone_from(&template.serial);
    let refused = X509Document::compare(der, &leaf, &issuer, now);
    refused.unwrap_err();
}

#[tokio::test]
async fn never_shows_a_token_in_its_debug_form() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let issued = ca
        .issue_jwt(&workload(&entry()), &["a".to_owned()], &quiet())
        .await
        .unwrap();
    let shown = format!("{issued:?}");
    assert!(
        !shown.contains(issued.token.expose()) && shown.contains("redacted"),
        "{shown}"
    );
}

#[tokio::test]
async fn writes_one_audit_line_for_each_outcome_and_no_secret_in_it() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let record =
        crate::audit::tests::auditor(Arc::new(LogSink)).begin(crate::audit::CallContext::default);
    let grant = workload(&entry()).with_field("csr", "digest");
    let audience = ["a".to_owned()];
    let (lines, token) = crate::audit::tests::recorded(async {
        let token = ca.issue_jwt(&grant, &audience, &record).await.unwrap();
        ca.issue_x509(&grant, &key(), &record).await.unwrap();
        ca.issue_x509(&grant, &key(), &quiet()).await.unwrap();
        ca.issue_jwt(&grant, &[], &record).await.unwrap_err();
        record.finish(Outcome::Success).await.unwrap();
        token
    })
    .await;
    let value = |line: usize, name: &str| lines[line].get(name).map(String::as_str);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(value(0, "status"), Some("success"));
    assert_eq!(value(0, "spiffe_id"), Some("spiffe://example.org/w"));
    assert_eq!(
        (value(0, "entry_id"), value(0, "csr")),
        (Some("e"), Some("digest"))
    );
    assert!(value(0, "expires_at").is_some());
    assert!(value(1, "serial_num").is_some());
    assert_eq!(
        (value(2, "status"), value(2, "status_code")),
        (Some("error"), Some("InvalidArgument"))
    );
    assert_eq!(
        value(2, "status_message"),
        Some("invalid JWT-SVID audience: cannot be empty")
    );
    assert!(!format!("{lines:?}").contains(token.token.expose()));
}

#[tokio::test]
async fn lets_no_document_out_that_the_audit_trail_did_not_take() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let sink = Arc::new(Recording::default());
    let record = crate::audit::tests::auditor(Arc::<Recording>::clone(&sink))
        .begin(crate::audit::CallContext::default);
    sink.fail(true);
    let grant = workload(&entry());
    let refused = ca.issue_x509(&grant, &key(), &record).await.unwrap_err();
    assert!(matches!(refused, IssueError::Audit(_)), "{refused}");
    let refused = ca
        .issue_jwt(&grant, &["a".to_owned()], &record)
        .await
        .unwrap_err();
    assert!(matches!(refused, IssueError::Audit(_)), "{refused}");
    sink.fail(false);
    ca.issue_x509(&grant, &key(), &record).await.unwrap();
}

#[tokio::test]
async fn the_audit_trail_names_the_code_that_the_caller_receives() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let sink = Arc::new(Recording::default());
    let record = crate::audit::tests::auditor(Arc::<Recording>::clone(&sink))
        .begin(crate::audit::CallContext::default);
    let long = ["y".repeat(65 * 1024)];
    for audience in [&[] as &[String], &long] {
        let refused = ca.issue_jwt(&workload(&entry()), audience, &record).await;
        assert_eq!(refused.unwrap_err().kind().name(), "InvalidArgument");
    }
    let (reserved, key) = (minted(id("/spire/server"), 60), key());
    let refused = ca.issue_x509(&reserved, &key, &record).await;
    assert_eq!(refused.unwrap_err().kind().name(), "PermissionDenied");
    record.finish(Outcome::Success).await.unwrap();
    let mut codes = Vec::new();
    for event in sink.take() {
        if let crate::audit::EventKind::Call { items, .. } = event.kind {
            codes.extend(items.into_iter().map(|item| match item.outcome {
                Outcome::Error { code, .. } => code,
                Outcome::Success => "OK",
            }));
        }
    }
    let expected = ["InvalidArgument", "InvalidArgument", "PermissionDenied"];
    assert_eq!(codes, expected);
}

#[tokio::test]
#[ignore = "a measurement, for a release build: --ignored --nocapture"]
async fn measures_what_the_gate_costs_beside_the_signature() {
    const ROUNDS: u32 = 5_000;
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let (key, grant, audience) = (key(), workload(&entry()), ["a".to_owned()]);
    let issuer = X509Issuer::active(&ca, ca.clock.now()).unwrap();
    let local = issuer.key.local().unwrap();
    let since = std::time::Instant::now();
    for _ in 0..ROUNDS {
        local
            .sign_now(SignatureScheme::EcdsaSha256, &[7; 500])
            .unwrap();
    }
    println!("signature {:?}", since.elapsed() / ROUNDS);
    let since = std::time::Instant::now();
    for _ in 0..ROUNDS {
        ca.issue_x509(&grant, &key, &quiet()).await.unwrap();
    }
    println!("X509-SVID {:?}", since.elapsed() / ROUNDS);
    let since = std::time::Instant::now();
    for _ in 0..ROUNDS {
        ca.issue_jwt(&grant, &audience, &quiet()).await.unwrap();
    }
    println!("JWT-SVID {:?}", since.elapsed() / ROUNDS);
}
