//! What a conversation may cost.

use super::*;

/// Asks until it is stopped, or checks until it is stopped.
#[derive(Debug)]
enum Greedy {
    Asks,
    Checks,
    Waits,
    Accepts,
}

#[async_trait]
impl NodeAttestor for Greedy {
    fn name(&self) -> &str {
        "greedy"
    }

    async fn attest(&self, conversation: &mut Conversation<'_>) -> Result<AgentAttributes, Error> {
        match self {
            Self::Asks => loop {
                conversation.challenge(b"more?".to_vec()).await?;
            },
            Self::Checks => loop {
                conversation.pay_for_check()?;
            },
            Self::Waits => std::future::pending().await,
            Self::Accepts => {
                let answer = conversation
                    .challenge(conversation.payload().to_vec())
                    .await?;
                assert_eq!(answer.expose().as_slice(), b"answer to who");
                Ok(AgentAttributes {
                    agent_id: "spiffe://example.org/spire/agent/greedy/1".parse().unwrap(),
                    selectors: Vec::new(),
                    can_reattest: true,
                })
            }
        }
    }
}

/// Answers with so many bytes, or with the challenge.
struct Peer {
    bytes: Option<usize>,
    asked: u32,
}

#[async_trait]
impl Transport for Peer {
    async fn exchange(&mut self, challenge: Vec<u8>) -> Result<Secret<Vec<u8>>, Error> {
        self.asked += 1;
        Ok(Secret::new(match self.bytes {
            Some(bytes) => vec![0; bytes],
            None => [b"answer to ", challenge.as_slice()].concat(),
        }))
    }
}

async fn outcome(attestor: Greedy, payload: usize, bytes: usize) -> (ErrorKind, String, u32) {
    let mut peer = Peer {
        bytes: Some(bytes),
        asked: 0,
    };
    let error = attest(&attestor, Secret::new(vec![0; payload]), &mut peer)
        .await
        .expect_err("must be stopped");
    (error.kind(), error.to_string(), peer.asked)
}

#[tokio::test]
async fn carries_payload_challenge_and_answer() {
    let mut peer = Peer {
        bytes: None,
        asked: 0,
    };
    let payload = Secret::new(b"who".to_vec());
    let attributes = attest(&Greedy::Accepts, payload, &mut peer).await.unwrap();
    assert!(attributes.can_reattest);
    assert_eq!(peer.asked, 1);
}

#[tokio::test]
async fn stops_a_conversation_without_end() {
    let (kind, message, asked) = outcome(Greedy::Asks, 1, 1).await;
    assert_eq!((kind, asked), (ErrorKind::Denied, MAX_CHALLENGES));
    assert!(message.contains("challenges"), "{message}");
}

#[tokio::test]
async fn refuses_large_payloads_and_answers() {
    let (kind, message, asked) = outcome(Greedy::Asks, MAX_MESSAGE + 1, 1).await;
    assert_eq!((kind, asked), (ErrorKind::Denied, 0));
    assert!(message.contains("bytes"), "{message}");
    let (kind, _, asked) = outcome(Greedy::Asks, 1, MAX_MESSAGE + 1).await;
    assert_eq!((kind, asked), (ErrorKind::Denied, 1));
    // Each is small enough, together they are not.
    let (kind, message, asked) = outcome(Greedy::Asks, 1, MAX_MESSAGE).await;
    assert_eq!((kind, asked), (ErrorKind::Denied, 2));
    assert!(message.contains("bytes"), "{message}");
}

#[tokio::test]
async fn bounds_what_is_checked_for_an_unattested_node() {
    let (kind, message, _) = outcome(Greedy::Checks, 1, 1).await;
    assert_eq!(kind, ErrorKind::Denied);
    assert!(message.contains("checks"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn ends_when_its_time_is_over() {
    let (kind, message, _) = outcome(Greedy::Waits, 1, 1).await;
    assert_eq!(kind, ErrorKind::Denied);
    assert!(message.contains("time"), "{message}");
}

#[tokio::test]
async fn shows_no_payload_in_debug_output() {
    let mut peer = Peer {
        bytes: None,
        asked: 0,
    };
    let conversation = Conversation {
        plugin: "greedy".to_owned(),
        payload: Secret::new(b"hunter2".to_vec()),
        transport: &mut peer,
        left: Budget::default(),
    };
    assert!(!format!("{conversation:?}").contains("104"));
}
