//! The store's faults as an operator reads them.

use config::fault::{Code, Fault};

use super::{DatastoreError, SettingsError};

impl From<&DatastoreError> for Fault {
    fn from(error: &DatastoreError) -> Self {
        match error {
            DatastoreError::Unavailable { because } => {
                Self::new(Code::DatabaseUnreachable, "the database cannot be reached")
                    .because(because)
                    .hint("check connection_string, and that the database runs and lets this host in (psql), or that the disk of the SQLite file works")
            }
            DatastoreError::Locked { at } => {
                Self::new(Code::DatabaseLocked, "the database is locked by another process")
                    .at(at)
                    .hint(format!(
                        "stop the other process (fuser {at}); one SQLite file belongs to one server, PostgreSQL serves several"
                    ))
            }
            DatastoreError::InUse { at } => {
                Self::new(Code::DatabaseLocked, "another server uses the database")
                    .at(at)
                    .hint(format!(
                        "stop it (fuser {at}.lock); one SQLite file belongs to one server, PostgreSQL serves several"
                    ))
            }
            DatastoreError::Full { at } => Self::new(Code::DiskFull, "no space left for the database")
                .at(at)
                .hint("free some space; what was acknowledged before is safe"),
            DatastoreError::ReadOnly { because } => {
                Self::new(Code::DatabaseReadOnly, "the database is read-only")
                    .because(because)
                    .hint("connect to the primary, or make the file and its file system writable")
            }
            DatastoreError::Refused { because } => {
                Self::new(Code::DatabaseFailed, "the database refused a statement").because(because)
            }
            DatastoreError::Open { at, because } => {
                Self::new(Code::DatabaseFailed, "the database cannot be opened")
                    .at(at)
                    .because(because)
                    .hint("check that its directory exists and that the server's user may write there")
            }
            DatastoreError::WrongTrustDomain { stored, configured } => Self::new(
                Code::DatabaseOfAnotherTrustDomain,
                format!("the database belongs to trust domain {stored}, the configuration says {configured}"),
            )
            .hint(format!("set trust_domain = \"{stored}\", or give this server a database of its own")),
            DatastoreError::NewerSchema { stored, supported } => {
                Self::new(Code::DatabaseTooNew, "the database was written by a newer version")
                    .because(format!("its schema is {stored}, this version knows {supported}"))
                    .hint("start the newer version, or restore a backup from before the upgrade")
            }
            DatastoreError::NotOurs { at, table } => {
                Self::new(Code::DatabaseFailed, "the database holds another program's tables")
                    .at(at)
                    .because(format!("it has a table {table} and none of ours"))
                    .hint("name an empty or new database in connection_string")
            }
            DatastoreError::Unreadable { table, key, because } => {
                Self::new(Code::DatabaseFailed, "the database holds something unreadable")
                    .at(format!("table {table}, key {key}"))
                    .because(because)
            }
            DatastoreError::Settings(SettingsError { what, at, because, hint }) => {
                Self::new(Code::DatabaseFailed, what).at(at).because(because).hint(hint)
            }
            DatastoreError::Closed => Self::new(Code::DatabaseFailed, "the datastore is closed"),
        }
    }
}

impl From<DatastoreError> for Fault {
    fn from(error: DatastoreError) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use spiffe::trust_domain::TrustDomain;

    use super::*;

    #[test]
    fn each_fault_says_what_to_do_about_it() {
        let at = "/data/db.sqlite3".to_owned();
        let configured = TrustDomain::parse("a.org").unwrap();
        for (error, code, part) in [
            (
                DatastoreError::Locked { at: at.clone() },
                Code::DatabaseLocked,
                "fuser /data/db.sqlite3",
            ),
            (
                DatastoreError::Full { at },
                Code::DiskFull,
                "free some space",
            ),
            (
                DatastoreError::WrongTrustDomain {
                    stored: "b.org".to_owned(),
                    configured,
                },
                Code::DatabaseOfAnotherTrustDomain,
                "set trust_domain = \"b.org\"",
            ),
            (
                DatastoreError::NewerSchema {
                    stored: 7,
                    supported: 1,
                },
                Code::DatabaseTooNew,
                "its schema is 7, this version knows 1",
            ),
            (
                DatastoreError::Unavailable {
                    because: "h/db: refused".to_owned(),
                },
                Code::DatabaseUnreachable,
                "because: h/db: refused",
            ),
        ] {
            let fault = Fault::from(error);
            assert_eq!(fault.code, code);
            assert!(fault.to_string().contains(part), "{fault}");
        }
    }
}
