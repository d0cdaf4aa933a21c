//! What the server measures, by SPIRE's list (SPIRE: pkg/common/telemetry/server) and beyond it.

use daemon::telemetry::{Call, Counter, Gauge, Sample};

pub(crate) static STARTED: Gauge<2> = Gauge::new(
    "started",
    "started",
    &["version", "trust_domain_id"],
    "Set to 1 when the server starts.",
);

// The endpoints and what comes through them.
pub(crate) static RPC: Call<2> = Call::new(
    "rpc",
    "rpc.{service}.{method}",
    &["service", "method"],
    "Calls, until their answer begins; conversations, until their end.",
);
pub(crate) static RATE_LIMIT: Call<1> = Call::new(
    "rate_limit",
    "rateLimit.{limit}",
    &["limit"],
    "Calls that a rate limit holds, and how long it made them wait.",
);
pub(crate) static CONNECTIONS: Counter<2> = Counter::new(
    "connection",
    "",
    &["endpoint", "outcome"],
    "Connections: accepted, refused for their number, or ended in the TLS handshake.",
);

// The datastore and what it holds.
pub(crate) static COMMIT: Call<0> = Call::new(
    "datastore_commit",
    "",
    &[],
    "Write transactions of the database.",
);
pub(crate) static COMMIT_WRITES: Sample<0> = Sample::new(
    "datastore_commit_writes",
    "",
    &[],
    "Writes of one transaction.",
);
pub(crate) static RELOAD: Call<0> = Call::new(
    "datastore_reload",
    "entry.cache.reload",
    &[],
    "Loads of the whole database into memory.",
);
pub(crate) static ENTRIES: Gauge<0> = Gauge::new(
    "entries",
    "entry.entries_by_entryid_cache.count",
    &[],
    "Registration entries.",
);
pub(crate) static AGENTS: Gauge<0> = Gauge::new(
    "agents",
    "node.agents_by_id_cache.count",
    &[],
    "Attested nodes.",
);
pub(crate) static BUNDLES: Gauge<0> = Gauge::new(
    "bundles",
    "",
    &[],
    "Trust bundles, this trust domain's among them.",
);
pub(crate) static ENTRY_PRUNING: Call<0> = Call::new(
    "entry_pruning",
    "registration_entry.manager.prune",
    &[],
    "Rounds in which expired registration entries are removed.",
);
pub(crate) static NODE_PRUNING: Call<0> = Call::new(
    "node_pruning",
    "node.manager.prune",
    &[],
    "Rounds in which attested nodes that expired are removed.",
);

// The authorities and what they sign.
pub(crate) static ISSUED: Counter<1> = Counter::new(
    "issued",
    "server_ca.sign.{document}",
    &["document"],
    "Documents that left the gate.",
);
pub(crate) static NOT_ISSUED: Counter<2> = Counter::new(
    "not_issued",
    "",
    &["document", "status"],
    "Documents that the gate refused or could not make.",
);
pub(crate) static AUTHORITY_PREPARED: Call<1> = Call::new(
    "authority_preparation",
    "ca.manager.{authority}.prepare",
    &["authority"],
    "Authorities that were prepared.",
);
pub(crate) static AUTHORITY_ACTIVATED: Counter<1> = Counter::new(
    "authority_activated",
    "ca.manager.{authority}.activate",
    &["authority"],
    "Authorities that began to sign.",
);
pub(crate) static AUTHORITY_EXPIRES: Gauge<1> = Gauge::new(
    "authority_expiration_timestamp_seconds",
    "manager.{authority}.rotate.expiration",
    &["authority"],
    "When the authority that signs expires, in Unix seconds.",
);
pub(crate) static BUNDLE_PRUNING: Call<0> = Call::new(
    "bundle_pruning",
    "ca.manager.bundle.prune",
    &[],
    "Rounds in which expired authorities are removed from the bundle.",
);
pub(crate) static BUNDLE_PRUNED: Counter<0> = Counter::new(
    "bundle_pruned",
    "ca.manager.bundle.pruned",
    &[],
    "Rounds in which there were any.",
);
pub(crate) static SERVER_SVID_RENEWAL: Call<0> = Call::new(
    "server_svid_renewal",
    "svid.rotate",
    &[],
    "Renewals of the server's own SVID.",
);

// The streams of changes.
pub(crate) static WATCHERS: Gauge<0> = Gauge::new(
    "watch_subscriptions",
    "",
    &[],
    "Agents that follow their entries.",
);
pub(crate) static WATCHERS_WOKEN: Sample<0> = Sample::new(
    "watch_woken",
    "",
    &[],
    "Agents concerned by one batch of changes.",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_well_declared() {
        let all = [
            STARTED.metric(),
            RPC.metric(),
            RATE_LIMIT.metric(),
            CONNECTIONS.metric(),
            COMMIT.metric(),
            COMMIT_WRITES.metric(),
            RELOAD.metric(),
            ENTRIES.metric(),
            AGENTS.metric(),
            BUNDLES.metric(),
            ENTRY_PRUNING.metric(),
            NODE_PRUNING.metric(),
            ISSUED.metric(),
            NOT_ISSUED.metric(),
            AUTHORITY_PREPARED.metric(),
            AUTHORITY_ACTIVATED.metric(),
            AUTHORITY_EXPIRES.metric(),
            BUNDLE_PRUNING.metric(),
            BUNDLE_PRUNED.metric(),
            SERVER_SVID_RENEWAL.metric(),
            WATCHERS.metric(),
            WATCHERS_WOKEN.metric(),
        ];
        assert_eq!(daemon::telemetry::faults_of(&all), Vec::<String>::new());
    }
}
