//! An event as one line, in the layout of logrus: `time=… level=… msg=… key=value` or one JSON object. Field names
//! are what users' log rules match on.

use std::fmt;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// `log_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

pub(super) struct Events {
    pub(super) format: LogFormat,
    pub(super) source_location: bool,
}

impl<S, N> FormatEvent<S, N> for Events
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        if self.source_location
            && let (Some(file), Some(number)) = (metadata.file(), metadata.line())
        {
            line.fields
                .push(("file".to_owned(), format!("{file}:{number}").into()));
        }
        let now = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .map_err(|_unformattable| fmt::Error)?;
        let text = match self.format {
            LogFormat::Text => line.text(&now, level(*metadata.level())),
            LogFormat::Json => line.json(&now, level(*metadata.level())),
        };
        writeln!(writer, "{text}")
    }
}

const fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The message and the fields of one event.
#[derive(Default)]
struct Line {
    message: String,
    fields: Vec<(String, Value)>,
}

impl Line {
    fn add(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.fields.push((field.name().to_owned(), value));
        }
    }

    fn text(&self, now: &str, level: &str) -> String {
        let mut line = format!(
            "time={} level={level} msg={}",
            quoted(now),
            quoted(&self.message)
        );
        for (key, value) in &self.fields {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            line.push_str(&format!(" {key}={}", quoted(&value)));
        }
        line
    }

    fn json(&self, now: &str, level: &str) -> String {
        let mut object: Map<String, Value> = self.fields.iter().cloned().collect();
        object.insert("level".to_owned(), level.into());
        object.insert("msg".to_owned(), self.message.clone().into());
        object.insert("time".to_owned(), now.into());
        Value::Object(object).to_string()
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }
}

/// logrus quotes a value unless all of it is of these characters; quoting also keeps a value on its line.
fn quoted(value: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | '@' | '^' | '+');
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn a_line_break_in_a_value_stays_on_the_line() {
        let line = Line {
            message: "a\nb".into(),
            fields: vec![("pid".into(), 5.into()), ("path".into(), "/x y".into())],
        };
        assert_eq!(
            line.text("now", "info"),
            "time=now level=info msg=\"a\\nb\" pid=5 path=\"/x y\""
        );
        assert_eq!(
            line.json("now", "info"),
            r#"{"level":"info","msg":"a\nb","path":"/x y","pid":5,"time":"now"}"#
        );
    }
}
