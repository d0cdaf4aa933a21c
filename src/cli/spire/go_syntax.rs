//! The syntax of Go's `flag` package, and nothing of what flags there are: `-name`, `--name`, `-name=value` and
//! `-name value`; a boolean flag takes no next word; `--` and the first word without a dash end the flags. A file that
//! depends on nothing, so that the fuzz target `go_flags` takes it as it is.

/// Whether a flag takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `-name` alone is `true`.
    Boolean,
    /// Without `=` the next word is its value, whatever that looks like.
    Valued,
}

/// Why the words cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault<'a> {
    BadSyntax(&'a str),
    Unknown(&'a str),
    NeedsValue(&'a str),
}

/// Reads flags up to the first word that is none. `form` says of a name whether there is such a flag; `found` gets each
/// flag in order, with its value, and may refuse it. Returns the words that are left.
pub(crate) fn read<'a, S: AsRef<str>, E: From<Fault<'a>>>(
    argv: &'a [S],
    form: impl Fn(&str) -> Option<Form>,
    mut found: impl FnMut(&'a str, &'a str) -> Result<(), E>,
) -> Result<&'a [S], E> {
    let mut left = argv;
    while let [word, after @ ..] = left {
        let word = word.as_ref();
        let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else {
            return Ok(left);
        };
        left = after;
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() {
            return Ok(left);
        }
        if body.starts_with(['-', '=']) {
            return Err(Fault::BadSyntax(word).into());
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let value = match (inline, form(name).ok_or(Fault::Unknown(name))?) {
            (Some(value), _) => value,
            (None, Form::Boolean) => "true",
            (None, Form::Valued) => match left {
                [value, after @ ..] => {
                    left = after;
                    value.as_ref()
                }
                [] => return Err(Fault::NeedsValue(name).into()),
            },
        };
        found(name, value)?;
    }
    Ok(left)
}

/// Words separated by line feeds, read once by [`read`] and once by a table of what a word can be.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words: Vec<&str> = text.split('\n').collect();
    let mut found = Vec::new();
    let read: Result<&[&str], Fault<'_>> = read(&words, form, |name, value| {
        found.push((name, value));
        Ok(())
    });
    let (expected, end) = table::read(&words);
    assert_eq!(found, expected, "{words:?}");
    let read = match read {
        Ok(left) => table::End::At(words.len() - left.len()),
        Err(Fault::BadSyntax(_)) => table::End::BadSyntax,
        Err(Fault::Unknown(_)) => table::End::Unknown,
        Err(Fault::NeedsValue(_)) => table::End::NeedsValue,
    };
    assert_eq!(read, end, "{words:?}");
}

/// The flags of [`check`].
#[cfg(any(test, fuzzing))]
fn form(name: &str) -> Option<Form> {
    match name {
        "on" | "b" => Some(Form::Boolean),
        "name" | "n" => Some(Form::Valued),
        _ => None,
    }
}

/// The same syntax written another way: rows of beginnings, the first that fits counts. (Go: flag.FlagSet.parseOne.)
#[cfg(any(test, fuzzing))]
mod table {
    #[derive(Debug, PartialEq, Eq)]
    pub(super) enum End {
        At(usize),
        BadSyntax,
        Unknown,
        NeedsValue,
    }

    enum Row {
        /// The flags end before this word.
        Before,
        /// The flags end with this word.
        After,
        BadSyntax,
        /// So many bytes stand before the name.
        Flag(usize),
    }

    fn row(word: &str) -> Row {
        match word.as_bytes() {
            [] | [b'-'] => Row::Before,
            [b'-', b'-'] => Row::After,
            [b'-', b'-', b'-' | b'=', ..] | [b'-', b'=', ..] => Row::BadSyntax,
            [b'-', b'-', ..] => Row::Flag(2),
            [b'-', ..] => Row::Flag(1),
            _ => Row::Before,
        }
    }

    pub(super) fn read<'a>(words: &[&'a str]) -> (Vec<(&'a str, &'a str)>, End) {
        let mut found = Vec::new();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            let index = words.len() - rest.len();
            let dashes = match row(word) {
                Row::Before => return (found, End::At(index - 1)),
                Row::After => return (found, End::At(index)),
                Row::BadSyntax => return (found, End::BadSyntax),
                Row::Flag(dashes) => dashes,
            };
            let bare = word.split_at(dashes).1;
            let name = bare.split('=').next().unwrap_or_default();
            let inline = bare.find('=').map(|at| bare.split_at(at + 1).1);
            let value = match (name, inline) {
                ("on" | "b" | "name" | "n", Some(value)) => value,
                ("on" | "b", None) => "true",
                ("name" | "n", None) => match rest.next() {
                    Some(value) => value,
                    None => return (found, End::NeedsValue),
                },
                _ => return (found, End::Unknown),
            };
            found.push((name, value));
        }
        (found, End::At(words.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, check, form, read};

    type Read<'a> = (Vec<(&'a str, &'a str)>, Result<usize, Fault<'a>>);

    /// The flags, and how many words are left.
    fn flags<'a>(words: &'a [&'a str]) -> Read<'a> {
        let mut found = Vec::new();
        let left: Result<&[&str], Fault<'_>> = read(words, form, |name, value| {
            found.push((name, value));
            Ok(())
        });
        (found, left.map(<[_]>::len))
    }

    #[test]
    fn every_form_of_a_flag_is_read_as_go_reads_it() {
        let name = vec![("name", "x")];
        let on = |value| vec![("on", value)];
        for (words, found, left) in [
            (&["-name", "x"][..], name.clone(), 0),
            (&["--name", "x"], name.clone(), 0),
            (&["-name=x"], name.clone(), 0),
            (&["--name=x", "rest"], name, 1),
            (&["-name="], vec![("name", "")], 0),
            (&["-name=a=b"], vec![("name", "a=b")], 0),
            (&["-name", "-on"], vec![("name", "-on")], 0),
            (&["-name", "--"], vec![("name", "--")], 0),
            (&["-on"], on("true"), 0),
            (&["-on", "false"], on("true"), 1),
            (&["-on=false"], on("false"), 0),
            (&["-on", "--", "-name"], on("true"), 1),
            (&["-on", "-", "-name"], on("true"), 2),
            (&["word", "-on"], vec![], 2),
            (&["", "-on"], vec![], 2),
            (&[], vec![], 0),
        ] {
            assert_eq!(flags(words), (found, Ok(left)), "{words:?}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for (words, fault) in [
            (&["---name"][..], Fault::BadSyntax("---name")),
            (&["-=x"], Fault::BadSyntax("-=x")),
            (&["--=x"], Fault::BadSyntax("--=x")),
            (&["-nope"], Fault::Unknown("nope")),
            (&["-nope=x"], Fault::Unknown("nope")),
            (&["-Name", "x"], Fault::Unknown("Name")),
            (&["-name"], Fault::NeedsValue("name")),
            (&["-on", "-name"], Fault::NeedsValue("name")),
        ] {
            assert_eq!(flags(words).1, Err(fault), "{words:?}");
        }
    }

    #[test]
    fn replays_the_fuzz_corpus() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/go_flags");
        let mut count = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            check(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{corpus} is empty");
    }
}
