use async_trait::async_trait;
use plugin::{Error, ErrorKind};
use tokio::net::UnixStream;

use super::*;
use crate::testing::selectors;

#[derive(Debug)]
enum Fake {
    Says(&'static str),
    Fails,
    Hangs,
}

#[async_trait]
impl WorkloadAttestor for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    async fn attest(&self, _peer: &Peer) -> Result<Vec<Selector>, Error> {
        match self {
            Self::Says(text) => Ok(vec![Selector::parse(text).unwrap()]),
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

fn this_process() -> Peer {
    let (one, other) = UnixStream::pair().unwrap();
    let peer = Peer::from_unix_stream(&one).unwrap();
    drop(other);
    peer
}

#[tokio::test(start_paused = true)]
async fn attestors_that_fail_or_hang_are_left_out() {
    let all = attestors(vec![
        Fake::Says("a:1"),
        Fake::Fails,
        Fake::Hangs,
        Fake::Says("b:2"),
    ]);
    assert_eq!(
        all.attest(&this_process()).await.unwrap(),
        selectors(&["a:1", "b:2"])
    );
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_there_is_no_identity() {
    for fakes in [
        vec![Fake::Fails],
        vec![Fake::Hangs],
        vec![Fake::Fails, Fake::Hangs],
    ] {
        assert!(matches!(
            attestors(fakes).attest(&this_process()).await,
            Err(AttestError::Failed)
        ));
    }
}
