//! The table of who may call what: method × class. What is not listed here is not served.
//!
//! SPIRE: the default policy data of its authorization engine, row for row, plus our own watch.

/// The classes of caller that a method lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed(u8);

impl Allowed {
    /// Any peer that can connect.
    pub(crate) const ANY: Self = Self(1);
    /// Any process that may open the admin socket.
    pub(crate) const LOCAL: Self = Self(1 << 1);
    /// A remote administrator.
    pub(crate) const ADMIN: Self = Self(1 << 2);
    /// A live attested agent.
    pub(crate) const AGENT: Self = Self(1 << 3);
    /// A server below this one.
    pub(crate) const DOWNSTREAM: Self = Self(1 << 4);
    pub(crate) const ADMIN_OR_DOWNSTREAM: Self = Self(Self::ADMIN.0 | Self::DOWNSTREAM.0);
    const OPERATOR: Self = Self(Self::LOCAL.0 | Self::ADMIN.0);
    const OPERATOR_OR_AGENT: Self = Self(Self::OPERATOR.0 | Self::AGENT.0);

    pub(crate) fn lets_in(self, class: Self) -> bool {
        self.0 & class.0 != 0
    }
}

/// How long a method's call may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// One request, which must arrive within a time limit, and one answer.
    Unary,
    /// Requests and answers take turns for as long as the peer likes; how it went is known at its end.
    Conversation,
    /// Lasts for as long as the caller wants to hear of changes.
    Subscription,
}

/// What is fixed for a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// As in the request line: `/package.Service/Method`.
    pub(crate) method: &'static str,
    pub(crate) allowed: Allowed,
    pub(crate) lifetime: Lifetime,
}

impl Row {
    const fn unary(method: &'static str, allowed: Allowed) -> Self {
        Self {
            method,
            allowed,
            lifetime: Lifetime::Unary,
        }
    }

    const fn conversation(method: &'static str, allowed: Allowed) -> Self {
        Self {
            method,
            allowed,
            lifetime: Lifetime::Conversation,
        }
    }

    const fn subscription(method: &'static str, allowed: Allowed) -> Self {
        Self {
            method,
            allowed,
            lifetime: Lifetime::Subscription,
        }
    }

    /// The service and the name of the method.
    pub(crate) fn names(&self) -> (&'static str, &'static str) {
        self.method
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or(("", self.method))
    }
}

/// The row of a method, given as in the request line.
pub(crate) fn row(method: &str) -> Option<&'static Row> {
    TABLE
        .binary_search_by(|row| row.method.cmp(method))
        .ok()
        .and_then(|row| TABLE.get(row))
}

/// Every method that is served.
#[cfg(test)]
pub(crate) fn rows() -> &'static [Row] {
    TABLE
}

/// Services that exist on the admin socket only.
pub(crate) fn is_local_service(service: &str) -> bool {
    matches!(
        service,
        "spire.api.server.logger.v1.Logger"
            | "spire.api.server.debug.v1.Debug"
            | "grpc.health.v1.Health"
    )
}

/// Sorted, for the search above; a test holds it so.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row::unary("/grpc.health.v1.Health/Check", Allowed::LOCAL),
    Row::unary("/grpc.health.v1.Health/List", Allowed::LOCAL),
    Row::subscription("/grpc.health.v1.Health/Watch", Allowed::LOCAL),
    Row::subscription("/plastron.server.v1.Watch/Watch", Allowed::AGENT),
    Row::conversation("/spire.api.server.agent.v1.Agent/AttestAgent", Allowed::ANY),
    Row::unary("/spire.api.server.agent.v1.Agent/BanAgent", Allowed::OPERATOR),
    Row::unary("/spire.api.server.agent.v1.Agent/CountAgents", Allowed::OPERATOR),
    Row::unary("/spire.api.server.agent.v1.Agent/CreateJoinToken", Allowed::OPERATOR),
    Row::unary("/spire.api.server.agent.v1.Agent/DeleteAgent", Allowed::OPERATOR),
    Row::unary("/spire.api.server.agent.v1.Agent/GetAgent", Allowed::OPERATOR),
    Row::unary("/spire.api.server.agent.v1.Agent/ListAgents", Allowed::OPERATOR),
    Row::unary("/spire.api.server.agent.v1.Agent/PostStatus", Allowed::AGENT),
    Row::unary("/spire.api.server.agent.v1.Agent/RenewAgent", Allowed::AGENT),
    Row::unary("/spire.api.server.bundle.v1.Bundle/AppendBundle", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/CountBundles", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/GetBundle", Allowed::ANY),
    Row::unary("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", Allowed::OPERATOR_OR_AGENT),
    Row::unary("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", Allowed::OPERATOR),
    Row::unary("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", Allowed::DOWNSTREAM),
    Row::unary("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", Allowed::DOWNSTREAM),
    Row::unary("/spire.api.server.debug.v1.Debug/GetInfo", Allowed::LOCAL),
    Row::unary("/spire.api.server.entry.v1.Entry/BatchCreateEntry", Allowed::OPERATOR),
    Row::unary("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", Allowed::OPERATOR),
    Row::unary("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", Allowed::OPERATOR),
    Row::unary("/spire.api.server.entry.v1.Entry/CountEntries", Allowed::OPERATOR),
    Row::unary("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", Allowed::AGENT),
    Row::unary("/spire.api.server.entry.v1.Entry/GetEntry", Allowed::OPERATOR),
    Row::unary("/spire.api.server.entry.v1.Entry/ListEntries", Allowed::OPERATOR),
    Row::conversation("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", Allowed::AGENT),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", Allowed::OPERATOR),
    Row::unary("/spire.api.server.logger.v1.Logger/GetLogger", Allowed::LOCAL),
    Row::unary("/spire.api.server.logger.v1.Logger/ResetLogLevel", Allowed::LOCAL),
    Row::unary("/spire.api.server.logger.v1.Logger/SetLogLevel", Allowed::LOCAL),
    Row::unary("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", Allowed::AGENT),
    Row::unary("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", Allowed::AGENT),
    Row::unary("/spire.api.server.svid.v1.SVID/MintJWTSVID", Allowed::OPERATOR),
    Row::unary("/spire.api.server.svid.v1.SVID/MintWITSVID", Allowed::OPERATOR),
    Row::unary("/spire.api.server.svid.v1.SVID/MintX509SVID", Allowed::OPERATOR),
    Row::unary("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", Allowed::DOWNSTREAM),
    Row::unary("/spire.api.server.svid.v1.SVID/NewJWTSVID", Allowed::AGENT),
    Row::unary("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", Allowed::OPERATOR),
    Row::unary("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", Allowed::OPERATOR),
    Row::unary("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", Allowed::OPERATOR),
    Row::unary("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", Allowed::OPERATOR),
    Row::unary("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", Allowed::OPERATOR),
    Row::unary("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", Allowed::OPERATOR),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sorted_and_without_doubles() {
        assert!(TABLE.windows(2).all(|pair| pair[0].method < pair[1].method));
        assert_eq!(TABLE.len(), 66);
    }

    /// The text of all files below a directory.
    fn read(directory: &std::path::Path, texts: &mut Vec<String>) {
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                read(&path, texts);
            } else {
                texts.push(std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// The methods of all services of a .proto file, with whether their requests and answers are streams.
    fn declared(text: &str) -> Vec<(String, [bool; 2])> {
        // A declaration may go over several lines; a comment may hold words of one.
        let lines = text.lines().map(|line| line.split("//").next().unwrap());
        let text = lines.collect::<Vec<_>>().join(" ");
        let (mut package, mut service, mut methods) = ("", String::new(), Vec::new());
        for statement in text.split([';', '{', '}']) {
            let words: Vec<_> = statement.split_whitespace().collect();
            match words.as_slice() {
                ["package", name] => package = *name,
                ["service", name] => service = format!("{package}.{name}"),
                ["rpc", ..] => {
                    let (name, rest) = statement.split_once('(').unwrap();
                    let name = name.split_whitespace().nth(1).unwrap();
                    let (request, answer) = rest.split_once("returns").unwrap();
                    let streams = [request, answer].map(is_stream);
                    methods.push((format!("/{service}/{name}"), streams));
                }
                _ => {}
            }
        }
        methods
    }

    /// Of a type in parentheses, the opening one of which may be gone.
    fn is_stream(ty: &str) -> bool {
        let ty = ty.trim().trim_start_matches('(').trim_start();
        ty.starts_with("stream ")
    }

    #[test]
    fn has_a_row_for_each_method_that_the_protocol_files_declare_and_no_other() {
        let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
        let mut all = Vec::new();
        read(&files.join("spire/api/server"), &mut all);
        read(&files.join("plastron/server"), &mut all);
        let mut methods: Vec<_> = all.iter().flat_map(|text| declared(text)).collect();
        methods.sort();
        // The health service is another project's, and comes with tonic.
        let health = |row: &&Row| !row.method.starts_with("/grpc.health.v1.Health/");
        let served: Vec<_> = TABLE.iter().filter(health).collect();
        let served_names: Vec<_> = served.iter().map(|row| row.method).collect();
        let names: Vec<_> = methods.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(served_names, names);
        for (row, (_, streams)) in served.iter().zip(&methods) {
            let lifetime = match streams {
                [false, false] => Lifetime::Unary,
                [false, true] => Lifetime::Subscription,
                [true, _] => Lifetime::Conversation,
            };
            assert_eq!(row.lifetime, lifetime, "{}", row.method);
        }
    }

    #[test]
    fn refuses_what_it_does_not_list() {
        for method in [
            "",
            "/",
            "/spire.api.server.svid.v1.SVID/",
            "/spire.api.server.svid.v1.SVID/mintX509SVID",
            "spire",
        ] {
            assert_eq!(row(method), None, "{method}");
        }
    }

    #[test]
    fn lets_agents_in_where_agents_belong_and_nowhere_else() {
        let for_agents = TABLE
            .iter()
            .filter(|row| row.allowed.lets_in(Allowed::AGENT))
            .count();
        assert_eq!(for_agents, 9);
        assert!(
            !row("/spire.api.server.svid.v1.SVID/MintX509SVID")
                .unwrap()
                .allowed
                .lets_in(Allowed::AGENT)
        );
        assert!(
            !row("/spire.api.server.agent.v1.Agent/BanAgent")
                .unwrap()
                .allowed
                .lets_in(Allowed::AGENT)
        );
        assert!(
            !row("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA")
                .unwrap()
                .allowed
                .lets_in(Allowed::ADMIN)
        );
    }

    #[test]
    fn opens_two_methods_to_anybody() {
        let open: Vec<_> = TABLE
            .iter()
            .filter(|row| row.allowed.lets_in(Allowed::ANY))
            .map(|row| row.method)
            .collect();
        assert_eq!(
            open,
            [
                "/spire.api.server.agent.v1.Agent/AttestAgent",
                "/spire.api.server.bundle.v1.Bundle/GetBundle"
            ]
        );
    }
}
