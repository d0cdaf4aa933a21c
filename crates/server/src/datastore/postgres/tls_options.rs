//! How far TLS goes with the database: `sslmode` and its companions, as settings. Reads no file but to see whether one is
//! there.

use std::path::{Path, PathBuf};

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use super::PostgresConfig;
use super::options::{Reader, wrong};
use super::unsupported::{FALSE, TRUE};
use crate::datastore::error::SettingsError;

/// libpq's `sslmode`. `allow` is taken for `prefer`, which tries TLS first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    Prefer,
    /// Encrypts; verifies the authority if there are roots to do it with.
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// How much of the database's certificate is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Encrypts, if at all, without knowing for whom.
    Nothing,
    /// The certificate is of a known authority.
    Authority,
    /// And it names the host.
    Full,
}

/// Which authorities are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// Those that the distribution trusts.
    System,
    File(PathBuf),
}

#[derive(Debug, Clone)]
pub(super) struct TlsOptions {
    pub(super) mode: Mode,
    root_ca: Option<Roots>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// `~/.postgresql`, where libpq looks for files that are not named.
    directory: Option<PathBuf>,
    pub(super) sends_name: bool,
    pub(super) versions: Versions,
    /// Begins with TLS, without a question before it.
    pub(super) is_direct: bool,
}

const MODES: &[(&str, Mode)] = &[
    ("disable", Mode::Disable),
    ("allow", Mode::Prefer),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

impl TlsOptions {
    pub(super) fn read(
        settings: &mut Reader,
        config: &PostgresConfig,
    ) -> Result<Self, SettingsError> {
        let named_mode = settings.peek("sslmode").cloned();
        let mode = settings.choice("sslmode", MODES)?;
        let negotiation = settings.peek("sslnegotiation").cloned();
        let is_direct = settings
            .choice("sslnegotiation", &[("postgres", false), ("direct", true)])?
            .unwrap_or(false);
        let root_ca = match (&config.root_ca_path, settings.path("sslrootcert")) {
            (Some(path), _) => Some(Roots::File(path.clone())),
            (None, Some(path)) if path == Path::new("system") => Some(Roots::System),
            (None, path) => path.map(Roots::File),
        };
        // Elsewhere than libpq, SPIRE's driver requires TLS unless configured otherwise.
        let mode = match (mode, &root_ca) {
            (None, Some(Roots::System)) => Mode::VerifyFull,
            (mode, _) => mode.unwrap_or(Mode::Require),
        };
        if let (Some(setting), true) = (&negotiation, is_direct)
            && matches!(mode, Mode::Disable | Mode::Prefer)
        {
            let because = "direct TLS does not go with an sslmode that may do without TLS";
            return Err(wrong("sslnegotiation", setting, because));
        }
        if let (Some(Roots::System), Some(setting)) = (&root_ca, &named_mode)
            && mode != Mode::VerifyFull
        {
            // Anyone can have a certificate of a public authority: its name is all that tells.
            let because = "sslrootcert=system needs verify-full";
            return Err(wrong("sslmode", setting, because));
        }
        let sends_name = match settings.take("sslsni") {
            Some(setting) => boolean("sslsni", &setting)?,
            None => true,
        };
        let versions = versions(settings)?;
        Ok(Self {
            mode,
            root_ca,
            cert: config
                .client_cert_path
                .clone()
                .or_else(|| settings.path("sslcert")),
            key: config
                .client_key_path
                .clone()
                .or_else(|| settings.path("sslkey")),
            directory: config
                .environment
                .home()
                .map(|home| home.join(".postgresql")),
            sends_name,
            versions,
            is_direct,
        })
    }

    /// The authorities to verify with; as in libpq a file in `~/.postgresql` counts when none is named.
    pub(super) fn roots(&self) -> Option<Roots> {
        let default = || self.default_file("root.crt").map(Roots::File);
        self.root_ca.clone().or_else(default)
    }

    /// How much is verified with these roots, if there are any. libpq: where there are roots, every mode that encrypts
    /// verifies the authority.
    pub(super) fn verify(&self, roots: Option<&Roots>) -> Verify {
        match self.mode {
            Mode::VerifyFull => Verify::Full,
            Mode::VerifyCa => Verify::Authority,
            Mode::Disable => Verify::Nothing,
            Mode::Prefer | Mode::Require if roots.is_some() => Verify::Authority,
            Mode::Prefer | Mode::Require => Verify::Nothing,
        }
    }

    /// The certificate and the key to sign in with.
    pub(super) fn client(&self) -> Result<Option<(PathBuf, PathBuf)>, SettingsError> {
        let cert = self
            .cert
            .clone()
            .or_else(|| self.default_file("postgresql.crt"));
        let key = self
            .key
            .clone()
            .or_else(|| self.default_file("postgresql.key"));
        let missing = |present: &Path, absent: &str, key: &str| SettingsError {
            what: format!("the client certificate has no {absent}"),
            at: present.display().to_string(),
            because: format!("neither {key} nor a file in ~/.postgresql names one"),
            hint: format!("set {key}, or in connection_string the setting that does the same"),
        };
        match (cert, key) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (Some(cert), None) => Err(missing(&cert, "key", "client_key_path")),
            // A key that only lies there asks for nothing.
            (None, _) if self.key.is_none() => Ok(None),
            (None, Some(key)) => Err(missing(&key, "certificate", "client_cert_path")),
            (None, None) => Ok(None),
        }
    }

    fn default_file(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory.as_ref()?.join(name);
        path.exists().then_some(path)
    }
}

fn boolean(key: &str, setting: &super::conninfo::Setting) -> Result<bool, SettingsError> {
    match setting.text() {
        text if TRUE.contains(&text) => Ok(true),
        text if FALSE.contains(&text) => Ok(false),
        _ => Err(wrong(key, setting, "it must be 1 or 0")),
    }
}

type Versions = &'static [&'static SupportedProtocolVersion];
static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
static ONLY_12: [&SupportedProtocolVersion; 1] = [&TLS12];
static ONLY_13: [&SupportedProtocolVersion; 1] = [&TLS13];

/// TLS 1.2 and 1.3 are spoken; an older least version takes nothing away.
fn versions(settings: &mut Reader) -> Result<Versions, SettingsError> {
    const VERSIONS: &[(&str, u8)] = &[
        ("TLSv1", 0),
        ("TLSv1.0", 0),
        ("TLSv1.1", 1),
        ("TLSv1.2", 2),
        ("TLSv1.3", 3),
    ];
    let most_setting = settings.peek("ssl_max_protocol_version").cloned();
    let least = settings
        .choice("ssl_min_protocol_version", VERSIONS)?
        .unwrap_or(2);
    let most = settings
        .choice("ssl_max_protocol_version", VERSIONS)?
        .unwrap_or(3);
    match (least.max(2), most, most_setting) {
        (2, 2, _) => Ok(&ONLY_12),
        (3, 3.., _) => Ok(&ONLY_13),
        (2, 3.., _) | (_, _, None) => Ok(&BOTH),
        (_, _, Some(setting)) => Err(wrong(
            "ssl_max_protocol_version",
            &setting,
            "no version of TLS that is supported (1.2 and 1.3) lies within the bounds",
        )),
    }
}
