//! The codes, their exit codes and the text behind `plastron help PLA-nnnn`.
//!
//! Ranges: 10xx connection and command line, 11xx node attestation, 12xx configuration, 13xx start of a daemon,
//! 20xx registration, 21xx workloads. A number once given is never given to something else:
//! 1331 and 2106 are retired.

use std::fmt;

/// What a process tells its caller by its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Internal = 1,
    Usage = 2,
    NotFound = 3,
    Denied = 4,
    Conflict = 5,
    Unreachable = 6,
    CheckFailed = 7,
    Timeout = 8,
}

macro_rules! codes {
    ($($name:ident = $number:literal, $exit:ident, $title:literal, $help:literal;)*) => {
        /// The kinds of fault that Plastron tells apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $title] $name,)* }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// `PLA-nnnn`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => concat!("PLA-", stringify!($number)),)* }
            }

            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            pub const fn exit(self) -> Exit {
                match self { $(Self::$name => Exit::$exit,)* }
            }

            /// One line for a list of codes.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// The explanation that `plastron help PLA-nnnn` prints.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }
        }
    };
}

impl Code {
    pub const fn exit_code(self) -> u8 {
        self.exit() as u8
    }

    /// Finds a code by `PLA-1203`, `pla1203` or `1203`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = match text.get(..3) {
            Some(prefix) if prefix.eq_ignore_ascii_case("PLA") => text.get(3..)?,
            _ => text,
        };
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.len() != 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u16 = digits.parse().ok()?;
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.number() == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

codes! {
    Internal = 1000, Internal, "a fault inside Plastron",
        "This should not happen. The `because` line shows what is known. Run the command again with \
         log level debug; when it happens again, report it with that output.";
    AgentUnreachable = 1001, Unreachable, "no agent answers at this socket",
        "Nothing listens on the Workload API socket that was asked. The message says where the path came from (a flag, \
         SPIFFE_ENDPOINT_SOCKET, or the default). Check that the agent runs on this host, that it uses the same socket_path, and \
         that this user may enter the socket's directory.";
    ServerUnreachable = 1002, Unreachable, "no server answers at this socket or address",
        "Nothing listens on the server's administration socket or address. Check that the server runs, that it uses the same \
         socket_path, and that this user may write to the socket: it is open to the server's own user and group only.";
    TimedOut = 1003, Timeout, "no answer in time",
        "The peer took the request but did not answer before the time limit. Look at its log and its load; a longer limit can be \
         given with -timeout.";
    PermissionDenied = 1004, Denied, "the server refused this caller",
        "The caller was known but may not make this call. Administration takes the local administration socket, or an X509-SVID \
         of an entry with `admin` set, or an ID listed in the server's admin_ids.";
    NotFound = 1005, NotFound, "the object does not exist",
        "The object that was named is not known to the server. List the objects of its kind and compare the ID, letter by letter.";
    AlreadyExists = 1006, Conflict, "the object exists already",
        "The object to be created exists, or the change collides with another. Show the existing object and update it, or \
         delete it first.";
    InvalidArgument = 1007, Usage, "the server found the request invalid",
        "The request reached the server, and a value in it is not allowed. The `because` line shows the server's message.";
    Usage = 1008, Usage, "the command line cannot be understood",
        "A flag or an argument is unknown, missing, of the wrong form, or conflicts with another. `plastron help COMMAND` shows \
         what the command takes.";
    BadSocketAddress = 1009, Usage, "an endpoint address is not of a known form",
        "An endpoint is written unix:///absolute/path or tcp://IP:port (a number, not a name). A plain absolute path is taken as \
         a Unix socket.";
    FileUnreadable = 1010, Usage, "a file given to the command cannot be read",
        "The file does not exist, is not readable for this user, or is not in the expected format. The `because` line shows the system's error.";
    FileUnwritable = 1011, Internal, "a file cannot be written",
        "The output could not be written: the directory is missing, not writable for this user, or the disk is full. No partial file was left behind.";
    NotOfferedByPeer = 1012, Internal, "the peer does not offer this call",
        "The server or agent answered that it does not know the call: it is older than this command, or it is configured without \
         the feature.";
    CheckFailed = 1013, CheckFailed, "a check found a fault",
        "The command ran, and what it looked at is not healthy or not valid. Each finding is printed above.";
    TooManyRequests = 1014, Unreachable, "the peer limits the rate of calls",
        "The peer refused the call because too many came in a short time. Wait and try again; the limits are keys of the peer's \
         configuration.";
    ConnectionLost = 1015, Unreachable, "the connection broke while a call was under way",
        "The peer closed the connection before it answered. It may have been restarted; whether a change was made can be seen by \
         looking at the object.";

    AttestationServerUnreachable = 1101, Unreachable, "the node cannot reach its server",
        "The agent could not connect to server_address:server_port. Check the name, the port, the route and firewalls between \
         them, for instance with `nc -vz HOST PORT`. The agent keeps trying; it has not been refused.";
    ServerNotTrusted = 1102, Denied, "the server is not the one this node is configured to trust",
        "The certificate the server showed does not chain to the bundle this node was given. Either the address leads to another \
         server, or the server was re-created since. If it was, fetch its bundle again and attest with a new token.";
    NoBootstrapBundle = 1103, Usage, "no trust bundle is configured, so the server cannot be verified",
        "Before the first contact an agent needs the server's bundle: trust_bundle_path (written by `plastron server bundle show` on the \
         server), trust_bundle_url, or, for testing only, insecure_bootstrap = true. Exactly one of them is to be set.";
    TrustDomainMismatch = 1104, Usage, "agent and server belong to different trust domains",
        "The trust_domain of the agent's configuration is not the server's. Correct the one that is wrong; a server's trust \
         domain cannot be changed once its database exists.";
    BootstrapBundleInvalid = 1105, Usage, "the bootstrap bundle cannot be used",
        "The file or document holds no certificate that can be read in the configured trust_bundle_format (pem or spiffe).";
    BootstrapUrlFailed = 1106, Unreachable, "the bootstrap bundle cannot be fetched",
        "trust_bundle_url did not give a bundle. The URL must be https with a certificate that this host trusts, and answer 200.";
    ClocksDiffer = 1107, Denied, "the clocks of this node and of the server differ",
        "By this node's clock the server's certificate has expired or is not valid yet, so the server cannot be verified. Compare \
         `date -u` on both machines and correct the clock that is wrong, best with NTP. If both agree, the server's own certificate \
         was not renewed: look at its log.";
    JoinTokenRefused = 1110, Denied, "the join token was refused",
        "A join token works once and for a limited time. The server says here only whether it was used, expired or unknown; which \
         node used it is in the server's log. Generate a new one with `plastron server token generate` on the server.";
    NoJoinToken = 1111, Usage, "the node has no join token",
        "The node attestor join_token needs a token for the first contact: the flag -joinToken, or join_token or join_token_file in \
         the configuration. Generate one with `plastron server token generate` on the server.";
    JoinTokenFileUnreadable = 1112, Usage, "the file with the join token cannot be read",
        "join_token_file names a file that cannot be read or that does not hold a token. It holds the token alone; blanks around \
         it are ignored.";
    AttestationDenied = 1113, Denied, "the server did not accept this node",
        "The node's attestation data was complete, but the server refused it. The reason is in the server's log.";
    AgentBanned = 1114, Denied, "this node is banned",
        "An operator banned this node; it gets no identity and serves none. To let it in again, evict it on the server \
         (`plastron server agent evict`) and attest it again.";
    AgentDataInvalid = 1115, Internal, "the agent's stored state cannot be used",
        "A file in the agent's data_dir is damaged or belongs to another trust domain. Move the directory aside and attest the node again.";
    AgentMustReattest = 1116, Denied, "the server no longer knows this node",
        "The node was evicted, its SVID expired, or the server's database was re-created. A node attestor that can attest again \
         does so by itself; with join_token, generate a new token and restart the agent with it.";

    ConfigUnreadable = 1201, Usage, "the configuration file cannot be read",
        "The file does not exist, is not readable for this user, is not UTF-8, or is larger than 4 MiB. The path can be given with \
         -config.";
    ConfigSyntax = 1202, Usage, "the configuration file has a syntax error",
        "The file is neither HCL nor JSON at the place that is marked. HCL: `key = value`, `block { … }`, `block \"label\" { … }`, \
         lists in brackets, strings in double quotes, comments with # or //. A file that starts with { is read as JSON.";
    UnknownKey = 1203, Usage, "the configuration has a key that does not exist",
        "No part of Plastron reads this key here. It is misspelt, in the wrong block, or of another version. Unknown keys are \
         refused, since a key that is silently ignored is a setting that silently is not in force.";
    NotYetSupported = 1204, Usage, "the configuration uses something that is not supported yet",
        "The key, block or plugin is known, but this version does not have it. Remove it, or see the release notes for the \
         version that brings it.";
    WrongType = 1205, Usage, "a configuration value is of the wrong type",
        "The key takes another kind of value: text in quotes, a number, true or false, a list in brackets, a block in braces, or a \
         duration such as \"1h30m\".";
    InvalidValue = 1206, Usage, "a configuration value is not allowed",
        "The value has the right type but cannot be used. The message says what is allowed.";
    MissingKey = 1207, Usage, "a required configuration key is missing",
        "The block lacks a key that has no default. The message names the key and an example of its value.";
    DuplicateKey = 1208, Usage, "a configuration key is set twice",
        "A key that takes one value is set more than once in the same block; only one of them could be in force. Keys are \
         compared without regard to case.";
    ConflictingKeys = 1209, Usage, "configuration keys exclude each other",
        "Two mutually exclusive keys are set, or one key needs another that is missing.";
    UnknownPlugin = 1210, Usage, "the configuration names a plugin that does not exist",
        "No plugin of this type has this name. The built-in plugins are listed in the documentation, one page each.";
    PluginCount = 1211, Usage, "too few or too many plugins of a type",
        "Some types need exactly one plugin (DataStore, KeyManager, an agent's NodeAttestor), some at most one \
         (UpstreamAuthority), an agent's WorkloadAttestor at least one.";

    AddressInUse = 1301, Conflict, "the port is in use",
        "Another process listens on the address. Stop it, or change bind_address or bind_port. `ss -ltnp` lists who listens.";
    BindFailed = 1302, Internal, "cannot listen on this address",
        "The system refused the address: it is not one of this host's, or the port is below 1024, which needs root or CAP_NET_BIND_SERVICE.";
    SocketInUse = 1303, Conflict, "the Unix socket is in use",
        "Another process answers on the socket: most likely this daemon runs already. Stop it, or give this one another \
         socket_path. A stale socket of the daemon's own user is replaced silently.";
    SocketUnusable = 1304, Usage, "the Unix socket cannot be created",
        "The directory of socket_path cannot be created or written, the path exists and is not a stale socket of the daemon's \
         own user, or it is longer than 107 bytes.";
    DataDirUnusable = 1305, Usage, "the data directory cannot be used",
        "data_dir does not exist and cannot be created, or this user may not write there. It should belong to the daemon's user with \
         mode 0700.";
    SocketDirectoryUnsafe = 1306, Usage, "others could replace the Unix socket",
        "A directory above the socket belongs to another user, or others can write to it. They could put a socket of their own in \
         its place and pass for this daemon. Each directory of the path has to belong to root or to the daemon's user and must not \
         be writable by others; a sticky directory such as /tmp may be, but what another user made in it is refused. Remove the \
         directory that is named if it is not yours, or set socket_path to a path below /run.";
    DatabaseUnreachable = 1310, Unreachable, "the database cannot be reached",
        "Nothing answers at the address in the connection string, or the database refused the user. Check host, port, user and password, for \
         instance with `psql`.";
    DatabaseLocked = 1311, Conflict, "the database is locked",
        "Another process holds the SQLite file. One SQLite database belongs to one server; use PostgreSQL for several.";
    DatabaseOfAnotherTrustDomain = 1312, Conflict, "the database belongs to another trust domain",
        "The database belongs to another trust domain than the one configured. Correct trust_domain, or use a new database.";
    DatabaseTooNew = 1313, Conflict, "the database was written by a newer version",
        "The schema is newer than this program knows. Run the newer version; databases are upgraded but never downgraded.";
    DatabaseFailed = 1314, Internal, "the database failed",
        "The database answered with an error that is not a matter of configuration. The `because` line shows its message.";
    DiskFull = 1315, Internal, "the disk is full",
        "A file could not be written for lack of space. What was acknowledged before is safe. Make room, then start again.";
    DatabaseReadOnly = 1316, Unreachable, "the database takes no writes",
        "The database answers but refuses writes: it is a standby, its administrator made it read-only, or the file or its file \
         system is. The server goes on issuing SVIDs; entries, agents and authorities cannot change until it is writable.";
    KeyFileUnreadable = 1320, Denied, "the key file cannot be read",
        "The file with the private keys exists but this user may not read it. It should belong to the daemon's user with mode \
         0600.";
    KeyFileInvalid = 1321, Internal, "the key file is damaged",
        "The file does not hold keys in the form this plugin writes. Restore it from a backup; or move it aside; new keys are then generated: a server then starts new authorities, an agent has to attest again.";
    KeyFileUnwritable = 1322, Internal, "the key file cannot be written",
        "A new key could not be stored: the directory is missing or not writable, or the disk is full. The former file is intact.";
    KeyFileInUse = 1323, Conflict, "another process uses the key file",
        "Two processes with one key file would overwrite each other's keys, so the second is refused. Stop the other one, or \
         configure another file.";
    UpstreamInvalid = 1330, Usage, "the upstream authority's certificate or key cannot be used",
        "The files of the upstream authority do not fit: the key is not the certificate's, the certificate is no CA or expired, or \
         the chain does not end in bundle_file_path.";
    KeyLost = 1332, Conflict, "the key manager lacks the key of an active authority",
        "The database names an active authority of this server whose key the key manager does not hold: the key file was lost, or \
         the database was restored without it. Restore the key file from a backup. If there is none, start the server once with \
         `--new-authorities`: it makes new authorities, and the former stay in the bundle until they expire, so that what they \
         signed stays valid. An agent that is away until its SVID expires has to attest again.";
    PluginFailed = 1333, Internal, "a plugin failed",
        "A plugin refused or could not do what was asked of it, and trying again does not help. The line `because` shows the \
         plugin's message; the plugin's configuration or what it works with has to be changed.";
    PluginUnavailable = 1334, Unreachable, "a plugin's service does not answer",
        "A plugin could not reach what it depends on. The line `because` shows the plugin's message. The call may succeed later.";

    InvalidSpiffeId = 2001, Usage, "this is not a SPIFFE ID",
        "A SPIFFE ID is spiffe://TRUST-DOMAIN/PATH: the trust domain in lower case; letters, digits, dots, dashes and underscores \
         in the path; no trailing slash. The short form is the path alone, without its first slash.";
    InvalidSelector = 2002, Usage, "this is not a selector",
        "A selector is TYPE:VALUE, for instance unix:uid:1000 or k8s:ns:shop. Neither part may be empty; the type has no colon.";
    UnknownSelectorType = 2003, Usage, "no attestor produces selectors of this type",
        "No attestor produces selectors of this type, so the entry could never match. Types are the names of plugins: \
         unix, k8s, docker and so on.";
    InvalidEntry = 2004, Usage, "the entry is not valid",
        "An entry needs a SPIFFE ID and a parent ID of this trust domain and at least one selector; DNS names, hint and lifetimes \
         have their own rules. The `because` line names the field.";
    EntryNotFound = 2005, NotFound, "there is no such entry",
        "No entry has this ID. `plastron server entry show` shows the entries; the ID is not the SPIFFE ID.";
    SimilarEntry = 2006, Conflict, "an entry with the same IDs and selectors exists",
        "Two entries may not have the same SPIFFE ID, parent ID and selectors. Update the one that exists.";
    UnknownParent = 2007, NotFound, "no node has this ID",
        "The parent ID is neither an attested node nor an alias of nodes, so no agent would ever serve the entry. `plastron server \
         agent list` shows the nodes.";
    UnknownFederatedTrustDomain = 2008, NotFound, "there is no bundle of this trust domain",
        "An entry can federate only with a trust domain whose bundle the server has. Set it with `plastron server bundle set` first.";
    AgentNotFound = 2009, NotFound, "there is no such node",
        "No attested node has this ID. `plastron server agent list` shows them.";
    BundleNotFound = 2010, NotFound, "there is no such bundle",
        "The server has no bundle of this trust domain. `plastron server bundle list` shows those it has.";
    BundleInUse = 2011, Conflict, "entries federate with this trust domain",
        "The bundle cannot be deleted while entries federate with its trust domain. Choose the mode: delete removes those entries \
         too, dissociate removes the trust domain from them.";
    InvalidTtl = 2012, Usage, "the lifetime is not allowed",
        "A lifetime is a whole number of seconds or a duration such as 1h, not negative, and at most 2147483647 seconds.";
    InvalidBundle = 2013, Usage, "the bundle cannot be read",
        "The document is neither PEM certificates nor a SPIFFE bundle, or an element of it is not allowed in a SPIFFE bundle.";
    EntryIdTaken = 2014, Conflict, "the entry ID is taken",
        "An entry with this ID exists. Leave the ID out to get a new one, or update the entry that exists.";

    NoIdentityIssued = 2101, Denied, "the agent has no identity for this process",
        "No entry matches the process, or none has reached this agent yet. Each selector of an entry must be among the selectors \
         of the process; `plastron server entry match --selector TYPE:VALUE` names the entries that match. The agent's log shows those of the \
         process's selectors that `log_selectors` names.";
    WorkloadGone = 2102, Denied, "the process exited during attestation",
        "The caller exited, or was replaced by another program, before its identity was established. Nothing was issued.";
    AgentNotReady = 2103, Unreachable, "the agent is not ready yet",
        "The agent runs but has not got its identity or its first entries from the server. `plastron agent healthcheck` reports when it is ready.";
    InvalidJwtSvid = 2104, Denied, "the JWT-SVID is not valid",
        "The token is not a JWT-SVID, is expired, is for another audience, or is not signed by a key of its trust domain's bundle.";
    NoAudience = 2105, Usage, "an audience is needed",
        "A JWT-SVID is issued for one or more audiences: name the service that will receive it.";
    WorkloadUnreadable = 2107, Denied, "the process cannot be examined",
        "The agent may not read what it needs of the caller's /proc entry, for instance the program's file. An agent that serves \
         other users' processes runs as root or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.";
}
