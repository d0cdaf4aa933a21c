use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::cache::Snapshot;
use crate::cache::svids::IssuedSvid;
use crate::server_client::issued::facts_of;
use crate::testing::{Authority, bundle, entry, id, trust_domain};
use spiffe::clock::{Clock as _, SystemClock};
use spiffe::key::{KeyPair, KeyType};
use spiffe::secret::Secret;

fn directory() -> (tempfile::TempDir, StateDir) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("data")).unwrap();
    (directory, state)
}

fn data() -> AgentData {
    let authority = Authority::new(&trust_domain());
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let leaf = authority.issue(
        &id("/spire/agent/join_token/t"),
        key.public_key(),
        Duration::from_secs(60),
    );
    AgentData {
        svid: vec![leaf],
        bundle: vec![authority.certificate],
        reattestable: true,
        ..AgentData::default()
    }
}

fn svid(life: Duration) -> (IssuedSvid, Authority) {
    let authority = Authority::new(&trust_domain());
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let leaf = authority.issue(&id("/web"), key.public_key(), life);
    let facts = facts_of(std::slice::from_ref(&leaf)).unwrap();
    let svid = IssuedSvid {
        entry_id: "e1".into(),
        revision: 3,
        spiffe_id: id("/web"),
        chain: vec![Arc::from(leaf.der())],
        key: Arc::new(Secret::new(key.to_pkcs8_der().unwrap().expose().clone())),
        not_before: facts.not_before,
        not_after: facts.not_after,
        issuers: facts.issuers,
    };
    (svid, authority)
}

fn kept(svids: Vec<IssuedSvid>) -> Snapshot {
    Snapshot {
        entries: vec![entry("e1", "/web", &["unix:uid:1"])],
        bundles: vec![Arc::new(bundle("example.org"))],
        svids,
    }
}

fn now() -> SystemTime {
    SystemClock.now()
}

#[test]
fn what_is_stored_is_read_again_and_for_the_owner_alone() {
    let (_keep, state) = directory();
    let stored = data();
    state.store(&stored).unwrap();
    let read = state.load().unwrap();
    assert_eq!(read.svid[0].der(), stored.svid[0].der());
    assert_eq!(read.bundle[0].der(), stored.bundle[0].der());
    assert!(read.reattestable);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&state.file(AGENT_DATA)), mode(&state.0)),
        (0o600, 0o700)
    );
    assert_eq!(
        fs::read_dir(&state.0).unwrap().count(),
        1,
        "no temporary file stays"
    );
}

#[test]
fn the_file_has_spires_shape() {
    let (_keep, state) = directory();
    state.store(&data()).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(state.file(AGENT_DATA)).unwrap()).unwrap();
    let mut keys: Vec<_> = json
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "bootstrap_start_time",
            "bootstrap_use",
            "bundle",
            "connection_attempts",
            "reattestable",
            "svid"
        ]
    );
    let pem = BASE64.decode(json["svid"][0].as_str().unwrap()).unwrap();
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    assert_eq!(json["bootstrap_start_time"], "0001-01-01T00:00:00Z");
}

#[test]
fn spires_bookkeeping_is_kept() {
    let (_keep, state) = directory();
    let text = r#"{"svid":null,"bundle":null,"reattestable":false,"bootstrap_use":2,"bootstrap_start_time":"2026-11-22T05:00:00.5Z","connection_attempts":7}"#;
    fs::write(state.file(AGENT_DATA), text).unwrap();
    let read = state.load().unwrap();
    state.store(&read).unwrap();
    assert_eq!(fs::read_to_string(state.file(AGENT_DATA)).unwrap(), text);
}

#[test]
fn nothing_stored_is_empty() {
    let (_keep, state) = directory();
    assert!(state.load().unwrap().svid.is_empty());
}

#[test]
fn damaged_state_is_a_fault_that_names_the_file() {
    let (_keep, state) = directory();
    for text in [
        "",
        "{",
        r#"{"svid":["%%%"]}"#,
        r#"{"svid":["AAAA"]}"#,
        r#"{"svid":[7]}"#,
        r#"{"bundle":"x"}"#,
    ] {
        fs::write(state.file(AGENT_DATA), text).unwrap();
        let outcome = state.load();
        if text == r#"{"svid":["AAAA"]}"# {
            // Not PEM: either refused or without a certificate, never taken for one.
            assert!(outcome.is_err() || outcome.unwrap().svid.is_empty());
            continue;
        }
        let fault = outcome.unwrap_err();
        assert_eq!(fault.code, Code::AgentDataInvalid, "{text}");
        assert!(fault.to_string().contains("agent-data.json"), "{fault}");
    }
}

#[test]
fn a_data_dir_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(
        StateDir::open(file.path()).unwrap_err().code,
        Code::DataDirUnusable
    );
}

#[test]
fn forgetting_keeps_the_bundle_only() {
    let (_keep, state) = directory();
    state.store(&data()).unwrap();
    last_good::store(
        &state,
        &id("/spire/agent/join_token/t"),
        &kept(Vec::new()),
        None,
    )
    .unwrap();
    state.forget_identity().unwrap();
    let read = state.load().unwrap();
    assert!(read.svid.is_empty() && !read.reattestable && read.bundle.len() == 1);
    assert_eq!(fs::read_dir(&state.0).unwrap().count(), 1);
}

#[test]
fn last_good_state_comes_back_for_the_same_node() {
    let (_keep, state) = directory();
    let agent = id("/spire/agent/join_token/t");
    let (svid, _) = svid(Duration::from_secs(60));
    last_good::store(&state, &agent, &kept(vec![svid.clone()]), None).unwrap();
    let read = last_good::load(&state, &agent, now());
    assert_eq!(
        (read.entries.len(), read.bundles.len(), read.svids.len()),
        (1, 1, 1)
    );
    assert_eq!(read.svids[0].chain, svid.chain);
    assert_eq!(read.svids[0].key.expose(), svid.key.expose());
    assert_eq!(read.svids[0].revision, 3);
    assert_eq!(*read.bundles[0], bundle("example.org"));
    let mode = fs::metadata(state.file("plastron-last-good.json"))
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn last_good_state_of_another_node_is_ignored() {
    let (_keep, state) = directory();
    last_good::store(
        &state,
        &id("/spire/agent/join_token/t"),
        &kept(Vec::new()),
        None,
    )
    .unwrap();
    assert!(
        last_good::load(&state, &id("/spire/agent/join_token/u"), now())
            .entries
            .is_empty()
    );
}

#[test]
fn expired_mismatched_and_orphaned_svids_are_left_out() {
    let (_keep, state) = directory();
    let agent = id("/spire/agent/join_token/t");
    let (good, _) = svid(Duration::from_secs(60));
    let (other, _) = svid(Duration::from_secs(60));
    let mut wrong_key = good.clone();
    wrong_key.key = Arc::clone(&other.key);
    let mut wrong_id = good.clone();
    wrong_id.spiffe_id = id("/admin");
    let mut orphan = good.clone();
    orphan.entry_id = "e2".into();
    let mut no_chain = good.clone();
    no_chain.chain.clear();
    let mut bad_key = good.clone();
    bad_key.key = Arc::new(Secret::new(vec![1, 2, 3]));
    last_good::store(
        &state,
        &agent,
        &kept(vec![wrong_key, wrong_id, orphan, no_chain, bad_key]),
        None,
    )
    .unwrap();
    assert!(last_good::load(&state, &agent, now()).svids.is_empty());
    last_good::store(&state, &agent, &kept(vec![good]), None).unwrap();
    assert!(
        last_good::load(&state, &agent, now() + Duration::from_secs(61))
            .svids
            .is_empty()
    );
    assert_eq!(last_good::load(&state, &agent, now()).svids.len(), 1);
}

#[test]
fn damaged_last_good_state_is_ignored() {
    let (_keep, state) = directory();
    for text in ["", "{", "{}", r#"{"version":9}"#] {
        fs::write(state.file("plastron-last-good.json"), text).unwrap();
        assert!(
            last_good::load(&state, &id("/spire/agent/join_token/t"), now())
                .entries
                .is_empty(),
            "{text}"
        );
    }
}

#[test]
fn keys_of_an_earlier_version_are_removed_from_the_stored_state() {
    let (_keep, state) = directory();
    let agent = id("/spire/agent/join_token/t");
    let (svid, _) = svid(Duration::from_secs(60));
    let key = BASE64.encode(svid.key.expose());
    let path = state.file("plastron-last-good.json");
    last_good::store(&state, &agent, &kept(vec![svid]), None).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains(&key));
    last_good::remove_keys(&state).unwrap();
    assert!(!fs::read_to_string(&path).unwrap().contains(&key));
    let read = last_good::load(&state, &agent, now());
    assert_eq!((read.entries.len(), read.svids.len()), (1, 0));
    // What cannot be read may hold keys too.
    for text in [
        format!("{{\"key\":\"{key}\""),
        format!("{{\"version\":9,\"key\":\"{key}\"}}"),
    ] {
        fs::write(&path, text).unwrap();
        last_good::remove_keys(&state).unwrap();
        assert!(!path.exists());
    }
    last_good::remove_keys(&state).unwrap();
}

#[test]
fn the_same_state_is_not_written_twice() {
    let (_keep, state) = directory();
    let agent = id("/spire/agent/join_token/t");
    let path = state.file("plastron-last-good.json");
    let digest = last_good::store(&state, &agent, &kept(Vec::new()), None).unwrap();
    fs::remove_file(&path).unwrap();
    let again = last_good::store(&state, &agent, &kept(Vec::new()), Some(digest)).unwrap();
    assert!(again == digest && !path.exists());
    let (svid, _) = svid(Duration::from_secs(60));
    let other = last_good::store(&state, &agent, &kept(vec![svid]), Some(digest)).unwrap();
    assert!(other != digest && path.exists());
}
