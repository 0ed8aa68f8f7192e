//! Sizes as docker shows them.

/// Bytes as docker shows them: powers of 1000, three significant digits (`6.47MB`).
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (6_470_000, "6.47MB"),
            (295_000_000, "295MB"),
            (1_000, "1kB"),
            (2_910_000, "2.91MB"),
        ] {
            assert_eq!(human_size(bytes), shown);
        }
    }
}
