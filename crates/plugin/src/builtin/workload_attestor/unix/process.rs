//! What `/proc` says of a process.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use super::problem::Problem;

/// Who a process is to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Credentials {
    /// Effective.
    pub(super) uid: u32,
    /// Effective.
    pub(super) gid: u32,
    /// The first [`MOST_SUPPLEMENTARY_GIDS`].
    pub(super) supplementary_gids: Vec<u32>,
    /// Whether it has more supplementary groups than those.
    pub(super) more_groups: bool,
}

/// Supplementary groups that are looked at. The kernel allows 65536, each of which would be two selectors in memory for
/// each process that a user starts.
pub(super) const MOST_SUPPLEMENTARY_GIDS: usize = 1024;

/// A status file with the most supplementary groups the kernel allows, 65536, stays below this.
const MAX_STATUS_BYTES: u64 = 1 << 20;

pub(super) fn credentials(pid: i32) -> Result<Credentials, Problem> {
    let unreadable = |source: io::Error| Problem::Unreadable {
        pid,
        what: "the credentials",
        source,
    };
    let mut text = Vec::new();
    let file = File::open(format!("/proc/{pid}/status")).map_err(unreadable)?;
    file.take(MAX_STATUS_BYTES)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    // The first line holds the process's name, which may be any bytes.
    parse_status(&String::from_utf8_lossy(&text)).ok_or(Problem::Unintelligible {
        pid,
        what: "the credentials",
    })
}

/// Lines `Uid:` and `Gid:` with real, effective, saved and file system number, and `Groups:` (proc(5)).
fn parse_status(text: &str) -> Option<Credentials> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
    };
    let effective = |name: &str| field(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
    let mut groups = field("Groups").unwrap_or_default().split_ascii_whitespace();
    Some(Credentials {
        uid: effective("Uid")?,
        gid: effective("Gid")?,
        supplementary_gids: groups
            .by_ref()
            .take(MOST_SUPPLEMENTARY_GIDS)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?,
        more_groups: groups.next().is_some(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_numbers_and_the_groups() {
        let text = "Name:\tUid:\t9\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t8\nGroups:\t4 27 1000 \nVmPeak:\t1 kB\n";
        let want = Credentials {
            uid: 1001,
            gid: 6,
            supplementary_gids: vec![4, 27, 1000],
            more_groups: false,
        };
        assert_eq!(parse_status(text), Some(want));
    }

    #[test]
    fn a_process_without_further_groups_has_none() {
        let text = "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \n";
        assert!(parse_status(text).unwrap().supplementary_gids.is_empty());
    }

    #[test]
    fn groups_beyond_the_limit_are_not_looked_at_and_it_is_known_that_there_are_more() {
        for (count, more) in [
            (MOST_SUPPLEMENTARY_GIDS, false),
            (MOST_SUPPLEMENTARY_GIDS + 1, true),
            (65536, true),
        ] {
            let groups: String = (0..count).map(|gid| format!("{gid} ")).collect();
            let text = format!("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t{groups}\n");
            let credentials = parse_status(&text).unwrap();
            assert_eq!(
                credentials.supplementary_gids.len(),
                MOST_SUPPLEMENTARY_GIDS
            );
            assert_eq!(credentials.supplementary_gids.last(), Some(&1023));
            assert_eq!(credentials.more_groups, more, "{count}");
        }
    }

    #[test]
    fn a_status_without_numbers_is_refused() {
        for text in [
            "",
            "Uid:\t0\t0\t0\t0\n",
            "Gid:\t0\t0\t0\t0\n",
            "Uid:\t0\nGid:\t0\t0\t0\t0\n",
            "Uid:\t0\tx\t0\t0\nGid:\t0\t0\t0\t0\n",
            "Uid:\t0\t-1\t0\t0\nGid:\t0\t0\t0\t0\n",
            "Uid:\t0\t4294967296\t0\t0\nGid:\t0\t0\t0\t0\n",
            "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t1 x\n",
        ] {
            assert_eq!(parse_status(text), None, "{text:?}");
        }
    }
}
