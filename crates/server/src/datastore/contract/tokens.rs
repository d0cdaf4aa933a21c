//! Join tokens.

use super::{NOW, Subject, entry, id, on_every_database};
use crate::datastore::{EntryWriteError, JoinToken, TokenError};
use crate::registry::EntryFilter;

on_every_database!(
    a_token_is_redeemed_once,
    one_of_many_racing_redemptions_wins,
    an_expired_token_is_refused_and_gone,
    an_unknown_token_is_refused,
    a_token_comes_with_its_alias_or_not_at_all,
    pruning_takes_expired_tokens_only,
    a_token_is_not_in_the_store_in_clear,
);

fn token(text: &str, expires_at: i64) -> JoinToken {
    JoinToken {
        token: text.to_owned(),
        expires_at,
        alias: None,
    }
}

async fn a_token_is_redeemed_once(subject: Subject) {
    let (datastore, _) = subject.open().await;
    datastore.create_join_token(token("t", NOW)).await.unwrap();
    assert_eq!(
        datastore.create_join_token(token("t", NOW)).await,
        Err(TokenError::Taken)
    );
    assert_eq!(
        datastore.redeem_join_token("t", subject.now()).await,
        Ok(())
    );
    assert_eq!(
        datastore.redeem_join_token("t", subject.now()).await,
        Err(TokenError::Unknown)
    );
}

async fn one_of_many_racing_redemptions_wins(subject: Subject) {
    let (first, _) = subject.open().await;
    let (second, _) = subject.open().await;
    first.create_join_token(token("t", NOW + 60)).await.unwrap();
    let now = subject.now();
    let racers: Vec<_> = (0..64)
        .map(|n| {
            let datastore = if n % 2 == 0 {
                first.clone()
            } else {
                second.clone()
            };
            tokio::spawn(async move { datastore.redeem_join_token("t", now).await })
        })
        .collect();
    let mut won = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert_eq!(error, TokenError::Unknown),
        }
    }
    assert_eq!(won, 1);
}

async fn an_expired_token_is_refused_and_gone(subject: Subject) {
    let (datastore, _) = subject.open().await;
    datastore
        .create_join_token(token("t", NOW - 1))
        .await
        .unwrap();
    assert_eq!(
        datastore.redeem_join_token("t", subject.now()).await,
        Err(TokenError::Expired)
    );
    assert_eq!(
        datastore.redeem_join_token("t", subject.now()).await,
        Err(TokenError::Unknown)
    );
}

async fn an_unknown_token_is_refused(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    for text in ["", "t", "T", "t\0"] {
        assert_eq!(
            datastore.redeem_join_token(text, subject.now()).await,
            Err(TokenError::Unknown)
        );
    }
    assert_eq!(registry.revision(), 0, "a refusal is no write");
}

async fn a_token_comes_with_its_alias_or_not_at_all(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let agent = id("/spire/agent/join_token/t");
    let alias = entry(
        "/spire/agent/join_token/t",
        "/node",
        &[&format!("spiffe_id:{agent}")],
    );
    datastore
        .create_join_token(JoinToken {
            alias: Some(alias.clone()),
            ..token("t", NOW)
        })
        .await
        .unwrap();
    assert_eq!(registry.entries_for_spiffe_id(&id("/node")).len(), 1);
    let refused = datastore
        .create_join_token(JoinToken {
            alias: Some(alias),
            ..token("u", NOW)
        })
        .await;
    assert!(matches!(
        refused,
        Err(TokenError::Alias(EntryWriteError::Similar(_)))
    ));
    assert_eq!(
        datastore.redeem_join_token("u", subject.now()).await,
        Err(TokenError::Unknown)
    );
    let reserved = entry("/spire/agent/join_token/v", "/spire/x", &["a:b"]);
    let refused = datastore
        .create_join_token(JoinToken {
            alias: Some(reserved),
            ..token("v", NOW)
        })
        .await;
    assert!(matches!(
        refused,
        Err(TokenError::Alias(EntryWriteError::Invalid(_)))
    ));
    assert_eq!(registry.entry_count(&EntryFilter::default()), 1);
}

async fn pruning_takes_expired_tokens_only(subject: Subject) {
    let (datastore, _) = subject.open().await;
    datastore
        .create_join_token(token("old", NOW - 1))
        .await
        .unwrap();
    datastore
        .create_join_token(token("new", NOW))
        .await
        .unwrap();
    assert_eq!(datastore.prune_join_tokens(subject.now()).await, Ok(1));
    assert_eq!(datastore.prune_join_tokens(subject.now()).await, Ok(0));
    assert_eq!(
        datastore.redeem_join_token("old", subject.now()).await,
        Err(TokenError::Unknown)
    );
    assert_eq!(
        datastore.redeem_join_token("new", subject.now()).await,
        Ok(())
    );
}

async fn a_token_is_not_in_the_store_in_clear(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let secret = "b2f5ff47-1d3b-4a3a-8d0e-3b1f4f1c9a11";
    datastore
        .create_join_token(token(secret, NOW))
        .await
        .unwrap();
    assert!(!format!("{:?}", registry.read().tokens).contains(secret));
    if let Some(path) = subject.path() {
        for file in [path.clone(), path.with_extension("sqlite3-wal")] {
            let bytes = std::fs::read(file).unwrap();
            assert!(
                !bytes
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes())
            );
        }
    }
}
