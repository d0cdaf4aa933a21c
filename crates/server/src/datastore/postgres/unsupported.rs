//! libpq's settings that ask for something that is not done here. Each is refused by name: to leave one out in silence
//! would protect a connection less than its operator believes.

use super::conninfo::Setting;
use super::options::Reader;
use crate::datastore::error::SettingsError;

/// A setting, the values that ask for nothing, why others are refused, and what to do.
struct Unsupported {
    key: &'static str,
    harmless: &'static [&'static str],
    because: &'static str,
    hint: &'static str,
}

const fn never(key: &'static str, because: &'static str, hint: &'static str) -> Unsupported {
    Unsupported {
        key,
        harmless: &[],
        because,
        hint,
    }
}

const fn unless(
    key: &'static str,
    harmless: &'static [&'static str],
    because: &'static str,
    hint: &'static str,
) -> Unsupported {
    Unsupported {
        key,
        harmless,
        because,
        hint,
    }
}

const NO_KERBEROS: &str = "Kerberos is not supported";
const BY_OTHER_MEANS: &str = "sign in with a password or a client certificate";
const NO_EFFECT: &str = "remove it";

const UNSUPPORTED: &[Unsupported] = &[
    never(
        "service",
        "service files are not read",
        "write the settings of the service into connection_string",
    ),
    unless(
        "sslinline",
        FALSE,
        "certificates and keys are read from files only",
        "write them to files, and name the files in sslcert, sslkey and sslrootcert",
    ),
    never(
        "sslcrl",
        "revocation lists are not checked",
        "remove it, and replace the database's CA when a certificate must be revoked",
    ),
    never(
        "sslcrldir",
        "revocation lists are not checked",
        "remove it, and replace the database's CA when a certificate must be revoked",
    ),
    never(
        "sslpassword",
        "encrypted key files are not read",
        "store the key without a password in a file of mode 0600",
    ),
    unless(
        "sslcertmode",
        &["allow"],
        "a client certificate is sent when there is one and the database asks for it",
        "remove it",
    ),
    unless(
        "sslcompression",
        &["0"],
        "TLS has no compression any more",
        NO_EFFECT,
    ),
    never(
        "requiressl",
        "sslmode took its place",
        "set sslmode=require or better",
    ),
    never(
        "requirepeer",
        "the owner of the database's process is not checked",
        "keep the directory of the socket writable by its owner only",
    ),
    never(
        "require_auth",
        "the method to sign in with is the database's choice",
        "set sslmode=verify-full, which lets no other host ask for a password",
    ),
    unless(
        "channel_binding",
        &["disable", "prefer"],
        "channel binding is not supported",
        "set sslmode=verify-full instead",
    ),
    unless(
        "gssencmode",
        &["disable", "prefer"],
        NO_KERBEROS,
        "use TLS: sslmode=verify-full",
    ),
    unless("gssdelegation", &["0"], NO_KERBEROS, BY_OTHER_MEANS),
    never("gsslib", NO_KERBEROS, BY_OTHER_MEANS),
    never("krbsrvname", NO_KERBEROS, BY_OTHER_MEANS),
    never("krbspn", NO_KERBEROS, BY_OTHER_MEANS),
    unless(
        "replication",
        FALSE,
        "a replication connection runs no statements",
        NO_EFFECT,
    ),
    never(
        "keepalives",
        "dead connections are noticed within 30 s, whatever it says",
        NO_EFFECT,
    ),
    never(
        "keepalives_idle",
        "dead connections are noticed within 30 s, whatever it says",
        NO_EFFECT,
    ),
    never(
        "keepalives_interval",
        "dead connections are noticed within 30 s, whatever it says",
        NO_EFFECT,
    ),
    never(
        "keepalives_count",
        "dead connections are noticed within 30 s, whatever it says",
        NO_EFFECT,
    ),
    unless(
        "min_protocol_version",
        &["3.0"],
        "the protocol spoken with the database is version 3.0",
        NO_EFFECT,
    ),
    unless(
        "max_protocol_version",
        &["3.0", "3.2", "latest"],
        "the protocol spoken with the database is version 3.0",
        NO_EFFECT,
    ),
    unless(
        "datestyle",
        &["ISO, MDY"],
        "SPIRE's driver takes ISO, MDY only; dates are not stored as such",
        NO_EFFECT,
    ),
    // lib/pq's own, about how it passes values; they have no effect on what is stored.
    unless(
        "binary_parameters",
        ANY_BOOLEAN,
        "it must be yes or no",
        NO_EFFECT,
    ),
    unless(
        "disable_prepared_binary_result",
        ANY_BOOLEAN,
        "it must be yes or no",
        NO_EFFECT,
    ),
];

pub(super) const TRUE: &[&str] = &["1", "t", "T", "true", "TRUE", "True", "yes", "on"];
pub(super) const FALSE: &[&str] = &["0", "f", "F", "false", "FALSE", "False", "no", "off"];
const ANY_BOOLEAN: &[&str] = &[
    "1", "t", "T", "true", "TRUE", "True", "yes", "on", "0", "f", "F", "false", "FALSE", "False",
    "no", "off",
];

/// Settings that are read elsewhere and whose names begin like those of an unsupported family.
const KNOWN: &[&str] = &[
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslsni",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
];

/// No parameter of a session begins so: what does is a setting of a newer libpq, or a slip of the pen.
const FAMILIES: &[&str] = &["ssl", "gss", "krb", "oauth_", "scram_"];

/// Refuses the first setting that asks for too much, and takes out those that ask for nothing.
pub(super) fn check(settings: &mut Reader) -> Result<(), SettingsError> {
    for one in UNSUPPORTED {
        let Some(setting) = settings.take(one.key) else {
            continue;
        };
        if !setting.text().is_empty() && !one.harmless.contains(&setting.text()) {
            return Err(refused(one.key, &setting, one.because, one.hint));
        }
    }
    if let Some(setting) = settings.take("client_encoding")
        && !is_utf8(setting.text())
    {
        return Err(refused(
            "client_encoding",
            &setting,
            "texts are passed as UTF-8 only",
            NO_EFFECT,
        ));
    }
    for (key, setting) in settings.keys() {
        let lower = key.to_ascii_lowercase();
        let is_of_family = FAMILIES.iter().any(|family| lower.starts_with(family));
        if is_of_family && !KNOWN.contains(&key) {
            let hint = match config::closest(key, KNOWN.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => NO_EFFECT.to_owned(),
            };
            return Err(refused(key, setting, "there is no such setting", &hint));
        }
    }
    Ok(())
}

fn refused(key: &str, setting: &Setting, because: &str, hint: &str) -> SettingsError {
    SettingsError {
        what: format!("{key} is not supported with this value or at all"),
        at: setting.origin.clone(),
        because: because.to_owned(),
        hint: hint.to_owned(),
    }
}

/// PostgreSQL leaves out all but letters and digits when it reads the name of an encoding.
fn is_utf8(name: &str) -> bool {
    let name: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    name.is_empty() || name == "utf8" || name == "unicode"
}
