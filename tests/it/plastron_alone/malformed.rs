//! Peers that send garbage, send slowly, or send nothing: memory stays bounded and the service goes on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Deployment, Process, id, rpc};

/// Connections that send nothing.
const IDLE: usize = 10_000;
/// What they may cost together. The program under test is a debug build.
const MEMORY: u64 = 256 << 20;
/// How long a call may take meanwhile.
const LIMIT: Duration = Duration::from_secs(60);

/// What nobody should send, first on a bare connection, then as HTTP/2.
fn garbage() -> Vec<Vec<u8>> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let with = |frames: &[u8]| [preface.as_slice(), frames].concat();
    vec![
        vec![0; 4096],
        vec![0xff; 70_000],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\xff\xff".to_vec(),
        with(&[0xff; 9]),
        // A SETTINGS frame of the largest length, cut off.
        with(&[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0, 1, 2, 3]),
        // HEADERS on stream 1 with a broken header block.
        with(&[0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
        // CONTINUATION without HEADERS.
        with(&[0, 0, 1, 9, 4, 0, 0, 0, 1, 0x82]),
        // RST_STREAM of an idle stream.
        with(&[0, 0, 4, 3, 0, 0, 0, 0, 7, 0, 0, 0, 8]),
    ]
}

trait Peer: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> Peer for T {}

/// Sends each kind of garbage on connections of their own, and waits for nothing but the end.
fn pester(connect: impl Fn() -> Result<Box<dyn Peer>>) -> Result<()> {
    for bytes in garbage() {
        for _ in 0..20 {
            let mut peer = connect()?;
            // The program may hang up at any byte.
            drop(peer.write_all(&bytes));
            drop(peer.read(&mut [0; 1024]));
        }
    }
    Ok(())
}

fn tcp(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn unix(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn works(deployment: &Deployment) -> Result<()> {
    deployment
        .server
        .json(&["entry", "count"])
        .context("the admin socket")?;
    deployment
        .agent
        .wait_for_ids(&[&id("/web")], LIMIT)
        .context("the Workload API")?;
    Ok(())
}

fn grown(process: &Process, before: u64) -> Result<()> {
    let now = process.resident()?;
    ensure!(
        now < before + MEMORY,
        "memory grew from {before} to {now} bytes"
    );
    Ok(())
}

#[test]
fn garbage_on_every_endpoint_hurts_nobody() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.register("/web")?;
    let before = [
        deployment.server.process()?.resident()?,
        deployment.agent.process()?.resident()?,
    ];
    let (address, admin, workload) = (
        deployment.server.address(),
        deployment.server.socket(),
        deployment.agent.socket(),
    );
    pester(|| Ok(Box::new(tcp(address)?)))?;
    pester(|| Ok(Box::new(unix(&admin)?)))?;
    pester(|| Ok(Box::new(unix(&workload)?)))?;
    works(&deployment)?;
    grown(deployment.server.process()?, before[0])?;
    grown(deployment.agent.process()?, before[1])
}

#[tokio::test]
async fn idle_connections_cost_little_and_the_service_goes_on() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.register("/web")?;
    let before = deployment.server.process()?.resident()?;
    let mut held: Vec<Box<dyn Peer + Send>> = Vec::new();
    for number in 0..IDLE {
        // Half say nothing, half begin a TLS hello and stop.
        let mut stream =
            tcp(deployment.server.address()).with_context(|| format!("TCP connection {number}"))?;
        if number % 2 == 0 {
            drop(stream.write_all(b"\x16\x03\x01"));
        }
        held.push(Box::new(stream));
    }
    works(&deployment).context("with idle TCP connections")?;
    let token = deployment.server.token(&id("/another"))?;
    rpc::attest(deployment.server.address(), &token)
        .await
        .context("an agent among idle connections")?;
    grown(deployment.server.process()?, before)?;
    held.clear();

    let before = deployment.agent.process()?.resident()?;
    for number in 0..IDLE {
        let mut stream =
            unix(&deployment.agent.socket()).with_context(|| format!("connection {number}"))?;
        if number % 2 == 0 {
            drop(stream.write_all(b"PRI * HTTP/2.0"));
        }
        held.push(Box::new(stream));
    }
    works(&deployment).context("with idle Workload API connections")?;
    grown(deployment.agent.process()?, before)?;
    held.clear();

    let before = deployment.server.process()?.resident()?;
    for number in 0..IDLE {
        held.push(Box::new(
            unix(&deployment.server.socket()).with_context(|| format!("connection {number}"))?,
        ));
    }
    works(&deployment).context("with idle admin connections")?;
    grown(deployment.server.process()?, before)
}
