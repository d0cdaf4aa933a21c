//! FetchJWTSVID: one token for each of the caller's identities, from the cache or from the server.

use std::sync::Arc;

use futures_util::future::try_join_all;
use proto::workload::{Jwtsvid, JwtsvidRequest, JwtsvidResponse};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::secret::Secret;
use tokio::sync::oneshot;
use tonic::{Response, Status};

use super::Context;
use crate::attestor::Workload;
use crate::cache::jwt::{Cached, JwtKey, JwtToken};
use crate::cache::update::Encoded;
use crate::rate_limit::Method;
use crate::sync::JwtOrder;

pub(super) async fn fetch(
    context: Arc<Context>,
    workload: Arc<Workload>,
    request: JwtsvidRequest,
) -> Result<Response<Encoded>, Status> {
    if request.audience.is_empty() || request.audience.iter().any(String::is_empty) {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let only = match request.spiffe_id.as_str() {
        "" => None,
        text => Some(SpiffeId::parse(text).map_err(|error| {
            Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
        })?),
    };
    let caller = context.admit(workload, Some(Method::FetchJwtSvid)).await?;
    let update = context.cache.current(&caller.selectors);
    if !update.has_identity() {
        return Err(context.no_identity(&caller));
    }
    let asked: Vec<&Arc<Entry>> = update
        .entries
        .iter()
        .filter(|entry| only.as_ref().is_none_or(|only| entry.spiffe_id == *only))
        .collect();
    if asked.is_empty() {
        return Err(context.not_owned(&caller));
    }
    let tokens = try_join_all(
        asked
            .iter()
            .map(|entry| token(&context, entry, &request.audience)),
    )
    .await?;
    let mut response = JwtsvidResponse {
        svids: asked
            .iter()
            .zip(&tokens)
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
    Ok(Response::new(encoded))
}

async fn token(
    context: &Context,
    entry: &Arc<Entry>,
    audience: &[String],
) -> Result<Arc<JwtToken>, Status> {
    // SPIRE: an entry that asks for a `jti` gets a token of its own for every call.
    let cached = if entry.jwt_svid_include_jti {
        Cached::Absent
    } else {
        context.cache.jwt(&JwtKey::new(&entry.spiffe_id, audience))
    };
    match cached {
        Cached::Fresh(token) => Ok(token),
        Cached::Absent => order(context, entry, audience)
            .await
            .map_err(|because| Status::unavailable(format!("could not fetch JWT-SVID: {because}"))),
        Cached::Aging(token) => {
            // It is still good: without a server, or with a slow one, it is the better answer.
            if !context.status.borrow().connected {
                return Ok(token);
            }
            match tokio::time::timeout(
                context.options.cache_hit_timeout,
                order(context, entry, audience),
            )
            .await
            {
                Ok(Ok(fresh)) => Ok(fresh),
                Ok(Err(because)) => {
                    tracing::warn!(entry = %entry.id, %because, "JWT-SVID not renewed; the cached one is still valid");
                    Ok(token)
                }
                Err(_elapsed) => Ok(token),
            }
        }
    }
}

async fn order(
    context: &Context,
    entry: &Arc<Entry>,
    audience: &[String],
) -> Result<Arc<JwtToken>, String> {
    let Some(orders) = context.jwt.borrow().clone() else {
        return Err("the agent has not reached its server yet".to_owned());
    };
    let (reply, answer) = oneshot::channel();
    let order = JwtOrder {
        entry: Arc::clone(entry),
        audience: audience.to_vec(),
        reply,
    };
    orders
        .try_send(order)
        .map_err(|_full| "too many requests are waiting".to_owned())?;
    answer
        .await
        .map_err(|_gone| "the agent is stopping".to_owned())?
}
