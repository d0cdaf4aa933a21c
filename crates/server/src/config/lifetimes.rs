//! Notices about lifetimes that a rotation of the CA may cut short (SPIRE: the same warnings).

use std::time::Duration;

use config::duration_text;
use spiffe::rotation::max_guaranteed_ttl;

/// The part of a CA's life in which it no longer signs.
const DIVISOR: u32 = 6;
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3_600);

/// A notice if SVIDs that are to live for `ttl` may get less under CAs that live for `ca_ttl`.
pub(super) fn notice(name: &str, ttl: Duration, ca_ttl: Duration) -> Option<String> {
    if ttl <= max_guaranteed_ttl(ca_ttl) {
        return None;
    }
    let advice = if ttl < LONGEST {
        format!(
            "set {name} to {} or less, or ca_ttl to {} or more",
            duration_text(max_guaranteed_ttl(ca_ttl)),
            duration_text(ttl * DIVISOR)
        )
    } else if ca_ttl < LONGEST * DIVISOR {
        format!(
            "set {name} to {} or less and ca_ttl to {} or more",
            duration_text(LONGEST),
            duration_text(LONGEST * DIVISOR)
        )
    } else {
        format!("set {name} to {} or less", duration_text(LONGEST))
    };
    Some(format!(
        "{name} is too high for the life of the CA: SVIDs issued shortly before a rotation live shorter; {advice}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn says_nothing_when_the_full_life_is_certain() {
        assert_eq!(notice("agent_ttl", HOUR, HOUR * 24), None);
        assert_eq!(notice("agent_ttl", HOUR * 4, HOUR * 24), None);
    }

    #[test]
    fn names_the_two_ways_out() {
        let text = notice("agent_ttl", HOUR * 6, HOUR * 24).unwrap();
        assert!(
            text.contains("set agent_ttl to 4h or less, or ca_ttl to 36h or more"),
            "{text}"
        );
    }

    #[test]
    fn does_not_promise_more_than_a_week() {
        let text = notice("agent_ttl", HOUR * 24 * 8, HOUR * 24).unwrap();
        assert!(
            text.contains("set agent_ttl to 168h or less and ca_ttl to 1008h or more"),
            "{text}"
        );
        let text = notice("agent_ttl", HOUR * 24 * 8, HOUR * 24 * 365).unwrap();
        assert!(text.ends_with("set agent_ttl to 168h or less"), "{text}");
    }
}
