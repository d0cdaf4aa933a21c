//! The native command line: exit codes, the format of errors, daemons without a file, what it generates.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::process::{self, Ran};
use harness::server::temporary_directory;
use harness::subject::plastron;
use harness::{Process, wait};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;
const SOCKET_VARIABLES: [&str; 3] = [
    "SPIFFE_ENDPOINT_SOCKET",
    "SPIRE_SERVER_PRIVATE_SOCKET",
    "SPIRE_AGENT_PUBLIC_SOCKET",
];

/// Runs `plastron` in a directory where no configuration lies, without variables that name sockets.
fn run_in(dir: &Path, args: &[&str]) -> Result<Ran> {
    let mut command = Command::new(plastron()?);
    command.args(args).current_dir(dir);
    for name in SOCKET_VARIABLES {
        command.env_remove(name);
    }
    process::run(&mut command, LIMIT)
}

fn run(args: &[&str]) -> Result<Ran> {
    run_in(temporary_directory("cli")?.path(), args)
}

/// A command line, its exit code and its code.
type Fault = (&'static str, i32, &'static str);

const FAULTS: [Fault; 18] = [
    ("server entry show --socket-path nobody.sock", 6, "PLA-1002"),
    (
        "agent api fetch x509 --socket-path nobody.sock",
        6,
        "PLA-1001",
    ),
    ("agent healthcheck --socket-path nobody.sock", 6, "PLA-1001"),
    (
        "agent api watch --socket-path tcp://127.0.0.1:1",
        2,
        "PLA-1009",
    ),
    ("server entry create --selectr a:b", 2, "PLA-1008"),
    ("server entry crate", 2, "PLA-1008"),
    ("server entry create --spiffe-id web", 2, "PLA-1008"),
    (
        "server entry create --spiffe-id web --selector a",
        2,
        "PLA-2002",
    ),
    ("server entry create --data nothing.json", 2, "PLA-1010"),
    ("server agent show --spiffe-id nothing", 2, "PLA-2001"),
    ("agent api fetch jwt", 2, "PLA-2105"),
    ("server run", 2, "PLA-1201"),
    ("agent run --trust-domain example.org", 2, "PLA-1201"),
    ("run --id web --dir nowhere -- true", 6, "PLA-1002"),
    (
        "agent api fetch x509 --socket-path unix://host/a.sock",
        2,
        "PLA-1009",
    ),
    (
        "server entry show --socket-path unix:relative.sock",
        2,
        "PLA-1009",
    ),
    (
        "run --id web --server-socket unix://h/s -- true",
        2,
        "PLA-1009",
    ),
    (
        "run --id web --server-socket /s --workload-socket tcp://h/s -- true",
        2,
        "PLA-1009",
    ),
];

#[test]
fn each_fault_has_its_code_and_its_exit_code() -> Result<()> {
    for (line, code, fault) in FAULTS {
        let words: Vec<&str> = line.split(' ').collect();
        let ran = run(&words)?;
        let reported = ran.stderr.starts_with(&format!("error[{fault}]: "))
            && ran.stderr.contains(&format!("see: plastron help {fault}"));
        ensure!(
            ran.code == code && reported && ran.stdout.is_empty(),
            "{line}: {ran:?}"
        );
    }
    Ok(())
}

#[test]
fn no_configuration_is_read_from_the_working_directory() -> Result<()> {
    let home = temporary_directory("cwd")?;
    for program in ["server", "agent"] {
        let conf = home.path().join("conf").join(program);
        std::fs::create_dir_all(&conf)?;
        std::fs::write(
            conf.join(format!("{program}.conf")),
            "this is not a configuration",
        )?;
        let ran = run_in(home.path(), &[program, "validate"])?;
        ensure!(
            ran.code == 2 && ran.stderr.contains("PLA-1201"),
            "{program}: {ran:?}"
        );
    }
    Ok(())
}

#[test]
fn another_users_own_configuration_is_found_by_xdg() -> Result<()> {
    let home = temporary_directory("xdg")?;
    let own = home.path().join("plastron");
    std::fs::create_dir(&own)?;
    std::fs::write(own.join("server.conf"), "server { nonsense = 1 }")?;
    open_to_all(home.path())?;
    // Where it was built may be closed to others.
    let program = home.path().join("program");
    std::fs::copy(plastron()?, &program)?;
    open_to_all(&program)?;
    let mut command = Command::new(program);
    command
        .args(["server", "validate"])
        .env("XDG_CONFIG_HOME", home.path())
        .current_dir("/");
    let ran = process::run(as_nobody(&mut command)?, LIMIT)?;
    let reported = ran
        .stderr
        .contains(&format!("{}/server.conf:1", own.display()));
    ensure!(ran.code == 2 && reported, "{ran:?}");
    Ok(())
}

/// Root has no configuration of its own but the machine's: a test that runs as root becomes nobody.
fn as_nobody(command: &mut Command) -> Result<&mut Command> {
    use std::os::unix::process::CommandExt as _;
    if harness::deployment::own_user() == "unix:uid:0" {
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command)
}

fn open_to_all(path: &Path) -> Result<()> {
    set_mode(path, 0o755)
}

fn writable_by_all(path: &Path) -> Result<()> {
    set_mode(path, 0o777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(mode),
    )?)
}

#[test]
fn a_flag_that_is_wrong_is_blamed_and_not_a_line_of_the_file() -> Result<()> {
    let home = temporary_directory("flag")?;
    std::fs::write(
        home.path().join("agent.conf"),
        "agent {\n  trust_domain = \"example.org\"\n  server_address = \"h\"\n  server_port = 1\n  insecure_bootstrap = true\n}\n\
         plugins {\n  NodeAttestor \"join_token\" {}\n  KeyManager \"memory\" {}\n  WorkloadAttestor \"unix\" {}\n}\n",
    )?;
    for (flag, value) in [
        ("--trust-domain", "not a domain"),
        ("--log-level", "loud"),
        ("--log-format", "xml"),
        ("--trust-bundle-format", "der"),
        ("--rebootstrap-mode", "sometimes"),
        ("--rebootstrap-delay", "soon"),
    ] {
        let ran = run_in(
            home.path(),
            &["agent", "validate", "--config", "agent.conf", flag, value],
        )?;
        let blamed = ran.stderr.contains(&format!("at: {flag}\n"));
        ensure!(
            ran.code == 2 && blamed && !ran.stderr.contains("agent.conf:"),
            "{flag}: {ran:?}"
        );
    }
    Ok(())
}

/// Runs `plastron` as root or as nobody on a machine where no daemon runs: `/run` is an empty file system that only the
/// command sees.
fn run_without_daemons(user: u32, runtime: &Path, program: &Path, words: &[&str]) -> Result<Ran> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount -t tmpfs none /run && exec setpriv --reuid=$0 --regid=$0 --clear-groups -- \"$@\"")
        .arg(user.to_string())
        .arg(program)
        .args(words)
        .current_dir("/")
        .env("XDG_RUNTIME_DIR", runtime);
    for name in SOCKET_VARIABLES {
        command.env_remove(name);
    }
    process::run(&mut command, LIMIT)
}

#[test]
#[ignore = "makes a mount namespace and becomes another user: needs root, as tests/run has in the gate"]
fn no_default_socket_lies_where_anybody_can_put_one() -> Result<()> {
    const ROOT: u32 = 0;
    let home = temporary_directory("sockets")?;
    open_to_all(home.path())?;
    let program = home.path().join("program");
    std::fs::copy(plastron()?, &program)?;
    // A directory that anybody may write to, with a socket under each name that could be looked for.
    let directory = home.path().join("plastron");
    let mut listeners = Vec::new();
    for name in [
        "server/api.sock",
        "agent/public/api.sock",
        "agent/private/admin.sock",
    ] {
        let socket = directory.join(name);
        let parent = socket.parent().context("no parent")?;
        std::fs::create_dir_all(parent)?;
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        writable_by_all(&socket)?;
        listeners.push(listener);
    }
    writable_by_all(&directory)?;
    for (user, words) in [ROOT, NOBODY].into_iter().flat_map(|user| {
        [
            (user, &["server", "entry", "show"][..]),
            (user, &["agent", "api", "fetch", "x509"]),
            (user, &["agent", "logger", "get"]),
        ]
    }) {
        let ran = run_without_daemons(user, home.path(), &program, words)?;
        let at = ran.stderr.lines().find(|line| line.starts_with("  at: "));
        ensure!(
            ran.code == 6 && at.is_some_and(|at| at.starts_with("  at: /run/plastron/")),
            "{user}: {ran:?}"
        );
    }
    for listener in &listeners {
        ensure!(listener.accept().is_err(), "somebody came to {listener:?}");
    }
    Ok(())
}

#[test]
fn an_error_is_json_when_json_is_asked_for() -> Result<()> {
    let ran = run(&[
        "server",
        "entry",
        "show",
        "--socket-path",
        "nobody.sock",
        "-o",
        "json",
    ])?;
    let value: Value = serde_json::from_str(&ran.stderr).with_context(|| format!("{ran:?}"))?;
    let error = value.pointer("/errors/0").context("no error")?;
    ensure!(
        error.get("code").is_some_and(|code| code == "PLA-1002"),
        "{value}"
    );
    ensure!(ran.code == 6, "{ran:?}");
    Ok(())
}

#[test]
fn every_code_is_explained() -> Result<()> {
    let codes = run(&["help", "codes", "-o", "json"])?.json()?;
    let codes = codes
        .pointer("/codes")
        .and_then(Value::as_array)
        .context("no list")?;
    ensure!(codes.len() > 40, "{} codes", codes.len());
    for code in codes {
        let name = code
            .get("code")
            .and_then(Value::as_str)
            .context("no code")?;
        let text = run(&["help", name])?.ok()?;
        ensure!(
            text.starts_with(&format!("{name}: ")) && text.lines().count() > 2,
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn help_shows_a_command_with_examples() -> Result<()> {
    let text = run(&["help", "server", "entry", "create"])?.ok()?;
    for part in [
        "Usage: plastron server entry create",
        "--x509-svid-ttl",
        "plastron server entry create --spiffe-id web",
    ] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(())
}

#[test]
fn completions_and_manual_pages_know_the_commands() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell])?.ok()?;
        ensure!(script.contains("localauthority"), "{shell}: {script}");
    }
    let home = temporary_directory("man")?;
    run_in(home.path(), &["man", "pages"])?.ok()?;
    let page = home.path().join("pages/plastron-server-entry-create.1");
    let page = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    ensure!(page.contains("selector"), "{page}");
    Ok(())
}

/// Somebody who takes connections and never answers.
fn silent(dir: &Path) -> Result<(UnixListener, String)> {
    let path = dir.join("silent.sock");
    let listener = UnixListener::bind(&path)?;
    Ok((listener, path.display().to_string()))
}

#[test]
fn a_silent_server_is_given_up_in_time() -> Result<()> {
    let home = temporary_directory("silent")?;
    let (listener, socket) = silent(home.path())?;
    let ran = run(&[
        "server",
        "entry",
        "show",
        "--timeout",
        "300ms",
        "--socket-path",
        &socket,
    ])?;
    ensure!(
        ran.code == 8 && ran.stderr.starts_with("error[PLA-1003]"),
        "{ran:?}"
    );
    drop(listener);
    Ok(())
}

#[test]
fn an_interrupted_command_says_nothing_and_ends_with_130() -> Result<()> {
    let home = temporary_directory("silent")?;
    let (listener, socket) = silent(home.path())?;
    let mut command = Command::new(plastron()?);
    command.args(["server", "entry", "show", "--socket-path", &socket]);
    let mut asking = Process::start(&mut command, &home.path().join("log"))?;
    let connection = listener.accept()?;
    asking.signal(libc::SIGINT)?;
    let code = asking.wait(LIMIT)?;
    ensure!(
        code == 130 && asking.log().is_empty(),
        "{code}: {}",
        asking.log()
    );
    drop(connection);
    Ok(())
}

/// A server that was started with flags alone.
struct Bare {
    process: Process,
    home: tempfile::TempDir,
    socket: String,
    port: String,
}

impl Bare {
    fn start() -> Result<Self> {
        let home = temporary_directory("bare")?;
        let socket = home.path().join("server.sock").display().to_string();
        let mut command = Command::new(plastron()?);
        command
            .args([
                "server",
                "run",
                "--trust-domain",
                "example.org",
                "--bind-address",
                "127.0.0.1",
            ])
            .args(["--server-port", "0", "--socket-path", &socket, "--data-dir"])
            .arg(home.path().join("server"))
            .current_dir(home.path());
        let server = Process::start(&mut command, &home.path().join("server.log"))?;
        let port = wait::until("the server", LIMIT, || {
            let log = server.log();
            let line = log.lines().find(|line| line.contains("serving agents"));
            Ok(line.and_then(|line| {
                let port = line.rsplit_once("127.0.0.1:")?.1;
                Some(port.chars().take_while(char::is_ascii_digit).collect())
            }))
        })?;
        let bare = Self {
            process: server,
            home,
            socket,
            port,
        };
        wait::until("the admin socket", LIMIT, || {
            Ok(bare.admin(&["healthcheck"])?.succeeded().then_some(()))
        })?;
        Ok(bare)
    }

    fn admin(&self, args: &[&str]) -> Result<Ran> {
        let mut words = vec!["server"];
        words.extend(args);
        words.extend(["--socket-path", &self.socket]);
        run_in(self.home.path(), &words)
    }
}

#[test]
fn a_node_attests_to_a_server_and_both_have_no_file() -> Result<()> {
    let server = Bare::start()?;
    let home = server.home.path();
    std::fs::write(
        home.join("bundle.pem"),
        server.admin(&["bundle", "show"])?.ok()?,
    )?;
    let token = server.admin(&["token", "generate", "-o", "json"])?.json()?;
    let token = token
        .get("value")
        .and_then(Value::as_str)
        .context("no token")?;
    let socket = home.join("agent.sock").display().to_string();
    let mut command = Command::new(plastron()?);
    command
        .args([
            "agent",
            "run",
            "--trust-domain",
            "example.org",
            "--data-dir",
            "agent",
        ])
        .args([
            "--server-address",
            "127.0.0.1",
            "--server-port",
            &server.port,
        ])
        .args([
            "--trust-bundle",
            "bundle.pem",
            "--join-token",
            token,
            "--socket-path",
            &socket,
        ])
        .current_dir(home);
    let agent = Process::start(&mut command, &home.join("agent.log"))?;
    wait::until("the agent", LIMIT, || {
        let health = run_in(home, &["agent", "healthcheck", "--socket-path", &socket])?;
        Ok(health.succeeded().then_some(()))
    })
    .with_context(|| agent.tail())?;
    let user = harness::deployment::own_user();
    ensure!(
        server
            .process
            .log()
            .contains("configuration=\"the command line\""),
        "{}",
        server.process.tail()
    );
    server
        .admin(&["entry", "create", "--spiffe-id", "web", "--selector", &user])?
        .ok()?;
    let by_path = server.admin(&[
        "entry",
        "create",
        "--spiffe-id",
        "tool",
        "--selector",
        "unix:path:/bin/tool",
    ])?;
    ensure!(
        by_path.stderr.contains("discover_workload_path = true"),
        "{by_path:?}"
    );
    let fetched = wait::until("the SVID", LIMIT, || {
        let ran = run_in(
            home,
            &["agent", "api", "fetch", "x509", "--socket-path", &socket],
        )?;
        Ok(ran.succeeded().then_some(ran.stdout))
    })?;
    ensure!(fetched.contains("spiffe://example.org/web"), "{fetched}");
    Ok(())
}

#[test]
fn refusals_of_a_server_have_the_code_of_their_object() -> Result<()> {
    let server = Bare::start()?;
    let entry =
        "entry create --parent-id node --spiffe-id web --selector unix:uid:1 --allow-unknown";
    let admin = |line: &str| server.admin(&line.split(' ').collect::<Vec<&str>>());
    admin(entry)?.ok()?;
    for (line, code, fault) in [
        (entry, 5, "PLA-2006"),
        ("entry show --entry-id nothing", 3, "PLA-2005"),
        ("entry delete --entry-id nothing", 3, "PLA-2005"),
        (
            "agent show --spiffe-id spiffe://example.org/spire/agent/x",
            3,
            "PLA-2009",
        ),
        ("bundle list --id other.example", 3, "PLA-2010"),
        ("entry create --spiffe-id web --selector a:b", 2, "PLA-1008"),
        ("localauthority x509 taint --authority-id x", 2, "PLA-1007"),
        (
            "entry create --parent-id nodee --spiffe-id db --selector unix:uid:1",
            3,
            "PLA-2007",
        ),
        (
            "entry create --parent-id web --spiffe-id db --selector unxi:uid:1",
            2,
            "PLA-2003",
        ),
        (
            "entry create --parent-id web --spiffe-id db --selector unix:udi:1",
            2,
            "PLA-2003",
        ),
        (
            "entry create --parent-id web --spiffe-id db --selector unix:uid:db",
            2,
            "PLA-2002",
        ),
        (
            "entry create --parent-id web --spiffe-id db --selector unix:uid:1 --expires-at 1",
            2,
            "PLA-2004",
        ),
    ] {
        let ran = admin(line)?;
        let reported = ran.stderr.starts_with(&format!("error[{fault}]: "));
        ensure!(ran.code == code && reported, "{line}: {ran:?}");
    }
    Ok(())
}

#[test]
fn an_entry_file_from_which_nothing_would_come_is_refused() -> Result<()> {
    let server = Bare::start()?;
    let path = server.home.path().join("entries.json");
    let file = path.display().to_string();
    for (json, named) in [
        ("", "nothing was given"),
        ("{}", "no entries"),
        (r#"{"Entries":[]}"#, "Entries is unknown"),
        (
            r#"{"entries":[{"spiffe_id":"spiffe://example.org/a","spiffe_id":"spiffe://example.org/b"}]}"#,
            "entries[0].spiffe_id is given twice",
        ),
    ] {
        std::fs::write(&path, json)?;
        let ran = server.admin(&["entry", "create", "--data", &file])?;
        ensure!(
            ran.code == 2 && ran.stderr.contains(named),
            "{json}: {ran:?}"
        );
    }
    Ok(())
}

#[test]
fn a_bundle_that_is_empty_or_lacks_a_key_replaces_nothing() -> Result<()> {
    let server = Bare::start()?;
    let good = server
        .admin(&["bundle", "show", "--format", "spiffe"])?
        .ok()?;
    let path = server.home.path().join("bundle.json");
    let file = path.display().to_string();
    std::fs::write(&path, &good)?;
    let set = [
        "bundle",
        "set",
        "--id",
        "other.example",
        "--format",
        "spiffe",
    ];
    let with_file = [&set[..], &["--path", &file]].concat();
    server.admin(&with_file)?.ok()?;
    let list = ["bundle", "list", "-o", "json"];
    let before = server.admin(&list)?.json()?;
    for json in [
        r#"{"keys":[]}"#,
        r#"{"keys":[{"use":"x509-svid","kty":"EC"}]}"#,
        r#"{"keys":[{"use":"jwt-svid","kty":"EC"}]}"#,
    ] {
        std::fs::write(&path, json)?;
        let ran = server.admin(&with_file)?;
        ensure!(
            ran.code == 2 && ran.stderr.contains("PLA-2013"),
            "{json}: {ran:?}"
        );
    }
    // The harness gives an empty standard input.
    let ran = server.admin(&set)?;
    ensure!(
        ran.code == 2 && ran.stderr.contains("no bundle was given"),
        "{ran:?}"
    );
    ensure!(
        server.admin(&list)?.json()? == before,
        "the bundle was replaced"
    );
    Ok(())
}

#[test]
fn a_lifetime_beyond_the_authoritys_is_warned_of() -> Result<()> {
    let server = Bare::start()?;
    let create = |ttl: &str| {
        let id = format!("ttl/{ttl}");
        server.admin(&[
            "entry",
            "create",
            "--parent-id",
            "n",
            "--spiffe-id",
            &id,
            "--selector",
            "unix:uid:1",
            "--allow-unknown",
            "--x509-svid-ttl",
            ttl,
        ])
    };
    let long = create("168h")?;
    ensure!(
        long.succeeded() && long.stderr.contains("longer than the server's authority"),
        "{long:?}"
    );
    let short = create("5m")?;
    ensure!(
        short.succeeded() && !short.stderr.contains("longer than"),
        "{short:?}"
    );
    Ok(())
}

#[test]
fn every_list_has_three_formats() -> Result<()> {
    let server = Bare::start()?;
    for words in [
        &["entry", "show"][..],
        &["agent", "list"],
        &["bundle", "list"],
        &["localauthority", "jwt", "show"],
        &["logger", "get"],
        &["debug", "getinfo"],
    ] {
        for format in ["table", "json", "yaml"] {
            let mut args = words.to_vec();
            args.extend(["-o", format]);
            let text = server.admin(&args)?.ok()?;
            let json = serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object());
            ensure!(json == (format == "json"), "{args:?}: {text}");
        }
    }
    Ok(())
}

#[test]
fn an_authority_of_each_kind_is_replaced_by_hand() -> Result<()> {
    let server = Bare::start()?;
    for kind in ["x509", "jwt"] {
        let step = |words: &[&str]| -> Result<String> {
            let mut args = vec!["localauthority", kind];
            args.extend(words);
            server.admin(&args)?.ok()
        };
        let states = || -> Result<Vec<(String, String)>> {
            let shown = step(&["show"])?;
            let cells = |line: &str| -> Option<(String, String)> {
                let mut cells = line.split_whitespace();
                Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
            };
            Ok(shown.lines().skip(1).filter_map(cells).collect())
        };
        let id = |state: &str| -> Result<String> {
            let found = states()?.into_iter().find(|(word, _id)| word == state);
            Ok(found
                .with_context(|| format!("no {state} {kind} authority"))?
                .1)
        };
        let first = id("active")?;
        step(&["prepare"])?;
        let second = id("prepared")?;
        step(&["activate", &second])?;
        ensure!(id("active")? == second && id("old")? == first, "{kind}");
        step(&["taint", &first])?;
        let revoked = step(&["revoke", &first])?;
        ensure!(!revoked.contains("1970"), "{revoked}");
        let bundle = server
            .admin(&["bundle", "show", "--format", "spiffe"])?
            .ok()?;
        ensure!(!bundle.contains(&format!("{first:?}")), "{kind}: {bundle}");
        ensure!(bundle.matches("x5c").count() == 1, "{kind}: {bundle}");
        for refused in ["activate", "taint", "revoke"] {
            let ran = server.admin(&["localauthority", kind, refused])?;
            ensure!(ran.code == 2 && ran.stderr.contains("PLA-1008"), "{ran:?}");
        }
    }
    Ok(())
}
