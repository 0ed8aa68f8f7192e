//! `--filter` of lists and prunes, and the times and durations in it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kiln_engine::dockerfile::path_match;
use kiln_engine::images::{Summary, find};
use kiln_engine::oci::{Reference, Timestamp};
use kiln_engine::store::Store;

use super::parse::key_value;
use crate::error::CliError;

/// A label, or a label with a value.
#[derive(Debug)]
pub struct LabelFilter {
    name: String,
    value: Option<String>,
}

impl LabelFilter {
    /// `NAME` or `NAME=VALUE`.
    pub fn parse(text: &str) -> Self {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
        Self { name: name.to_owned(), value }
    }

    /// Whether it is among these.
    pub fn accepts(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(&self.name).is_some_and(|own| self.value.as_ref().is_none_or(|wanted| wanted == own))
    }
}

/// What an image has to fit.
#[derive(Debug)]
pub enum ImageFilter {
    /// Has no name, or has one.
    Dangling(bool),
    /// A name like this.
    Reference(String),
    /// Has a label.
    Label(LabelFilter),
    /// Does not.
    NotLabel(LabelFilter),
    /// Older than that.
    Before(Timestamp),
    /// Younger than that.
    Since(Timestamp),
}

impl ImageFilter {
    /// Reads the values of `--filter`. `allowed` are the keys that the command knows.
    pub fn parse(texts: &[String], allowed: &[&str], store: &Store) -> Result<Vec<Self>, CliError> {
        texts.iter().map(|text| Self::parse_one(text, allowed, store)).collect()
    }

    fn parse_one(text: &str, allowed: &[&str], store: &Store) -> Result<Self, CliError> {
        let (key, value) = key_value("--filter", text)?;
        let (key, negated) = key.strip_suffix('!').map_or((key.as_str(), false), |k| (k, true));
        if !allowed.contains(&key) || (negated && key != "label") {
            return Err(CliError::usage(format!("--filter {text}: the filters are {}", allowed.join(", "))));
        }
        let image_time = || -> Result<Timestamp, CliError> {
            let image = find(store, &value)?;
            let view = kiln_engine::images::best(store, &image.target, None)?;
            Ok(view.config.created.unwrap_or(Timestamp::EPOCH))
        };
        Ok(match key {
            "dangling" => Self::Dangling(match value.as_str() {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => return Err(CliError::usage(format!("--filter {text}: expected true or false"))),
            }),
            "label" if negated => Self::NotLabel(LabelFilter::parse(&value)),
            "label" => Self::Label(LabelFilter::parse(&value)),
            "before" => Self::Before(image_time()?),
            "since" => Self::Since(image_time()?),
            "until" => Self::Before(point_in_time("--filter until", &value)?),
            _ => Self::Reference(value),
        })
    }

    /// Whether an image fits.
    pub fn accepts(&self, image: &Summary) -> bool {
        let created = image.created.unwrap_or(Timestamp::EPOCH);
        match self {
            Self::Dangling(wanted) => image.names.is_empty() == *wanted,
            Self::Label(label) => label.accepts(&image.labels),
            Self::NotLabel(label) => !label.accepts(&image.labels),
            Self::Before(at) => created < *at,
            Self::Since(at) => created > *at,
            Self::Reference(pattern) => image.names.iter().any(|name| like(pattern, name)),
        }
    }

    /// Whether one name of an image fits, for filters about names.
    pub fn accepts_name(&self, name: &Reference) -> bool {
        match self {
            Self::Reference(pattern) => like(pattern, name),
            _ => true,
        }
    }
}

/// Docker's rule: the pattern is compared with the name with and without its tag, in its short and its full form.
pub fn like(pattern: &str, name: &Reference) -> bool {
    let (short, full) = (name.familiar(), name.to_string());
    let (short_name, full_name) = (name.familiar_name(), name.name());
    [short, full, short_name, full_name].iter().any(|text| path_match(pattern, text).unwrap_or(false))
}

/// A duration such as `24h` or `1h30m` before now, seconds since the epoch, or a date such as `2026-01-02T15:04:05`.
pub fn point_in_time(flag: &str, text: &str) -> Result<Timestamp, CliError> {
    if let Some(ago) = duration(text) {
        let at = SystemTime::now().checked_sub(ago).and_then(|at| Timestamp::try_from(at).ok());
        return at.ok_or_else(|| CliError::usage(format!("{flag} {text}: there was no such time")));
    }
    let seconds = text.split('.').next().and_then(|s| s.parse::<i64>().ok());
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 => format!("{text}:00Z"),
        19 => format!("{text}Z"),
        _ => text.to_owned(),
    };
    let date = || whole.parse::<Timestamp>().ok();
    seconds.and_then(|s| Timestamp::from_seconds(s).ok()).or_else(date).ok_or_else(|| {
        CliError::usage(format!("{flag} {text}: expected a duration such as 24h, or a date such as 2026-01-31"))
    })
}

/// Go's durations: `1h30m`, `1.5h`, `90s`; also days, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |e| digits + e);
        total += value
            * match &rest[digits..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_go() {
        let name = "registry.example.com/team/app:1.2".parse::<Reference>().unwrap();
        for (pattern, fits) in [
            ("registry.example.com/team/app:1.2", true),
            ("registry.example.com/team/app", true),
            ("registry.example.com/*/app:*", true),
            ("*/app", false),
            ("*app*", false),
            ("registry.example.com/team/a?p", true),
        ] {
            assert_eq!(like(pattern, &name), fits, "{pattern}");
        }
        let hub = "docker.io/library/busybox:latest".parse::<Reference>().unwrap();
        assert!(like("busy*", &hub) && like("busybox:latest", &hub) && like("docker.io/library/busybox", &hub));
    }

    #[test]
    fn durations_and_dates() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("7d"), Some(Duration::from_secs(7 * 86400)));
        assert_eq!(duration("7"), None);
        assert_eq!(point_in_time("x", "2026-01-02").unwrap().to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(point_in_time("x", "1700000000").unwrap().seconds(), 1_700_000_000);
        assert!(point_in_time("x", "yesterday").is_err());
    }
}
