//! Reads libpq's two forms of a connection string, `key=value` pairs and URLs, into settings. Knows what no key means.
//!
//! A refusal names the setting before the fault and quotes nothing: what cannot be read may be a piece of a password.

use std::collections::BTreeMap;

use spiffe::secret::Secret;

use crate::datastore::error::SettingsError;

/// Where a setting that cannot be used was written.
pub(super) const CONNECTION_STRING: &str = "connection_string";

const PAIRS_HINT: &str = "write KEY=VALUE pairs with spaces between them; a value with spaces goes between single quotes, \
                          in which \\' is a quote and \\\\ a backslash";
const URL_HINT: &str = "write postgres://USER:PASSWORD@HOST:PORT/DATABASE?KEY=VALUE&KEY=VALUE, with %40 for @, %2F for / \
                        and %23 for # in the parts";

/// One setting, and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) value: Secret<String>,
    pub(super) origin: String,
}

impl Setting {
    pub(super) fn new(value: String, origin: impl Into<String>) -> Self {
        Self {
            value: Secret::new(value),
            origin: origin.into(),
        }
    }

    pub(super) fn text(&self) -> &str {
        self.value.expose()
    }
}

/// Settings by key; of a repeated one the last.
pub(super) type Settings = BTreeMap<String, Setting>;

/// Reads a connection string.
pub(super) fn parse(text: &str) -> Result<Settings, SettingsError> {
    if text.contains('\0') {
        return Err(unreadable(
            "it holds a NUL character",
            "remove the character",
        ));
    }
    let text = text.trim();
    let url = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    match url {
        Some(rest) => from_url(rest),
        None if is_other_url(text) => Err(unreadable(
            "its scheme is neither postgres:// nor postgresql://",
            URL_HINT,
        )),
        None => from_pairs(text),
    }
}

fn is_other_url(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| !scheme.contains(|c: char| !c.is_ascii_alphanumeric()))
}

fn unreadable(because: impl Into<String>, hint: &str) -> SettingsError {
    SettingsError {
        what: "connection_string cannot be read".to_owned(),
        at: CONNECTION_STRING.to_owned(),
        because: because.into(),
        hint: hint.to_owned(),
    }
}

/// Names of libpq's settings and of the database's parameters, the latter with a dot for those of extensions.
fn is_name(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.len() <= 63
        && !key.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
}

/// `key = 'value with \' quote' key2=value`, as libpq reads it.
fn from_pairs(text: &str) -> Result<Settings, SettingsError> {
    let mut settings = Settings::new();
    let mut last = None;
    let mut rest = text;
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once('=') else {
            return Err(no_pair(last.as_deref()));
        };
        let key = key.trim_end();
        if !is_name(key) {
            return Err(no_pair(last.as_deref()));
        }
        let (value, after) = pair_value(after.trim_start(), key)?;
        settings.insert(key.to_owned(), Setting::new(value, CONNECTION_STRING));
        last = Some(key.to_owned());
        rest = after.trim_start();
    }
    Ok(settings)
}

fn no_pair(last: Option<&str>) -> SettingsError {
    let place = match last {
        Some(key) => format!("after {key}"),
        None => "at the beginning".to_owned(),
    };
    unreadable(
        format!("{place}, something is not of the form KEY=VALUE"),
        PAIRS_HINT,
    )
}

/// The value at the beginning of `text`, and what follows it.
fn pair_value<'a>(text: &'a str, key: &str) -> Result<(String, &'a str), SettingsError> {
    let (is_quoted, text) = match text.strip_prefix('\'') {
        Some(quoted) => (true, quoted),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        let rest = chars.as_str();
        match chars.next() {
            Some('\\') => match chars.next() {
                Some(escaped) => value.push(escaped),
                None => {
                    let because = format!("the value of {key} ends in a backslash");
                    return Err(unreadable(because, PAIRS_HINT));
                }
            },
            Some('\'') if is_quoted => return Ok((value, chars.as_str())),
            Some(c) if !is_quoted && c.is_whitespace() => return Ok((value, rest)),
            Some(c) => value.push(c),
            None if is_quoted => {
                let because = format!("the quote that begins the value of {key} does not end");
                return Err(unreadable(because, PAIRS_HINT));
            }
            None => return Ok((value, "")),
        }
    }
}

/// What follows the scheme. Takes libpq's forms (several hosts with a port each, a socket's directory as `%2F…`) and, as
/// lib/pq does, `+` for a space in the query.
fn from_url(rest: &str) -> Result<Settings, SettingsError> {
    if rest.contains('#') {
        return Err(unreadable("a URL ends at its #", URL_HINT));
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before.split_once('/').unwrap_or((before, ""));
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut settings = Settings::new();
    let mut put = |key: &str, value: String| {
        // lib/pq: an empty part says nothing.
        if !value.is_empty() {
            settings.insert(key.to_owned(), Setting::new(value, CONNECTION_STRING));
        }
    };
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    put("user", decoded(user, "user")?);
    put("password", decoded(password, "password")?);
    let (hosts, ports) = hosts_and_ports(hosts)?;
    put("host", hosts);
    put("port", ports);
    put("dbname", decoded(database, "dbname")?);
    let mut last = "the ?".to_owned();
    let mut seen = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decoded(key, &last)?;
        if !is_name(&key) {
            return Err(unreadable(
                format!("after {last}, something is not of the form KEY=VALUE"),
                URL_HINT,
            ));
        }
        let value = decoded(&value.replace('+', " "), &key)?;
        // Of a repeated key lib/pq takes the first.
        if !seen.contains(&key) {
            put(&key, value);
            seen.push(key.clone());
        }
        last = key;
    }
    Ok(settings)
}

/// `a:1,[::1]:2,c` as a list of hosts and a list of ports, both in the form of libpq's pairs.
fn hosts_and_ports(text: &str) -> Result<(String, String), SettingsError> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for one in text.split(',') {
        let (host, port) = match one.strip_prefix('[') {
            Some(bracketed) => {
                let (address, after) = bracketed.split_once(']').unwrap_or((bracketed, "?"));
                match after.strip_prefix(':') {
                    Some(port) => (address, port),
                    None if after.is_empty() => (address, ""),
                    None => {
                        return Err(unreadable("an address in brackets does not end", URL_HINT));
                    }
                }
            }
            None => one.split_once(':').unwrap_or((one, "")),
        };
        hosts.push(decoded(host, "host")?);
        ports.push(decoded(port, "port")?);
    }
    let any_port = ports.iter().any(|port| !port.is_empty());
    let ports = if any_port {
        ports.join(",")
    } else {
        String::new()
    };
    Ok((hosts.join(","), ports))
}

fn decoded(text: &str, part: &str) -> Result<String, SettingsError> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = bytes.next().and_then(|byte| char::from(byte).to_digit(16));
            digit.and_then(|digit| u8::try_from(digit).ok())
        };
        match (digit(), digit()) {
            (Some(high), Some(low)) if (high, low) != (0, 0) => out.push(high * 16 + low),
            _ => {
                let because = format!(
                    "in or after {part}, a % is not followed by two hexadecimal digits of a character"
                );
                return Err(unreadable(because, URL_HINT));
            }
        }
    }
    String::from_utf8(out).map_err(|_value| unreadable(format!("{part} is not UTF-8"), URL_HINT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let settings = parse(text).unwrap();
        let pairs = settings.iter();
        pairs
            .map(|(key, setting)| (key.clone(), setting.text().to_owned()))
            .collect()
    }

    #[track_caller]
    fn same(text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(read(text), expected, "{text}");
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        same("", &[]);
        same("host=h", &[("host", "h")]);
        same(
            "  host = h  port= 5 user =''  ",
            &[("host", "h"), ("port", "5"), ("user", "")],
        );
        same("password=", &[("password", "")]);
        same(r"password=a\ b\'c", &[("password", "a b'c")]);
        same(
            r"password='it\'s \\ = here'",
            &[("password", r"it's \ = here")],
        );
        same("password=a'b", &[("password", "a'b")]);
        same("host=a host=b", &[("host", "b")]);
        same(
            "password=x://y plpgsql.check=1",
            &[("password", "x://y"), ("plpgsql.check", "1")],
        );
        same(
            "application_name='a'host=h",
            &[("application_name", "a"), ("host", "h")],
        );
    }

    #[test]
    fn urls_are_read_in_the_forms_of_libpq_and_of_go() {
        same("postgres://", &[]);
        same(
            "postgresql://u:p%40@h:5/db?sslmode=require&search_path=a%2Cb",
            &[
                ("dbname", "db"),
                ("host", "h"),
                ("password", "p@"),
                ("port", "5"),
                ("search_path", "a,b"),
                ("sslmode", "require"),
                ("user", "u"),
            ],
        );
        same(
            "postgres://a:1,[::1]:2,c/",
            &[("host", "a,::1,c"), ("port", "1,2,")],
        );
        same(
            "postgres://u:p@w@%2Frun%2Fpg/db",
            &[
                ("dbname", "db"),
                ("host", "/run/pg"),
                ("password", "p@w"),
                ("user", "u"),
            ],
        );
        same(
            "postgres:///db?host=/run/pg&port=&options=-c+geqo%3Doff",
            &[
                ("dbname", "db"),
                ("host", "/run/pg"),
                ("options", "-c geqo=off"),
            ],
        );
        same(
            "postgres://h?user=a&user=b",
            &[("host", "h"), ("user", "a")],
        );
    }

    #[test]
    fn what_cannot_be_read_is_placed_and_never_quoted() {
        for (text, because) in [
            ("hunter2", "at the beginning"),
            ("=hunter2", "at the beginning"),
            ("password=hun ter2 host=h", "after password"),
            ("password=hun ter2", "after password"),
            ("user=u pass-word=hunter2", "after user"),
            ("user=u password='hunter2", "value of password does not end"),
            (
                r"password=hunter2\",
                "value of password ends in a backslash",
            ),
            ("mysql://u:hunter2@h/db", "scheme"),
            ("postgres://u:hunter2#@h/db", "ends at its #"),
            ("postgres://u:hunter2%@h/db", "after password"),
            ("postgres://u:hunter2%zz@h/db", "after password"),
            ("postgres://u:hunter2%00@h/db", "after password"),
            ("postgres://u:hunter2%ff@h/db", "password is not UTF-8"),
            ("postgres://u:hunter2@[::1/db", "brackets"),
            ("postgres://u:hunter2@[::1]5/db", "brackets"),
            (
                "postgres://h/db?sslmode=disable&hunter2-ter2",
                "after sslmode",
            ),
            ("host=h\0 password=hunter2", "NUL"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.because.contains(because), "{text}: {error}");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("ter2"), "{shown}");
        }
    }
}
