//! Reads a connection string. The driver knows three of libpq's `sslmode`s and none of its certificate settings, so
//! those are taken out first.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::PostgresConfig;
use crate::datastore::error::DatastoreError;

/// How far TLS goes (libpq: `sslmode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Encrypts, if at all, without knowing for whom.
    Nothing,
    /// The server's certificate is of a known authority.
    Authority,
    /// And it names the host.
    Full,
}

#[derive(Debug)]
pub(super) struct Options {
    pub(super) config: Config,
    pub(super) verify: Verify,
    pub(super) root_ca: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
}

fn settings(because: impl std::fmt::Display) -> DatastoreError {
    DatastoreError::Settings {
        because: because.to_string(),
    }
}

impl Options {
    pub(super) fn parse(config: &PostgresConfig) -> Result<Self, DatastoreError> {
        let mut ours = Vec::new();
        let rest = if config.url.contains("://") {
            from_url(&config.url, &mut ours)
        } else {
            from_pairs(&config.url, &mut ours)
        };
        let named = |name: &str| {
            ours.iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        // The driver's own text may quote the string, password included.
        let mut driver: Config = rest
            .parse()
            .map_err(|_quoted| settings("connection_string can't be read"))?;
        let root_ca = config
            .root_ca_path
            .clone()
            .or_else(|| named("sslrootcert").map(PathBuf::from));
        let (mode, verify) = match named("sslmode") {
            Some("disable") => (SslMode::Disable, Verify::Nothing),
            Some("allow" | "prefer") => (SslMode::Prefer, Verify::Nothing),
            // libpq: a root certificate makes `require` verify the authority.
            Some("require") | None if root_ca.is_some() => (SslMode::Require, Verify::Authority),
            Some("require") => (SslMode::Require, Verify::Nothing),
            Some("verify-ca") => (SslMode::Require, Verify::Authority),
            Some("verify-full") => (SslMode::Require, Verify::Full),
            // No network lies before a Unix socket. Elsewhere SPIRE's driver requires TLS unless told otherwise.
            None if driver
                .get_hosts()
                .iter()
                .all(|host| matches!(host, Host::Unix(_))) =>
            {
                (SslMode::Disable, Verify::Nothing)
            }
            None => (SslMode::Require, Verify::Nothing),
            Some(other) => {
                return Err(settings(format!(
                    "sslmode {other:?} is none of disable, allow, prefer, require, verify-ca, verify-full"
                )));
            }
        };
        driver.ssl_mode(mode);
        Ok(Self {
            config: driver,
            verify,
            root_ca,
            client_cert: config
                .client_cert_path
                .clone()
                .or_else(|| named("sslcert").map(PathBuf::from)),
            client_key: config
                .client_key_path
                .clone()
                .or_else(|| named("sslkey").map(PathBuf::from)),
        })
    }
}

fn is_ours(key: &str) -> bool {
    ["sslmode", "sslrootcert", "sslcert", "sslkey"].contains(&key)
}

fn from_url(url: &str, ours: &mut Vec<(String, String)>) -> String {
    let Some((base, query)) = url.split_once('?') else {
        return url.to_owned();
    };
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((key, value)) if is_ours(key) => {
                ours.push((key.to_owned(), percent_decoded(value)));
            }
            _ => rest.push(pair),
        }
    }
    if rest.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", rest.join("&"))
    }
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
        let mut ahead = bytes.clone();
        match (byte, hex(ahead.next()), hex(ahead.next())) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(byte));
                bytes = ahead;
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `key = 'value with \' quote' key2=value`, as libpq reads it. What is not ours is passed on as it stands.
fn from_pairs(text: &str, ours: &mut Vec<(String, String)>) -> String {
    let mut rest = String::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return rest;
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=') {
            key.push(c);
        }
        chars.next();
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = chars.next_if_eq(&'\'').is_some();
        while let Some(c) = chars.next_if(|c| {
            if quoted {
                *c != '\''
            } else {
                !c.is_whitespace()
            }
        }) {
            value.push(c);
            if c == '\\' {
                value.extend(chars.next());
            }
        }
        if quoted {
            chars.next();
        }
        let key = key.trim();
        if is_ours(key) {
            ours.push((key.to_owned(), value.replace('\\', "")));
        } else {
            rest.push_str(&format!("{key}='{value}' "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Options, DatastoreError> {
        Options::parse(&PostgresConfig::new(url))
    }

    #[test]
    fn reads_tls_settings_from_both_forms() {
        for text in [
            "postgres://u:p%40@h:5/db?sslmode=verify-full&sslrootcert=/a%20b&connect_timeout=3",
            "user=u password='p@' host=h port=5 dbname=db sslmode = verify-full sslrootcert='/a b'",
        ] {
            let options = parse(text).unwrap();
            assert_eq!(options.verify, Verify::Full);
            assert_eq!(options.root_ca, Some(PathBuf::from("/a b")));
            assert_eq!(options.config.get_ssl_mode(), SslMode::Require);
            assert_eq!(options.config.get_dbname(), Some("db"));
            assert_eq!(options.config.get_password(), Some(&b"p@"[..]));
        }
    }

    #[test]
    fn quotes_in_values_survive() {
        let options = parse(r"password='it\'s \\ here' host=h").unwrap();
        assert_eq!(options.config.get_password(), Some(&br"it's \ here"[..]));
    }

    #[test]
    fn a_root_certificate_makes_require_verify() {
        let mut config = PostgresConfig::new("host=h sslmode=require");
        config.root_ca_path = Some(PathBuf::from("/ca"));
        assert_eq!(Options::parse(&config).unwrap().verify, Verify::Authority);
    }

    #[test]
    fn tls_is_required_unless_said_otherwise_or_on_a_unix_socket() {
        for (text, mode) in [
            ("host=h", SslMode::Require),
            ("postgres://h/db", SslMode::Require),
            ("host=h sslmode=disable", SslMode::Disable),
            ("host=/run/postgresql dbname=db", SslMode::Disable),
            ("host=/run/postgresql,h dbname=db", SslMode::Require),
        ] {
            assert_eq!(parse(text).unwrap().config.get_ssl_mode(), mode, "{text}");
        }
    }

    #[test]
    fn refuses_an_unknown_mode_and_never_quotes_the_password() {
        assert!(matches!(
            parse("host=h sslmode=verify"),
            Err(DatastoreError::Settings { .. })
        ));
        let error = parse("postgres://u:hunter2@h:port/db").unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
