//! The leak search over an image that exists: of the store, a registry, an archive or a layout.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use kiln_oci::{Descriptor, Digest, ImageConfig, Manifest, ManifestKind, Platform, media, parse_manifest};
use kiln_rootfs::apply::observe;
use kiln_secrets::{Origin, Redactor, Secret};
use kiln_store::{LoadOptions, OciLayout};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::leaks::{Leak, LeakSearch};
use crate::request::{SecretSource, SshSource};
use crate::secrets::Secrets;

/// Largest manifest, config or attestation that is read, in bytes.
const MAX_VALUE: usize = 16 << 20;
/// Indexes in indexes.
const MAX_NESTING: usize = 4;

/// What was looked at and found.
#[derive(Debug, Clone, Default)]
pub struct LeakReport {
    /// Images, one for each platform.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of the files in them.
    pub bytes: u64,
    /// What was found.
    pub leaks: Vec<Leak>,
}

/// The secrets that `--secret` and `--ssh` name.
pub fn known(secrets: &Secrets, ssh: &BTreeMap<String, SshSource>) -> Result<Vec<Secret>> {
    let mut all: Vec<Secret> =
        secrets.all()?.into_iter().map(|(id, value)| Secret::new(id, Origin::Secret, value)).collect();
    for (id, source) in ssh {
        let SshSource::Keys(agent) = source else { continue };
        for key in agent.keys() {
            let name = format!("{id}={}", key.path().display());
            all.extend(
                key.secret_values()
                    .into_iter()
                    .map(|value| Secret::new(name.clone(), Origin::SshKey, value).with_public_part(key.public())),
            );
        }
    }
    Ok(all)
}

/// Searches all layers of an image with all that describes it. `image` is a name, the beginning of an ID, or the path of an
/// archive or layout.
pub fn check(
    engine: &Engine,
    image: &str,
    secrets: &BTreeMap<String, SecretSource>,
    ssh: &BTreeMap<String, SshSource>,
) -> Result<LeakReport> {
    let known = known(&Secrets::new(secrets.clone()), ssh)?;
    let search = LeakSearch::new(&known);
    let mut targets = Vec::new();
    match Path::new(image) {
        path if path.is_dir() => {
            let layout = OciLayout::open(path)?;
            for entry in &layout.index().manifests {
                targets.push(layout.copy_image(entry, None, &engine.store)?);
                search.value("index.json", &serde_json::to_vec(entry).unwrap_or_default());
            }
        }
        path if path.is_file() => {
            let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
            let options = LoadOptions { content_only: true, ..LoadOptions::default() };
            targets.extend(engine.store.load(Box::new(file), &options)?.into_iter().map(|l| l.target));
        }
        _ => {
            let found = engine.image_by_name_or_id(image, &Platform::host())?;
            // Layers may still be where the image came from.
            engine.unpacker.unpack(&engine.image_snapshot(&found)?.0)?;
            let stored = image.parse().ok().map(kiln_oci::Reference::with_default_tag);
            let stored = stored.and_then(|name| engine.store.images().resolve(&name).ok().flatten());
            targets.push(stored.map_or(found.descriptor, |s| s.target));
        }
    }
    let (report, seen) = Default::default();
    let check = Check { engine, search: &search, hidden: Redactor::new(&known), report, seen };
    for target in &targets {
        check.object(target, 0)?;
    }
    let mut report = check.report.into_inner().unwrap_or_default();
    report.leaks = search.finish();
    Ok(report)
}

struct Check<'a> {
    engine: &'a Engine,
    search: &'a LeakSearch,
    /// Commands are part of the report, and secrets may be part of commands.
    hidden: Redactor,
    report: Mutex<LeakReport>,
    /// Manifests and indexes. A few indexes that name each other often enough would be without end.
    seen: Mutex<HashSet<Digest>>,
}

impl Check<'_> {
    /// A manifest or index. Images of an index that were not pulled are left out.
    fn object(&self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        let content = self.engine.store.content();
        if depth > MAX_NESTING || depth > 0 && !content.has(&descriptor.digest)? {
            return Ok(());
        }
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(descriptor.digest) {
            return Ok(());
        }
        let bytes = content.read_small(&descriptor.digest, MAX_VALUE)?;
        let parsed = parse_manifest(&bytes, Some(&descriptor.media_type));
        match parsed.map_err(|e| Error::request(format!("{}: {e}", descriptor.digest)))? {
            ManifestKind::Index(index) => {
                self.search.value("the index", &bytes);
                index.manifests.iter().try_for_each(|child| self.object(child, depth + 1))
            }
            ManifestKind::Manifest(manifest) => {
                self.search.value("the manifest", &bytes);
                self.image(&manifest)
            }
        }
    }

    fn image(&self, manifest: &Manifest) -> Result<()> {
        let content = self.engine.store.content();
        if !content.has(&manifest.config.digest)? {
            return Ok(());
        }
        let bytes = content.read_small(&manifest.config.digest, MAX_VALUE)?;
        let config: Option<ImageConfig> = serde_json::from_slice(&bytes).ok();
        match &config {
            Some(config) => self.search.config(&bytes, config, None, &[]),
            None => self.search.value("the image config", &bytes),
        }
        let mut places = places(manifest.layers.len(), config.as_ref());
        places.iter_mut().for_each(|place| *place = self.hidden.text(place));
        let layers: Vec<(&Descriptor, &String)> = manifest.layers.iter().zip(&places).collect();
        self.count(|report| report.images += 1);
        let threads = self.engine.threads.min(layers.len()).max(1);
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let work = || {
                while let Some((layer, place)) = layers.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    self.layer(layer, place)?;
                }
                Ok(())
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or(Err(Error::Cancelled)))
        })
    }

    fn layer(&self, descriptor: &Descriptor, place: &str) -> Result<()> {
        let file = self.engine.store.content().open(&descriptor.digest)?;
        let damaged = |e: &dyn std::fmt::Display| Error::request(format!("layer {}: {e}", descriptor.digest));
        if media::layer_compression(&descriptor.media_type).is_none() {
            // Not files: an attestation, for instance.
            let bytes = self.engine.store.content().read_small(&descriptor.digest, MAX_VALUE)?;
            self.search.value(place, &bytes);
            return Ok(());
        }
        let (_, plain) = kiln_compress::decoder(Box::new(file)).map_err(|e| damaged(&e))?;
        let bytes = observe(plain, &mut self.search.layer(place)).map_err(|e| damaged(&e))?;
        self.count(|report| {
            report.layers += 1;
            report.bytes += bytes;
        });
        Ok(())
    }

    fn count(&self, change: impl FnOnce(&mut LeakReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What stands for each layer in messages: its number, and the command that made it.
fn places(layers: usize, config: Option<&ImageConfig>) -> Vec<String> {
    let history = config.iter().flat_map(|c| &c.history).filter(|h| h.empty_layer != Some(true));
    let mut made = history.map(|h| h.created_by.clone().unwrap_or_default());
    let place = |index: usize| match made.next().map(|by| short(&by)).filter(|by| !by.is_empty()) {
        Some(by) => format!("layer {} of {layers}, {by}", index + 1),
        None => format!("layer {} of {layers}", index + 1),
    };
    (0..layers).map(place).collect()
}

/// The first words of a command. Not the build args before it, whose values may be secret.
fn short(command: &str) -> String {
    const LONGEST: usize = 60;
    const SHELL: &str = "/bin/sh -c ";
    let command = match command.split_once(SHELL) {
        Some((before, command)) if before.starts_with("RUN ") || before.starts_with('|') => format!("RUN {command}"),
        Some((_, command)) => command.to_owned(),
        None if command.starts_with("RUN |") => "RUN".to_owned(),
        None => command.to_owned(),
    };
    let command = command.replace(['\n', '\t'], " ").replace(" # buildkit", "");
    match command.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &command[..at]),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_without_build_args() {
        assert_eq!(short("RUN |1 KEY=secret /bin/sh -c make # buildkit"), "RUN make");
        assert_eq!(short("/bin/sh -c #(nop)  CMD [\"x\"]"), "#(nop)  CMD [\"x\"]");
        assert_eq!(short("|2 A=1 B=secret /bin/sh -c make"), "RUN make");
        assert_eq!(short("RUN |1 KEY=secret make"), "RUN");
        assert_eq!(short("COPY a b # buildkit"), "COPY a b");
    }
}
