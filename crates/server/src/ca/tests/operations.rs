//! What an operator may and may not do to authorities.

use super::*;

const KINDS: [AuthorityKind; 2] = [AuthorityKind::X509, AuthorityKind::Jwt];

fn active_of(ca: &Ca, kind: AuthorityKind) -> String {
    ca.authorities(kind)
        .unwrap()
        .active
        .clone()
        .unwrap()
        .authority_id
}

#[tokio::test]
async fn a_compromised_authority_is_replaced_tainted_and_revoked() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let first = active_of(&ca, kind);
        let next = ca.prepare(kind).await.unwrap().authority_id;
        assert!(published(&fixture.bundle()).contains(&next));
        assert_eq!(ca.activate(kind, &next).await.unwrap().authority_id, next);
        assert_eq!(active_of(&ca, kind), next);
        assert_eq!(ca.taint(kind, &first).await.unwrap().authority_id, first);
        ca.revoke(kind, &first).await.unwrap();
        assert!(!published(&fixture.bundle()).contains(&first));
        drop(ca);
        assert_eq!(active_of(&fixture.server().await, kind), next);
    }
}

#[tokio::test]
async fn never_taints_or_revokes_the_active_authority() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let active = active_of(&ca, kind);
        assert!(matches!(
            ca.taint(kind, &active).await.unwrap_err(),
            OperationError::TaintsCurrent
        ));
        let refused = ca.revoke(kind, &active).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "invalid authority ID: unable to use current authority"
        );
        assert!(published(&fixture.bundle()).contains(&active));
    }
}

#[tokio::test]
async fn never_taints_or_revokes_a_prepared_authority() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let next = ca.prepare(kind).await.unwrap().authority_id;
        assert!(matches!(
            ca.taint(kind, &next).await.unwrap_err(),
            OperationError::TaintsNotOld("PREPARED")
        ));
        assert!(matches!(
            ca.revoke(kind, &next).await.unwrap_err(),
            OperationError::InvalidAuthorityId(_)
        ));
    }
}

#[tokio::test]
async fn activates_nothing_but_the_prepared_authority() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let active = active_of(&ca, kind);
        assert!(matches!(
            ca.activate(kind, "").await.unwrap_err(),
            OperationError::NoAuthorityId
        ));
        for id in ["nobody", &active] {
            let refused = ca.activate(kind, id).await.unwrap_err();
            assert!(
                matches!(refused, OperationError::UnexpectedAuthorityId),
                "{refused}"
            );
        }
        let next = ca.prepare(kind).await.unwrap().authority_id;
        ca.activate(kind, &next).await.unwrap();
        // The former one cannot come back.
        assert!(matches!(
            ca.activate(kind, &active).await.unwrap_err(),
            OperationError::NotPrepared("OLD")
        ));
        assert_eq!(active_of(&ca, kind), next);
    }
}

#[tokio::test]
async fn revokes_only_what_was_tainted_before() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let first = active_of(&ca, kind);
        let next = ca.prepare(kind).await.unwrap().authority_id;
        ca.activate(kind, &next).await.unwrap();
        assert!(matches!(
            ca.revoke(kind, &first).await.unwrap_err(),
            OperationError::Failed { .. }
        ));
        assert!(matches!(
            ca.revoke(kind, "").await.unwrap_err(),
            OperationError::InvalidAuthorityId(_)
        ));
        assert!(matches!(
            ca.revoke(kind, "nobody").await.unwrap_err(),
            OperationError::InvalidAuthorityId(_)
        ));
        assert!(matches!(
            ca.taint(kind, "").await.unwrap_err(),
            OperationError::NoAuthorityId
        ));
        assert!(matches!(
            ca.taint(kind, "nobody").await.unwrap_err(),
            OperationError::UnexpectedAuthorityId
        ));
        ca.taint(kind, &first).await.unwrap();
        assert!(matches!(
            ca.taint(kind, &first).await.unwrap_err(),
            OperationError::Failed { .. }
        ));
        assert!(published(&fixture.bundle()).contains(&first));
    }
}

#[tokio::test]
async fn a_self_signed_server_has_no_upstream_to_taint() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    assert!(matches!(
        ca.taint_upstream("ab").await.unwrap_err(),
        OperationError::NoUpstream
    ));
    assert!(matches!(
        ca.revoke_upstream("ab").await.unwrap_err(),
        OperationError::NoUpstream
    ));
}

#[tokio::test]
async fn preparing_again_replaces_the_prepared_authority() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let first = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    let second = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    assert!(matches!(
        ca.activate(AuthorityKind::X509, &first).await.unwrap_err(),
        OperationError::UnexpectedAuthorityId
    ));
    ca.activate(AuthorityKind::X509, &second).await.unwrap();
}

#[tokio::test]
async fn the_servers_own_svid_leaves_a_tainted_authority_at_once() {
    let fixture = Fixture::new().await;
    let ca = fixture.server().await;
    let first = active_of(&ca, AuthorityKind::X509);
    let shown = ca.server_svid().unwrap().serial.clone();
    let next = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    ca.activate(AuthorityKind::X509, &next).await.unwrap();
    ca.tick_server_svid(fixture.clock.now()).await.unwrap();
    assert_eq!(ca.server_svid().unwrap().serial, shown);
    ca.taint(AuthorityKind::X509, &first).await.unwrap();
    ca.tick_server_svid(fixture.clock.now()).await.unwrap();
    assert_ne!(ca.server_svid().unwrap().serial, shown);
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing_half_done() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let next = ca.prepare(kind).await.unwrap().authority_id;
        // Polled once, then dropped, as a cancelled call is.
        tokio::select! {
            biased;
            _ = ca.activate(kind, &next) => panic!("it did not wait for the journal"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(active_of(&ca, kind), next);
        tokio::select! {
            biased;
            _ = ca.prepare(kind) => panic!("it did not wait for anything"),
            () = std::future::ready(()) => {}
        }
        ca.tick(fixture.clock.now()).await.unwrap();
        assert_eq!(active_of(&ca, kind), next);
        drop(ca);
        assert_eq!(active_of(&fixture.server().await, kind), next);
    }
}

#[tokio::test]
async fn however_often_another_is_prepared_the_active_one_survives_a_restart() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let ca = fixture.server().await;
        let active = active_of(&ca, kind);
        for _ in 0..12 {
            ca.prepare(kind).await.unwrap();
        }
        drop(ca);
        assert_eq!(active_of(&fixture.server().await, kind), active);
    }
}

/// Keys of which the next is made only when the test says so, or never.
#[derive(Debug)]
struct SlowKeys {
    keys: MemoryKeyManager,
    /// One permit for each key.
    permits: tokio::sync::Semaphore,
    waiting: std::sync::atomic::AtomicUsize,
}

impl SlowKeys {
    fn with_permits(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            keys: MemoryKeyManager::new(),
            permits: tokio::sync::Semaphore::new(permits),
            waiting: std::sync::atomic::AtomicUsize::new(0),
        })
    }
}

#[async_trait::async_trait]
impl KeyManager for SlowKeys {
    async fn generate_key(
        &self,
        id: &str,
        ty: KeyType,
    ) -> Result<Arc<dyn spiffe::key::Signer>, plugin::Error> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let permit = self.permits.acquire().await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match permit {
            Ok(permit) => permit.forget(),
            Err(_closed) => return Err(plugin::Error::interrupted("slow")),
        }
        self.keys.generate_key(id, ty).await
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn spiffe::key::Signer>>, plugin::Error> {
        self.keys.key(id).await
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn spiffe::key::Signer>)>, plugin::Error> {
        self.keys.keys().await
    }
}

/// Runs `first` until a key is waited for, and gives it back unfinished.
async fn until_waiting<F: Future + Unpin>(keys: &SlowKeys, mut first: F) -> F {
    while keys.waiting.load(Ordering::SeqCst) == 0 {
        tokio::select! {
            biased;
            _ = &mut first => panic!("it did not wait for its key"),
            () = tokio::task::yield_now() => {}
        }
    }
    first
}

#[tokio::test]
async fn nobody_waits_for_a_key_that_is_being_made_but_who_needs_it() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let keys = SlowKeys::with_permits(2);
        let ca = fixture.try_server(Arc::clone(&keys) as _, config()).await;
        let ca = ca.unwrap();
        let active = active_of(&ca, kind);
        let preparing = until_waiting(&keys, Box::pin(ca.prepare(kind))).await;
        assert_eq!(active_of(&ca, kind), active);
        ca.issue_x509(&minted(id("/w"), 60), &key(), &quiet())
            .await
            .unwrap();
        // There is nothing to activate, to taint or to revoke, which is said at once.
        ca.activate(kind, "any").await.unwrap_err();
        ca.taint(kind, "any").await.unwrap_err();
        ca.revoke(kind, "any").await.unwrap_err();
        // Nothing is due, so rotation does not wait either.
        ca.tick(fixture.clock.now()).await.unwrap();
        keys.permits.add_permits(1);
        let prepared = preparing.await.unwrap().authority_id;
        ca.activate(kind, &prepared).await.unwrap();
        assert_eq!(active_of(&ca, kind), prepared);
    }
}

#[tokio::test]
async fn authorities_are_prepared_one_after_the_other() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let keys = SlowKeys::with_permits(2);
        let ca = fixture.try_server(Arc::clone(&keys) as _, config()).await;
        let ca = ca.unwrap();
        let first = until_waiting(&keys, Box::pin(ca.prepare(kind))).await;
        let both = async { tokio::join!(first, ca.prepare(kind)) };
        let release = async {
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
            assert_eq!(keys.waiting.load(Ordering::SeqCst), 1, "two at once");
            keys.permits.add_permits(2);
        };
        let ((first, second), ()) = tokio::join!(both, release);
        let (first, second) = (first.unwrap().authority_id, second.unwrap().authority_id);
        assert_ne!(first, second);
        ca.activate(kind, &first).await.unwrap_err();
        ca.activate(kind, &second).await.unwrap();
    }
}

#[tokio::test]
async fn who_goes_away_while_a_key_is_made_makes_room_for_the_next() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let keys = SlowKeys::with_permits(2);
        let ca = fixture.try_server(Arc::clone(&keys) as _, config()).await;
        let ca = ca.unwrap();
        drop(until_waiting(&keys, Box::pin(ca.prepare(kind))).await);
        keys.permits.add_permits(1);
        let next = ca.prepare(kind).await.unwrap().authority_id;
        ca.activate(kind, &next).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_made_leaves_what_was_prepared() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let keys = SlowKeys::with_permits(3);
        let ca = fixture.try_server(Arc::clone(&keys) as _, config()).await;
        let ca = ca.unwrap();
        let prepared = ca.prepare(kind).await.unwrap().authority_id;
        keys.permits.close();
        let refused = ca.prepare(kind).await.unwrap_err();
        assert!(
            matches!(refused, OperationError::Failed { .. }),
            "{refused}"
        );
        ca.activate(kind, &prepared).await.unwrap();
        assert_eq!(active_of(&ca, kind), prepared);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_manager_that_never_answers_holds_nothing_up_for_ever() {
    for kind in KINDS {
        let fixture = Fixture::new().await;
        let keys = SlowKeys::with_permits(2);
        let ca = fixture.try_server(Arc::clone(&keys) as _, config()).await;
        let ca = ca.unwrap();
        let refused = ca.prepare(kind).await.unwrap_err();
        assert!(refused.to_string().contains("took too long"), "{refused}");
        keys.permits.add_permits(1);
        let next = ca.prepare(kind).await.unwrap().authority_id;
        ca.activate(kind, &next).await.unwrap();
    }
}
