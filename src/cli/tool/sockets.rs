//! Where `dev` keeps its sockets and how `run` finds them: one private directory for each user.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use config::fault::{Code, Fault};
use daemon::trusted_dir::TrustedDir;

/// The directory of the user's development instance.
#[derive(Clone, Debug)]
pub(crate) struct DevDirectory {
    pub(crate) directory: PathBuf,
}

impl DevDirectory {
    /// `--dir`, or the user's run-time directory.
    pub(crate) fn new(given: Option<&str>) -> Self {
        let directory = given.map_or_else(
            || match std::env::var_os("XDG_RUNTIME_DIR")
                .filter(|base| Path::new(base).is_absolute())
            {
                Some(base) => Path::new(&base).join("plastron-dev"),
                None => {
                    std::env::temp_dir().join(format!("plastron-dev-{}", nix::unistd::getuid()))
                }
            },
            PathBuf::from,
        );
        // The endpoint that workloads are given has to be an absolute path (SPIFFE Workload Endpoint §4).
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        Self { directory }
    }

    pub(crate) fn server_socket(&self) -> PathBuf {
        self.directory.join("server.sock")
    }

    pub(crate) fn workload_socket(&self) -> PathBuf {
        self.directory.join("workload.sock")
    }

    /// Whether a development instance of this user answers here.
    pub(crate) fn is_live(&self) -> bool {
        self.is_ours() && UnixStream::connect(self.server_socket()).is_ok()
    }

    /// A directory of this user that nobody else can enter or put another in the place of: in a shared temporary
    /// directory anybody can create one with this name.
    fn is_ours(&self) -> bool {
        TrustedDir::open(&self.directory).is_ok_and(|directory| directory.is_private())
    }

    /// Makes the directory, empty and private. A left-over of an instance that was killed is cleared away.
    pub(super) fn claim(&self) -> Result<(), Fault> {
        let at = self.directory.display().to_string();
        if self.directory.symlink_metadata().is_ok() {
            if !self.is_ours() {
                return Err(Fault::new(
                    Code::Usage,
                    "the directory for the development instance is not private to this user",
                )
                .at(at)
                .hint("remove it, or choose another with --dir"));
            }
            if self.is_live() {
                return Err(Fault::new(Code::AlreadyExists, "a development instance is running already")
                    .at(at)
                    .hint("use it with `plastron run --id web -- CMD`, stop it with Ctrl-C, or choose another --dir"));
            }
            if !self.is_left_over() {
                return Err(Fault::new(
                    Code::Usage,
                    "the directory contains something other than a development instance",
                )
                .at(at)
                .hint("choose a directory that does not exist yet with --dir"));
            }
            self.clear();
        }
        match TrustedDir::open_or_create(&self.directory, 0o700) {
            Ok(_created) => Ok(()),
            Err(error) => Err(Fault::new(
                Code::FileUnwritable,
                "cannot create the directory for the development instance",
            )
            .at(at)
            .because(error)),
        }
    }

    /// Everything in it has a name that `dev` gives.
    fn is_left_over(&self) -> bool {
        const NAMES: [&str; 5] = [
            "server",
            "agent",
            "bundle.pem",
            "server.sock",
            "workload.sock",
        ];
        std::fs::read_dir(&self.directory).is_ok_and(|mut files| {
            files.all(|file| {
                file.is_ok_and(|file| {
                    file.file_name()
                        .to_str()
                        .is_some_and(|name| NAMES.contains(&name))
                })
            })
        })
    }

    /// Removes everything; nothing is said when there is nothing.
    pub(super) fn clear(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            crate::cli::output::say(&format!(
                "warning: {} could not be removed: {error}",
                self.directory.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DevDirectory;
    use std::os::unix::fs::PermissionsExt;

    fn place(directory: &std::path::Path) -> DevDirectory {
        DevDirectory::new(Some(directory.to_str().unwrap()))
    }

    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    #[test]
    fn refuses_a_directory_that_others_can_enter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        place(dir.path()).claim().unwrap_err();
    }

    #[test]
    fn refuses_to_clear_away_what_is_not_its_own() {
        let dir = private();
        std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        place(dir.path()).claim().unwrap_err();
        assert!(dir.path().join("thesis.tex").exists());
    }

    #[test]
    fn clears_a_left_over_and_makes_it_private() {
        let dir = private();
        std::fs::write(dir.path().join("server.sock"), "").unwrap();
        let place = place(dir.path());
        place.claim().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(
            std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        place.clear();
        assert!(!dir.path().exists());
    }
}
