//! A node attestor that asks, over the wire, with every way in which its node can fail it.

use std::time::Duration;

use plugin::node_attestor::server::{AgentAttributes, Budget, Conversation, NodeAttestor};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType};
use spiffe::selector::Selector;
use tonic::Code;

use super::*;
use crate::audit::tests::Recording;
use crate::audit::{EventKind, Outcome};
use crate::testing::{TestServer, attestation, csr, own};

/// Asks for the double of what the node sent first.
#[derive(Debug)]
struct Doubling {
    budget: Budget,
}

#[async_trait]
impl NodeAttestor for Doubling {
    fn name(&self) -> &str {
        "doubling"
    }

    fn budget(&self) -> Budget {
        self.budget
    }

    async fn attest(
        &self,
        conversation: &mut Conversation<'_>,
    ) -> Result<AgentAttributes, PluginError> {
        let wanted = conversation.payload().repeat(2);
        let answer = conversation.challenge(b"double it".to_vec()).await?;
        if *answer.expose() != wanted {
            return Err(PluginError::new(
                "doubling",
                ErrorKind::Denied,
                "failed to attest: the answer is wrong",
            ));
        }
        Ok(AgentAttributes {
            agent_id: SpiffeId::from_path(&own(), "/spire/agent/doubling/node").unwrap(),
            selectors: vec![Selector::new("doubling", "answered").unwrap()],
            can_reattest: true,
        })
    }
}

struct Fixture {
    server: TestServer,
    sink: Arc<Recording>,
}

impl Fixture {
    async fn new(budget: Budget) -> Self {
        let sink = Arc::new(Recording::default());
        let audit = Arc::<Recording>::clone(&sink);
        let server = TestServer::start_in(
            |_| {},
            |environment| {
                environment.audit = Some(audit);
                environment.node_attestors = vec![Arc::new(Doubling { budget })];
            },
        )
        .await;
        Self { server, sink }
    }

    /// Begins to attest; the node's next messages go into the sender.
    async fn begin(
        &self,
    ) -> (
        mpsc::Sender<AttestAgentRequest>,
        Result<Streaming<AttestAgentResponse>, Status>,
    ) {
        let mut client = AgentClient::new(self.server.remote(None).await);
        self.sink.take();
        let (requests, stream) = mpsc::channel(4);
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let mut first = attestation("ab", csr(&key));
        if let Some(attest_agent_request::Step::Params(params)) = &mut first.step {
            params.data.as_mut().unwrap().r#type = "doubling".to_owned();
        }
        requests.send(first).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let answers = client.attest_agent(stream).await;
        (requests, answers.map(tonic::Response::into_inner))
    }

    /// Attests with this answer to the challenge.
    async fn answer(
        &self,
        step: attest_agent_request::Step,
    ) -> Result<attest_agent_response::Result, Status> {
        let (requests, answers) = self.begin().await;
        let mut answers = answers.unwrap();
        let challenge = answers.message().await.unwrap().unwrap().step.unwrap();
        assert_eq!(challenge, Step::Challenge(b"double it".to_vec()));
        requests
            .send(AttestAgentRequest { step: Some(step) })
            .await
            .unwrap();
        match answers.message().await?.unwrap().step.unwrap() {
            Step::Result(result) => {
                // The end of the stream, with which the call is recorded.
                assert!(answers.message().await?.is_none());
                Ok(result)
            }
            Step::Challenge(_) => panic!("asked twice"),
        }
    }

    /// How the one call ended that was recorded since the last time.
    fn outcome(&self) -> Outcome {
        let mut outcomes = self
            .sink
            .take()
            .into_iter()
            .filter_map(|event| match event.kind {
                EventKind::Call { outcome, .. } => Some(outcome),
                EventKind::Document { .. } => None,
            });
        let outcome = outcomes.next().unwrap();
        assert_eq!(outcomes.next(), None);
        outcome
    }

    async fn refused(&self, step: attest_agent_request::Step) -> Status {
        let refused = self.answer(step).await.unwrap_err();
        assert_eq!(self.outcome(), Outcome::from(&refused));
        assert_eq!(self.server.registry.agent_count(&Default::default()), 0);
        refused
    }
}

fn response(answer: &[u8]) -> attest_agent_request::Step {
    attest_agent_request::Step::ChallengeResponse(answer.to_vec())
}

#[tokio::test]
async fn a_node_that_answers_the_challenge_is_attested() {
    let fixture = Fixture::new(Budget::default()).await;
    let joined = fixture.answer(response(b"abab")).await.unwrap();
    assert!(joined.reattestable);
    let id = SpiffeId::from_path(&own(), "/spire/agent/doubling/node").unwrap();
    let agent = fixture.server.registry.agent(&id).unwrap();
    assert_eq!(agent.attestation_type, "doubling");
    assert!(agent.can_reattest);
    assert_eq!(fixture.outcome(), Outcome::Success);
}

#[tokio::test]
async fn a_wrong_answer_is_denied() {
    let fixture = Fixture::new(Budget::default()).await;
    let refused = fixture.refused(response(b"ab")).await;
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::PermissionDenied,
            "failed to attest: the answer is wrong"
        )
    );
}

#[tokio::test]
async fn something_other_than_an_answer_is_refused() {
    let fixture = Fixture::new(Budget::default()).await;
    let again = attest_agent_request::Step::Params(attest_agent_request::Params::default());
    let refused = fixture.refused(again).await;
    assert_eq!(refused.message(), "expected a challenge response");
}

#[tokio::test]
async fn more_bytes_than_the_budget_are_refused() {
    let fixture = Fixture::new(Budget {
        bytes: 100,
        ..Budget::default()
    })
    .await;
    let refused = fixture.refused(response(&[b'a'; 101])).await;
    assert!(refused.message().contains("bytes"), "{refused}");
}

#[tokio::test]
async fn a_node_that_never_answers_is_refused_when_its_time_is_over() {
    let fixture = Fixture::new(Budget {
        time: Duration::from_millis(20),
        ..Budget::default()
    })
    .await;
    let (_requests, answers) = fixture.begin().await;
    let mut answers = answers.unwrap();
    answers.message().await.unwrap().unwrap();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("time"), "{refused}");
    assert_eq!(fixture.outcome(), Outcome::from(&refused));
}

#[tokio::test]
async fn a_question_that_may_not_be_asked_is_refused_before_the_node_hears_it() {
    let fixture = Fixture::new(Budget {
        challenges: 0,
        ..Budget::default()
    })
    .await;
    let (_requests, answers) = fixture.begin().await;
    let refused = answers.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(fixture.outcome(), Outcome::from(&refused));
}

#[tokio::test]
async fn a_node_that_leaves_in_between_leaves_one_event() {
    let fixture = Fixture::new(Budget::default()).await;
    let (requests, answers) = fixture.begin().await;
    let mut answers = answers.unwrap();
    answers.message().await.unwrap().unwrap();
    drop((requests, answers));
    let mut outcomes = Vec::new();
    while outcomes.is_empty() {
        tokio::task::yield_now().await;
        outcomes = fixture.sink.take();
    }
    assert!(
        matches!(
            &outcomes[..],
            [event] if matches!(&event.kind, EventKind::Call { outcome, .. } if outcome.is_error())
        ),
        "{outcomes:?}"
    );
}
