//! What becomes of a workload whose attestors fail, hang or say something else while it is served.

use std::sync::Mutex;

use async_trait::async_trait;
use plugin::workload_attestor::{Attested, Peer, WorkloadAttestor};
use plugin::{Error, ErrorKind};
use spiffe::selector::Selector;

use super::*;

/// What the attestor does from now on.
#[derive(Debug, Clone, Copy)]
enum Behavior {
    Says(&'static [&'static str]),
    Fails,
    Hangs,
    Refuses,
}

/// An attestor whose behavior a test sets.
#[derive(Debug, Clone)]
struct ScriptedAttestor(Arc<Mutex<Behavior>>);

impl ScriptedAttestor {
    fn new(behavior: Behavior) -> Self {
        Self(Arc::new(Mutex::new(behavior)))
    }

    fn now(&self, behavior: Behavior) {
        *self.0.lock().unwrap() = behavior;
    }
}

#[async_trait]
impl WorkloadAttestor for ScriptedAttestor {
    fn name(&self) -> &str {
        "k8s"
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(20)
    }

    async fn attest(&self, _peer: &Peer) -> Result<Attested, Error> {
        let behavior = *self.0.lock().unwrap();
        match behavior {
            Behavior::Says(texts) => Ok(texts
                .iter()
                .map(|text| Selector::parse(text).unwrap())
                .collect::<Vec<_>>()
                .into()),
            Behavior::Fails => Err(Error::new("k8s", ErrorKind::Transient, "kubelet is away")),
            Behavior::Hangs => std::future::pending().await,
            Behavior::Refuses => Err(Error::new("k8s", ErrorKind::Denied, "not who connected")),
        }
    }
}

const POD: &[&str] = &["k8s:ns:shop", "k8s:pod:web"];

/// A workload with one entry, which an attestor besides `unix` makes it match.
async fn fixture(attestor: &ScriptedAttestor) -> (Fixture, Arc<Entry>) {
    let f = start(FixtureOptions {
        attestor: Some(Arc::new(attestor.clone())),
        ..FixtureOptions::default()
    })
    .await;
    let made = entry("a", "/a", &["k8s:ns:shop", "k8s:pod:web"]);
    f.context.gate.cache.apply(Delta {
        entries: vec![Arc::clone(&made)],
        ..Delta::default()
    });
    (f, made)
}

async fn fetch(f: &Fixture) -> Result<Streaming<proto::workload::X509svidResponse>, Status> {
    let mut client = f.client().await;
    let answer = client.fetch_x509svid(request(X509svidRequest {})).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn a_running_workload_is_served_on_while_an_attestor_fails_or_hangs() {
    let attestor = ScriptedAttestor::new(Behavior::Says(POD));
    let (f, entry) = fixture(&attestor).await;
    f.issue(&entry);
    let mut stream = fetch(&f).await.unwrap();
    next(&mut stream).await.unwrap();
    for behavior in [Behavior::Fails, Behavior::Hangs, Behavior::Says(POD)] {
        attestor.now(behavior);
        f.issue(&entry);
        let update = next(&mut stream).await.unwrap();
        assert_eq!(update.svids[0].spiffe_id, entry.spiffe_id.to_string());
    }
}

#[tokio::test]
async fn a_running_workload_that_an_attestor_no_longer_knows_is_refused() {
    let attestor = ScriptedAttestor::new(Behavior::Says(POD));
    let (f, entry) = fixture(&attestor).await;
    f.issue(&entry);
    for behavior in [
        Behavior::Says(&["k8s:ns:other"]),
        Behavior::Says(&[]),
        Behavior::Refuses,
    ] {
        attestor.now(Behavior::Says(POD));
        let mut stream = fetch(&f).await.unwrap();
        next(&mut stream).await.unwrap();
        attestor.now(behavior);
        f.issue(&entry);
        let refused = next(&mut stream).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().starts_with("no identity issued"));
    }
}

#[tokio::test]
async fn a_new_workload_is_not_refused_for_what_an_attestor_could_not_say() {
    let attestor = ScriptedAttestor::new(Behavior::Fails);
    let (f, entry) = fixture(&attestor).await;
    f.issue(&entry);
    // What it does say counts.
    attestor.now(Behavior::Says(&["k8s:ns:other"]));
    assert_eq!(fetch(&f).await.unwrap_err().code(), Code::PermissionDenied);
    for behavior in [Behavior::Fails, Behavior::Hangs] {
        attestor.now(behavior);
        let mut client = f.client().await;
        let jwt = JwtsvidRequest {
            audience: vec!["x".into()],
            spiffe_id: String::new(),
        };
        for status in [
            fetch(&f).await.err(),
            client.fetch_jwtsvid(request(jwt)).await.err(),
            client
                .fetch_x509_bundles(request(X509BundlesRequest {}))
                .await
                .err(),
        ] {
            let status = status.unwrap();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(status.message().contains("k8s"), "{status}");
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "PLA-1334");
            let record = f.context.gate.requests.find(&info.metadata["request"]);
            let record = record.unwrap();
            assert_eq!(record.outcome, Outcome::Incomplete);
            assert_eq!(record.incomplete[0].attestor, "k8s");
        }
    }
}

#[tokio::test]
async fn what_is_known_of_a_new_workload_is_enough_when_it_matches() {
    let attestor = ScriptedAttestor::new(Behavior::Fails);
    let (f, _) = fixture(&attestor).await;
    let own = f.entry("b", "/b");
    f.issue(&own);
    let mut stream = fetch(&f).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.svids.len(), 1);
    assert_eq!(first.svids[0].spiffe_id, own.spiffe_id.to_string());
}

#[tokio::test]
async fn a_workload_that_had_to_wait_is_looked_at_again_before_its_first_svid() {
    let attestor = ScriptedAttestor::new(Behavior::Says(POD));
    let (f, entry) = fixture(&attestor).await;
    let mut client = f.client().await;
    // Nothing is issued yet: the call waits.
    let waiting =
        tokio::spawn(async move { client.fetch_x509svid(request(X509svidRequest {})).await });
    while f.context.gate.cache.take_wanted(10).is_empty() {
        tokio::task::yield_now().await;
    }
    attestor.now(Behavior::Says(&["k8s:ns:other"]));
    f.issue(&entry);
    let refused = tokio::time::timeout(LONG, waiting)
        .await
        .expect("in time")
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
