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
        let world = World::new().await;
        let ca = world.server().await;
        let first = active_of(&ca, kind);
        let next = ca.prepare(kind).await.unwrap().authority_id;
        assert!(published(&world.bundle()).contains(&next));
        assert_eq!(ca.activate(kind, &next).await.unwrap().authority_id, next);
        assert_eq!(active_of(&ca, kind), next);
        assert_eq!(ca.taint(kind, &first).await.unwrap().authority_id, first);
        ca.revoke(kind, &first).await.unwrap();
        assert!(!published(&world.bundle()).contains(&first));
        drop(ca);
        assert_eq!(active_of(&world.server().await, kind), next);
    }
}

#[tokio::test]
async fn never_taints_or_revokes_the_active_authority() {
    for kind in KINDS {
        let world = World::new().await;
        let ca = world.server().await;
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
        assert!(published(&world.bundle()).contains(&active));
    }
}

#[tokio::test]
async fn never_taints_or_revokes_a_prepared_authority() {
    for kind in KINDS {
        let world = World::new().await;
        let ca = world.server().await;
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
        let world = World::new().await;
        let ca = world.server().await;
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
        let world = World::new().await;
        let ca = world.server().await;
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
        assert!(published(&world.bundle()).contains(&first));
    }
}

#[tokio::test]
async fn a_self_signed_server_has_no_upstream_to_taint() {
    let world = World::new().await;
    let ca = world.server().await;
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
    let world = World::new().await;
    let ca = world.server().await;
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
    let world = World::new().await;
    let ca = world.server().await;
    let first = active_of(&ca, AuthorityKind::X509);
    let shown = ca.server_svid().unwrap().serial.clone();
    let next = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    ca.activate(AuthorityKind::X509, &next).await.unwrap();
    ca.tick_server_svid(world.clock.now()).await.unwrap();
    assert_eq!(ca.server_svid().unwrap().serial, shown);
    ca.taint(AuthorityKind::X509, &first).await.unwrap();
    ca.tick_server_svid(world.clock.now()).await.unwrap();
    assert_ne!(ca.server_svid().unwrap().serial, shown);
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing_half_done() {
    for kind in KINDS {
        let world = World::new().await;
        let ca = world.server().await;
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
        ca.tick(world.clock.now()).await.unwrap();
        assert_eq!(active_of(&ca, kind), next);
        drop(ca);
        assert_eq!(active_of(&world.server().await, kind), next);
    }
}

#[tokio::test]
async fn however_often_another_is_prepared_the_active_one_survives_a_restart() {
    for kind in KINDS {
        let world = World::new().await;
        let ca = world.server().await;
        let active = active_of(&ca, kind);
        for _ in 0..12 {
            ca.prepare(kind).await.unwrap();
        }
        drop(ca);
        assert_eq!(active_of(&world.server().await, kind), active);
    }
}
