//! What stands below the flags in the native help: how a command is used.

/// Below the list of commands.
pub(crate) const OVERVIEW: &str = "\
First identity, in two terminals:
  plastron dev
  plastron run --id web -- CMD

A command is explained by `plastron help COMMAND`, an error code by `plastron help PLA-nnnn`.

Exit codes: 0 done, 1 internal fault, 2 usage or configuration, 3 not found, 4 denied, 5 conflict,
6 unreachable, 7 a check failed, 8 no answer in time, 130 interrupted.

Called as spire-server or spire-agent (a link to this program), it takes SPIRE's flags instead.";

/// Below the flags of one command, found by its words; empty for none.
pub(crate) fn of(words: &[&str]) -> &'static str {
    match words {
        ["server", "run"] => "\
Without a configuration file, --trust-domain and --data-dir are enough: the database (SQLite) and the keys are stored in the data directory, nodes attest with join tokens, and agents connect to port 8081.

  plastron server run --trust-domain example.org --data-dir /var/lib/plastron/server",
        ["agent", "run"] => "\
Without a configuration file, --trust-domain, --data-dir and --server-address are enough, together with a trust bundle to verify the server (--trust-bundle) and, for the first start, a join token. Keys are stored in the data directory, workloads are identified by user, group and program (unix), the server's port is 8081.

  plastron server bundle show > bundle.pem
  plastron agent run --trust-domain example.org --data-dir /var/lib/plastron/agent \\
    --server-address 10.0.0.5 --trust-bundle bundle.pem --join-token TOKEN",
        ["server", "validate"] | ["agent", "validate"] => "\
All problems are reported at once, with their place in the file. The exit code is 0 when there is none.",
        ["server", "token", "generate"] => "\
  plastron server token generate --ttl 10m
  plastron server token generate --spiffe-id nodes/web",
        ["server", "entry", "create"] => "\
A SPIFFE ID can be short: web is spiffe://TRUST-DOMAIN/web. Without --parent-id the parent is the
attested node, if there is exactly one.

  plastron server entry create --spiffe-id web --selector unix:uid:1000
  plastron server entry create --spiffe-id shop/api --selector unix:user:api --x509-svid-ttl 30m
  plastron server entry create --data entries.json",
        ["server", "entry", "show"] => "\
  plastron server entry show --spiffe-id web
  plastron server entry show --selector unix:uid:1000 -o json",
        ["server", "entry", "update"] => "\
The entry is replaced by what the flags say: what is not given returns to its default.",
        ["server", "agent", "purge"] => "  plastron server agent purge --expired-for 24h --dry-run",
        ["server", "bundle", "set"] => "  plastron server bundle set --id other.example --format spiffe --path other.json",
        ["server", "x509", "mint"] => "  plastron server x509 mint --spiffe-id web --ttl 1h --write .",
        ["server", "jwt", "mint"] => "  plastron server jwt mint --spiffe-id web --audience db --ttl 5m",
        ["server", "localauthority", _, "activate"] => "\
To rotate by hand: prepare; wait until every agent has the new bundle; activate; then, once nothing
uses what the old authority signed, taint and revoke it.",
        ["agent", "api", "fetch", "x509"] => "\
  plastron agent api fetch x509
  plastron agent api fetch x509 --silent --write /run/app",
        ["agent", "api", "fetch", "jwt"] => "  plastron agent api fetch jwt --audience db",
        ["dev"] => "\
Authorities live in memory and nothing listens beyond this machine; Ctrl-C removes everything.",
        ["run"] => "\
Registers the command by its user and its program, waits until its identity is there, sets
SPIFFE_ENDPOINT_SOCKET and becomes the command. Finds a running `plastron dev` by itself.

  plastron run --id web -- ./app --port 8080",
        ["help"] => "\
  plastron help server entry create
  plastron help PLA-1203
  plastron help codes",
        ["completions"] => "\
  plastron completions bash > /etc/bash_completion.d/plastron",
        ["man"] => "  plastron man /usr/local/share/man/man1",
        _ => "",
    }
}
