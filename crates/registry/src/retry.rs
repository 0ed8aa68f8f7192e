//! When and how often to try again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{ConnectionFault, Error};
use crate::event::{Event, EventSink};

/// Bounds for trying again after connection errors, 408, 429 and 5xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a request is sent at most. Progress of a transfer starts the count again.
    pub attempts: u32,
    /// The first wait; doubles each time, with jitter.
    pub base: Duration,
    /// The longest wait of our own choice.
    pub max: Duration,
    /// The longest wait that a server's `Retry-After` can ask for; more is an error at once.
    pub max_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_millis(300),
            max: Duration::from_secs(10),
            max_retry_after: Duration::from_secs(60),
        }
    }
}

/// A switch that ends waits and transfers early. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels everything that looks at this switch.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error if cancelled.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    fn sleep(&self, time: Duration) -> Result<(), Error> {
        let until = std::time::Instant::now() + time;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// What is left of the attempts for one operation.
pub(crate) struct Budget<'a> {
    policy: &'a RetryPolicy,
    cancel: &'a Cancel,
    events: &'a EventSink,
    spent: u32,
    patient: bool,
    pub registry: &'a str,
    pub what: &'a str,
}

impl<'a> Budget<'a> {
    pub fn new(
        policy: &'a RetryPolicy,
        cancel: &'a Cancel,
        events: &'a EventSink,
        (registry, what): (&'a str, &'a str),
    ) -> Self {
        Self { policy, cancel, events, spent: 0, patient: false, registry, what }
    }

    /// The registry was there a moment ago: if it refuses connections, it is probably being restarted.
    pub fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    /// Something was achieved since the last failure.
    pub fn progress(&mut self) {
        self.spent = 0;
    }

    /// Counts earlier failures.
    pub fn spend(&mut self, failures: u32) {
        self.spent += failures;
    }

    /// Waits and returns if the failed request is to be sent again, else gives the error back.
    pub fn failed(&mut self, error: Error) -> Result<(), Error> {
        // a refused connection rarely comes back within seconds, and mostly means a wrong name or port
        let refused = matches!(&error, Error::Connection { fault: ConnectionFault::Refused, .. });
        let exponent = self.spent;
        self.spent += if refused && !self.patient { 2 } else { 1 };
        let asked = error.retry_after();
        if !error.is_transient() || self.spent >= self.policy.attempts || asked > Some(self.policy.max_retry_after) {
            return Err(error);
        }
        let delay = asked.unwrap_or_else(|| backoff(self.policy, exponent));
        self.events.send(Event::Retry {
            registry: self.registry.to_owned(),
            what: self.what.to_owned(),
            reason: error.to_string(),
            delay,
        });
        self.cancel.sleep(delay)
    }
}

fn backoff(policy: &RetryPolicy, exponent: u32) -> Duration {
    let full = policy.base.saturating_mul(1 << exponent.min(16)).min(policy.max);
    // 50 to 100 %: enough to spread clients that failed together
    let random = (RandomState::new().hash_one(0_u8) % 1024) as u32;
    full / 2 + full * random / 2048
}

/// `Retry-After`: seconds or an HTTP date.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = UNIX_EPOCH + Duration::from_secs(parse_http_date(value.trim())?);
    Some(at.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` to seconds since the epoch.
fn parse_http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok().filter(|d| (1..=31).contains(d))?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|m| *m == name)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok().filter(|y| (1970..=9999).contains(y))?;
    let mut clock = parts.next()?.split(':').map(|n| n.parse::<u64>().ok());
    let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
    // days since 1970-01-01 of a date in the proleptic Gregorian calendar, years starting in March
    let (y, shifted) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * shifted + 2) / 5 + day - 1 - 719_468;
    (h < 24 && m < 60 && s <= 60).then_some(days * 86_400 + h * 3600 + m * 60 + s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let at = |s: u64| UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(parse_retry_after("7", at(0)), Some(Duration::from_secs(7)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(parse_retry_after(date, at(784_111_770)), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after(date, at(784_111_999)), Some(Duration::ZERO));
        assert_eq!(parse_http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(parse_http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        for bad in ["", "soon", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994", "-1"] {
            assert_eq!(parse_retry_after(bad, at(0)), None, "{bad}");
        }
    }

    #[test]
    fn the_wait_doubles_within_bounds() {
        let policy = RetryPolicy::default();
        for (n, full) in [(0, 300), (1, 600), (20, 10_000)] {
            let wait = backoff(&policy, n).as_millis();
            assert!((full / 2..=full).contains(&wait), "{n}: {wait}");
        }
    }

    #[test]
    fn attempts_are_bounded_and_long_waits_refused() {
        let policy = RetryPolicy { base: Duration::ZERO, ..RetryPolicy::default() };
        let (cancel, events) = (Cancel::new(), EventSink::default());
        let mut budget = Budget::new(&policy, &cancel, &events, ("r", "w"));
        let broken = || Error::Connection { host: "h".into(), reason: "x".into(), fault: ConnectionFault::Broken };
        assert_eq!((0..9).take_while(|_| budget.failed(broken()).is_ok()).count(), 4);
        budget.progress();
        assert!(budget.failed(broken()).is_ok());
        let limited = |s| Error::RateLimited {
            registry: "r".into(),
            retry_after: Some(Duration::from_secs(s)),
            codes: Vec::new(),
        };
        assert!(budget.failed(limited(0)).is_ok());
        assert!(budget.failed(limited(61)).is_err());
        // nobody there is given up sooner, unless somebody was
        let refused = || Error::Connection { host: "h".into(), reason: "x".into(), fault: ConnectionFault::Refused };
        let new = || Budget::new(&policy, &cancel, &events, ("r", "w"));
        for (mut budget, times) in [(new(), 2), (new().patient(), 4)] {
            assert_eq!((0..9).take_while(|_| budget.failed(refused()).is_ok()).count(), times);
        }
        cancel.cancel();
        assert!(matches!(budget.failed(broken()), Err(Error::Cancelled)));
    }
}
