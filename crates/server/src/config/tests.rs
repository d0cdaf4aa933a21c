use std::time::Duration;

use config::fault::Code;
use spiffe::key::KeyType;

use super::*;
use crate::datastore::DatastoreKind;

const PLUGINS: &str = r#"
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/d/db" } }
    KeyManager "memory" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data {} }
}
"#;

fn parse(text: &str, overrides: &Overrides) -> Result<Config, Faults> {
    let document = Document::parse("server.conf", text, None).unwrap();
    Config::from_document(&document, overrides)
}

fn server(keys: &str) -> Result<Config, Faults> {
    let text = format!(
        "server {{\ntrust_domain = \"example.org\"\ndata_dir = \"/d\"\n{keys}\n}}\n{PLUGINS}"
    );
    parse(&text, &Overrides::default())
}

fn with_data(data: &str) -> Result<Config, Faults> {
    let text = format!(
        "server {{\ntrust_domain = \"example.org\"\ndata_dir = \"/d\"\n}}\nplugins {{\n\
         DataStore \"sql\" {{ plugin_data {{\n{data}\n}} }}\nKeyManager \"memory\" {{ plugin_data {{}} }}\n}}"
    );
    parse(&text, &Overrides::default())
}

/// The codes and texts of all faults.
fn faults(result: Result<Config, Faults>) -> Vec<(Code, String)> {
    let faults = result.expect_err("no fault was found");
    faults
        .into_iter()
        .map(|fault| (fault.code, fault.what))
        .collect()
}

fn refused_with(result: Result<Config, Faults>, code: Code, text: &str) {
    let found = faults(result);
    assert!(
        found
            .iter()
            .any(|(found, what)| *found == code && what.contains(text)),
        "{text}: {found:?}"
    );
}

fn noticed(config: &Config, text: &str) {
    assert!(
        config.notices.iter().any(|notice| notice.contains(text)),
        "{text}: {:?}",
        config.notices
    );
}

#[test]
fn a_flag_wins_over_the_key_that_the_file_sets_too() {
    let text = format!(
        "server {{\ntrust_domain = \"example.org\"\ndata_dir = \"/d\"\nlog_level = \"WARN\"\nlog_format = \"text\"\n\
         bind_address = \"1.2.3.4\"\nbind_port = 1\nsocket_path = \"/s\"\n}}\n{PLUGINS}"
    );
    let overrides = Overrides {
        bind_address: Some("127.0.0.1".to_owned()),
        server_port: Some(9),
        data_dir: Some("/elsewhere".into()),
        log: LogFlags {
            level: Some("debug".to_owned()),
            format: Some("json".to_owned()),
            ..LogFlags::default()
        },
        socket_path: Some("/elsewhere/api.sock".into()),
        ..Overrides::default()
    };
    let config = parse(&text, &overrides).unwrap();
    assert_eq!(
        (config.bind_address.as_str(), config.bind_port),
        ("127.0.0.1", 9)
    );
    assert_eq!(config.data_dir, PathBuf::from("/elsewhere"));
    assert_eq!(config.socket_path, PathBuf::from("/elsewhere/api.sock"));
    assert_eq!(
        (config.log.level.as_str(), config.log.json),
        ("DEBUG", true)
    );
}

#[test]
fn fills_in_the_defaults_of_spire() {
    let config = server("").unwrap();
    assert_eq!(
        (config.bind_address.as_str(), config.bind_port),
        ("0.0.0.0", 8081)
    );
    assert_eq!(
        config.socket_path,
        PathBuf::from("/tmp/spire-server/private/api.sock")
    );
    let issuance = &config.issuance;
    assert_eq!(issuance.ca_ttl, Duration::from_secs(86_400));
    assert_eq!(issuance.x509_svid_ttl, Duration::from_secs(3_600));
    assert_eq!(issuance.jwt_svid_ttl, Duration::from_secs(300));
    assert_eq!(issuance.agent_ttl, issuance.x509_svid_ttl);
    assert_eq!(
        (issuance.ca_key_type, issuance.jwt_key_type),
        (KeyType::EcP256, KeyType::EcP256)
    );
    assert_eq!(issuance.ca_subject.organization, ["SPIFFE"]);
    assert!(
        issuance.jwt_svids
            && !config.audit_log
            && config.pruning.is_none()
            && config.health.is_none()
    );
    assert_eq!(
        config.rate_limits,
        RateLimitConfig {
            attestation: true,
            signing: true
        }
    );
    assert_eq!(config.notices, Vec::<String>::new());
}

#[test]
fn derives_agent_ttl_and_jwt_key_type_from_their_parents() {
    let config = server("default_x509_svid_ttl = \"2h\"\nca_key_type = \"rsa-2048\"").unwrap();
    assert_eq!(config.issuance.agent_ttl, Duration::from_secs(7_200));
    assert_eq!(config.issuance.jwt_key_type, KeyType::Rsa2048);
    let config = server("ca_key_type = \"rsa-2048\"\njwt_key_type = \"ec-p384\"").unwrap();
    assert_eq!(config.issuance.jwt_key_type, KeyType::EcP384);
}

#[test]
fn lets_flags_win_over_the_file() {
    let overrides = Overrides {
        bind_address: Some("[::1]".to_owned()),
        server_port: Some(0),
        trust_domain: Some("other.test".to_owned()),
        log: LogFlags {
            level: Some("debug".to_owned()),
            ..LogFlags::default()
        },
        socket_path: Some("/s".into()),
        ..Overrides::default()
    };
    let text = format!(
        "server {{ trust_domain = \"BAD\" data_dir = \"/d\" bind_port = \"9000\" }}{PLUGINS}"
    );
    let config = parse(&text, &overrides).unwrap();
    assert_eq!((config.bind_address.as_str(), config.bind_port), ("::1", 0));
    assert_eq!(config.trust_domain.as_str(), "other.test");
    assert_eq!(config.log.level, "DEBUG");
    assert_eq!(config.socket_path, PathBuf::from("/s"));
}

#[test]
fn reads_the_sample_files_without_a_fault() {
    for name in ["server.conf", "server_full.conf"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../conf/server")
            .join(name);
        let document = Document::load(&path, None).unwrap();
        let config = Config::from_document(&document, &Overrides::default());
        let config = config.unwrap_or_else(|faults| panic!("{name}: {faults}"));
        assert_eq!(config.notices, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn reports_all_faults_at_once_each_with_its_line() {
    let text = "server {\n  bind_prot = 1\n  ca_ttl = \"soon\"\n  ca_key_type = \"ec-p521\"\n  sds = 1\n}\n";
    let found = parse(text, &Overrides::default()).unwrap_err();
    for (code, what) in [
        (Code::UnknownKey, "bind_prot"),
        (Code::MissingKey, "trust_domain"),
        (Code::MissingKey, "data_dir"),
        (Code::MissingKey, "plugins"),
        (Code::InvalidValue, "ca_ttl"),
        (Code::InvalidValue, "ca_key_type"),
    ] {
        assert!(
            found
                .iter()
                .any(|fault| fault.code == code && fault.what.contains(what)),
            "{what}: {found}"
        );
    }
    assert!(
        found
            .iter()
            .any(|fault| fault.at.as_deref() == Some("server.conf:3:12")),
        "{found}"
    );
    assert!(found.to_string().contains("bind_port"), "{found}");
}

#[test]
fn refuses_what_is_not_there_yet_by_name() {
    for key in [
        "federation { bundle_endpoint { address = \"0.0.0.0\" port = 8443 profile \"https_spiffe\" {} } }",
        "federation { federates_with \"a.test\" { bundle_endpoint_url = \"https://a\" } }",
        "profiling_enabled = true",
        "profiling_port = 6060",
        "proxy_protocol_trusted_cidrs = [\"10.0.0.0/8\"]",
        "experimental { auth_opa_policy_engine { local { rego_path = \"a\" } } }",
        "experimental { wit_key_type = \"ec-p256\" }",
        "experimental { wit_issuer = \"x\" }",
        "experimental { named_pipe_name = \"x\" }",
        "experimental { feature_flags = [\"wit-svid\"] }",
    ] {
        refused_with(server(key), Code::NotYetSupported, "not yet supported");
    }
}

#[test]
fn refuses_every_telemetry_setting_but_not_an_empty_block() {
    for sink in [
        "Prometheus { port = 1 }",
        "DogStatsd = [{ address = \"a\" }]",
        "InMem {}",
        "MetricPrefix = \"x\"",
    ] {
        let text = format!(
            "server {{ trust_domain = \"a.test\" data_dir = \"/d\" }}{PLUGINS}telemetry {{ {sink} }}"
        );
        refused_with(
            parse(&text, &Overrides::default()),
            Code::NotYetSupported,
            "telemetry",
        );
    }
    let text =
        format!("server {{ trust_domain = \"a.test\" data_dir = \"/d\" }}{PLUGINS}telemetry {{}}");
    parse(&text, &Overrides::default()).unwrap();
}

#[test]
fn says_that_ignored_settings_have_no_effect() {
    for key in [
        "experimental { cache_reload_interval = \"5s\" }",
        "experimental { full_cache_reload_interval = \"24h\" }",
        "experimental { prune_events_older_than = \"12h\" }",
        "experimental { event_timeout = \"15m\" }",
        "experimental { events_based_cache = true }",
        "prune_attested_nodes_batch_size = 10",
        "prune_tofu_nodes = true",
    ] {
        noticed(&server(key).unwrap(), "has no effect");
    }
}

#[test]
fn bounds_how_long_agents_are_served_without_the_database() {
    for (key, seconds) in [
        ("", 300),
        ("max_attested_node_info_staleness = \"1m\"", 60),
        ("max_attested_node_info_staleness = \"1h\"", 3_600),
        // The database is not asked in every call, so nothing below this could be kept.
        ("max_attested_node_info_staleness = \"0s\"", 5),
        ("max_attested_node_info_staleness = \"1s\"", 5),
    ] {
        let config = server(key).unwrap();
        assert_eq!(
            config.datastore.max_staleness,
            Duration::from_secs(seconds),
            "{key}"
        );
    }
    let raised = server("max_attested_node_info_staleness = \"1s\"").unwrap();
    noticed(&raised, "the smallest bound that can be kept");
    refused_with(
        server("max_attested_node_info_staleness = \"-1s\""),
        Code::InvalidValue,
        "max_attested_node_info_staleness",
    );
}

#[test]
fn checks_ignored_settings_all_the_same() {
    refused_with(
        server("experimental { cache_reload_interval = \"often\" }"),
        Code::InvalidValue,
        "duration",
    );
    refused_with(
        server("experimental { events_based_cache = \"yes\" }"),
        Code::WrongType,
        "events_based_cache",
    );
    let both = "experimental { event_timeout = \"1m\" sql_transaction_timeout = \"1m\" }";
    refused_with(
        server(both),
        Code::ConflictingKeys,
        "sql_transaction_timeout",
    );
    refused_with(
        server("prune_attested_nodes_batch_size = -1"),
        Code::InvalidValue,
        "batch_size",
    );
}

#[test]
fn refuses_times_without_a_unit_negative_endless_or_unreadable() {
    for key in [
        "ca_ttl",
        "agent_ttl",
        "default_x509_svid_ttl",
        "default_jwt_svid_ttl",
        "max_attested_node_info_staleness",
        "prune_attested_nodes_expired_for",
    ] {
        for value in [
            "30",
            "\"30\"",
            "\"-1h\"",
            "\"9999999999h\"",
            "\"99999999999999999999s\"",
            "\"1 h\"",
            "\"1d\"",
        ] {
            refused_with(server(&format!("{key} = {value}")), Code::InvalidValue, key);
        }
        for value in ["true", "[\"1h\"]"] {
            refused_with(server(&format!("{key} = {value}")), Code::WrongType, key);
        }
    }
}

#[test]
fn refuses_numbers_that_are_negative_too_large_or_none() {
    for key in ["bind_port", "prune_attested_nodes_batch_size"] {
        for value in ["-1", "2147483648"] {
            refused_with(server(&format!("{key} = {value}")), Code::InvalidValue, key);
        }
        for value in ["1.5", "\"ten\"", "\"\"", "99999999999999999999", "true"] {
            refused_with(server(&format!("{key} = {value}")), Code::WrongType, key);
        }
    }
}

#[test]
fn without_a_file_the_flags_are_checked_as_the_file_is() {
    let overrides = || Overrides {
        trust_domain: Some("example.org".to_owned()),
        data_dir: Some("/d".into()),
        ..Overrides::default()
    };
    let without_file = |overrides: &Overrides| {
        let path = "/d/datastore.sqlite3".into();
        let datastore = DatastoreConfig::new(DatastoreKind::Sqlite { path });
        Config::without_file(overrides, KeyStorage::Memory, datastore)
    };
    let config = without_file(&overrides()).unwrap();
    assert_eq!(config.bind_port, 8081);
    let broken = Overrides {
        trust_domain: Some("NOT ONE".to_owned()),
        ..overrides()
    };
    refused_with(without_file(&broken), Code::InvalidValue, "trust domain");
    let nowhere = Overrides {
        data_dir: None,
        ..overrides()
    };
    refused_with(without_file(&nowhere), Code::MissingKey, "data_dir");
}

#[test]
fn refuses_values_out_of_their_range() {
    for (key, text) in [
        ("ca_ttl = \"0s\"", "ca_ttl"),
        ("agent_ttl = \"-1h\"", "agent_ttl"),
        ("default_jwt_svid_ttl = \"10ms\"", "default_jwt_svid_ttl"),
        ("bind_port = 65536", "bind_port"),
        ("log_level = \"LOUD\"", "log_level"),
        ("log_format = \"xml\"", "log_format"),
        ("ca_key_type = \"EC-P256\"", "ca_key_type"),
        ("admin_ids = [\"example.org/admin\"]", "admin_ids"),
        ("admin_ids = [\"spiffe://example.org\"]", "admin_ids"),
        (
            "experimental { feature_flags = [\"turbo\"] }",
            "feature flag",
        ),
    ] {
        refused_with(server(key), Code::InvalidValue, text);
    }
    refused_with(
        server("trust_domain = \"b.test\""),
        Code::DuplicateKey,
        "trust_domain",
    );
    refused_with(
        server("ratelimit { signing = \"no\" }"),
        Code::WrongType,
        "signing",
    );
    refused_with(
        server("ratelimit { singing = true }"),
        Code::UnknownKey,
        "singing",
    );
    refused_with(
        server("ca_subject { email = \"x\" }"),
        Code::UnknownKey,
        "email",
    );
}

#[test]
fn refuses_a_malformed_trust_domain() {
    for bad in ["Example.org", "exam ple", ""] {
        let text = format!("server {{ trust_domain = \"{bad}\" data_dir = \"/d\" }}{PLUGINS}");
        assert!(parse(&text, &Overrides::default()).is_err(), "{bad}");
    }
}

#[test]
fn replaces_the_ca_subject_as_a_whole() {
    let config = server("ca_subject { common_name = \"me\" }").unwrap();
    assert_eq!(
        config.issuance.ca_subject.common_name.as_deref(),
        Some("me")
    );
    assert!(config.issuance.ca_subject.country.is_empty());
    let config = server("ca_subject { country = [] common_name = \"\" }").unwrap();
    assert_eq!(config.issuance.ca_subject.organization, ["SPIFFE"]);
    noticed(&config, "ca_subject");
}

#[test]
fn warns_of_lifetimes_that_a_rotation_may_cut() {
    noticed(
        &server("ca_ttl = \"1h\"").unwrap(),
        "default_x509_svid_ttl is too high",
    );
    noticed(
        &server("agent_ttl = \"200h\"").unwrap(),
        "agent_ttl is too high",
    );
}

#[test]
fn reads_a_database_file_from_a_path_or_a_uri() {
    for text in [
        "/d/db",
        "file:/d/db?cache=shared&_foreign_keys=1",
        "file:///d/db",
    ] {
        let config = with_data(&format!(
            "database_type = \"sqlite3\"\nconnection_string = \"{text}\""
        ))
        .unwrap();
        let DatastoreKind::Sqlite { path } = &config.datastore.kind else {
            panic!("not SQLite")
        };
        assert_eq!(path, &PathBuf::from("/d/db"), "{text}");
    }
}

#[test]
fn refuses_databases_it_cannot_keep_things_in() {
    for text in [":memory:", "file::memory:", "file:x?mode=memory"] {
        let data = format!("database_type = \"sqlite3\"\nconnection_string = \"{text}\"");
        refused_with(with_data(&data), Code::InvalidValue, "memory");
    }
    refused_with(
        with_data("database_type = \"mysql\"\nconnection_string = \"x\""),
        Code::NotYetSupported,
        "mysql",
    );
    refused_with(
        with_data("database_type = \"oracle\"\nconnection_string = \"x\""),
        Code::InvalidValue,
        "database_type",
    );
    refused_with(
        with_data("database_type \"aws_postgres\" { region = \"x\" }\nconnection_string = \"x\""),
        Code::NotYetSupported,
        "database_type",
    );
    refused_with(
        with_data("connection_string = \"x\""),
        Code::MissingKey,
        "database_type",
    );
    refused_with(
        with_data("database_type = \"postgres\""),
        Code::MissingKey,
        "connection_string",
    );
}

#[test]
fn takes_a_read_only_connection_string_and_says_that_it_is_unused() {
    let sqlite = "database_type = \"sqlite3\"\nconnection_string = \"/d/db\"\n";
    let config = with_data(&format!("{sqlite}ro_connection_string = \"x\"")).unwrap();
    noticed(&config, "ro_connection_string has no effect");
}

#[test]
fn refuses_database_settings_that_would_not_be_heeded() {
    let sqlite = "database_type = \"sqlite3\"\nconnection_string = \"/d/db\"\n";
    for key in ["log_sql = true", "disable_migration = true"] {
        refused_with(
            with_data(&format!("{sqlite}{key}")),
            Code::NotYetSupported,
            "not yet supported",
        );
    }
    refused_with(
        with_data(&format!("{sqlite}root_ca_path = \"x\"")),
        Code::ConflictingKeys,
        "root_ca_path",
    );
    refused_with(
        with_data(&format!("{sqlite}conection_string = \"x\"")),
        Code::UnknownKey,
        "conection_string",
    );
    noticed(
        &with_data(&format!("{sqlite}max_open_conns = 5")).unwrap(),
        "max_open_conns",
    );
    with_data(&format!("{sqlite}disable_migration = false")).unwrap();
}

#[test]
fn takes_the_health_listener_only_when_it_is_enabled() {
    let with = |keys: &str| {
        let text = format!(
            "server {{ trust_domain = \"a.test\" data_dir = \"/d\" }}{PLUGINS}health_checks {{ {keys} }}"
        );
        parse(&text, &Overrides::default())
    };
    assert_eq!(with("").unwrap().health, None);
    let health = with("listener_enabled = true bind_port = \"8080\"")
        .unwrap()
        .health
        .unwrap();
    assert_eq!(
        (health.bind_address.as_str(), health.bind_port),
        ("localhost", 8080)
    );
    assert_eq!(
        (health.live_path.as_str(), health.ready_path.as_str()),
        ("/live", "/ready")
    );
    refused_with(
        with("live_path = \"live\""),
        Code::InvalidValue,
        "live_path",
    );
    refused_with(
        with("live_path = \"/x\" ready_path = \"/x\""),
        Code::ConflictingKeys,
        "differ",
    );
    refused_with(
        with("listener_enable = true"),
        Code::UnknownKey,
        "listener_enable",
    );
}

#[test]
fn reports_what_is_missing_without_calling_good_keys_unknown() {
    let full = include_str!("../../../../conf/server/server_full.conf");
    let text = full
        .replace("trust_domain = \"example.org\"", "")
        .replace("data_dir = ", "bind_adress = ");
    let found = faults(parse(&text, &Overrides::default()));
    let codes: Vec<Code> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(
        codes,
        [Code::MissingKey, Code::MissingKey, Code::UnknownKey],
        "{found:?}"
    );
}

#[test]
fn what_spire_removed_names_what_replaced_it() {
    for (key, instead) in [
        ("default_svid_ttl = \"1h\"", "default_x509_svid_ttl"),
        ("wit_key_type = \"ec-p256\"", "experimental"),
        ("registration_uds_path = \"/s\"", "socket_path"),
    ] {
        let text = format!("server {{ trust_domain = \"example.org\" data_dir = \"/d\" {key} }}");
        let document = Document::parse("server.conf", &text, None).unwrap();
        let faults = Config::from_document(&document, &Overrides::default()).unwrap_err();
        let fault = faults.iter().find(|fault| fault.code == Code::UnknownKey);
        let hint = fault.and_then(|fault| fault.hint.as_deref()).unwrap();
        assert!(hint.contains(instead), "{key}: {hint}");
    }
}

#[test]
fn an_agents_file_is_recognised() {
    let text = "agent { trust_domain = \"example.org\" }";
    let document = Document::parse("agent.conf", text, None).unwrap();
    let faults = Config::from_document(&document, &Overrides::default()).unwrap_err();
    assert!(
        faults.to_string().contains("an agent's configuration"),
        "{faults}"
    );
    assert!(
        !faults.iter().any(|fault| fault.code == Code::UnknownKey),
        "{faults}"
    );
}
