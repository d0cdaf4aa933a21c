//! Durations as SPIRE's configuration writes them: `1h30m`, `1.5h`, `300ms` (Go: `time.ParseDuration`).

use std::time::Duration;

/// Units with their nanoseconds.
const UNITS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// Digits of a fraction that count; the rest is less than a nanosecond of any unit.
const FRACTION_DIGITS: usize = 18;
const TOO_LONG: &str = "is too long";

/// Reads a duration that is not negative. The error says what is wrong, in words that follow "the duration".
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    if text.starts_with('-') {
        return Err("must not be negative");
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err("is empty; write it like \"1h30m\"");
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, after) = rest.split_at(digits);
        let unit_length = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let scale = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => *scale,
            None if unit.is_empty() => {
                return Err("lacks a unit; write it like \"30s\", \"5m\" or \"1h30m\"");
            }
            None => return Err("has an unknown unit; units are h, m, s, ms, us and ns"),
        };
        let nanoseconds = nanoseconds(number, scale)?;
        total = total.checked_add(nanoseconds).ok_or(TOO_LONG)?;
        rest = after;
    }
    // Go's durations end at 2^63 ns, about 292 years.
    let total = i64::try_from(total).map_err(|_too_long| TOO_LONG)?;
    Ok(Duration::from_nanos(total.unsigned_abs()))
}

/// `number` (digits with at most one point) of a unit of `scale` nanoseconds, cut down to whole ones.
fn nanoseconds(number: &str, scale: u128) -> Result<u128, &'static str> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err("is not of the form \"1h30m\"");
    }
    // Digits only: what does not parse is empty, which is 0, or too long.
    let value = |digits: &str| match digits {
        "" => Ok(0_u128),
        digits => digits.parse::<u128>().map_err(|_too_long| TOO_LONG),
    };
    let whole = value(whole)?.checked_mul(scale).ok_or(TOO_LONG)?;
    let fraction = fraction.get(..FRACTION_DIGITS).unwrap_or(fraction);
    let mut divisor: u128 = 1;
    for _ in fraction.bytes() {
        divisor = divisor.saturating_mul(10);
    }
    let part = value(fraction)?.saturating_mul(scale) / divisor;
    whole.checked_add(part).ok_or(TOO_LONG)
}

/// Hours, minutes and seconds, as the configuration writes them: `4h`, `1h30m5s`. Parts of a second are left out.
pub fn duration_text(duration: Duration) -> String {
    in_units(duration, &[(3_600, 'h'), (60, 'm'), (1, 's')], usize::MAX)
}

/// The two largest units, for messages: `1d1h`, `2h5m`, `7s`.
pub fn rough_duration_text(duration: Duration) -> String {
    in_units(
        duration,
        &[(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')],
        2,
    )
}

/// At most `most` units from the largest that is not zero; those of them that are zero are left out.
fn in_units(duration: Duration, units: &[(u64, char)], most: usize) -> String {
    let mut rest = duration.as_secs();
    let mut parts = Vec::with_capacity(units.len());
    for (seconds, unit) in units {
        parts.push((rest / seconds, unit));
        rest %= seconds;
    }
    let text: String = parts
        .iter()
        .skip_while(|(number, _)| *number == 0)
        .take(most)
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
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

    #[test]
    fn reads_what_go_reads() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1.s", 1000),
            ("+5m", 300_000),
            ("300ms", 300),
            ("2000us", 2),
            ("2000µs", 2),
            ("24h", 86_400_000),
            ("1m1s1ms", 61_001),
            ("876000h", 3_153_600_000_000),
            ("0.3333333333333333333333333333333333333333333s", 333),
            ("4294967296ms", 4_294_967_296),
        ] {
            let read = parse_duration(text).map(|read| read.as_millis());
            assert_eq!(read, Ok(milliseconds), "{text}");
        }
    }

    #[test]
    fn fractions_are_exact_to_the_nanosecond() {
        for (text, nanoseconds) in [
            ("0.1s", 100_000_000),
            ("1.000000001s", 1_000_000_001),
            ("0.0000000019s", 1),
            ("2.9ns", 2),
            ("9223372036854775807ns", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanoseconds)));
        }
    }

    #[test]
    fn writes_whole_and_rough_durations() {
        for (seconds, whole, rough) in [
            (0, "0s", "0s"),
            (7, "7s", "7s"),
            (60, "1m", "1m"),
            (5_405, "1h30m5s", "1h30m"),
            (7_201, "2h1s", "2h"),
            (90_061, "25h1m1s", "1d1h"),
            (604_800, "168h", "7d"),
        ] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(duration_text(duration), whole);
            assert_eq!(rough_duration_text(duration), rough);
            assert_eq!(parse_duration(whole), Ok(duration));
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            " ",
            "1",
            "30",
            "h",
            "s5",
            "1d",
            "1h 30m",
            "1H",
            "-1h",
            "1..5h",
            ".h",
            "1e3s",
            "9999999999h",
            "3000000h",
            "9223372036854775808ns",
            "99999999999999999999999999999999999999999h",
            "1h30",
            "١s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
