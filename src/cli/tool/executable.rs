//! What the agent will see as a command's executable: the kernel runs a script's interpreter, `env` runs what it finds
//! on PATH, and a shim of pyenv and its like runs the version that is chosen.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use config::fault::{Code, Fault};

use crate::cli::context::error_text;
use crate::cli::error::CliError;

/// Steps from a command to the program that runs: scripts whose interpreter is a script (the kernel follows four), `env`
/// and shims between them.
const MAX_STEPS: usize = 16;
/// As much of a script's first line as the kernel reads (BINPRM_BUF_SIZE).
const MAX_LINE: u64 = 256;
/// A shim is a few lines.
const MAX_SHIM: u64 = 8 * 1024;

/// A command, and the executable of the process that it becomes.
pub(super) struct Executable {
    /// What is executed.
    pub(super) path: PathBuf,
    /// What `/proc/PID/exe` will name.
    pub(super) attested: PathBuf,
    /// Whether it is sure; not when `env` is called in a way that is not understood.
    pub(super) is_certain: bool,
}

impl Executable {
    pub(super) fn find(name: &OsStr) -> Result<Self, CliError> {
        let search = std::env::var_os("PATH").unwrap_or_default();
        Self::find_on(name, &search)
    }

    fn find_on(name: &OsStr, search: &OsStr) -> Result<Self, CliError> {
        let Some(path) = look_up(name, search) else {
            return Err(Fault::new(Code::NotFound, format!("no command {name:?}"))
                .hint("give its path, or put its directory into PATH")
                .into());
        };
        let mut attested = path.clone();
        let mut is_certain = false;
        for _ in 0..MAX_STEPS {
            match next(&attested, search) {
                Step::Runs(next) => attested = next,
                Step::End => {
                    is_certain = true;
                    break;
                }
                Step::Unknown => break,
            }
        }
        let attested = attested.canonicalize().map_err(|error| {
            CliError::failed(format!(
                "cannot resolve {}: {}",
                attested.display(),
                error_text(&error)
            ))
        })?;
        Ok(Self {
            path,
            attested,
            is_certain,
        })
    }

    /// What to say when another program than the command runs: an identity by path is that program's.
    pub(super) fn note(&self) -> Option<String> {
        let (path, attested) = (self.path.display(), self.attested.display());
        if !self.is_certain {
            return Some(format!(
                "note: it could not be found out which program runs {path}; the registered one is {attested}. If the command gets no identity, name its selectors with --selector"
            ));
        }
        let own = self.path.canonicalize().ok()?;
        (own != self.attested).then(|| {
            format!(
                "note: {path} is run by {attested}: whatever else that program runs for this user gets the identity too; see --selector"
            )
        })
    }
}

/// A file that can be executed, found as a shell finds it.
fn look_up(name: &OsStr, search: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| is_executable(path));
    }
    std::env::split_paths(search)
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// What executing a file leads to.
enum Step {
    /// The file itself runs.
    End,
    /// This one runs in its place.
    Runs(PathBuf),
    Unknown,
}

fn next(path: &Path, search: &OsStr) -> Step {
    let Some(line) = shebang(path) else {
        return Step::End;
    };
    if let Some(target) = chosen_by_shim(path) {
        return target.map_or(Step::Unknown, Step::Runs);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let (interpreter, argument) = match text.trim().split_once([' ', '\t']) {
        Some((interpreter, argument)) => (interpreter, argument.trim()),
        None => (text.trim(), ""),
    };
    if Path::new(interpreter).file_name() != Some(OsStr::new("env")) {
        return match interpreter {
            "" => Step::Unknown,
            interpreter => Step::Runs(PathBuf::from(interpreter)),
        };
    }
    match started_by_env(argument).and_then(|name| look_up(OsStr::new(name), search)) {
        Some(program) => Step::Runs(program),
        None => Step::Unknown,
    }
}

/// The line of a script that names its interpreter, without `#!`.
fn shebang(path: &Path) -> Option<Vec<u8>> {
    let head = beginning(path, MAX_LINE)?;
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    Some(line.to_vec())
}

fn beginning(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut head)
        .ok()?;
    Some(head)
}

/// The program that `env` starts, from the one argument that the kernel passes: a name, or with `-S` words of which the
/// first ones may set variables. Other options of env change the search or the environment and are not followed.
fn started_by_env(argument: &str) -> Option<&str> {
    let words = match argument
        .strip_prefix("-S")
        .or(argument.strip_prefix("--split-string="))
    {
        Some(words) => words,
        // Without -S the kernel's one argument is the name, blanks and all.
        None if argument.contains([' ', '\t']) => return None,
        None => argument,
    };
    words
        .split_whitespace()
        .find(|word| !word.contains('='))
        .filter(|word| !word.starts_with('-') && !word.contains(['"', '\'', '\\', '$']))
}

/// The program that pyenv, rbenv, nodenv or asdf starts for one of its shims: it is asked, as `MANAGER which NAME`.
/// Nothing when the file is no shim; `Some(None)` when the manager does not say.
fn chosen_by_shim(path: &Path) -> Option<Option<PathBuf>> {
    let directory = path.parent()?.file_name()?;
    if directory != "shims" {
        return None;
    }
    let text = beginning(path, MAX_SHIM)?;
    let text = String::from_utf8_lossy(&text);
    let manager = text.lines().find_map(|line| {
        let (manager, _) = line.trim().strip_prefix("exec ")?.split_once(" exec ")?;
        Some(manager.trim_matches('"').to_owned())
    })?;
    let asked = std::process::Command::new(manager)
        .arg("which")
        .arg(path.file_name()?)
        .output()
        .ok()
        .filter(|output| output.status.success());
    let answer = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Some(
        answer
            .map(PathBuf::from)
            .filter(|program| program.is_absolute() && is_executable(program)),
    )
}

#[cfg(test)]
mod tests {
    use super::{Executable, started_by_env};
    use std::ffi::OsStr;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn found(path: &Path, search: &Path) -> (PathBuf, bool) {
        let found = Executable::find_on(path.as_os_str(), search.as_os_str()).unwrap();
        (found.attested, found.is_certain)
    }

    #[test]
    fn a_script_is_run_by_what_its_first_line_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let program = file(&dir, "bin/python3", "\x7fELF");
        let direct = file(&dir, "direct", &format!("#! {} -u\n", program.display()));
        let by_env = file(&dir, "by-env", "#!/usr/bin/env python3\n");
        let by_split = file(&dir, "by-split", "#!/usr/bin/env -S A=1 python3 -u\n");
        let nested = file(&dir, "nested", &format!("#!{}\n", by_env.display()));
        std::os::unix::fs::symlink(&by_env, dir.join("link")).unwrap();
        for script in [
            &program,
            &direct,
            &by_env,
            &by_split,
            &nested,
            &dir.join("link"),
        ] {
            let expected = (program.clone(), true);
            assert_eq!(found(script, &dir.join("bin")), expected, "{script:?}");
        }
    }

    #[test]
    fn a_shim_is_run_by_what_its_manager_chooses() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let program = file(&dir, "versions/3.13/bin/python3", "\x7fELF");
        let manager = file(
            &dir,
            "pyenv",
            &format!(
                "#!/bin/sh\n[ \"$1 $2\" = 'which python3' ] && echo {}\n",
                program.display()
            ),
        );
        let text = format!(
            "#!/bin/sh\nexec \"{}\" exec \"${{0##*/}}\" \"$@\"\n",
            manager.display()
        );
        file(&dir, "shims/python3", &text);
        file(&dir, "shims/ruby", &text);
        let script = file(&dir, "who.py", "#!/usr/bin/env python3\n");
        assert_eq!(found(&script, &dir.join("shims")), (program, true));
        // One that the manager knows no version of.
        let (_, is_certain) = found(Path::new("ruby"), &dir.join("shims"));
        assert!(!is_certain);
    }

    #[test]
    fn what_cannot_be_followed_is_not_certain() {
        let dir = tempfile::tempdir().unwrap();
        let search = dir.path().join("bin");
        for line in ["#!/usr/bin/env -i python3", "#!/usr/bin/env nowhere", "#!"] {
            let script = file(dir.path(), "script", line);
            assert!(!found(&script, &search).1, "{line}");
        }
        let round = dir.path().join("round");
        file(dir.path(), "round", &format!("#!{}\n", round.display()));
        assert!(!found(&round, &search).1);
    }

    #[test]
    fn a_command_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nothing", "./nothing", "/"] {
            assert!(Executable::find_on(OsStr::new(name), dir.path().as_os_str()).is_err());
        }
    }

    #[test]
    fn env_starts_the_first_word_that_sets_nothing() {
        for (argument, program) in [
            ("python3", Some("python3")),
            ("-S python3 -u", Some("python3")),
            ("-SA=1 B=2 node", Some("node")),
            ("--split-string=ruby -w", Some("ruby")),
            ("python3 -u", None),
            ("-i", None),
            ("-S -i python3", None),
            ("-S \"my python\"", None),
            ("", None),
        ] {
            assert_eq!(started_by_env(argument), program, "{argument}");
        }
    }
}
