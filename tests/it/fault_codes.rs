//! The catalogue of fault codes: each code is raised by some code, and documents name only codes that exist.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::layering::{root, sources};

const CATALOGUE: &str = "crates/config/src/fault/code.rs";

/// The catalogue's rows: `Name = 1203, Exit, …`.
fn catalogue() -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(root().join(CATALOGUE))?;
    let rows = text.split_once("\ncodes! {").context("no catalogue")?.1;
    let codes: BTreeMap<_, _> = rows
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(" = "))
        .filter_map(|(name, rest)| Some((name.to_owned(), rest.split_once(',')?.0.to_owned())))
        .filter(|(name, number)| is_name(name) && is_number(number))
        .collect();
    ensure!(codes.len() > 50, "{} codes: not the catalogue", codes.len());
    Ok(codes)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase()) && text.chars().all(char::is_alphanumeric)
}

fn is_number(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The words that follow `mark` in `text`.
fn after<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(mark).skip(1).map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric())
            .next()
            .unwrap_or_default()
    })
}

#[test]
fn every_code_of_the_catalogue_is_raised_somewhere() -> Result<()> {
    let mut raised = BTreeSet::new();
    let mut folders = vec![root().join("src")];
    for krate in std::fs::read_dir(root().join("crates"))? {
        folders.push(krate?.path().join("src"));
    }
    for folder in folders {
        for (name, text) in sources(&folder)? {
            if !root().join(CATALOGUE).ends_with(&name) {
                raised.extend(after(&text, "Code::").map(str::to_owned));
            }
        }
    }
    let unraised: Vec<_> = catalogue()?
        .into_iter()
        .filter(|(name, _number)| !raised.contains(name))
        .collect();
    ensure!(unraised.is_empty(), "never raised: {unraised:?}");
    Ok(())
}

#[test]
fn documents_name_only_codes_of_the_catalogue() -> Result<()> {
    let numbers: BTreeSet<String> = catalogue()?.into_values().collect();
    let mut documents = Vec::new();
    for folder in [root(), root().join("docs")] {
        for item in std::fs::read_dir(folder)? {
            documents.push(item?.path());
        }
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    ensure!(documents.len() > 10, "{documents:?}");
    for path in documents {
        let text = std::fs::read_to_string(&path)?;
        for number in after(&text, "PLA-").filter(|number| is_number(number)) {
            ensure!(
                numbers.contains(number),
                "{} names PLA-{number}, which does not exist",
                path.display()
            );
        }
    }
    Ok(())
}
