//! The environment of the process, as far as libpq's settings come from it: taken once at the start and passed on as a value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use spiffe::secret::Secret;

use super::conninfo::{Setting, Settings};
use crate::datastore::error::SettingsError;

/// libpq's variables and the settings they stand for, as lib/pq takes them.
const VARIABLES: &[(&str, &str)] = &[
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGOPTIONS", "options"),
    ("PGAPPNAME", "application_name"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLSNI", "sslsni"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGCLIENTENCODING", "client_encoding"),
    ("PGDATESTYLE", "datestyle"),
    ("PGTZ", "timezone"),
    ("PGGEQO", "geqo"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
    ("PGMINPROTOCOLVERSION", "min_protocol_version"),
    ("PGMAXPROTOCOLVERSION", "max_protocol_version"),
    ("PGSERVICE", "service"),
    ("PGREQUIRESSL", "requiressl"),
    ("PGSSLCOMPRESSION", "sslcompression"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGREALM", "krbsrvname"),
    ("PGKRBSRVNAME", "krbsrvname"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGGSSDELEGATION", "gssdelegation"),
    ("PGGSSLIB", "gsslib"),
];

/// What of the environment counts for a connection to PostgreSQL. The default is an empty environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// By name; without a value where it is not UTF-8.
    variables: BTreeMap<String, Option<Secret<String>>>,
    user: Option<String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// That of this process and the user it runs as.
    pub fn of_process() -> Self {
        let this = Self::of(std::env::vars_os());
        if this.user.is_some() && this.home.is_some() {
            return this;
        }
        // A user without an entry has neither name nor home, which is no error before one of them is needed.
        let entry = User::from_uid(geteuid()).ok().flatten();
        let (name, home) = entry.map(|user| (user.name, user.dir)).unzip();
        Self {
            user: this.user.or(name),
            home: this.home.or(home),
            ..this
        }
    }

    /// That of these variables.
    pub fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            // An empty variable is as good as none.
            if value.is_empty() {
                continue;
            }
            match name {
                "USER" => environment.user = value.to_str().map(str::to_owned),
                "HOME" => environment.home = Some(PathBuf::from(value)),
                _ if VARIABLES.iter().any(|(known, _)| *known == name) => {
                    let value = value.into_string().ok().map(Secret::new);
                    environment.variables.insert(name.to_owned(), value);
                }
                _ => {}
            }
        }
        environment
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The settings that the variables make.
    pub(super) fn settings(&self) -> Result<Settings, SettingsError> {
        let mut settings = Settings::new();
        for (name, key) in VARIABLES {
            let Some(value) = self.variables.get(*name) else {
                continue;
            };
            let origin = format!("${name}");
            let Some(value) = value else {
                return Err(SettingsError {
                    what: format!("{origin} cannot be read"),
                    at: origin,
                    because: "it is not UTF-8".to_owned(),
                    hint: format!("unset {name}, or set {key} in connection_string"),
                });
            };
            settings.insert(
                (*key).to_owned(),
                Setting::new(value.expose().clone(), origin),
            );
        }
        Ok(settings)
    }
}
