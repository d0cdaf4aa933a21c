//! Connection strings and environments as SPIRE's driver takes them, and what is refused by name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{LoadBalanceHosts, SslMode, TargetSessionAttrs};

use super::environment::Environment;
use super::options::Options;
use super::tls_options::{Mode, Roots, Verify};
use super::{PostgresConfig, SettingsError};

fn parse(url: &str) -> Result<Options, SettingsError> {
    Options::parse(&PostgresConfig::new(url))
}

fn parse_in(url: &str, variables: &[(&str, &str)]) -> Result<Options, SettingsError> {
    let mut config = PostgresConfig::new(url);
    config.environment = environment(variables);
    Options::parse(&config)
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter();
    Environment::of(variables.map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

fn hosts(options: &Options) -> Vec<String> {
    let targets = options.targets.iter();
    targets
        .map(|target| match target.address {
            Some(address) => format!("{}={address}:{}", target.host, target.port),
            None => format!("{}:{}", target.host, target.port),
        })
        .collect()
}

fn password(options: &Options) -> Option<&str> {
    options
        .password
        .as_ref()
        .map(|secret| secret.expose().as_str())
}

#[test]
fn both_forms_say_the_same() {
    for text in [
        "postgres://u:p%40@h:5/db?sslmode=verify-full&sslrootcert=/a%20b&connect_timeout=3",
        "user=u password='p@' host=h port=5 dbname=db sslmode = verify-full sslrootcert='/a b' connect_timeout=3",
    ] {
        let options = parse(text).unwrap();
        assert_eq!(hosts(&options), ["h:5"]);
        assert_eq!(options.tls.mode, Mode::VerifyFull);
        assert_eq!(options.tls.roots(), Some(Roots::File("/a b".into())));
        assert_eq!(options.config.get_ssl_mode(), SslMode::Require);
        assert_eq!(options.config.get_user(), Some("u"));
        assert_eq!(options.config.get_dbname(), Some("db"));
        assert_eq!(options.connect_timeout, Duration::from_secs(3));
        assert_eq!(password(&options), Some("p@"));
    }
}

#[test]
fn what_is_no_setting_of_libpq_is_a_parameter_of_the_session() {
    for (text, sent) in [
        ("host=h search_path=spire", "-c search_path=spire"),
        (
            "host=h statement_timeout=5000 search_path='a, b\\\\c'",
            "-c search_path=a,\\ b\\\\c -c statement_timeout=5000",
        ),
        (
            "host=h options='-c geqo=off' search_path=spire",
            "-c geqo=off -c search_path=spire",
        ),
        (
            "postgres://h/db?options=-csearch_path%3Dx",
            "-csearch_path=x",
        ),
        ("host=h tz=UTC", "-c timezone=UTC"),
        (
            "host=h plpgsql.extra_errors=all",
            "-c plpgsql.extra_errors=all",
        ),
    ] {
        let options = parse(text).unwrap();
        assert_eq!(options.config.get_options(), Some(sent), "{text}");
    }
    assert_eq!(parse("host=h").unwrap().config.get_options(), None);
}

#[test]
fn hosts_are_lists_and_sockets() {
    for (text, expected) in [
        ("", vec!["localhost:5432"]),
        ("host=''", vec!["localhost:5432"]),
        ("host=/var/run/postgresql", vec!["/var/run/postgresql:5432"]),
        (
            "host=/run/a,b, port=1,2,",
            vec!["/run/a:1", "b:2", "localhost:5432"],
        ),
        ("host=a,b port=7", vec!["a:7", "b:7"]),
        (
            "hostaddr=127.0.0.1,::1",
            vec!["127.0.0.1=127.0.0.1:5432", "::1=::1:5432"],
        ),
        ("host=db hostaddr=10.0.0.1", vec!["db=10.0.0.1:5432"]),
        (
            "postgres://a:1,[::1]:2,c/db",
            vec!["a:1", "::1:2", "c:5432"],
        ),
        ("postgres:///db?host=/run/pg", vec!["/run/pg:5432"]),
    ] {
        assert_eq!(hosts(&parse(text).unwrap()), expected, "{text}");
    }
}

#[test]
fn a_socket_has_no_tls_and_the_host_beside_it_keeps_its_own() {
    let options = parse("host=/run/pg,db sslmode=verify-full").unwrap();
    let modes: Vec<_> = options
        .targets
        .iter()
        .map(|target| {
            let mut config = options.config.clone();
            target.add_to(&mut config);
            config.get_ssl_mode()
        })
        .collect();
    assert_eq!(modes, [SslMode::Disable, SslMode::Require]);
}

#[test]
fn the_environment_says_what_the_string_does_not() {
    let all = [
        ("PGHOST", "db"),
        ("PGPORT", "6"),
        ("PGDATABASE", "spire"),
        ("PGUSER", "me"),
        ("PGPASSWORD", "secret"),
        ("PGSSLMODE", "verify-ca"),
        ("PGSSLROOTCERT", "/ca"),
        ("PGOPTIONS", "-c geqo=off"),
        ("PGTZ", "UTC"),
        ("PGAPPNAME", "app"),
        ("PGCONNECT_TIMEOUT", "9"),
        ("PGTARGETSESSIONATTRS", "read-write"),
        ("PGLOADBALANCEHOSTS", "random"),
        ("PGPASSFILE", "/pass"),
        ("PGSSLCRL", ""),
        ("PATH", "/bin"),
        ("PGDATA", "/not/libpq's"),
    ];
    let options = parse_in("", &all).unwrap();
    assert_eq!(hosts(&options), ["db:6"]);
    assert_eq!(options.config.get_dbname(), Some("spire"));
    assert_eq!(options.config.get_user(), Some("me"));
    assert_eq!(password(&options), Some("secret"));
    assert_eq!(options.tls.mode, Mode::VerifyCa);
    assert_eq!(options.tls.roots(), Some(Roots::File("/ca".into())));
    assert_eq!(
        options.config.get_options(),
        Some("-c geqo=off -c timezone=UTC")
    );
    assert_eq!(options.config.get_application_name(), Some("app"));
    assert_eq!(options.connect_timeout, Duration::from_secs(9));
    assert_eq!(
        options.config.get_target_session_attrs(),
        TargetSessionAttrs::ReadWrite
    );
    assert_eq!(
        options.config.get_load_balance_hosts(),
        LoadBalanceHosts::Random
    );
    assert!(options.in_random_order);
    assert_eq!(options.passfile.as_deref(), Some(Path::new("/pass")));
    let options = parse_in("host=other user=you password=mine sslmode=disable", &all).unwrap();
    assert_eq!(hosts(&options), ["other:6"]);
    assert_eq!(options.config.get_user(), Some("you"));
    assert_eq!(password(&options), Some("mine"));
    assert_eq!(options.tls.mode, Mode::Disable);
}

#[test]
fn user_and_password_file_default_to_those_of_the_account() {
    let options = parse_in("host=h", &[("USER", "me"), ("HOME", "/home/me")]).unwrap();
    assert_eq!(options.config.get_user(), Some("me"));
    assert_eq!(
        options.passfile.as_deref(),
        Some(Path::new("/home/me/.pgpass"))
    );
    assert_eq!(options.config.get_application_name(), Some("plastron"));
    let options = parse_in(
        "host=h user=you passfile=/p",
        &[("USER", "me"), ("HOME", "/x")],
    )
    .unwrap();
    assert_eq!(options.config.get_user(), Some("you"));
    assert_eq!(options.passfile.as_deref(), Some(Path::new("/p")));
    let process = Environment::of_process();
    assert!(process.user().is_some() || process.home().is_none());
}

#[test]
fn what_is_not_supported_is_refused_by_its_name_and_place() {
    for (text, key) in [
        ("host=h service=prod", "service"),
        ("host=h sslcrl=/crl", "sslcrl"),
        ("host=h sslcrldir=/crl", "sslcrldir"),
        ("host=h sslinline=true", "sslinline"),
        ("host=h sslpassword=x", "sslpassword"),
        ("host=h sslcertmode=require", "sslcertmode"),
        ("host=h requirepeer=postgres", "requirepeer"),
        ("host=h require_auth=scram-sha-256", "require_auth"),
        ("host=h channel_binding=require", "channel_binding"),
        ("host=h gssencmode=require", "gssencmode"),
        ("host=h krbsrvname=postgres", "krbsrvname"),
        ("host=h replication=database", "replication"),
        ("host=h keepalives_idle=5", "keepalives_idle"),
        ("host=h client_encoding=latin1", "client_encoding"),
        ("host=h min_protocol_version=3.2", "min_protocol_version"),
        ("host=h sslmod=verify-full", "sslmod"),
        ("host=h SSLMODE=verify-full", "SSLMODE"),
        ("host=h sslmode=verify", "sslmode"),
        ("host=h sslsni=maybe", "sslsni"),
        (
            "host=h sslmode=prefer sslnegotiation=direct",
            "sslnegotiation",
        ),
        ("host=h sslrootcert=system sslmode=require", "sslmode"),
        (
            "host=h ssl_max_protocol_version=TLSv1.1",
            "ssl_max_protocol_version",
        ),
        (
            "host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "ssl_max_protocol_version",
        ),
        (
            "host=h target_session_attrs=standby",
            "target_session_attrs",
        ),
        ("host=h load_balance_hosts=some", "load_balance_hosts"),
        ("host=h connect_timeout=soon", "connect_timeout"),
        ("host=h port=0", "port"),
        ("host=h port=65536", "port"),
        ("host=a,b,c port=1,2", "port"),
        ("host=a,b hostaddr=127.0.0.1", "hostaddr"),
        ("hostaddr=db", "hostaddr"),
        ("host=@abstract", "host"),
        ("host=a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a", "host"),
        (r"host=h options='-c a=b\\' search_path=x", "options"),
    ] {
        let error = parse(&format!("password=hunter2 {text}")).unwrap_err();
        assert!(
            error.what.starts_with(&format!("{key} ")),
            "{text}: {error}"
        );
        assert_eq!(error.at, "connection_string");
        assert!(
            !error.hint.is_empty() && !error.because.is_empty(),
            "{error:?}"
        );
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn a_variable_that_is_not_supported_is_named_as_the_variable() {
    for (name, value) in [
        ("PGSSLCRL", "/crl"),
        ("PGREQUIREPEER", "postgres"),
        ("PGCHANNELBINDING", "require"),
        ("PGKRBSRVNAME", "x"),
        ("PGSERVICE", "prod"),
        ("PGSSLMODE", "verify"),
        ("PGPORT", "x"),
    ] {
        let error = parse_in("host=h", &[(name, value), ("PGPASSWORD", "hunter2")]).unwrap_err();
        assert_eq!(error.at, format!("${name}"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn settings_that_ask_for_nothing_are_taken() {
    let text = "host=h sslcompression=0 channel_binding=prefer gssencmode=disable sslinline=false client_encoding=utf-8 \
                binary_parameters=yes max_protocol_version=latest datestyle='ISO, MDY' sslsni=0";
    let options = parse(text).unwrap();
    assert_eq!(options.config.get_options(), None);
    assert!(!options.tls.sends_name);
}

#[test]
fn tls_is_required_unless_said_otherwise() {
    for (text, mode) in [
        ("host=h", Mode::Require),
        ("postgres://h/db", Mode::Require),
        ("host=h sslmode=disable", Mode::Disable),
        ("host=h sslmode=allow", Mode::Prefer),
        ("host=h sslrootcert=system", Mode::VerifyFull),
        ("host=h sslrootcert=/ca", Mode::Require),
    ] {
        assert_eq!(parse(text).unwrap().tls.mode, mode, "{text}");
    }
}

#[test]
fn a_root_certificate_makes_every_encrypting_mode_verify() {
    for (mode, expected) in [
        ("require", Verify::Authority),
        ("prefer", Verify::Authority),
        ("verify-ca", Verify::Authority),
        ("verify-full", Verify::Full),
        ("disable", Verify::Nothing),
    ] {
        let mut config = PostgresConfig::new(format!("host=h sslmode={mode}"));
        config.root_ca_path = Some(PathBuf::from("/ca"));
        let tls = Options::parse(&config).unwrap().tls;
        assert_eq!(tls.verify(tls.roots().as_ref()), expected, "{mode}");
    }
    let tls = parse("host=h sslmode=require").unwrap().tls;
    assert_eq!(tls.verify(tls.roots().as_ref()), Verify::Nothing);
}

#[test]
fn files_of_the_home_directory_count_when_none_is_named() {
    let home = tempfile::tempdir().unwrap();
    let variables = [("HOME", home.path().to_str().unwrap())];
    let files = home.path().join(".postgresql");
    std::fs::create_dir(&files).unwrap();
    let tls = parse_in("host=h", &variables).unwrap().tls;
    assert_eq!((tls.roots(), tls.client().unwrap()), (None, None));
    for name in ["root.crt", "postgresql.crt"] {
        std::fs::write(files.join(name), "").unwrap();
    }
    assert_eq!(tls.roots(), Some(Roots::File(files.join("root.crt"))));
    let error = tls.client().unwrap_err();
    assert!(error.what.contains("no key"), "{error}");
    std::fs::write(files.join("postgresql.key"), "").unwrap();
    let client = tls.client().unwrap();
    assert_eq!(
        client,
        Some((files.join("postgresql.crt"), files.join("postgresql.key")))
    );
    let named = parse_in("host=h sslcert=/c sslkey=/k", &variables)
        .unwrap()
        .tls;
    assert_eq!(named.client().unwrap(), Some(("/c".into(), "/k".into())));
    let alone = parse("host=h sslkey=/k").unwrap().tls;
    assert!(alone.client().unwrap_err().what.contains("no certificate"));
}

#[test]
fn a_mode_that_does_not_verify_is_said_for_hosts_beyond_this_machine() {
    for text in [
        "host=db sslmode=disable",
        "host=db sslmode=require",
        "host=db sslmode=prefer sslrootcert=/ca",
        "host=localhost,db sslmode=disable",
        "host=localhost hostaddr=10.0.0.1",
        "postgres://10.0.0.1/db",
    ] {
        let notices = parse(text).unwrap().notices();
        assert_eq!(notices.len(), 1, "{text}: {notices:?}");
        assert!(
            notices
                .iter()
                .all(|notice| notice.contains("hint: set sslmode=verify-full"))
        );
    }
    for text in [
        "host=db sslmode=verify-full",
        "host=db sslmode=verify-ca",
        "host=db sslmode=require sslrootcert=/ca",
        "host=localhost sslmode=disable",
        "host=127.0.0.9",
        "host=::1",
        "host=/run/postgresql",
        "host=db hostaddr=127.0.0.1 sslmode=disable",
    ] {
        assert_eq!(
            parse(text).unwrap().notices(),
            Vec::<String>::new(),
            "{text}"
        );
    }
}
