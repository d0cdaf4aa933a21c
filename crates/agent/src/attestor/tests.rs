use async_trait::async_trait;
use plugin::{Error, ErrorKind};
use tokio::net::UnixStream;

use super::*;
use crate::testing::selectors;

#[derive(Debug)]
enum Fake {
    Says(&'static str),
    Half(&'static str),
    Fails,
    Refuses(ErrorKind),
    Hangs,
}

#[async_trait]
impl WorkloadAttestor for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    async fn attest(&self, _peer: &Peer) -> Result<Attested, Error> {
        match self {
            Self::Says(text) => Ok(vec![Selector::parse(text).unwrap()].into()),
            Self::Half(text) => Ok(Attested {
                selectors: vec![Selector::parse(text).unwrap()],
                incomplete: Some(Error::new("fake", ErrorKind::Transient, "half")),
            }),
            Self::Refuses(kind) => Err(Error::new("fake", *kind, "refused")),
            Self::Fails => Err(Error::new("fake", ErrorKind::Transient, "away")),
            Self::Hangs => std::future::pending().await,
        }
    }
}

fn attestors(fakes: Vec<Fake>) -> Attestors {
    Attestors::new(
        fakes
            .into_iter()
            .map(|fake| Arc::new(fake) as Arc<dyn WorkloadAttestor>)
            .collect(),
    )
}

fn this_process() -> Workload {
    let (one, other) = UnixStream::pair().unwrap();
    let peer = Peer::from_unix_stream(&one).unwrap();
    drop(other);
    Workload::new(Arc::new(peer))
}

/// This process, as one of this user.
fn process_of(uid: u32) -> Workload {
    let pid = i32::try_from(std::process::id()).unwrap();
    Workload::new(Arc::new(Peer::of_process_as(pid, uid, 0).unwrap()))
}

async fn attest(fakes: Vec<Fake>) -> Result<Arc<Attestation>, AttestError> {
    attestors(fakes).attest(&this_process()).await
}

#[tokio::test(start_paused = true)]
async fn what_failing_attestors_lack_is_said_beside_what_the_others_know() {
    let attestation = attest(vec![
        Fake::Says("a:1"),
        Fake::Fails,
        Fake::Hangs,
        Fake::Half("b:2"),
    ])
    .await
    .unwrap();
    assert_eq!(attestation.selectors, selectors(&["a:1", "b:2"]));
    let why: Vec<_> = attestation
        .incomplete
        .iter()
        .map(|incomplete| incomplete.fault.to_string())
        .collect();
    assert_eq!(why.len(), 3);
    assert!(why[0].contains("away"), "{why:?}");
    assert!(why[1].contains("within 5 s"), "{why:?}");
    assert!(why[2].contains("half"), "{why:?}");
}

#[tokio::test(start_paused = true)]
async fn attestors_that_all_fail_make_an_incomplete_attestation_and_no_verdict() {
    for fakes in [
        vec![Fake::Fails],
        vec![Fake::Hangs],
        vec![Fake::Fails, Fake::Hangs],
    ] {
        let count = fakes.len();
        let attestation = attest(fakes).await.unwrap();
        assert!(attestation.selectors.is_empty());
        assert_eq!(attestation.incomplete.len(), count);
    }
}

#[tokio::test]
async fn a_process_that_is_not_who_connected_is_refused_whatever_others_say() {
    for (kind, refused) in [
        (ErrorKind::Gone, AttestError::Gone),
        (ErrorKind::Denied, AttestError::Denied),
    ] {
        let outcome = attest(vec![Fake::Says("a:1"), Fake::Refuses(kind)]).await;
        assert_eq!(outcome.unwrap_err(), refused);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_of_one_process_are_one_attestation_for_a_moment() {
    #[derive(Debug, Default)]
    struct Counting(std::sync::atomic::AtomicUsize);
    #[async_trait]
    impl WorkloadAttestor for Counting {
        fn name(&self) -> &str {
            "counting"
        }
        async fn attest(&self, _peer: &Peer) -> Result<Attested, Error> {
            let count = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(vec![Selector::parse(&format!("counting:{count}")).unwrap()].into())
        }
    }
    let attestors = Attestors::new(vec![Arc::new(Counting::default())]);
    let workload = this_process();
    let all = join_all((0..1000).map(|_| attestors.attest(&workload))).await;
    let first = selectors(&["counting:0"]);
    assert!(all.into_iter().all(|one| one.unwrap().selectors == first));
    tokio::time::advance(FRESH).await;
    let later = attestors.attest(&workload).await.unwrap();
    assert_eq!(later.selectors, selectors(&["counting:1"]));
}

/// Counts those it looks at, who stay for a while.
#[derive(Debug, Default)]
struct Busy {
    now: std::sync::atomic::AtomicUsize,
    most: std::sync::atomic::AtomicUsize,
}

#[async_trait]
impl WorkloadAttestor for Busy {
    fn name(&self) -> &str {
        "busy"
    }

    fn concurrency(&self) -> usize {
        8
    }

    async fn attest(&self, _peer: &Peer) -> Result<Attested, Error> {
        use std::sync::atomic::Ordering::Relaxed;
        let now = self.now.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.now.fetch_sub(1, Relaxed);
        Ok(Attested::default())
    }
}

/// How many an attestor with 8 turns looks at at the same time when 20 processes of each of these users call.
async fn most_at_once(users: std::ops::Range<u32>) -> usize {
    let busy = Arc::new(Busy::default());
    let attestors = Attestors::new(vec![Arc::<Busy>::clone(&busy)]);
    let workloads: Vec<_> = users
        .flat_map(|user| std::iter::repeat_n(user, 20))
        .map(process_of)
        .collect();
    let all = join_all(workloads.iter().map(|one| attestors.attest(one))).await;
    assert!(
        all.into_iter()
            .all(|one| one.unwrap().incomplete.is_empty())
    );
    busy.most.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn an_attestor_looks_at_no_more_callers_at_once_than_it_says() {
    assert_eq!(most_at_once(0..6).await, 8);
}

#[tokio::test(start_paused = true)]
async fn one_user_takes_no_more_than_its_part_of_an_attestors_turns() {
    assert_eq!(most_at_once(0..1).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_user_whose_processes_are_never_done_stops_no_other_users_attestation() {
    /// Is never done with user 1.
    #[derive(Debug)]
    struct Stuck;
    #[async_trait]
    impl WorkloadAttestor for Stuck {
        fn name(&self) -> &str {
            "stuck"
        }
        async fn attest(&self, peer: &Peer) -> Result<Attested, Error> {
            if peer.uid == 1 {
                std::future::pending::<()>().await;
            }
            Ok(Attested::default())
        }
    }
    let attestors = Attestors::new(vec![Arc::new(Stuck)]);
    let slow: Vec<_> = (0..300).map(|_| process_of(1)).collect();
    let slow = join_all(slow.iter().map(|one| attestors.attest(one)));
    let other = process_of(2);
    tokio::select! {
        biased;
        _ = slow => panic!("they are never done before their deadline"),
        other = attestors.attest(&other) => assert!(other.unwrap().incomplete.is_empty()),
    }
}

/// Hangs for as long as it is said, and knows pods.
#[derive(Debug, Default)]
struct Kubelet {
    hangs: std::sync::atomic::AtomicBool,
    asked: std::sync::atomic::AtomicUsize,
}

const POD: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

impl Kubelet {
    fn hangs(&self, hangs: bool) {
        self.hangs
            .store(hangs, std::sync::atomic::Ordering::Relaxed);
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn answer(&self, text: &str) -> Result<Attested, Error> {
        self.asked
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.hangs.load(std::sync::atomic::Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(vec![Selector::parse(text).unwrap()].into())
    }
}

#[async_trait]
impl WorkloadAttestor for Kubelet {
    fn name(&self) -> &str {
        "k8s"
    }

    async fn attest(&self, _peer: &Peer) -> Result<Attested, Error> {
        self.answer("k8s:ns:of-a-process").await
    }

    async fn attest_reference(&self, reference: &prost_types::Any) -> Result<Attested, Error> {
        assert_eq!(reference.type_url, POD);
        self.answer("k8s:ns:of-a-pod").await
    }
}

#[tokio::test(start_paused = true)]
async fn an_attestor_that_hangs_is_skipped_named_and_asked_again_later() {
    let kubelet = Arc::new(Kubelet::default());
    let attestors = Attestors::new(vec![
        Arc::<Kubelet>::clone(&kubelet),
        Arc::new(Fake::Says("a:1")),
    ])
    .always_fresh();
    let workload = this_process();
    kubelet.hangs(true);
    for _ in 0..3 {
        attestors.attest(&workload).await.unwrap();
    }
    assert_eq!(kubelet.asked(), 3);
    let began = Instant::now();
    for _ in 0..100 {
        let skipping = attestors.attest(&workload).await.unwrap();
        assert_eq!(skipping.selectors, selectors(&["a:1"]));
        let [incomplete] = &*skipping.incomplete else {
            panic!("{skipping:?}");
        };
        assert_eq!(incomplete.attestor, "k8s");
        assert!(incomplete.fault.to_string().contains("is skipped"));
    }
    // Nobody waited, and nobody asked.
    assert_eq!((began.elapsed(), kubelet.asked()), (Duration::ZERO, 3));
    kubelet.hangs(false);
    tokio::time::advance(Duration::from_secs(5)).await;
    let again = attestors.attest(&workload).await.unwrap();
    assert_eq!(again.selectors, selectors(&["a:1", "k8s:ns:of-a-process"]));
    assert!(again.incomplete.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waited_only_for_a_turn_does_not_count_against_an_attestor() {
    let kubelet = Arc::new(Kubelet::default());
    let attestors = Attestors::new(vec![Arc::<Kubelet>::clone(&kubelet)]);
    kubelet.hangs(true);
    // A user has 64 turns, all of which are taken.
    let limited = &attestors.all[0];
    let mut turns = Vec::new();
    for _ in 0..64 {
        turns.push(limited.turns.take(1).await.unwrap());
    }
    let waiting: Vec<_> = (0..10).map(|_| process_of(1)).collect();
    let all = join_all(waiting.iter().map(|one| attestors.attest(one))).await;
    assert!(
        all.into_iter()
            .all(|one| one.unwrap().incomplete[0].fault.what.contains("in time"))
    );
    assert_eq!(kubelet.asked(), 0);
    drop(turns);
    kubelet.hangs(false);
    let attestation = attestors.attest(&process_of(1)).await.unwrap();
    assert!(attestation.incomplete.is_empty());
}

fn this_process_named() -> Referenced {
    let pid = i32::try_from(std::process::id()).unwrap();
    Referenced::Process(Peer::of_process(pid).unwrap())
}

fn pod() -> Referenced {
    Referenced::Object(prost_types::Any {
        type_url: POD.into(),
        value: Vec::new(),
    })
}

#[tokio::test]
async fn ba_11_a_process_that_is_named_has_its_own_selectors_from_all_attestors() {
    let unix = plugin::builtin::workload_attestor::UnixAttestor::new(
        plugin::builtin::workload_attestor::UnixConfig::default(),
        Arc::new(spiffe::clock::SystemClock),
    );
    let attestors = Attestors::new(vec![Arc::new(unix), Arc::new(Kubelet::default())]);
    let attestation = attestors
        .attest_reference(&this_process_named())
        .await
        .unwrap();
    let uid = format!("unix:uid:{}", nix::unistd::geteuid());
    let own = selectors(&[&uid, "k8s:ns:of-a-process"]);
    assert!(own.is_subset_of(&attestation.selectors));
    assert!(attestation.incomplete.is_empty());
}

#[tokio::test]
async fn ba_14_a_process_that_was_named_and_ended_is_attested_no_more() {
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let named = Referenced::Process(Peer::of_process(pid).unwrap());
    let attestors = attestors(vec![Fake::Says("a:1")]);
    attestors.attest_reference(&named).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let refused = attestors.attest_reference(&named).await.unwrap_err();
    assert!(
        matches!(refused, ReferenceError::Process(PeerError::Gone { .. })),
        "{refused}"
    );
}

#[tokio::test]
async fn an_object_is_attested_by_those_who_know_its_type_alone() {
    let attestors = Attestors::new(vec![
        Arc::new(Fake::Says("a:1")),
        Arc::new(Kubelet::default()),
    ]);
    let attestation = attestors.attest_reference(&pod()).await.unwrap();
    assert_eq!(attestation.selectors, selectors(&["k8s:ns:of-a-pod"]));
    assert!(attestation.incomplete.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_attestor_hangs_is_attested_incompletely() {
    let kubelet = Kubelet::default();
    kubelet.hangs(true);
    let attestors = Attestors::new(vec![Arc::new(Fake::Says("a:1")), Arc::new(kubelet)]);
    let attestation = attestors.attest_reference(&pod()).await.unwrap();
    assert!(attestation.selectors.is_empty());
    assert_eq!(attestation.incomplete[0].attestor, "k8s");
}

#[tokio::test]
async fn ba_03_a_reference_that_no_attestor_knows_is_refused_by_its_type() {
    for fakes in [vec![], vec![Fake::Says("a:1"), Fake::Fails]] {
        let refused = attestors(fakes).attest_reference(&pod()).await.unwrap_err();
        assert!(matches!(&refused, ReferenceError::NotSupported(_)));
        assert!(refused.to_string().ends_with(POD), "{refused}");
    }
}

fn incomplete(now: &[&str], attestors: &[&str]) -> Attestation {
    Attestation {
        selectors: selectors(now),
        incomplete: attestors
            .iter()
            .map(|attestor| Incomplete {
                attestor: (*attestor).to_owned(),
                fault: Fault::new(Code::PluginUnavailable, "away"),
            })
            .collect(),
    }
}

#[test]
fn what_an_attestor_cannot_say_now_is_what_it_said_before() {
    let before = selectors(&["unix:uid:1", "k8s:ns:a", "k8s:pod:b"]);
    let now = incomplete(&["unix:uid:1"], &["k8s"]);
    assert_eq!(now.completed_from(&before), before);
    let half = incomplete(&["unix:uid:1", "k8s:ns:a"], &["k8s"]);
    assert_eq!(half.completed_from(&before), before);
}

#[test]
fn what_an_attestor_does_say_now_is_not_overruled_by_what_it_said_before() {
    let before = selectors(&["unix:uid:1", "unix:path:/a", "k8s:ns:a"]);
    // A complete answer counts as it is.
    let complete = incomplete(&["unix:uid:1"], &[]);
    assert_eq!(complete.completed_from(&before), selectors(&["unix:uid:1"]));
    // Another program: what was true of the former one is not true of this one.
    let other = incomplete(&["unix:uid:1", "unix:path:/b"], &["unix"]);
    assert_eq!(
        other.completed_from(&before),
        selectors(&["unix:uid:1", "unix:path:/b"])
    );
}
