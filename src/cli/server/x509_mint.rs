//! `x509 mint`: an X509-SVID for any ID of the trust domain, with a key made here.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use serde_json::json;
use spiffe::clock::from_unix;
use spiffe::{KeyPair, KeyType, Subject, build_csr};

use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::context::{Context, Frontend};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{self, Output};
use crate::cli::{ids, pem, timefmt};

const SPIFFE_ID: Flag<String> =
    Flag::text("spiffeID", "spiffe-id", "SPIFFE ID of the X509-SVID").value("SPIFFE-ID");
const TTL: Flag<Duration> = Flag::duration(
    "ttl",
    "ttl",
    "Its lifetime; the server's default when absent",
);
const DNS: Flag<Vec<String>> = Flag::list(
    "dns",
    "dns",
    "DNS name in the X509-SVID; may be given several times",
)
.value("NAME");
const WRITE: Flag<String> = Flag::text(
    "write",
    "write",
    "Directory for svid.pem, key.pem and bundle.pem, in place of standard output",
)
.value("DIRECTORY");

const FLAGS: &[FlagSpec] = &[SPIFFE_ID.spec, TTL.spec, DNS.spec, WRITE.spec];

pub(crate) const COMMAND: Command = Command::of_server(
    &["x509", "mint"],
    "Mint an X509-SVID, with a key made on this machine",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples("  plastron server x509 mint --spiffe-id web --ttl 1h --write .");

/// Whole seconds, rounded up, as SPIRE sends them.
pub(super) fn ttl_seconds(args: &Args) -> Result<i32, CliError> {
    let ttl = args.get(TTL);
    let seconds = ttl
        .as_secs()
        .saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i32::try_from(seconds)
        .map_err(|_overflow| CliError::usage("invalid value for TTL: it is longer than 68 years"))
}

/// Whether less is left than was asked for. (SPIRE: since ends are whole seconds, its CLI says so of most SVIDs;
/// natively the part of a second does not count.)
pub(super) fn is_capped(context: &Context, expires_at: i64, args: &Args) -> bool {
    let left = from_unix(expires_at)
        .duration_since(context.clock.now())
        .unwrap_or_default();
    let tolerance = match context.frontend {
        Frontend::Spire => Duration::ZERO,
        Frontend::Native => Duration::from_secs(2),
    };
    left + tolerance < args.get(TTL)
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    if args.optional(SPIFFE_ID).is_none() {
        return Err(CliError::usage_of(
            "spiffeID must be specified",
            "--spiffe-id must be specified",
        ));
    }
    let ttl = ttl_seconds(&args)?;
    let channel = context.channel().await?;
    let id = ids::text(Some(
        &ids::expand(&context, &channel, args.get(SPIFFE_ID)).await?,
    ));
    let key = KeyPair::generate(KeyType::EcP256)
        .map_err(|error| CliError::failed(format!("unable to generate key: {error}")))?;
    let dns = args.get(DNS);
    let csr = build_csr(&key, &Subject::default(), &[id.as_str()], dns)
        .map_err(|error| CliError::failed(format!("unable to generate CSR: {error}")))?;
    let svid = SvidClient::new(channel.clone())
        .mint_x509svid(MintX509svidRequest { csr, ttl })
        .await
        .map_err(|status| CliError::status("unable to mint SVID", status))?
        .into_inner()
        .svid
        .filter(|svid| !svid.cert_chain.is_empty())
        .ok_or_else(|| CliError::failed("server response missing SVID chain"))?;
    let bundle = BundleClient::new(channel)
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(|status| CliError::status("unable to get bundle", status))?
        .into_inner();
    if bundle.x509_authorities.is_empty() {
        return Err(CliError::failed("server response missing X509 Authorities"));
    }
    if is_capped(&context, svid.expires_at, &args) {
        output::say(&format!(
            "X509-SVID lifetime was capped shorter than specified ttl; expires {:?}",
            timefmt::rfc3339(svid.expires_at)
        ));
    }
    let roots: Vec<&[u8]> = bundle
        .x509_authorities
        .iter()
        .map(|authority| authority.asn1.as_slice())
        .collect();
    let chain: Vec<&[u8]> = svid.cert_chain.iter().map(Vec::as_slice).collect();
    let key = key
        .to_pkcs8_der()
        .map_err(|error| CliError::failed(error.to_string()))?;
    let minted = Minted {
        chain,
        key: key.expose(),
        roots,
    };
    match args.optional(WRITE) {
        Some(directory) => minted.write(Path::new(directory)),
        None => Ok(minted.show(&context)),
    }
}

struct Minted<'m> {
    chain: Vec<&'m [u8]>,
    key: &'m [u8],
    roots: Vec<&'m [u8]>,
}

impl Minted<'_> {
    fn write(&self, directory: &Path) -> Result<Output, CliError> {
        let (svid, key, bundle) = (
            directory.join("svid.pem"),
            directory.join("key.pem"),
            directory.join("bundle.pem"),
        );
        let context = |what: &'static str| {
            move |error: CliError| error.within(&format!("unable to write {what}"))
        };
        pem::write_file(&svid, &pem::certificates(self.chain.iter().copied()), false)
            .map_err(context("SVID"))?;
        pem::write_file(&key, &pem::block("PRIVATE KEY", self.key), true)
            .map_err(context("key"))?;
        pem::write_file(
            &bundle,
            &pem::certificates(self.roots.iter().copied()),
            false,
        )
        .map_err(context("bundle"))?;
        let text = format!(
            "X509-SVID written to {}\nPrivate key written to {}\nRoot CAs written to {}\n",
            svid.display(),
            key.display(),
            bundle.display()
        );
        Ok(Output {
            replies: vec![json!({"svid": svid, "key": key, "bundle": bundle})],
            ..Output::text(text)
        })
    }

    /// The private key is the reply here: the user asked for it on standard output.
    fn show(&self, context: &Context) -> Output {
        if context.prints_data() {
            let encode = |der: &[u8]| base64::engine::general_purpose::STANDARD.encode(der);
            let reply = json!({
                "x509_svid": self.chain.iter().map(|der| encode(der)).collect::<Vec<_>>(),
                "private_key": encode(self.key),
                "root_cas": self.roots.iter().map(|der| encode(der)).collect::<Vec<_>>(),
            });
            return Output {
                replies: vec![reply],
                ..Output::default()
            };
        }
        Output::text(format!(
            "X509-SVID:\n{}\nPrivate key:\n{}\nRoot CAs:\n{}\n",
            pem::certificates(self.chain.iter().copied()),
            pem::block("PRIVATE KEY", self.key),
            pem::certificates(self.roots.iter().copied())
        ))
    }
}
