//! FetchJWTSVID: one token for each of the caller's identities, from the cache or from the server.

use std::sync::Arc;

use futures_util::future::try_join_all;
use proto::workload::{Jwtsvid, JwtsvidRequest, JwtsvidResponse};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::secret::Secret;
use spiffe::svid::jwt::check_audience;
use tokio::sync::oneshot;
use tonic::Status;

use super::Context;
use super::messages::Encoded;
use super::streams::RENEWAL_TIMEOUT;
use crate::attestor::Workload;
use crate::cache::jwt::{Cached, JwtKey, JwtToken};
use crate::rate_limit::Method;
use crate::sync::{JwtError, JwtRequest, Reply};

pub(super) async fn fetch(
    context: Arc<Context>,
    workload: Arc<Workload>,
    request: JwtsvidRequest,
) -> Result<Encoded, Status> {
    if request.audience.is_empty() || request.audience.iter().any(String::is_empty) {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    // Before anything waits: what the server would refuse is not held, and does not use up what it takes from this node.
    check_audience(&request.audience)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let only = match request.spiffe_id.as_str() {
        "" => None,
        text => Some(SpiffeId::parse(text).map_err(|error| {
            Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
        })?),
    };
    let mut caller = context
        .gate
        .admit(workload, Some(Method::FetchJwtSvid))
        .await?;
    let update = context.gate.cache.current(&caller.selectors);
    if !update.has_identity() {
        return Err(context.gate.no_identity(&caller));
    }
    let asked: Vec<&Arc<Entry>> = update
        .entries
        .iter()
        .filter(|entry| only.as_ref().is_none_or(|only| entry.spiffe_id == *only))
        .collect();
    if asked.is_empty() {
        return Err(context.gate.not_owned(&caller));
    }
    let user = caller.workload.peer().uid;
    let tokens = try_join_all(
        asked
            .iter()
            .map(|entry| token(&context, user, entry, &request.audience)),
    )
    .await?;
    // The server may have taken its time: a process that became another program meanwhile gets nothing of the former
    // one, and nobody gets what an entry gave that was changed or withdrawn.
    context.gate.attest_again(&mut caller).await?;
    let update = context.gate.cache.current(&caller.selectors);
    let mut kept: Vec<_> = asked.iter().zip(&tokens).collect();
    kept.retain(|(entry, _)| update.entries.contains(entry));
    if kept.is_empty() {
        return Err(context.gate.no_identity(&caller));
    }
    let mut response = JwtsvidResponse {
        svids: kept
            .into_iter()
            .map(|(entry, token)| Jwtsvid {
                spiffe_id: entry.spiffe_id.to_string(),
                svid: token.token.expose().clone(),
                hint: entry.hint.clone(),
            })
            .collect(),
    };
    let encoded = Encoded::of(&response);
    for svid in &mut response.svids {
        drop(Secret::new(std::mem::take(&mut svid.svid)));
    }
    Ok(encoded)
}

async fn token(
    context: &Context,
    user: u32,
    entry: &Arc<Entry>,
    audience: &[String],
) -> Result<Arc<JwtToken>, Status> {
    // SPIRE: an entry that asks for a `jti` gets a token of its own for every call.
    let cached = if entry.jwt_svid_include_jti {
        Cached::Absent
    } else {
        context
            .gate
            .cache
            .jwt(&JwtKey::new(&entry.spiffe_id, audience))
    };
    match cached {
        Cached::Fresh(token) => Ok(token),
        Cached::Absent => request(context, user, entry, audience)
            .await
            .map_err(|error| refusal(&error)),
        Cached::Aging(token) => {
            // It is still good: without a server, or with a slow one, it is the better answer.
            if !context.gate.status.borrow().connected {
                return Ok(token);
            }
            let renewal = request(context, user, entry, audience);
            let configured = context.config.jwt_svid_cache_hit_timeout;
            let timeout = configured.unwrap_or(RENEWAL_TIMEOUT);
            match tokio::time::timeout(timeout, renewal).await {
                Ok(Ok(fresh)) => Ok(fresh),
                Ok(Err(because)) => {
                    tracing::warn!(entry = %entry.id, %because, "JWT-SVID not renewed; the cached one is still valid");
                    Ok(token)
                }
                // The renewal goes on behind: the next call finds its token in the cache.
                Err(_elapsed) => Ok(token),
            }
        }
    }
}

/// A server that issues no JWT-SVIDs says so in its own words; everything else may pass.
fn refusal(error: &JwtError) -> Status {
    let message = format!("could not fetch JWT-SVID: {error}");
    match error {
        JwtError::NotOffered(_) => Status::unimplemented(message),
        JwtError::Unavailable(_) => Status::unavailable(message),
    }
}

pub(super) async fn request(
    context: &Context,
    user: u32,
    entry: &Arc<Entry>,
    audience: &[String],
) -> Reply {
    let unavailable = |because: &str| JwtError::Unavailable(because.to_owned());
    let turn = context.jwt_turns.take(user).await;
    let turn = turn.map_err(|_interrupted| unavailable("the agent is stopping"))?;
    let Some(requests) = context.jwt.borrow().clone() else {
        return Err(unavailable("the agent has not reached its server yet"));
    };
    let (reply, answer) = oneshot::channel();
    let request = JwtRequest {
        entry: Arc::clone(entry),
        audience: audience.to_vec(),
        reply,
        turn,
    };
    requests
        .try_send(request)
        .map_err(|_full| unavailable("too many requests are waiting"))?;
    answer
        .await
        .map_err(|_gone| unavailable("the agent is stopping"))?
}
