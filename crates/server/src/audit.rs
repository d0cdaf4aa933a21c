//! The audit trail: one typed [`Event`] for every call, and one for every document before it leaves the server.
//!
//! Owns what an event says and who receives it. The event of a call is written by the boundary of `api`, not by the
//! handlers: a handler only adds details to the call's [`CallRecord`], so it cannot forget the event. Events hold no
//! secrets: no token, no key, no join token; of a CSR only its digest.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use spiffe::id::SpiffeId;

mod log;
mod record;

pub use log::{LogSink, TARGET};
pub use record::{Auditor, CallRecord, Unfinished};

/// Receives the audit trail. The log is the first sink; a ledger is another.
#[async_trait]
pub trait AuditSink: Debug + Send + Sync {
    /// Keeps one event. Once this has returned `Ok`, the event must not be lost: the server hands over a document or
    /// answers a call only after that.
    ///
    /// # Errors
    /// When the event could not be kept. A document is then not handed over, and a call is answered with an error.
    async fn record(&self, event: Event) -> Result<(), AuditError>;
}

/// The audit trail cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit event could not be recorded: {0}")]
pub struct AuditError(pub String);

/// One entry of the audit trail.
#[derive(Debug, Clone)]
pub struct Event {
    pub at: SystemTime,
    pub call: Arc<CallContext>,
    pub kind: EventKind,
}

/// What an event reports.
#[derive(Debug, Clone)]
pub enum EventKind {
    /// The call ended. There is exactly one such event for each call that reached the server.
    Call {
        outcome: Outcome,
        /// What the call was about.
        fields: Fields,
        /// The items of a batch, each with an outcome of its own.
        items: Vec<Item>,
        /// How many documents of this call were recorded before.
        documents: usize,
    },
    /// A document was issued and is about to leave.
    Document {
        /// Such as "an X509-SVID".
        name: &'static str,
        fields: Fields,
    },
}

/// One item of a batch call.
#[derive(Debug, Clone)]
pub struct Item {
    pub outcome: Outcome,
    pub fields: Fields,
}

/// How a call or an item ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Refused or failed, with the name of the gRPC code and the message that the caller receives.
    Error {
        code: &'static str,
        message: String,
    },
}

impl Outcome {
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error { .. })
    }

    /// The name of the gRPC code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Success => "OK",
            Self::Error { code, .. } => code,
        }
    }
}

/// The call that an event belongs to.
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    pub request_id: String,
    /// SPIRE: the last three parts of the service's name, as in `svid.v1.SVID`.
    pub service: String,
    pub method: String,
    /// nobody, local, admin, agent, downstream. SPIRE: `authorized_as`.
    pub authorized_as: &'static str,
    /// transport, config, entries, datastore. SPIRE: `authorized_via`.
    pub authorized_via: &'static str,
    pub caller: AuditCaller,
}

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

/// The details of an event: names are SPIRE's log field names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

    /// Adds the fields of `more`, whose values win.
    pub fn merge(&mut self, more: Self) {
        self.0
            .retain(|(known, _)| more.0.iter().all(|(name, _)| name != known));
        self.0.extend(more.0);
    }

    /// The value of a field, if it was set.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Names and values, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

#[cfg(test)]
pub(crate) mod tests;
