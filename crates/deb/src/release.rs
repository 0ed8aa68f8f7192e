//! A suite's signed index of indexes: `InRelease`, or `Release` with `Release.gpg`.
//!
//! What is kept in the cache is what was verified, with the time until which the verification holds; it is verified
//! again when the keyring changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::context::{Context, Event, Refresh, redact};
use crate::deb822::Paragraphs;
use crate::error::{Error, Result};
use crate::fetch::{Answer, Fetcher, Validators};
use crate::files;
use crate::keyring::{Clock, Good, Keyring};
use crate::sources::Repository;
use crate::time;

/// Debian's InRelease has 150 kB, Ubuntu's 270 kB.
const MAX_RELEASE: u64 = 16 << 20;
/// How far a Release file may be from the future.
const MAX_FUTURE: i64 = 24 * 3600;

/// The fields of a verified `Release` that matter here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Hash of the signed text.
    pub sha256: String,
    /// `Date`, in seconds.
    pub date: i64,
    /// `Valid-Until`, in seconds.
    pub valid_until: Option<i64>,
    /// `Codename`.
    pub codename: String,
    /// `Origin`, `Debian` for instance.
    pub origin: String,
    /// `Version` of the distribution.
    pub version: String,
    /// `Architectures`.
    pub architectures: Vec<String>,
    /// `Components`.
    pub components: Vec<String>,
    /// `Acquire-By-Hash`.
    pub by_hash: bool,
    /// Packages for all architectures are not repeated in each architecture's index.
    pub separate_all: bool,
    /// Address pattern of the archive's snapshots.
    pub snapshots: Option<String>,
    /// The `Packages` indexes: path below the suite to (sha256, size).
    pub files: BTreeMap<String, (String, u64)>,
}

/// A cached release with what is needed to use it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Cached {
    format: u32,
    checked_at: i64,
    keyring: String,
    not_after: Option<i64>,
    validators: Validators,
    release: Release,
}

const FORMAT: u32 = 1;

/// Gets a suite's release, from the cache or the mirror. None when an optional suite does not exist.
pub fn get(
    context: &Context<'_>,
    fetcher: &Fetcher<'_>,
    repository: &Repository,
    at: Option<i64>,
) -> Result<Option<Release>> {
    let base = format!("{}/dists/{}", repository.uri, repository.suite);
    let shown = redact(&base);
    let keyring = Keyring::load(&repository.keys, context.host(), &shown)?;
    let path = context.dir("release")?.join(format!("{}.json", kiln_oci::Digest::of(base.as_bytes()).hex()));
    let check = Check { context, fetcher, at };
    let cached = load(&path).filter(|c| c.keyring == keyring.digest.to_string() && check.still_good(c));
    if let Some(cached) = cached.as_ref().filter(|c| check.fresh(c)) {
        return Ok(Some(cached.release.clone()));
    }
    context.send(Event::Index { url: &shown });
    let known = cached.as_ref().map(|c| c.validators.clone()).unwrap_or_default();
    let fetched = check.fetch(&base, &keyring, &known);
    let (mut new, good) = match (fetched, cached) {
        (Ok(Fetched::Absent), _) if repository.optional => return Ok(None),
        (Ok(Fetched::Absent), _) => {
            let (url, suite) = (redact(&repository.uri), repository.suite.clone());
            return Err(Error::UnknownSuite { url, suite, nearest: Vec::new() });
        }
        (Ok(Fetched::Same), Some(cached)) => (cached, None),
        (Ok(Fetched::Same), None) => return Err(unexpected_304(&shown)),
        (Ok(Fetched::New { release, good, validators }), cached) => {
            if let Some(newer) = cached.filter(|c| c.release.date > release.date) {
                // An attacker, or a mirror out of sync: either way going back is not what anybody wants.
                let had = time::day(newer.release.date);
                context.send(Event::Warning(&format!("{shown} is older than the one of {had} already seen: not used")));
                return Ok(Some(newer.release));
            }
            let keyring = keyring.digest.to_string();
            let new = Cached { format: FORMAT, checked_at: 0, keyring, not_after: good.not_after, validators, release };
            (new, Some(good))
        }
        (Err(error @ (Error::Network { .. } | Error::Http { .. })), Some(cached)) => {
            context.send(Event::Warning(&format!(
                "using the index of {} from the cache: {error}",
                time::day(cached.release.date)
            )));
            return Ok(Some(cached.release));
        }
        (Err(error), _) => return Err(error),
    };
    if good.is_some() {
        check.dates(&shown, &new.release)?;
    }
    new.checked_at = context.now;
    if let Ok(text) = serde_json::to_vec(&new) {
        files::write_atomically(&path, &text)?;
    }
    Ok(Some(new.release))
}

fn unexpected_304(url: &str) -> Error {
    Error::Network {
        url: url.to_owned(),
        reason: "the mirror says that nothing changed, though nothing is known".into(),
    }
}

enum Fetched {
    New { release: Release, good: Good, validators: Validators },
    Same,
    Absent,
}

struct Check<'a> {
    context: &'a Context<'a>,
    fetcher: &'a Fetcher<'a>,
    /// The moment of a snapshot, at which its expiry is judged.
    at: Option<i64>,
}

impl Check<'_> {
    /// The time that counts: now, or the moment of the snapshot.
    fn now(&self) -> i64 {
        self.at.unwrap_or(self.context.now)
    }

    fn clock(&self) -> Clock {
        Clock { now: self.context.now, current: self.now() }
    }

    fn still_good(&self, cached: &Cached) -> bool {
        let expired = |until: Option<i64>| until.is_some_and(|until| until <= self.now());
        let ignored = !self.fetcher.conf().flag("Acquire::Check-Valid-Until", true) || self.at.is_some();
        !expired(cached.not_after) && (ignored || !expired(cached.release.valid_until))
    }

    fn fresh(&self, cached: &Cached) -> bool {
        match self.context.refresh {
            Refresh::Always => false,
            Refresh::Offline => true,
            // A snapshot never changes.
            Refresh::After(_) if self.at.is_some() => true,
            Refresh::After(seconds) => {
                let age = self.context.now - cached.checked_at;
                (0..i64::from(seconds)).contains(&age)
            }
        }
    }

    fn fetch(&self, base: &str, keyring: &Keyring, known: &Validators) -> Result<Fetched> {
        let url = format!("{base}/InRelease");
        let shown = redact(&url);
        match self.fetcher.get(&url, MAX_RELEASE, known)? {
            Answer::NotModified => return Ok(Fetched::Same),
            Answer::Body(bytes, validators) => {
                let (text, good) = keyring.verify_inline(&shown, &bytes, self.clock())?;
                return Ok(Fetched::New { release: parse(&shown, &text)?, good, validators });
            }
            Answer::NotFound => {}
        }
        let url = format!("{base}/Release");
        let shown = redact(&url);
        let Answer::Body(text, _) = self.fetcher.get(&url, MAX_RELEASE, &Validators::default())? else {
            return Ok(Fetched::Absent);
        };
        let reason =
            || Error::Signature { url: shown.clone(), reason: "there is neither InRelease nor Release.gpg".into() };
        match self.fetcher.get(&format!("{url}.gpg"), MAX_RELEASE, &Validators::default())? {
            Answer::Body(signature, _) => {
                let good = keyring.verify_detached(&shown, &text, &signature, self.clock())?;
                // Release and its signature are two files, so that "not modified" of one says nothing.
                Ok(Fetched::New { release: parse(&shown, &text)?, good, validators: Validators::default() })
            }
            _ => Err(reason()),
        }
    }

    fn dates(&self, url: &str, release: &Release) -> Result<()> {
        let conf = self.fetcher.conf();
        if conf.flag("Acquire::Check-Date", true) && release.date > self.context.now + MAX_FUTURE {
            return Err(Error::FromTheFuture { url: url.to_owned(), date: release.date });
        }
        match release.valid_until.filter(|until| *until <= self.context.now) {
            Some(until) if self.at.is_none() && conf.flag("Acquire::Check-Valid-Until", true) => {
                Err(Error::Expired { url: url.to_owned(), until })
            }
            _ => Ok(()),
        }
    }
}

fn load(path: &std::path::Path) -> Option<Cached> {
    let bytes = files::read_limited(path, MAX_RELEASE).ok()?;
    serde_json::from_slice::<Cached>(&bytes).ok().filter(|c| c.format == FORMAT)
}

/// Reads the verified text.
fn parse(url: &str, text: &[u8]) -> Result<Release> {
    let malformed = |reason: String| Error::Malformed { what: url.to_owned(), reason };
    let paragraph = Paragraphs::new(text).next().ok_or_else(|| malformed("it is empty".into()))?;
    let get = |name: &str| paragraph.get(name).unwrap_or_default();
    let words = |name: &str| get(name).split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let yes = |name: &str| get(name).eq_ignore_ascii_case("yes");
    let date = |name: &str| match get(name) {
        "" => Ok(None),
        value => time::parse_release_date(value)
            .map(Some)
            .ok_or_else(|| malformed(format!("{name}: {value:?} is not a date"))),
    };
    let architectures = words("Architectures");
    let has_all = architectures.iter().any(|a| a == "all");
    Ok(Release {
        sha256: kiln_oci::Digest::of(text).hex(),
        date: date("Date")?.ok_or_else(|| malformed("it has no Date".into()))?,
        valid_until: date("Valid-Until")?,
        codename: get("Codename").to_owned(),
        origin: get("Origin").to_owned(),
        version: get("Version").to_owned(),
        components: words("Components"),
        by_hash: yes("Acquire-By-Hash"),
        separate_all: has_all && get("No-Support-for-Architecture-all") != "Packages",
        snapshots: Some(get("Snapshots")).filter(|s| s.contains("@SNAPSHOTID@")).map(str::to_owned),
        files: index_files(get("SHA256")),
        architectures,
    })
}

/// The lines ` sha256 size path` for `Packages` files.
fn index_files(field: &str) -> BTreeMap<String, (String, u64)> {
    let mut files = BTreeMap::new();
    for line in field.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(hash), Some(size), Some(path)) = (words.next(), words.next(), words.next()) else { continue };
        let wanted = path.contains("/binary-") && path.rsplit('/').next().is_some_and(|n| n.starts_with("Packages"));
        let Ok(size) = size.parse() else { continue };
        if wanted && files::unhex(hash).is_some() {
            files.insert(path.to_owned(), (hash.to_ascii_lowercase(), size));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields() {
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let text = format!(
            "Origin: Debian\r\nCodename: bookworm\r\nDate: Sat, 11 Jul 2026 10:16:37 UTC\r\nAcquire-By-Hash: yes\r\nArchitectures: all amd64\r\nComponents: main\r\nMD5Sum:\r\n d41d8cd98f00b204e9800998ecf8427e 0 main/binary-amd64/Packages\r\nSHA256:\r\n {hash} 12 main/binary-amd64/Packages.xz\r\n {hash} 12 main/source/Sources.xz\r\n zz 1 main/binary-amd64/Packages\r\n"
        );
        let release = parse("x", text.as_bytes()).unwrap();
        assert_eq!((release.date, release.by_hash, release.separate_all), (1_783_764_997, true, true));
        assert_eq!(
            release.files.into_iter().collect::<Vec<_>>(),
            [("main/binary-amd64/Packages.xz".into(), (hash.into(), 12))]
        );
        assert!(parse("x", b"Origin: y\n").unwrap_err().to_string().contains("no Date"));
        assert!(parse("x", b"Date: tomorrow\n").unwrap_err().to_string().contains("not a date"));
    }
}
