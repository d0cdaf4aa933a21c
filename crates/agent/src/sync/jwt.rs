//! JWT-SVIDs on demand: of equal orders that arrive together, one goes to the server.

use std::sync::Arc;

use config::fault::Fault;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use tokio::sync::{mpsc, oneshot};

use super::{Outcome, Sync, Waiting};
use crate::cache::jwt::{Cached, JwtKey, JwtToken};
use crate::link::LinkError;

/// Orders that may wait in the channel.
pub(super) const WAITING: usize = 1024;
/// Calls that may be under way.
const UNDER_WAY: usize = 256;

/// What an order gets: a token, or a text for the workload's error.
pub(crate) type Reply = Result<Arc<JwtToken>, String>;

/// A workload's wish for a token.
#[derive(Debug)]
pub(crate) struct JwtOrder {
    pub(crate) entry: Arc<Entry>,
    pub(crate) audience: Vec<String>,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// The state of token issuance.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) orders: mpsc::Receiver<JwtOrder>,
    shared: Waiting<JwtKey, Reply>,
    under_way: usize,
}

/// A call that ended.
#[derive(Debug)]
pub(super) struct Answer {
    whose: Whose,
    expected: SpiffeId,
    outcome: Result<(SpiffeId, JwtToken), LinkError>,
}

#[derive(Debug)]
enum Whose {
    /// Everybody who waits for this key.
    Shared(JwtKey),
    /// A token with a `jti` is one caller's own.
    Single(oneshot::Sender<Reply>),
}

impl Line {
    pub(super) fn new(orders: mpsc::Receiver<JwtOrder>) -> Self {
        Self {
            orders,
            shared: Waiting::new(),
            under_way: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.under_way < UNDER_WAY
    }
}

impl Sync {
    pub(super) fn order_jwt(&mut self, order: JwtOrder) {
        let JwtOrder {
            entry,
            audience,
            reply,
        } = order;
        let whose = if entry.jwt_svid_include_jti {
            Whose::Single(reply)
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
            Whose::Shared(key)
        };
        self.jwt.under_way += 1;
        let link = self.link.clone();
        self.call(async move {
            let outcome = link.new_jwt_svid(&entry.id, audience).await;
            Outcome::Jwt(Answer {
                whose,
                expected: entry.spiffe_id.clone(),
                outcome,
            })
        });
    }

    pub(super) fn jwt_answered(&mut self, current: bool, done: Answer) -> Result<(), Fault> {
        self.jwt.under_way -= 1;
        let outcome = done.outcome.and_then(|(spiffe_id, token)| {
            if spiffe_id == done.expected {
                Ok(Arc::new(token))
            } else {
                Err(LinkError::malformed(format!(
                    "server issued {spiffe_id} instead of {}",
                    done.expected
                )))
            }
        });
        let reply = outcome
            .as_ref()
            .map(Arc::clone)
            .map_err(ToString::to_string);
        match done.whose {
            Whose::Single(caller) => answer(caller, reply),
            Whose::Shared(key) => {
                let waiting = self.jwt.shared.remove(&key).unwrap_or_default();
                if let Ok(token) = &reply {
                    self.cache.put_jwt(key, Arc::clone(token));
                }
                for caller in waiting {
                    answer(caller, reply.clone());
                }
            }
        }
        match outcome {
            Ok(_) => {
                self.answered();
                Ok(())
            }
            Err(error) => self.failed(current, "JWT-SVID not issued", &error),
        }
    }
}

/// A caller that went away in the meantime misses nothing.
fn answer(caller: oneshot::Sender<Reply>, reply: Reply) {
    if caller.send(reply).is_err() {
        tracing::trace!("the workload that asked for a JWT-SVID is gone");
    }
}
