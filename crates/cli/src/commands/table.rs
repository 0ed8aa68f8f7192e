//! Tables as docker prints them: columns three spaces apart, no lines.

/// Prints rows below a head. The last column is not padded.
pub fn print(head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if i + 1 < row.len() {
                let pad = widths[i].saturating_sub(cell.chars().count()) + 3;
                line.push_str(&" ".repeat(pad));
            }
        }
        println!("{}", line.trim_end());
    }
}

/// `3 hours ago`, in docker's words.
pub fn ago(at: kiln_engine::oci::Timestamp) -> String {
    let seconds = at.seconds_until(kiln_engine::oci::Timestamp::now()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if seconds < 1 => "Less than a second ago".to_owned(),
        () if seconds == 1 => "1 second ago".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds ago"),
        () if minutes == 1 => "About a minute ago".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes ago"),
        () if hours == 1 => "About an hour ago".to_owned(),
        () if hours < 48 => format!("{hours} hours ago"),
        () if days < 14 => format!("{days} days ago"),
        () if days < 60 => format!("{} weeks ago", days / 7),
        () if days < 730 => format!("{} months ago", days / 30),
        () => format!("{} years ago", days / 365),
    }
}
