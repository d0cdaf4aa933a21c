//! Where a daemon keeps its data natively when nothing says otherwise. (`spire-agent` keeps SPIRE's place, the working
//! directory.)
//!
//! A daemon of root has it below `/var/lib/plastron`; that of another user below `$XDG_STATE_HOME/plastron`, which is
//! `~/.local/state/plastron` where that is not set.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::trusted_dir::this_user;

const SYSTEM: &str = "/var/lib/plastron";

/// The directory of the daemon `name` (`agent`) of this process's user.
pub fn default_data_dir(name: &str) -> PathBuf {
    let env = |name: &str| std::env::var_os(name);
    below(this_user(), env("XDG_STATE_HOME"), env("HOME")).join(name)
}

/// XDG Base Directory: relative paths are ignored. A user without a home has only the machine's directory.
fn below(user: u32, state: Option<OsString>, home: Option<OsString>) -> PathBuf {
    let absolute = |path: Option<OsString>| {
        let path = path.map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let system = || PathBuf::from(SYSTEM);
    if user == 0 {
        return system();
    }
    absolute(state)
        .or_else(|| absolute(home).map(|home| home.join(".local/state")))
        .map_or_else(system, |state| state.join("plastron"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_machines_directory_whatever_the_environment_says() {
        let state = Some("/root/state".into());
        assert_eq!(below(0, state, Some("/root".into())), PathBuf::from(SYSTEM));
    }

    #[test]
    fn another_user_has_its_own_and_never_the_working_directory() {
        for (state, home, expected) in [
            (Some("/state"), Some("/home/u"), "/state/plastron"),
            (None, Some("/home/u"), "/home/u/.local/state/plastron"),
            (Some(""), Some("/home/u"), "/home/u/.local/state/plastron"),
            (
                Some("here"),
                Some("/home/u"),
                "/home/u/.local/state/plastron",
            ),
            (None, None, SYSTEM),
            (Some("."), Some(""), SYSTEM),
        ] {
            let found = below(1000, state.map(Into::into), home.map(Into::into));
            assert_eq!(found, PathBuf::from(expected), "{state:?} {home:?}");
        }
    }
}
