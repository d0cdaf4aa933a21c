//! Which socket a command talks to: flag > `-instance` through a template > environment > default, as SPIRE resolves
//! it; natively `SPIFFE_ENDPOINT_SOCKET` counts for the Workload API too (SPIFFE_Workload_Endpoint §4).

use std::os::unix::net::UnixStream;

use config::fault::{Code, Fault};
use daemon::runtime_dir::SocketName;
use spiffe::socket_addr::{Endpoint, parse_endpoint};

use super::args::Args;
use super::command::{self, INSTANCE, SOCKET_PATH};
use super::context::Frontend;
use super::error::CliError;
use super::output;
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
    endpoint: Option<command::Endpoint>,
    args: &Args,
    frontend: Frontend,
    env: Env<'_>,
) -> Result<Socket, CliError> {
    let Some(endpoint) = endpoint else {
        return Ok(Socket::default());
    };
    let (name, spire, template, variable) = match endpoint {
        command::Endpoint::ServerAdmin => (
            SocketName::ServerAdmin,
            SERVER_ADMIN,
            "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE",
            "SPIRE_SERVER_PRIVATE_SOCKET",
        ),
        command::Endpoint::Workload => (
            SocketName::Workload,
            WORKLOAD,
            "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE",
            "SPIRE_AGENT_PUBLIC_SOCKET",
        ),
        command::Endpoint::AgentAdmin => {
            return match args.optional(SOCKET_PATH) {
                Some(path) if args.given(SOCKET_PATH) => address(path, FLAG, frontend),
                path => Ok(default_socket(
                    SocketName::AgentAdmin,
                    path.unwrap_or(AGENT_ADMIN),
                    frontend,
                )),
            };
        }
    };
    let flag = args.get(SOCKET_PATH);
    // (SPIRE: the flag with its default's value counts as not given.)
    if args.given(SOCKET_PATH) && (frontend == Frontend::Native || flag != spire) {
        return address(flag, FLAG, frontend);
    }
    if let Some(instance) = args.optional(INSTANCE) {
        return from_template(template, instance, frontend, env);
    }
    if let Some(path) = env(variable).filter(|path| !path.is_empty()) {
        return address(&path, variable, frontend);
    }
    if endpoint == command::Endpoint::Workload
        && frontend == Frontend::Native
        && let Some(path) = env(STANDARD).filter(|path| !path.is_empty())
    {
        return address(&path, STANDARD, frontend);
    }
    Ok(default_socket(name, spire, frontend))
}

fn default_socket(name: SocketName, spire: &str, frontend: Frontend) -> Socket {
    let path = match frontend {
        Frontend::Native => name.to_connect().display().to_string(),
        Frontend::Spire => spire.to_owned(),
    };
    Socket {
        path,
        from: DEFAULT,
    }
}

/// A socket that somebody named. (SPIRE takes any text for a path.)
pub(crate) fn address(
    text: &str,
    from: &'static str,
    frontend: Frontend,
) -> Result<Socket, CliError> {
    let path = match frontend {
        Frontend::Spire => strip_scheme(text).to_owned(),
        Frontend::Native => native_path(text).map_err(|why| {
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
pub(crate) fn or_development(endpoint: Option<command::Endpoint>, socket: Socket) -> Socket {
    if socket.from != DEFAULT || UnixStream::connect(&socket.path).is_ok() {
        return socket;
    }
    let instance = DevDirectory::new(None);
    let path = match endpoint {
        Some(command::Endpoint::ServerAdmin) => instance.server_socket(),
        Some(command::Endpoint::Workload) => instance.workload_socket(),
        Some(command::Endpoint::AgentAdmin) | None => return socket,
    };
    if instance.is_live() {
        // Another server and another trust domain than the caller may have meant.
        output::say(&format!(
            "note: nobody answers at {}; `plastron dev` at {} does",
            socket.path,
            path.display()
        ));
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
    frontend: Frontend,
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
    address(&text.replace("%i", instance), template, frontend)
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
    use crate::cli::args::Value;
    use crate::cli::command::{Endpoint, INSTANCE, SOCKET_PATH};
    use crate::cli::context::Frontend;
    use crate::cli::flag::Flag;

    fn with_default(path: &str) -> Args {
        let mut args = Args::default();
        args.set_default(&SOCKET_PATH.spec, Value::Text(path.to_owned()));
        args
    }

    fn args(flags: &[(Flag<String>, &str)]) -> Args {
        let args = with_default(super::SERVER_ADMIN);
        flags
            .iter()
            .fold(args, |args, (flag, text)| args.with(*flag, text))
    }

    fn server(flags: &[(Flag<String>, &str)], env: &[(&str, &str)]) -> Result<String, String> {
        let lookup = |name: &str| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        resolve(
            Some(Endpoint::ServerAdmin),
            &args(flags),
            Frontend::Spire,
            &lookup,
        )
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
            server(&[(SOCKET_PATH, "/flag"), (INSTANCE, "a")], &env).unwrap(),
            "/flag"
        );
        assert_eq!(server(&[(INSTANCE, "a")], &env).unwrap(), "/t/a");
        assert_eq!(server(&[], &env).unwrap(), "/env");
        assert_eq!(server(&[], &[]).unwrap(), super::SERVER_ADMIN);
    }

    #[test]
    fn an_instance_without_a_usable_template_is_refused() {
        assert!(
            server(&[(INSTANCE, "a")], &[])
                .unwrap_err()
                .contains("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE")
        );
        let env = [("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE", "/t")];
        assert!(server(&[(INSTANCE, "a")], &env).unwrap_err().contains("%i"));
    }

    fn workload(frontend: Frontend, variable: &str) -> Result<super::Socket, String> {
        let lookup = |name: &str| (name == "SPIFFE_ENDPOINT_SOCKET").then(|| variable.to_owned());
        let args = with_default(super::WORKLOAD);
        resolve(Some(Endpoint::Workload), &args, frontend, &lookup)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_spiffe_variable_names_the_workload_socket_natively() {
        let socket = workload(Frontend::Native, "unix:///run/w.sock").unwrap();
        assert_eq!(
            (socket.path.as_str(), socket.from),
            ("/run/w.sock", "SPIFFE_ENDPOINT_SOCKET")
        );
        assert_eq!(
            workload(Frontend::Spire, "unix:///run/w.sock")
                .unwrap()
                .path,
            super::WORKLOAD
        );
    }

    #[test]
    fn each_form_of_one_path_is_that_path() {
        for address in ["/run/w.sock", "unix:/run/w.sock", "unix:///run/w.sock"] {
            assert_eq!(
                workload(Frontend::Native, address).unwrap().path,
                "/run/w.sock"
            );
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
            let fault = workload(Frontend::Native, address).unwrap_err();
            assert!(fault.contains("PLA-1009"), "{address}: {fault}");
        }
    }
}
