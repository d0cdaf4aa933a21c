//! Attested nodes.

use super::{NOW, Subject, content, create, entry, id, on_every_database, selectors};
use crate::datastore::AgentWriteError;
use crate::registry::{Agent, AgentFilter, AgentPatch, EntryFilter, Page, SetMatch};
use std::time::Duration;

on_every_database!(
    an_agent_survives_a_restart,
    an_update_writes_the_given_fields_only,
    a_renewed_serial_is_promoted_once,
    a_banned_agent_has_no_serial_and_is_not_promoted,
    a_renewal_is_of_the_svid_that_is_held,
    a_renewal_does_not_survive_a_ban_or_a_new_attestation,
    deleting_takes_the_token_alias_along,
    pruning_spares_banned_and_unexpired_agents,
    filters_add_up,
);

pub(super) fn agent(path: &str) -> Agent {
    Agent {
        id: id(path),
        attestation_type: "join_token".to_owned(),
        serial: "1".to_owned(),
        expires_at: NOW + 60,
        new_serial: String::new(),
        new_expires_at: 0,
        can_reattest: false,
        banned: false,
        selectors: selectors(&["a:1"]),
        agent_version: String::new(),
    }
}

async fn an_agent_survives_a_restart(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let full = Agent {
        new_serial: "2".to_owned(),
        new_expires_at: NOW + 120,
        can_reattest: true,
        agent_version: "1.15.3".to_owned(),
        selectors: selectors(&["a:1", "b:2"]),
        ..agent("/spire/agent/x")
    };
    datastore.agents.put(full.clone()).await.unwrap();
    datastore.agents.put(agent("/spire/agent/y")).await.unwrap();
    let (_again, reloaded) = subject.open().await;
    assert_eq!(*reloaded.agent(&full.id).unwrap(), full);
    assert_eq!(content(&reloaded), content(&registry));
}

async fn an_update_writes_the_given_fields_only(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    datastore.agents.put(agent("/spire/agent/x")).await.unwrap();
    let patch = AgentPatch {
        agent_version: Some("9".to_owned()),
        ..AgentPatch::default()
    };
    datastore
        .agents
        .update(&id("/spire/agent/x"), patch.clone())
        .await
        .unwrap();
    let expected = Agent {
        agent_version: "9".to_owned(),
        ..agent("/spire/agent/x")
    };
    assert_eq!(*registry.agent(&expected.id).unwrap(), expected);
    let absent = datastore.agents.update(&id("/spire/agent/z"), patch).await;
    assert_eq!(absent, Err(AgentWriteError::NotFound));
}

async fn a_renewed_serial_is_promoted_once(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let node = Agent {
        new_serial: "2".to_owned(),
        new_expires_at: NOW + 99,
        ..agent("/spire/agent/x")
    };
    datastore.agents.put(node.clone()).await.unwrap();
    let promote = |serial: &'static str| datastore.agents.promote_serial(&node.id, serial);
    assert_eq!(promote("3").await, Err(AgentWriteError::Superseded));
    assert_eq!(promote("").await, Err(AgentWriteError::Superseded));
    promote("2").await.unwrap();
    promote("2").await.unwrap();
    let promoted = registry.agent(&node.id).unwrap();
    assert_eq!(
        (promoted.serial.as_str(), promoted.expires_at),
        ("2", NOW + 99)
    );
    assert_eq!(
        (promoted.new_serial.as_str(), promoted.new_expires_at),
        ("", 0)
    );
    assert_eq!(promote("1").await, Err(AgentWriteError::Superseded));
}

async fn a_banned_agent_has_no_serial_and_is_not_promoted(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let node = Agent {
        new_serial: "2".to_owned(),
        ..agent("/spire/agent/x")
    };
    datastore.agents.put(node.clone()).await.unwrap();
    datastore.agents.ban(&node.id).await.unwrap();
    let banned = registry.agent(&node.id).unwrap();
    assert!(banned.banned && banned.serial.is_empty() && banned.new_serial.is_empty());
    for serial in ["", "1", "2"] {
        assert_eq!(
            datastore.agents.promote_serial(&node.id, serial).await,
            Err(AgentWriteError::Superseded)
        );
    }
    assert_eq!(
        datastore.agents.ban(&id("/spire/agent/z")).await,
        Err(AgentWriteError::NotFound)
    );
}

async fn a_renewal_is_of_the_svid_that_is_held(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let x = id("/spire/agent/x");
    datastore.agents.put(agent("/spire/agent/x")).await.unwrap();
    let serials = || {
        let agent = registry.agent(&x).unwrap();
        let ends = (agent.expires_at, agent.new_expires_at);
        (agent.serial.clone(), agent.new_serial.clone(), ends)
    };
    datastore
        .agents
        .renew(&x, "1", "2", NOW + 70)
        .await
        .unwrap();
    let expected = ("1".to_owned(), "2".to_owned(), (NOW + 60, NOW + 70));
    assert_eq!(serials(), expected);
    // Its answer was lost.
    datastore
        .agents
        .renew(&x, "1", "3", NOW + 80)
        .await
        .unwrap();
    let lost = datastore.agents.renew(&x, "2", "4", NOW + 90).await;
    assert_eq!(lost, Err(AgentWriteError::Superseded));
    // Under the renewed SVID, before any other call promoted it.
    datastore
        .agents
        .renew(&x, "3", "4", NOW + 90)
        .await
        .unwrap();
    let expected = ("3".to_owned(), "4".to_owned(), (NOW + 80, NOW + 90));
    assert_eq!(serials(), expected);
    for held in ["1", "2", ""] {
        let refused = datastore.agents.renew(&x, held, "5", NOW + 99).await;
        assert_eq!(refused, Err(AgentWriteError::Superseded), "{held}");
    }
    assert_eq!(serials(), expected);
}

async fn a_renewal_does_not_survive_a_ban_or_a_new_attestation(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let x = id("/spire/agent/x");
    let renew = || datastore.agents.renew(&x, "1", "2", NOW + 120);
    assert_eq!(renew().await, Err(AgentWriteError::NotFound));
    let attested = Agent {
        serial: "9".to_owned(),
        ..agent("/spire/agent/x")
    };
    datastore.agents.put(attested).await.unwrap();
    assert_eq!(renew().await, Err(AgentWriteError::Superseded));
    datastore.agents.ban(&x).await.unwrap();
    assert_eq!(renew().await, Err(AgentWriteError::Banned));
    assert_eq!(registry.agent(&x).unwrap().new_serial, "");
}

async fn deleting_takes_the_token_alias_along(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let path = "/spire/agent/join_token/t";
    datastore.agents.put(agent(path)).await.unwrap();
    create(
        &datastore,
        entry(path, "/node", &[&format!("spiffe_id:{}", id(path))]),
    )
    .await;
    let kept = create(&datastore, entry(path, "/web", &["a:1"])).await;
    datastore.agents.delete(&id(path)).await.unwrap();
    assert_eq!(
        datastore.agents.delete(&id(path)).await,
        Err(AgentWriteError::NotFound)
    );
    assert!(registry.agent(&id(path)).is_none());
    assert_eq!(
        registry
            .entries(&EntryFilter::default(), &Page::default())
            .unwrap()
            .items,
        [kept]
    );
}

async fn pruning_spares_banned_and_unexpired_agents(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let expired = |path| Agent {
        expires_at: NOW - 60,
        ..agent(path)
    };
    for node in [
        agent("/spire/agent/live"),
        expired("/spire/agent/once"),
        Agent {
            can_reattest: true,
            ..expired("/spire/agent/again")
        },
        Agent {
            can_reattest: true,
            banned: true,
            ..expired("/spire/agent/banned")
        },
    ] {
        datastore.agents.put(node).await.unwrap();
    }
    let before = subject.now() - Duration::from_secs(30);
    let pruned = datastore.agents.prune(before, false).await.unwrap();
    assert_eq!(
        pruned
            .iter()
            .map(|agent| agent.id.clone())
            .collect::<Vec<_>>(),
        [id("/spire/agent/again")]
    );
    assert_eq!(datastore.agents.prune(before, false).await.unwrap(), []);
    assert_eq!(datastore.agents.prune(before, true).await.unwrap().len(), 1);
    assert_eq!(registry.agent_count(&AgentFilter::default()), 2);
}

async fn filters_add_up(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    for node in [
        agent("/spire/agent/a"),
        Agent {
            banned: true,
            ..agent("/spire/agent/b")
        },
        Agent {
            can_reattest: true,
            attestation_type: "x509pop".to_owned(),
            ..agent("/spire/agent/c")
        },
        Agent {
            expires_at: NOW,
            selectors: selectors(&[]),
            ..agent("/spire/agent/d")
        },
    ] {
        datastore.agents.put(node).await.unwrap();
    }
    let listed = |filter: AgentFilter| {
        let items = registry.agents(&filter, &Page::default()).unwrap().items;
        assert_eq!(registry.agent_count(&filter), items.len());
        items
            .iter()
            .map(|agent| agent.id.path().replace("/spire/agent/", ""))
            .collect::<String>()
    };
    let all = AgentFilter::default;
    assert_eq!(listed(all()), "abcd");
    assert_eq!(
        listed(AgentFilter {
            by_attestation_type: Some("x509pop".to_owned()),
            ..all()
        }),
        "c"
    );
    assert_eq!(
        listed(AgentFilter {
            by_banned: Some(false),
            by_can_reattest: Some(false),
            ..all()
        }),
        "ad"
    );
    assert_eq!(
        listed(AgentFilter {
            by_expires_before: Some(NOW + 1),
            ..all()
        }),
        "d"
    );
    let by = |list: &[&str], how| AgentFilter {
        by_selectors: Some((selectors(list), how)),
        ..AgentFilter::default()
    };
    assert_eq!(
        listed(by(&["a:1", "b:2"], SetMatch::Subset)),
        "abc",
        "nothing is no subset"
    );
    assert_eq!(listed(by(&["a:1", "b:2"], SetMatch::Superset)), "");
    assert_eq!(listed(by(&["a:1"], SetMatch::Exact)), "abc");
    assert_eq!(listed(by(&["b:2"], SetMatch::Any)), "");
}
