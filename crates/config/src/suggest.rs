//! "Did you mean …?"

/// The candidate that `word` is most likely a slip of, or nothing when none is near. Case and the difference between
/// `-` and `_` count for little.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let normal = normalized(word);
    if normal.is_empty() || normal.len() > 64 {
        return None;
    }
    candidates
        .into_iter()
        .filter(|candidate| *candidate != word)
        .filter_map(|candidate| {
            let other = normalized(candidate);
            let distance = edit_distance(&normal, &other);
            let allowed = (normal.len().max(other.len()) / 3).min(4);
            // A dropped or added word still shows: loglevel, socket for socket_path.
            let near = distance <= allowed || (normal.len() >= 4 && other.starts_with(&normal));
            near.then_some((distance, candidate))
        })
        .min_by_key(|(distance, candidate)| (*distance, *candidate))
        .map(|(_, candidate)| candidate)
}

fn normalized(word: &str) -> Vec<char> {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Insertions, deletions, replacements and swaps of neighbours.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let get = |line: &[usize], at: usize| line.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut best = (get(&last, j) + usize::from(ca != cb))
                .min(get(&last, j + 1) + 1)
                .min(get(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca);
            if swapped {
                best = best.min(get(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &[
        "log_level",
        "log_file",
        "trust_domain",
        "bind_port",
        "bind_address",
        "ca_ttl",
    ];

    #[test]
    fn finds_the_slip() {
        for (word, want) in [
            ("loglevel", "log_level"),
            ("log-level", "log_level"),
            ("LogLevel", "log_level"),
            ("trust_doman", "trust_domain"),
            ("trsut_domain", "trust_domain"),
            ("bind_prot", "bind_port"),
            ("bind_adress", "bind_address"),
            ("ca_tl", "ca_ttl"),
            ("trust", "trust_domain"),
        ] {
            assert_eq!(closest(word, KEYS.iter().copied()), Some(want), "{word}");
        }
    }

    #[test]
    fn says_nothing_rather_than_something_far() {
        for word in ["", "x", "frobnicate", "telemetry", "___"] {
            assert_eq!(closest(word, KEYS.iter().copied()), None, "{word}");
        }
    }
}
