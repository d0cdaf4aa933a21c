//! Replaces what differs from run to run by marks.

/// `text` with the bodies of PEM blocks, UUIDs, times, long numbers and long words replaced.
pub(super) fn normalize(text: &str) -> String {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("-----END") {
            inside = false;
        }
        if !inside {
            lines.push(normalize_line(line));
        }
        if line.starts_with("-----BEGIN") {
            lines.push("<pem>".to_owned());
            inside = true;
        }
    }
    lines.join("\n")
}

fn normalize_line(line: &str) -> String {
    if let Some((label, _)) = line
        .split_once(": ")
        .filter(|(label, _)| label.starts_with("Agent version"))
    {
        return format!("{label}: <version>");
    }
    if let Some((before, after)) = line.split_once("\"agent_version\":\"")
        && let Some((_, after)) = after.split_once('"')
    {
        return normalize_line(&format!("{before}\"agent_version:<version>\"{after}"));
    }
    let mut out = String::new();
    let mut word = String::new();
    for character in line.chars() {
        if character.is_ascii_alphanumeric() || "-_+/=.:~".contains(character) {
            word.push(character);
        } else {
            out.push_str(&normalize_word(&word));
            word.clear();
            out.push(character);
        }
    }
    out.push_str(&normalize_word(&word));
    // A time is several words; one mark is enough.
    for tail in [
        "<date> <time> <zone> UTC",
        "<date> <time> <zone>",
        "<date> <time>",
    ] {
        out = out.replace(tail, "<time>");
    }
    out
}

fn normalize_word(word: &str) -> String {
    let core = word.trim_end_matches(['.', ':']);
    let tail = word.get(core.len()..).unwrap_or_default();
    if let Some((before, last)) = core.rsplit_once('/')
        && is_uuid(last)
    {
        return format!("{before}/<uuid>{tail}");
    }
    let mark = match core {
        _ if is_uuid(core) => "<uuid>",
        _ if matches(core, "dddd-dd-dd") => "<date>",
        _ if core.starts_with("20") && core.contains("T") && core.ends_with('Z') => "<time>",
        _ if core
            .get(..8)
            .is_some_and(|start| matches(start, "dd:dd:dd")) =>
        {
            "<time>"
        }
        _ if matches(core, "+dddd") => "<zone>",
        _ if core.len() >= 9 && core.chars().all(|digit| digit.is_ascii_digit()) => "<number>",
        _ if is_duration(core) => "<duration>",
        _ if core.len() >= 30 && !core.contains("://") && !core.contains(".sock") => "<long>",
        _ => return word.to_owned(),
    };
    format!("{mark}{tail}")
}

fn is_uuid(word: &str) -> bool {
    matches(word, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
}

/// A measured duration such as `12.345ms`.
fn is_duration(word: &str) -> bool {
    let number =
        word.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() || letter == 'µ');
    number.contains('.') && number != word && number.parse::<f64>().is_ok()
}

/// Whether `word` has the shape: `d` a digit, `x` a hexadecimal digit, anything else itself.
fn matches(word: &str, shape: &str) -> bool {
    word.len() == shape.len()
        && word
            .chars()
            .zip(shape.chars())
            .all(|(letter, kind)| match kind {
                'd' => letter.is_ascii_digit(),
                'x' => letter.is_ascii_hexdigit(),
                other => letter == other,
            })
}
