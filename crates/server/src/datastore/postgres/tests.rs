//! What only PostgreSQL does: telling the others, broken connections. Without a server to test on
//! (`PLASTRON_TEST_POSTGRES_URL`) they are ignored, and fail when they are run all the same. TLS is tested with the whole
//! program, in `tests/it/plastron_alone/database_tls.rs`.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use spiffe::clock::SystemClock;
use tokio::time::timeout;

use super::connect::Connector;
use super::environment::Environment;
use crate::datastore::contract::{Subject, content, create, entry, td};
use crate::datastore::{Datastore, DatastoreConfig, DatastoreError, DatastoreKind, PostgresConfig};
use crate::registry::{Condition, EntryFilter, Registry};
use crate::testing::proxied_postgres;
use crate::testing::proxy::{Mode, Proxy};

async fn reached(registry: &Registry, revision: u64) {
    let mut heard = registry.subscribe();
    let waited = timeout(
        Duration::from_secs(20),
        heard.wait_for(|now| *now >= revision),
    )
    .await;
    waited.expect("the other server's commit is seen").unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_commit_reaches_the_other_servers_by_itself() {
    let Some(subject) = Subject::postgres("a_commit_reaches_the_other_servers").await else {
        return;
    };
    let (first, first_registry) = subject.open().await;
    let (second, second_registry) = subject.open().await;
    let made = create(&first, entry("/spire/agent/x", "/web", &["a:1"])).await;
    reached(&second_registry, 1).await;
    assert_eq!(second_registry.entry(&made.id), Some(Arc::clone(&made)));
    second
        .entries
        .delete(vec![made.id.to_string()])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    reached(&first_registry, 2).await;
    assert!(first_registry.entry(&made.id).is_none());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_server_goes_on_when_its_connections_were_cut() {
    let case = "a_server_goes_on_when_cut";
    let Some(subject) = Subject::postgres(case).await else {
        return;
    };
    let (first, first_registry) = subject.open().await;
    let (second, second_registry) = subject.open().await;
    create(&first, entry("/spire/agent/x", "/before", &["a:1"])).await;
    reached(&second_registry, 1).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = 'plastron_test_a_server_goes_on_when_cut' AND pid <> pg_backend_pid()";
    subject.sql(cut).await;
    // The first write may find out that the connection is gone; it says so and the next one has another.
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        let outcome = first
            .entries
            .create(vec![entry("/spire/agent/x", "/after", &["a:1"])])
            .await;
        let done = outcome.is_ok();
        outcomes.push(outcome);
        if done {
            break;
        }
    }
    assert!(outcomes.last().unwrap().is_ok(), "{outcomes:?}");
    let revision = first_registry.revision();
    reached(&second_registry, revision).await;
    assert_eq!(content(&first_registry), content(&second_registry));
    drop(second);
}

#[tokio::test]
async fn an_unreachable_database_is_refused_without_its_password() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let refused = open(&format!("postgres://u:hunter2@127.0.0.1:{port}/db"))
        .await
        .unwrap_err();
    assert!(matches!(refused, DatastoreError::Unavailable { .. }));
    let text = refused.to_string();
    assert!(text.contains("127.0.0.1/db"), "{text}");
    assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
    assert!(!format!("{refused} {refused:?}").contains("hunter2"));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_database_that_does_not_exist_is_named() {
    let url = std::env::var("PLASTRON_TEST_POSTGRES_URL")
        .expect("a test that needs PostgreSQL has its URL");
    let (server, _) = url.split('?').next().unwrap().rsplit_once('/').unwrap();
    let refused = open(&format!("{server}/plastron_absent?sslmode=disable"))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        refused
            .matches("\"plastron_absent\" does not exist")
            .count(),
        1,
        "{refused}"
    );
}

/// Waits for a condition of the database, as a server sees it.
async fn becomes(registry: &Registry, wanted: impl Fn(&Condition) -> bool) -> Condition {
    let mut conditions = registry.freshness().conditions();
    let waited = timeout(Duration::from_secs(30), conditions.wait_for(wanted)).await;
    waited.expect("the condition is noticed").unwrap().clone()
}

fn is_away(condition: &Condition) -> bool {
    matches!(condition, Condition::Away { .. })
}

async fn open_at(config: DatastoreConfig) -> (Datastore, Arc<Registry>) {
    Datastore::open(
        config,
        td("example.org"),
        Arc::new(SystemClock),
        daemon::telemetry::Telemetry::default(),
    )
    .await
    .unwrap()
}

async fn write(datastore: &Datastore, path: &str) -> Result<(), DatastoreError> {
    let made = datastore
        .entries
        .create(vec![entry("/spire/agent/x", path, &["a:1"])]);
    made.await.map(|_| ())
}

/// A database that goes in the given way is noticed, writes fail at once meanwhile, and all heals by itself.
async fn survives(case: &str, mode: Mode) {
    let Some((config, proxy)) = proxied_postgres(case).await else {
        return;
    };
    let (datastore, registry) = open_at(config).await;
    write(&datastore, "/before").await.unwrap();
    proxy.set(mode);
    let condition = becomes(&registry, is_away).await;
    assert!(condition.fault().is_some());
    for n in 0..50 {
        let refused = write(&datastore, &format!("/{n}")).await.unwrap_err();
        assert!(
            matches!(refused, DatastoreError::Unavailable { .. }),
            "{refused}"
        );
    }
    assert!(
        registry.freshness().check().is_ok(),
        "within the bound agents are served"
    );
    proxy.set(Mode::Open);
    becomes(&registry, |condition| *condition == Condition::Well).await;
    write(&datastore, "/after").await.unwrap();
    assert_eq!(registry.entry_count(&EntryFilter::default()), 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_database_that_is_stopped_is_noticed_and_comes_back() {
    survives("stopped", Mode::Stopped).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_database_that_hangs_is_noticed_within_seconds_and_comes_back() {
    survives("frozen", Mode::Frozen).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn what_others_wrote_while_the_database_was_away_from_us_is_followed() {
    let Some((config, proxy)) = proxied_postgres("partition").await else {
        return;
    };
    let direct = postgres_url_of(&config, &proxy);
    let (cut_off, registry) = open_at(config).await;
    let (other, _) = open_at(direct).await;
    let made = create(&other, entry("/spire/agent/x", "/seen", &["a:1"])).await;
    reached(&registry, 1).await;
    proxy.set(Mode::Stopped);
    becomes(&registry, is_away).await;
    other
        .entries
        .delete(vec![made.id.to_string()])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert!(registry.entry(&made.id).is_some(), "how could it know");
    proxy.set(Mode::Open);
    becomes(&registry, |condition| *condition == Condition::Well).await;
    assert!(registry.entry(&made.id).is_none());
    drop(cut_off);
}

/// The same database without the proxy.
fn postgres_url_of(config: &DatastoreConfig, proxy: &Proxy) -> DatastoreConfig {
    let DatastoreKind::Postgres(postgres) = &config.kind else {
        panic!("not PostgreSQL")
    };
    let mut postgres = postgres.clone();
    postgres.url.clone_from(&proxy.direct_url);
    DatastoreConfig::new(DatastoreKind::Postgres(postgres))
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_database_that_turns_read_only_is_noticed_without_a_write() {
    let Some((config, proxy)) = proxied_postgres("read_only").await else {
        return;
    };
    let admin = postgres_url_of(&config, &proxy);
    let sql = async |statements: &str| run_sql(&admin, statements).await;
    // A role of its own, which the administrator can make read-only without harm to the tests beside this one.
    sql("DO $$ BEGIN CREATE ROLE plastron_read_only LOGIN PASSWORD 'read-only'; EXCEPTION WHEN duplicate_object THEN NULL; END $$; \
         ALTER ROLE plastron_read_only RESET ALL; GRANT ALL ON SCHEMA plastron_server_read_only TO plastron_read_only").await;
    let mut config = config;
    let DatastoreKind::Postgres(postgres) = &mut config.kind else {
        panic!("not PostgreSQL")
    };
    let (scheme, rest) = postgres.url.split_once("://").unwrap();
    let (_, host) = rest.split_once('@').unwrap();
    postgres.url = format!("{scheme}://plastron_read_only:read-only@{host}");
    let (datastore, registry) = open_at(config).await;
    write(&datastore, "/before").await.unwrap();
    sql("ALTER ROLE plastron_read_only SET default_transaction_read_only = on; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'plastron_read_only'").await;
    becomes(&registry, |condition| {
        matches!(condition, Condition::Unwritable { .. })
    })
    .await;
    let refused = write(&datastore, "/while").await.unwrap_err();
    assert!(
        matches!(refused, DatastoreError::ReadOnly { .. }),
        "{refused}"
    );
    sql("ALTER ROLE plastron_read_only RESET default_transaction_read_only; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'plastron_read_only'").await;
    becomes(&registry, |condition| *condition == Condition::Well).await;
    write(&datastore, "/after").await.unwrap();
}

async fn run_sql(config: &DatastoreConfig, statements: &str) {
    let DatastoreKind::Postgres(postgres) = &config.kind else {
        panic!("not PostgreSQL")
    };
    let (client, connection) = tokio_postgres::connect(&postgres.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute(statements).await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();
}

/// The settings of a session that this configuration makes.
async fn session_settings(
    config: &PostgresConfig,
    names: &[&str],
) -> Result<Vec<String>, DatastoreError> {
    let session = Connector::new(config).await?.connect().await?;
    let mut values = Vec::new();
    for name in names {
        let rows = session.few("SELECT current_setting($1)", &[name]).await?;
        values.push(rows[0].get(0));
    }
    Ok(values)
}

/// The test server as pairs without a password, the password, and the host.
fn test_server_parts() -> (String, String, String) {
    let url = std::env::var("PLASTRON_TEST_POSTGRES_URL")
        .expect("a test that needs PostgreSQL has its URL");
    let config: tokio_postgres::Config = url.parse().unwrap();
    let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else {
        panic!("the test server is reached by TCP")
    };
    let pairs = format!(
        "port={} user={} dbname={} sslmode=disable",
        config.get_ports()[0],
        config.get_user().unwrap(),
        config.get_dbname().unwrap(),
    );
    let password = String::from_utf8(config.get_password().unwrap().to_vec()).unwrap();
    (pairs, password, host.clone())
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn parameters_of_the_connection_string_are_those_of_the_session() {
    let (pairs, password, host) = test_server_parts();
    let names = [
        "search_path",
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "application_name",
    ];
    let base = format!("{pairs} host={host} password={password}");
    for (text, expected) in [
        ("", ["\"$user\", public", "14s", "4s", "15s", "plastron"]),
        (
            "search_path='a, \"b c\\\\d\"' statement_timeout=5000 application_name=x",
            ["a, \"b c\\d\"", "5s", "4s", "15s", "x"],
        ),
        (
            "options='-c search_path=one -c lock_timeout=60000' search_path=two statement_timeout=0",
            ["two", "14s", "4s", "15s", "plastron"],
        ),
    ] {
        let config = PostgresConfig::new(format!("{base} {text}"));
        assert_eq!(
            session_settings(&config, &names).await.unwrap(),
            expected,
            "{text}"
        );
    }
    let unknown = PostgresConfig::new(format!("{base} serch_path=a"));
    let refused = session_settings(&unknown, &names)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("\"serch_path\""), "{refused}");
    assert!(!refused.contains(&password), "{refused}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_socket_and_a_password_file_lead_to_the_database() {
    let (pairs, password, host) = test_server_parts();
    let with_password = PostgresConfig::new(format!("{pairs} host={host} password={password}"));
    let directory = session_settings(&with_password, &["unix_socket_directories"])
        .await
        .unwrap()
        .remove(0);
    let home = tempfile::tempdir().unwrap();
    let passfile = home.path().join(".pgpass");
    std::fs::write(
        &passfile,
        format!("localhost:*:*:*:{password}\n{host}:*:*:*:wrong\n"),
    )
    .unwrap();
    let mode =
        |mode| std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    let mut config =
        PostgresConfig::new(format!("{pairs} host={directory} application_name=socket"));
    config.environment = Environment::of([("HOME".into(), home.path().into())]);
    // The socket of a server with `sslmode=verify-full` knows no TLS either.
    config.url = config.url.replace("sslmode=disable", "sslmode=verify-full");
    let settings = session_settings(&config, &["application_name"]).await;
    assert_eq!(settings.unwrap(), ["socket"]);
    // The first host does not answer as wished; the next one does, with another password.
    config.url = format!("{pairs} host={host},{directory}");
    assert_eq!(
        session_settings(&config, &["application_name"])
            .await
            .unwrap(),
        ["plastron"]
    );
    mode(0o644);
    let refused = session_settings(&config, &[])
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("chmod 0600"), "{refused}");
    assert!(!refused.contains(&password), "{refused}");
}

async fn open(url: &str) -> Result<(), DatastoreError> {
    let config = DatastoreConfig::new(DatastoreKind::Postgres(PostgresConfig::new(url)));
    Datastore::open(
        config,
        td("example.org"),
        Arc::new(SystemClock),
        daemon::telemetry::Telemetry::default(),
    )
    .await
    .map(|_| ())
}
