//! Both halves of `join_token`.

use std::sync::Mutex;

use super::*;
use crate::node_attestor::agent::NodeAttestor as _;
use crate::node_attestor::server::{Transport, attest};

/// One token, which works once.
#[derive(Debug)]
struct OneToken(Mutex<Option<&'static str>>);

#[async_trait]
impl JoinTokens for OneToken {
    async fn redeem(&self, token: &str) -> Result<(), TokenRefusal> {
        match token {
            "expired" => Err(TokenRefusal::Expired),
            "unlucky" => Err(TokenRefusal::Unavailable("no database".to_owned())),
            _ => {
                let mut left = self.0.lock().unwrap();
                if *left == Some(token) {
                    *left = None;
                    Ok(())
                } else {
                    Err(TokenRefusal::Unknown)
                }
            }
        }
    }
}

/// Fails the test when the attestor asks anything.
struct Silent;

#[async_trait]
impl Transport for Silent {
    async fn exchange(&mut self, _challenge: Vec<u8>) -> Result<Secret<Vec<u8>>, Error> {
        panic!("join_token asks nothing");
    }
}

fn attestor() -> JoinTokenAttestor {
    let tokens = OneToken(Mutex::new(Some("t-1")));
    JoinTokenAttestor::new(TrustDomain::parse("example.org").unwrap(), Arc::new(tokens))
}

async fn redeem(attestor: &JoinTokenAttestor, payload: &[u8]) -> Result<AgentAttributes, Error> {
    attest(attestor, Secret::new(payload.to_vec()), &mut Silent).await
}

#[tokio::test]
async fn a_token_attests_one_node_once() {
    let attestor = attestor();
    let attributes = redeem(&attestor, b"t-1").await.unwrap();
    assert_eq!(
        attributes.agent_id.as_str(),
        "spiffe://example.org/spire/agent/join_token/t-1"
    );
    assert!(!attributes.can_reattest && attributes.selectors.is_empty());
    let again = redeem(&attestor, b"t-1").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Permanent);
    assert_eq!(again.to_string(), UNKNOWN);
}

#[tokio::test]
async fn what_was_never_a_token_is_unknown_and_uses_none_up() {
    let attestor = attestor();
    for payload in [&b""[..], b"\xff", b"a/b", b"..", b"t-2", b"t 1"] {
        let error = redeem(&attestor, payload).await.unwrap_err();
        assert_eq!(error.to_string(), UNKNOWN, "{payload:?}");
        assert_eq!(error.kind(), ErrorKind::Permanent, "{payload:?}");
    }
    redeem(&attestor, b"t-1").await.unwrap();
}

#[tokio::test]
async fn expired_is_permanent_and_a_store_that_is_away_is_not() {
    let attestor = attestor();
    let expired = redeem(&attestor, b"expired").await.unwrap_err();
    assert_eq!(expired.to_string(), "join token expired");
    assert_eq!(expired.kind(), ErrorKind::Permanent);
    let away = redeem(&attestor, b"unlucky").await.unwrap_err();
    assert_eq!(away.kind(), ErrorKind::Transient);
    assert_eq!(away.to_string(), "failed to fetch join token: no database");
}

#[tokio::test]
async fn the_agent_sends_its_token_and_answers_no_challenge() {
    let given = TokenSource::Given(Secret::new("t-1".to_owned()));
    let proof = JoinTokenProof::new(Some(given));
    assert!(!proof.is_repeatable());
    let mut attempt = proof.start().await.unwrap();
    assert_eq!(attempt.payload().expose().as_slice(), b"t-1");
    assert!(!format!("{proof:?} {attempt:?}").contains("t-1"));
    let error = attempt.answer(b"?").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
}

#[tokio::test]
async fn the_file_is_read_when_the_node_attests() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let proof = JoinTokenProof::new(Some(TokenSource::File(path.clone())));
    let missing = proof.start().await.unwrap_err();
    assert_eq!(missing.to_fault().code, Code::JoinTokenFileUnreadable);
    std::fs::write(&path, " \n").unwrap();
    let empty = proof.start().await.unwrap_err();
    assert_eq!(empty.to_fault().code, Code::JoinTokenFileUnreadable);
    std::fs::write(&path, " t-2\n").unwrap();
    let attempt = proof.start().await.unwrap();
    assert_eq!(attempt.payload().expose().as_slice(), b"t-2");
}

#[tokio::test]
async fn without_a_token_the_operator_reads_where_to_get_one() {
    let error = JoinTokenProof::new(None).start().await.unwrap_err();
    let fault = error.to_fault();
    assert_eq!(fault.code, Code::NoJoinToken);
    assert!(fault.hint.unwrap().contains("token generate"));
}
