//! What the entry commands share: the flags of an entry, reading one from them, and showing one.

use config::fault::Code;
use proto::spire::api::types::{Entry, entry::AdditionalAttributes};

use crate::cli::args::Args;
use crate::cli::error::CliError;
use crate::cli::output::Table;
use crate::cli::spec::{Flag, Kind, flag};
use crate::cli::{ids, selectors, timefmt};

pub(super) const ENTRY_ID: Flag = flag("entryID", "entry-id", Kind::Text, "The entry's own ID");
pub(super) const PARENT_ID: Flag = flag(
    "parentID",
    "parent-id",
    Kind::Text,
    "SPIFFE ID of the entry's parent: a node, or an alias of nodes",
);
pub(super) const SPIFFE_ID: Flag = flag(
    "spiffeID",
    "spiffe-id",
    Kind::Text,
    "SPIFFE ID that the entry grants",
);
pub(super) const X509_TTL: Flag = flag(
    "x509SVIDTTL",
    "x509-svid-ttl",
    Kind::Seconds,
    "Lifetime of X509-SVIDs; 0 is the server's default",
);
pub(super) const JWT_TTL: Flag = flag(
    "jwtSVIDTTL",
    "jwt-svid-ttl",
    Kind::Seconds,
    "Lifetime of JWT-SVIDs; 0 is the server's default",
);
pub(super) const DATA: Flag = flag(
    "data",
    "data",
    Kind::Text,
    "JSON file with the entries, in place of the other flags; - is standard input",
);
pub(super) const FEDERATES_WITH: Flag = flag(
    "federatesWith",
    "federates-with",
    Kind::List,
    "Trust domain whose bundle the workload gets too; may be given several times",
);
pub(super) const ADMIN: Flag = flag(
    "admin",
    "admin",
    Kind::Switch,
    "The workload may administer the server",
);
pub(super) const STORE_SVID: Flag = flag(
    "storeSVID",
    "store-svid",
    Kind::Switch,
    "The SVID goes to an SVID store, not to a workload",
);
pub(super) const DOWNSTREAM: Flag = flag(
    "downstream",
    "downstream",
    Kind::Switch,
    "The workload is a downstream server",
);
pub(super) const EXPIRY: Flag = flag(
    "entryExpiry",
    "expires-at",
    Kind::Moment,
    "Expiry of the entry; 0 is never",
);
pub(super) const DNS: Flag = flag(
    "dns",
    "dns",
    Kind::List,
    "DNS name in the X509-SVID; may be given several times, the first is the CN too",
);
pub(super) const HINT: Flag = flag(
    "hint",
    "hint",
    Kind::Text,
    "Hint for the workload that tells its identities apart",
);
pub(super) const NO_PREFETCH: Flag = flag(
    "disableX509SVIDPrefetch",
    "disable-x509-svid-prefetch",
    Kind::Switch,
    "Issue the X509-SVID only when a workload asks",
);
pub(super) const JTI: Flag = flag(
    "jwtSVIDIncludeJTI",
    "jwt-svid-include-jti",
    Kind::Switch,
    "Put a unique jti claim in each JWT-SVID; such SVIDs are not cached",
);
pub(super) const MATCH_FEDERATES_WITH: Flag = flag(
    "matchFederatesWithOn",
    "match-federates-with-on",
    Kind::Text,
    "How the federated trust domains are matched: exact, any, superset or subset",
)
.or("superset");

/// Refuses lifetimes below zero, before the other values are looked at.
pub(super) fn check_ttls(args: &Args) -> Result<(), CliError> {
    for (name, kind) in [("x509SVIDTTL", "x509"), ("jwtSVIDTTL", "JWT")] {
        if args.integer(name) < 0 {
            return Err(CliError::wrong(
                Code::InvalidTtl,
                "",
                format!("a positive {kind}-SVID TTL is required"),
            ));
        }
    }
    Ok(())
}

/// The fields that the flags give directly; the IDs are the caller's to fill in.
pub(super) fn from_args(args: &Args) -> Result<Entry, CliError> {
    let attributes = (args.switch("disableX509SVIDPrefetch") || args.switch("jwtSVIDIncludeJTI"))
        .then(|| AdditionalAttributes {
            disable_x509_svid_prefetch: args.switch("disableX509SVIDPrefetch"),
            jwt_svid_include_jti: args.switch("jwtSVIDIncludeJTI"),
        });
    Ok(Entry {
        id: args.text("entryID").to_owned(),
        selectors: selectors::parse_all(&args.list("selector"))?,
        x509_svid_ttl: args.seconds("x509SVIDTTL")?,
        jwt_svid_ttl: args.seconds("jwtSVIDTTL")?,
        federates_with: args.list("federatesWith"),
        admin: args.switch("admin"),
        downstream: args.switch("downstream"),
        expires_at: args.integer("entryExpiry"),
        dns_names: args.list("dns"),
        store_svid: args.switch("storeSVID"),
        hint: args.text("hint").to_owned(),
        additional_attributes: attributes,
        ..Entry::default()
    })
}

/// SPIRE's text of an entry.
pub(super) fn text(entry: &Entry) -> String {
    let mut lines = Vec::new();
    let mut line = |label: &str, value: &str| lines.push(format!("{label:<24}: {value}\n"));
    let ttl = |seconds: i32| {
        if seconds == 0 {
            "default".to_owned()
        } else {
            seconds.to_string()
        }
    };
    line(
        "Entry ID",
        if entry.id.is_empty() {
            "(none)"
        } else {
            &entry.id
        },
    );
    line("SPIFFE ID", &ids::text(entry.spiffe_id.as_ref()));
    line("Parent ID", &ids::text(entry.parent_id.as_ref()));
    line("Revision", &entry.revision_number.to_string());
    if entry.downstream {
        line("Downstream", "true");
    }
    line("X509-SVID TTL", &ttl(entry.x509_svid_ttl));
    line("JWT-SVID TTL", &ttl(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        line("Expiration time", &timefmt::go_text(entry.expires_at));
    }
    for selector in &entry.selectors {
        line(
            "Selector",
            &format!("{}:{}", selector.r#type, selector.value),
        );
    }
    for domain in &entry.federates_with {
        line("FederatesWith", domain);
    }
    for name in &entry.dns_names {
        line("DNS name", name);
    }
    if entry.admin {
        line("Admin", "true");
    }
    if entry.store_svid {
        line("StoreSvid", "true");
    }
    if !entry.hint.is_empty() {
        line("Hint", &entry.hint);
    }
    if let Some(attributes) = &entry.additional_attributes {
        if attributes.disable_x509_svid_prefetch {
            line("DisableX509SvidPrefetch", "true");
        }
        if attributes.jwt_svid_include_jti {
            line("JwtSvidIncludeJti", "true");
        }
    }
    lines.push("\n".to_owned());
    lines.concat()
}

/// The native table of entries.
pub(super) fn table<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> Table {
    let rows = entries
        .into_iter()
        .map(|entry| {
            let selectors: Vec<String> = entry
                .selectors
                .iter()
                .map(|s| format!("{}:{}", s.r#type, s.value))
                .collect();
            vec![
                entry.id.clone(),
                ids::text(entry.spiffe_id.as_ref()),
                ids::text(entry.parent_id.as_ref()),
                selectors.join(" "),
            ]
        })
        .collect();
    Table {
        headings: vec!["ENTRY", "SPIFFE ID", "PARENT", "SELECTORS"],
        rows,
    }
}
