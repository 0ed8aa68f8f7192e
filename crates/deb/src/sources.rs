//! Where packages come from: the machine's apt sources, or the mirror in a spec.
//!
//! Invariants: no address of any archive is built in; an entry of a third party is used only when `suites=` names its
//! suite; every repository has a known source of keys, and there is no way to say "unsigned is fine".

use std::path::{Path, PathBuf};

use crate::deb822::Paragraphs;
use crate::error::{Error, Result};
use crate::files;
use crate::spec::Spec;
use crate::suggest;

/// One suite of one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Base address without a trailing slash.
    pub uri: String,
    /// The suite, as it stands in `dists/`.
    pub suite: String,
    /// The components that are wanted; empty means all.
    pub components: Vec<String>,
    /// Where its keys are.
    pub keys: Keys,
    /// Derived by us, so that it may be absent (sid has no updates).
    pub optional: bool,
    /// The components are those that apt is told; a suite of the same archive may lack some (bullseye has no
    /// non-free-firmware), and apt only passes over them, too.
    pub lenient: bool,
}

/// Where the keys of a repository are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// All that the machine trusts for archives.
    Machine,
    /// These files, or these fingerprints out of what the machine trusts.
    Listed {
        /// Key files.
        files: Vec<PathBuf>,
        /// Fingerprints in upper-case hex; when there are no files, only keys with these count.
        fingerprints: Vec<String>,
    },
    /// An armored key inside the sources file.
    Inline(String),
}

/// One `deb` entry of the apt configuration: an address with one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    uri: String,
    suite: String,
    components: Vec<String>,
    archs: Vec<String>,
    keys: Keys,
}

/// Reads `etc/apt/sources.list` and `etc/apt/sources.list.d/*.{list,sources}` below `root`.
pub fn load(root: &Path) -> Result<Vec<Entry>> {
    let mut paths = vec![root.join("etc/apt/sources.list")];
    paths.extend(files::sorted(&root.join("etc/apt/sources.list.d"), |name| {
        !name.starts_with('.') && (name.ends_with(".list") || name.ends_with(".sources"))
    }));
    let mut entries = Vec::new();
    for path in paths.into_iter().filter(|path| path.exists()) {
        let text = files::read_limited(&path, 4 << 20)?;
        let text = String::from_utf8_lossy(&text);
        let reader = Reader { root, path: &path };
        match path.extension().is_some_and(|e| e == "sources") {
            true => reader.deb822(&text, &mut entries)?,
            false => reader.one_line(&text, &mut entries)?,
        }
    }
    Ok(entries)
}

struct Reader<'a> {
    root: &'a Path,
    path: &'a Path,
}

impl Reader<'_> {
    fn error(&self, line: usize, reason: impl Into<String>) -> Error {
        Error::Source { path: self.path.to_owned(), line, reason: reason.into() }
    }

    /// `deb [option=value …] uri suite component…`
    fn one_line(&self, text: &str, out: &mut Vec<Entry>) -> Result<()> {
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t', '['])) else {
                continue;
            };
            let rest = rest.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                None => ("", rest),
                Some(rest) => rest.split_once(']').ok_or_else(|| self.error(number + 1, "an option list without ]"))?,
            };
            let mut entry = Entry {
                uri: String::new(),
                suite: String::new(),
                components: Vec::new(),
                archs: Vec::new(),
                keys: Keys::Machine,
            };
            for option in options.split_ascii_whitespace() {
                let Some((name, value)) = option.split_once('=') else { continue };
                match name.trim_end_matches('+').to_ascii_lowercase().as_str() {
                    "arch" => entry.archs = value.split(',').map(str::to_owned).collect(),
                    "signed-by" => entry.keys = self.keys(value),
                    _ => {}
                }
            }
            let mut words = rest.split_ascii_whitespace();
            let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
                return Err(self.error(number + 1, "expected: deb [options] address suite component…"));
            };
            entry.components = words.map(str::to_owned).collect();
            self.push(entry, uri, suite, out);
        }
        Ok(())
    }

    fn deb822(&self, text: &str, out: &mut Vec<Entry>) -> Result<()> {
        for paragraph in Paragraphs::new(text.as_bytes()) {
            if let Some(error) = paragraph.fields().find_map(|f| f.err()) {
                return Err(self.error(paragraph.line() + error.line - paragraph.line(), error.to_string()));
            }
            let words = |name: &str| -> Vec<String> {
                let value = paragraph.get(name).unwrap_or_default();
                value.split_ascii_whitespace().map(str::to_owned).collect()
            };
            let enabled = paragraph
                .get("Enabled")
                .is_none_or(|v| !matches!(v.to_ascii_lowercase().as_str(), "no" | "false" | "0" | "off"));
            if !enabled || !words("Types").iter().any(|t| t == "deb") {
                continue;
            }
            let (uris, suites) = (words("URIs"), words("Suites"));
            if uris.is_empty() || suites.is_empty() {
                return Err(self.error(paragraph.line(), "a paragraph without URIs or Suites"));
            }
            let archs = words("Architectures");
            let keys = paragraph.get("Signed-By").map_or(Keys::Machine, |value| self.keys(value));
            for (uri, suite) in uris.iter().flat_map(|u| suites.iter().map(move |s| (u, s))) {
                let (components, archs, keys) = (words("Components"), archs.clone(), keys.clone());
                self.push(Entry { uri: String::new(), suite: String::new(), components, archs, keys }, uri, suite, out);
            }
        }
        Ok(())
    }

    /// Adds an entry unless kiln has no way to use it (flat repositories, cdrom, tor, …).
    fn push(&self, mut entry: Entry, uri: &str, suite: &str, out: &mut Vec<Entry>) {
        let uri = match uri.strip_prefix("file:") {
            Some(path) => format!("file:///{}", path.trim_matches('/')),
            None => uri.trim_end_matches('/').to_owned(),
        };
        let usable = ["http://", "https://", "file:///"].iter().any(|scheme| uri.starts_with(scheme));
        let suite = suite.trim_end_matches('/');
        if usable && crate::spec::is_suite(suite) && !entry.components.is_empty() {
            (entry.uri, entry.suite) = (uri, suite.to_owned());
            out.push(entry);
        }
    }

    fn keys(&self, value: &str) -> Keys {
        if value.contains("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
            // In deb822 each line starts with a space, and a lone dot stands for an empty line.
            let lines = value.lines().map(|line| line.trim()).map(|line| if line == "." { "" } else { line });
            return Keys::Inline(lines.collect::<Vec<_>>().join("\n"));
        }
        let (mut files, mut fingerprints) = (Vec::new(), Vec::new());
        for item in value.split([',', ' ', '\n', '\t']).filter(|item| !item.is_empty()) {
            match item.strip_prefix('/') {
                Some(path) => files.push(self.root.join(path)),
                None => fingerprints.push(item.trim_end_matches('!').to_ascii_uppercase()),
            }
        }
        Keys::Listed { files, fingerprints }
    }
}

/// The repositories that a spec means, in the order of the configuration.
pub fn select(spec: &Spec, entries: &[Entry], arch: &str) -> Result<Vec<Repository>> {
    let keyring = spec.keyring.as_ref().map(|path| Keys::Listed { files: vec![path.into()], fingerprints: Vec::new() });
    let mut repositories = match &spec.mirror {
        Some(mirror) => from_mirror(spec, mirror, entries),
        None => from_entries(spec, entries, arch)?,
    };
    for repository in &mut repositories {
        if let Some(keys) = &keyring {
            repository.keys = keys.clone();
        }
        if !spec.components.is_empty() {
            repository.components = spec.components.clone();
            repository.lenient = false;
        }
    }
    Ok(repositories)
}

const COMPANIONS: [&str; 2] = ["updates", "security"];

/// Whether the suite can have `-updates` and `-security`.
fn has_companions(suite: &str) -> bool {
    !suite.contains(['-', '/'])
}

fn from_mirror(spec: &Spec, mirror: &str, entries: &[Entry]) -> Vec<Repository> {
    let mirror = match &spec.snapshot {
        Some(id) => mirror.replace("@SNAPSHOTID@", id),
        None => mirror.to_owned(),
    };
    let known = entries.iter().find(|entry| entry.uri == mirror).map(|entry| entry.keys.clone());
    let keys = known.unwrap_or(Keys::Machine);
    let components = if spec.components.is_empty() { vec!["main".to_owned()] } else { spec.components.clone() };
    let repository = |uri: &str, suite: String, optional| Repository {
        uri: uri.to_owned(),
        suite,
        components: components.clone(),
        keys: keys.clone(),
        optional,
        lenient: false,
    };
    if !spec.suites.is_empty() {
        return spec.suites.iter().map(|suite| repository(&mirror, suite.clone(), false)).collect();
    }
    let mut all = vec![repository(&mirror, spec.suite.clone(), false)];
    if has_companions(&spec.suite) {
        all.extend(COMPANIONS.map(|kind| repository(&mirror, format!("{}-{kind}", spec.suite), true)));
        // Debian keeps security updates in an archive of their own, next to the main one.
        if mirror.split('/').any(|part| part == "debian") {
            let sibling: Vec<&str> =
                mirror.split('/').map(|part| if part == "debian" { "debian-security" } else { part }).collect();
            all.push(repository(&sibling.join("/"), format!("{}-security", spec.suite), true));
        }
    }
    all
}

fn from_entries(spec: &Spec, entries: &[Entry], arch: &str) -> Result<Vec<Repository>> {
    let entries: Vec<&Entry> =
        entries.iter().filter(|e| e.archs.is_empty() || e.archs.iter().any(|a| a == arch)).collect();
    if entries.is_empty() {
        let why = format!("the apt configuration has no usable entry for {arch}");
        return Err(Error::NoSources { suite: spec.suite.clone(), why });
    }
    if !spec.suites.is_empty() {
        let mut all = Vec::new();
        for suite in &spec.suites {
            let found: Vec<Repository> =
                entries.iter().filter(|e| e.suite == *suite).map(|e| repository(e, suite.clone(), false)).collect();
            if found.is_empty() {
                return Err(not_configured(suite, &entries));
            }
            all.extend(found);
        }
        return Ok(dedup(all));
    }
    let Some(base) = primary(&spec.suite, &entries) else { return derived(spec, &entries) };
    let mut all = vec![repository(base, spec.suite.clone(), false)];
    if has_companions(&spec.suite) {
        let companions = COMPANIONS.map(|kind| format!("{}-{kind}", spec.suite));
        let old_security = format!("{}/updates", spec.suite);
        let same_keys = |entry: &&&Entry| entry.keys == base.keys || is_archive(&entry.keys);
        let named = entries.iter().filter(|e| companions.contains(&e.suite) || e.suite == old_security);
        all.extend(named.filter(same_keys).map(|e| repository(e, e.suite.clone(), false)));
    }
    // A base can be split over several entries of one archive (main here, universe there).
    let rest = entries.iter().filter(|e| e.suite == spec.suite && e.uri == base.uri);
    all.extend(rest.map(|e| repository(e, spec.suite.clone(), false)));
    Ok(dedup(all))
}

fn repository(entry: &Entry, suite: String, optional: bool) -> Repository {
    let (uri, components, keys) = (entry.uri.clone(), entry.components.clone(), entry.keys.clone());
    Repository { uri, suite, components, keys, optional, lenient: true }
}

/// Merges entries for the same suite of the same archive.
fn dedup(all: Vec<Repository>) -> Vec<Repository> {
    let mut merged: Vec<Repository> = Vec::new();
    for repository in all {
        match merged.iter_mut().find(|m| m.uri == repository.uri && m.suite == repository.suite) {
            None => merged.push(repository),
            Some(have) => {
                let new =
                    repository.components.into_iter().filter(|c| !have.components.contains(c)).collect::<Vec<_>>();
                have.components.extend(new);
            }
        }
    }
    merged
}

/// The keys of a distribution, as opposed to those of a third party's repository.
fn is_archive(keys: &Keys) -> bool {
    match keys {
        Keys::Machine => true,
        Keys::Listed { files, .. } => {
            files.iter().any(|f| f.file_name().is_some_and(|n| n.to_string_lossy().contains("-archive-")))
        }
        Keys::Inline(_) => false,
    }
}

/// Among the entries for a suite, the distribution's own: the one whose archive has the suite's updates too, else one
/// with a distribution's keyring, else the only one.
fn primary<'a>(suite: &str, entries: &[&'a Entry]) -> Option<&'a Entry> {
    let all: Vec<&Entry> = entries.iter().copied().filter(|e| e.suite == suite).collect();
    let updates = format!("{suite}-updates");
    let has_updates = |e: &&&Entry| entries.iter().any(|o| o.uri == e.uri && o.suite == updates);
    let with_main = |e: &&&Entry| e.components.iter().any(|c| c == "main");
    all.iter()
        .find(has_updates)
        .or_else(|| all.iter().filter(with_main).find(|e| is_archive(&e.keys)))
        .or_else(|| all.iter().find(with_main))
        .or(all.first())
        .copied()
}

/// Another suite of the configured distribution: its archive has the others too (`trixie` on a bookworm machine).
fn derived(spec: &Spec, entries: &[&Entry]) -> Result<Vec<Repository>> {
    let ours = |e: &&&Entry| entries.iter().any(|o| o.uri == e.uri && o.suite == format!("{}-updates", e.suite));
    let Some(base) = entries.iter().find(ours) else { return Err(not_configured(&spec.suite, entries)) };
    let mut all = vec![repository(base, spec.suite.clone(), false)];
    if has_companions(&spec.suite) {
        for kind in COMPANIONS {
            let model = format!("{}-{kind}", base.suite);
            let found = entries.iter().filter(|e| e.suite == model && is_archive(&e.keys));
            all.extend(found.map(|e| repository(e, format!("{}-{kind}", spec.suite), true)));
        }
    }
    Ok(dedup(all))
}

fn not_configured(suite: &str, entries: &[&Entry]) -> Error {
    let nearest = suggest::nearest(suite, entries.iter().map(|e| e.suite.as_str()), 3);
    let mut known: Vec<&str> = entries.iter().map(|e| e.suite.as_str()).collect();
    known.sort_unstable();
    known.dedup();
    let why = format!("the apt configuration has {}{}", known.join(", "), suggest::hint(&nearest));
    Error::NoSources { suite: suite.to_owned(), why }
}

/// The configured suites, for suggestions.
pub fn suites(entries: &[Entry]) -> impl Iterator<Item = &str> {
    entries.iter().map(|entry| entry.suite.as_str())
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
