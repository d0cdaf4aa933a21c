//! The filters of CountEntries and ListEntries, which have the same shape on the wire under two names.

use proto::convert::{member_id_from_wire, workload_id_from_wire};
use proto::spire::api::server::entry::v1::{count_entries_request, list_entries_request};
use proto::spire::api::types;
use spiffe::trust_domain::TrustDomain;

use crate::api::wire;
use crate::audit::Fields;
use crate::error::{Kind, OpError, failed, malformed};
use crate::registry::EntryFilter;

/// A filter as it came.
#[derive(Debug, Default)]
pub(super) struct Wire {
    by_spiffe_id: Option<types::Spiffeid>,
    by_parent_id: Option<types::Spiffeid>,
    by_selectors: Option<types::SelectorMatch>,
    by_federates_with: Option<types::FederatesWithMatch>,
    by_hint: Option<String>,
    by_downstream: Option<bool>,
}

wire::filter_from!(count_entries_request::Filter, list_entries_request::Filter => Wire {
    by_spiffe_id,
    by_parent_id,
    by_selectors,
    by_federates_with,
    by_hint,
    by_downstream,
});

impl Wire {
    /// Checks the filter in SPIRE's order, with its words.
    pub(super) fn read(&self, own: &TrustDomain) -> Result<EntryFilter, OpError> {
        let mut filter = EntryFilter {
            by_hint: self.by_hint.clone(),
            by_downstream: self.by_downstream.unwrap_or(false),
            ..EntryFilter::default()
        };
        if self.by_parent_id.is_some() {
            let id = member_id_from_wire(own, self.by_parent_id.as_ref());
            filter.by_parent_id = Some(id.map_err(malformed("malformed parent ID filter"))?);
        }
        if self.by_spiffe_id.is_some() {
            let id = workload_id_from_wire(own, self.by_spiffe_id.as_ref());
            filter.by_spiffe_id = Some(id.map_err(malformed("malformed SPIFFE ID filter"))?);
        }
        if let Some(asked) = &self.by_selectors {
            filter.by_selectors = Some(wire::selector_filter(asked, "malformed selectors filter")?);
        }
        if let Some(asked) = &self.by_federates_with {
            let names = asked
                .trust_domains
                .iter()
                .map(|name| TrustDomain::parse(name));
            let names = names
                .collect::<Result<Vec<_>, _>>()
                .map_err(malformed("malformed federates with filter"))?;
            if names.is_empty() {
                return Err(failed(
                    Kind::InvalidArgument,
                    "malformed federates with filter",
                    "empty trust domain set",
                ));
            }
            let how = wire::set_match(asked.r#match)
                .map_err(malformed("malformed federates with filter"))?;
            filter.by_federates_with = Some((names, how));
        }
        Ok(filter)
    }

    pub(super) fn audit_fields(&self) -> Fields {
        let mut fields = Fields::new()
            .with("hint", self.by_hint.as_deref().unwrap_or_default())
            .with("parent_id", wire::id_text(self.by_parent_id.as_ref()))
            .with("spiffe_id", wire::id_text(self.by_spiffe_id.as_ref()));
        if let Some(asked) = &self.by_selectors {
            fields.add("by_selectors", wire::selectors_text(&asked.selectors));
        }
        if let Some(asked) = &self.by_federates_with {
            fields.add("federates_with", asked.trust_domains.join(","));
        }
        if let Some(downstream) = self.by_downstream {
            fields.add("downstream", downstream);
        }
        fields
    }
}
