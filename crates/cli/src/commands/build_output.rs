//! `kiln build`: `--output`, `--push`, `--load`, and annotations.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use kiln_engine::oci::media::Compression;
use kiln_engine::oci::{Platform, Reference};
use kiln_engine::request::{
    Annotation, AnnotationTarget, ArchiveOutput, Destination, ImageOutput, LayerFormat, Output,
};

use super::build::BuildArgs;
use super::parse::{attributes, key_value, reference};
use crate::error::CliError;

type Result<T> = std::result::Result<T, CliError>;

/// `--annotation`: `[type[\[platform\]][,type…]:]key=value`, one for each type.
pub fn annotations(list: &[String]) -> Result<Vec<Annotation>> {
    let mut all = Vec::new();
    for text in list {
        let (key, value) = key_value("--annotation", text)?;
        let (kinds, key) = key.split_once(':').unwrap_or(("manifest", &key));
        if key.is_empty() {
            return Err(CliError::usage(format!("--annotation {text}: expected [TYPE:]NAME=VALUE")));
        }
        for kind in kinds.split(',') {
            let (target, platform) = annotation_target("--annotation", kind)?;
            all.push(Annotation { target, platform, key: key.to_owned(), value: value.clone() });
        }
    }
    Ok(all)
}

/// `type` or `type[platform]`
fn annotation_target(flag: &str, text: &str) -> Result<(AnnotationTarget, Option<Platform>)> {
    let bad = |why: &str| CliError::usage(format!("{flag} {text}: {why}"));
    let (kind, platform) = match text.split_once('[') {
        Some((kind, rest)) => {
            let platform = rest.strip_suffix(']').ok_or_else(|| bad("the bracket after the type is not closed"))?;
            (kind, Some(super::parse::platform(platform)?))
        }
        None => (text, None),
    };
    let target = match kind {
        "" | "manifest" => AnnotationTarget::Manifest,
        "index" => AnnotationTarget::Index,
        "manifest-descriptor" => AnnotationTarget::ManifestDescriptor,
        "index-descriptor" => AnnotationTarget::IndexDescriptor,
        _ => return Err(bad("the type is not index, manifest, index-descriptor or manifest-descriptor")),
    };
    Ok((target, platform))
}

/// What `--output`, `--push` and `--load` ask for, and the annotations that are attributes of an output.
pub fn outputs(args: &BuildArgs) -> Result<(Vec<Output>, Vec<Annotation>)> {
    let mut annotations = Vec::new();
    let parsed = args.outputs.iter().map(|o| output(o, &mut annotations)).collect::<Result<Vec<_>>>();
    let mut all = parsed?;
    let images = all.iter().filter(|o| matches!(o, Output::Image(_) | Output::Archive(_))).count();
    if images > 1 && !annotations.is_empty() {
        return Err(CliError::usage(
            "--output annotation…=: with several outputs all have the same annotations: use --annotation",
        ));
    }
    if args.push {
        match all.iter_mut().find_map(|o| if let Output::Image(i) = o { Some(i) } else { None }) {
            Some(image) => image.push = true,
            None => all.push(Output::Image(ImageOutput { push: true, ..ImageOutput::default() })),
        }
    }
    if args.load && !all.iter().any(|o| matches!(o, Output::Image(_))) {
        all.push(Output::Image(ImageOutput::default()));
    }
    let pushes = all.iter().any(|o| matches!(o, Output::Image(i) if i.push && i.names.is_empty()));
    if pushes && args.tags.is_empty() {
        return Err(CliError::usage("a result that is pushed needs a name: give -t NAME or name= in --output"));
    }
    check_stdout(&all, args.quiet)?;
    if args.platforms.len() > 1 && all.iter().any(|o| matches!(o, Output::Tar(_))) {
        return Err(CliError::usage(
            "--output type=tar takes one platform: use type=local, which makes a directory for each, or type=oci",
        ));
    }
    Ok((all, annotations))
}

/// Standard output takes one archive, and no terminal can show it.
fn check_stdout(all: &[Output], quiet: bool) -> Result<()> {
    let stdout = |o: &&Output| {
        matches!(o, Output::Tar(Destination::Stdout) | Output::Archive(ArchiveOutput { dest: Destination::Stdout, .. }))
    };
    match all.iter().filter(stdout).count() {
        0 => Ok(()),
        1 if std::io::stdout().is_terminal() => Err(CliError::usage(
            "--output: an archive is not written to a terminal: give dest=FILE, or redirect standard output",
        )),
        1 if quiet => Err(CliError::usage(
            "--quiet prints the image ID to standard output, where --output writes the archive: give dest=FILE",
        )),
        1 => Ok(()),
        _ => Err(CliError::usage("only one --output can go to standard output")),
    }
}

fn output(text: &str, annotations: &mut Vec<Annotation>) -> Result<Output> {
    if text == "-" {
        return Ok(Output::Tar(Destination::Stdout));
    }
    if text.is_empty() {
        return Err(CliError::usage("--output: the value is empty: give type=…, a directory, or - for a tar"));
    }
    if !text.contains('=') {
        return Ok(Output::Local { dest: PathBuf::from(text), delete: false });
    }
    let mut spec = OutputSpec { text, attrs: attributes(text)?.into_iter().collect() };
    let kind = spec.take("type").ok_or_else(|| CliError::usage(format!("--output {text}: type= is missing")))?;
    let output = match kind.as_str() {
        "local" => Output::Local {
            dest: spec.directory()?,
            delete: match spec.take("mode").as_deref() {
                None | Some("copy") => false,
                Some("delete") => true,
                Some(other) => return Err(CliError::usage(format!("--output mode={other}: use copy or delete"))),
            },
        },
        "tar" => Output::Tar(spec.destination()?),
        "oci" => Output::Archive(spec.archive(false)?),
        "docker" if spec.attrs.contains_key("dest") => Output::Archive(spec.archive(true)?),
        "docker" => Output::Image(spec.image(false)?),
        "image" => {
            let push = spec.flag("push")?.unwrap_or(false);
            Output::Image(spec.image(push)?)
        }
        "registry" => Output::Image(spec.image(true)?),
        "cacheonly" => Output::CacheOnly,
        other => {
            return Err(CliError::usage(format!(
                "--output type={other} is not known: use image, registry, oci, docker, tar, local or cacheonly"
            )));
        }
    };
    if matches!(output, Output::Image(_) | Output::Archive(_)) {
        annotations.append(&mut spec.annotations()?);
    }
    spec.finish(&kind)?;
    Ok(output)
}

/// The attributes of one `--output` that were not used yet.
struct OutputSpec<'a> {
    text: &'a str,
    attrs: BTreeMap<String, String>,
}

impl OutputSpec<'_> {
    fn take(&mut self, key: &str) -> Option<String> {
        self.attrs.remove(key)
    }

    fn need(&mut self, key: &str) -> Result<String> {
        self.take(key).ok_or_else(|| CliError::usage(format!("--output {}: {key}= is missing", self.text)))
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(CliError::usage(format!("--output {key}={other}: use true or false"))),
        }
    }

    /// A file that is to be written, or standard output.
    fn destination(&mut self) -> Result<Destination> {
        match self.take("dest").as_deref() {
            None | Some("-") => Ok(Destination::Stdout),
            Some("") => Err(self.bad("dest= is empty")),
            Some(path) if Path::new(path).is_dir() => Err(self.bad("dest= is a directory: give the name of a file")),
            Some(path) => Ok(Destination::Path(PathBuf::from(path))),
        }
    }

    /// A directory that is to be written.
    fn directory(&mut self) -> Result<PathBuf> {
        match self.need("dest")?.as_str() {
            "" => Err(self.bad("dest= is empty")),
            "-" => Err(self.bad("a directory can't go to standard output: use type=tar, or dest=DIRECTORY")),
            path if Path::new(path).is_file() => Err(self.bad("dest= is a file: give a directory")),
            path => Ok(PathBuf::from(path)),
        }
    }

    fn bad(&self, why: &str) -> CliError {
        CliError::usage(format!("--output {}: {why}", self.text))
    }

    /// `annotation[-type][\[platform\]].key=value`
    fn annotations(&mut self) -> Result<Vec<Annotation>> {
        let is_one = |key: &&String| key.starts_with("annotation") && key.contains('.');
        let keys: Vec<String> = self.attrs.keys().filter(is_one).cloned().collect();
        let mut all = Vec::new();
        for name in keys {
            let value = self.take(&name).unwrap_or_default();
            // A platform has no dot, a key may have many.
            let (kind, key) = name["annotation".len()..].split_once('.').unwrap_or_default();
            let (target, platform) = annotation_target("--output annotation", kind.trim_start_matches('-'))?;
            all.push(Annotation { target, platform, key: key.to_owned(), value });
        }
        Ok(all)
    }

    fn names(&mut self) -> Result<Vec<Reference>> {
        let names = self.take("name").unwrap_or_default();
        names.split(',').filter(|n| !n.is_empty()).map(|n| reference("--output name=", n)).collect()
    }

    fn layers(&mut self, oci_default: bool) -> Result<LayerFormat> {
        let compression = match self.take("compression").as_deref() {
            None | Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            Some("uncompressed") => Compression::Uncompressed,
            Some(other) => {
                return Err(CliError::usage(format!("--output compression={other}: use gzip, zstd or uncompressed")));
            }
        };
        let most = if compression == Compression::Gzip { 9 } else { 22 };
        let level = match self.take("compression-level").as_deref().map(|l| (l.parse(), l.to_owned())) {
            None => None,
            Some((Ok(level), _)) if (0..=most).contains(&level) => Some(level),
            Some((_, other)) => {
                return Err(CliError::usage(format!("--output compression-level={other}: expected 0 to {most}")));
            }
        };
        Ok(LayerFormat {
            compression,
            level,
            force: self.flag("force-compression")?.unwrap_or(false),
            oci: self.flag("oci-mediatypes")?.unwrap_or(oci_default),
            rewrite_timestamp: self.flag("rewrite-timestamp")?.unwrap_or(false),
        })
    }

    fn archive(&mut self, docker: bool) -> Result<ArchiveOutput> {
        let directory = !self.flag("tar")?.unwrap_or(true);
        Ok(ArchiveOutput {
            docker,
            dest: if directory { Destination::Path(self.directory()?) } else { self.destination()? },
            directory,
            names: self.names()?,
            layers: self.layers(!docker)?,
        })
    }

    fn image(&mut self, push: bool) -> Result<ImageOutput> {
        // Every image is kept in the store and unpacked when it is used: `store` and `unpack` change nothing if true.
        for key in ["store", "unpack"] {
            if key == "store" && self.flag(key)? == Some(false) {
                return Err(CliError::usage("--output store=false is not supported"));
            }
            self.flag(key)?;
        }
        if self.flag("oci-artifact")? == Some(true) {
            return Err(self.bad("oci-artifact= is about attestations, which are not written"));
        }
        let prefix = self.take("dangling-name-prefix").filter(|p| !p.is_empty());
        let push_by_digest = self.flag("push-by-digest")?.unwrap_or(false);
        let written = self.attrs.get("name").cloned().unwrap_or_default();
        let tagged = |n: &str| n.parse::<Reference>().is_ok_and(|r| r.tag().is_some());
        if let (true, Some(name)) = (push_by_digest, written.split(',').find(|n| tagged(n))) {
            return Err(CliError::usage(format!(
                "--output push-by-digest=true: {name} has a tag: give the name without"
            )));
        }
        Ok(ImageOutput {
            names: self.names()?,
            push,
            push_by_digest,
            dangling_prefix: prefix.map(|p| reference("--output dangling-name-prefix=", &p)).transpose()?,
            name_canonical: self.flag("name-canonical")?.unwrap_or(false),
            insecure: self.flag("registry.insecure")?.unwrap_or(false),
            layers: self.layers(true)?,
        })
    }

    fn finish(self, kind: &str) -> Result<()> {
        match self.attrs.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.bad(&format!("{key}= is not supported for type={kind}"))),
        }
    }
}
