//! What the entry commands share: the flags of an entry, reading one from them, and showing one.

use config::fault::Code;
use proto::spire::api::types::{Entry, entry::AdditionalAttributes};

use crate::cli::args::Args;
use crate::cli::error::CliError;
use crate::cli::flag::Flag;
use crate::cli::output::{Shown, Table, View};
use crate::cli::selectors::{self, FEDERATES_WITH, SELECTOR};
use crate::cli::{ids, timefmt};

pub(crate) const ENTRY_ID: Flag<String> =
    Flag::text("entryID", "entry-id", "The entry's own ID").value("ENTRY-ID");
pub(crate) const PARENT_ID: Flag<String> = Flag::text(
    "parentID",
    "parent-id",
    "SPIFFE ID of the entry's parent: a node, or an alias of nodes",
)
.value("SPIFFE-ID");
pub(crate) const SPIFFE_ID: Flag<String> =
    Flag::text("spiffeID", "spiffe-id", "SPIFFE ID that the entry grants").value("SPIFFE-ID");
pub(crate) const X509_TTL: Flag<i64> = Flag::lifetime(
    "x509SVIDTTL",
    "x509-svid-ttl",
    "Lifetime of X509-SVIDs; 0 is the server's default",
)
// (SPIRE had one lifetime for both before 1.5.)
.formerly("ttl");
pub(crate) const JWT_TTL: Flag<i64> = Flag::lifetime(
    "jwtSVIDTTL",
    "jwt-svid-ttl",
    "Lifetime of JWT-SVIDs; 0 is the server's default",
)
.formerly("ttl");
pub(crate) const DATA: Flag<String> = Flag::text(
    "data",
    "data",
    "JSON file with the entries, in place of the other flags; - is standard input",
)
.value("FILE");
pub(crate) const ADMIN: Flag<bool> =
    Flag::switch("admin", "admin", "The workload may administer the server");
pub(crate) const STORE_SVID: Flag<bool> = Flag::switch(
    "storeSVID",
    "store-svid",
    "The SVID goes to an SVID store, not to a workload",
);
pub(crate) const DOWNSTREAM: Flag<bool> = Flag::switch(
    "downstream",
    "downstream",
    "The workload is a downstream server",
);
pub(crate) const EXPIRY: Flag<i64> = Flag::time(
    "entryExpiry",
    "expires-at",
    "Expiry of the entry; 0 is never",
);
pub(crate) const DNS: Flag<Vec<String>> = Flag::list(
    "dns",
    "dns",
    "DNS name in the X509-SVID; may be given several times, the first is the CN too",
)
.value("NAME");
pub(crate) const HINT: Flag<String> = Flag::text(
    "hint",
    "hint",
    "Hint for the workload that tells its identities apart",
);
pub(crate) const NO_PREFETCH: Flag<bool> = Flag::switch(
    "disableX509SVIDPrefetch",
    "disable-x509-svid-prefetch",
    "Issue the X509-SVID only when a workload asks",
);
pub(crate) const JTI: Flag<bool> = Flag::switch(
    "jwtSVIDIncludeJTI",
    "jwt-svid-include-jti",
    "Put a unique jti claim in each JWT-SVID; such SVIDs are not cached",
);

/// Refuses lifetimes below zero, before the other values are looked at.
pub(super) fn check_ttls(args: &Args) -> Result<(), CliError> {
    for (flag, kind) in [(X509_TTL, "x509"), (JWT_TTL, "JWT")] {
        if args.get(flag) < 0 {
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
    let attributes = (args.get(NO_PREFETCH) || args.get(JTI)).then(|| AdditionalAttributes {
        disable_x509_svid_prefetch: args.get(NO_PREFETCH),
        jwt_svid_include_jti: args.get(JTI),
    });
    Ok(Entry {
        id: args.get(ENTRY_ID).to_owned(),
        selectors: selectors::parse_all(args.get(SELECTOR))?,
        x509_svid_ttl: args.seconds(X509_TTL)?,
        jwt_svid_ttl: args.seconds(JWT_TTL)?,
        federates_with: args.get(FEDERATES_WITH).to_vec(),
        admin: args.get(ADMIN),
        downstream: args.get(DOWNSTREAM),
        expires_at: args.get(EXPIRY),
        dns_names: args.get(DNS).to_vec(),
        store_svid: args.get(STORE_SVID),
        hint: args.get(HINT).to_owned(),
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

/// The entry's selectors as they are typed.
pub(super) fn selector_texts(entry: &Entry) -> Vec<String> {
    entry
        .selectors
        .iter()
        .map(|selector| format!("{}:{}", selector.r#type, selector.value))
        .collect()
}

/// The native table of entries.
fn table<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> Table {
    let rows = entries
        .into_iter()
        .map(|entry| {
            let selectors = selector_texts(entry);
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

/// The entries that a filter let through.
#[derive(Debug)]
pub(super) struct Found(pub(super) Vec<Entry>);

impl Shown for Found {
    fn spire(&self) -> String {
        let count = self.0.len();
        let noun = if count == 1 { "entry" } else { "entries" };
        let body: String = self.0.iter().map(text).collect();
        format!("Found {count} {noun}\n{body}")
    }

    fn native(&self) -> View {
        View::Table(table(&self.0))
    }
}

/// The entries that the server took.
#[derive(Debug)]
pub(super) struct Written(pub(super) Vec<Entry>);

impl Shown for Written {
    fn spire(&self) -> String {
        self.0.iter().map(text).collect()
    }

    fn native(&self) -> View {
        View::Table(table(&self.0))
    }
}
