//! The two date spellings of archives, to and from seconds since 1970 (UTC only).

/// Parses a `Release` date, `Sat, 11 Jul 2026 10:16:37 UTC`.
pub fn parse_release_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.trim().split_ascii_whitespace().skip_while(|word| word.ends_with(','));
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(month))? as i64 + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    matches!(words.next()?, "UTC" | "GMT" | "Z" | "+0000").then_some(())?;
    seconds([year, month, day, hour, minute, second])
}

/// Parses a snapshot's `YYYYMMDDTHHMMSSZ`.
pub fn parse_snapshot(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('Z')?;
    let (date, clock) = digits.split_once('T')?;
    let all_digits = date.bytes().chain(clock.bytes()).all(|c| c.is_ascii_digit());
    if !all_digits || date.len() != 8 || clock.len() != 6 {
        return None;
    }
    let part = |text: &str, from: usize, to: usize| text[from..to].parse::<i64>().ok();
    seconds([
        part(date, 0, 4)?,
        part(date, 4, 6)?,
        part(date, 6, 8)?,
        part(clock, 0, 2)?,
        part(clock, 2, 4)?,
        part(clock, 4, 6)?,
    ])
}

/// `YYYY-MM-DD`, for messages.
pub fn day(seconds: i64) -> String {
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    format!("{year:04}-{month:02}-{day:02}")
}

/// Seconds of `[year, month, day, hour, minute, second]` (Howard Hinnant's `days_from_civil`).
fn seconds(parts: [i64; 6]) -> Option<i64> {
    let [year, month, day, hour, minute, second] = parts;
    let good = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    if !good {
        return None;
    }
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    (civil(days) == (year, month, day)).then_some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Year, month and day of a day number.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(parse_release_date("Sat, 11 Jul 2026 10:16:37 UTC"), Some(1_783_764_997));
        assert_eq!(parse_release_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(parse_release_date("29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(parse_snapshot("20240229T000000Z"), Some(1_709_164_800));
        assert_eq!(day(1_783_764_997), "2026-07-11");
        for bad in ["", "Sat, 11 Jul 2026", "Sat, 31 Feb 2026 10:16:37 UTC", "1 Jan 2026 1:2:3 CET", "x"] {
            assert_eq!(parse_release_date(bad), None, "{bad}");
        }
        for bad in ["20240229", "20240229T000000", "20241329T000000Z", "2024022éT00000Z"] {
            assert_eq!(parse_snapshot(bad), None, "{bad}");
        }
    }
}
