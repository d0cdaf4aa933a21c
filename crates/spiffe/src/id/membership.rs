//! What an ID is within a trust domain: a member, a workload or an agent.

use super::SpiffeId;
use crate::trust_domain::TrustDomain;

/// Why an ID is not what is needed. Texts: `SPIRE: pkg/server/api/id.go`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The ID is of another trust domain.
    #[error("{id:?} is not a member of trust domain {trust_domain:?}")]
    NotMember { id: String, trust_domain: String },
    /// The path is empty or in the wrong namespace.
    #[error("{id:?} is not {expected} trust domain {trust_domain:?}; {because}")]
    WrongPath {
        id: String,
        /// `a member of`, `a workload in` or `an agent in`.
        expected: &'static str,
        trust_domain: String,
        because: &'static str,
    },
}

impl SpiffeId {
    /// Checks that the ID is one of the trust domain and has a path.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub fn check_member(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        self.check_path_in(trust_domain, "a member of")
    }

    /// Checks that a workload of the trust domain may have the ID: it is outside the reserved namespace.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub fn check_workload(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        const WORKLOAD: &str = "a workload in";
        self.check_path_in(trust_domain, WORKLOAD)?;
        if self.is_reserved() {
            return Err(self.wrong_path(WORKLOAD, "path is in the reserved namespace"));
        }
        Ok(())
    }

    /// Checks that an agent of the trust domain may have the ID.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub fn check_agent(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        const AGENT: &str = "an agent in";
        self.check_path_in(trust_domain, AGENT)?;
        if !self.is_agent() {
            return Err(self.wrong_path(AGENT, "path is not in the agent namespace"));
        }
        Ok(())
    }

    fn check_path_in(
        &self,
        trust_domain: &TrustDomain,
        expected: &'static str,
    ) -> Result<(), MembershipError> {
        if !self.is_member_of(trust_domain) {
            return Err(MembershipError::NotMember {
                id: self.to_string(),
                trust_domain: trust_domain.to_string(),
            });
        }
        if !self.has_path() {
            return Err(self.wrong_path(expected, "path is empty"));
        }
        Ok(())
    }

    fn wrong_path(&self, expected: &'static str, because: &'static str) -> MembershipError {
        MembershipError::WrongPath {
            id: self.to_string(),
            expected,
            trust_domain: self.trust_domain_name().to_owned(),
            because,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(id: &str) -> [String; 3] {
        let own = TrustDomain::parse("td").unwrap();
        let id = SpiffeId::parse(id).unwrap();
        [
            id.check_member(&own),
            id.check_workload(&own),
            id.check_agent(&own),
        ]
        .map(|checked| checked.map_or_else(|error| error.to_string(), |()| String::new()))
    }

    #[test]
    fn refuses_what_is_no_member_workload_or_agent_in_spires_words() {
        let foreign = r#""spiffe://other/a" is not a member of trust domain "td""#;
        assert_eq!(refusals("spiffe://other/a"), [foreign; 3]);
        assert_eq!(
            refusals("spiffe://td"),
            ["a member of", "a workload in", "an agent in"].map(|expected| format!(
                r#""spiffe://td" is not {expected} trust domain "td"; path is empty"#
            ))
        );
        let [member, workload, agent] = refusals("spiffe://td/spire/agent/x");
        assert_eq!((member.as_str(), agent.as_str()), ("", ""));
        assert_eq!(
            workload,
            r#""spiffe://td/spire/agent/x" is not a workload in trust domain "td"; path is in the reserved namespace"#
        );
        let [member, workload, agent] = refusals("spiffe://td/web");
        assert_eq!((member.as_str(), workload.as_str()), ("", ""));
        assert_eq!(
            agent,
            r#""spiffe://td/web" is not an agent in trust domain "td"; path is not in the agent namespace"#
        );
    }
}
