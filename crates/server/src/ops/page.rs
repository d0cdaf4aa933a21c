//! Pages of lists that are sorted by trust domain.

use spiffe::trust_domain::TrustDomain;

use crate::error::{Kind, OpError, failed, malformed};
use crate::registry::{Listing, Page};

/// What stands before the name in a token, so that no other text is taken for a token.
const AFTER: &str = "after:";

/// A page of a sorted list, and the token of the next one. SPIRE: a size of 0 asks for everything, and then the token does
/// not count.
///
/// # Errors
/// InvalidArgument when the token is not one of this server's.
pub(super) fn by_trust_domain<T>(
    mut all: Vec<T>,
    trust_domain: fn(&T) -> &TrustDomain,
    page: &Page,
) -> Result<Listing<T>, OpError> {
    let mut next_token = String::new();
    if page.size > 0 {
        let start = start(&all, trust_domain, &page.token)?;
        all.drain(..start);
        if all.len() > page.size {
            all.truncate(page.size);
            if let Some(last) = all.last() {
                next_token = format!("{AFTER}{}", trust_domain(last));
            }
        }
    }
    Ok(Listing {
        items: all,
        next_token,
    })
}

/// Where the page of a token begins.
fn start<T>(
    all: &[T],
    trust_domain: fn(&T) -> &TrustDomain,
    token: &str,
) -> Result<usize, OpError> {
    if token.is_empty() {
        return Ok(0);
    }
    let name = token.strip_prefix(AFTER).ok_or_else(|| {
        let because = "it is not one that this server gave";
        failed(Kind::InvalidArgument, "could not parse token", because)
    })?;
    let after = TrustDomain::parse(name).map_err(malformed("could not parse token"))?;
    Ok(all.partition_point(|item| *trust_domain(item) <= after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<TrustDomain> {
        all.iter()
            .map(|name| TrustDomain::parse(name).unwrap())
            .collect()
    }

    fn page(size: usize, token: &str) -> Result<(Vec<String>, String), OpError> {
        let page = Page {
            size,
            token: token.to_owned(),
        };
        let listed = by_trust_domain(names(&["a", "b", "c", "d", "e"]), |name| name, &page)?;
        let items = listed.items.iter().map(ToString::to_string);
        Ok((items.collect(), listed.next_token))
    }

    #[test]
    fn refuses_a_token_that_it_did_not_give() {
        for token in ["b", "after", "after:", "after:B", "after:b/c", "2"] {
            let refused = page(2, token).unwrap_err();
            assert_eq!(refused.kind(), Kind::InvalidArgument, "{token}");
        }
    }

    #[test]
    fn goes_on_after_a_name_that_has_left_the_list() {
        let (items, token) = page(1, "after:bb").unwrap();
        assert_eq!((items, token.as_str()), (vec!["c".to_owned()], "after:c"));
    }

    #[test]
    fn the_last_page_has_no_token_even_when_it_is_full() {
        let (items, token) = page(2, "after:c").unwrap();
        assert_eq!((items.len(), token.as_str()), (2, ""));
        let (items, token) = page(2, "after:e").unwrap();
        assert_eq!((items.len(), token.as_str()), (0, ""));
    }

    #[test]
    fn everything_is_one_page_and_its_token_does_not_count() {
        let (items, token) = page(0, "nonsense").unwrap();
        assert_eq!((items.len(), token.as_str()), (5, ""));
    }
}
