//! Why an operation was refused or failed, without any wire.
//!
//! An [`OpError`] is made where the reason is known. Each interface of the server turns it into its own form in one place;
//! for gRPC that is `status`. Messages are SPIRE's where its clients match on them. They travel to the caller and into
//! logs, so they hold no secret.

pub(crate) mod log_account;

use std::fmt::{self, Display};

use config::fault::{self, Fault};

use crate::audit::Outcome;
use crate::datastore::WriteFailure;
use daemon::telemetry::CallError;

/// What a caller can do about an error. The names are gRPC's, since SPIRE's clients know these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    FailedPrecondition,
    ResourceExhausted,
    Unimplemented,
    Unavailable,
    Internal,
}

impl Kind {
    /// SPIRE: the Go name of the gRPC code, as logs and audit lines have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::PermissionDenied => "PermissionDenied",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::Unimplemented => "Unimplemented",
            Self::Unavailable => "Unavailable",
            Self::Internal => "Internal",
        }
    }
}

impl CallError for OpError {
    fn status(&self) -> &'static str {
        self.kind().name()
    }
}

/// Why an agent's credentials no longer count. Agents act on this, not on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentRefusal {
    Expired,
    NotAttested,
    NotActive,
    Banned,
    MustReattest,
}

/// A refusal or failure of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpError {
    kind: Kind,
    message: String,
    code: Option<fault::Code>,
    agent: Option<AgentRefusal>,
    quiet: bool,
}

/// A refusal with no cause beyond its own words.
pub(crate) fn refused(kind: Kind, what: impl Into<String>) -> OpError {
    OpError {
        kind,
        message: what.into(),
        code: None,
        agent: None,
        quiet: false,
    }
}

/// `what: because`.
pub(crate) fn failed(kind: Kind, what: &str, because: impl Display) -> OpError {
    refused(kind, format!("{what}: {because}"))
}

/// A write that was not made. A database that is away or takes no writes is no fault of the server's: the caller may try
/// again. It has its own line in the log, from the part that noticed it, so that no number of callers repeats it.
pub(crate) fn write_failed(what: &str, because: &impl WriteFailure) -> OpError {
    match because.of_store() {
        Some(error) if error.is_passing() => failed(Kind::Unavailable, what, because)
            .with_code(Fault::from(error).code)
            .quiet(),
        Some(error) => failed(Kind::Internal, what, because).with_code(Fault::from(error).code),
        None => failed(Kind::Internal, what, because),
    }
}

/// For `map_err`: `InvalidArgument`, `what: because`.
pub(crate) fn malformed<E: Display>(what: &'static str) -> impl Fn(E) -> OpError {
    move |because| failed(Kind::InvalidArgument, what, because)
}

impl OpError {
    /// Adds the code under which `plastron help` explains the error.
    pub(crate) fn with_code(mut self, code: fault::Code) -> Self {
        self.code = Some(code);
        self
    }

    /// Says that an agent's credentials are what is wrong.
    pub(crate) fn agent(mut self, refusal: AgentRefusal) -> Self {
        self.agent = Some(refusal);
        self
    }

    /// Keeps the error out of the log above debug level: its caller may cause as many as it likes.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn fault_code(&self) -> Option<fault::Code> {
        self.code
    }

    pub(crate) fn agent_refusal(&self) -> Option<AgentRefusal> {
        self.agent
    }

    /// One line in the log, where the error leaves the server. The server's own faults are an operator's business; a
    /// caller's mistakes are worth a line only to someone who debugs them. Either goes on the account of the caller, who
    /// may cause as many as it likes.
    pub(crate) fn log(&self) {
        let (code, message) = (self.kind.name(), &self.message);
        let is_for_operators = matches!(
            self.kind,
            Kind::Internal | Kind::Unavailable | Kind::PermissionDenied
        );
        if self.quiet || !is_for_operators {
            tracing::debug!(code, "{message}");
            return;
        }
        let Some(left_out) = log_account::admit() else {
            tracing::debug!(code, "{message}");
            return;
        };
        if self.kind == Kind::PermissionDenied {
            tracing::warn!(code, left_out, "{message}");
        } else {
            tracing::error!(code, left_out, "{message}");
        }
    }
}

impl Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpError {}

impl From<&OpError> for Outcome {
    fn from(error: &OpError) -> Self {
        Self::Error {
            code: error.kind.name(),
            message: error.message.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use std::time::Duration;

    use super::log_account::LogAccount;
    use super::*;
    use crate::principal::Account;

    /// Counts what an operator would read.
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            if *event.metadata().level() <= Level::WARN {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn lets_no_unauthenticated_peer_fill_the_log() {
        let warnings = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
            refused(Kind::PermissionDenied, "the caller has no X509-SVID")
                .quiet()
                .log();
            refused(Kind::InvalidArgument, "missing ID").log();
            assert_eq!(warnings.load(Ordering::Relaxed), 0);
            refused(Kind::PermissionDenied, "agent is banned").log();
            assert_eq!(warnings.load(Ordering::Relaxed), 1);
        });
    }

    /// How many warnings and errors the peer of the account leaves with this many refusals.
    async fn warnings_on(account: &Arc<LogAccount>, warnings: &AtomicUsize, times: usize) -> usize {
        let call = async {
            for _ in 0..times {
                refused(Kind::PermissionDenied, "agent is banned").log();
                refused(Kind::Internal, "a plugin failed").log();
            }
        };
        Arc::clone(account).of_call(call).await;
        warnings.swap(0, Ordering::Relaxed)
    }

    fn many_failures() {
        for _ in 0..10_000 {
            refused(Kind::Unavailable, "the database is away").log();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lets_no_authenticated_peer_fill_the_log_either() {
        let warnings = Arc::new(AtomicUsize::new(0));
        let _guard = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
        let limit = Arc::default();
        let account = |uid| LogAccount::new(&limit, Some(Account::Uid(uid)));
        let (one, other) = (account(1), account(2));
        let first = warnings_on(&one, &warnings, 10_000).await;
        assert!((1..=10).contains(&first), "{first}");
        assert_eq!(warnings_on(&one, &warnings, 10_000).await, 0);
        // Nobody else's lines are lost for that, and what was left out is said later.
        assert_eq!(warnings_on(&other, &warnings, 1).await, 2);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(warnings_on(&one, &warnings, 1).await, 2);

        // A task of the call is on its account, too.
        let mut task = None;
        let begin = async { task = Some(log_account::inherited(async { many_failures() })) };
        Arc::clone(&one).of_call(begin).await;
        task.unwrap().await;
        assert!(warnings.swap(0, Ordering::Relaxed) <= 10);
        // The server itself is not limited.
        for _ in 0..100 {
            refused(Kind::Internal, "a plugin failed").log();
        }
        assert_eq!(warnings.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn joins_what_and_because() {
        let error = failed(Kind::InvalidArgument, "malformed CSR", "short");
        assert_eq!(error.to_string(), "malformed CSR: short");
    }
}
