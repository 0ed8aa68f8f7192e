//! "Did you mean": the known names that are nearest to a mistyped one.

/// At most `most` of `known` that are near `name`, nearest first, ties in alphabetical order.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, most: usize) -> Vec<String> {
    let limit = (name.len() / 3).clamp(1, 3);
    let mut found: Vec<(usize, &str)> = Vec::new();
    for candidate in known {
        if let Some(distance) = score(name, candidate, limit) {
            found.push((distance, candidate));
        }
    }
    found.sort_unstable();
    found.dedup();
    found.into_iter().take(most).map(|(_, name)| name.to_owned()).collect()
}

/// 0 for another case or other separators, the edit distance up to `limit`, and after these names that contain `name`.
fn score(name: &str, candidate: &str, limit: usize) -> Option<usize> {
    if candidate == name {
        return Some(0);
    }
    if let Some(distance) = edit_distance(name.as_bytes(), candidate.as_bytes(), limit) {
        return Some(distance);
    }
    let affix = name.len() >= 3 && (candidate.starts_with(name) || candidate.ends_with(name));
    affix.then(|| limit + candidate.len() - name.len())
}

/// Optimal string alignment distance (one swap of neighbours is one edit), None above `limit`.
fn edit_distance(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit || a.len() > 200 || b.len() > 200 {
        return None;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let same = x.eq_ignore_ascii_case(y) || (b"-_.".contains(x) && b"-_.".contains(y));
            let mut cost = (last[j] + usize::from(!same)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        if row.iter().all(|cost| *cost > limit) {
            return None;
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().filter(|distance| *distance <= limit)
}

/// ` (did you mean a, b?)` or nothing, for error messages.
pub(crate) fn hint(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!(" (did you mean {}?)", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_typos_swaps_case_and_parts() {
        let known = ["nodejs", "node-js-yaml", "python3", "python3.11", "ca-certificates", "libssl3"];
        assert_eq!(nearest("ndoejs", known, 3), ["nodejs"]);
        assert_eq!(nearest("NodeJS", known, 3), ["nodejs"]);
        assert_eq!(nearest("ca_certificats", known, 3), ["ca-certificates"]);
        assert_eq!(nearest("python", known, 3), ["python3", "python3.11"]);
        assert_eq!(nearest("zzzzzz", known, 3), Vec::<String>::new());
    }
}
