//! Messages that become values, and with which words the others are refused.

mod bundles;

use spiffe::{Entry, Selector, SpiffeId, TrustDomain};

use super::{
    agent_entry_mask, agent_id_from_wire, entry_fields_from_wire, entry_from_wire, entry_to_wire,
    member_id_from_wire, new_entry_from_wire, selectors_from_wire, spiffe_id_from_wire,
    workload_id_from_wire,
};
use crate::spire::api::types::{self, EntryMask, entry::AdditionalAttributes};

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn wire_id(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid {
        trust_domain: trust_domain.into(),
        path: path.into(),
    })
}

fn wire_selector(kind: &str, value: &str) -> types::Selector {
    types::Selector {
        r#type: kind.into(),
        value: value.into(),
    }
}

fn wire_entry() -> types::Entry {
    types::Entry {
        id: "entry-1".into(),
        spiffe_id: wire_id("example.org", "/web"),
        parent_id: wire_id("example.org", "/spire/agent/x"),
        selectors: vec![
            wire_selector("unix", "uid:0"),
            wire_selector("unix", "gid:0"),
        ],
        x509_svid_ttl: 60,
        federates_with: vec!["other.test".into()],
        admin: true,
        downstream: true,
        expires_at: 1000,
        dns_names: vec!["web.test".into()],
        revision_number: 7,
        store_svid: true,
        jwt_svid_ttl: 30,
        hint: "external".into(),
        created_at: 500,
        additional_attributes: Some(AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
    }
}

fn entry() -> Entry {
    entry_from_wire(&wire_entry()).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, super::ConvertError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_entry_survives_the_wire() {
    let selectors = ["unix:gid:0", "unix:uid:0"].map(|text| Selector::parse(text).unwrap());
    let entry = entry();
    assert_eq!(
        entry.spiffe_id,
        SpiffeId::parse("spiffe://example.org/web").unwrap()
    );
    assert_eq!(entry.selectors.as_slice(), selectors);
    let mut wire = wire_entry();
    wire.selectors.reverse();
    assert_eq!(entry_to_wire(&entry, None), wire);
    assert_eq!(entry_from_wire(&wire).unwrap(), entry);
}

#[test]
fn an_empty_mask_leaves_the_entry_id_alone() {
    let masked = entry_to_wire(&entry(), Some(&EntryMask::default()));
    assert_eq!(
        masked,
        types::Entry {
            id: "entry-1".into(),
            ..types::Entry::default()
        }
    );
}

#[test]
fn each_field_of_the_mask_selects_its_field() {
    type Select = fn(&mut EntryMask);
    type Copy = fn(&mut types::Entry, types::Entry);
    let fields: [(Select, Copy); 15] = [
        (
            |mask| mask.spiffe_id = true,
            |to, from| to.spiffe_id = from.spiffe_id,
        ),
        (
            |mask| mask.parent_id = true,
            |to, from| to.parent_id = from.parent_id,
        ),
        (
            |mask| mask.selectors = true,
            |to, from| to.selectors = from.selectors,
        ),
        (
            |mask| mask.x509_svid_ttl = true,
            |to, from| to.x509_svid_ttl = from.x509_svid_ttl,
        ),
        (
            |mask| mask.jwt_svid_ttl = true,
            |to, from| to.jwt_svid_ttl = from.jwt_svid_ttl,
        ),
        (
            |mask| mask.federates_with = true,
            |to, from| to.federates_with = from.federates_with,
        ),
        (|mask| mask.admin = true, |to, from| to.admin = from.admin),
        (
            |mask| mask.downstream = true,
            |to, from| to.downstream = from.downstream,
        ),
        (
            |mask| mask.expires_at = true,
            |to, from| to.expires_at = from.expires_at,
        ),
        (
            |mask| mask.dns_names = true,
            |to, from| to.dns_names = from.dns_names,
        ),
        (
            |mask| mask.revision_number = true,
            |to, from| to.revision_number = from.revision_number,
        ),
        (
            |mask| mask.store_svid = true,
            |to, from| to.store_svid = from.store_svid,
        ),
        (|mask| mask.hint = true, |to, from| to.hint = from.hint),
        (
            |mask| mask.created_at = true,
            |to, from| to.created_at = from.created_at,
        ),
        (
            |mask| mask.additional_attributes = true,
            |to, from| to.additional_attributes = from.additional_attributes,
        ),
    ];
    let whole = entry_to_wire(&entry(), None);
    for (select, copy) in fields {
        let mut mask = EntryMask::default();
        select(&mut mask);
        let mut expected = types::Entry {
            id: "entry-1".into(),
            ..types::Entry::default()
        };
        copy(&mut expected, whole.clone());
        assert_eq!(entry_to_wire(&entry(), Some(&mask)), expected);
    }
}

#[test]
fn an_entry_with_the_agents_mask_can_be_read() {
    let read = entry_from_wire(&entry_to_wire(&entry(), Some(&agent_entry_mask()))).unwrap();
    let entry = entry();
    assert_eq!(read.parent_id, domain().id());
    assert_eq!(read.selectors, entry.selectors);
    assert_eq!(read.created_at, entry.created_at);
    assert_eq!(read.expires_at, entry.expires_at);
    assert_eq!(read.dns_names, entry.dns_names);
}

#[test]
fn refuses_an_entry_without_an_id_or_with_a_malformed_one() {
    let wire = types::Entry {
        spiffe_id: None,
        ..wire_entry()
    };
    assert_eq!(
        refusal(entry_from_wire(&wire)),
        "invalid spiffe ID: request must specify SPIFFE ID"
    );
    let wire = types::Entry {
        spiffe_id: wire_id("example.org", "web"),
        ..wire_entry()
    };
    assert_eq!(
        refusal(entry_from_wire(&wire)),
        "invalid spiffe ID: path must have a leading slash"
    );
    let wire = types::Entry {
        parent_id: wire_id("", "/x"),
        ..wire_entry()
    };
    assert_eq!(
        refusal(entry_from_wire(&wire)),
        "invalid parent ID: trust domain is missing"
    );
}

#[test]
fn a_new_entry_has_no_revision_and_no_time_of_creation() {
    let new = new_entry_from_wire(&domain(), &wire_entry()).unwrap();
    assert_eq!(
        new,
        Entry {
            revision_number: 0,
            created_at: 0,
            ..entry()
        }
    );
}

#[test]
fn refuses_a_new_entry_in_the_words_of_spire() {
    let refused = |wire| refusal(new_entry_from_wire(&domain(), &wire));
    let cases = [
        (
            types::Entry {
                parent_id: wire_id("other.test", "/x"),
                ..wire_entry()
            },
            r#"invalid parent ID: "spiffe://other.test/x" is not a member of trust domain "example.org""#,
        ),
        (
            types::Entry {
                parent_id: wire_id("example.org", ""),
                ..wire_entry()
            },
            r#"invalid parent ID: "spiffe://example.org" is not a member of trust domain "example.org"; path is empty"#,
        ),
        (
            types::Entry {
                spiffe_id: wire_id("example.org", "/spire/server"),
                ..wire_entry()
            },
            r#"invalid spiffe ID: "spiffe://example.org/spire/server" is not a workload in trust domain "example.org"; path is in the reserved namespace"#,
        ),
        (
            types::Entry {
                spiffe_id: wire_id("example.org", ""),
                ..wire_entry()
            },
            r#"invalid spiffe ID: "spiffe://example.org" is not a workload in trust domain "example.org"; path is empty"#,
        ),
    ];
    for (wire, text) in cases {
        assert_eq!(refused(wire), text);
    }
}

#[test]
fn refuses_a_new_entry_for_its_names_selectors_and_hint() {
    let refused = |wire| refusal(new_entry_from_wire(&domain(), &wire));
    let cases = [
        (
            types::Entry {
                dns_names: vec!["*".into()],
                ..wire_entry()
            },
            "invalid DNS name: wildcard must be first label (\"*\")",
        ),
        (
            types::Entry {
                federates_with: vec!["No".into()],
                ..wire_entry()
            },
            "invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, dots, \
             dashes, and underscores",
        ),
        (
            types::Entry {
                selectors: Vec::new(),
                ..wire_entry()
            },
            "selector list is empty",
        ),
        (
            types::Entry {
                selectors: vec![wire_selector("", "a")],
                ..wire_entry()
            },
            "missing selector type",
        ),
        (
            types::Entry {
                selectors: vec![wire_selector("a:b", "c")],
                ..wire_entry()
            },
            "selector type contains ':'",
        ),
        (
            types::Entry {
                selectors: vec![wire_selector("unix", "")],
                ..wire_entry()
            },
            "missing selector value",
        ),
        (
            types::Entry {
                hint: "h".repeat(1025),
                ..wire_entry()
            },
            "hint is too long, max length is 1024 characters",
        ),
    ];
    for (wire, text) in cases {
        assert_eq!(refused(wire), text);
    }
}

#[test]
fn fields_outside_the_mask_are_neither_read_nor_checked() {
    let broken = types::Entry {
        spiffe_id: None,
        parent_id: None,
        selectors: Vec::new(),
        dns_names: vec!["*".into()],
        hint: "h".repeat(1025),
        ..wire_entry()
    };
    let mask = EntryMask {
        admin: true,
        ..EntryMask::default()
    };
    let fields = entry_fields_from_wire(&domain(), &broken, Some(&mask)).unwrap();
    assert_eq!(
        fields,
        super::EntryFields {
            admin: Some(true),
            ..super::EntryFields::default()
        }
    );
}

#[test]
fn tells_agents_workloads_and_members_apart() {
    let domain = domain();
    let agent = wire_id("example.org", "/spire/agent/join_token/1");
    let agent = agent.as_ref();
    agent_id_from_wire(&domain, agent).unwrap();
    member_id_from_wire(&domain, agent).unwrap();
    assert!(
        refusal(workload_id_from_wire(&domain, agent))
            .ends_with("path is in the reserved namespace")
    );
    let workload = wire_id("example.org", "/web");
    assert_eq!(
        refusal(agent_id_from_wire(&domain, workload.as_ref())),
        r#""spiffe://example.org/web" is not an agent in trust domain "example.org"; path is not in the agent namespace"#
    );
    let root = wire_id("example.org", "");
    assert!(refusal(agent_id_from_wire(&domain, root.as_ref())).ends_with("; path is empty"));
    assert_eq!(
        refusal(spiffe_id_from_wire(None)),
        "request must specify SPIFFE ID"
    );
}

#[test]
fn an_empty_list_of_selectors_is_an_empty_set() {
    assert!(selectors_from_wire(&[]).unwrap().is_empty());
}
