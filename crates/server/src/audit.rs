//! The audit trail: one line for each call and each batch item, with the field names that SPIRE's operators search for.
//!
//! Lines are `tracing` events of the target `audit`. They never hold secrets: no tokens, no keys, no join tokens; of a
//! CSR only its digest. What a line says is decided here, so that no service can forget a field of the caller.

use spiffe::id::SpiffeId;

/// The target of the events, for filters and sinks.
pub const TARGET: &str = "audit";

/// Who called, as far as the transport proved it.
#[derive(Debug, Clone, Default)]
pub enum AuditCaller {
    /// The server itself, for instance when it renews its own SVID.
    #[default]
    Itself,
    /// A process on the admin socket.
    Local {
        uid: u32,
        gid: u32,
        path: Option<String>,
    },
    /// A TLS client.
    Remote {
        address: String,
        id: Option<SpiffeId>,
    },
}

/// What stays the same for every line of one call.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    enabled: bool,
    pub request_id: String,
    pub service: &'static str,
    pub method: &'static str,
    /// nobody, local, admin, agent, downstream. SPIRE: `authorized_as`.
    pub authorized_as: &'static str,
    /// transport, config, entries, datastore. SPIRE: `authorized_via`.
    pub authorized_via: &'static str,
    pub caller: AuditCaller,
}

impl Audit {
    /// `enabled` is the server's `audit_log_enabled`; the other parts are filled in by whoever receives the call.
    pub fn new(enabled: bool, service: &'static str, method: &'static str) -> Self {
        Self {
            enabled,
            service,
            method,
            ..Self::default()
        }
    }

    /// Whether a line would be written: callers skip the work of collecting fields when not.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Records that the call, or this item of it, was done.
    pub fn success(&self, fields: &Fields) {
        if self.enabled {
            self.write("success", None, fields);
        }
    }

    /// Records a refusal or failure. `code` is the name of the gRPC code, `message` what the caller is told.
    pub fn failure(&self, code: &str, message: &str, fields: &Fields) {
        if self.enabled {
            self.write("error", Some((code, message)), fields);
        }
    }

    fn write(&self, status: &str, error: Option<(&str, &str)>, fields: &Fields) {
        let (mut uid, mut gid, mut path, mut address, mut id) = (None, None, None, None, None);
        match &self.caller {
            AuditCaller::Itself => {}
            AuditCaller::Local {
                uid: caller_uid,
                gid: caller_gid,
                path: caller_path,
            } => {
                uid = Some(*caller_uid);
                gid = Some(*caller_gid);
                path = caller_path.as_deref();
            }
            AuditCaller::Remote {
                address: caller_address,
                id: caller_id,
            } => {
                address = Some(caller_address.as_str());
                id = caller_id.as_ref().map(SpiffeId::as_str);
            }
        }
        let common = (
            set(&self.request_id),
            set(self.authorized_as),
            set(self.authorized_via),
        );
        tracing::info!(
            target: "audit",
            r#type = "audit",
            request_id = common.0,
            service = self.service,
            method = self.method,
            authorized_as = common.1,
            authorized_via = common.2,
            caller_uid = uid,
            caller_gid = gid,
            caller_path = path,
            caller_addr = address,
            caller_id = id,
            status,
            status_code = error.map(|(code, _)| code),
            status_message = error.map(|(_, message)| message),
            agent_id = fields.value("agent_id"),
            audience = fields.value("audience"),
            csr = fields.value("csr"),
            dns_name = fields.value("dns_name"),
            entry_id = fields.value("entry_id"),
            expires_at = fields.value("expires_at"),
            hint = fields.value("hint"),
            local_authority_id = fields.value("local_authority_id"),
            node_attestor_type = fields.value("node_attestor_type"),
            parent_id = fields.value("parent_id"),
            revision_number = fields.value("revision_number"),
            selectors = fields.value("selectors"),
            serial_num = fields.value("serial_num"),
            spiffe_id = fields.value("spiffe_id"),
            subject_key_id = fields.value("subject_key_id"),
            trust_domain_id = fields.value("trust_domain_id"),
            ttl = fields.value("ttl"),
            more = fields.rest().as_deref(),
            "API accessed"
        );
    }
}

fn set(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The names that are fields of their own in an audit line; any other goes into `more` as `name=value`.
const NAMED: [&str; 17] = [
    "agent_id",
    "audience",
    "csr",
    "dns_name",
    "entry_id",
    "expires_at",
    "hint",
    "local_authority_id",
    "node_attestor_type",
    "parent_id",
    "revision_number",
    "selectors",
    "serial_num",
    "spiffe_id",
    "subject_key_id",
    "trust_domain_id",
    "ttl",
];

/// What one line says beyond the caller. Names are SPIRE's log field names.
#[derive(Debug, Clone, Default)]
pub struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field; the last value of a name counts. An empty value is left out.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.add(name, value);
        self
    }

    /// As [`Fields::with`], in place.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers give numbers and references alike"
    )]
    pub fn add(&mut self, name: &'static str, value: impl ToString) {
        let value = value.to_string();
        self.0.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            self.0.push((name, value));
        }
    }

    /// The value of a field, if it was set.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }

    fn rest(&self) -> Option<String> {
        let mut text = String::new();
        for (name, value) in self.0.iter().filter(|(name, _)| !NAMED.contains(name)) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&format!("{name}={value:?}"));
        }
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
pub(crate) mod tests;
