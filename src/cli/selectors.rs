//! Selectors and the ways of matching them, from the words of the command line.

use config::fault::Code;
use proto::spire::api::types::{
    FederatesWithMatch, Selector, SelectorMatch, federates_with_match, selector_match,
};

use super::args::Args;
use super::error::CliError;
use super::flag::Flag;

pub(crate) const SELECTOR: Flag<Vec<String>> = Flag::list(
    "selector",
    "selector",
    "A selector, type:value; may be given several times",
)
.value("TYPE:VALUE");
pub(crate) const MATCH_SELECTORS: Flag<String> = Flag::text(
    "matchSelectorsOn",
    "match-selectors-on",
    "How selectors are matched: exact, any, superset or subset",
)
.value("MODE")
.or("superset");

pub(crate) const FEDERATES_WITH: Flag<Vec<String>> = Flag::list(
    "federatesWith",
    "federates-with",
    "Trust domain whose bundle the workload gets too; may be given several times",
)
.value("TRUST-DOMAIN");
pub(crate) const MATCH_FEDERATES_WITH: Flag<String> = Flag::text(
    "matchFederatesWithOn",
    "match-federates-with-on",
    "How the federated trust domains are matched: exact, any, superset or subset",
)
.value("MODE")
.or("superset");

/// `type:value`; the value may hold colons.
pub(crate) fn parse(text: &str) -> Result<Selector, CliError> {
    match text.split_once(':') {
        Some((kind, value)) => Ok(Selector {
            r#type: kind.to_owned(),
            value: value.to_owned(),
        }),
        None => Err(CliError::wrong(
            Code::InvalidSelector,
            text,
            format!("selector \"{text}\" must be formatted as type:value"),
        )),
    }
}

pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Selector>, CliError> {
    texts.iter().map(|text| parse(text)).collect()
}

/// The selector filter of a list or a count; `None` without `-selector`. `unknown` words a bad match mode, `parsing`
/// is what SPIRE says before a bad selector.
pub(crate) fn filter(
    args: &Args,
    unknown: fn(&str) -> String,
    parsing: fn(&str) -> String,
) -> Result<Option<SelectorMatch>, CliError> {
    use selector_match::MatchBehavior as M;
    let texts = args.get(SELECTOR);
    if texts.is_empty() {
        return Ok(None);
    }
    let behavior = match args.get(MATCH_SELECTORS) {
        "exact" => M::MatchExact,
        "any" => M::MatchAny,
        "superset" => M::MatchSuperset,
        "subset" => M::MatchSubset,
        other => return Err(CliError::usage(unknown(other))),
    };
    Ok(Some(SelectorMatch {
        selectors: texts
            .iter()
            .map(|text| parse(text).map_err(|error| error.within(&parsing(text))))
            .collect::<Result<_, _>>()?,
        r#match: behavior.into(),
    }))
}

/// The federates-with filter of a list or a count; `None` without `-federatesWith`.
pub(crate) fn federates_with_filter(
    args: &Args,
    unknown: fn(&str) -> String,
) -> Result<Option<FederatesWithMatch>, CliError> {
    use federates_with_match::MatchBehavior as M;
    let trust_domains = args.get(FEDERATES_WITH).to_vec();
    if trust_domains.is_empty() {
        return Ok(None);
    }
    let behavior = match args.get(MATCH_FEDERATES_WITH) {
        "exact" => M::MatchExact,
        "any" => M::MatchAny,
        "superset" => M::MatchSuperset,
        "subset" => M::MatchSubset,
        other => return Err(CliError::usage(unknown(other))),
    };
    Ok(Some(FederatesWithMatch {
        trust_domains,
        r#match: behavior.into(),
    }))
}
