//! Who a process is to the kernel, as `/proc` says it.

use std::fs::File;
use std::io::{self, Read};

/// Who a process is to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    /// Effective.
    pub(crate) uid: u32,
    /// Effective.
    pub(crate) gid: u32,
    /// The first [`MOST_SUPPLEMENTARY_GIDS`].
    pub(crate) supplementary_gids: Vec<u32>,
    /// Whether it has more supplementary groups than those.
    pub(crate) more_groups: bool,
}

/// Supplementary groups that are looked at. The kernel allows 65536, each of which would be two selectors in memory for
/// each process that a user starts.
pub(crate) const MOST_SUPPLEMENTARY_GIDS: usize = 1024;

/// A status file with the most supplementary groups the kernel allows, 65536, stays below this.
const MAX_STATUS_BYTES: u64 = 1 << 20;

/// The credentials of the process that has this number now.
///
/// # Errors
/// `InvalidData` when the kernel's text has another form; else why it cannot be read.
pub(crate) fn credentials(pid: i32) -> io::Result<Credentials> {
    let mut text = Vec::new();
    let file = File::open(format!("/proc/{pid}/status"))?;
    file.take(MAX_STATUS_BYTES).read_to_end(&mut text)?;
    // The first line holds the process's name, which may be any bytes.
    parse_status(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
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
