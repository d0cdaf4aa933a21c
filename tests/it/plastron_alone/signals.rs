//! The signals that operators' scripts send: none but the ones that ask for it ends a daemon.

use std::io::Read as _;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Agent, AgentOptions, Deployment, Process, Server, ServerOptions, id, wait};

const LIMIT: Duration = Duration::from_secs(20);

fn until_logged(process: &Process, text: &str) -> Result<()> {
    wait::until(text, LIMIT, || {
        Ok(process.log().contains(text).then_some(()))
    })
}

#[test]
fn sigusr1_is_logged_and_ends_neither_daemon() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    let token = server.token(&Deployment::node())?;
    let mut agent = Agent::start(AgentOptions::attesting(&server, &token)?)?;
    for process in [server.process()?, agent.process()?] {
        process.signal(libc::SIGUSR1)?;
        until_logged(process, "SIGUSR1 received")?;
        ensure!(process.ended()?.is_none(), "{}", process.tail());
    }
    ensure!(
        agent.cli(&["healthcheck"])?.succeeded(),
        "the agent suffered"
    );
    ensure!(
        server.cli(&["healthcheck"])?.succeeded(),
        "the server suffered"
    );
    Ok(())
}

/// A self-signed CA in `<name>.crt` and `<name>.key`, and the configuration that names the two.
fn upstream(directory: &Path, name: &str) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let certificate = params.self_signed(&key)?.pem();
    let (cert_path, key_path) = (
        directory.join(format!("{name}.crt")),
        directory.join(format!("{name}.key")),
    );
    std::fs::write(&cert_path, &certificate)?;
    std::fs::write(&key_path, key.serialize_pem())?;
    let configuration = format!("cert_file_path = {cert_path:?}\nkey_file_path = {key_path:?}\n");
    Ok((configuration, certificate.replace("\r\n", "\n")))
}

#[test]
fn sigusr1_has_a_plugin_read_its_file_again_and_a_bad_file_is_named_and_changes_nothing()
-> Result<()> {
    let mut server = Server::prepare(ServerOptions::default())?;
    let directory = server.dir().to_owned();
    let (one, first) = upstream(&directory, "one")?;
    let (two, second) = upstream(&directory, "two")?;
    let file = directory.join("upstream.conf");
    std::fs::write(&file, &one)?;
    server.options.plugins =
        format!("UpstreamAuthority \"disk\" {{ plugin_data_file = {file:?} }}");
    server.write_configuration()?;
    server.launch()?;
    ensure!(
        server.bundle()?.contains(first.trim()),
        "{}",
        server.bundle()?
    );
    std::fs::write(&file, "cert_file = \"misspelled\"")?;
    server.process()?.signal(libc::SIGUSR1)?;
    until_logged(server.process()?, "Failed to reconfigure plugin")?;
    let log = server.process()?.log();
    ensure!(
        log.contains("UpstreamAuthority") && log.contains("cert_file"),
        "{log}"
    );
    ensure!(
        server.bundle()?.contains(first.trim()),
        "the former was lost"
    );
    std::fs::write(&file, &two)?;
    server.process()?.signal(libc::SIGUSR1)?;
    until_logged(server.process()?, "Plugin reconfigured")?;
    // Its roots are followed, so the new one is in the bundle before anything is signed below it.
    wait::until("the new root", LIMIT, || {
        Ok(server.bundle()?.contains(second.trim()).then_some(()))
    })?;
    server.process()?.signal(libc::SIGUSR1)?;
    until_logged(server.process()?, "config is unchanged")
}

#[test]
fn sigusr2_warns_once_when_the_log_directory_is_gone_and_logging_goes_on() -> Result<()> {
    let mut server = Server::prepare(ServerOptions::default())?;
    let (logs, moved) = (server.dir().join("logs"), server.dir().join("moved"));
    std::fs::create_dir(&logs)?;
    server.options.settings = format!("log_file = {:?}", logs.join("server.log"));
    server.write_configuration()?;
    server.launch()?;
    std::fs::rename(&logs, &moved)?;
    let process = server.process()?;
    process.signal(libc::SIGUSR2)?;
    until_logged(process, "warning: the log file could not be reopened")?;
    process.signal(libc::SIGUSR1)?;
    wait::until("the line in the file that is still open", LIMIT, || {
        let log = std::fs::read_to_string(moved.join("server.log"))?;
        Ok(log.contains("SIGUSR1 received").then_some(()))
    })?;
    let process = server.process()?;
    let warnings = process.log().matches("could not be reopened").count();
    ensure!(warnings == 1, "{warnings} warnings: {}", process.tail());
    Ok(())
}

#[test]
fn sighup_ends_a_daemon_cleanly() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    let process = server.process()?;
    process.signal(libc::SIGHUP)?;
    let code = process.wait(LIMIT)?;
    ensure!(
        code == 0 && process.log().contains("SIGHUP"),
        "{code}: {}",
        process.tail()
    );
    Ok(())
}

const PIPE: usize = 4 * PAGE;
/// Poll reports a pipe as full when its last page has been begun.
const PAGE: usize = 4096;

#[expect(
    unsafe_code,
    reason = "fcntl(2) has no safe form in the standard library"
)]
fn make_small(pipe: &impl AsRawFd) -> Result<()> {
    let size = libc::c_int::try_from(PIPE)?;
    // SAFETY: fcntl takes plain numbers here, and the descriptor is open.
    let outcome = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    ensure!(outcome >= 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn a_log_pipe_that_nobody_reads_stops_no_server() -> Result<()> {
    use std::process::{Command, Stdio};
    let server = Server::prepare(ServerOptions {
        log_level: "TRACE",
        ..ServerOptions::default()
    })?;
    let mut child = Command::new(server.program())
        .args(["run", "-config"])
        .arg(server.config_path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    make_small(child.stderr.as_ref().context("no pipe")?)?;
    let outcome: Result<()> = (|| {
        wait::until("the server", LIMIT, || {
            Ok(server.cli(&["healthcheck"])?.succeeded().then_some(()))
        })?;
        // Each of these is logged; together they are more than the pipe holds.
        for number in 0..100 {
            server.create_entry(&harness::Entry::new(
                &Deployment::node(),
                &id(&format!("/{}/{number}", "long".repeat(200))),
                &harness::deployment::own_user(),
            ))?;
        }
        Ok(())
    })();
    child.kill()?;
    let mut piped = Vec::new();
    child
        .stderr
        .take()
        .context("no pipe")?
        .read_to_end(&mut piped)?;
    child.wait()?;
    outcome?;
    ensure!(
        piped.len() + 2 * PAGE > PIPE,
        "the pipe was never full: {} bytes",
        piped.len()
    );
    Ok(())
}
