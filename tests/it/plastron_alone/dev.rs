//! `plastron dev` and `plastron run`: from nothing to an SVID, and back to nothing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::server::temporary_directory;
use harness::subject::plastron;
use harness::{Process, process, wait};

/// It then says what to try in another terminal.
fn until_ready(dev: &Process) -> Result<()> {
    wait::until("plastron dev", Duration::from_secs(60), || {
        Ok(dev.log().contains("plastron run").then_some(()))
    })
}

#[test]
fn the_first_svid_is_two_commands_away_and_nothing_is_left_behind() -> Result<()> {
    let home = temporary_directory("dev")?;
    let dir = home.path().join("instance");
    let program = plastron()?;
    let mut command = Command::new(&program);
    command.args(["dev", "--dir"]).arg(&dir);
    let mut dev = Process::start(&mut command, &home.path().join("dev.log"))?;
    until_ready(&dev)?;
    let mut command = Command::new(&program);
    command
        .args(["run", "--id", "web", "--dir"])
        .arg(&dir)
        .arg("--");
    command
        .arg(&program)
        .args(["agent", "api", "fetch", "x509"]);
    let ran = process::run(&mut command, Duration::from_secs(60))?;
    ensure!(
        ran.succeeded() && ran.stdout.contains("spiffe://dev.local/web"),
        "{ran:?}"
    );

    dev.signal(libc::SIGINT)?;
    let code = dev.wait(Duration::from_secs(10))?;
    ensure!(code == 0 || code == 130, "exit code {code}: {}", dev.log());
    ensure!(
        !dir.exists(),
        "left behind: {:?}",
        std::fs::read_dir(&dir)?.collect::<Vec<_>>()
    );
    Ok(())
}

#[test]
fn beside_a_running_instance_other_commands_find_its_server() -> Result<()> {
    let home = temporary_directory("dev")?;
    let start = |args: &[&str]| {
        let mut command = Command::new(plastron()?);
        command.args(args).env("XDG_RUNTIME_DIR", home.path());
        for name in ["SPIRE_SERVER_PRIVATE_SOCKET", "SPIFFE_ENDPOINT_SOCKET"] {
            command.env_remove(name);
        }
        Ok::<Command, anyhow::Error>(command)
    };
    let dev = Process::start(&mut start(&["dev"])?, &home.path().join("dev.log"))?;
    until_ready(&dev)?;
    let limit = Duration::from_secs(10);
    let shown = process::run(
        &mut start(&["server", "agent", "list", "-o", "json"])?,
        limit,
    )?;
    // It is not the machine's own server, and the operator has to know.
    ensure!(shown.stderr.contains("`plastron dev` at"), "{shown:?}");
    ensure!(shown.ok()?.contains("dev.local"), "{}", dev.tail());
    process::run(&mut start(&["agent", "healthcheck"])?, limit)?.ok()?;
    Ok(())
}

#[test]
fn run_becomes_its_command() -> Result<()> {
    let home = temporary_directory("dev")?;
    let dir = home.path().join("instance");
    let mut command = Command::new(plastron()?);
    command.args(["dev", "--dir"]).arg(&dir);
    let dev = Process::start(&mut command, &home.path().join("dev.log"))?;
    until_ready(&dev)?;
    let mut command = Command::new(plastron()?);
    command
        .args(["run", "--id", "web", "--dir"])
        .arg(&dir)
        .args(["--", "sh", "-c", "echo $SPIFFE_ENDPOINT_SOCKET; exit 42"]);
    let ran = process::run(&mut command, Duration::from_secs(10))?;
    ensure!(ran.code == 42, "{ran:?}");
    let endpoint = format!("unix://{}", dir.join("workload.sock").display());
    ensure!(ran.stdout.trim() == endpoint, "{ran:?}");
    drop(dev);
    Ok(())
}

#[test]
fn a_script_gets_the_identity_of_what_really_runs_it() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let home = temporary_directory("dev")?;
    let (dir, bin) = (home.path().join("i"), home.path().join("bin"));
    let mut command = Command::new(plastron()?);
    command.args(["dev", "--dir"]).arg(&dir);
    let dev = Process::start(&mut command, &home.path().join("dev.log"))?;
    until_ready(&dev)?;
    // The interpreter, found by env, is a program that uses the Workload API.
    std::fs::create_dir(&bin)?;
    std::fs::copy(plastron()?, bin.join("spire-agent"))?;
    let script = home.path().join("who");
    let socket = dir.join("workload.sock");
    std::fs::write(
        &script,
        format!(
            "#!/usr/bin/env -S spire-agent api fetch -socketPath {}\n",
            socket.display()
        ),
    )?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let start = |id: &str| {
        let mut command = Command::new(plastron()?);
        command.args(["run", "--id", id, "--dir"]).arg(&dir);
        command.arg("--").arg(&script).env("PATH", &bin);
        process::run(&mut command, Duration::from_secs(20))
    };
    let ran = start("web")?;
    ensure!(
        ran.succeeded()
            && ran.stdout.contains("spiffe://dev.local/web")
            && ran.stderr.contains("✔ spiffe://dev.local/web")
            && ran.stderr.contains("is run by"),
        "{ran:?}"
    );
    // Another identity for the same program: it has both, and that is said.
    let ran = start("web2")?;
    ensure!(
        ran.stderr
            .contains("registered as spiffe://dev.local/web too")
            && ran.stderr.contains("entry delete --entry-id"),
        "{ran:?}"
    );
    Ok(())
}
