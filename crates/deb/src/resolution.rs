//! From a [`Spec`] to the exact packages of a base, with the reason for each.

use std::path::PathBuf;

use kiln_oci::{Digest, Hasher};

use crate::archive::{self, Archive};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::files;
use crate::index::Package;
use crate::lock;
use crate::relation::Relation;
use crate::resolve::{self, Goal, Reason};
use crate::sources::Repository;
use crate::spec::{Spec, Variant};
use crate::universe::{Id, Universe};

/// Counts up when the same packages would give other bytes.
const BUILD_FORMAT: u32 = 2;
/// Counts up when the same archive would give other packages.
const SEARCH_FORMAT: u32 = 2;

/// The packages of a base.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// What was asked for, with the architecture filled in.
    pub spec: Spec,
    /// The kind of base.
    pub variant: Variant,
    /// Debian's name of the architecture.
    pub arch: String,
    /// All packages, by name.
    pub packages: Vec<ResolvedPackage>,
    /// Dependencies that a base without maintainer scripts does not need: (package, clause).
    pub skipped: Vec<(String, String)>,
    /// Date of the suite's release: the time stamp of everything that is generated, and the latest of all files.
    pub date: i64,
    /// The distribution.
    pub distribution: Distribution,
    /// Where packages come from; [`ResolvedPackage::suite`] counts in it.
    pub suites: Vec<SuiteInfo>,
    /// Identity of the base: equal digests give equal bytes.
    pub digest: Digest,
    pub(crate) repositories: Vec<Repository>,
}

/// What the release says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// `Debian`, `Ubuntu`, …
    pub origin: String,
    /// `bookworm`
    pub codename: String,
    /// `12.15`
    pub version: String,
}

/// A suite that took part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteInfo {
    /// Its name.
    pub name: String,
    /// Its components.
    pub components: Vec<String>,
    /// The archive, without credentials; empty when it is known from a lock file only.
    pub uri: String,
}

/// One package of a base.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResolvedPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture, or `all`.
    pub arch: String,
    /// Size of the `.deb`.
    pub size: u64,
    /// What it takes when unpacked, in bytes, as the archive says.
    pub installed_size: u64,
    /// Hash of the `.deb`.
    pub sha256: [u8; 32],
    /// Its path below the archive's address.
    pub path: String,
    /// Number of its suite in [`Resolution::suites`].
    pub suite: usize,
    /// Why it is there.
    pub reason: Reason,
}

impl ResolvedPackage {
    /// `name_version_arch`.
    pub fn id(&self) -> String {
        format!("{}_{}_{}", self.name, self.version, self.arch)
    }
}

/// Finds the packages of a base. With a lock file in the context, those in it.
pub fn resolve(spec: &Spec, context: &Context<'_>) -> Result<Resolution> {
    let mut spec = spec.clone();
    let arch = spec.arch.get_or_insert_with(|| context.default_arch.clone()).clone();
    if let Some(text) = &context.lock {
        return lock::read(text, spec, context);
    }
    let fetcher = Fetcher::new(context);
    let mut archive = archive::open(context, &fetcher, &spec, &arch)?;
    let memo = Memo::of(context, &spec, &archive)?;
    if let Some((packages, skipped)) = memo.load() {
        return Ok(assemble(spec, packages, skipped, archive));
    }
    archive.load(context, &fetcher, &arch)?;
    let (packages, skipped) = search(&spec, &archive)?;
    memo.save(&packages, &skipped)?;
    Ok(assemble(spec, packages, skipped, archive))
}

/// Packages, and the clauses that were not followed.
type Found = (Vec<ResolvedPackage>, Vec<(String, String)>);

fn search(spec: &Spec, archive: &Archive) -> Result<Found> {
    let universe = Universe::new(archive);
    check_names(spec, &universe)?;
    let variant = spec.variant();
    let clauses: Vec<String> = spec.packages.iter().map(clause_of).collect();
    let goals = goals(spec, &clauses, &universe);
    let solution = match variant {
        Variant::Minbase => resolve::resolve(&universe, &goals, None)?,
        Variant::Distroless => {
            let named: Vec<&str> = spec.packages.iter().map(|p| p.name.as_str()).collect();
            let skip = |owner: &Package<'_>, clause: &str| is_for_scripts(&universe, &named, owner, clause);
            resolve::resolve(&universe, &goals, Some(&skip))?
        }
    };
    let packages = solution.chosen.iter().filter_map(|(name, (id, reason))| resolved(&universe, name, *id, reason));
    let mut skipped = solution.skipped;
    skipped.sort();
    skipped.dedup();
    Ok((packages.collect(), skipped))
}

/// The outcome of a search in the cache, under a name made of all that decides it: the request, the rules of this
/// version, and the signed texts of the suites. Reading the index of a whole distribution takes ten times as long.
struct Memo(PathBuf);

impl Memo {
    fn of(context: &Context<'_>, spec: &Spec, archive: &Archive) -> Result<Self> {
        let mut request = spec.clone();
        (request.mirror, request.keyring, request.lock) = (None, None, None);
        let mut hasher = Hasher::new();
        hasher.field("kiln deb resolution").field(SEARCH_FORMAT.to_le_bytes()).field(request.to_string());
        for suite in &archive.suites {
            hasher.field(&suite.repository.suite).field(&suite.release.sha256);
            hasher.field([u8::from(suite.repository.optional)]).field(suite.repository.components.join(" "));
        }
        Ok(Self(context.dir("resolution")?.join(hasher.finish().hex())))
    }

    fn load(&self) -> Option<Found> {
        serde_json::from_slice(&files::read_limited(&self.0, 64 << 20).ok()?).ok()
    }

    fn save(&self, packages: &[ResolvedPackage], skipped: &[(String, String)]) -> Result<()> {
        let text = serde_json::to_vec(&(packages, skipped));
        text.map_or(Ok(()), |text| files::write_atomically(&self.0, &text))
    }
}

fn assemble(
    spec: Spec,
    packages: Vec<ResolvedPackage>,
    skipped: Vec<(String, String)>,
    archive: Archive,
) -> Resolution {
    let base = archive.suites.first().map(|suite| &suite.release);
    let distribution = base.map_or_else(Distribution::default, |release| Distribution {
        origin: release.origin.clone(),
        codename: release.codename.clone(),
        version: release.version.clone(),
    });
    let date = base.map_or(0, |release| release.date);
    let repositories: Vec<Repository> = archive.suites.into_iter().map(|suite| suite.repository).collect();
    Resolution::new(spec, packages, skipped, (distribution, date, repositories))
}

fn resolved(universe: &Universe<'_>, name: &str, id: Id, reason: &Reason) -> Option<ResolvedPackage> {
    let package = universe.get(id)?;
    Some(ResolvedPackage {
        name: name.to_owned(),
        version: package.version().to_owned(),
        arch: package.arch().to_owned(),
        size: package.size(),
        installed_size: package.installed_size(),
        sha256: package.sha256(),
        path: package.filename().to_owned(),
        suite: universe.suite(id),
        reason: reason.clone(),
    })
}

fn clause_of(request: &crate::spec::PackageRequest) -> String {
    match &request.version {
        None => request.name.clone(),
        Some(version) => format!("{} (= {version})", request.name),
    }
}

fn check_names(spec: &Spec, universe: &Universe<'_>) -> Result<()> {
    let suites = || universe.suites.clone();
    let missing = spec.packages.iter().filter(|request| universe.named(&request.name).is_empty());
    let packages: Vec<_> = missing.map(|r| (r.name.clone(), universe.nearest(&r.name))).collect();
    if !packages.is_empty() {
        return Err(Error::UnknownPackages { packages, suites: suites() });
    }
    for request in &spec.packages {
        let found = universe.named(&request.name);
        if let Some(version) = request.version.as_ref().filter(|v| !found.iter().any(|(_, p)| p.version() == *v)) {
            let available = found.iter().map(|(_, p)| p.version().to_owned()).collect();
            let (name, version) = (request.name.clone(), version.clone());
            return Err(Error::UnknownVersion { name, version, suites: suites(), available });
        }
    }
    Ok(())
}

/// What must be in the base, in the order of the search: what was asked for decides before what comes with the variant.
fn goals<'a>(spec: &Spec, requested: &'a [String], universe: &Universe<'a>) -> Vec<Goal<'a>> {
    let mut goals: Vec<Goal<'a>> = requested.iter().map(|clause| Goal { clause, reason: Reason::Requested }).collect();
    let mut add = |names: Vec<&'a str>, reason: Reason| {
        goals.extend(names.into_iter().map(|clause| Goal { clause, reason: reason.clone() }));
    };
    let present = |name: &'static str| if universe.named(name).is_empty() { Vec::new() } else { vec![name] };
    match spec.variant() {
        // What distribution this is with the top directories, the names of ports, times and authorities.
        Variant::Distroless => {
            for name in ["base-files", "netbase", "tzdata", "ca-certificates"] {
                add(present(name), Reason::Base);
            }
            if spec.debug {
                add(vec!["busybox-static"], Reason::Base);
            }
        }
        Variant::Minbase => {
            // kiln merges /usr itself; the package that does it on a running system would bring all of perl.
            add(present("usr-is-merged"), Reason::Base);
            add(universe.marked(|p| p.is_essential()), Reason::Essential);
            add(universe.marked(|p| p.is_required() && !p.is_essential()), Reason::Required);
            add(present("apt"), Reason::Base);
        }
    }
    goals
}

/// Packages that others depend on for the sake of their maintainer scripts.
const SCRIPT_PACKAGES: [&str; 13] = [
    "adduser",
    "cdebconf",
    "debconf",
    "debconf-2.0",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "libc-bin",
    "lsb-base",
    "sysvinit-utils",
    "ucf",
    "update-inetd",
    "usr-is-merged",
];
/// The same for single packages: the bundle of certificates is made by kiln.
const SCRIPT_PAIRS: [(&str, &str); 1] = [("ca-certificates", "openssl")];

/// Whether a base without scripts can do without a clause. Essential packages need not be depended on, so that a
/// dependency on one is about what its scripts do, unless both come from one source (perl needs perl-base).
fn is_for_scripts(universe: &Universe<'_>, named: &[&str], owner: &Package<'_>, clause: &str) -> bool {
    // All that base-files needs, it needs for its scripts.
    let mut alternatives = crate::relation::alternatives(clause).peekable();
    if alternatives.peek().is_none() || owner.name() == "base-files" {
        return true;
    }
    let for_scripts = |relation: &Relation<'_>| {
        SCRIPT_PACKAGES.contains(&relation.name)
            || SCRIPT_PAIRS.contains(&(owner.name(), relation.name))
            || universe.is_essential_elsewhere(relation.name, owner.source())
    };
    let mut any = false;
    for relation in alternatives {
        if named.contains(&relation.name) {
            return false;
        }
        any |= for_scripts(&relation);
    }
    any
}

impl Resolution {
    pub(crate) fn new(
        spec: Spec,
        mut packages: Vec<ResolvedPackage>,
        skipped: Vec<(String, String)>,
        (distribution, date, repositories): (Distribution, i64, Vec<Repository>),
    ) -> Self {
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        let suites = repositories
            .iter()
            .map(|r| SuiteInfo {
                name: r.suite.clone(),
                components: r.components.clone(),
                uri: crate::context::redact(&r.uri),
            })
            .collect();
        let mut new = Self {
            variant: spec.variant(),
            arch: spec.arch.clone().unwrap_or_default(),
            digest: Digest::of(b""),
            spec,
            packages,
            skipped,
            date,
            distribution,
            suites,
            repositories,
        };
        new.digest = new.identity();
        new
    }

    /// Everything that decides the bytes: format, variant, options, date, packages; for a system with apt also the
    /// sources and keys that go into it.
    fn identity(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field(b"kiln deb base").field(BUILD_FORMAT.to_le_bytes()).field(self.variant.as_str());
        hasher
            .field(&self.arch)
            .field([u8::from(self.spec.docs), u8::from(self.spec.debug)])
            .field(self.date.to_le_bytes());
        for text in [&self.distribution.origin, &self.distribution.codename, &self.distribution.version] {
            hasher.field(text);
        }
        hasher.field((self.packages.len() as u64).to_le_bytes());
        for package in &self.packages {
            hasher.field(&package.name).field(package.sha256);
        }
        if self.variant == Variant::Minbase {
            for suite in &self.suites {
                hasher.field(&suite.uri).field(&suite.name).field(suite.components.join(" "));
            }
        }
        hasher.finish()
    }

    /// The package of that name.
    pub fn package(&self, name: &str) -> Option<&ResolvedPackage> {
        let at = self.packages.binary_search_by(|p| p.name.as_str().cmp(name)).ok()?;
        self.packages.get(at)
    }

    /// The way from the request to a package, outermost first; None if it is not in the base.
    pub fn why(&self, name: &str) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        let mut package = self.package(name)?;
        loop {
            let said = format!("{} {}", package.name, package.version);
            match &package.reason {
                Reason::Needed { by, clause } => {
                    let owner = self.package(by)?;
                    lines.push(format!("{} {} {clause}", owner.name, owner.version));
                    package = owner;
                    if lines.len() > self.packages.len() {
                        return None;
                    }
                }
                reason => {
                    lines.push(format!("{said} {}", reason.describe()));
                    lines.reverse();
                    return Some(lines);
                }
            }
        }
    }

    /// Names like one that is not in the base.
    pub fn nearest(&self, name: &str) -> Vec<String> {
        crate::suggest::nearest(name, self.packages.iter().map(|p| p.name.as_str()), 3)
    }

    /// Size of all `.deb` files.
    pub fn download_size(&self) -> u64 {
        self.packages.iter().map(|p| p.size).sum()
    }

    /// Space that the archive says it takes.
    pub fn installed_size(&self) -> u64 {
        self.packages.iter().map(|p| p.installed_size).sum()
    }

    /// The text of a lock file: the same packages and bytes tomorrow.
    pub fn lock_text(&self) -> String {
        lock::write(self)
    }

    /// A lock file with this base's architecture replaced or added, the others kept.
    pub fn update_lock(&self, existing: &str) -> Result<String> {
        lock::update(self, existing)
    }
}

impl Reason {
    /// A few words.
    pub fn describe(&self) -> String {
        match self {
            Reason::Requested => "is asked for".into(),
            Reason::Base => "belongs to every such base".into(),
            Reason::Essential => "is essential".into(),
            Reason::Required => "is required".into(),
            Reason::Needed { by, clause } => format!("{by} {clause}"),
        }
    }
}
