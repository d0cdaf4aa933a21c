//! The audit trail in the log: one line for each call, document or batch item, with the field names that SPIRE's
//! operators search for.
//!
//! Lines are `tracing` events of the target `audit`.

use async_trait::async_trait;
use spiffe::id::SpiffeId;

use super::{AuditCaller, AuditError, AuditSink, CallContext, Event, EventKind, Fields, Outcome};

/// The target of the events, for filters.
pub const TARGET: &str = "audit";

/// Writes events to the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogSink;

#[async_trait]
impl AuditSink for LogSink {
    async fn record(&self, event: Event) -> Result<(), AuditError> {
        match &event.kind {
            EventKind::Document { fields, .. } => line(&event.call, &Outcome::Success, fields),
            EventKind::Call {
                outcome,
                fields,
                items,
                documents,
            } => {
                for item in items {
                    line(&event.call, &item.outcome, &item.fields);
                }
                // SPIRE: a batch has one line for each item and none of its own, and an issued document is the line of
                // its call. A failure that no item names still has its line.
                let itemized = !items.is_empty() || *documents > 0;
                let unnamed =
                    outcome.is_error() && !items.iter().any(|item| item.outcome.is_error());
                if !itemized || unnamed {
                    line(&event.call, outcome, fields);
                }
            }
        }
        Ok(())
    }
}

fn line(call: &CallContext, outcome: &Outcome, fields: &Fields) {
    let (mut uid, mut gid, mut path, mut address, mut id) = (None, None, None, None, None);
    match &call.caller {
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
    let (status, code, message) = match outcome {
        Outcome::Success => ("success", None, None),
        Outcome::Error { code, message } => ("error", Some(*code), Some(message.as_str())),
    };
    tracing::info!(
        target: "audit",
        r#type = "audit",
        request_id = set(&call.request_id),
        service = call.service,
        method = call.method,
        authorized_as = set(call.authorized_as),
        authorized_via = set(call.authorized_via),
        caller_uid = uid,
        caller_gid = gid,
        caller_path = path,
        caller_addr = address,
        caller_id = id,
        status,
        status_code = code,
        status_message = message,
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
        more = rest(fields).as_deref(),
        "API accessed"
    );
}

fn set(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The names that are fields of their own in a line; any other goes into `more` as `name=value`.
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

fn rest(fields: &Fields) -> Option<String> {
    let mut text = String::new();
    for (name, value) in fields.iter().filter(|(name, _)| !NAMED.contains(name)) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&format!("{name}={value:?}"));
    }
    set(&text).map(str::to_owned)
}
