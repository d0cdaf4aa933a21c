use std::path::Path;

use config::Document;
use daemon::tasks::Tasks;
use spiffe::clock::Clock;
use spiffe::id::SpiffeId;
use spiffe::random::SystemRandom;
use tonic::Status;

use super::*;
use crate::config::{Config, Overrides};
use crate::node::Stored;
use crate::state::StateDir;
use crate::state::removal::Reason;
use crate::testing::fake_server::{FakeServer, TokenState};
use crate::testing::{MovedClock, Repeatable};

struct FixtureOptions<'a> {
    trust_domain: &'a str,
    token: Option<&'a str>,
    bundle: Option<String>,
}

impl Default for FixtureOptions<'_> {
    fn default() -> Self {
        Self {
            trust_domain: "example.org",
            token: Some("good"),
            bundle: None,
        }
    }
}

async fn node(port: u16, directory: &Path, options: &FixtureOptions<'_>) -> Arc<Node> {
    node_at(
        port,
        directory,
        options,
        Arc::new(spiffe::clock::SystemClock),
    )
    .await
}

async fn node_at(
    port: u16,
    directory: &Path,
    options: &FixtureOptions<'_>,
    clock: Arc<dyn Clock>,
) -> Arc<Node> {
    let trust = match &options.bundle {
        Some(bundle) => {
            let path = directory.join("bundle.pem");
            std::fs::write(&path, bundle).unwrap();
            format!("trust_bundle_path = \"{}\"", path.display())
        }
        None => "insecure_bootstrap = true".to_owned(),
    };
    let token = options
        .token
        .map(|token| format!("join_token = \"{token}\""))
        .unwrap_or_default();
    let text = format!(
        "agent {{\n trust_domain = \"{td}\"\n server_address = \"127.0.0.1\"\n server_port = {port}\n data_dir = \"{dir}\"\n {trust}\n {token}\n }}\n\
         plugins {{\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"disk\" {{ plugin_data {{ directory = \"{dir}\" }} }}\n\
         WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n }}",
        td = options.trust_domain,
        dir = directory.display()
    );
    let document = Document::parse("agent.conf", &text, None).unwrap();
    let config = Config::from_document(&document, &Overrides::default())
        .unwrap_or_else(|faults| panic!("{faults}"));
    let keys = crate::testing::node_plugins(&config).await;
    let state = StateDir::open(&config.data_dir).unwrap();
    Arc::new(Node::open(config.node, state, keys, clock).unwrap())
}

/// Attests without a stop of the agent.
async fn attested(node: &Arc<Node>, absence: Option<&Absence>) -> Result<AttestedNode, Fault> {
    let _tasks = Tasks::new();
    let shutdown = _tasks.shutdown();
    let attested = attest_node(node, absence, Arc::new(SystemRandom), shutdown).await?;
    Ok(attested.expect("nobody stopped it"))
}

async fn refused(server: &FakeServer, options: FixtureOptions<'_>) -> Fault {
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &options).await;
    let started = std::time::Instant::now();
    let fault = attested(&node, None).await.unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "permanent errors are reported at once"
    );
    assert!(matches!(
        node.stored_identity().await.unwrap(),
        Stored::Absent(Absence::NeverAttested)
    ));
    fault
}

#[tokio::test]
async fn a_good_token_attests_the_node_and_the_identity_is_kept() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let bundle = server.state.lock().unwrap().bundle.to_pem();
    let options = FixtureOptions {
        bundle: Some(bundle),
        ..FixtureOptions::default()
    };
    let attested = attested(&node(server.port, directory.path(), &options).await, None)
        .await
        .unwrap();
    assert_eq!(
        attested.identity.id().as_str(),
        "spiffe://example.org/spire/agent/join_token/good"
    );
    let again = node(
        server.port,
        directory.path(),
        &FixtureOptions {
            token: None,
            ..options
        },
    )
    .await;
    let Stored::Usable(stored) = again.stored_identity().await.unwrap() else {
        panic!("the identity is not kept");
    };
    assert_eq!(stored.id(), attested.identity.id());
    assert_eq!(again.stored_bundle().unwrap().x509_authorities.len(), 1);
    assert_eq!(server.calls("AttestAgent"), 1);
}

#[tokio::test]
async fn used_unknown_and_expired_tokens_are_distinguished_and_not_repeated() {
    let server = FakeServer::start("example.org").await;
    for (token, text) in [
        ("used", "unknown or was already used"),
        ("nonsense", "unknown or was already used"),
        ("late", "expired"),
    ] {
        let before = server.calls("AttestAgent");
        let fault = refused(
            &server,
            FixtureOptions {
                token: Some(token),
                ..FixtureOptions::default()
            },
        )
        .await;
        assert_eq!(fault.code, Code::JoinTokenRefused);
        assert!(fault.what.contains(text), "{fault}");
        assert!(
            !fault.to_string().contains(token) || token == "used",
            "the token is not in the message: {fault}"
        );
        assert_eq!(server.calls("AttestAgent"), before + 1);
    }
}

#[tokio::test]
async fn a_node_without_a_token_says_so() {
    let server = FakeServer::start("example.org").await;
    let fault = refused(
        &server,
        FixtureOptions {
            token: None,
            ..FixtureOptions::default()
        },
    )
    .await;
    assert_eq!(fault.code, Code::NoJoinToken);
}

#[tokio::test]
async fn a_server_of_other_authorities_is_not_trusted() {
    let server = FakeServer::start("example.org").await;
    let foreign = crate::testing::bundle("example.org").to_pem();
    let fault = refused(
        &server,
        FixtureOptions {
            bundle: Some(foreign),
            ..FixtureOptions::default()
        },
    )
    .await;
    assert_eq!(fault.code, Code::ServerNotTrusted);
    assert!(fault.because.unwrap().contains("expected CA sha256:"));
    assert_eq!(server.calls("AttestAgent"), 0);
}

#[tokio::test]
async fn a_server_of_another_trust_domain_is_named() {
    let server = FakeServer::start("example.org").await;
    let bundle = server.state.lock().unwrap().bundle.to_pem();
    for bundle in [None, Some(bundle)] {
        let fault = refused(
            &server,
            FixtureOptions {
                trust_domain: "other.org",
                bundle,
                ..FixtureOptions::default()
            },
        )
        .await;
        assert_eq!(fault.code, Code::TrustDomainMismatch);
        assert!(
            fault
                .what
                .contains("agent says other.org, server says example.org"),
            "{fault}"
        );
        assert!(
            fault
                .hint
                .as_deref()
                .unwrap_or_default()
                .contains("trust_domain = \"example.org\"")
        );
    }
    assert_eq!(server.calls("AttestAgent"), 0);
}

#[tokio::test]
async fn a_ban_and_other_refusals_are_reported_at_once() {
    let server = FakeServer::start("example.org").await;
    for (status, code) in [
        (
            Status::permission_denied("failed to attest: agent is banned"),
            Code::AgentBanned,
        ),
        (Status::permission_denied("no"), Code::AttestationDenied),
        (
            Status::failed_precondition("attestor not configured"),
            Code::AttestationDenied,
        ),
        (Status::unimplemented("what?"), Code::AttestationDenied),
        (
            Status::invalid_argument("malformed"),
            Code::AttestationDenied,
        ),
    ] {
        server.fault("AttestAgent", status);
        assert_eq!(refused(&server, FixtureOptions::default()).await.code, code);
    }
}

#[tokio::test]
async fn a_bundle_file_that_is_missing_or_empty_or_garbage_is_reported_at_once() {
    let server = FakeServer::start("example.org").await;
    for bundle in [
        "",
        "garbage",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let fault = refused(
            &server,
            FixtureOptions {
                bundle: Some(bundle.into()),
                ..FixtureOptions::default()
            },
        )
        .await;
        assert_eq!(fault.code, Code::BootstrapBundleInvalid, "{bundle}");
    }
    let directory = tempfile::tempdir().unwrap();
    let node = node(
        server.port,
        directory.path(),
        &FixtureOptions {
            bundle: Some("x".into()),
            ..FixtureOptions::default()
        },
    )
    .await;
    std::fs::remove_file(directory.path().join("bundle.pem")).unwrap();
    assert_eq!(
        attested(&node, None).await.unwrap_err().code,
        Code::BootstrapBundleInvalid
    );
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let server = FakeServer::start("example.org").await;
    server.fault("AttestAgent", Status::unavailable("starting"));
    server.fault("AttestAgent", Status::resource_exhausted("slow down"));
    let directory = tempfile::tempdir().unwrap();
    attested(
        &node(server.port, directory.path(), &FixtureOptions::default()).await,
        None,
    )
    .await
    .unwrap();
    assert_eq!(server.calls("AttestAgent"), 3);
}

#[tokio::test]
async fn a_fresh_key_replaces_neither_the_stored_key_nor_one_in_use_that_is_not_stored() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let stored = attested(&node, None).await.unwrap().identity;
    // A directory in the place of the file: no rename can replace it.
    let file = directory.path().join("agent-data.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let in_use = NodeIdentity {
        svid: stored.svid.clone(),
        key: node.fresh_key().await.unwrap(),
    };
    node.store_identity(&in_use).await.unwrap_err();
    node.fresh_key().await.unwrap_err();
    let keys = node.keys.keys().await.unwrap();
    for key in [&stored.key, &in_use.key] {
        let kept = keys
            .iter()
            .any(|(_, held)| held.public_key() == key.public_key());
        assert!(kept);
    }
    // Where the SVID in use is the stored one, the other name is free.
    std::fs::remove_dir(&file).unwrap();
    node.store_identity(&stored).await.unwrap();
    node.fresh_key().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    // A port that was just free: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let fault = attested(
        &node(port, directory.path(), &FixtureOptions::default()).await,
        None,
    )
    .await
    .unwrap_err();
    assert_eq!(fault.code, Code::AttestationServerUnreachable);
}

#[tokio::test]
async fn a_configured_bundle_replaces_the_stored_one_of_a_re_created_server() {
    let old = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let bundle_of = |server: &FakeServer| Some(server.state.lock().unwrap().bundle.to_pem());
    let options = FixtureOptions {
        bundle: bundle_of(&old),
        ..FixtureOptions::default()
    };
    let first = node(old.port, directory.path(), &options).await;
    attested(&first, None).await.unwrap();
    let id = SpiffeId::from_path(&first.config.trust_domain, "/spire/agent/join_token/good");
    first.forget(id.unwrap(), Reason::MustReattest).await;
    // One node at a time has the key file.
    drop(first);
    let new = FakeServer::start("example.org").await;
    let insecure = node(new.port, directory.path(), &FixtureOptions::default()).await;
    let fault = attested(&insecure, None).await.unwrap_err();
    assert_eq!(
        fault.code,
        Code::ServerNotTrusted,
        "a stored bundle is not given up for nothing"
    );
    let hint = fault.hint.unwrap();
    assert!(hint.contains("agent-data.json away"), "{hint}");
    drop(insecure);
    let options = FixtureOptions {
        bundle: bundle_of(&new),
        ..FixtureOptions::default()
    };
    let again = node(new.port, directory.path(), &options).await;
    attested(&again, None).await.unwrap();
}

#[tokio::test]
async fn a_wrong_clock_is_named_and_tried_again() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let options = FixtureOptions {
        bundle: Some(server.state.lock().unwrap().bundle.to_pem()),
        ..FixtureOptions::default()
    };
    for (ahead, text) in [
        (true, "ahead of the server's by at least"),
        (false, "behind the server's by at least 1h59m"),
    ] {
        let clock = MovedClock::default();
        let two_hours = Duration::from_secs(7200);
        if ahead {
            clock.advance(two_hours);
        } else {
            clock.set_back(two_hours);
        }
        let node = node_at(server.port, directory.path(), &options, Arc::new(clock)).await;
        let _tasks = Tasks::new();
        let mut shutdown = _tasks.shutdown();
        let Outcome::Later(fault) = attempt(&node, 1, node.clock.now(), &mut shutdown).await else {
            panic!("the clock may be corrected");
        };
        assert_eq!(fault.code, Code::ClocksDiffer);
        let because = fault.because.unwrap();
        assert!(because.contains(text), "{because}");
    }
    assert_eq!(server.calls("AttestAgent"), 0);
}

/// What a node whose identity cannot be used says that has no token, and one that has a used one.
async fn refusals(server: &FakeServer, directory: &Path, clock: MovedClock) -> Vec<Fault> {
    let mut faults = Vec::new();
    for token in [None, Some("used")] {
        let options = FixtureOptions {
            token,
            ..FixtureOptions::default()
        };
        let node = node_at(server.port, directory, &options, Arc::new(clock.clone())).await;
        let Stored::Absent(absence) = node.stored_identity().await.unwrap() else {
            panic!("it has an identity");
        };
        let attested = attested(&node, Some(&absence)).await;
        faults.push(attested.unwrap_err());
    }
    faults
}

#[tokio::test]
async fn a_node_that_lost_its_identity_says_how() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let first = node(server.port, directory.path(), &FixtureOptions::default()).await;
    attested(&first, None).await.unwrap();
    // One node at a time has the key file.
    drop(first);
    let refusals = async |clock| refusals(&server, directory.path(), clock).await;
    let late = MovedClock::default();
    late.advance(Duration::from_secs(3700));
    let expired = refusals(late).await;
    assert_eq!(
        (expired[0].code, expired[1].code),
        (Code::AgentMustReattest, Code::JoinTokenRefused)
    );
    for fault in &expired {
        let because = fault.because.as_deref().unwrap();
        assert!(
            because.contains("/spire/agent/join_token/good expired at"),
            "{because}"
        );
    }
    assert!(
        expired[0]
            .hint
            .as_deref()
            .unwrap()
            .contains("clock is wrong"),
        "{}",
        expired[0]
    );
    // The identity was there all the time: with the right clock the node is itself again.
    let without = FixtureOptions {
        token: None,
        ..FixtureOptions::default()
    };
    let again = node(server.port, directory.path(), &without).await;
    let Stored::Usable(identity) = again.stored_identity().await.unwrap() else {
        panic!("a clock cost the node its identity");
    };
    drop(again);
    std::fs::rename(
        directory.path().join("keys.json"),
        directory.path().join("elsewhere"),
    )
    .unwrap();
    let keyless = refusals(MovedClock::default()).await;
    assert_eq!(keyless[0].code, Code::AgentMustReattest);
    assert!(keyless[0].what.contains("private key"), "{}", keyless[0]);
    for (reason, code, text) in [
        (Reason::MustReattest, Code::AgentMustReattest, "evicted"),
        (Reason::Banned, Code::AgentBanned, "was banned at"),
    ] {
        let removed = node(server.port, directory.path(), &without).await;
        removed.forget(identity.id().clone(), reason).await;
        drop(removed);
        let removed = refusals(MovedClock::default()).await;
        assert_eq!(
            (removed[0].code, removed[1].code),
            (code, Code::JoinTokenRefused)
        );
        for fault in &removed {
            assert!(fault.because.as_deref().unwrap().contains(text), "{fault}");
        }
    }
    // A new token lets the node in, and the past is past.
    server.change(|state| {
        state.tokens.insert("good".into(), TokenState::Good);
    });
    let new = node(server.port, directory.path(), &FixtureOptions::default()).await;
    attested(&new, None).await.unwrap();
    assert_eq!(new.state.removal(), None);
}

#[tokio::test]
async fn no_token_is_used_up_before_all_else_has_worked() {
    let server = FakeServer::start("example.org").await;
    server.fault("GetBundle", Status::unavailable("starting"));
    server.fault("GetBundle", Status::internal("still starting"));
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    // A directory in the place of the file: nothing can be written.
    let file = directory.path().join("agent-data.json");
    std::fs::create_dir(&file).unwrap();
    let fault = attested(&node, None).await.unwrap_err();
    assert_eq!(fault.code, Code::DataDirUnusable);
    assert_eq!(
        (server.calls("GetBundle"), server.calls("AttestAgent")),
        (3, 0)
    );
    std::fs::remove_dir(&file).unwrap();
    attested(&node, None).await.unwrap();
}

#[tokio::test]
async fn an_identity_that_cannot_be_written_is_used_all_the_same() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let file = directory.path().join("agent-data.json");
    server.change(|state| {
        state.when_redeemed = Some(Box::new(move || {
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
        }));
    });
    let attested = attested(&node, None).await.unwrap();
    assert!(attested.unsaved);
    assert!(
        attested
            .identity
            .id()
            .as_str()
            .ends_with("/join_token/good")
    );
}

#[tokio::test]
async fn an_attestation_under_way_is_finished_and_stored_before_the_agent_stops() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let (open, gate) = tokio::sync::watch::channel(false);
    let (redeemed, is_redeemed) = tokio::sync::oneshot::channel();
    server.change(|state| {
        state.attestation_gate = Some(gate);
        state.when_redeemed = Some(Box::new(move || redeemed.send(()).unwrap()));
    });
    let tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let attesting = {
        let node = Arc::clone(&node);
        tokio::spawn(
            async move { attest_node(&node, None, Arc::new(SystemRandom), shutdown).await },
        )
    };
    is_redeemed.await.unwrap();
    tasks.request_shutdown();
    open.send_replace(true);
    let attested = attesting.await.unwrap().unwrap().expect("it is finished");
    assert!(!attested.unsaved);
    assert!(matches!(
        node.stored_identity().await.unwrap(),
        Stored::Usable(_)
    ));
}

#[tokio::test]
async fn an_agent_that_is_stopped_before_it_sent_its_proof_keeps_the_token() {
    let server = FakeServer::start("example.org").await;
    server.fault("GetBundle", Status::unavailable("starting"));
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    tasks.request_shutdown();
    let stopped = attest_node(&node, None, Arc::new(SystemRandom), shutdown).await;
    assert!(stopped.unwrap().is_none());
    assert_eq!(server.calls("AttestAgent"), 0);
    attested(&node, None).await.unwrap();
}

/// A node that attests with [`Repeatable`] and is asked `challenges`.
async fn challenged(challenges: Vec<Vec<u8>>) -> Result<AttestedNode, Fault> {
    let server = FakeServer::start("example.org").await;
    server.change(|state| state.challenges = challenges);
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let mut node = Arc::into_inner(node).unwrap();
    node.attestor = Arc::new(Repeatable);
    attested(&Arc::new(node), None).await
}

#[tokio::test]
async fn challenges_are_answered_within_their_bounds() {
    let attested = challenged(vec![b"abc".to_vec(), b"xyz".to_vec()]).await;
    let identity = attested.unwrap().identity;
    assert!(identity.id().as_str().ends_with("/repeatable/node-1"));
    assert!(identity.svid.reattestable);
    let too_many = challenged(vec![b"a".to_vec(); 20]).await.unwrap_err();
    let too_large = challenged(vec![vec![0; 65 << 10]]).await.unwrap_err();
    for (fault, text) in [(too_many, "too many challenges"), (too_large, "too large")] {
        assert_eq!(fault.code, Code::AttestationDenied);
        let because = fault.because.unwrap();
        assert!(because.contains(text), "{because}");
    }
}

#[tokio::test]
async fn an_attestor_that_cannot_answer_ends_the_attestation() {
    let server = FakeServer::start("example.org").await;
    server.change(|state| state.challenges = vec![b"who are you?".to_vec()]);
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let fault = attested(&node, None).await.unwrap_err();
    assert!(fault.to_string().contains("answers none"), "{fault}");
    assert_eq!(server.calls("AttestAgent"), 1);
}

#[tokio::test]
async fn an_identity_that_was_removed_is_not_stored_again_by_a_renewal_that_was_under_way() {
    let server = FakeServer::start("example.org").await;
    let directory = tempfile::tempdir().unwrap();
    let node = node(server.port, directory.path(), &FixtureOptions::default()).await;
    let identity = attested(&node, None).await.unwrap().identity;
    node.forget(identity.id().clone(), Reason::Banned).await;
    node.store_identity(&identity).await.unwrap_err();
    assert!(node.state.load().unwrap().svid.is_empty());
    assert_eq!(node.state.removal().unwrap().reason, Reason::Banned);
}
