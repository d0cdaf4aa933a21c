//! TLS between the server and PostgreSQL: who is accepted, and who is refused for which reason.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use harness::{Database, PostgresServer, Server, ServerOptions};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use super::start_failures;

/// A certificate authority of the test's own.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Certificate and key, PEM.
    fn issue(
        &self,
        name: &str,
        hosts: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String)> {
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok((certificate, key.serialize_pem()))
    }
}

/// A database that takes `plastron` with a password and `certified` with a client certificate, both by TLS only.
fn database(authority: &Authority) -> Result<PostgresServer> {
    let mut database = PostgresServer::prepare()?;
    let (certificate, key) = authority.issue(
        "database",
        vec!["localhost".to_owned()],
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    let certificate = database.write("server.pem", certificate.as_bytes())?;
    let key = database.write("server.key", key.as_bytes())?;
    let roots = database.write("roots.pem", authority.certificate.as_bytes())?;
    database.configure(&format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'",
        certificate.display(),
        key.display(),
        roots.display()
    ))?;
    database.admit(
        "local all all scram-sha-256\nhostssl all certified 127.0.0.1/32 cert\nhostssl all plastron 127.0.0.1/32 scram-sha-256\n",
    )?;
    database.launch()?;
    database.execute("CREATE ROLE certified SUPERUSER LOGIN")?;
    Ok(database)
}

fn options(connection: String) -> ServerOptions {
    ServerOptions {
        database: Database::Postgres(connection),
        ..ServerOptions::default()
    }
}

/// What a server says that must end by itself, because it has no database.
fn refusal(connection: &str) -> Result<String> {
    let ran = start_failures::run(&Server::prepare(options(connection.to_owned()))?)?;
    start_failures::is_told(&ran, start_failures::UNREACHABLE, "PLA-1310")
        .with_context(|| connection.to_owned())?;
    Ok(ran.stderr)
}

fn file(directory: &Path, name: &str, content: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    std::fs::write(&path, content)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

#[test]
#[ignore = "needs PostgreSQL's programs"]
fn tls_with_the_database_accepts_and_refuses_by_its_mode() -> Result<()> {
    let (authority, other) = (Authority::new("right")?, Authority::new("wrong")?);
    let database = database(&authority)?;
    let files = tempfile::tempdir()?;
    let right = file(files.path(), "right.pem", &authority.certificate)?;
    let wrong = file(files.path(), "wrong.pem", &other.certificate)?;
    let client = |authority: &Authority, name: &str| {
        let (certificate, key) =
            authority.issue("certified", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
        let certificate = file(files.path(), &format!("{name}.pem"), &certificate)?;
        let key = file(files.path(), &format!("{name}.key"), &key)?;
        anyhow::Ok(format!(
            "user=certified sslcert={} sslkey={}",
            certificate.display(),
            key.display()
        ))
    };
    let known = client(&authority, "known")?;
    let unknown = client(&other, "unknown")?;
    let (by_name, by_address) = (
        database.tcp_string("localhost"),
        database.tcp_string("127.0.0.1"),
    );
    let roots = |path: &Path| format!("sslrootcert={}", path.display());
    for accepted in [
        format!("{by_name} sslmode=verify-full {}", roots(&right)),
        format!("{by_address} sslmode=verify-ca {}", roots(&right)),
        format!("{by_name} sslmode=require"),
        format!("{by_name} sslmode=verify-full {} {known}", roots(&right)),
    ] {
        let mut server = Server::start(options(accepted))?;
        server.token("spiffe://example.org/written")?;
        server.stop()?;
    }
    for (refused, because) in [
        (
            format!("{by_name} sslmode=verify-full {}", roots(&wrong)),
            "UnknownIssuer",
        ),
        (
            format!("{by_name} sslmode=require {}", roots(&wrong)),
            "UnknownIssuer",
        ),
        (
            format!("{by_address} sslmode=verify-full {}", roots(&right)),
            "not valid for name",
        ),
        (format!("{by_name} sslmode=verify-full"), "UnknownIssuer"),
        (format!("{by_name} sslmode=verify-ca"), "UnknownIssuer"),
        (format!("{by_name} sslmode=disable"), "no pg_hba.conf entry"),
        (
            format!(
                "{by_name} sslmode=verify-full {} user=certified",
                roots(&right)
            ),
            "client certificate",
        ),
        (
            format!("{by_name} sslmode=verify-full {} {unknown}", roots(&right)),
            "UnknownCA",
        ),
    ] {
        let error = refusal(&refused)?;
        ensure!(error.contains(because), "{refused}: {error}");
        ensure!(!error.contains("of-a-test"), "a password is shown: {error}");
    }
    Ok(())
}
