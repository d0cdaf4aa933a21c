//! Points in time as text: Go's default layout, which SPIRE's texts use, RFC 3339, and the layout of `-expiresBefore`.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

const GO: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");

/// `2006-01-02 15:04:05 +0000 UTC`; the bare number when it is out of range.
pub(crate) fn go_text(unix: i64) -> String {
    formatted(unix, |moment| moment.format(GO).ok())
}

/// RFC 3339 in UTC.
pub(crate) fn rfc3339(unix: i64) -> String {
    formatted(unix, |moment| moment.format(&Rfc3339).ok())
}

fn formatted(unix: i64, write: impl FnOnce(OffsetDateTime) -> Option<String>) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(write)
        .unwrap_or_else(|| unix.to_string())
}

/// A time as `2026-11-25T12:00:00Z`, in the layout that the API takes.
pub(crate) fn expires_before_of_rfc3339(text: &str) -> Option<String> {
    const UTC: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 +00");
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    moment.to_offset(time::UtcOffset::UTC).format(UTC).ok()
}

/// Unix seconds of a time as `2026-11-25T12:00:00Z`.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp)
}

/// Whether the text has the layout `2006-01-02 15:04:05 -0700 -07`.
pub(crate) fn is_expires_before(text: &str) -> bool {
    const LAYOUT: &[BorrowedFormatItem<'_>] = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    let Some((moment, zone)) = text.rsplit_once(' ') else {
        return false;
    };
    let (sign, digits) = zone.split_at_checked(1).unwrap_or_default();
    matches!(sign, "+" | "-")
        && digits.len() == 2
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && OffsetDateTime::parse(moment, LAYOUT).is_ok()
}

/// What Go says of a text that does not have that layout: the first part that does not fit.
pub(crate) fn expires_before_fault(text: &str) -> String {
    const PARTS: [(&str, usize); 15] = [
        ("2006", 4),
        ("-", 1),
        ("01", 2),
        ("-", 1),
        ("02", 2),
        (" ", 1),
        ("15", 2),
        (":", 1),
        ("04", 2),
        (":", 1),
        ("05", 2),
        (" ", 1),
        ("-0700", 5),
        (" ", 1),
        ("-07", 3),
    ];
    let mut rest = text;
    for (part, length) in PARTS {
        let fits = rest.split_at_checked(length).filter(|(head, _)| {
            head.bytes()
                .zip(part.bytes())
                .all(|(byte, model)| match model {
                    b'0'..=b'9' => byte.is_ascii_digit(),
                    b'-' if length > 1 => matches!(byte, b'+' | b'-'),
                    other => byte == other,
                })
        });
        match fits {
            Some((_, tail)) => rest = tail,
            None => {
                return format!(
                    "parsing time {text:?} as {LAYOUT_TEXT:?}: cannot parse {rest:?} as {part:?}"
                );
            }
        }
    }
    if rest.is_empty() {
        format!("parsing time {text:?}: out of range")
    } else {
        format!("parsing time {text:?}: extra text: {rest:?}")
    }
}

const LAYOUT_TEXT: &str = "2006-01-02 15:04:05 -0700 -07";

#[cfg(test)]
mod tests {
    use super::{
        expires_before_fault, expires_before_of_rfc3339, go_text, is_expires_before, parse_rfc3339,
        rfc3339,
    };

    #[test]
    fn writes_go_and_rfc3339() {
        assert_eq!(go_text(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(go_text(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn a_wrong_date_is_reported_as_go_reports_it() {
        for (text, end) in [
            ("x", r#"cannot parse "x" as "2006""#),
            ("2025-01-02", r#"cannot parse "" as " ""#),
            (
                "2025-01-02 15:04:05 -0700 x",
                r#"cannot parse "x" as "-07""#,
            ),
            ("2025-01-02 15:04:05 -0700 -07x", r#"extra text: "x""#),
        ] {
            let fault = expires_before_fault(text);
            assert!(fault.ends_with(end), "{fault}");
        }
    }

    #[test]
    fn a_time_of_today_becomes_one_of_the_api() {
        for (text, expected) in [
            (
                "2026-11-25T12:00:00Z",
                Some("2026-11-25 12:00:00 +0000 +00"),
            ),
            (
                "2026-11-25T12:00:00+02:00",
                Some("2026-11-25 10:00:00 +0000 +00"),
            ),
            ("2026-11-25", None),
            ("soon", None),
        ] {
            let found = expires_before_of_rfc3339(text);
            assert_eq!(found.as_deref(), expected);
            assert!(found.is_none_or(|text| is_expires_before(&text)));
        }
        assert_eq!(parse_rfc3339("1970-01-01T00:01:00Z"), Some(60));
    }

    #[test]
    fn checks_the_expires_before_layout() {
        assert!(is_expires_before("2025-01-02 15:04:05 -0700 -07"));
        for bad in [
            "",
            "2025-01-02",
            "2025-01-02 15:04:05 -0700",
            "2025-13-02 15:04:05 -0700 -07",
            "2025-01-02 15:04:05 -0700 MST",
        ] {
            assert!(!is_expires_before(bad), "{bad}");
        }
    }
}
