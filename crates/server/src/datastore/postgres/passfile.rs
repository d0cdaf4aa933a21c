//! Finds a password in a password file (`~/.pgpass`), by libpq's rules.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use spiffe::secret::Secret;

/// The largest password file that is read.
const LIMIT: u64 = 1024 * 1024;

/// What a line must be about.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// A name, an address, or the directory of a socket.
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Password(Secret<String>),
    /// No line fits, or there is no file.
    Nothing,
    /// The file must not or cannot be read, for this reason.
    Ignored(String),
}

/// Looks the password up. Blocks.
pub(super) fn look_up(path: &Path, wanted: &Wanted<'_>) -> Lookup {
    let ignored = |because: String| {
        Lookup::Ignored(format!(
            "the password file {} is ignored: {because}",
            path.display()
        ))
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Lookup::Nothing;
        }
        Err(error) => return ignored(error.to_string()),
    };
    if !metadata.is_file() {
        return ignored("it is not a plain file".to_owned());
    }
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        return ignored(format!(
            "its mode is {:04o}, and others than its owner may have no access; run: chmod 0600 {}",
            mode & 0o7777,
            path.display()
        ));
    }
    let bytes = match config::private_file::read(path, LIMIT) {
        Ok(bytes) => bytes,
        Err(error) => return ignored(error.to_string()),
    };
    match std::str::from_utf8(&bytes) {
        Ok(text) => text
            .lines()
            .find_map(|line| password(line, wanted))
            .map_or(Lookup::Nothing, Lookup::Password),
        Err(_) => ignored("it is not UTF-8".to_owned()),
    }
}

/// The password of a line `host:port:database:user:password` that fits.
fn password(line: &str, wanted: &Wanted<'_>) -> Option<Secret<String>> {
    if line.starts_with('#') {
        return None;
    }
    let (host, rest) = field(line)?;
    let (port, rest) = field(rest)?;
    let (database, rest) = field(rest)?;
    let (user, rest) = field(rest)?;
    let fits = |field: &str, value: &str| field == "*" || field == value;
    let is_socket = wanted.host.starts_with('/');
    let is_for = (fits(&host, wanted.host) || (is_socket && host == "localhost"))
        && fits(&port, &wanted.port.to_string())
        && fits(&database, wanted.database)
        && fits(&user, wanted.user);
    is_for.then(|| Secret::new(unescaped(rest)))
}

/// The field before the next colon that no backslash stands before, and what follows the colon.
fn field(text: &str) -> Option<(String, &str)> {
    let mut is_escaped = false;
    let end = text.find(|c| {
        let is_end = c == ':' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    })?;
    let (field, rest) = text.split_at_checked(end)?;
    Some((unescaped(field), rest.strip_prefix(':')?))
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' {
            chars.next().unwrap_or(c)
        } else {
            c
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        host: "db.example.org",
        port: 5432,
        database: "spire",
        user: "me",
    };

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn found(text: &str, wanted: &Wanted<'_>) -> Option<String> {
        let (_directory, path) = file(text, 0o600);
        match look_up(&path, wanted) {
            Lookup::Password(password) => Some(password.expose().clone()),
            Lookup::Nothing => None,
            Lookup::Ignored(because) => panic!("{because}"),
        }
    }

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        for (text, password) in [
            ("db.example.org:5432:spire:me:one\n*:*:*:*:two", Some("one")),
            ("other:5432:spire:me:one\n*:*:*:*:two\r\n", Some("two")),
            ("# a comment\n\n*:*:*:me:a\\:b\\\\c", Some("a:b\\c")),
            ("*:*:*:*:with:colons", Some("with:colons")),
            ("localhost:*:*:*:one", None),
            ("*:5433:*:*:one", None),
            ("*:*:other:*:one", None),
            ("*:*:*:other:one", None),
            ("*:*:*:*", None),
            ("#*:*:*:*:one", None),
            ("", None),
        ] {
            assert_eq!(found(text, &WANTED).as_deref(), password, "{text}");
        }
    }

    #[test]
    fn a_socket_is_found_by_its_directory_and_as_localhost() {
        let socket = Wanted {
            host: "/run/postgresql",
            ..WANTED
        };
        assert_eq!(found("localhost:*:*:*:a", &socket).as_deref(), Some("a"));
        assert_eq!(
            found("/run/postgresql:*:*:*:b", &socket).as_deref(),
            Some("b")
        );
        assert_eq!(found("/tmp:*:*:*:b", &socket), None);
    }

    #[test]
    fn a_file_that_others_may_read_is_ignored_with_the_command_that_mends_it() {
        for mode in [0o640, 0o604, 0o620, 0o610, 0o644] {
            let (_directory, path) = file("*:*:*:*:hunter2", mode);
            let Lookup::Ignored(because) = look_up(&path, &WANTED) else {
                panic!("{mode:o} was read");
            };
            assert!(because.contains("chmod 0600"), "{because}");
            assert!(!because.contains("hunter2"), "{because}");
        }
    }

    #[test]
    fn what_is_no_file_is_ignored_and_a_missing_one_is_no_fault() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            look_up(directory.path(), &WANTED),
            Lookup::Ignored(_)
        ));
        let missing = directory.path().join("absent/pgpass");
        assert_eq!(look_up(&missing, &WANTED), Lookup::Nothing);
        let (_directory, large) = file(&"#".repeat(1024 * 1024 + 1), 0o600);
        assert!(matches!(look_up(&large, &WANTED), Lookup::Ignored(_)));
    }
}
