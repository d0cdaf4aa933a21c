//! Where the sockets are natively when nothing says otherwise. (`spire-server` and `spire-agent` keep SPIRE's paths.)
//!
//! A daemon of root has them below `/run/plastron`; that of another user below `$XDG_RUNTIME_DIR/plastron`, or, without
//! such a directory, below `/tmp/plastron-UID`, which the check of the socket's directory makes safe. A client takes its
//! own user's daemon if it has one, and the machine's otherwise.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::trusted_dir::{TrustedDir, this_user};

const SYSTEM: &str = "/run/plastron";

/// One of the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketName {
    ServerAdmin,
    Workload,
    AgentAdmin,
}

impl SocketName {
    /// The path below the run-time directory. The agent's admin socket is not where workloads may go.
    const fn below(self) -> &'static str {
        match self {
            Self::ServerAdmin => "server/api.sock",
            Self::Workload => "agent/public/api.sock",
            Self::AgentAdmin => "agent/private/admin.sock",
        }
    }

    /// Where a daemon of this process's user creates it.
    pub fn to_bind(self) -> PathBuf {
        own(this_user(), std::env::var_os("XDG_RUNTIME_DIR")).join(self.below())
    }

    /// Where a client of this process's user looks for it.
    pub fn to_connect(self) -> PathBuf {
        let own = own(this_user(), std::env::var_os("XDG_RUNTIME_DIR"));
        choose(&own, Path::new(SYSTEM), self.below())
    }
}

fn own(user: u32, runtime: Option<OsString>) -> PathBuf {
    if user == 0 {
        return PathBuf::from(SYSTEM);
    }
    match runtime
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute())
    {
        Some(directory) => directory.join("plastron"),
        None => PathBuf::from(format!("/tmp/plastron-{user}")),
    }
}

/// The own socket when it is there and nobody else can have put it there.
fn choose(own: &Path, system: &Path, below: &str) -> PathBuf {
    let socket = own.join(below);
    let is_ours = socket.exists()
        && socket
            .parent()
            .is_some_and(|parent| TrustedDir::open(parent).is_ok());
    if is_ours { socket } else { system.join(below) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn root_has_the_machines_directory_whatever_the_environment_says() {
        assert_eq!(own(0, Some("/run/user/0".into())), Path::new(SYSTEM));
    }

    #[test]
    fn another_user_has_its_own() {
        assert_eq!(
            own(1000, Some("/run/user/1000".into())),
            Path::new("/run/user/1000/plastron")
        );
        for useless in [None, Some("".into()), Some("relative".into())] {
            assert_eq!(own(1000, useless), Path::new("/tmp/plastron-1000"));
        }
    }

    #[test]
    fn a_client_takes_its_own_daemon_before_the_machines() {
        let base = tempfile::tempdir().unwrap();
        let (own, system) = (base.path().join("own"), Path::new("/run/plastron"));
        let below = SocketName::Workload.below();
        assert_eq!(choose(&own, system, below), system.join(below));
        let socket = own.join(below);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        std::fs::write(&socket, "").unwrap();
        assert_eq!(choose(&own, system, below), socket);
        // Where others can put a socket, it is not one's own.
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(choose(&own, system, below), system.join(below));
    }
}
