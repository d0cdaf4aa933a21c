//! The one error of all plugins: what the caller can do about it, and what an operator has to know.
//!
//! A daemon branches on [`ErrorKind`] alone. It never knows which plugin it talks to, so nothing here names one.

use std::borrow::Cow;
use std::fmt;

use config::fault::{Code, Fault};

/// What a caller can do about a plugin's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The same call may succeed later: a service is away, a time limit has passed.
    Transient,
    /// The same call fails again: what was asked for, or what the plugin works with, has to be changed first.
    Permanent,
    /// The call was understood, and its subject is refused.
    Denied,
    /// The plugin does not offer this call.
    NotOffered,
    /// What the call is about no longer exists.
    Gone,
    /// A defect of the plugin, or of what it runs on.
    Internal,
}

/// Why a plugin failed.
///
/// `Display` is the message alone; the source below it is in the message where it matters, so a log line needs no chain.
#[derive(Debug)]
pub struct Error {
    plugin: Cow<'static, str>,
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    fault: Option<Box<Fault>>,
}

impl Error {
    /// An error of the plugin of this name. The message carries no secret.
    pub fn new(
        plugin: impl Into<Cow<'static, str>>,
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            plugin: plugin.into(),
            kind,
            message: message.into(),
            source: None,
            fault: None,
        }
    }

    /// An error that is another one's consequence, with its message.
    pub fn from_source(
        plugin: impl Into<Cow<'static, str>>,
        kind: ErrorKind,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let mut error = Self::new(plugin, kind, source.to_string());
        error.source = Some(Box::new(source));
        error
    }

    /// The blocking half of a plugin's work was cancelled, which only a shutdown of the runtime does.
    pub fn interrupted(plugin: impl Into<Cow<'static, str>>) -> Self {
        Self::new(plugin, ErrorKind::Transient, "interrupted by the shutdown")
    }

    /// Adds the error below this one.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Adds what an operator has to know: a code of its own, what to do.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    /// The plugin's name, such as `disk`.
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }

    /// The same for an operator. Without a fault of its own the error gets the code for plugins in general.
    pub fn to_fault(&self) -> Fault {
        if let Some(fault) = &self.fault {
            return (**fault).clone();
        }
        let code = match self.kind {
            ErrorKind::Internal => Code::Internal,
            ErrorKind::Transient => Code::PluginUnavailable,
            _ => Code::PluginFailed,
        };
        Fault::new(code, format!("the plugin {} failed", self.plugin)).because(&self.message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_its_message_and_keeps_its_source() {
        let error = Error::from_source(
            "disk",
            ErrorKind::Permanent,
            std::io::Error::other("bad sector"),
        );
        assert_eq!(error.to_string(), "bad sector");
        assert_eq!(
            (error.plugin(), error.kind()),
            ("disk", ErrorKind::Permanent)
        );
        assert!(std::error::Error::source(&error).is_some());
        assert!(!error.is_transient());
    }

    #[test]
    fn without_a_fault_of_its_own_the_kind_gives_the_code() {
        for (kind, code) in [
            (ErrorKind::Transient, Code::PluginUnavailable),
            (ErrorKind::Permanent, Code::PluginFailed),
            (ErrorKind::Denied, Code::PluginFailed),
            (ErrorKind::Internal, Code::Internal),
        ] {
            let fault = Error::new("vault", kind, "why").to_fault();
            assert_eq!(fault.code, code, "{kind:?}");
            assert!(fault.what.contains("vault"), "{fault}");
            assert_eq!(fault.because.as_deref(), Some("why"));
        }
        let own = Fault::new(Code::KeyFileInvalid, "own");
        let error = Error::new("disk", ErrorKind::Internal, "x").with_fault(own.clone());
        assert_eq!(error.to_fault(), own);
    }
}
