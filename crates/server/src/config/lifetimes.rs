//! Notices about lifetimes that a rotation of the CA may cut short (SPIRE: the same warnings).

use std::time::Duration;

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
            go_duration(max_guaranteed_ttl(ca_ttl)),
            go_duration(ttl * DIVISOR)
        )
    } else if ca_ttl < LONGEST * DIVISOR {
        format!(
            "set {name} to {} or less and ca_ttl to {} or more",
            go_duration(LONGEST),
            go_duration(LONGEST * DIVISOR)
        )
    } else {
        format!("set {name} to {} or less", go_duration(LONGEST))
    };
    Some(format!(
        "{name} is too high for the life of the CA: SVIDs issued shortly before a rotation live shorter; {advice}"
    ))
}

/// As an operator writes it: `4h`, `30m`, `1h30m5s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 3_600, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ];
    let text: String = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect();
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
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
