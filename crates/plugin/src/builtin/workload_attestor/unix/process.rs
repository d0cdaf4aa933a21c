//! What `/proc` says of a process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::problem::Problem;
use crate::workload_attestor::credentials::{self, Credentials};

pub(super) fn credentials(pid: i32) -> Result<Credentials, Problem> {
    let what = "the credentials";
    credentials::credentials(pid).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => Problem::Unintelligible { pid, what },
        _ => Problem::Unreadable { pid, what, source },
    })
}

/// The path of the program, as the kernel knows it. Works for programs that may not be read.
pub(super) fn program_path(pid: i32) -> Result<String, Problem> {
    let path =
        std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|source| Problem::Unreadable {
            pid,
            what: "the program's path",
            source,
        })?;
    path.into_os_string()
        .into_string()
        .map_err(|_not_utf8| Problem::Unintelligible {
            pid,
            what: "the program's path",
        })
}

/// The program itself, open, and the path of what is open: the two cannot be of different files.
pub(super) fn program(pid: i32) -> Result<(File, String), Problem> {
    let unreadable = |what| move |source| Problem::Unreadable { pid, what, source };
    let file = File::open(format!("/proc/{pid}/exe")).map_err(unreadable("the program"))?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(unreadable("the program's path"))?;
    let path =
        path.into_os_string()
            .into_string()
            .map_err(|_not_utf8| Problem::Unintelligible {
                pid,
                what: "the program's path",
            })?;
    Ok((file, path))
}
