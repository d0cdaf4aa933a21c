//! Which socket a command talks to: flag > `-instance` through a template > environment > default, as SPIRE resolves
//! it; natively `SPIFFE_ENDPOINT_SOCKET` counts for the Workload API too (SPIFFE_Workload_Endpoint §4).

use super::args::Args;
use super::error::CliError;
use super::spec::Endpoint;

/// SPIRE's default sockets.
pub(crate) const SERVER_ADMIN: &str = "/tmp/spire-server/private/api.sock";
pub(crate) const WORKLOAD: &str = "/tmp/spire-agent/public/api.sock";
pub(crate) const AGENT_ADMIN: &str = "/tmp/spire-agent/private/admin.sock";

/// Reads an environment variable; a parameter so that tests need no process environment.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The path of the socket for `endpoint`.
pub(crate) fn resolve(endpoint: Endpoint, args: &Args, env: Env<'_>) -> Result<String, CliError> {
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
        Endpoint::AgentAdmin => return Ok(strip_scheme(args.text("socketPath")).to_owned()),
        Endpoint::None => return Ok(String::new()),
    };
    let flag = args.text("socketPath");
    if args.given("socketPath") && flag != default {
        return Ok(strip_scheme(flag).to_owned());
    }
    if let Some(instance) = args.optional("instance") {
        return from_template(template, instance, env);
    }
    if let Some(path) = env(variable).filter(|path| !path.is_empty()) {
        return Ok(strip_scheme(&path).to_owned());
    }
    if endpoint == Endpoint::Workload
        && let Some(address) = env("SPIFFE_ENDPOINT_SOCKET").filter(|address| !address.is_empty())
    {
        return Ok(strip_scheme(&address).to_owned());
    }
    Ok(flag.to_owned())
}

fn from_template(template: &str, instance: &str, env: Env<'_>) -> Result<String, CliError> {
    let Some(text) = env(template).filter(|text| !text.is_empty()) else {
        return Err(CliError::usage(format!(
            "-instance needs the environment variable {template}, which is not set"
        )));
    };
    if !text.contains("%i") {
        return Err(CliError::usage(format!(
            "environment variable {template} is {text:?}: it has no %i to put the instance in"
        )));
    }
    Ok(strip_scheme(&text.replace("%i", instance)).to_owned())
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
        resolve(Endpoint::ServerAdmin, &args(flags), &lookup).map_err(|error| error.to_string())
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

    #[test]
    fn the_spiffe_variable_names_the_workload_socket() {
        let lookup = |name: &str| {
            (name == "SPIFFE_ENDPOINT_SOCKET").then(|| "unix:///run/w.sock".to_owned())
        };
        let mut args = Args::default();
        args.set_default("socketPath", super::WORKLOAD);
        assert_eq!(
            resolve(Endpoint::Workload, &args, &lookup).unwrap(),
            "/run/w.sock"
        );
    }
}
