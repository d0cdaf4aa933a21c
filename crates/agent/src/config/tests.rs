use super::*;
use config::fault::Code;
use spiffe::secret::Secret;
use std::path::Path;

const FULL: &str = include_str!("../../../../conf/agent/agent_full.conf");
const MINIMAL: &str = include_str!("../../../../conf/agent/agent.conf");

fn read(text: &str) -> Result<Config, Faults> {
    let document = Document::parse("agent.conf", text, None)?;
    Config::from_document(&document, &Overrides::default())
}

/// The minimal file with these lines in its agent block, the first of them in place of its own line of that key.
fn with(lines: &str) -> Result<Config, Faults> {
    let key = lines.split_whitespace().next().unwrap_or_default();
    without(&format!("{key} ="), lines)
}

/// The minimal file without the line of this text, and with these lines.
fn without(text: &str, lines: &str) -> Result<Config, Faults> {
    let rest: String = MINIMAL
        .lines()
        .filter(|line| !line.trim_start().starts_with(text))
        .map(|line| format!("{line}\n"))
        .collect();
    read(&rest.replacen("agent {\n", &format!("agent {{\n{lines}\n"), 1))
}

/// The minimal file without the trust source, and with these lines.
fn with_trust(lines: &str) -> Result<Config, Faults> {
    without("trust_bundle_path =", lines)
}

fn codes(outcome: Result<Config, Faults>) -> Vec<Code> {
    match outcome {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(|fault| fault.code).collect(),
    }
}

#[test]
fn a_flag_wins_over_the_key_that_the_file_sets_too() {
    let document = Document::parse("agent.conf", MINIMAL, None).unwrap();
    let overrides = Overrides {
        data_dir: Some("/elsewhere".into()),
        socket_path: Some("/elsewhere/api.sock".into()),
        server_address: Some("other".to_owned()),
        server_port: Some(9),
        log: LogFlags {
            level: Some("debug".to_owned()),
            ..LogFlags::default()
        },
        ..Overrides::default()
    };
    let config = Config::from_document(&document, &overrides).unwrap();
    assert_eq!(config.data_dir, Path::new("/elsewhere"));
    assert_eq!(config.socket_path, Path::new("/elsewhere/api.sock"));
    assert_eq!(config.node.server.authority(), "other:9");
    assert_eq!(config.log.level, "DEBUG");
}

#[test]
fn the_minimal_file_has_every_default() {
    let config = read(MINIMAL).unwrap();
    assert_eq!(config.node.server.authority(), "127.0.0.1:8081");
    assert_eq!(
        config.node.bootstrap.source,
        TrustSource::Path("./conf/agent/bundle.crt".into())
    );
    assert_eq!(config.node.bootstrap.format, BundleFormat::Pem);
    assert!(
        config.join_token.is_none()
            && config.health.is_none()
            && config.admin_socket_path.is_none()
    );
    assert_eq!(
        config.cache,
        CacheConfig {
            x509_svids: 1000,
            jwt_svids: 1000,
            availability_target: None,
        }
    );
    assert_eq!(config.sync.interval, Duration::from_secs(5));
    assert_eq!(config.sync.workload_key_type, KeyType::EcP256);
    assert_eq!(config.workload_api, Some(WorkloadApiConfig::default()));
    assert_eq!(config.gate, GateConfig::default());
    assert!(!config.node.server.require_pq_kem);
    assert_eq!(config.log.level, "INFO");
}

#[test]
fn the_full_file_is_read_to_the_last_key() {
    let config = read(FULL).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(
        config.join_token,
        given("2b0d5f8e-9a3c-4c1e-8d8f-2f4e3a6c7b91")
    );
    assert_eq!(
        config.cache.availability_target,
        Some(Duration::from_secs(24 * 3600))
    );
    assert_eq!(
        config.workload_api.unwrap().jwt_svid_cache_hit_timeout,
        Some(Duration::from_secs(5))
    );
    assert_eq!(config.health.unwrap().bind_port, 8082);
    assert_eq!(config.gate.log_selectors, ["unix:user", "k8s:ns"]);
}

#[test]
fn every_key_that_the_full_file_shows_commented_out_exists() {
    let mut tried = 0;
    for line in FULL.lines() {
        let Some(setting) = line
            .trim()
            .strip_prefix("# ")
            .filter(|text| text.contains(" = ") && !text.contains(": "))
        else {
            continue;
        };
        tried += 1;
        let key = setting.split(' ').next().unwrap();
        let faults = with(setting)
            .err()
            .map(|faults| faults.to_string())
            .unwrap_or_default();
        assert!(!faults.contains("unknown key"), "{key}: {faults}");
    }
    assert!(tried >= 5, "only {tried} were found");
}

#[test]
fn unknown_keys_are_refused_with_position_and_likely_name() {
    let faults = with("    loglevel = \"INFO\"").unwrap_err();
    let text = faults.to_string();
    assert_eq!(
        faults.iter().map(|fault| fault.code).collect::<Vec<_>>(),
        [Code::UnknownKey]
    );
    assert!(
        text.contains("log_level") && text.contains("agent.conf:4:5"),
        "{text}"
    );
}

#[test]
fn keys_of_spire_that_are_missing_here_are_refused_by_name() {
    for lines in [
        "sds { default_svid_name = \"x\" }",
        "authorized_delegates = [\"spiffe://example.org/d\"]",
        "profiling_enabled = true",
        "rebootstrap_mode = \"auto\"",
        "disable_sds_api = false",
        "experimental { broker { socket_path = \"/x\" } }",
        "experimental { feature_flags = [\"x\"] }",
        "experimental { use_sync_authorized_entries = false }",
        "experimental { ratelimit { stream_secrets = 1 } }",
        "experimental { named_pipe_name = \"x\" }",
    ] {
        assert_eq!(codes(with(lines)), [Code::NotYetSupported], "{lines}");
    }
    assert_eq!(
        codes(read(&format!(
            "{MINIMAL}\ntelemetry {{ Prometheus {{ port = 1 }} }}"
        ))),
        [Code::NotYetSupported]
    );
}

/// One fault that names the key and its line.
fn refused_at(key: &str, line: &str) {
    let faults = with(line).expect_err(line);
    let text = faults.to_string();
    assert_eq!(faults.iter().count(), 1, "{line}: {text}");
    assert!(
        text.contains(key) && text.contains("agent.conf:4"),
        "{line}: {text}"
    );
}

#[test]
fn times_without_a_unit_negative_endless_or_unreadable_are_refused() {
    for (key, block) in [
        ("availability_target", ""),
        ("sync_interval", "experimental"),
        ("jwt_svid_cache_hit_timeout", "experimental"),
        ("rebootstrap_delay", ""),
    ] {
        for value in [
            "\"\"",
            "30",
            "\"30\"",
            "\"-1h\"",
            "\"9999999999h\"",
            "\"99999999999999999999s\"",
            "\"1 h\"",
            "\"1d\"",
            "true",
            "[\"1h\"]",
        ] {
            let line = match block {
                "" => format!("{key} = {value}"),
                block => format!("{block} {{ {key} = {value} }}"),
            };
            refused_at(key, &line);
        }
    }
}

#[test]
fn numbers_that_are_negative_too_large_or_none_are_refused() {
    for (key, block) in [
        ("x509_svid_cache_max_size", ""),
        ("jwt_svid_cache_max_size", ""),
        ("server_port", ""),
        ("fetch_x509_svid", "experimental { ratelimit"),
        ("fetch_jwt_svid", "experimental { ratelimit"),
        ("fetch_x509_bundles", "experimental { ratelimit"),
        ("fetch_jwt_bundles", "experimental { ratelimit"),
    ] {
        for value in [
            "-1",
            "1.5",
            "\"ten\"",
            "\"\"",
            "4294967296",
            "99999999999999999999",
            "true",
        ] {
            let line = match block {
                "" => format!("{key} = {value}"),
                block => format!("{block} {{ {key} = {value} }} }}"),
            };
            refused_at(key, &line);
        }
    }
}

#[test]
fn probes_that_share_a_path_are_refused() {
    let probes = |lines: &str| {
        read(&format!(
            "{MINIMAL}\nhealth_checks {{ listener_enabled = true\n{lines} }}"
        ))
    };
    assert!(probes("").unwrap().health.is_some());
    let shared = probes("live_path = \"/x\"\nready_path = \"/x\"");
    assert_eq!(codes(shared), [Code::ConflictingKeys]);
    let default = probes("live_path = \"/ready\"");
    assert_eq!(codes(default), [Code::ConflictingKeys]);
    assert_eq!(codes(probes("live_path = \"live\"")), [Code::InvalidValue]);
    assert_eq!(codes(probes("bind_port = 65536")), [Code::InvalidValue]);
}

/// The flags that are enough for an agent without a file.
fn overrides() -> Overrides {
    Overrides {
        trust_domain: Some("example.org".to_owned()),
        server_address: Some("server".to_owned()),
        server_port: Some(8081),
        insecure_bootstrap: Some(true),
        ..Overrides::default()
    }
}

#[test]
fn without_a_file_the_flags_are_checked_as_the_file_is() {
    let config = Config::without_file(&overrides(), KeyStorage::Memory).unwrap();
    assert_eq!(config.node.server.authority(), "server:8081");
    assert_eq!(config.plugins.workload_attestors.len(), 1);
    for (broken, code) in [
        (
            Overrides {
                trust_domain: Some("NOT ONE".to_owned()),
                ..overrides()
            },
            Code::InvalidValue,
        ),
        (
            Overrides {
                insecure_bootstrap: None,
                ..overrides()
            },
            Code::NoBootstrapBundle,
        ),
        (
            Overrides {
                server_address: None,
                ..overrides()
            },
            Code::MissingKey,
        ),
    ] {
        let refused = Config::without_file(&broken, KeyStorage::Memory);
        assert_eq!(codes(refused), [code]);
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for lines in [
        "availability_target = \"23h\"",
        "x509_svid_cache_max_size = -1",
        "jwt_svid_cache_max_size = -1",
        "log_level = \"LOUD\"",
        "log_format = \"xml\"",
        "trust_bundle_format = \"der\"",
        "workload_x509_svid_key_type = \"ed25519\"",
        "rebootstrap_mode = \"sometimes\"",
        "admin_socket_path = \"/tmp/spire-agent/public/admin.sock\"",
        "admin_socket_path = \"/tmp/spire-agent/public/below/admin.sock\"",
        "experimental { sync_interval = \"0s\" }",
        "experimental { jwt_svid_cache_hit_timeout = \"4s\" }",
        "experimental { jwt_svid_cache_hit_timeout = \"30s\" }",
        "experimental { ratelimit { fetch_jwt_svid = -1 } }",
    ] {
        assert_eq!(codes(with(lines)), [Code::InvalidValue], "{lines}");
    }
    for lines in [
        "insecure_bootstrap = \"perhaps\"",
        "log_selectors = \"unix\"",
        "experimental { sync_interval = \"often\" }",
    ] {
        assert!(!codes(with(lines)).is_empty(), "{lines}");
    }
}

#[test]
fn exactly_one_source_of_trust_is_wanted() {
    assert_eq!(codes(with_trust("")), [Code::NoBootstrapBundle]);
    assert_eq!(
        codes(with("insecure_bootstrap = true")),
        [Code::ConflictingKeys]
    );
    assert_eq!(
        codes(with("trust_bundle_url = \"https://x\"")),
        [Code::ConflictingKeys]
    );
    assert_eq!(
        codes(with("trust_bundle_spiffe_workload_api = \"unix:///x\"")),
        [Code::ConflictingKeys]
    );
    assert_eq!(
        codes(with("trust_bundle_unix_socket = \"/x\"")),
        [Code::ConflictingKeys]
    );
    assert_eq!(
        with_trust("insecure_bootstrap = true")
            .unwrap()
            .node
            .bootstrap
            .source,
        TrustSource::Insecure
    );
    let url = with_trust("trust_bundle_url = \"https://x/y\"")
        .unwrap()
        .node
        .bootstrap
        .source;
    assert_eq!(
        url,
        TrustSource::Url {
            url: "https://x/y".into(),
            unix_socket: None
        }
    );
    let above = with_trust("trust_bundle_spiffe_workload_api = \"unix:///a/b\"")
        .unwrap()
        .node
        .bootstrap
        .source;
    assert_eq!(above, TrustSource::WorkloadApi("/a/b".into()));
}

#[test]
fn bundle_urls_are_https_or_http_over_a_socket_without_reserved_parameters() {
    for lines in [
        "trust_bundle_url = \"http://x\"",
        "trust_bundle_url = \"ftp://x\"",
        "trust_bundle_url = \"x\"",
        "trust_bundle_url = \"https://x\"\ntrust_bundle_unix_socket = \"/s\"",
        "trust_bundle_url = \"http://x?spire-y=1\"\ntrust_bundle_unix_socket = \"/s\"",
        "trust_bundle_url = \"http://x?a=1&spiffe-y=1\"\ntrust_bundle_unix_socket = \"/s\"",
        "trust_bundle_spiffe_workload_api = \"/a/b\"",
        "trust_bundle_spiffe_workload_api = \"unix://a/b\"",
    ] {
        assert_eq!(codes(with_trust(lines)), [Code::InvalidValue], "{lines}");
    }
    with_trust("trust_bundle_url = \"http://x?a=1\"\ntrust_bundle_unix_socket = \"/s\"").unwrap();
}

#[test]
fn required_keys_may_come_from_flags() {
    let text = "agent { insecure_bootstrap = true }\n".to_owned()
        + &MINIMAL[MINIMAL.find("plugins").unwrap()..];
    let document = Document::parse("agent.conf", &text, None).unwrap();
    let missing = Config::from_document(&document, &Overrides::default()).unwrap_err();
    assert_eq!(
        missing.iter().map(|fault| fault.code).collect::<Vec<_>>(),
        [Code::MissingKey; 3]
    );
    let flags = Overrides {
        trust_domain: Some("example.org".into()),
        server_address: Some("::1".into()),
        server_port: Some(9),
        join_token: Some("t".into()),
        ..Overrides::default()
    };
    let document = Document::parse("agent.conf", &text, None).unwrap();
    let config = Config::from_document(&document, &flags).unwrap();
    assert_eq!(config.node.server.authority(), "[::1]:9");
    let flags = Overrides {
        server_address: Some("[::1]".into()),
        ..flags
    };
    let document = Document::parse("agent.conf", &text, None).unwrap();
    let config = Config::from_document(&document, &flags).unwrap();
    assert_eq!(
        (
            config.node.server.host(),
            config.node.server.authority().as_str()
        ),
        ("::1", "[::1]:9")
    );
    assert_eq!(config.join_token, given("t"));
}

#[test]
fn the_data_directory_is_that_of_the_flag_then_of_the_file_then_the_default() {
    let native = |data_dir: Option<&str>| Overrides {
        data_dir: data_dir.map(Into::into),
        default_data_dir: Some("/var/lib/plastron/agent".into()),
        ..overrides()
    };
    let without_file = |flags: &Overrides| {
        let config = Config::without_file(flags, KeyStorage::Memory);
        config.unwrap().data_dir
    };
    assert_eq!(
        without_file(&native(None)),
        Path::new("/var/lib/plastron/agent")
    );
    assert_eq!(without_file(&native(Some("/flag"))), Path::new("/flag"));
    assert_eq!(without_file(&overrides()), Path::new("."), "SPIRE's place");
    let document = Document::parse("agent.conf", MINIMAL, None).unwrap();
    let file_only = Overrides {
        default_data_dir: native(None).default_data_dir,
        ..Overrides::default()
    };
    let config = Config::from_document(&document, &file_only).unwrap();
    assert_ne!(config.data_dir, Path::new("/var/lib/plastron/agent"));
}

#[test]
fn join_token_and_its_file_exclude_each_other() {
    assert!(
        codes(with("join_token = \"a\"\njoin_token_file = \"/b\""))
            .contains(&Code::ConflictingKeys)
    );
    let config = with("join_token_file = \"/does/not/exist\"").unwrap();
    assert_eq!(
        config.join_token,
        Some(TokenSource::File("/does/not/exist".into())),
        "it is read when the node attests, and need not be there later"
    );
}

fn given(token: &str) -> Option<TokenSource> {
    Some(TokenSource::Given(Secret::new(token.into())))
}

#[test]
fn all_faults_come_at_once() {
    let faults = codes(with(
        "log_level = \"LOUD\"\nwhatever = 1\nsds {}\navailability_target = \"1h\"",
    ));
    assert_eq!(faults.len(), 4, "{faults:?}");
}

#[test]
fn a_config_shows_no_token() {
    let config = with("join_token = \"very-secret\"").unwrap();
    assert!(!format!("{config:?}").contains("very-secret"));
}

#[test]
fn a_file_without_an_agent_block_says_so() {
    assert_eq!(
        codes(read(&MINIMAL[MINIMAL.find("plugins").unwrap()..])),
        [Code::MissingKey]
    );
}
