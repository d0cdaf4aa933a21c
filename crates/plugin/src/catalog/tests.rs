//! The `plugins` block as both daemons read it.

use super::*;
use config::Document;
use config::fault::Faults;
use spiffe::clock::SystemClock;
use spiffe::key::KeyType;
use spiffe::random::SystemRandom;
use spiffe::trust_domain::TrustDomain;

use crate::join_token::{JoinTokens, TokenRefusal};
use crate::lifecycle::Reloaded;

const SERVER: &str = r#"plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "x" } }
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "disk" { plugin_data { keys_path = "keys.json" } }
}"#;

const AGENT: &str = r#"plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "memory" { plugin_data {} }
    WorkloadAttestor "unix" { plugin_data { discover_workload_path = true workload_size_limit = -1 } }
}"#;

fn server(text: &str) -> Result<ServerPlugins, Faults> {
    let document = Document::parse("server.conf", text, None)?;
    if let Some(data_store) = ServerPlugins::data_store(&document.root()) {
        data_store.one_of("database_type", &["sqlite3", "postgres"]);
        data_store.string("connection_string");
    }
    let plugins = ServerPlugins::from_section(&document.root());
    document.check()?;
    Ok(plugins.expect("no faults, no plugins"))
}

fn agent(text: &str) -> Result<AgentPlugins, Faults> {
    let document = Document::parse("agent.conf", text, None)?;
    let plugins = AgentPlugins::from_section(&document.root());
    document.check()?;
    Ok(plugins.expect("no faults, no plugins"))
}

/// The faults of the block with something added.
fn server_faults(added: &str) -> Vec<Fault> {
    let text = format!("{SERVER}\nplugins {{ {added} }}");
    server(&text).expect_err(added).0
}

#[test]
fn reads_the_servers_plugins() {
    let plugins = server(SERVER).unwrap();
    assert_eq!(plugins.key_manager.name(), "disk");
    assert!(format!("{:?}", plugins.key_manager).contains("keys.json"));
    assert_eq!(plugins.node_attestors.len(), 1);
    assert_eq!(plugins.node_attestors[0].name(), "join_token");
    assert!(plugins.upstream_authority.is_none());
    let document = Document::parse("server.conf", SERVER, None).unwrap();
    let data_store = ServerPlugins::data_store(&document.root()).unwrap();
    assert_eq!(
        data_store.string("database_type").as_deref(),
        Some("sqlite3")
    );
}

#[test]
fn the_server_redeems_join_tokens_in_any_case() {
    let text = SERVER.replace("NodeAttestor \"join_token\" { plugin_data {} }", "");
    let plugins = server(&text).unwrap();
    assert_eq!(plugins.node_attestors.len(), 1);
    assert_eq!(plugins.node_attestors[0].name(), "join_token");
}

#[test]
fn reads_the_agents_plugins() {
    let plugins = agent(AGENT).unwrap();
    assert_eq!(plugins.key_manager.name(), "memory");
    assert_eq!(plugins.node_attestor.name(), "join_token");
    assert_eq!(plugins.workload_attestors.len(), 1);
    let unix = format!("{:?}", plugins.workload_attestors[0]);
    assert!(unix.contains("discover_workload_path: true"), "{unix}");
    assert!(unix.contains("workload_size_limit: Some(-1)"), "{unix}");
}

#[test]
fn takes_every_shape_that_spire_takes() {
    for text in [
        r#"plugins { "KeyManager" { "memory" { plugin_data {} } } "NodeAttestor" "join_token" { } "WorkloadAttestor" "unix" plugin_data {} }"#,
        r#"plugins { KeyManager "memory" {} } plugins { NodeAttestor "join_token" {} } plugins { WorkloadAttestor "unix" {} }"#,
        r#"plugins = { KeyManager = { memory = {} } NodeAttestor = { join_token = {} } WorkloadAttestor = { unix = { plugin_data = {} } } }"#,
        r#"{"plugins": {"KeyManager": {"memory": {"plugin_data": {}}}, "NodeAttestor": [{"join_token": {}}], "WorkloadAttestor": [{"unix": [{"plugin_data": [{}]}]}]}}"#,
        r#"{"plugins": [{"KeyManager": [{"memory": {}}]}, {"NodeAttestor": {"join_token": {}}}, {"WorkloadAttestor": {"unix": {}}}]}"#,
    ] {
        let plugins = agent(text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
        assert_eq!(plugins.key_manager.name(), "memory");
        assert_eq!(plugins.workload_attestors.len(), 1);
    }
}

#[test]
fn a_fault_of_one_plugin_hides_none_of_another() {
    let text = SERVER
        .replace("sqlite3", "sqlite")
        .replace("keys_path", "key_path");
    let faults = server(&text).unwrap_err();
    let whats: Vec<&str> = faults.iter().map(|fault| fault.what.as_str()).collect();
    assert_eq!(
        whats,
        [
            "database_type must be one of sqlite3, postgres",
            "plugins.KeyManager \"disk\".plugin_data.keys_path is missing",
            "unknown key \"key_path\" in plugins.KeyManager \"disk\".plugin_data; did you mean \"keys_path\"?",
        ]
    );
}

#[test]
fn what_is_switched_off_is_not_looked_at() {
    let text = format!(
        "{SERVER} plugins {{ KeyManager \"aws_kms\" {{ enabled = false plugin_data {{ region = \"x\" }} }} \
         NodeAttestor \"mine\" {{ enabled = false plugin_cmd = \"/x\" plugin_args = [\"a\"] plugin_checksum = \"b\" }} }}"
    );
    server(&text).unwrap();
}

#[test]
fn a_plugin_of_spire_that_is_missing_is_refused_by_name() {
    for side in [table::SERVER, table::AGENT] {
        for kind in side.kinds {
            for name in kind.not_yet {
                let added = format!(
                    "plugins {{ {} {name:?} {{ plugin_data {{ a = 1 }} }} }}",
                    kind.name
                );
                let faults = match side.name {
                    "server" => server(&format!("{SERVER} {added}")).unwrap_err(),
                    _ => agent(&format!("{AGENT} {added}")).unwrap_err(),
                };
                let what = format!("plugin {} {name:?} is not yet supported", kind.name);
                let fault = faults
                    .iter()
                    .find(|fault| fault.what == what)
                    .unwrap_or_else(|| panic!("{faults}"));
                assert_eq!(fault.code, Code::NotYetSupported);
                assert!(
                    !faults.iter().any(|fault| fault.code == Code::UnknownKey),
                    "{faults}"
                );
            }
        }
    }
}

#[test]
fn an_unknown_plugin_is_refused_and_guessed() {
    for (added, what) in [
        (
            "NodeAttestor \"join-token\" {}",
            "unknown NodeAttestor plugin \"join-token\"; did you mean \"join_token\"?",
        ),
        (
            "NodeAttestor \"k8s_pstat\" {}",
            "unknown NodeAttestor plugin \"k8s_pstat\"; did you mean \"k8s_psat\"?",
        ),
        (
            "Notifier \"frobnicate\" {}",
            "unknown Notifier plugin \"frobnicate\"",
        ),
        (
            "KeyManagr \"disk\" {}",
            "unknown key \"KeyManagr\" in plugins; did you mean \"KeyManager\"?",
        ),
        (
            "WorkloadAttestor \"unix\" {}",
            "unknown key \"WorkloadAttestor\" in plugins",
        ),
    ] {
        let faults = server_faults(added);
        assert_eq!(faults.len(), 1, "{added}: {}", Faults(faults.clone()));
        assert_eq!(faults[0].what, what);
        assert!(
            faults[0]
                .at
                .as_deref()
                .unwrap()
                .starts_with("server.conf:6:"),
            "{added}"
        );
    }
}

#[test]
fn an_external_plugin_is_not_yet_supported() {
    let faults =
        server_faults("Notifier \"mine\" { plugin_cmd = \"/usr/bin/x\" plugin_data { a = 1 } }");
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].code, Code::NotYetSupported);
    assert!(faults[0].what.contains("external"), "{}", faults[0].what);
}

#[test]
fn too_few_and_too_many_are_counted() {
    for (text, what) in [
        (
            "plugins { }".to_owned(),
            "exactly one DataStore plugin is needed",
        ),
        (
            format!("{SERVER} plugins {{ KeyManager \"memory\" {{}} }}"),
            "only one KeyManager plugin may be configured",
        ),
        (
            format!("{SERVER} plugins {{ KeyManager \"disk\" {{}} }}"),
            "plugin KeyManager \"disk\" is declared twice",
        ),
        (String::new(), "the block plugins is missing"),
        (
            "plugins = 1".to_owned(),
            "plugins takes a block, found a number",
        ),
    ] {
        let faults = server(&text).unwrap_err();
        assert_eq!(faults.0[0].what, what, "{faults}");
    }
    let faults =
        agent("plugins { KeyManager \"memory\" {} NodeAttestor \"join_token\" {} }").unwrap_err();
    assert_eq!(
        faults.0[0].what,
        "at least one WorkloadAttestor plugin is needed"
    );
    assert_eq!(server("plugins {}").unwrap_err().len(), 2);
}

#[test]
fn keys_of_a_plugin_are_checked_like_any_other() {
    let faults = server_faults(
        "UpstreamAuthority \"disk\" { plugin_data { cert_file = \"a\" key_file_path = 1 } plugin_dat {} }",
    );
    let whats: Vec<&str> = faults.iter().map(|fault| fault.what.as_str()).collect();
    assert_eq!(
        whats,
        [
            "plugins.UpstreamAuthority \"disk\".plugin_data.cert_file_path is missing",
            "unknown key \"cert_file\" in plugins.UpstreamAuthority \"disk\".plugin_data; did you mean \"cert_file_path\"?",
            "unknown key \"plugin_dat\" in plugins.UpstreamAuthority \"disk\"; did you mean \"plugin_data\"?",
        ]
    );
    let missing = server(&SERVER.replace("keys_path = \"keys.json\"", "")).unwrap_err();
    assert!(
        missing.0[0].what.ends_with("keys_path is missing"),
        "{missing}"
    );
}

#[test]
fn a_plugins_own_file_is_looked_for_beside_the_configuration_where_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.conf");
    let text = AGENT.replace(
        "plugin_data { discover_workload_path = true workload_size_limit = -1 }",
        "plugin_data_file = \"plugins/unix.conf\"",
    );
    std::fs::write(&path, text).unwrap();
    let own = directory.path().join("plugins");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("unix.conf"), "discover_workload_path = true").unwrap();

    let document = Document::load_with_files_beside(&path, None).unwrap();
    let plugins = AgentPlugins::from_section(&document.root()).unwrap();
    document.check().unwrap();
    let unix = format!("{:?}", plugins.workload_attestors[0]);
    assert!(unix.contains("discover_workload_path: true"), "{unix}");

    let document = Document::load(&path, None).unwrap();
    drop(AgentPlugins::from_section(&document.root()));
    assert_eq!(document.faults()[0].code, Code::ConfigUnreadable);
}

#[test]
fn a_plugins_own_file_is_read_and_checked_with_its_own_positions() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("unix.conf");
    let text = AGENT.replace(
        "plugin_data { discover_workload_path = true workload_size_limit = -1 }",
        &format!("plugin_data_file = {:?}", path.display().to_string()),
    );
    let missing = agent(&text).unwrap_err();
    assert_eq!(missing.0[0].code, Code::ConfigUnreadable);
    std::fs::write(&path, "discover_workload_path = true").unwrap();
    let plugins = agent(&text).unwrap();
    let unix = format!("{:?}", plugins.workload_attestors[0]);
    assert!(unix.contains("discover_workload_path: true"), "{unix}");
    std::fs::write(&path, "\n  discover_path = true").unwrap();
    let unknown = agent(&text).unwrap_err();
    assert_eq!(unknown.len(), 1);
    assert_eq!(unknown.0[0].at, Some(format!("{}:2:3", path.display())));
    std::fs::write(&path, "{").unwrap();
    assert_eq!(agent(&text).unwrap_err().0[0].code, Code::ConfigSyntax);
    let both = text.replace("plugin_data_file", "plugin_data {} plugin_data_file");
    assert_eq!(agent(&both).unwrap_err().0[0].code, Code::ConflictingKeys);
}

fn host() -> HostServices {
    HostServices::new(
        TrustDomain::parse("example.org").unwrap(),
        Arc::new(SystemClock),
        Arc::new(SystemRandom),
    )
}

#[derive(Debug)]
struct NoTokens;

#[async_trait::async_trait]
impl JoinTokens for NoTokens {
    async fn redeem(&self, _token: &str) -> Result<(), TokenRefusal> {
        Err(TokenRefusal::Unknown)
    }
}

#[tokio::test]
async fn opens_what_was_configured() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let text = SERVER.replace("keys.json", path.to_str().unwrap());
    let host = host().with_join_tokens(Arc::new(NoTokens));
    let running = server(&text).unwrap().open(&host).await.unwrap();
    let manager = running.key_manager.plugin();
    manager.generate_key("a", KeyType::EcP256).await.unwrap();
    assert!(path.exists());
    assert_eq!(running.node_attestors[0].plugin().name(), "join_token");
    assert!(running.upstream_authority.is_none());
    running.stop().await;

    let running = agent(AGENT).unwrap().open(&host).await.unwrap();
    assert_eq!(running.workload_attestors[0].plugin().name(), "unix");
    assert!(!running.node_attestor.plugin().is_repeatable());
    running.stop().await;
}

#[tokio::test]
async fn a_plugin_that_cannot_be_opened_is_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    std::fs::write(&path, "damaged").unwrap();
    let text = SERVER.replace("keys.json", path.to_str().unwrap());
    let host = host().with_join_tokens(Arc::new(NoTokens));
    let fault = server(&text).unwrap().open(&host).await.unwrap_err();
    assert_eq!(fault.code, Code::KeyFileInvalid);
}

#[test]
fn the_names_of_a_kind_are_those_of_its_rows() {
    fn names<T: ?Sized>(rows: &[Row<T>]) -> Vec<&'static str> {
        rows.iter().map(|row| row.name).collect()
    }
    for (side, kind, rows) in [
        (
            table::SERVER,
            "KeyManager",
            names(table::SERVER_KEY_MANAGERS),
        ),
        (
            table::SERVER,
            "NodeAttestor",
            names(table::SERVER_NODE_ATTESTORS),
        ),
        (
            table::SERVER,
            "UpstreamAuthority",
            names(table::UPSTREAM_AUTHORITIES),
        ),
        (table::AGENT, "KeyManager", names(table::AGENT_KEY_MANAGERS)),
        (
            table::AGENT,
            "NodeAttestor",
            names(table::AGENT_NODE_ATTESTORS),
        ),
        (
            table::AGENT,
            "WorkloadAttestor",
            names(table::WORKLOAD_ATTESTORS),
        ),
    ] {
        let found = side.kinds.iter().find(|one| one.name == kind).unwrap();
        assert_eq!(found.built_in, rows, "{} {kind}", side.name);
    }
}

/// An upstream authority whose configuration lies in a file of its own, with the files it names.
struct Upstream {
    directory: tempfile::TempDir,
    config: Configured<dyn UpstreamAuthority>,
}

impl Upstream {
    async fn new() -> Self {
        use spiffe::x509::{CaTemplate, Subject, issue_ca, random_serial};
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let key = spiffe::key::KeyPair::generate(KeyType::EcP256).unwrap();
            let template = CaTemplate {
                serial: random_serial(&SystemRandom),
                subject: Subject::spire(),
                id: TrustDomain::parse("upstream.test").unwrap().id(),
                public_key: key.public_key().clone(),
                not_before: std::time::SystemTime::UNIX_EPOCH,
                not_after: std::time::SystemTime::UNIX_EPOCH
                    + std::time::Duration::from_secs(1 << 33),
                path_len: None,
                subject_key_id: None,
            };
            let der = issue_ca(&template, None, &key).await.unwrap();
            let certificate = spiffe::x509::Certificate::from_der(&der).unwrap();
            std::fs::write(
                directory.path().join(format!("{name}.crt")),
                certificate.to_pem(),
            )
            .unwrap();
            let der = key.to_pkcs8_der().unwrap();
            use base64::Engine as _;
            let body = base64::engine::general_purpose::STANDARD.encode(der.expose());
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
            std::fs::write(directory.path().join(format!("{name}.key")), pem).unwrap();
        }
        let file = directory.path().join("upstream.conf");
        let upstream = Self::write(directory.path(), "one");
        std::fs::write(&file, upstream).unwrap();
        let text = format!(
            "{SERVER} plugins {{ UpstreamAuthority \"disk\" {{ plugin_data_file = {:?} }} }}",
            file.display().to_string()
        );
        let config = server(&text).unwrap().upstream_authority.unwrap();
        Self { directory, config }
    }

    fn write(directory: &std::path::Path, name: &str) -> String {
        let directory = directory.display();
        format!(
            "cert_file_path = \"{directory}/{name}.crt\"\nkey_file_path = \"{directory}/{name}.key\"\n"
        )
    }

    fn configure(&self, text: &str) {
        std::fs::write(self.directory.path().join("upstream.conf"), text).unwrap();
    }
}

#[tokio::test]
async fn a_changed_file_of_a_plugin_takes_effect_when_it_is_read_again() {
    let files = Upstream::new().await;
    let running = files.config.open(&host()).await.unwrap();
    assert_eq!(running.reload().await.unwrap(), Reloaded::Unchanged);
    files.configure(&Upstream::write(files.directory.path(), "two"));
    assert_eq!(running.reload().await.unwrap(), Reloaded::Changed);
    assert!(format!("{running:?}").contains("two.key"));
    assert_eq!(running.reload().await.unwrap(), Reloaded::Unchanged);
}

#[tokio::test]
async fn a_file_with_a_fault_leaves_the_former_configuration_in_force() {
    let files = Upstream::new().await;
    let running = files.config.open(&host()).await.unwrap();
    for text in [
        "cert_file_path = \"",
        "cert_file = \"x\"",
        "",
        &Upstream::write(files.directory.path(), "missing"),
    ] {
        files.configure(text);
        running.reload().await.expect_err(text);
        assert!(format!("{running:?}").contains("one.key"), "{text}");
    }
    std::fs::remove_file(files.directory.path().join("upstream.conf")).unwrap();
    running.reload().await.unwrap_err();
}

#[tokio::test]
async fn a_plugin_that_needs_a_restart_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("unix.conf");
    std::fs::write(&path, "discover_workload_path = true").unwrap();
    let text = AGENT.replace(
        "plugin_data { discover_workload_path = true workload_size_limit = -1 }",
        &format!("plugin_data_file = {:?}", path.display().to_string()),
    );
    let running = agent(&text).unwrap().open(&host()).await.unwrap();
    std::fs::write(&path, "discover_workload_path = false").unwrap();
    let outcomes = running.reload().await;
    let last = outcomes.last().unwrap();
    assert_eq!((last.kind, last.name), ("WorkloadAttestor", "unix"));
    let error = last.outcome.as_ref().unwrap_err().to_string();
    assert!(error.contains("next start"), "{error}");
    assert_eq!(*outcomes[0].outcome.as_ref().unwrap(), Reloaded::NoFile);
}

/// The pages in `docs/` that describe plugins: each has the same headings, names only codes that exist, and its
/// examples are accepted.
#[test]
fn the_plugins_pages_are_true() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let headings = [
        "## Configuration",
        "## Example",
        "## How it works",
        "## Limits and safety",
        "## When it fails",
        "## Compared with SPIRE",
    ];
    let mut pages = 0;
    for file in std::fs::read_dir(docs).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("plugin_") {
            continue;
        }
        pages += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let found: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("## "))
            .collect();
        assert_eq!(found, headings, "{name}");
        for code in text
            .split("PLA-")
            .skip(1)
            .map(|rest| rest.get(..4).unwrap_or(rest))
        {
            assert!(Code::parse(code).is_some(), "{name}: PLA-{code}");
        }
        for example in text
            .split("```hcl\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
        {
            example_is_accepted(&name, example);
        }
    }
    assert!(pages >= 9);
}

fn example_is_accepted(page: &str, example: &str) {
    let document = Document::parse(page, example, None).unwrap_or_else(|faults| panic!("{faults}"));
    let root = document.root();
    root.raw("agent");
    if page.starts_with("plugin_server") {
        if let Some(data) = ServerPlugins::data_store(&root) {
            // Its keys are the server's to read.
            for key in data.keys() {
                data.raw(&key.value);
            }
        }
        ServerPlugins::from_section(&root);
    } else {
        AgentPlugins::from_section(&root);
    }
    // An example shows one plugin, so others are missing.
    let faults: Vec<Fault> = document.check().err().into_iter().flatten().collect();
    assert!(
        faults.iter().all(|fault| fault.code == Code::PluginCount),
        "{}",
        Faults(faults)
    );
}
