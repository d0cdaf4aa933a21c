//! What the settings of a connection mean: the hosts to try, the session's parameters, and how far TLS goes.
//!
//! Takes libpq's keys as lib/pq does, SPIRE's driver. A key that neither knows is a parameter of the session, which the
//! database refuses when it does not know it either. A key that asks for something that is not done here is refused.

use std::path::PathBuf;
use std::time::Duration;

use spiffe::secret::Secret;
use tokio_postgres::Config;
use tokio_postgres::config::{
    LoadBalanceHosts, SslMode as DriverMode, SslNegotiation, TargetSessionAttrs,
};

use super::conninfo::{self, Setting, Settings};
use super::environment::Environment;
use super::hosts::{self, Target};
use super::tls_options::{Mode, TlsOptions};
use super::{PostgresConfig, unsupported};
use crate::datastore::error::SettingsError;

/// How long one host may take to accept a connection, unless `connect_timeout` says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest `connect_timeout`.
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection's settings, understood.
#[derive(Debug)]
pub(super) struct Options {
    /// In the order in which they are tried.
    pub(super) targets: Vec<Target>,
    /// Whether the order is another one each time.
    pub(super) in_random_order: bool,
    /// All but host and password.
    pub(super) config: Config,
    pub(super) password: Option<Secret<String>>,
    /// Where the password is when it is not said.
    pub(super) passfile: Option<PathBuf>,
    pub(super) connect_timeout: Duration,
    pub(super) tls: TlsOptions,
}

impl Options {
    pub(super) fn parse(config: &PostgresConfig) -> Result<Self, SettingsError> {
        let mut settings = config.environment.settings()?;
        settings.extend(conninfo::parse(&config.url)?);
        Self::read(Reader { settings }, config)
    }

    fn read(mut settings: Reader, config: &PostgresConfig) -> Result<Self, SettingsError> {
        unsupported::check(&mut settings)?;
        let targets = hosts::read(&mut settings)?;
        let mut tls = TlsOptions::read(&mut settings, config)?;
        if targets.iter().all(Target::is_socket) {
            // libpq: a socket knows no TLS, whatever is asked for.
            tls.mode = Mode::Disable;
            tls.is_direct = false;
        }
        let passfile = settings.path("passfile").or_else(|| {
            let home = config.environment.home();
            home.map(|home| home.join(".pgpass"))
        });
        let password = settings
            .take("password")
            .filter(|setting| !setting.text().is_empty())
            .map(|setting| setting.value);
        let in_random_order = settings.choice(
            "load_balance_hosts",
            &[("disable", false), ("random", true)],
        )?;
        let connect_timeout = connect_timeout(&mut settings)?;
        let mut driver = Config::new();
        identify(&mut driver, &mut settings, &config.environment)?;
        let negotiation = if tls.is_direct {
            SslNegotiation::Direct
        } else {
            SslNegotiation::Postgres
        };
        driver
            .ssl_mode(tls.mode.into())
            .ssl_negotiation(negotiation)
            .connect_timeout(connect_timeout)
            .keepalives_idle(KEEPALIVE_IDLE)
            .tcp_user_timeout(TCP_USER_TIMEOUT);
        if in_random_order == Some(true) {
            // For the addresses of one name; the hosts are shuffled where they are tried.
            driver.load_balance_hosts(LoadBalanceHosts::Random);
        }
        let parameters = session_parameters(settings)?;
        if !parameters.is_empty() {
            driver.options(parameters);
        }
        Ok(Self {
            targets,
            in_random_order: in_random_order.unwrap_or(false),
            config: driver,
            password,
            passfile,
            connect_timeout,
            tls,
        })
    }

    /// What an operator should know of how the connection is protected.
    pub(super) fn notices(&self) -> Vec<String> {
        let beyond: Vec<_> = self
            .targets
            .iter()
            .filter(|target| !target.is_on_this_machine())
            .map(|target| target.name())
            .collect();
        let hosts = beyond.join(", ");
        let problem = match self.tls.mode {
            _ if beyond.is_empty() => return Vec::new(),
            Mode::Disable => format!("the connection to the database at {hosts} is not encrypted"),
            Mode::Prefer if self.tls.roots().is_none() => format!(
                "the connection to the database at {hosts} may be unencrypted, and the database is not authenticated"
            ),
            Mode::Prefer => format!("the connection to the database at {hosts} may be unencrypted"),
            Mode::Require if self.tls.roots().is_none() => format!(
                "the connection to the database at {hosts} is encrypted, but the database is not authenticated"
            ),
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => return Vec::new(),
        };
        vec![format!(
            "DataStore \"sql\": sslmode={}: {problem}; hint: set sslmode=verify-full, and sslrootcert to the CA of the \
             database's certificate",
            self.tls.mode.name()
        )]
    }
}

impl From<Mode> for DriverMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Disable => Self::Disable,
            Mode::Prefer => Self::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => Self::Require,
        }
    }
}

/// The settings that were not read yet.
pub(super) struct Reader {
    settings: Settings,
}

impl Reader {
    pub(super) fn take(&mut self, key: &str) -> Option<Setting> {
        self.settings.remove(key)
    }

    pub(super) fn peek(&self, key: &str) -> Option<&Setting> {
        self.settings.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.settings
            .iter()
            .map(|(key, setting)| (key.as_str(), setting))
    }

    /// An empty path is as good as none.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let setting = self.take(key)?;
        let text = setting.text();
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    /// One of these words. Words are no secrets, and yet no value is shown: a password may stand at the wrong key.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, SettingsError> {
        let Some(setting) = self.take(key) else {
            return Ok(None);
        };
        if setting.text().is_empty() {
            return Ok(None);
        }
        let found = words.iter().find(|(word, _)| *word == setting.text());
        match found {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let because = format!("it must be one of {}", words.join(", "));
                Err(wrong(key, &setting, because))
            }
        }
    }
}

/// A value that a key cannot have.
pub(super) fn wrong(key: &str, setting: &Setting, because: impl Into<String>) -> SettingsError {
    SettingsError {
        what: format!("{key} has a wrong value"),
        at: setting.origin.clone(),
        because: because.into(),
        hint: format!("correct {key} in {}", setting.origin),
    }
}

/// In seconds. SPIRE's driver waits without limit by default; a server must know when its database is away.
fn connect_timeout(settings: &mut Reader) -> Result<Duration, SettingsError> {
    let Some(setting) = settings.take("connect_timeout") else {
        return Ok(CONNECT_TIMEOUT);
    };
    let seconds: i64 = setting
        .text()
        .parse()
        .map_err(|_value| wrong("connect_timeout", &setting, "it is not a number of seconds"))?;
    Ok(match u64::try_from(seconds) {
        Ok(0) | Err(_) => CONNECT_TIMEOUT,
        Ok(seconds) => Duration::from_secs(seconds).min(LONGEST_CONNECT_TIMEOUT),
    })
}

/// Who signs in where, and under which name.
fn identify(
    driver: &mut Config,
    settings: &mut Reader,
    environment: &Environment,
) -> Result<(), SettingsError> {
    let mut text = |key: &str| {
        let setting = settings.take(key)?;
        (!setting.text().is_empty()).then(|| setting.text().to_owned())
    };
    let user = text("user").or_else(|| environment.user().map(str::to_owned));
    // `database` is no key of libpq's; lib/pq passes it on to where it means the same.
    let database = (text("database"), text("dbname"));
    let fallback = text("fallback_application_name");
    let application_name = text("application_name")
        .or(fallback)
        .unwrap_or_else(|| "plastron".to_owned());
    driver.application_name(application_name);
    if let Some(user) = user {
        driver.user(user);
    }
    if let (Some(database), _) | (None, Some(database)) = database {
        driver.dbname(database);
    }
    // A server must be able to write: of the wishes that a session may have, only that one can be met.
    let wish = settings.choice(
        "target_session_attrs",
        &[
            ("any", TargetSessionAttrs::Any),
            ("read-write", TargetSessionAttrs::ReadWrite),
            ("primary", TargetSessionAttrs::ReadWrite),
        ],
    )?;
    driver.target_session_attrs(wish.unwrap_or(TargetSessionAttrs::Any));
    Ok(())
}

/// `options`, and after them whatever nobody read: parameters such as `search_path`. The driver has no other place for
/// them; of a parameter that is set twice the database takes the later one, as it does from SPIRE's driver.
fn session_parameters(mut settings: Reader) -> Result<String, SettingsError> {
    let mut options = match settings.take("options") {
        Some(setting) => setting.text().to_owned(),
        None => String::new(),
    };
    // lib/pq's name for it.
    if let Some(setting) = settings.take("tz") {
        settings.settings.insert("timezone".to_owned(), setting);
    }
    for (key, setting) in settings.keys() {
        if options.ends_with('\\') {
            return Err(wrong("options", setting, "it ends in a backslash"));
        }
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str("-c ");
        options.push_str(key);
        options.push('=');
        for c in setting.text().chars() {
            if c == '\\' || c.is_ascii_whitespace() || c == '\u{b}' {
                options.push('\\');
            }
            options.push(c);
        }
    }
    Ok(options)
}
