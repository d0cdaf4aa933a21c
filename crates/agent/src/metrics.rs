//! What the agent measures, by SPIRE's list (SPIRE: pkg/common/telemetry/agent) and beyond it.

use daemon::telemetry::{Call, Counter, Gauge, Sample};

pub(crate) static STARTED: Gauge<2> = Gauge::new(
    "started",
    "started",
    &["version", "trust_domain_id"],
    "Set to 1 when the agent starts.",
);

// Workloads and what is found out about them.
pub(crate) static WORKLOAD_ATTESTATION: Call<0> = Call::new(
    "workload_attestation",
    "workload_api.workload_attestation",
    &[],
    "Attestations of a calling process.",
);
pub(crate) static WORKLOAD_ATTESTOR: Call<1> = Call::new(
    "workload_attestor",
    "workload_api.workload_attestor",
    &["attestor"],
    "Answers of one workload attestor.",
);
pub(crate) static DISCOVERED_SELECTORS: Sample<0> = Sample::new(
    "discovered_selectors",
    "workload_api.discovered_selectors",
    &[],
    "Selectors of an attested process.",
);
pub(crate) static WORKLOAD_API_CALL: Call<1> = Call::new(
    "workload_api_call",
    "rpc.workload_api.{method}",
    &["method"],
    "Calls of the Workload API, until their answer begins.",
);
pub(crate) static RATE_LIMITED: Counter<1> = Counter::new(
    "rate_limit_exceeded",
    "workload_api.rate_limit_exceeded",
    &["method"],
    "Calls of the Workload API that were refused for their rate.",
);

// The cache.
pub(crate) static ENTRY_ADDED: Counter<0> = Counter::new(
    "cache_entry_added",
    "lru_cache_entry_add",
    &[],
    "Registration entries that came.",
);
pub(crate) static ENTRY_UPDATED: Counter<0> = Counter::new(
    "cache_entry_updated",
    "lru_cache_entry_update",
    &[],
    "Registration entries that changed.",
);
pub(crate) static ENTRY_REMOVED: Counter<0> = Counter::new(
    "cache_entry_removed",
    "lru_cache_entry_remove",
    &[],
    "Registration entries that went.",
);
pub(crate) static ENTRIES: Gauge<0> = Gauge::new(
    "cache_entries",
    "lru_cache_record_map_size",
    &[],
    "Registration entries of this node.",
);
pub(crate) static BUNDLES: Gauge<0> = Gauge::new(
    "cache_bundles",
    "sync_bundles_total",
    &[],
    "Trust bundles in the cache.",
);
pub(crate) static X509_SVIDS: Gauge<0> = Gauge::new(
    "cache_x509_svids",
    "lru_cache_svid_map_size",
    &[],
    "X509-SVIDs in the cache.",
);
pub(crate) static JWT_SVIDS: Gauge<0> = Gauge::new(
    "cache_jwt_svids",
    "jwt_svid_cache_size",
    &[],
    "JWT-SVIDs in the cache.",
);
pub(crate) static TAINTED_X509_SVIDS: Sample<0> = Sample::new(
    "tainted_x509_svids",
    "cache_manager.tainted_x509_svids.workload",
    &[],
    "X509-SVIDs in the cache that a freshly tainted authority signed.",
);
pub(crate) static TAINTED_JWT_SVIDS: Sample<0> = Sample::new(
    "tainted_jwt_svids",
    "cache_manager.tainted_jwt_svids.workload",
    &[],
    "JWT-SVIDs in the cache that a freshly tainted authority signed.",
);

// The server.
pub(crate) static SERVER_CALL: Call<1> =
    Call::new("server_call", "", &["method"], "Calls to the server.");
pub(crate) static SERVER_CONNECTED: Gauge<0> = Gauge::new(
    "server_connected",
    "",
    &[],
    "1 while the server answers, 0 while it does not.",
);
pub(crate) static NODE_ATTESTATION: Call<0> = Call::new(
    "node_attestation",
    "node.attest",
    &[],
    "Attempts of the node to join.",
);
pub(crate) static SVID_RENEWAL: Call<0> = Call::new(
    "agent_svid_renewal",
    "agent_svid.rotate",
    &[],
    "Renewals of the agent's own SVID.",
);
pub(crate) static ENTRY_SYNC: Call<0> = Call::new(
    "entry_sync",
    "manager.sync.fetch_entries_updates",
    &[],
    "Syncs with a server that has no stream of changes.",
);
pub(crate) static SVID_SYNC: Call<0> = Call::new(
    "svid_sync",
    "manager.sync.fetch_svids_updates",
    &[],
    "Batches of X509-SVIDs asked for.",
);
pub(crate) static SVID_BATCH: Sample<0> = Sample::new(
    "svid_batch",
    "cache_manager.outdated_svids",
    &[],
    "X509-SVIDs in a batch.",
);

// The sockets.
pub(crate) static CONNECTIONS: Counter<1> = Counter::new(
    "connection",
    "{socket}.connection",
    &["socket"],
    "Connections that were accepted.",
);
pub(crate) static CONNECTIONS_REFUSED: Counter<1> = Counter::new(
    "connection_refused",
    "",
    &["socket"],
    "Connections that were refused.",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_well_declared() {
        let all = [
            STARTED.metric(),
            WORKLOAD_API_CALL.metric(),
            WORKLOAD_ATTESTATION.metric(),
            WORKLOAD_ATTESTOR.metric(),
            DISCOVERED_SELECTORS.metric(),
            RATE_LIMITED.metric(),
            ENTRY_ADDED.metric(),
            ENTRY_UPDATED.metric(),
            ENTRY_REMOVED.metric(),
            ENTRIES.metric(),
            BUNDLES.metric(),
            X509_SVIDS.metric(),
            JWT_SVIDS.metric(),
            TAINTED_X509_SVIDS.metric(),
            TAINTED_JWT_SVIDS.metric(),
            SERVER_CALL.metric(),
            SERVER_CONNECTED.metric(),
            NODE_ATTESTATION.metric(),
            SVID_RENEWAL.metric(),
            ENTRY_SYNC.metric(),
            SVID_SYNC.metric(),
            SVID_BATCH.metric(),
            CONNECTIONS.metric(),
            CONNECTIONS_REFUSED.metric(),
        ];
        assert_eq!(daemon::telemetry::faults_of(&all), Vec::<String>::new());
    }
}
