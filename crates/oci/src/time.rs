//! Points in time as image configs hold them: RFC 3339, UTC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, printed as RFC 3339 in UTC with as many fractional digits as are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

/// A string that is not RFC 3339, or a number of seconds that no timestamp has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a timestamp")]
pub struct TimestampError(String);

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// Now.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// From seconds since the Unix epoch, the unit of `SOURCE_DATE_EPOCH`.
    pub fn from_seconds(seconds: i64) -> Result<Self, TimestampError> {
        jiff::Timestamp::from_second(seconds).map(Self).map_err(|_| TimestampError(seconds.to_string()))
    }

    /// Whole seconds since the Unix epoch.
    pub fn seconds(&self) -> i64 {
        self.0.as_second()
    }

    /// Seconds from `self` to `later`; negative if `later` is before.
    pub fn seconds_until(&self, later: Timestamp) -> i64 {
        later.seconds() - self.seconds()
    }

    /// Time from `self` to `later`; zero if `later` is before.
    pub fn duration_until(&self, later: Timestamp) -> std::time::Duration {
        later.0.duration_since(self.0).try_into().unwrap_or_default()
    }
}

impl TryFrom<std::time::SystemTime> for Timestamp {
    type Error = TimestampError;

    fn try_from(at: std::time::SystemTime) -> Result<Self, TimestampError> {
        jiff::Timestamp::try_from(at).map(Self).map_err(|_| TimestampError(format!("{at:?}")))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(s: &str) -> Result<Self, TimestampError> {
        s.parse().map(Self).map_err(|_| TimestampError(s.chars().take(64).collect()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}
