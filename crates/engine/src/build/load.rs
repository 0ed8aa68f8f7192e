//! The context and the Dockerfile.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use kiln_dockerfile::{Diagnostic, Dockerfile, IgnoreFile, IgnoreMatcher, parse};
use kiln_graph::{GitUrl, is_git_context, redact_url};
use kiln_oci::Hasher;
use kiln_rootfs::Root;
use kiln_source::HttpOptions;

use crate::contexts::{Contexts, LocalContext, MAIN, unpack_archive};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::git_access::GitAccess;
use crate::missing;
use crate::request::{BuildRequest, ContextSource, DockerfileSource};
use crate::steps::Steps;

/// Largest Dockerfile, in bytes.
const MAX_DOCKERFILE: usize = 64 << 20;
/// Largest ignore file, in bytes.
const MAX_IGNORE: usize = 4 << 20;
/// Names that are looked for in the context.
const NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];
/// The ignore files of a context: the first that is there counts.
const IGNORE_NAMES: [&str; 2] = [".dockerignore", ".containerignore"];

/// What was loaded.
pub struct Loaded {
    /// The Dockerfile, without syntax errors.
    pub dockerfile: Dockerfile,
    /// What its parser had to remark.
    pub remarks: Vec<Diagnostic>,
    /// The contexts.
    pub contexts: Arc<Contexts>,
    /// Identifies context and Dockerfile between builds.
    pub project: String,
    /// Tokens and the ssh agent for git, and the values of secrets.
    pub(crate) git: Arc<GitAccess>,
}

/// The main context as a directory, or only a Dockerfile.
struct Main {
    directory: Option<PathBuf>,
    dockerfile: Option<Vec<u8>>,
    scratch: Option<kiln_store::Scratch>,
    /// For messages and to tell projects apart.
    name: String,
}

/// Loads and checks the Dockerfile and opens the contexts.
pub fn load(engine: &Arc<Engine>, request: &BuildRequest, steps: &Steps) -> Result<Loaded> {
    let step = steps.begin("[internal] load build definition");
    step.conclude(load_unseen(engine, request))
}

fn load_unseen(engine: &Arc<Engine>, request: &BuildRequest) -> Result<Loaded> {
    let git = Arc::new(GitAccess::new(engine, request));
    let main = main_context(engine, request, &git)?;
    let (name, bytes, ignore_name) = read_dockerfile(engine, request, &main)?;
    let parsed = parse(&bytes, &name);
    // Another frontend's language is not this one: its first line says all, not the errors in the others.
    check_syntax(&parsed.dockerfile, request)?;
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(Error::Dockerfile { file: parsed.dockerfile.source.clone(), diagnostics: parsed.diagnostics });
    }
    let matcher = ignore_rules(&main, ignore_name.as_deref())?;
    let contexts = open_contexts(engine, request, &main, matcher)?;
    if let Some(scratch) = main.scratch {
        contexts.keep(scratch);
    }
    let mut hasher = Hasher::new();
    hasher.field(&main.name).field(&name);
    Ok(Loaded {
        dockerfile: parsed.dockerfile,
        remarks: parsed.diagnostics,
        contexts: Arc::new(contexts),
        project: hasher.finish().hex(),
        git,
    })
}

fn main_context(engine: &Arc<Engine>, request: &BuildRequest, git: &GitAccess) -> Result<Main> {
    match &request.context {
        ContextSource::Local(path) => {
            let directory = path.canonicalize().map_err(|e| match path.to_str() {
                Some(text) if text.contains("://") => Error::request_with_hint(
                    format!("{}: there is no such kind of context", redact_url(text)),
                    "give a directory, a git or http(s) URL, or - for standard input",
                ),
                _ => Error::io("open the context", path, e),
            })?;
            let name = directory.display().to_string();
            Ok(Main { directory: Some(directory), dockerfile: None, scratch: None, name })
        }
        ContextSource::Stream(once) => {
            let reader = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            let reader = reader.ok_or_else(|| Error::request("the context stream was read already"))?;
            from_stream(engine, reader, "-")
        }
        ContextSource::Remote(url) if is_git_context(url) => {
            let keep = kiln_frontend::is_on(&request.build_args, "BUILDKIT_CONTEXT_KEEP_GIT_DIR");
            from_git(engine, git, url, keep)
        }
        ContextSource::Remote(url) => {
            git.note(url);
            from_http(engine, url)
        }
    }
}

/// A tar of any compression, or a Dockerfile alone.
fn from_stream(engine: &Arc<Engine>, mut reader: Box<dyn Read + Send>, name: &str) -> Result<Main> {
    let mut head = vec![0; 1024];
    let mut have = 0;
    while have < head.len() {
        match reader.read(&mut head[have..]).map_err(|e| Error::io("read", name, e))? {
            0 => break,
            n => have += n,
        }
    }
    head.truncate(have);
    let looks_like_text = kiln_compress::detect(&head) == kiln_compress::Format::Plain && !head.contains(&0);
    if looks_like_text {
        let mut text = head;
        whole(reader).read_to_end(&mut text).map_err(|e| Error::io("read", name, e))?;
        return Ok(Main { directory: None, dockerfile: Some(text), scratch: None, name: name.to_owned() });
    }
    if let Some(format) = foreign_format(&head) {
        return Err(Error::request_with_hint(
            format!("the context {name} has the format {format}, which is not read"),
            "give a tar archive, plain or with gzip, bzip2, xz or zstd",
        ));
    }
    let scratch = engine.store.scratch()?;
    let directory = scratch.path().join("context");
    std::fs::create_dir(&directory).map_err(|e| Error::io("create", &directory, e))?;
    unpack_archive(Box::new(std::io::Cursor::new(head).chain(reader)), &directory)?;
    Ok(Main { directory: Some(directory), dockerfile: None, scratch: Some(scratch), name: name.to_owned() })
}

/// A Dockerfile's text, of which half would be another one.
fn whole<R: Read>(reader: R) -> kiln_compress::LimitReader<R> {
    kiln_compress::LimitReader::new(reader, MAX_DOCKERFILE as u64)
}

/// What archives and compressed files begin with that no context may be.
fn foreign_format(head: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 7] = [
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a", "rar"),
        (b"LZIP", "lzip"),
        (b"\x89LZO\0", "lzop"),
        (b"\x1f\x9d", "compress"),
    ];
    KNOWN.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

fn from_git(engine: &Arc<Engine>, git: &GitAccess, text: &str, keep: bool) -> Result<Main> {
    let mut url = GitUrl::parse(text).map_err(|e| Error::request(e.to_string()))?;
    url.keep_git_dir = url.keep_git_dir.or(Some(keep));
    let url = url.source();
    let fetcher = git.fetcher()?;
    let auth = git.auth(&url.remote)?;
    let commit = fetcher.resolve(&url, &auth)?;
    let scratch = engine.store.scratch()?;
    let checkout = fetcher.checkout(&url, &commit, &auth, &scratch.path().join("context"))?;
    Ok(Main { directory: Some(checkout.dir), dockerfile: None, scratch: Some(scratch), name: redact_url(text) })
}

fn from_http(engine: &Arc<Engine>, url: &str) -> Result<Main> {
    let scratch = engine.store.scratch()?;
    let path = scratch.path().join("download");
    let mut file = std::fs::File::create(&path).map_err(|e| Error::io("create", &path, e))?;
    engine.http.get(url, &HttpOptions::default(), &mut file)?;
    let file = std::fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    from_stream(engine, Box::new(file), &redact_url(url))
}

/// The Dockerfile's name for messages, its bytes, and the path of the ignore file that belongs to it.
fn read_dockerfile(engine: &Engine, request: &BuildRequest, main: &Main) -> Result<(String, Vec<u8>, Option<PathBuf>)> {
    match &request.dockerfile {
        DockerfileSource::Inline(bytes) | DockerfileSource::Generated(bytes) => {
            Ok(("Dockerfile".to_owned(), bytes.clone(), None))
        }
        DockerfileSource::Remote(url) => {
            let mut bytes = Vec::new();
            let options = HttpOptions { limit: Some(MAX_DOCKERFILE as u64), ..HttpOptions::default() };
            engine.http.get(url, &options, &mut bytes)?;
            Ok((redact_url(url), bytes, None))
        }
        DockerfileSource::Default => match (&main.dockerfile, &main.directory) {
            (Some(bytes), _) => Ok(("Dockerfile".to_owned(), bytes.clone(), None)),
            (None, Some(directory)) => default_dockerfile(directory),
            (None, None) => Err(Error::request("there is no Dockerfile")),
        },
        DockerfileSource::Path(path) => {
            let remote = main.scratch.is_some();
            match (&main.directory, remote) {
                (Some(directory), true) => {
                    let bytes = Root::open(directory)?.read_small(path, MAX_DOCKERFILE)?;
                    let bytes = bytes.ok_or_else(|| no_dockerfile(path))?;
                    Ok((path.display().to_string(), bytes, None))
                }
                _ => outside_dockerfile(path, main),
            }
        }
    }
}

/// podman#28749: a link in the context does not lead out of it.
fn default_dockerfile(directory: &Path) -> Result<(String, Vec<u8>, Option<PathBuf>)> {
    let root = Root::open(directory)?;
    for name in NAMES {
        if let Some(bytes) = root.read_small(Path::new(name), MAX_DOCKERFILE)? {
            return Ok((name.to_owned(), bytes, Some(directory.join(name))));
        }
    }
    Err(no_dockerfile(&directory.join(NAMES[0])))
}

fn no_dockerfile(path: &Path) -> Error {
    let shown = path.parent().unwrap_or(Path::new(""));
    let dir = Root::open(if shown.as_os_str().is_empty() { Path::new(".") } else { shown }).ok();
    let near = dir.and_then(|dir| missing::did_you_mean(&dir, Path::new(path.file_name()?), shown));
    let hint = near.unwrap_or_else(|| "name the Dockerfile with -f, or give another context".to_owned());
    Error::request_with_hint(format!("there is no {}", path.display()), hint)
}

fn outside_dockerfile(path: &Path, main: &Main) -> Result<(String, Vec<u8>, Option<PathBuf>)> {
    let read = |p: &Path| -> std::io::Result<Vec<u8>> {
        let file = std::fs::File::open(p)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        whole(file).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read(path) {
        Ok(bytes) => Ok((path.display().to_string(), bytes, Some(path.to_owned()))),
        // `-f sub/Dockerfile` means the context's for people who come from other tools.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_relative() => {
            let inside = main.directory.as_ref().map(|d| d.join(path));
            let found = inside.and_then(|p| read(&p).ok().map(|b| (p, b)));
            found.map(|(p, b)| (path.display().to_string(), b, Some(p))).ok_or_else(|| no_dockerfile(path))
        }
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// The ignore file that belongs to a Dockerfile alone, with its name. One that can't be read is an error: what it keeps out would
/// get into the image.
fn ignore_file_beside(dockerfile: &Path) -> Result<Option<(Vec<u8>, String)>> {
    let Some(file) = dockerfile.file_name() else { return Ok(None) };
    let mut name = file.to_owned();
    name.push(".dockerignore");
    let dir = dockerfile.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let bytes = Root::open(dir)?.read_small(Path::new(&name), MAX_IGNORE)?;
    Ok(bytes.map(|bytes| (bytes, name.to_string_lossy().into_owned())))
}

/// `<Dockerfile>.dockerignore` beats `.dockerignore`, which beats `.containerignore`.
fn ignore_rules(main: &Main, dockerfile: Option<&Path>) -> Result<Option<IgnoreMatcher>> {
    let Some(directory) = &main.directory else { return Ok(None) };
    let mut found = match dockerfile {
        Some(path) => ignore_file_beside(path)?,
        None => None,
    };
    let root = Root::open(directory)?;
    for name in IGNORE_NAMES {
        if found.is_none() {
            found = root.read_small(Path::new(name), MAX_IGNORE)?.map(|bytes| (bytes, name.to_owned()));
        }
    }
    let Some((bytes, name)) = found else { return Ok(None) };
    let rules = IgnoreFile::parse(&bytes, &name);
    let matcher = IgnoreMatcher::new(&rules);
    let matcher = matcher.map_err(|diagnostics| Error::Dockerfile { file: rules.source.clone(), diagnostics })?;
    Ok((!matcher.is_empty()).then_some(matcher))
}

fn open_contexts(
    engine: &Arc<Engine>,
    request: &BuildRequest,
    main: &Main,
    ignore: Option<IgnoreMatcher>,
) -> Result<Contexts> {
    let mut contexts = Contexts::default();
    match &main.directory {
        Some(directory) => contexts.add(MAIN, LocalContext::open(engine, directory, ignore)?),
        None => contexts.add(MAIN, LocalContext::open(engine, &engine.store.sources_dir("empty")?, None)?),
    }
    for (name, spec) in local_contexts(&request.named_contexts) {
        let directory = Path::new(spec.strip_prefix("local://").unwrap_or(&spec)).to_owned();
        if let Err(error) = directory.metadata() {
            return Err(Error::request(format!("--build-context {name}={spec}: {error}")));
        }
        let own = Main { directory: Some(directory.clone()), dockerfile: None, scratch: None, name: String::new() };
        let ignore = ignore_rules(&own, None)?;
        contexts.add(&name, LocalContext::open(engine, &directory, ignore)?);
    }
    Ok(contexts)
}

fn local_contexts(named: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> + '_ {
    named
        .iter()
        .filter(|(_, spec)| !spec.contains("://") || spec.starts_with("local://"))
        .filter(|(_, spec)| !is_git_context(spec))
        .map(|(n, s)| (n.clone(), s.clone()))
}

/// `# syntax=` names a frontend; kiln has the docker/dockerfile one built in and runs no other.
fn check_syntax(dockerfile: &Dockerfile, request: &BuildRequest) -> Result<()> {
    let asked = request.build_args.get("BUILDKIT_SYNTAX").cloned();
    let asked = asked.or_else(|| dockerfile.directives.syntax.as_ref().map(|s| s.value.clone()));
    match asked {
        Some(syntax) if !kiln_dockerfile::is_docker_syntax(&syntax) => {
            let mut diagnostic = Diagnostic::error(
                dockerfile.directives.syntax.as_ref().map(|s| s.span).unwrap_or_default(),
                format!("the frontend {syntax:?} is not supported"),
            );
            diagnostic.help =
                Some("kiln has docker/dockerfile built in; remove the line, or build with BuildKit".to_owned());
            Err(Error::Dockerfile { file: dockerfile.source.clone(), diagnostics: vec![diagnostic] })
        }
        _ => Ok(()),
    }
}
