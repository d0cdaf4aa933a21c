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
    Workload::new(Arc::new(Peer::of_process(pid, uid, 0).unwrap()))
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
