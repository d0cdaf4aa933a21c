//! When it is time: the moments at which SVIDs and authorities are renewed. `SPIRE: pkg/server/ca/manager`,
//! `pkg/agent/manager`.

use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

/// The middle of a validity period: from then on a document is renewed. `not_before` when the period is empty.
#[must_use]
pub fn half_life(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    not_before + lifetime(not_before, not_after) / 2
}

/// The moment a document is renewed, spread so that not all come at once: the middle of its validity, earlier
/// or later by up to a tenth of half its life. `spread` is from `[0, 1)`.
#[must_use]
pub fn half_life_spread(not_before: SystemTime, not_after: SystemTime, spread: f64) -> SystemTime {
    let half = lifetime(not_before, not_after) / 2;
    let reach = half / 10;
    let spread = if spread.is_nan() {
        0.5
    } else {
        spread.clamp(0.0, 1.0)
    };
    let offset = (reach * 2).mul_f64(spread);
    not_before + half - reach + offset
}

/// The earliest moment at which a document that came at `now` is renewed. Certificates begin some seconds before they are
/// issued, so that of one that lives as short as that, half is over when it comes: at least two fifths of what is left are
/// used, or it would be renewed without end.
#[must_use]
pub fn earliest_renewal(now: SystemTime, not_after: SystemTime) -> SystemTime {
    now + lifetime(now, not_after).mul_f64(0.4)
}

/// When the successor of an authority is prepared and published: when the rest of its life is half of it, or 30
/// days, whichever is less.
#[must_use]
pub fn prepare_at(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    not_after - (lifetime(not_before, not_after) / 2).min(DAY * 30)
}

/// When the prepared successor takes over: when the rest of its predecessor's life is a sixth of it, or 7 days,
/// whichever is less.
#[must_use]
pub fn activate_at(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    not_after - (lifetime(not_before, not_after) / 6).min(DAY * 7)
}

/// Longest life a document is sure to get from an authority that lives `authority_ttl`: a sixth of it, at most 7
/// days, since the authority is replaced that long before its end.
#[must_use]
pub fn max_guaranteed_ttl(authority_ttl: Duration) -> Duration {
    (authority_ttl / 6).min(DAY * 7)
}

fn lifetime(not_before: SystemTime, not_after: SystemTime) -> Duration {
    not_after.duration_since(not_before).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{from_unix, unix_seconds};

    fn at(moment: SystemTime) -> i64 {
        unix_seconds(moment)
    }

    #[test]
    fn documents_are_renewed_in_the_middle_of_their_life() {
        assert_eq!(at(half_life(from_unix(1000), from_unix(4600))), 2800);
        assert_eq!(at(half_life(from_unix(1000), from_unix(500))), 1000);
        assert_eq!(
            at(half_life_spread(from_unix(1000), from_unix(4600), 0.0)),
            2620
        );
        assert_eq!(
            at(half_life_spread(from_unix(1000), from_unix(4600), 0.5)),
            2800
        );
        assert!(at(half_life_spread(from_unix(1000), from_unix(4600), 0.999)) < 2980);
    }

    #[test]
    fn a_document_is_used_for_a_while_however_short_it_lives() {
        assert_eq!(at(earliest_renewal(from_unix(1000), from_unix(1010))), 1004);
        assert_eq!(at(earliest_renewal(from_unix(1000), from_unix(900))), 1000);
    }

    #[test]
    fn authorities_are_prepared_at_half_and_activated_at_a_sixth() {
        let day = 86_400;
        assert_eq!(at(prepare_at(from_unix(0), from_unix(day))), day / 2);
        assert_eq!(at(activate_at(from_unix(0), from_unix(day))), day - day / 6);
        assert_eq!(
            at(prepare_at(from_unix(0), from_unix(365 * day))),
            335 * day
        );
        assert_eq!(
            at(activate_at(from_unix(0), from_unix(365 * day))),
            358 * day
        );
        assert_eq!(max_guaranteed_ttl(DAY), Duration::from_secs(14_400));
        assert_eq!(max_guaranteed_ttl(DAY * 365), DAY * 7);
    }
}
