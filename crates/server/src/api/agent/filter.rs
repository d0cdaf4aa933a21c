//! The filters of CountAgents and ListAgents, which have the same shape on the wire under two names.

use proto::spire::api::server::agent::v1::{count_agents_request, list_agents_request};
use proto::spire::api::types;

use crate::api::wire;
use crate::audit::Fields;
use crate::error::{Kind, OpError, failed};
use crate::registry::AgentFilter;

/// A filter as it came.
#[derive(Debug, Default)]
pub(super) struct Wire {
    by_attestation_type: String,
    by_selector_match: Option<types::SelectorMatch>,
    by_banned: Option<bool>,
    by_can_reattest: Option<bool>,
    by_expires_before: String,
}

wire::filter_from!(count_agents_request::Filter, list_agents_request::Filter => Wire {
    by_attestation_type,
    by_selector_match,
    by_banned,
    by_can_reattest,
    by_expires_before,
});

impl Wire {
    pub(super) fn read(&self) -> Result<AgentFilter, OpError> {
        let by_selectors = self
            .by_selector_match
            .as_ref()
            .map(|asked| wire::selector_filter(asked, "failed to parse selectors"))
            .transpose()?;
        Ok(AgentFilter {
            by_attestation_type: Some(self.by_attestation_type.clone())
                .filter(|kind| !kind.is_empty()),
            by_selectors,
            by_banned: self.by_banned,
            by_can_reattest: self.by_can_reattest,
            by_expires_before: expires_before(&self.by_expires_before)?,
        })
    }

    pub(super) fn audit_fields(&self) -> Fields {
        let mut fields = Fields::new().with("node_attestor_type", &self.by_attestation_type);
        if let Some(banned) = self.by_banned {
            fields.add("by_banned", banned);
        }
        if let Some(can_reattest) = self.by_can_reattest {
            fields.add("by_can_reattest", can_reattest);
        }
        if let Some(asked) = &self.by_selector_match {
            fields.add("by_selectors", wire::selectors_text(&asked.selectors));
        }
        fields
    }
}

/// Reads `2026-01-02 15:04:05 -0700 -07`, as SPIRE's CLI sends it. SPIRE takes what it cannot read for no filter, which
/// would list (or purge) every agent; we refuse it.
fn expires_before(text: &str) -> Result<Option<i64>, OpError> {
    if text.is_empty() {
        return Ok(None);
    }
    let format = time::macros::format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    // The last word repeats the offset, or names the zone.
    let stamp = text.rsplit_once(' ').map_or(text, |(stamp, _)| stamp);
    match time::OffsetDateTime::parse(stamp, format) {
        Ok(time) => Ok(Some(time.unix_timestamp())),
        Err(error) => Err(failed(
            Kind::InvalidArgument,
            "malformed by_expires_before filter",
            format!("{error}; write it as 2026-01-02 15:04:05 -0700 -07"),
        )),
    }
}
