//! The one-way rule: which crate and which module may know which.
//!
//! Reads `cargo metadata` and the `crate::` paths of the sources. Tests and generated code are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What each crate of the workspace may depend on.
const ARROWS: [(&str, &[&str]); 9] = [
    ("plastron-spiffe", &[]),
    ("plastron-proto", &["plastron-spiffe"]),
    ("plastron-config", &["plastron-spiffe"]),
    ("plastron-daemon", &["plastron-config", "plastron-spiffe"]),
    (
        "plastron-plugin",
        &["plastron-config", "plastron-proto", "plastron-spiffe"],
    ),
    (
        "plastron-server",
        &[
            "plastron-config",
            "plastron-daemon",
            "plastron-plugin",
            "plastron-proto",
            "plastron-spiffe",
        ],
    ),
    (
        "plastron-agent",
        &[
            "plastron-config",
            "plastron-daemon",
            "plastron-plugin",
            "plastron-proto",
            "plastron-spiffe",
        ],
    ),
    (
        "plastron",
        &[
            "plastron-agent",
            "plastron-server",
            "plastron-config",
            "plastron-daemon",
            "plastron-plugin",
            "plastron-proto",
            "plastron-spiffe",
        ],
    ),
    ("plastron-tests", &["plastron-proto", "plastron-spiffe"]),
];

/// The server's modules that know no gRPC and no message of it: another interface uses them as they are.
const WIRELESS: [&str; 13] = [
    "attest",
    "audit",
    "authz",
    "budget",
    "ca",
    "caller",
    "datastore",
    "error",
    "ops",
    "principal",
    "ratelimit",
    "registry",
    "source",
];

/// What gRPC and its messages are made of.
const WIRE: [&str; 5] = ["tonic", "prost", "prost_types", "proto", "hyper"];

/// Handles by which the server is changed: only operations hold them, the services of `api` convert.
const CHANGES_THE_SERVER: [&str; 2] = ["Datastore", "Ca"];

/// The whole of something, and who may hold it; everybody else gets the parts that it needs.
const WHOLE: [(&str, &[&str]); 2] = [
    // All writes.
    ("Datastore", &["datastore.rs", "datastore/", "server.rs"]),
    // All changes of what is in memory. Who holds a `Registry` reads it.
    (
        "RegistryWriter",
        &["datastore.rs", "datastore/", "registry.rs", "registry/"],
    ),
];

/// Pairs of files that are one idea: a trust domain has an ID and an ID a trust domain, and a request is a
/// certificate's draft.
const ONE_IDEA: [(&str, &str); 2] = [("id", "trust_domain"), ("csr", "x509")];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources below `dir` without tests and generated code, each with its path relative to `dir`.
pub(crate) fn sources(dir: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for item in std::fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = item?.path();
            let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
            let left_out = ["tests", "testing", "gen", "generated"].iter().any(|part| {
                name.split('/')
                    .any(|piece| piece.trim_end_matches(".rs") == *part)
            });
            if left_out {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else if name.ends_with(".rs") {
                found.push((name, code(&std::fs::read_to_string(&path)?)));
            }
        }
    }
    Ok(found)
}

/// The text without comments, without declarations of test modules, and without the test module at its end.
fn code(text: &str) -> String {
    const TESTS: &str = "#[cfg(test)]\nmod ";
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(TESTS) {
        kept.push_str(rest.get(..at).unwrap_or_default());
        let module = rest.get(at + TESTS.len()..).unwrap_or_default();
        let line = module.lines().next().unwrap_or_default();
        if !line.ends_with(';') {
            rest = "";
            break;
        }
        rest = module.get(line.len()..).unwrap_or_default();
    }
    kept.push_str(rest);
    kept.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn code_below_the_declaration_of_a_test_module_is_seen() {
    let text = "use a;\n#[cfg(test)]\nmod tests;\nuse b;\n// use c;\n#[cfg(test)]\nmod more {\nuse d;\n}\n";
    assert_eq!(code(text), "use a;\n\nuse b;");
}

#[test]
fn crates_depend_one_way() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version=1",
            "--manifest-path",
        ])
        .arg(root().join("Cargo.toml"))
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let text =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    for package in metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("packages")?
    {
        let name = text(package, "name").context("a name")?;
        let (_, allowed) = ARROWS
            .iter()
            .find(|(known, _)| *known == name)
            .with_context(|| format!("{name} has no place"))?;
        for dependency in package
            .get("dependencies")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let ours = dependency.get("path").is_some();
            let on = text(dependency, "name").context("a name")?;
            let normal = text(dependency, "kind").is_none();
            ensure!(
                !ours || !normal || allowed.contains(&on.as_str()),
                "{name} may not depend on {on}"
            );
        }
    }
    Ok(())
}

#[test]
fn libraries_stay_in_their_layers() -> Result<()> {
    let database = ["rusqlite", "tokio_postgres", "sqlx"];
    for crate_name in [
        "spiffe", "proto", "config", "daemon", "plugin", "server", "agent",
    ] {
        let dir = root().join("crates").join(crate_name).join("src");
        for (name, text) in sources(&dir)? {
            let place = format!("{crate_name}/{name}");
            let in_datastore = place.starts_with("server/datastore");
            for library in database {
                ensure!(
                    in_datastore || !uses(&text, library),
                    "{place} uses {library}; only the datastore may"
                );
            }
            let module = name.split('/').next().unwrap_or_default();
            let wireless = crate_name == "spiffe"
                || crate_name == "server" && WIRELESS.contains(&module.trim_end_matches(".rs"));
            for library in WIRE {
                ensure!(!wireless || !uses(&text, library), "{place} uses {library}");
            }
            ensure!(
                crate_name != "spiffe" || !uses(&text, "tokio"),
                "{place} uses tokio"
            );
            for print in ["println!(", "print!(", "eprintln!(", "eprint!("] {
                ensure!(!text.contains(print), "{place} prints; only the face may");
            }
        }
    }
    Ok(())
}

#[test]
fn the_servers_services_hold_no_handle_by_which_it_is_changed() -> Result<()> {
    let dir = root().join("crates/server/src");
    let mut files = 0;
    for (name, text) in sources(&dir)? {
        if name == "api.rs" || name.starts_with("api/") {
            files += 1;
            for handle in CHANGES_THE_SERVER {
                ensure!(
                    !has_word(&text, handle),
                    "{name} names {handle}; only operations do"
                );
            }
        }
    }
    ensure!(files > 10, "the services were not found");
    Ok(())
}

#[test]
fn writes_and_changes_of_memory_are_given_out_in_parts() -> Result<()> {
    let dir = root().join("crates/server/src");
    let sources = sources(&dir)?;
    for (whole, holders) in WHOLE {
        let mut named = 0;
        for (name, text) in &sources {
            if !has_word(text, whole) {
                continue;
            }
            named += 1;
            let mut holders = holders.iter();
            ensure!(
                holders
                    .any(|holder| name == holder
                        || holder.ends_with('/') && name.starts_with(holder)),
                "{name} names {whole}; it takes the handles that it needs"
            );
        }
        ensure!(named > 1, "nothing names {whole}");
    }
    Ok(())
}

#[test]
fn the_agents_cache_knows_no_wire() -> Result<()> {
    let dir = root().join("crates/agent/src");
    let mut files = 0;
    for (name, text) in sources(&dir)? {
        if name == "cache.rs" || name.starts_with("cache/") {
            files += 1;
            for library in ["proto", "prost", "tonic"] {
                ensure!(!uses(&text, library), "{name} uses {library}");
            }
        }
    }
    ensure!(files > 5, "the cache was not found");
    Ok(())
}

/// Whether the text has this word, and not only one that contains it.
fn has_word(text: &str, wanted: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .any(|word| word == wanted)
}

/// Whether the text has a path that begins with the library.
fn uses(text: &str, library: &str) -> bool {
    text.match_indices(&format!("{library}::")).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        before.is_none_or(|letter| !letter.is_alphanumeric() && letter != '_' && letter != ':')
    })
}

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Which top-level module names which.
fn modules(dir: &Path) -> Result<Graph> {
    let mut graph = Graph::new();
    for (name, text) in sources(dir)? {
        let top = name
            .split('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".rs")
            .to_owned();
        if ["lib", "main", "fuzzing"].contains(&top.as_str()) {
            continue;
        }
        let named = graph.entry(top.clone()).or_default();
        for (at, path) in text.match_indices("crate::") {
            let rest = text.get(at + path.len()..).unwrap_or_default();
            named.extend(heads(rest).into_iter().filter(|head| *head != top));
        }
    }
    let known: BTreeSet<String> = graph.keys().cloned().collect();
    for named in graph.values_mut() {
        named.retain(|module| known.contains(module));
    }
    Ok(graph)
}

/// The first names of `a::b`, or of each path in `{a::b, c}`.
fn heads(path: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim_start()
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect::<String>()
    };
    let Some(list) = path.strip_prefix('{') else {
        return vec![word(path)];
    };
    let mut depth = 0;
    let mut names = vec![word(list)];
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(word(list.get(at + 1..).unwrap_or_default())),
            _ => {}
        }
    }
    names
}

/// Whether `from` leads to `to` in the graph.
fn reaches(graph: &Graph, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut pending = vec![from];
    while let Some(module) = pending.pop() {
        for next in graph.get(module).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next.as_str()) {
                pending.push(next);
            }
        }
    }
    false
}

#[test]
fn modules_of_a_crate_have_no_cycles() -> Result<()> {
    for crate_name in [
        "spiffe", "proto", "config", "daemon", "plugin", "server", "agent",
    ] {
        let mut graph = modules(&root().join("crates").join(crate_name).join("src"))?;
        if crate_name == "spiffe" {
            for (one, other) in ONE_IDEA {
                graph.entry(one.to_owned()).or_default().remove(other);
            }
        }
        let circular: Vec<&String> = graph
            .keys()
            .filter(|module| reaches(&graph, module, module))
            .collect();
        ensure!(
            circular.is_empty(),
            "{crate_name}: in a circle: {circular:?}"
        );
    }
    Ok(())
}

#[test]
fn lower_modules_do_not_know_upper_ones() -> Result<()> {
    let server = modules(&root().join("crates/server/src"))?;
    for (module, above) in [
        (
            "datastore",
            [
                "api",
                "endpoints",
                "ca",
                "attest",
                "authz",
                "watch",
                "server",
            ]
            .as_slice(),
        ),
        (
            "registry",
            &[
                "api",
                "endpoints",
                "ca",
                "attest",
                "authz",
                "watch",
                "server",
            ],
        ),
        ("ca", &["api", "endpoints", "authz", "watch", "server"]),
        ("attest", &["api", "endpoints", "server"]),
        ("api", &["endpoints", "server"]),
        ("endpoints", &["datastore", "ca", "server"]),
    ] {
        check(&server, module, above)?;
    }
    let agent = modules(&root().join("crates/agent/src"))?;
    check(
        &agent,
        "cache",
        &[
            "sync",
            "workload_api",
            "attestor",
            "endpoints",
            "node_attestation",
        ],
    )?;
    check(
        &agent,
        "attestor",
        &["sync", "cache", "endpoints", "node_attestation"],
    )
}

fn check(graph: &Graph, module: &str, above: &[&str]) -> Result<()> {
    let named = graph
        .get(module)
        .with_context(|| format!("no module {module}"))?;
    for upper in above {
        ensure!(!named.contains(*upper), "{module} names {upper}");
    }
    Ok(())
}

/// Each dependency is named somewhere in the crate that declares it.
#[test]
fn no_crate_declares_a_dependency_that_it_does_not_use() -> Result<()> {
    let manifests = [
        "",
        "tests",
        "crates/spiffe",
        "crates/proto",
        "crates/config",
        "crates/daemon",
        "crates/plugin",
        "crates/server",
        "crates/agent",
    ];
    let mut unused = Vec::new();
    for directory in manifests {
        let directory = root().join(directory);
        let manifest = std::fs::read_to_string(directory.join("Cargo.toml"))?;
        let mut text = String::new();
        let folders = if directory.ends_with("tests") {
            ["harness", "it", "load"].as_slice()
        } else {
            &["src", "tests", "benches"]
        };
        for folder in folders.iter().map(|folder| directory.join(folder)) {
            if directory == root().join("") && !folder.ends_with("src") {
                continue;
            }
            if folder.is_dir() {
                everything(&folder, &mut text)?;
            }
        }
        for dependency in declared(&manifest) {
            // The library of this package has a name of its own.
            let name = match dependency.as_str() {
                "rustls-webpki" => "webpki".to_owned(),
                other => other.replace('-', "_"),
            };
            let named = ["::", ";", " as "]
                .iter()
                .any(|end| text.contains(&format!("{name}{end}")));
            if !named {
                unused.push(format!("{}: {dependency}", directory.display()));
            }
        }
    }
    ensure!(unused.is_empty(), "not used: {unused:?}");
    Ok(())
}

/// The names below `[dependencies]` and `[dev-dependencies]`.
fn declared(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut reading = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            reading = line.ends_with("ependencies]") && !line.contains("workspace");
        } else if reading
            && !line.starts_with('#')
            && let Some(end) = line.find(['.', ' ', '='])
        {
            names.push(line.get(..end).unwrap_or_default().to_owned());
        }
    }
    names
}

/// Appends every Rust file below the directory.
fn everything(directory: &Path, text: &mut String) -> Result<()> {
    for item in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = item?.path();
        if path.is_dir() {
            everything(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
