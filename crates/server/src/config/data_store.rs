//! The data of `DataStore "sql"`: which database, and how to reach it.

use config::Section;
use config::fault::Code;

use crate::datastore::{DatastoreConfig, DatastoreKind, Environment, PostgresConfig};

/// Reads the plugin's data, and of the environment what PostgreSQL's connection string leaves open. What is wrong is
/// recorded on the document. Gives notices beside the configuration.
pub(super) fn read(
    data: &Section,
    environment: Environment,
) -> Option<(DatastoreConfig, Vec<String>)> {
    let mut notices = Vec::new();
    data.unsupported(&[("log_sql", "statements are not logged")]);
    if data.string("ro_connection_string").is_some() {
        notices.push(
            "DataStore \"sql\": ro_connection_string has no effect: reads are answered from memory"
                .to_owned(),
        );
    }
    if data.boolean("disable_migration") == Some(true) {
        data.fault(
            Code::NotYetSupported,
            "disable_migration",
            "disable_migration = true is not yet supported",
            "the schema is brought up to date at the start; remove the key",
        );
    }
    // Read for their types: what is right today must be right on the day it counts.
    let ignored = [
        (
            "max_open_conns",
            data.integer_between("max_open_conns", 0, i64::from(i32::MAX))
                .is_some(),
        ),
        (
            "max_idle_conns",
            data.integer_between("max_idle_conns", 0, i64::from(i32::MAX))
                .is_some(),
        ),
        (
            "conn_max_lifetime",
            data.duration("conn_max_lifetime").is_some(),
        ),
    ];
    for (key, _) in ignored.iter().filter(|(_, is_set)| *is_set) {
        notices.push(format!(
            "DataStore \"sql\": {key} has no effect: the server holds a fixed number of connections"
        ));
    }
    let kind = kind(data, environment)?;
    if let DatastoreKind::Postgres(config) = &kind {
        match config.check() {
            Ok(found) => notices.extend(found),
            Err(error) => {
                // The excerpt shows no string of a line with connection_string.
                data.fault_at("connection_string", error.to_string(), error.hint);
                return None;
            }
        }
    }
    Some((DatastoreConfig::new(kind), notices))
}

fn kind(data: &Section, environment: Environment) -> Option<DatastoreKind> {
    let connection_string = data.required_string(
        "connection_string",
        "/var/lib/plastron/server/datastore.sqlite3",
    );
    let path = |key: &str| data.non_empty_string(key).map(Into::into);
    let (root_ca_path, client_cert_path, client_key_path) = (
        path("root_ca_path"),
        path("client_cert_path"),
        path("client_key_path"),
    );
    // SPIRE: database_type may be a block, for databases of a cloud.
    if is_block(data) {
        data.unsupported(&[(
            "database_type",
            "sign in with a connection string; blocks for AWS are not there yet",
        )]);
        return None;
    }
    let database_type = data.required_string("database_type", "sqlite3")?;
    match database_type.as_str() {
        "sqlite3" => sqlite(data, &connection_string?),
        "postgres" => {
            let mut config = PostgresConfig::new(connection_string?);
            config.environment = environment;
            config.root_ca_path = root_ca_path;
            config.client_cert_path = client_cert_path;
            config.client_key_path = client_key_path;
            Some(DatastoreKind::Postgres(config))
        }
        "mysql" => {
            let what = "database_type \"mysql\" is not yet supported";
            data.fault(
                Code::NotYetSupported,
                "database_type",
                what,
                "use postgres, or sqlite3 for a single server",
            );
            None
        }
        _ => {
            data.fault_at(
                "database_type",
                "database_type must be one of sqlite3, postgres",
                "",
            );
            None
        }
    }
}

fn is_block(data: &Section) -> bool {
    let text = data.raw("database_type").map(|raw| raw.value);
    text.is_some_and(|text| text.trim_end().ends_with('}'))
}

/// SPIRE takes a path or SQLite's `file:` URI. Of a URI only the path counts: what its parameters set (WAL, foreign
/// keys) is always set here.
fn sqlite(data: &Section, connection_string: &str) -> Option<DatastoreKind> {
    for key in ["root_ca_path", "client_cert_path", "client_key_path"] {
        if data.has(key) {
            let what = format!("{key} does not go with database_type \"sqlite3\"");
            data.fault(Code::ConflictingKeys, key, what, "take it out");
        }
    }
    let (path, parameters) = match connection_string.strip_prefix("file:") {
        Some(uri) => uri.split_once('?').unwrap_or((uri, "")),
        None => (connection_string, ""),
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    let in_memory = path.is_empty()
        || path == ":memory:"
        || parameters.split('&').any(|one| one == "mode=memory");
    if in_memory {
        let what = "a database in memory is not supported";
        data.fault_at(
            "connection_string",
            what,
            "name a file; without one every restart forgets all registrations",
        );
        return None;
    }
    Some(DatastoreKind::Sqlite { path: path.into() })
}
