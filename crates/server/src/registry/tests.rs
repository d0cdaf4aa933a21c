//! Who is authorized for what, and how the registry lists, on a state built by hand.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use spiffe::clock::ManualClock;

use super::*;
use daemon::telemetry::Telemetry;

const NOW: i64 = 1_700_000_000;

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&td(), path).unwrap()
}

fn selectors(list: &[&str]) -> SelectorSet {
    SelectorSet::from(
        list.iter()
            .map(|text| spiffe::selector::Selector::parse(text).unwrap())
            .collect::<Vec<_>>(),
    )
}

/// An entry named by its path, with one selector.
fn entry(parent: &str, path: &str) -> Entry {
    Entry {
        id: Arc::from(path.trim_start_matches('/').replace('/', ".")),
        spiffe_id: id(path),
        parent_id: id(parent),
        selectors: selectors(&["a:1"]),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        hint: String::new(),
        created_at: 0,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn alias(path: &str, list: &[&str]) -> Entry {
    Entry {
        selectors: selectors(list),
        ..entry("/spire/server", path)
    }
}

fn agent(path: &str, list: &[&str]) -> Object {
    Object::Agent(Arc::new(Agent {
        id: id(path),
        attestation_type: "test".to_owned(),
        serial: "1".to_owned(),
        expires_at: NOW + 60,
        new_serial: String::new(),
        new_expires_at: 0,
        can_reattest: false,
        banned: false,
        selectors: selectors(list),
        agent_version: String::new(),
    }))
}

fn at(revision: u64) -> Cursor {
    Cursor::new(revision, 0)
}

fn registry(entries: Vec<Entry>, agents: Vec<Object>) -> RegistryWriter {
    let mut state = State::empty(&td(), Cursor::default());
    let objects = entries
        .into_iter()
        .map(|entry| Object::Entry(Arc::new(entry)))
        .chain(agents);
    for (row, object) in (1..).zip(objects) {
        state.put(row, object);
    }
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs()));
    let bound = Duration::from_secs(300);
    RegistryWriter::new(state, td(), Arc::new(clock), bound, Telemetry::default())
}

/// The authorized entries' names, in order; each asked for alone as well.
fn authorized(registry: &Registry, agent: &str) -> Vec<String> {
    let agent = id(agent);
    let mut names: Vec<String> = registry
        .authorized_entries(&agent)
        .iter()
        .map(|entry| entry.id.to_string())
        .collect();
    names.sort();
    for entry in registry
        .entries(&EntryFilter::default(), &Page::default())
        .unwrap()
        .items
    {
        let is_in = names.contains(&entry.id.to_string());
        assert_eq!(
            registry.authorized_entry(&agent, &entry.id).is_some(),
            is_in,
            "{}",
            entry.id
        );
        assert_eq!(registry.authorizes(&agent, &entry), is_in, "{}", entry.id);
    }
    names
}

#[test]
fn an_agent_gets_its_descendants_and_nothing_else() {
    let registry = registry(
        vec![
            entry("/spire/agent/x", "/a"),
            entry("/a", "/a/b"),
            entry("/a/b", "/a/b/c"),
            entry("/spire/agent/y", "/other"),
            entry("/unrelated", "/z"),
        ],
        vec![],
    );
    assert_eq!(
        authorized(&registry, "/spire/agent/x"),
        ["a", "a.b", "a.b.c"]
    );
    assert_eq!(authorized(&registry, "/spire/agent/y"), ["other"]);
    assert!(authorized(&registry, "/spire/agent/nobody").is_empty());
    assert!(
        registry
            .authorized_entry(&id("/spire/agent/x"), "absent")
            .is_none()
    );
}

#[test]
fn a_proof_of_authorization_is_void_when_its_entry_is_withdrawn() {
    let (x, at) = (id("/spire/agent/x"), "/spire/agent/x");
    let before = registry(vec![entry(at, "/a")], vec![]);
    let proof = before.authorized_entry(&x, "a").unwrap();
    assert!(before.is_still_authorized(&proof));
    // What else changed in the entry is of no matter.
    let mut longer = entry(at, "/a");
    longer.x509_svid_ttl = 60;
    assert!(registry(vec![longer], vec![]).is_still_authorized(&proof));

    let deleted = registry(vec![entry(at, "/b")], vec![]);
    let moved = registry(vec![entry("/spire/agent/y", "/a")], vec![]);
    let mut expired = entry(at, "/a");
    expired.expires_at = NOW;
    let mut renamed = entry(at, "/a");
    renamed.spiffe_id = id("/other");
    let mut named = entry(at, "/a");
    named.dns_names = vec!["a.test".to_owned()];
    let mut shorter = entry(at, "/a");
    shorter.expires_at = NOW + 60;
    let Object::Agent(mut banned) = agent(at, &[]) else {
        panic!("it is an agent")
    };
    Arc::make_mut(&mut banned).banned = true;
    for now in [
        deleted,
        moved,
        registry(vec![expired], vec![]),
        registry(vec![renamed], vec![]),
        registry(vec![named], vec![]),
        registry(vec![shorter.clone()], vec![]),
        registry(vec![entry(at, "/a")], vec![Object::Agent(banned)]),
    ] {
        assert!(!now.is_still_authorized(&proof));
    }
    // An end that moves away takes nothing back.
    let proof = registry(vec![shorter], vec![]);
    let proof = proof.authorized_entry(&x, "a").unwrap();
    assert!(before.is_still_authorized(&proof));
}

#[test]
fn an_alias_gives_its_children_to_agents_that_have_all_its_selectors() {
    let registry = registry(
        vec![
            alias("/cluster", &["k8s:cluster:c1", "k8s:zone:z"]),
            alias("/unearned", &["k8s:cluster:c1", "k8s:zone:other"]),
            entry("/cluster", "/web"),
            entry("/web", "/web/child"),
            entry("/unearned", "/secret"),
        ],
        vec![
            agent(
                "/spire/agent/full",
                &["k8s:cluster:c1", "k8s:zone:z", "more:1"],
            ),
            agent("/spire/agent/part", &["k8s:cluster:c1"]),
            agent("/spire/agent/none", &[]),
        ],
    );
    assert_eq!(
        authorized(&registry, "/spire/agent/full"),
        ["web", "web.child"],
        "and not the alias itself"
    );
    assert!(authorized(&registry, "/spire/agent/part").is_empty());
    assert!(authorized(&registry, "/spire/agent/none").is_empty());
    assert!(authorized(&registry, "/spire/agent/unknown").is_empty());
}

#[test]
fn a_cycle_of_parents_ends() {
    let mut registry = registry(
        vec![
            entry("/spire/agent/x", "/a"),
            entry("/a", "/b"),
            entry("/b", "/c"),
            entry("/c", "/b/c"),
        ],
        vec![],
    );
    registry.apply(
        &[at(1)],
        vec![write(Entry {
            id: Arc::from("loop"),
            ..entry("/c", "/a")
        })],
    );
    registry.apply(
        &[at(2)],
        vec![write(Entry {
            id: Arc::from("self"),
            ..entry("/lonely", "/lonely")
        })],
    );
    assert_eq!(
        authorized(&registry, "/spire/agent/x"),
        ["a", "b", "b.c", "c", "loop"]
    );
    assert!(authorized(&registry, "/lonely/agent").is_empty());
}

fn write(entry: Entry) -> Write {
    let object = Object::Entry(Arc::new(entry));
    Write {
        kind: Kind::Entry,
        key: Arc::from(object.key()),
        row: 1_000,
        object: Some(object),
        unknown: None,
        revision: 1,
    }
}

#[test]
fn an_expired_entry_authorizes_neither_itself_nor_its_children() {
    let expired = |entry: Entry| Entry {
        expires_at: NOW - 1,
        ..entry
    };
    let registry = registry(
        vec![
            expired(entry("/spire/agent/x", "/gone")),
            entry("/gone", "/gone/child"),
            Entry {
                expires_at: NOW,
                ..entry("/spire/agent/x", "/just-gone")
            },
            Entry {
                expires_at: NOW + 1,
                ..entry("/spire/agent/x", "/ending")
            },
            expired(alias("/pool", &["a:1"])),
            entry("/pool", "/pooled"),
        ],
        vec![agent("/spire/agent/x", &["a:1"])],
    );
    assert_eq!(authorized(&registry, "/spire/agent/x"), ["ending"]);
    assert!(registry.find_entry_for(&id("/gone"), |_| true).is_none());
    assert_eq!(registry.entries_for_spiffe_id(&id("/gone")).len(), 1);
}

#[test]
fn an_id_that_very_many_entries_give_is_answered_rightly() {
    let mut entries: Vec<Entry> = (0..400)
        .map(|n| Entry {
            id: Arc::from(format!("many-{n}")),
            ..entry(&format!("/spire/agent/{n}"), "/daemon")
        })
        .collect();
    entries.push(entry("/daemon", "/below"));
    entries.extend((0..400).map(|n| Entry {
        id: Arc::from(format!("alias-{n}")),
        ..alias("/pool", &[&format!("node:{n}")])
    }));
    entries.push(entry("/pool", "/pooled"));
    let registry = registry(entries, vec![agent("/spire/agent/399", &["node:399"])]);
    assert_eq!(
        authorized(&registry, "/spire/agent/399"),
        ["below", "many-399", "pooled"]
    );
    assert_eq!(authorized(&registry, "/spire/agent/7"), ["below", "many-7"]);
    assert!(authorized(&registry, "/spire/agent/none").is_empty());
}

#[test]
fn a_changed_alias_is_found_by_its_new_selectors_only() {
    let mut registry = registry(
        vec![alias("/pool", &["a:1"]), entry("/pool", "/web")],
        vec![
            agent("/spire/agent/one", &["a:1"]),
            agent("/spire/agent/two", &["a:2"]),
        ],
    );
    registry.apply(&[at(1)], vec![write(alias("/pool", &["a:2"]))]);
    assert!(authorized(&registry, "/spire/agent/one").is_empty());
    assert_eq!(authorized(&registry, "/spire/agent/two"), ["web"]);
    let gone = Write {
        kind: Kind::Entry,
        key: Arc::from("pool"),
        row: 0,
        object: None,
        unknown: None,
        revision: 2,
    };
    registry.apply(&[at(2)], vec![gone]);
    assert!(authorized(&registry, "/spire/agent/two").is_empty());
}

fn other(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn filtered() -> RegistryWriter {
    registry(
        vec![
            Entry {
                hint: "h".to_owned(),
                ..entry("/p", "/1")
            },
            Entry {
                selectors: selectors(&["a:1", "a:2"]),
                downstream: true,
                ..entry("/p", "/2")
            },
            Entry {
                selectors: selectors(&["a:2", "a:3"]),
                federates_with: vec![other("x.org")],
                ..entry("/q", "/3")
            },
            Entry {
                federates_with: vec![other("x.org"), other("y.org")],
                ..entry("/q", "/4")
            },
        ],
        vec![],
    )
}

fn listed(registry: &Registry, filter: &EntryFilter) -> String {
    let items = registry.entries(filter, &Page::default()).unwrap().items;
    assert_eq!(registry.entry_count(filter), items.len());
    items.iter().map(|entry| entry.id.to_string()).collect()
}

#[test]
fn set_filters_match_as_spire_does() {
    let registry = filtered();
    let by = |list: &[&str], how| {
        let filter = EntryFilter {
            by_selectors: Some((selectors(list), how)),
            ..Default::default()
        };
        listed(&registry, &filter)
    };
    assert_eq!(by(&["a:1", "a:2"], SetMatch::Exact), "2");
    assert_eq!(by(&["a:1", "a:2"], SetMatch::Subset), "124");
    assert_eq!(by(&["a:2"], SetMatch::Superset), "23");
    assert_eq!(by(&["a:3", "a:9"], SetMatch::Any), "3");
    let with = |list: &[&str], how| {
        let domains = list.iter().map(|name| other(name)).collect();
        listed(
            &registry,
            &EntryFilter {
                by_federates_with: Some((domains, how)),
                ..Default::default()
            },
        )
    };
    assert_eq!(with(&["x.org"], SetMatch::Exact), "3");
    assert_eq!(
        with(&["x.org", "y.org"], SetMatch::Subset),
        "34",
        "no federation is no subset"
    );
    assert_eq!(with(&["x.org"], SetMatch::Superset), "34");
    assert_eq!(with(&["y.org", "z.org"], SetMatch::Any), "4");
}

#[test]
fn plain_filters_add_up() {
    let registry = filtered();
    let all = EntryFilter::default;
    let of = |filter: EntryFilter| listed(&registry, &filter);
    assert_eq!(
        of(EntryFilter {
            by_parent_id: Some(id("/p")),
            ..all()
        }),
        "12"
    );
    assert_eq!(
        of(EntryFilter {
            by_spiffe_id: Some(id("/3")),
            ..all()
        }),
        "3"
    );
    assert_eq!(
        of(EntryFilter {
            by_spiffe_id: Some(id("/3")),
            by_parent_id: Some(id("/p")),
            ..all()
        }),
        ""
    );
    assert_eq!(
        of(EntryFilter {
            by_hint: Some("h".to_owned()),
            ..all()
        }),
        "1"
    );
    assert_eq!(
        of(EntryFilter {
            by_hint: Some(String::new()),
            ..all()
        }),
        "1234"
    );
    assert_eq!(
        of(EntryFilter {
            by_downstream: true,
            ..all()
        }),
        "2"
    );
}

#[test]
fn a_scan_longer_than_its_budget_goes_on_where_it_stopped() {
    let count = SCAN_BUDGET * 2 + 10;
    let entries = (0..count).map(|n| Entry {
        hint: if n % SCAN_BUDGET == 5 {
            "rare".to_owned()
        } else {
            String::new()
        },
        ..entry("/p", &format!("/{n}"))
    });
    let registry = registry(entries.collect(), vec![]);
    let rare = EntryFilter {
        by_hint: Some("rare".to_owned()),
        ..Default::default()
    };
    let first = registry
        .entries(
            &rare,
            &Page {
                size: 2,
                token: String::new(),
            },
        )
        .unwrap();
    assert_eq!(first.items.len(), 2);
    let last = registry
        .entries(
            &rare,
            &Page {
                size: 2,
                token: first.next_token,
            },
        )
        .unwrap();
    assert_eq!((last.items.len(), last.next_token.as_str()), (1, ""));
    let children = EntryFilter {
        by_parent_id: Some(id("/p")),
        ..rare
    };
    assert_eq!(registry.entry_count(&children), 3);
    assert_eq!(registry.entry_count(&EntryFilter::default()), count);
}

#[test]
fn subscribers_hear_of_each_new_revision() {
    let mut registry = registry(vec![], vec![]);
    let mut heard = registry.subscribe();
    assert!(!heard.has_changed().unwrap());
    registry.apply(&[at(1)], vec![write(entry("/p", "/1"))]);
    assert_eq!(*heard.borrow_and_update(), 1);
    registry.replace(State::empty(&td(), at(7)));
    assert_eq!(*heard.borrow_and_update(), 7);
    assert!(registry.changes_since(at(1)).is_none());
    assert!(registry.changes_since(at(7)).unwrap().is_empty());
    assert_eq!(registry.entry_count(&EntryFilter::default()), 0);
}
