//! Lifetimes as people write them: Go's duration syntax (`1h30m`, `90s`, `300ms`).

use std::time::Duration;

/// Parses Go's duration syntax. Negative, empty and overflowing texts are `None`.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    config::parse_duration(text).ok()
}

/// The same with days in front, as people write them natively: `30d`, `1d12h`.
pub(crate) fn parse_native(text: &str) -> Option<Duration> {
    const DAY: u64 = 24 * 60 * 60;
    let Some((days, rest)) = text.split_once('d') else {
        return parse(text);
    };
    if days.is_empty() || !days.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let days = Duration::from_secs(days.parse::<u64>().ok()?.checked_mul(DAY)?);
    let rest = if rest.is_empty() {
        Duration::ZERO
    } else {
        parse(rest)?
    };
    let whole = days.checked_add(rest)?;
    // Go's durations end at 292 years.
    i64::try_from(whole.as_nanos()).ok()?;
    Some(whole)
}

/// What Go says of a text that is no duration.
pub(crate) fn go_fault(text: &str) -> String {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let tail = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let unit = tail
        .split(|c: char| c.is_ascii_digit() || c == '.')
        .next()
        .unwrap_or_default();
    if unsigned.len() == tail.len() {
        format!("time: invalid duration {text:?}")
    } else if unit.is_empty() {
        format!("time: missing unit in duration {text:?}")
    } else if parse(&format!("1{unit}")).is_none() {
        format!("time: unknown unit {unit:?} in duration {text:?}")
    } else {
        format!("time: invalid duration {text:?}")
    }
}

/// Whole seconds written as bare seconds or as a duration; `None` when neither, or not a whole number of seconds.
pub(crate) fn parse_seconds(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    let duration = parse_native(text)?;
    (duration.subsec_nanos() == 0).then(|| i64::try_from(duration.as_secs()).ok())?
}

/// The text that Go prints for a duration: `1.5s`, `12.25ms`, `1m30s`.
pub(crate) fn go_text(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let with_fraction = |unit_nanos: u128, unit: &str| {
        let fraction = format!(
            "{:0width$}",
            nanos % unit_nanos,
            width = unit_nanos.ilog10() as usize
        );
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}{unit}", nanos / unit_nanos)
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => with_fraction(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => with_fraction(1_000_000_000, "s"),
        _ => {
            let (minutes, seconds) = (duration.as_secs() / 60, duration.as_secs() % 60);
            match minutes / 60 {
                0 => format!("{minutes}m{seconds}s"),
                hours => format!("{hours}h{}m{seconds}s", minutes % 60),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{go_fault, go_text, parse, parse_seconds};
    use std::time::Duration;

    #[test]
    fn reads_go_durations() {
        assert_eq!(parse("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(parse("0"), Some(Duration::ZERO));
    }

    #[test]
    fn writes_go_durations() {
        for (nanos, text) in [
            (0, "0s"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (12_250_000, "12.25ms"),
            (2_000_000_000, "2s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_text(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn refuses_what_is_not_a_duration() {
        for text in [
            "",
            "1",
            "h",
            "1x",
            "-1s",
            "1h-1m",
            "..s",
            "1.2.3s",
            "9999999999h",
            "1 h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn faults_are_worded_as_go_words_them() {
        for (text, fault) in [
            ("foo", r#"time: invalid duration "foo""#),
            ("", r#"time: invalid duration """#),
            ("5", r#"time: missing unit in duration "5""#),
            ("5x", r#"time: unknown unit "x" in duration "5x""#),
        ] {
            assert_eq!(go_fault(text), fault);
        }
    }

    #[test]
    fn seconds_are_bare_or_a_duration() {
        assert_eq!(parse_seconds("90"), Some(90));
        assert_eq!(parse_seconds("1h"), Some(3600));
        assert_eq!(parse_seconds("1500ms"), None);
    }
}
