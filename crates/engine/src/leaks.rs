//! The proof that no secret of a build is in its result.
//!
//! Every byte of a layer passes a [`LayerSearch`] while the layer is written, and every config, manifest and annotation is
//! searched as a whole. What is found names the layer's step, the path in the image and the form.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_graph::Location;
use kiln_oci::{Hasher, ImageConfig};
use kiln_rootfs::diff::ContentObserver;
use kiln_secrets::{Hit, HitKind, Origin, Redactor, Scan, Searcher, Secret, Shape};

/// A shape by its description, and the path it was found at.
pub type ShapeFound = (String, Option<String>);

/// The place of layers that no step of the build made.
pub const BASE_IMAGE: &str = "the base image";

/// A secret, or what looks like one, in the result.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// What was found and in which form.
    pub kind: HitKind,
    /// The step whose layer it is in, or `image config`.
    pub place: String,
    /// The path in the image, if it is in a file.
    pub path: Option<String>,
}

impl Leak {
    /// Whether it is one of the build's own secrets, rather than something that looks like one or that any file may hold.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, HitKind::Secret { chance: false, .. })
    }

    /// What was found, whatever its form.
    pub fn subject(&self) -> String {
        match &self.kind {
            HitKind::Secret { name, origin, chance, .. } => format!("{name:?} {origin:?} {chance}"),
            HitKind::Shape(shape) => shape.describe().to_owned(),
        }
    }

    /// For messages: what, but not where.
    pub fn what(&self) -> String {
        match &self.kind {
            HitKind::Secret { name, chance: true, .. } => {
                format!("the value of secret {name:?}, which is a common one,")
            }
            HitKind::Secret { name, .. } => format!("secret {name:?}"),
            HitKind::Shape(shape) => shape.describe().to_owned(),
        }
    }

    /// One sentence.
    pub fn describe(&self) -> String {
        let path = self.path.as_deref().map(|p| format!("{p} of ")).unwrap_or_default();
        let form = match &self.kind {
            HitKind::Secret { encoding, chance: false, .. } => format!(", {}", encoding.describe()),
            _ => String::new(),
        };
        format!("{} is in {path}{}{form}", self.what(), self.place)
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match &self.kind {
            HitKind::Secret { .. } if self.place.starts_with(BASE_IMAGE) => {
                "the build did not put it there: take another base, or build that one again without it"
            }
            HitKind::Secret { chance: true, .. } => "it may be there by chance: a longer value would prove it",
            HitKind::Secret { origin: Origin::BuildArg, .. } => {
                "build args stay in the image: use RUN --mount=type=secret and --secret instead"
            }
            HitKind::Secret { origin: Origin::SshKey, .. } => {
                "use RUN --mount=type=ssh, which never shows the key to the step"
            }
            HitKind::Secret { origin: Origin::Token, .. } => {
                "give tokens with --secret id=GIT_AUTH_TOKEN or `docker login` rather than in URLs, and do not copy the file that holds them"
            }
            HitKind::Secret { .. } => {
                "use the secret only while the step runs and do not write it to a file; or do so in a stage whose files are not all copied"
            }
            HitKind::Shape(_) => "if it is real, mount it as a secret instead of copying it",
        }
    }
}

/// Stands for what is searched for.
fn fingerprint(secrets: &[Secret]) -> String {
    let mut hasher = Hasher::new();
    hasher.field("kiln.search.v3");
    for secret in secrets {
        secret.fingerprint(&mut |bytes| {
            hasher.field(bytes);
        });
    }
    hasher.finish().hex()
}

/// Collects what is found in one result.
#[derive(Clone)]
pub struct LeakSearch {
    searcher: Searcher,
    /// The same without shapes.
    only_secrets: Searcher,
    /// Names of files may be secret, too.
    hidden: Arc<Redactor>,
    fingerprint: String,
    found: Arc<Mutex<Vec<Leak>>>,
}

impl LeakSearch {
    /// For one result of a build with these secrets.
    pub fn new(secrets: &[Secret]) -> Self {
        Self {
            searcher: Searcher::new(secrets, true),
            only_secrets: Searcher::new(secrets, false),
            hidden: Arc::new(Redactor::new(secrets)),
            fingerprint: fingerprint(secrets),
            found: Arc::default(),
        }
    }

    /// Whether it searches for these.
    pub fn is_for(&self, secrets: &[Secret]) -> bool {
        self.fingerprint == fingerprint(secrets)
    }

    /// A search of one layer, which the step `place` made.
    pub fn layer(&self, place: &str) -> LayerSearch {
        LayerSearch { all: self.clone(), own: self.fresh(), place: place.to_owned(), path: Vec::new(), scan: None }
    }

    /// The same search for a layer of the base image, `None` if nothing is to be searched for there: the build's secrets
    /// count wherever they are, but what only looks like one (libraries have test keys in them) is not this build's doing.
    pub fn of_base(&self) -> Option<Self> {
        let searcher = self.only_secrets.clone();
        let fingerprint = format!("{} secrets", self.fingerprint);
        (!searcher.is_empty()).then(|| Self { searcher, fingerprint, ..self.clone() })
    }

    /// Whether there is anything to search for that keeps a result here.
    pub fn may_find_secrets(&self) -> bool {
        !self.only_secrets.is_empty()
    }

    /// The same search, with nothing found yet.
    pub fn fresh(&self) -> Self {
        Self { found: Arc::default(), ..self.clone() }
    }

    /// Adds what another search found.
    pub fn push(&self, leak: Leak) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(leak);
    }

    /// Tells searches for different things apart, without telling what they search for.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Takes over what an earlier search of the same layer found.
    pub fn add_shapes(&self, place: &str, shapes: &[ShapeFound]) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, path) in shapes {
            if let Some(shape) = Shape::ALL.into_iter().find(|s| s.describe() == name) {
                found.push(Leak { kind: HitKind::Shape(shape), place: place.to_owned(), path: path.clone() });
            }
        }
    }

    /// Searches an image's config. What is found is told by its place in it; `lines` are those of the last history entries.
    /// In what is the same in `base`, its base image's config, only secrets count.
    pub fn config(&self, bytes: &[u8], config: &ImageConfig, base: Option<&ImageConfig>, lines: &[Location]) {
        let inner = self.fresh();
        let of_base = Self { searcher: self.only_secrets.clone(), ..inner.clone() };
        for pair in &config.config.env {
            let name = pair.split('=').next().unwrap_or_default();
            match base.is_some_and(|b| b.config.env.contains(pair)) {
                true => of_base.value(&format!("{BASE_IMAGE}'s environment ({name})"), pair.as_bytes()),
                false => inner.value(&format!("the image's environment ({name})"), pair.as_bytes()),
            }
        }
        for (name, value) in &config.config.labels {
            let pair = format!("{name}={value}");
            match base.is_some_and(|b| b.config.labels.get(name) == Some(value)) {
                true => of_base.value(&format!("{BASE_IMAGE}'s labels ({name})"), pair.as_bytes()),
                false => inner.value(&format!("the image's labels ({name})"), pair.as_bytes()),
            }
        }
        let inherited = base.map_or(0, |_| config.history.len().saturating_sub(lines.len()));
        self.history(config, (inherited, lines), &inner);
        let known = inner.finish();
        // What is elsewhere, in the command for instance. A shape may be the one in the base's history.
        let all = self.fresh();
        all.value("the image config", bytes);
        let same = |a: &Leak, b: &Leak| a.subject() == b.subject();
        let shape = |l: &Leak| base.is_some() && matches!(l.kind, HitKind::Shape(_));
        let others = all.finish().into_iter().filter(|l| !shape(l) && !known.iter().any(|k| same(k, l)));
        others.collect::<Vec<_>>().into_iter().chain(known).for_each(|leak| self.push(leak));
    }

    /// A build arg is in all entries that come after it: one finding tells of all of them, and the line of the first. Of the
    /// first `inherited` entries, which are the base's, only secrets count.
    fn history(&self, config: &ImageConfig, (inherited, lines): (usize, &[Location]), into: &Self) {
        let mut entries: BTreeMap<HitKind, Vec<usize>> = BTreeMap::new();
        for (number, entry) in config.history.iter().enumerate() {
            let searcher = if number < inherited { &self.only_secrets } else { &self.searcher };
            let one = Self { searcher: searcher.clone(), ..self.fresh() };
            let parts = [&entry.created_by, &entry.comment, &entry.author];
            parts.into_iter().flatten().for_each(|text| one.value("", text.as_bytes()));
            for leak in one.finish() {
                entries.entry(leak.kind).or_default().push(number);
            }
        }
        let others = config.history.len().saturating_sub(lines.len());
        for (kind, mut numbers) in entries {
            numbers.dedup();
            let word = if numbers.len() == 1 { "entry" } else { "entries" };
            let shown: Vec<String> = numbers.iter().map(|n| (n + 1).to_string()).collect();
            let line = numbers.first().and_then(|n| lines.get(n.checked_sub(others)?));
            let line = line.map_or_else(String::new, |l| format!("; {}:{}", l.file, l.start_line));
            let whose = if numbers.iter().all(|n| *n < inherited) { BASE_IMAGE } else { "the image" };
            let place = format!("{whose}'s history ({word} {}{line})", shown.join(", "));
            into.push(Leak { kind, place, path: None });
        }
    }

    /// Searches a manifest, an annotation, a name.
    pub fn value(&self, place: &str, bytes: &[u8]) {
        let hits = self.searcher.search(bytes);
        self.add(place, None, hits);
    }

    /// What was found, each once.
    pub fn finish(&self) -> Vec<Leak> {
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort();
        all.dedup();
        all
    }

    fn add(&self, place: &str, path: Option<String>, hits: Vec<Hit>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = Vec::new();
        for hit in hits {
            // One line for each secret and file, in the plainest form.
            let path = path.as_deref().map(|p| self.hidden.text(p));
            let leak = Leak { kind: hit.kind, place: place.to_owned(), path };
            let subject = leak.subject();
            if !seen.contains(&subject) {
                seen.push(subject);
                found.push(leak);
            }
        }
    }
}

/// The search of one layer.
pub struct LayerSearch {
    all: LeakSearch,
    /// What was found in this layer alone.
    own: LeakSearch,
    place: String,
    path: Vec<u8>,
    scan: Option<Scan>,
}

impl LayerSearch {
    fn end_entry(&mut self) {
        if let Some(scan) = self.scan.take() {
            let path = format!("/{}", String::from_utf8_lossy(&self.path));
            self.found(path, scan.finish());
        }
    }

    fn found(&self, path: String, hits: Vec<Hit>) {
        self.all.add(&self.place, Some(path.clone()), hits.clone());
        self.own.add(&self.place, Some(path), hits);
    }

    /// What was found, to be remembered; `None` if a secret is among it, which is to be found again.
    pub fn shapes_only(&self) -> Option<Vec<ShapeFound>> {
        let shape = |leak: Leak| match leak.kind {
            HitKind::Shape(shape) => Some((shape.describe().to_owned(), leak.path)),
            HitKind::Secret { .. } => None,
        };
        self.own.finish().into_iter().map(shape).collect()
    }
}

impl ContentObserver for LayerSearch {
    fn entry(&mut self, path: &[u8]) {
        self.end_entry();
        path.clone_into(&mut self.path);
        // A secret may be in a file's name as well.
        let hits = self.all.searcher.search(path);
        if !hits.is_empty() {
            let shown = format!("/{}", String::from_utf8_lossy(path));
            self.found(shown, hits);
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        let searcher = &self.all.searcher;
        self.scan.get_or_insert_with(|| searcher.scan()).feed(bytes);
    }

    fn finish(&mut self) {
        self.end_entry();
    }
}
