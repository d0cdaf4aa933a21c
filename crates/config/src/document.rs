//! A configuration file that was read.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fault::{Code, Fault, Faults};
use crate::json;
use crate::parser;
use crate::section::{Section, Shared};
use crate::source::Source;
use crate::syntax::Tree;

/// The largest configuration file that is read.
pub const MAX_BYTES: usize = 4 << 20;

/// Gives the value of an environment variable, or nothing when it is not set.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A configuration file that was read, and everything found wrong with it so far.
#[derive(Clone)]
pub struct Document {
    shared: Arc<Shared>,
}

impl Document {
    /// Reads `text`, which is JSON when its first character is `{`, else HCL 1. With an environment, variables are
    /// replaced first: `$NAME`, `${NAME}`, and `$$` for a dollar sign; one that is not set counts as empty (SPIRE:
    /// -expandEnv).
    pub fn parse(
        file_name: &str,
        text: &str,
        expand_env: Option<Environment<'_>>,
    ) -> Result<Self, Faults> {
        Self::parse_in(PathBuf::new(), file_name, text, expand_env)
    }

    fn parse_in(
        directory: PathBuf,
        file_name: &str,
        text: &str,
        expand_env: Option<Environment<'_>>,
    ) -> Result<Self, Faults> {
        let source = Source::new(file_name, text, expand_env);
        if source.text().len() > MAX_BYTES {
            return Err(too_large(file_name).into());
        }
        let parsed = if source.text().trim_start().starts_with('{') {
            json::parse(source.text())
        } else {
            parser::parse(source.text())
        };
        match parsed {
            Ok(tree) => Ok(Self {
                shared: Arc::new(Shared::new(source, tree, directory)),
            }),
            Err(error) => {
                let fault = Fault::new(Code::ConfigSyntax, error.what);
                let fault = source.locate(fault, error.span, error.hint);
                Err(match looks_like_yaml(source.text()) {
                    true => fault.hint("this looks like YAML; the configuration is HCL or JSON"),
                    false => fault,
                }
                .into())
            }
        }
    }

    /// A document in which nothing is written, for a configuration that has no file. `name` is what faults name in its
    /// place.
    pub fn without_file(name: &str) -> Self {
        let tree = Tree {
            items: Vec::new(),
            root: Vec::new(),
        };
        Self {
            shared: Arc::new(Shared::new(
                Source::new(name, "", None),
                tree,
                PathBuf::new(),
            )),
        }
    }

    /// Reads a file; see [`Self::parse`]. Further files that it names are looked for from the working directory (SPIRE: so).
    pub fn load(path: &Path, expand_env: Option<Environment<'_>>) -> Result<Self, Faults> {
        Self::load_in(PathBuf::new(), path, expand_env)
    }

    /// As [`Self::load`], but further files that it names are looked for beside it.
    pub fn load_with_files_beside(
        path: &Path,
        expand_env: Option<Environment<'_>>,
    ) -> Result<Self, Faults> {
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::load_in(directory.to_owned(), path, expand_env)
    }

    fn load_in(
        directory: PathBuf,
        path: &Path,
        expand_env: Option<Environment<'_>>,
    ) -> Result<Self, Faults> {
        let name = path.display().to_string();
        let unreadable = |because: &dyn fmt::Display| {
            Fault::new(
                Code::ConfigUnreadable,
                format!("cannot read the configuration file {name}"),
            )
            .because(because)
        };
        let file = std::fs::File::open(path).map_err(|error| unreadable(&error))?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX) + 1;
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(&error))?;
        if bytes.len() > MAX_BYTES {
            return Err(too_large(&name).into());
        }
        let text = String::from_utf8(bytes).map_err(|error| unreadable(&error.utf8_error()))?;
        Self::parse_in(directory, &name, &text, expand_env)
    }

    /// The top level of the file.
    pub fn root(&self) -> Section {
        Section::root(&self.shared)
    }

    pub fn file_name(&self) -> &str {
        self.shared.source.name()
    }

    /// What was found wrong so far, in the order of the file, then of the files it names: wrong types, and the unknown keys of the sections on
    /// which [`Section::finish`] was called.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.faults()
    }

    /// Calls [`Section::finish`] on every section that was opened, then gives all faults as an error.
    pub fn check(&self) -> Result<(), Faults> {
        self.shared.finish_all();
        Faults(self.faults()).into_result()
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("file_name", &self.file_name())
            .finish_non_exhaustive()
    }
}

/// Whether the first line that says something is `---` or `key:`, which neither HCL nor JSON begins with.
fn looks_like_yaml(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| {
        let key = line.split_once(':').filter(|(key, value)| {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            !key.is_empty() && key.chars().all(word) && (value.is_empty() || value.starts_with(' '))
        });
        line == "---" || key.is_some()
    })
}

fn too_large(file_name: &str) -> Fault {
    Fault::new(
        Code::ConfigUnreadable,
        format!(
            "the configuration file {file_name} is larger than {} MiB",
            MAX_BYTES >> 20
        ),
    )
}

#[cfg(test)]
mod tests;
