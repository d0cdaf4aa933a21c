//! Join tokens.

use super::{NOW, Subject, id, on_every_database, selectors};
use crate::datastore::{EntryWriteError, JoinToken, TokenError};
use crate::registry::{EntryFilter, Page};

on_every_database!(
    a_token_is_redeemed_once,
    one_of_many_racing_redemptions_wins,
    an_expired_token_is_refused_and_gone,
    an_unknown_token_is_refused,
    a_redeemed_token_leaves_its_alias,
    a_token_that_is_not_redeemed_leaves_no_alias,
    an_alias_that_cannot_be_is_refused_with_its_token,
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
    datastore.tokens.create(token("t", NOW + 1)).await.unwrap();
    assert_eq!(
        datastore.tokens.create(token("t", NOW + 1)).await,
        Err(TokenError::Taken)
    );
    assert_eq!(datastore.tokens.redeem("t", subject.now()).await, Ok(()));
    assert_eq!(
        datastore.tokens.redeem("t", subject.now()).await,
        Err(TokenError::Unknown)
    );
}

async fn one_of_many_racing_redemptions_wins(subject: Subject) {
    let (first, _) = subject.open().await;
    let (second, _) = subject.open().await;
    first.tokens.create(token("t", NOW + 60)).await.unwrap();
    let now = subject.now();
    let racers: Vec<_> = (0..64)
        .map(|n| {
            let datastore = if n % 2 == 0 {
                first.clone()
            } else {
                second.clone()
            };
            tokio::spawn(async move { datastore.tokens.redeem("t", now).await })
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
    // The second of its expiry is no longer a token's own.
    for expiry in [NOW - 1, NOW] {
        datastore.tokens.create(token("t", expiry)).await.unwrap();
        assert_eq!(
            datastore.tokens.redeem("t", subject.now()).await,
            Err(TokenError::Expired)
        );
    }
    assert_eq!(
        datastore.tokens.redeem("t", subject.now()).await,
        Err(TokenError::Unknown)
    );
}

async fn an_unknown_token_is_refused(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    for text in ["", "t", "T", "t\0"] {
        assert_eq!(
            datastore.tokens.redeem(text, subject.now()).await,
            Err(TokenError::Unknown)
        );
    }
    assert_eq!(registry.revision(), 0, "a refusal is no write");
}

fn with_alias(text: &str, named: &str) -> JoinToken {
    JoinToken {
        alias: Some(id(named)),
        ..token(text, NOW + 1)
    }
}

/// As SPIRE makes it: the node is parent and selector.
async fn a_redeemed_token_leaves_its_alias(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let made = with_alias("t", "/node");
    datastore.tokens.create(made).await.unwrap();
    assert_eq!(registry.entry_count(&EntryFilter::default()), 0);
    // Another server, or this one after a restart, redeems it as well.
    let (again, _) = subject.open().await;
    again.tokens.redeem("t", subject.now()).await.unwrap();
    let (_fresh, fresh) = subject.open().await;
    let aliases = fresh.entries_for_spiffe_id(&id("/node"));
    let [alias] = &aliases[..] else {
        panic!("one alias: {aliases:?}")
    };
    let agent = id("/spire/agent/join_token/t");
    assert_eq!(alias.parent_id, agent);
    assert_eq!(alias.selectors, selectors(&[&format!("spiffe_id:{agent}")]));
    assert_eq!(alias.created_at, NOW);
    assert!(!alias.id.is_empty());
}

async fn a_token_that_is_not_redeemed_leaves_no_alias(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    for text in ["late", "pruned"] {
        let expired = JoinToken {
            expires_at: NOW - 1,
            ..with_alias(text, "/node")
        };
        datastore.tokens.create(expired).await.unwrap();
    }
    let refused = datastore.tokens.redeem("late", subject.now()).await;
    assert_eq!(refused, Err(TokenError::Expired));
    assert_eq!(datastore.tokens.prune(subject.now()).await, Ok(1));
    assert_eq!(registry.entry_count(&EntryFilter::default()), 0);
}

async fn an_alias_that_cannot_be_is_refused_with_its_token(subject: Subject) {
    let (datastore, _) = subject.open().await;
    let refused = datastore.tokens.create(with_alias("v", "/spire/x")).await;
    assert!(matches!(
        refused,
        Err(TokenError::Alias(EntryWriteError::Invalid(_)))
    ));
    assert_eq!(
        datastore.tokens.redeem("v", subject.now()).await,
        Err(TokenError::Unknown)
    );
}

async fn pruning_takes_expired_tokens_only(subject: Subject) {
    let (datastore, _) = subject.open().await;
    datastore
        .tokens
        .create(token("old", NOW - 1))
        .await
        .unwrap();
    for (text, expiry) in [("due", NOW), ("new", NOW + 1)] {
        datastore.tokens.create(token(text, expiry)).await.unwrap();
    }
    assert_eq!(datastore.tokens.prune(subject.now()).await, Ok(2));
    assert_eq!(datastore.tokens.prune(subject.now()).await, Ok(0));
    assert_eq!(
        datastore.tokens.redeem("old", subject.now()).await,
        Err(TokenError::Unknown)
    );
    assert_eq!(datastore.tokens.redeem("new", subject.now()).await, Ok(()));
}

async fn a_token_is_not_in_the_store_in_clear(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let secret = "b2f5ff47-1d3b-4a3a-8d0e-3b1f4f1c9a11";
    datastore
        .tokens
        .create(with_alias(secret, "/node"))
        .await
        .unwrap();
    let listed = registry.entries(&EntryFilter::default(), &Page::default());
    assert!(
        !format!("{listed:?}").contains(secret),
        "not in a listing either"
    );
    assert!(!format!("{:?}", registry.read().tokens).contains(secret));
    for table in ["entries", "join_tokens", "changes"] {
        let like = format!("{table} WHERE key LIKE '%{secret}%'");
        assert_eq!(subject.count(&like).await, 0, "{table}");
    }
    let like = format!("join_tokens WHERE body LIKE '%{secret}%'");
    assert_eq!(subject.count(&like).await, 0);
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
