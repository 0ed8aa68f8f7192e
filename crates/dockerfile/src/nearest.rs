//! "Did you mean": the candidate with the smallest edit distance, if it is small enough to be a slip of the finger.

/// The candidate nearest to `name`, or `None` when none is near or `name` itself is among them.
/// Case is ignored first: a candidate that differs only in case is the nearest.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower: Vec<char> = name.to_lowercase().chars().collect();
    if lower.is_empty() || lower.len() > 128 {
        return None;
    }
    // A third of the word may be wrong, but never all of a short one.
    let limit = (lower.len() / 3).clamp(1, 3).max(if lower.len() > 3 { 2 } else { 1 });
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        if candidate == name {
            return None;
        }
        let other: Vec<char> = candidate.to_lowercase().chars().collect();
        if other.len().abs_diff(lower.len()) > limit {
            continue;
        }
        let distance = distance(&lower, &other);
        if distance <= limit && distance < lower.len().max(other.len()) && best.is_none_or(|(d, _)| distance < d) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Edit distance where swapping two neighbours counts once.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut current = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let substitution = previous[j] + usize::from(a[i] != b[j]);
            let mut cost = substitution.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                cost = cost.min(before[j - 1] + 1);
            }
            current[j + 1] = cost;
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let names = ["COPY", "RUN", "ENTRYPOINT", "ENV"];
        assert_eq!(nearest("COPPY", names), Some("COPY"));
        assert_eq!(nearest("copy", names), Some("COPY"));
        assert_eq!(nearest("RNU", names), Some("RUN"));
        assert_eq!(nearest("ENTYPIONT", names), Some("ENTRYPOINT"));
        assert_eq!(nearest("RUN", names), None);
        assert_eq!(nearest("apt-get", names), None);
        assert_eq!(nearest("X", ["Y"]), None);
        assert_eq!(nearest("", names), None);
    }
}
