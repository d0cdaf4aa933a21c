//! Durations as SPIRE's configuration writes them: `1h30m`, `1.5h`, `300ms` (Go: `time.ParseDuration`).

use std::time::Duration;

/// Units with their nanoseconds, the longer name before its prefix.
const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

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
    let mut total = Duration::ZERO;
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
        let factor = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => {
                return Err("lacks a unit; write it like \"30s\", \"5m\" or \"1h30m\"");
            }
            None => return Err("has an unknown unit; units are h, m, s, ms, us and ns"),
        };
        total = add(total, number, factor)?;
        rest = after;
    }
    Ok(total)
}

fn add(total: Duration, number: &str, nanoseconds: f64) -> Result<Duration, &'static str> {
    const TOO_LONG: &str = "is too long";
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err("is not of the form \"1h30m\"");
    }
    let whole: u32 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok().ok_or(TOO_LONG)?
    };
    let fraction: f64 = if fraction.is_empty() {
        0.0
    } else {
        format!("0.{fraction}").parse().unwrap_or(0.0)
    };
    let unit = Duration::from_secs_f64(nanoseconds / 1e9);
    let sum = unit
        .checked_mul(whole)
        .and_then(|whole| total.checked_add(whole))
        .and_then(|sum| sum.checked_add(unit.mul_f64(fraction)))
        .ok_or(TOO_LONG)?;
    // Go's durations end at 2^63 ns, about 292 years.
    if sum.as_nanos() > u128::from(i64::MAX.unsigned_abs()) {
        return Err(TOO_LONG);
    }
    Ok(sum)
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
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
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
            "1h30",
            "١s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
