//! The suites of a spec with their package indexes: fetched, verified, and ready to be searched.

use kiln_compress::{Format, LimitReader, decoder_for};
use std::io::Read;

use crate::context::{Context, Event, Refresh, redact};
use crate::error::{Error, Result};
use crate::fetch::{Answer, Expected, Fetcher, Validators, verify_bytes};
use crate::files;
use crate::index::Index;
use crate::release::{self, Release};
use crate::sources::{self, Repository};
use crate::spec::Spec;
use crate::suggest;

/// Largest compressed and uncompressed index; Debian's main has 12 and 50 MB.
const MAX_COMPRESSED: u64 = 256 << 20;
const MAX_INDEX: u64 = 2 << 30;

/// One suite, verified.
pub struct Suite {
    pub repository: Repository,
    pub release: Release,
    pub indexes: Vec<Index>,
}

/// All suites of a spec.
pub struct Archive {
    pub suites: Vec<Suite>,
}

/// Spellings of an index, cheapest to decode first: on a fast link, decoding xz takes longer than the bytes it saves.
const SPELLINGS: [(&str, Format); 4] =
    [(".gz", Format::Gzip), (".zst", Format::Zstd), (".xz", Format::Xz), ("", Format::Plain)];

/// Finds and verifies the suites that a spec needs, without their indexes.
pub fn open(context: &Context<'_>, fetcher: &Fetcher<'_>, spec: &Spec, arch: &str) -> Result<Archive> {
    let repositories = repositories(context, spec, arch)?;
    let known: Vec<String> =
        sources::load(context.host()).map(|e| sources::suites(&e).map(str::to_owned).collect()).unwrap_or_default();
    let found = in_parallel(repositories, |repository| release_of(context, fetcher, spec, repository));
    let found = found.map_err(|error| match error {
        Error::UnknownSuite { url, suite, .. } => {
            let nearest = suggest::nearest(&suite, known.iter().map(String::as_str), 3);
            Error::UnknownSuite { url, suite, nearest }
        }
        error => error,
    })?;
    let suites: Vec<Suite> = found
        .into_iter()
        .flatten()
        .map(|(repository, release)| Suite { repository, release, indexes: Vec::new() })
        .collect();
    match suites.is_empty() {
        false => Ok(Archive { suites }),
        true => Err(Error::NoSources { suite: spec.suite.clone(), why: "none of its archives has it".into() }),
    }
}

impl Archive {
    /// Fetches the package indexes, or takes them from the cache.
    pub fn load(&mut self, context: &Context<'_>, fetcher: &Fetcher<'_>, arch: &str) -> Result<()> {
        let suites = std::mem::take(&mut self.suites);
        self.suites = in_parallel(suites, |mut suite| {
            suite.indexes = indexes(context, fetcher, &suite, arch)?;
            Ok(suite)
        })?;
        Ok(())
    }
}

/// One thread for each item; the results in the order of the items, or the first error in it.
fn in_parallel<T: Send, U: Send>(items: Vec<T>, work: impl Fn(T) -> Result<U> + Sync) -> Result<Vec<U>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Cancelled))).collect()
    })
}

/// The repositories of a spec.
pub fn repositories(context: &Context<'_>, spec: &Spec, arch: &str) -> Result<Vec<Repository>> {
    let entries = match sources::load(context.host()) {
        Ok(entries) => entries,
        // Someone who names a mirror does not depend on what apt is told.
        Err(_) if spec.mirror.is_some() => Vec::new(),
        Err(error) => return Err(error),
    };
    sources::select(spec, &entries, arch)
}

fn indexes(context: &Context<'_>, fetcher: &Fetcher<'_>, suite: &Suite, arch: &str) -> Result<Vec<Index>> {
    let (repository, release) = (&suite.repository, &suite.release);
    let mut indexes = Vec::new();
    for component in components(repository, release)? {
        let mut arches = vec![arch];
        if release.separate_all {
            arches.push("all");
        }
        let mut found = false;
        for directory in arches {
            let location = Location { repository, release, component: &component, directory };
            if let Some(index) = location.index(context, fetcher, arch)? {
                indexes.push(index);
                found = true;
            }
        }
        if !found && !repository.optional && (!repository.lenient || component == "main") {
            return Err(nothing_for(repository, release, &component, arch));
        }
    }
    Ok(indexes)
}

/// The release of a repository; for a snapshot, that of the archive's snapshot service.
fn release_of(
    context: &Context<'_>,
    fetcher: &Fetcher<'_>,
    spec: &Spec,
    mut repository: Repository,
) -> Result<Option<(Repository, Release)>> {
    let Some(id) = &spec.snapshot else {
        return Ok(release::get(context, fetcher, &repository, None)?.map(|release| (repository, release)));
    };
    let at = crate::time::parse_snapshot(id);
    let direct = spec.mirror.as_ref().is_some_and(|mirror| mirror.contains("@SNAPSHOTID@"));
    if !direct {
        let Some(current) = release::get(context, fetcher, &repository, None)? else { return Ok(None) };
        let Some(pattern) = current.snapshots.filter(|p| p.starts_with("http")) else {
            return Err(Error::NoSnapshots { suite: repository.suite });
        };
        repository.uri = pattern.replace("@SNAPSHOTID@", id).trim_end_matches('/').to_owned();
    }
    Ok(release::get(context, fetcher, &repository, at)?.map(|release| (repository, release)))
}

/// The components to use; an absent one is an error if somebody asks for it, in the base suite at least.
fn components(repository: &Repository, release: &Release) -> Result<Vec<String>> {
    // Old security suites call theirs `updates/main`.
    let available: Vec<&str> = release.components.iter().map(|c| c.rsplit('/').next().unwrap_or(c)).collect();
    let mut wanted = Vec::new();
    for component in &repository.components {
        match available.contains(&component.as_str()) || available.is_empty() {
            true => wanted.push(component.clone()),
            false if repository.optional => {}
            false if repository.lenient && component != "main" => {}
            false => {
                return Err(Error::UnknownComponent {
                    suite: repository.suite.clone(),
                    component: component.clone(),
                    available: available.iter().map(|c| (*c).to_owned()).collect(),
                });
            }
        }
    }
    Ok(wanted)
}

fn nothing_for(repository: &Repository, release: &Release, component: &str, arch: &str) -> Error {
    let suite = repository.suite.clone();
    if release.architectures.iter().any(|a| a == arch) || release.architectures.is_empty() {
        let (component, available) = (component.to_owned(), release.components.clone());
        return Error::UnknownComponent { suite, component, available };
    }
    let available = release.architectures.iter().filter(|a| *a != "all").cloned().collect();
    Error::UnknownArchitecture { suite, arch: arch.to_owned(), available }
}

struct Location<'a> {
    repository: &'a Repository,
    release: &'a Release,
    component: &'a str,
    directory: &'a str,
}

impl Location<'_> {
    /// The index, from the cache or the mirror; None if the suite has none here.
    fn index(&self, context: &Context<'_>, fetcher: &Fetcher<'_>, arch: &str) -> Result<Option<Index>> {
        let stem = format!("{}/binary-{}/Packages", self.component, self.directory);
        let spellings: Vec<(String, Format, &(String, u64))> = SPELLINGS
            .iter()
            .filter_map(|(suffix, format)| {
                let path = format!("{stem}{suffix}");
                let signed = self.release.files.get(&path)?;
                Some((path, *format, signed))
            })
            .collect();
        let dir = context.dir("index")?;
        let cached = |hash: &str| dir.join(format!("{hash}-{arch}"));
        for (_, _, (hash, _)) in &spellings {
            let read = files::open_if_exists(&cached(hash))?.and_then(|_| std::fs::read(cached(hash)).ok());
            if let Some(index) = read.and_then(Index::from_bytes) {
                return Ok(Some(index));
            }
        }
        let plain = self.release.files.get(&stem);
        let mut missing = None;
        for (path, format, signed) in &spellings {
            match self.fetch(context, fetcher, (path.as_str(), *format, signed), plain)? {
                Ok(text) => {
                    let index = Index::parse(&self.url(path), &text, arch)?;
                    files::write_atomically(&cached(&signed.0), index.as_bytes())?;
                    return Ok(Some(index));
                }
                Err(url) => missing = Some(url),
            }
        }
        match missing {
            Some(url) => Err(Error::Http { url, status: 404 }),
            None => Ok(None),
        }
    }

    fn url(&self, path: &str) -> String {
        redact(&format!("{}/dists/{}/{path}", self.repository.uri, self.repository.suite))
    }

    /// The verified text of an index; the address if the mirror does not have it.
    #[allow(clippy::type_complexity)]
    fn fetch(
        &self,
        context: &Context<'_>,
        fetcher: &Fetcher<'_>,
        (path, format, (hash, size)): (&str, Format, &(String, u64)),
        plain: Option<&(String, u64)>,
    ) -> Result<Result<Vec<u8>, String>> {
        let base = format!("{}/dists/{}", self.repository.uri, self.repository.suite);
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let shown = self.url(path);
        let sha256 = files::unhex(hash).unwrap_or_default();
        let expected = Expected { sha256: &sha256, size: *size };
        if *size > MAX_COMPRESSED {
            return Err(Error::TooBig { what: shown, limit: MAX_COMPRESSED });
        }
        if context.refresh == Refresh::Offline {
            return Err(Error::Offline(shown));
        }
        context.send(Event::Index { url: &shown });
        let mut urls = Vec::new();
        if self.release.by_hash {
            urls.push(format!("{base}/{directory}/by-hash/SHA256/{hash}"));
        }
        urls.push(format!("{base}/{path}"));
        for url in urls {
            let Answer::Body(bytes, _) =
                fetcher.get(&url, *size, &Validators::default()).map_err(|error| match error {
                    // More than was signed: say it that way.
                    Error::TooBig { what, limit } => {
                        Error::Size { url: what, expected: limit, actual: limit + 1, more: true }
                    }
                    error => error,
                })?
            else {
                continue;
            };
            verify_bytes(&shown, &bytes, expected)?;
            return Ok(Ok(decode(&shown, bytes, format, plain)?));
        }
        Ok(Err(shown))
    }
}

fn decode(what: &str, bytes: Vec<u8>, format: Format, plain: Option<&(String, u64)>) -> Result<Vec<u8>> {
    if format == Format::Plain {
        return Ok(bytes);
    }
    let malformed = |error: std::io::Error| Error::Malformed { what: what.to_owned(), reason: error.to_string() };
    let limit = plain.map_or(MAX_INDEX, |(_, size)| (*size).min(MAX_INDEX));
    let reader = decoder_for(format, Box::new(std::io::Cursor::new(bytes))).map_err(malformed)?;
    let mut text = Vec::with_capacity(usize::try_from(plain.map_or(0, |p| p.1).min(256 << 20)).unwrap_or(0));
    LimitReader::new(reader, limit).read_to_end(&mut text).map_err(malformed)?;
    if let Some((hash, size)) = plain {
        let sha256 = files::unhex(hash).unwrap_or_default();
        verify_bytes(&format!("{what} (uncompressed)"), &text, Expected { sha256: &sha256, size: *size })?;
    }
    Ok(text)
}
