//! What HCL 1 allows and newer readers do not, and what it refuses.

use super::{parse, refusal};

#[test]
fn allows_what_spire_files_do() {
    for text in [
        "a = 1, b = 2,\nc = 3",
        "s { a = 1 b = 2 }",
        "s {a=1 b=2}",
        "s { a = 1, b = 2, }",
        "s = { a = 1 t { b = 2 } }",
        "s = [ { a = 1 b = 2 }, { c = 3 } ]",
        "s = [\n  \"a\",\n  \"b\", # last\n]",
        "\"s\" \"t\" u { \"a\" = \"b\" }",
        "s\n{\n}\n",
        "a = 1 // x\n# y\nb = 2 /* z\n z */ c = 3",
        "/**/",
        "#",
        "",
        "\u{feff}a = 1",
        "a = [[1, 2], [3]]",
        "a.b-c_d = 1",
        "ключ = 1",
        "a = -1.5e-3 b = .5 c = 1e3",
        "s { }\r\nt { }\r\n",
    ] {
        parse(text);
    }
}

#[test]
fn reads_escapes_and_leaves_interpolations() {
    for (text, want) in [
        (r#""a\tb\"c\\d\n""#, "a\tb\"c\\d\n"),
        (r#""\x41\101é\U0001F600""#, "AAé😀"),
        (r#""^\\d+$""#, "^\\d+$"),
        (r#""x ${env("y")} \" z""#, "x ${env(\"y\")} \" z"),
        ("\"${a\nb}\"", "${a\nb}"),
        (r#""$ {a} $$""#, "$ {a} $$"),
        ("\"\"", ""),
    ] {
        let document = parse(&format!("a = {text}"));
        assert_eq!(document.root().string("a").as_deref(), Some(want), "{text}");
    }
}

#[test]
fn reads_text_blocks() {
    for (text, want) in [
        ("a = <<EOF\none\n two\nEOF\n", "one\n two\n"),
        ("a = <<EOF\nEOF\n", ""),
        ("a = <<EOF\n  one\n  EOF\nb = 1", "  one\n"),
        ("a = <<-EOF\n    one\n      two\n    EOF\n", "one\n  two\n"),
        ("a = <<-EOF\n  one\n    two\n    EOF\n", "  one\n    two\n"),
        ("a = <<EOF\r\none\r\nEOF\r\n", "one\n"),
        ("a = <<EOF\nEOFX\nEOF", "EOFX\n"),
    ] {
        let document = parse(text);
        assert_eq!(
            document.root().string("a").as_deref(),
            Some(want),
            "{text:?}"
        );
    }
}

#[test]
fn refuses_and_marks_the_place() {
    for (text, at, what) in [
        ("s {\n  a =\n}", "2:3", "expected a value after \"=\""),
        ("a = ", "1:1", "expected a value after \"=\""),
        ("s {\n a = 1\n", "1:3", "this block is not closed"),
        ("a = [1, 2", "1:5", "this list is not closed"),
        (
            "a = [1 2]",
            "1:8",
            "expected \",\" or \"]\" in the list, found a number",
        ),
        ("a = [,]", "1:6", "expected a value, found \",\""),
        ("a = \"x\nb = 1", "1:5", "this string is not closed"),
        ("a = \"\\d\"", "1:6", "unknown escape in a string"),
        ("a = \"\\xff\"", "1:6", "unknown escape in a string"),
        ("a = \"\\ud800\"", "1:6", "unknown escape in a string"),
        ("a = \"${x\"", "1:5", "\"${\" in this string is not closed"),
        ("a = 10.0.0.5", "1:5", "this is not a number"),
        ("a = 30s", "1:5", "this is not a number"),
        ("a = 089", "1:5", "this is not a number"),
        ("a = 0x", "1:5", "this is not a number"),
        ("a = -", "1:5", "this is not a number"),
        ("a = yes", "1:5", "expected a value, found the word \"yes\""),
        ("a = 'x'", "1:5", "unexpected single quote"),
        (
            "a 1",
            "1:1",
            "expected \"=\" or \"{\" after \"a\", found a number",
        ),
        (
            "a",
            "1:1",
            "expected \"=\" or \"{\" after \"a\", found the end of the file",
        ),
        ("a b = 1", "1:5", "\"=\" after more than one key"),
        ("= 1", "1:1", "expected a key, found \"=\""),
        ("}", "1:1", "expected a key, found \"}\""),
        ("{{}}x", "1:2", "key must be a string"),
        ("a: 1", "1:2", "unexpected character ':'"),
        ("a = /x", "1:5", "unexpected character '/'"),
        ("/* x", "1:1", "this comment is not closed"),
        ("a = <<EOF\nx\n", "1:5", "this text block is not closed"),
        (
            "a = <<\nx\n",
            "1:5",
            "this text block has no proper end mark",
        ),
        ("a = <EOF", "1:5", "unexpected character '<'"),
        ("ä = %", "1:5", "unexpected character '%'"),
        ("{\"a\": 1,}", "1:9", "key must be a string"),
        ("{\n \"a\": \n}", "3:1", "expected value"),
        ("{\"a\": 1} x", "1:10", "trailing characters"),
    ] {
        let fault = refusal(text);
        assert_eq!(
            fault.at.as_deref(),
            Some(format!("server.conf:{at}").as_str()),
            "{text:?}: {fault}"
        );
        assert_eq!(fault.what, what, "{text:?}");
        assert_eq!(fault.exit_code(), 2);
    }
}

#[test]
fn says_how_to_write_it() {
    for (text, hint) in [
        (
            "a = 30s",
            "text and durations are written in quotes: \"30s\"",
        ),
        (
            "a = 10.0.0.5:80",
            "text and durations are written in quotes: \"10.0.0.5:80\"",
        ),
        ("a = True", "did you mean true?"),
        ("a = off", "did you mean false?"),
        (
            "a = debug",
            "did you mean \"debug\", for text is written in quotes?",
        ),
        ("a = 'x'", "strings are written in double quotes"),
        (
            "s { a = 1 } }",
            "there is one \"}\" too many, or a block was closed too early",
        ),
    ] {
        assert_eq!(refusal(text).hint.as_deref(), Some(hint), "{text}");
    }
}

#[test]
fn refuses_nesting_without_end_before_the_stack_does() {
    for text in [
        "a {".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        "a ".repeat(100_000) + "{}",
        "{\"a\":".repeat(100) + "1" + &"}".repeat(100),
    ] {
        let fault = refusal(&text);
        assert_eq!(
            fault.code,
            crate::fault::Code::ConfigSyntax,
            "{}",
            fault.what
        );
    }
    parse(&format!("{}{}", "a {".repeat(60), "}".repeat(60)));
}
