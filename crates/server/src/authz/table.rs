//! The table of who may call what: method × class. What is not listed here is not served.
//!
//! SPIRE: the default policy data of its authorization engine, row for row, plus our own watch.

/// The classes of caller that a method lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed(u8);

impl Allowed {
    /// Whoever can connect.
    pub(crate) const ANY: Self = Self(1);
    /// Whoever may open the admin socket.
    pub(crate) const LOCAL: Self = Self(1 << 1);
    /// A remote administrator.
    pub(crate) const ADMIN: Self = Self(1 << 2);
    /// A live attested agent.
    pub(crate) const AGENT: Self = Self(1 << 3);
    /// A server below this one.
    pub(crate) const DOWNSTREAM: Self = Self(1 << 4);
    const OPERATOR: Self = Self(Self::LOCAL.0 | Self::ADMIN.0);
    const OPERATOR_OR_AGENT: Self = Self(Self::OPERATOR.0 | Self::AGENT.0);

    pub(crate) fn lets_in(self, class: Self) -> bool {
        self.0 & class.0 != 0
    }
}

/// The row of a method, given as in the request line: `/package.Service/Method`.
pub(crate) fn row(method: &str) -> Option<(&'static str, Allowed)> {
    TABLE
        .binary_search_by(|(name, _)| (*name).cmp(method))
        .ok()
        .and_then(|row| TABLE.get(row))
        .copied()
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
const TABLE: &[(&str, Allowed)] = &[
    ("/grpc.health.v1.Health/Check", Allowed::LOCAL),
    ("/grpc.health.v1.Health/List", Allowed::LOCAL),
    ("/grpc.health.v1.Health/Watch", Allowed::LOCAL),
    ("/plastron.server.v1.Watch/Watch", Allowed::AGENT),
    ("/spire.api.server.agent.v1.Agent/AttestAgent", Allowed::ANY),
    ("/spire.api.server.agent.v1.Agent/BanAgent", Allowed::OPERATOR),
    ("/spire.api.server.agent.v1.Agent/CountAgents", Allowed::OPERATOR),
    ("/spire.api.server.agent.v1.Agent/CreateJoinToken", Allowed::OPERATOR),
    ("/spire.api.server.agent.v1.Agent/DeleteAgent", Allowed::OPERATOR),
    ("/spire.api.server.agent.v1.Agent/GetAgent", Allowed::OPERATOR),
    ("/spire.api.server.agent.v1.Agent/ListAgents", Allowed::OPERATOR),
    ("/spire.api.server.agent.v1.Agent/PostStatus", Allowed::AGENT),
    ("/spire.api.server.agent.v1.Agent/RenewAgent", Allowed::AGENT),
    ("/spire.api.server.bundle.v1.Bundle/AppendBundle", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/CountBundles", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/GetBundle", Allowed::ANY),
    ("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", Allowed::OPERATOR_OR_AGENT),
    ("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", Allowed::OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", Allowed::DOWNSTREAM),
    ("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", Allowed::DOWNSTREAM),
    ("/spire.api.server.debug.v1.Debug/GetInfo", Allowed::LOCAL),
    ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", Allowed::OPERATOR),
    ("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", Allowed::OPERATOR),
    ("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", Allowed::OPERATOR),
    ("/spire.api.server.entry.v1.Entry/CountEntries", Allowed::OPERATOR),
    ("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", Allowed::AGENT),
    ("/spire.api.server.entry.v1.Entry/GetEntry", Allowed::OPERATOR),
    ("/spire.api.server.entry.v1.Entry/ListEntries", Allowed::OPERATOR),
    ("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", Allowed::AGENT),
    ("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", Allowed::OPERATOR),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", Allowed::OPERATOR),
    ("/spire.api.server.logger.v1.Logger/GetLogger", Allowed::LOCAL),
    ("/spire.api.server.logger.v1.Logger/ResetLogLevel", Allowed::LOCAL),
    ("/spire.api.server.logger.v1.Logger/SetLogLevel", Allowed::LOCAL),
    ("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", Allowed::AGENT),
    ("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", Allowed::AGENT),
    ("/spire.api.server.svid.v1.SVID/MintJWTSVID", Allowed::OPERATOR),
    ("/spire.api.server.svid.v1.SVID/MintWITSVID", Allowed::OPERATOR),
    ("/spire.api.server.svid.v1.SVID/MintX509SVID", Allowed::OPERATOR),
    ("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", Allowed::DOWNSTREAM),
    ("/spire.api.server.svid.v1.SVID/NewJWTSVID", Allowed::AGENT),
    ("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", Allowed::OPERATOR),
    ("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", Allowed::OPERATOR),
    ("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", Allowed::OPERATOR),
    ("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", Allowed::OPERATOR),
    ("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", Allowed::OPERATOR),
    ("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", Allowed::OPERATOR),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sorted_and_without_doubles() {
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(TABLE.len(), 66);
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
            .filter(|(_, allowed)| allowed.lets_in(Allowed::AGENT))
            .count();
        assert_eq!(for_agents, 9);
        assert!(
            !row("/spire.api.server.svid.v1.SVID/MintX509SVID")
                .unwrap()
                .1
                .lets_in(Allowed::AGENT)
        );
        assert!(
            !row("/spire.api.server.agent.v1.Agent/BanAgent")
                .unwrap()
                .1
                .lets_in(Allowed::AGENT)
        );
        assert!(
            !row("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA")
                .unwrap()
                .1
                .lets_in(Allowed::ADMIN)
        );
    }

    #[test]
    fn opens_two_methods_to_anybody() {
        let open: Vec<_> = TABLE
            .iter()
            .filter(|(_, allowed)| allowed.lets_in(Allowed::ANY))
            .map(|(name, _)| *name)
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
