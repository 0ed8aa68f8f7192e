//! From `kiln build`'s arguments and the environment to a [`BuildRequest`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kiln_engine::oci::Platform;
use kiln_engine::request::{BuildRequest, ContextSource, DockerfileSource, OnFinding, SecretSource, SshSource};
use kiln_engine::sshagent::Agent;

use super::build::{self, BuildArgs};
use super::confirm::stdin;
use super::parse::{attributes, key_value, platform, reference};
use super::{build_cache, build_limits, build_output};
use crate::error::CliError;

type Result<T> = std::result::Result<T, CliError>;

/// Builds the request; nothing is read but the environment and ssh keys.
pub fn request(args: &BuildArgs) -> Result<BuildRequest> {
    let mut build_args = build_args(&args.build_args)?;
    let tags = args.tags.iter().map(|t| reference("--tag", t)).collect::<Result<Vec<_>>>()?;
    let (outputs, of_outputs) = build_output::outputs(args)?;
    let mut annotations = build_output::annotations(&args.annotations)?;
    annotations.extend(of_outputs);
    let epoch = source_date_epoch(&mut build_args);
    Ok(BuildRequest {
        context: context(&args.context),
        dockerfile: dockerfile(args)?,
        target: args.target.clone().filter(|t| !t.is_empty()),
        build_args,
        named_contexts: named_contexts(&args.build_contexts)?,
        platforms: platforms(&args.platforms)?,
        outputs,
        tags,
        labels: args.labels.iter().map(|l| label(l)).collect::<Result<_>>()?,
        annotations,
        cache_from: build_cache::from(&args.cache_from)?,
        cache_to: build_cache::to(&args.cache_to)?,
        secrets: args.secrets.iter().map(|s| secret(s)).collect::<Result<_>>()?,
        ssh: args.ssh.iter().map(|s| ssh(s)).collect::<Result<_>>()?,
        no_cache: args.no_cache,
        no_cache_filter: args.no_cache_filter.clone(),
        pull: args.pull,
        remake: false,
        relock: false,
        run: build_limits::run_options(args)?,
        jobs: jobs(args.jobs.as_deref())?,
        explain: args.explain_cache,
        source_date_epoch: epoch,
        leaks: on_finding(args.leaks),
        on_failure: None,
        check_programs: on_finding(args.check_programs),
    })
}

fn on_finding(asked: build::OnFinding) -> OnFinding {
    match asked {
        build::OnFinding::Fail => OnFinding::Fail,
        build::OnFinding::Warn => OnFinding::Warn,
        build::OnFinding::Off => OnFinding::Off,
    }
}

fn jobs(asked: Option<&str>) -> Result<usize> {
    match asked.map(|text| (text.parse(), text)) {
        Some((Ok(n), _)) if n > 0 => Ok(n),
        Some((_, text)) => Err(CliError::usage(format!("--jobs {text}: expected a number from 1"))),
        None => Ok(kiln_engine::rootfs::processors()),
    }
}

/// `--build-arg NAME` takes the client's value; a name that is not set there is left out, as docker does.
fn build_args(list: &[String]) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for text in list {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), std::env::var(text).ok()),
        };
        if name.is_empty() {
            return Err(CliError::usage(format!("--build-arg {text:?}: expected NAME=VALUE, or NAME")));
        }
        all.extend(value.map(|v| (name.to_owned(), v)));
    }
    Ok(all)
}

/// `SOURCE_DATE_EPOCH` of the command line or the environment. What is no number (`context`, a stage) stays a build arg, which
/// only the Dockerfile tells the meaning of.
fn source_date_epoch(build_args: &mut BTreeMap<String, String>) -> Option<i64> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let value = build_args.get(NAME).cloned().or_else(|| std::env::var(NAME).ok()).filter(|v| !v.is_empty())?;
    let number = value.parse().ok();
    if number.is_none() {
        build_args.insert(NAME.to_owned(), value);
    }
    number
}

fn is_remote(text: &str) -> bool {
    kiln_engine::graph::is_git_context(text) || text.starts_with("http://") || text.starts_with("https://")
}

fn context(text: &str) -> ContextSource {
    match text {
        "-" => ContextSource::Stream(Arc::new(Mutex::new(Some(stdin("a Dockerfile or an archive"))))),
        t if is_remote(t) => ContextSource::Remote(t.to_owned()),
        t => ContextSource::Local(PathBuf::from(t)),
    }
}

fn dockerfile(args: &BuildArgs) -> Result<DockerfileSource> {
    match args.file.as_deref() {
        None | Some("") => Ok(DockerfileSource::Default),
        Some("-") if args.context == "-" => {
            Err(CliError::usage("the context and the Dockerfile can't both come from standard input"))
        }
        Some("-") => {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut stdin("a Dockerfile"), &mut text)
                .map_err(|e| CliError::failed(format!("can't read the Dockerfile from standard input: {e}")))?;
            Ok(DockerfileSource::Inline(text))
        }
        Some(url) if is_remote(url) => Ok(DockerfileSource::Remote(url.to_owned())),
        Some(path) => Ok(DockerfileSource::Path(PathBuf::from(path))),
    }
}

/// The platforms of a list, each once.
pub fn platforms(list: &[String]) -> Result<Vec<Platform>> {
    let mut all: Vec<Platform> = Vec::new();
    for text in list {
        let platform = platform(text)?;
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    Ok(all)
}

/// `name=value`, where the value is checked as far as it goes without opening it: a context that no stage uses is not opened.
fn named_contexts(list: &[String]) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for text in list {
        let (name, value) = key_value("--build-context", text)?;
        let bad = |why: &str| CliError::usage(format!("--build-context {text}: {why}"));
        match value.split_once("://") {
            _ if value.is_empty() => {
                return Err(bad("expected a directory, docker-image://, oci-layout://, deb://, a git or HTTP URL"));
            }
            Some(("docker-image", image)) => drop(reference("--build-context docker-image://", image)?),
            Some((_, "")) => return Err(bad("nothing follows the scheme")),
            None if value.starts_with("target:") => return Err(bad("other targets can be named in a bake file only")),
            None if !is_remote(&value) && !std::path::Path::new(&value).is_dir() => {
                return Err(bad("there is no such directory"));
            }
            _ => {}
        }
        all.insert(name, value);
    }
    Ok(all)
}

/// `key=value`; the value of a key alone is empty.
fn label(text: &str) -> Result<(String, String)> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(CliError::usage(format!("--label {text:?}: expected NAME=VALUE"))),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    }
}

/// `[type=file|env,]id=ID[,src=PATH][,env=VAR]`: without a type, a variable named like the id wins over a file.
pub fn secret(text: &str) -> Result<(String, SecretSource)> {
    let mut kind = None;
    let (mut id, mut src, mut env) = (None, None, None);
    for (key, value) in attributes(text)? {
        match key.as_str() {
            "type" if matches!(value.as_str(), "file" | "env") => kind = Some(value),
            "id" => id = Some(value),
            "src" | "source" => src = Some(value),
            "env" => env = Some(value),
            _ => {
                let field = if value.is_empty() { key } else { format!("{key}={value}") };
                return Err(CliError::usage(format!(
                    "--secret {text}: {field} is not one of type=file|env, id=, src= and env="
                )));
            }
        }
    }
    let id = id.filter(|i| !i.is_empty()).ok_or_else(|| CliError::usage(format!("--secret {text}: id= is missing")))?;
    let from_env =
        |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec).map(SecretSource::Value);
    let missing = |name: &str| CliError::usage(format!("--secret id={id}: the environment variable {name} is not set"));
    let source = match (kind.as_deref(), src, env) {
        (_, None, Some(name)) => from_env(&name).ok_or_else(|| missing(&name))?,
        (Some("env"), Some(name), None) => from_env(&name).ok_or_else(|| missing(&name))?,
        (Some("env"), None, None) => from_env(&id).ok_or_else(|| missing(&id))?,
        (_, Some(path), None) => SecretSource::File(PathBuf::from(path)),
        (None, None, None) => match from_env(&id) {
            Some(value) => value,
            None if !std::path::Path::new(&id).exists() => {
                return Err(CliError::usage(format!(
                    "--secret id={id}: there is neither a variable nor a file of this name: give src=PATH or env=NAME"
                )));
            }
            None => SecretSource::File(PathBuf::from(&id)),
        },
        (_, None, None) => SecretSource::File(PathBuf::from(&id)),
        (_, Some(_), Some(_)) => {
            return Err(CliError::usage(format!("--secret id={id}: src= and env= exclude each other")));
        }
    };
    Ok((id, source))
}

/// `default|ID[=SOCKET|KEY[,KEY]]`
pub fn ssh(text: &str) -> Result<(String, SshSource)> {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err(CliError::usage(format!("--ssh {text:?}: expected default, ID, or ID=SOCKET|KEY[,KEY]")));
    }
    if paths.is_empty() {
        let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty()).ok_or_else(|| {
            CliError::usage(format!(
                "--ssh {id}: SSH_AUTH_SOCK is not set: start an agent, or give a key: --ssh {id}=KEYFILE"
            ))
        })?;
        return Ok((id.to_owned(), SshSource::Socket(PathBuf::from(socket))));
    }
    let paths: Vec<PathBuf> = paths.split(',').map(PathBuf::from).collect();
    let is_socket = |p: &PathBuf| {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(p).is_ok_and(|m| m.file_type().is_socket())
    };
    match paths.as_slice() {
        [one] if is_socket(one) => Ok((id.to_owned(), SshSource::Socket(one.clone()))),
        _ => Ok((id.to_owned(), SshSource::Keys(Arc::new(Agent::new(super::ssh_keys::read(&paths)?))))),
    }
}
