//! JWT-SVIDs on demand: of equal requests that arrive together, one goes to the server.

use std::sync::Arc;

use config::fault::Fault;
use plugin::blocking::WorkPermit;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use tokio::sync::{mpsc, oneshot};

use super::{Outcome, Sync, Waiting};
use crate::cache::jwt::{Cached, JwtKey, JwtToken};
use crate::server_client::ClientError;

/// Requests that may wait in the channel.
pub(crate) const WAITING: usize = 1024;
/// Calls that may be under way.
const UNDER_WAY: usize = 256;

/// What a request gets.
pub(crate) type Reply = Result<Arc<JwtToken>, JwtError>;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwtError {
    /// The server issues no JWT-SVIDs: asking again is of no use.
    #[error("{0}")]
    NotOffered(String),
    /// The server or this agent could not answer.
    #[error("{0}")]
    Unavailable(String),
}

impl From<&ClientError> for JwtError {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::Unimplemented(because) => Self::NotOffered(because.clone()),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// A workload's request for a token.
#[derive(Debug)]
pub(crate) struct JwtRequest {
    pub(crate) entry: Arc<Entry>,
    pub(crate) audience: Vec<String>,
    pub(crate) reply: oneshot::Sender<Reply>,
    /// Its user's place among those that wait, kept until the request is taken up: also when the caller has left.
    pub(crate) turn: WorkPermit,
}

/// The state of token issuance.
#[derive(Debug)]
pub(super) struct Issuance {
    pub(super) requests: mpsc::Receiver<JwtRequest>,
    shared: Waiting<JwtKey, Reply>,
    under_way: usize,
}

/// A call that ended.
#[derive(Debug)]
pub(super) struct Answer {
    entry: Arc<Entry>,
    recipients: Recipients,
    outcome: Result<(SpiffeId, JwtToken), ClientError>,
}

#[derive(Debug)]
enum Recipients {
    /// Everybody who waits for this key.
    Shared(JwtKey),
    /// A token with a `jti` belongs to one caller.
    Single(oneshot::Sender<Reply>),
}

impl Issuance {
    pub(super) fn new(requests: mpsc::Receiver<JwtRequest>) -> Self {
        Self {
            requests,
            shared: Waiting::new(),
            under_way: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.under_way < UNDER_WAY
    }
}

impl Sync {
    pub(super) fn request_jwt(&mut self, request: JwtRequest) {
        let JwtRequest {
            entry,
            audience,
            reply,
            turn: _turn,
        } = request;
        // Its caller left while it waited.
        if reply.is_closed() {
            return;
        }
        let recipients = if entry.jwt_svid_include_jti {
            Recipients::Single(reply)
        } else {
            let key = JwtKey::new(&entry.spiffe_id, &audience);
            if let Cached::Fresh(token) = self.cache.jwt(&key) {
                answer(reply, Ok(token));
                return;
            }
            let waiting = self.jwt.shared.entry(key.clone()).or_default();
            waiting.push(reply);
            if waiting.len() > 1 {
                return;
            }
            Recipients::Shared(key)
        };
        self.jwt.under_way += 1;
        let client = self.client.clone();
        self.call(async move {
            let outcome = client.new_jwt_svid(&entry.id, audience).await;
            Outcome::Jwt(Answer {
                entry,
                recipients,
                outcome,
            })
        });
    }

    pub(super) fn jwt_answered(&mut self, current: bool, done: Answer) -> Result<(), Fault> {
        self.jwt.under_way -= 1;
        let expected = &done.entry.spiffe_id;
        let outcome = done.outcome.and_then(|(spiffe_id, token)| {
            if spiffe_id == *expected {
                Ok(Arc::new(token))
            } else {
                Err(ClientError::malformed(format!(
                    "server issued {spiffe_id} instead of {expected}"
                )))
            }
        });
        let reply = outcome.as_ref().map(Arc::clone).map_err(JwtError::from);
        match done.recipients {
            Recipients::Single(caller) => answer(caller, reply),
            Recipients::Shared(key) => {
                let waiting = self.jwt.shared.remove(&key).unwrap_or_default();
                if let Ok(token) = &reply {
                    self.cache.put_jwt(&done.entry, key, Arc::clone(token));
                }
                for caller in waiting {
                    answer(caller, reply.clone());
                }
            }
        }
        match outcome {
            Ok(_) => {
                self.answered();
                self.returned();
                Ok(())
            }
            // That is how the server is configured: the workload learns it, nothing is wrong with the connection.
            Err(ClientError::Unimplemented(because)) => {
                tracing::debug!(%because, "JWT-SVID not issued");
                self.answered();
                Ok(())
            }
            Err(error) => {
                self.lost(&error);
                self.failed(current, "JWT-SVID not issued", &error)
            }
        }
    }
}

/// A caller that went away in the meantime misses nothing.
fn answer(caller: oneshot::Sender<Reply>, reply: Reply) {
    if caller.send(reply).is_err() {
        tracing::trace!("the workload that asked for a JWT-SVID is gone");
    }
}
