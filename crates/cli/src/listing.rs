//! Lists as docker shows them: a table, JSON lines, or a Go template for each row (`table …` adds the heads).

use kiln_engine::oci::Timestamp;
use serde_json::{Map, Value};

use crate::error::CliError;
use crate::output;
use crate::template::{Template, TemplateError};

/// A row: text by field.
pub type Row = Map<String, Value>;

/// What `--format` says.
#[derive(Debug)]
pub enum Format {
    /// The columns of the command.
    Table,
    /// One JSON object a line.
    Json,
    /// A template for each row.
    Rows(Template),
    /// A template for each row, below the heads of its fields.
    Columns(Template),
}

/// A list to print.
pub struct Listing<'a> {
    /// Field and head of all columns there are.
    pub heads: &'a [(&'a str, &'a str)],
    /// Fields of the table.
    pub shown: &'a [&'a str],
    /// The rows.
    pub rows: &'a [Row],
}

impl Format {
    /// Reads the value of `--format`.
    pub fn parse(text: Option<&str>) -> Result<Self, CliError> {
        let template = |text: &str| {
            // Shells pass `\t` in quotes on as it is.
            Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n")).map_err(invalid)
        };
        match text {
            None | Some("" | "table") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(columns) => template(columns.trim_start()).map(Self::Columns),
                None => template(text).map(Self::Rows),
            },
        }
    }
}

/// A template that can't be used.
pub fn invalid(error: TemplateError) -> CliError {
    CliError::usage(format!("--format: {error}"))
}

impl Listing<'_> {
    /// Prints it.
    pub fn print(&self, format: &Format) -> Result<(), CliError> {
        let mut text = String::new();
        match format {
            Format::Table => {
                let cells = |row: &Row| self.shown.iter().map(|f| cell(row, f)).collect::<Vec<_>>();
                let head = self.shown.iter().map(|f| self.head(f).to_owned()).collect();
                let rows: Vec<Vec<String>> = std::iter::once(head).chain(self.rows.iter().map(cells)).collect();
                text = aligned(&rows);
            }
            Format::Json => {
                for row in self.rows {
                    text.push_str(&format!("{}\n", Value::Object(row.clone())));
                }
            }
            Format::Rows(template) => {
                for row in self.rows {
                    text.push_str(&template.render(&Value::Object(row.clone())).map_err(invalid)?);
                    text.push('\n');
                }
            }
            Format::Columns(template) => {
                let heads = self.heads.iter().map(|(f, h)| ((*f).to_owned(), (*h).into())).collect();
                let mut lines = vec![template.render_heads(&Value::Object(heads)).map_err(invalid)?];
                for row in self.rows {
                    lines.push(template.render(&Value::Object(row.clone())).map_err(invalid)?);
                }
                let rows: Vec<Vec<String>> = lines.iter().map(|l| l.split('\t').map(str::to_owned).collect()).collect();
                text = aligned(&rows);
            }
        }
        output::print(&text)
    }

    fn head(&self, field: &str) -> &str {
        self.heads.iter().find(|(f, _)| *f == field).map_or("", |(_, head)| head)
    }
}

fn cell(row: &Row, field: &str) -> String {
    match row.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Columns as docker aligns them: three spaces apart, none narrower than ten.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            if index == widths.len() {
                widths.push(10);
            }
            widths[index] = widths[index].max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if index + 1 < row.len() {
                line.push_str(&" ".repeat(widths[index].saturating_sub(cell.chars().count())));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A row of text fields.
pub fn row<const N: usize>(fields: [(&str, String); N]) -> Row {
    fields.into_iter().map(|(field, text)| (field.to_owned(), Value::String(text))).collect()
}

/// `3 hours ago`, in docker's words.
pub fn ago(at: Timestamp) -> String {
    format!("{} ago", age(at.seconds_until(Timestamp::now())))
}

/// A length of time in docker's words.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, (seconds + 1800) / 3600, seconds / 86400);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if days < 14 => format!("{days} days"),
        () if days < 60 => format!("{} weeks", days / 7),
        () if days < 730 => format!("{} months", days / 30),
        () => format!("{} years", days / 365),
    }
}

/// A point in time as Go prints it: `2026-01-02 03:04:05 +0000 UTC`.
pub fn go_time(at: Timestamp) -> String {
    let whole = Timestamp::from_seconds(at.seconds()).unwrap_or(at).to_string();
    whole.replace('T', " ").replace('Z', " +0000 UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_as_docker_does() {
        let rows = [["REPOSITORY", "TAG", "SIZE"], ["a", "latest", "1B"]].map(|r| r.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), "REPOSITORY   TAG       SIZE\na            latest    1B\n");
    }

    #[test]
    fn ages_are_in_dockers_words() {
        for (seconds, shown) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3600, "About an hour"),
            (2 * 86400 - 3600, "47 hours"),
            (86400 * 3, "3 days"),
            (86400 * 20, "2 weeks"),
            (86400 * 90, "3 months"),
            (86400 * 800, "2 years"),
        ] {
            assert_eq!(age(seconds), shown);
        }
        assert_eq!(go_time(Timestamp::from_seconds(1_700_000_000).unwrap()), "2023-11-14 22:13:20 +0000 UTC");
    }
}
