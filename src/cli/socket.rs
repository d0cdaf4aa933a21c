//! Which socket a command talks to: flag > `-instance` through a template > environment > default, as SPIRE resolves
//! it; natively `SPIFFE_ENDPOINT_SOCKET` counts for the Workload API too (SPIFFE_Workload_Endpoint §4).

use std::os::unix::net::UnixStream;

use config::fault::{Code, Fault};
use daemon::runtime_dir::SocketName;
use spiffe::socket_addr::{Endpoint, parse_endpoint};

use super::args::Args;
use super::context::Face;
use super::error::CliError;
use super::spec;
use super::tool::sockets::DevDirectory;

/// SPIRE's default sockets, which the shims use.
pub(crate) const SERVER_ADMIN: &str = "/tmp/spire-server/private/api.sock";
pub(crate) const WORKLOAD: &str = "/tmp/spire-agent/public/api.sock";
pub(crate) const AGENT_ADMIN: &str = "/tmp/spire-agent/private/admin.sock";

const FLAG: &str = "--socket-path";
const DEFAULT: &str = "the default";
/// `plastron dev` of this user.
pub(crate) const DEVELOPMENT: &str = "the development instance";
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
    endpoint: spec::Endpoint,
    args: &Args,
    face: Face,
    env: Env<'_>,
) -> Result<Socket, CliError> {
    let (name, spire, template, variable) = match endpoint {
        spec::Endpoint::ServerAdmin => (
            SocketName::ServerAdmin,
            SERVER_ADMIN,
            "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE",
            "SPIRE_SERVER_PRIVATE_SOCKET",
        ),
        spec::Endpoint::Workload => (
            SocketName::Workload,
            WORKLOAD,
            "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE",
            "SPIRE_AGENT_PUBLIC_SOCKET",
        ),
        spec::Endpoint::AgentAdmin => {
            return match args.optional("socketPath") {
                Some(path) if args.given("socketPath") => address(path, FLAG, face),
                path => Ok(default_socket(
                    SocketName::AgentAdmin,
                    path.unwrap_or(AGENT_ADMIN),
                    face,
                )),
            };
        }
        spec::Endpoint::None => return Ok(Socket::default()),
    };
    let flag = args.text("socketPath");
    // (SPIRE: the flag with its default's value counts as not given.)
    if args.given("socketPath") && (face == Face::Native || flag != spire) {
        return address(flag, FLAG, face);
    }
    if let Some(instance) = args.optional("instance") {
        return from_template(template, instance, face, env);
    }
    if let Some(path) = env(variable).filter(|path| !path.is_empty()) {
        return address(&path, variable, face);
    }
    if endpoint == spec::Endpoint::Workload
        && face == Face::Native
        && let Some(path) = env(STANDARD).filter(|path| !path.is_empty())
    {
        return address(&path, STANDARD, face);
    }
    Ok(default_socket(name, spire, face))
}

fn default_socket(name: SocketName, spire: &str, face: Face) -> Socket {
    let path = match face {
        Face::Native => name.to_connect().display().to_string(),
        Face::Shim => spire.to_owned(),
    };
    Socket {
        path,
        from: DEFAULT,
    }
}

/// A socket that somebody named. (SPIRE takes any text for a path.)
pub(crate) fn address(text: &str, from: &'static str, face: Face) -> Result<Socket, CliError> {
    let path = match face {
        Face::Shim => strip_scheme(text).to_owned(),
        Face::Native => native_path(text).map_err(|why| {
            CliError::from(
                Fault::new(
                    Code::BadSocketAddress,
                    format!("{text:?} is not the address of a Unix socket"),
                )
                .at(from)
                .because(why)
                .hint("write it unix:///path/to/the.sock, or as a plain path"),
            )
        })?,
    };
    Ok(Socket { path, from })
}

/// The path in `unix:///path`, `unix:/path` or a plain path; a reader of its own would take more than others do.
fn native_path(text: &str) -> Result<String, String> {
    let has_scheme = ["unix:", "tcp:"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
        || text.contains("://");
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if !has_scheme {
        return Ok(text.to_owned());
    }
    match parse_endpoint(text) {
        Ok(Endpoint::Unix(path)) => Ok(path.display().to_string()),
        Ok(_) => Err("only Unix sockets are supported here".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Natively, when nobody named a socket and nobody answers on the default one: that of the user's `plastron dev`.
pub(crate) fn or_development(kind: spec::Endpoint, socket: Socket) -> Socket {
    if socket.from != DEFAULT || UnixStream::connect(&socket.path).is_ok() {
        return socket;
    }
    let instance = DevDirectory::new(None);
    let path = match kind {
        spec::Endpoint::ServerAdmin => instance.server_socket(),
        spec::Endpoint::Workload => instance.workload_socket(),
        spec::Endpoint::AgentAdmin | spec::Endpoint::None => return socket,
    };
    if instance.is_live() {
        Socket {
            path: path.display().to_string(),
            from: DEVELOPMENT,
        }
    } else {
        socket
    }
}

fn from_template(
    template: &'static str,
    instance: &str,
    face: Face,
    env: Env<'_>,
) -> Result<Socket, CliError> {
    let Some(text) = env(template).filter(|text| !text.is_empty()) else {
        return Err(CliError::usage(format!(
            "you must define {template} to use the instance flag"
        )));
    };
    if !text.contains("%i") {
        return Err(CliError::usage(format!("failed to find %i in {template}")));
    }
    address(&text.replace("%i", instance), template, face)
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
    fn each_form_of_one_path_is_that_path() {
        for address in ["/run/w.sock", "unix:/run/w.sock", "unix:///run/w.sock"] {
            assert_eq!(workload(Face::Native, address).unwrap().path, "/run/w.sock");
        }
    }

    #[test]
    fn an_address_that_is_no_unix_socket_is_refused_natively() {
        for address in [
            "tcp://127.0.0.1:8000",
            "http://a",
            "unix:",
            "unix:relative",
            "unix://host/w.sock",
            "unix:///w.sock?x",
        ] {
            let fault = workload(Face::Native, address).unwrap_err();
            assert!(fault.contains("PLA-1009"), "{address}: {fault}");
        }
    }
}
