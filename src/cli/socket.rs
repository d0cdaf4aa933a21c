//! Which socket a command talks to: flag > `-instance` through a template > environment > default, as SPIRE resolves
//! it; natively `SPIFFE_ENDPOINT_SOCKET` counts for the Workload API too (SPIFFE_Workload_Endpoint §4).

use config::fault::{Code, Fault};

use super::args::Args;
use super::context::Face;
use super::error::CliError;
use super::spec::Endpoint;

/// SPIRE's default sockets.
pub(crate) const SERVER_ADMIN: &str = "/tmp/spire-server/private/api.sock";
pub(crate) const WORKLOAD: &str = "/tmp/spire-agent/public/api.sock";
pub(crate) const AGENT_ADMIN: &str = "/tmp/spire-agent/private/admin.sock";

const FLAG: &str = "--socket-path";
const DEFAULT: &str = "the default";
/// SPIFFE_Workload_Endpoint §4.
const STANDARD: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Reads an environment variable; a parameter so that tests need no process environment.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A socket, and who named it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) path: String,
    /// The flag or variable, or `the default`.
    pub(crate) from: &'static str,
}

/// The socket for `endpoint`.
pub(crate) fn resolve(
    endpoint: Endpoint,
    args: &Args,
    face: Face,
    env: Env<'_>,
) -> Result<Socket, CliError> {
    let (default, template, variable) = match endpoint {
        Endpoint::ServerAdmin => (
            SERVER_ADMIN,
            "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE",
            "SPIRE_SERVER_PRIVATE_SOCKET",
        ),
        Endpoint::Workload => (
            WORKLOAD,
            "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE",
            "SPIRE_AGENT_PUBLIC_SOCKET",
        ),
        Endpoint::AgentAdmin => {
            return Ok(Socket {
                path: strip_scheme(args.text("socketPath")).to_owned(),
                from: if args.given("socketPath") {
                    FLAG
                } else {
                    DEFAULT
                },
            });
        }
        Endpoint::None => return Ok(Socket::default()),
    };
    let flag = args.text("socketPath");
    if args.given("socketPath") && flag != default {
        return address(flag, FLAG, face);
    }
    if let Some(instance) = args.optional("instance") {
        return from_template(template, instance, env);
    }
    if let Some(path) = env(variable).filter(|path| !path.is_empty()) {
        return address(&path, variable, face);
    }
    if endpoint == Endpoint::Workload
        && face == Face::Native
        && let Some(path) = env(STANDARD).filter(|path| !path.is_empty())
    {
        return address(&path, STANDARD, face);
    }
    Ok(Socket {
        path: flag.to_owned(),
        from: DEFAULT,
    })
}

/// Natively an address that names no Unix socket is a fault; SPIRE takes any text for a path.
fn address(text: &str, from: &'static str, face: Face) -> Result<Socket, CliError> {
    let path = strip_scheme(text);
    if face == Face::Native && (path.contains("://") || path.starts_with("tcp:") || path.is_empty())
    {
        return Err(Fault::new(
            Code::BadSocketAddress,
            format!("{text:?} is not the address of a Unix socket"),
        )
        .at(from)
        .hint("write it unix:///path/to/the.sock, or as a plain path")
        .into());
    }
    Ok(Socket {
        path: path.to_owned(),
        from,
    })
}

fn from_template(template: &'static str, instance: &str, env: Env<'_>) -> Result<Socket, CliError> {
    let Some(text) = env(template).filter(|text| !text.is_empty()) else {
        return Err(CliError::usage(format!(
            "you must define {template} to use the instance flag"
        )));
    };
    if !text.contains("%i") {
        return Err(CliError::usage(format!("failed to find %i in {template}")));
    }
    Ok(Socket {
        path: strip_scheme(&text.replace("%i", instance)).to_owned(),
        from: template,
    })
}

/// `unix:///a`, `unix:/a` and `/a` all name `/a`.
fn strip_scheme(address: &str) -> &str {
    match address.strip_prefix("unix:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::resolve;
    use crate::cli::args::Args;
    use crate::cli::context::Face;
    use crate::cli::spec::Endpoint;

    fn args(flags: &[(&'static str, &str)]) -> Args {
        let mut args = Args::default();
        args.set_default("socketPath", super::SERVER_ADMIN);
        for (name, value) in flags {
            args.set(name, (*value).to_owned());
        }
        args
    }

    fn server(flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<String, String> {
        let lookup = |name: &str| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        resolve(Endpoint::ServerAdmin, &args(flags), Face::Shim, &lookup)
            .map(|socket| socket.path)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_explicit_socket_wins_over_everything() {
        let env = [
            ("SPIRE_SERVER_PRIVATE_SOCKET", "/env"),
            ("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE", "/t/%i"),
        ];
        assert_eq!(
            server(&[("socketPath", "/flag"), ("instance", "a")], &env).unwrap(),
            "/flag"
        );
        assert_eq!(server(&[("instance", "a")], &env).unwrap(), "/t/a");
        assert_eq!(server(&[], &env).unwrap(), "/env");
        assert_eq!(server(&[], &[]).unwrap(), super::SERVER_ADMIN);
    }

    #[test]
    fn an_instance_without_a_usable_template_is_refused() {
        assert!(
            server(&[("instance", "a")], &[])
                .unwrap_err()
                .contains("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE")
        );
        let env = [("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE", "/t")];
        assert!(
            server(&[("instance", "a")], &env)
                .unwrap_err()
                .contains("%i")
        );
    }

    fn workload(face: Face, variable: &str) -> Result<super::Socket, String> {
        let lookup = |name: &str| (name == "SPIFFE_ENDPOINT_SOCKET").then(|| variable.to_owned());
        let mut args = Args::default();
        args.set_default("socketPath", super::WORKLOAD);
        resolve(Endpoint::Workload, &args, face, &lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn the_spiffe_variable_names_the_workload_socket_natively() {
        let socket = workload(Face::Native, "unix:///run/w.sock").unwrap();
        assert_eq!(
            (socket.path.as_str(), socket.from),
            ("/run/w.sock", "SPIFFE_ENDPOINT_SOCKET")
        );
        assert_eq!(
            workload(Face::Shim, "unix:///run/w.sock").unwrap().path,
            super::WORKLOAD
        );
    }

    #[test]
    fn an_address_that_is_no_unix_socket_is_refused_natively() {
        for address in ["tcp://127.0.0.1:8000", "http://a", "unix:"] {
            let fault = workload(Face::Native, address).unwrap_err();
            assert!(fault.contains("PLA-1009"), "{address}: {fault}");
        }
    }
}
