//! What the server knows about its own health: live or not, ready or not, and the details that probes are given.
//!
//! SPIRE: the subsystems' names are `server`, `server.ca`, `catalog.datastore`; an empty object means well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::ca::Ca;
use crate::registry::{Condition, Registry};

/// Asked by the probes.
#[derive(Debug)]
pub(crate) struct Health {
    registry: Arc<Registry>,
    ca: Arc<Ca>,
    serving: AtomicBool,
}

/// One answer to a probe.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) live: bool,
    pub(crate) ready: bool,
    pub(crate) details: Value,
}

impl Health {
    pub(crate) fn new(registry: Arc<Registry>, ca: Arc<Ca>) -> Self {
        Self {
            registry,
            ca,
            serving: AtomicBool::new(false),
        }
    }

    /// Whether the endpoints are being served.
    pub(crate) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    pub(crate) fn report(&self) -> Report {
        let bundle = self.registry.bundle(self.registry.trust_domain());
        let server = if bundle.is_some() {
            json!({})
        } else {
            json!({ "get_bundle_err": "bundle not found" })
        };
        let fault = self.ca.fault();
        let live = bundle.is_some() && fault.is_none();
        let ca = fault.map_or_else(|| json!({}), |fault| json!({ "sign_x509_svid_err": fault }));
        let condition = self.registry.freshness().condition();
        // Not a matter of being alive: restarting the server brings no database back, and it serves from memory meanwhile.
        let well = condition == Condition::Well;
        let datastore = match &condition {
            Condition::Well => json!({}),
            Condition::Away { because } => json!({ "list_bundle_err": because.as_ref() }),
            Condition::Unwritable { because } => json!({ "write_err": because.as_ref() }),
        };
        Report {
            live,
            ready: live && well && self.serving.load(Ordering::Acquire),
            details: json!({ "server": server, "server.ca": ca, "catalog.datastore": datastore }),
        }
    }
}
