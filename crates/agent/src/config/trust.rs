//! The keys that say whom to trust at first: exactly one of four. SPIRE: agent run.go, validate.

use std::path::PathBuf;

use config::Section;
use config::fault::Code;

use super::{BootstrapConfig, BundleFormat, Overrides, TrustSource};

/// Query parameters that the agent sets itself.
const RESERVED: [&str; 2] = ["spire-", "spiffe-"];

pub(super) fn read(agent: &Section, flags: &Overrides) -> Option<BootstrapConfig> {
    let written = Written {
        insecure: agent.boolean("insecure_bootstrap"),
        path: agent
            .non_empty_string("trust_bundle_path")
            .map(PathBuf::from),
        url: agent.non_empty_string("trust_bundle_url"),
        unix_socket: agent
            .non_empty_string("trust_bundle_unix_socket")
            .map(PathBuf::from),
        workload_api: agent.non_empty_string("trust_bundle_spiffe_workload_api"),
    };
    let format = format(agent, flags);
    let path = flags.trust_bundle_path.clone().or(written.path);
    let url = flags.trust_bundle_url.clone().or(written.url);
    let insecure = flags
        .insecure_bootstrap
        .or(written.insecure)
        .unwrap_or(false);

    let mut named = Vec::new();
    named.extend(insecure.then_some("insecure_bootstrap"));
    named.extend(path.as_ref().map(|_| "trust_bundle_path"));
    named.extend(url.as_ref().map(|_| "trust_bundle_url"));
    named.extend(
        written
            .workload_api
            .as_ref()
            .map(|_| "trust_bundle_spiffe_workload_api"),
    );
    if named.len() > 1 {
        let key = named.last().copied().unwrap_or_default();
        agent.fault(
            Code::ConflictingKeys,
            key,
            format!("only one of {} may be set", named.join(", ")),
            "keep the one that the node is to verify its server with",
        );
        return None;
    }
    if written.unix_socket.is_some() && url.is_none() {
        agent.fault(
            Code::ConflictingKeys,
            "trust_bundle_unix_socket",
            "trust_bundle_unix_socket needs trust_bundle_url",
            "trust_bundle_url = \"http://localhost/bundle\"",
        );
        return None;
    }
    let source = if insecure {
        TrustSource::Insecure
    } else if let Some(path) = path {
        TrustSource::Path(path)
    } else if let Some(url) = url {
        check_url(agent, &url, flags, written.unix_socket.is_some())?;
        TrustSource::Url {
            url,
            unix_socket: written.unix_socket,
        }
    } else if let Some(address) = written.workload_api {
        workload_api(agent, &address)?
    } else {
        agent.fault(
            Code::NoBootstrapBundle,
            "trust_bundle_path",
            "no bootstrap trust source is configured",
            "set trust_bundle_path, trust_bundle_url, trust_bundle_spiffe_workload_api or insecure_bootstrap",
        );
        return None;
    };
    Some(BootstrapConfig {
        source,
        format: format?,
    })
}

struct Written {
    insecure: Option<bool>,
    path: Option<PathBuf>,
    url: Option<String>,
    unix_socket: Option<PathBuf>,
    workload_api: Option<String>,
}

fn format(agent: &Section, flags: &Overrides) -> Option<BundleFormat> {
    let written = agent.string("trust_bundle_format");
    match flags.trust_bundle_format.clone().or(written).as_deref() {
        None | Some("" | "pem") => Some(BundleFormat::Pem),
        Some("spiffe") => Some(BundleFormat::Spiffe),
        Some(other) => {
            agent.fault_of_value(
                "trust_bundle_format",
                flags.trust_bundle_format.is_some(),
                format!("\"{other}\" is not a bundle format"),
                "pem or spiffe",
            );
            None
        }
    }
}

fn check_url(agent: &Section, url: &str, flags: &Overrides, over_socket: bool) -> Option<()> {
    let is_flag = flags.trust_bundle_url.is_some();
    let parsed = match reqwest::Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => {
            agent.fault_of_value(
                "trust_bundle_url",
                is_flag,
                format!("trust_bundle_url is not a URL: {error}"),
                "trust_bundle_url = \"https://…\"",
            );
            return None;
        }
    };
    let scheme = if over_socket { "http" } else { "https" };
    if parsed.scheme() != scheme {
        let why = if over_socket {
            " when trust_bundle_unix_socket is set"
        } else {
            ""
        };
        agent.fault_of_value(
            "trust_bundle_url",
            is_flag,
            format!("trust_bundle_url must start with {scheme}://{why}"),
            "",
        );
        return None;
    }
    if over_socket
        && let Some((name, _)) = parsed
            .query_pairs()
            .find(|(name, _)| RESERVED.iter().any(|prefix| name.starts_with(prefix)))
    {
        agent.fault_of_value(
            "trust_bundle_url",
            is_flag,
            format!("trust_bundle_url may not set the query parameter {name}"),
            "names that begin with spire- or spiffe- are the agent's own",
        );
        return None;
    }
    Some(())
}

fn workload_api(agent: &Section, address: &str) -> Option<TrustSource> {
    match spiffe::socket_addr::parse_endpoint(address) {
        Ok(spiffe::socket_addr::Endpoint::Unix(path)) => Some(TrustSource::WorkloadApi(path)),
        Ok(_) => {
            agent.fault(
                Code::NotYetSupported,
                "trust_bundle_spiffe_workload_api",
                "a Workload API over TCP is not yet supported here",
                "unix:///run/agent.sock",
            );
            None
        }
        Err(error) => {
            agent.fault_at(
                "trust_bundle_spiffe_workload_api",
                format!("\"{address}\" is not a Workload API address: {error}"),
                "unix:///run/agent.sock",
            );
            None
        }
    }
}
