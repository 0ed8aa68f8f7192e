//! From `kiln build`'s arguments and the environment to a [`BuildRequest`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kiln_engine::graph::{HostIp, Limits, NetworkMode, Resources, Ulimit};
use kiln_engine::oci::media::Compression;
use kiln_engine::oci::{Platform, Reference};
use kiln_engine::request::{
    Annotation, AnnotationTarget, ArchiveOutput, BuildRequest, ContextSource, Destination, DockerfileSource,
    Entitlements, ImageOutput, LayerFormat, OnFinding, Output, RunOptions, SecretSource, SshSource,
};
use kiln_engine::sshagent::Agent;

use super::build::{self, BuildArgs};
use super::build_cache;
use super::parse::{attributes, bytes, key_value};
use crate::error::CliError;

type Result<T> = std::result::Result<T, CliError>;

/// Builds the request; nothing is read but the environment and ssh keys.
pub fn request(args: &BuildArgs) -> Result<BuildRequest> {
    let build_args = build_args(&args.build_args);
    let tags = args.tags.iter().map(|t| reference(t)).collect::<Result<Vec<_>>>()?;
    let epoch = source_date_epoch(&build_args)?;
    Ok(BuildRequest {
        context: context(&args.context),
        dockerfile: dockerfile(args)?,
        target: args.target.clone(),
        build_args,
        named_contexts: pairs("--build-context", &args.build_contexts)?,
        platforms: platforms(&args.platforms)?,
        outputs: outputs(args)?,
        tags,
        labels: args.labels.iter().map(|l| split_label(l)).collect(),
        annotations: args.annotations.iter().map(|a| annotation(a)).collect::<Result<_>>()?,
        cache_from: build_cache::from(&args.cache_from)?,
        cache_to: build_cache::to(&args.cache_to)?,
        secrets: args.secrets.iter().map(|s| secret(s)).collect::<Result<_>>()?,
        ssh: args.ssh.iter().map(|s| ssh(s)).collect::<Result<_>>()?,
        no_cache: args.no_cache,
        no_cache_filter: args.no_cache_filter.clone(),
        pull: args.pull,
        relock: false,
        run: run_options(args)?,
        jobs: jobs(args.jobs)?,
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

fn jobs(asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(0) => Err(CliError::usage("--jobs must be at least 1")),
        Some(n) => Ok(n),
        None => Ok(std::thread::available_parallelism().map_or(2, usize::from)),
    }
}

/// `--build-arg NAME` takes the client's value; a name that is not set there is left out, as docker does.
fn build_args(list: &[String]) -> BTreeMap<String, String> {
    let one = |text: &String| match text.split_once('=') {
        Some((k, v)) => Some((k.to_owned(), v.to_owned())),
        None => std::env::var(text).ok().map(|v| (text.clone(), v)),
    };
    list.iter().filter_map(one).collect()
}

fn source_date_epoch(build_args: &BTreeMap<String, String>) -> Result<Option<i64>> {
    let value = build_args.get("SOURCE_DATE_EPOCH").cloned().or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok());
    match value.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| CliError::usage(format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds"))),
    }
}

fn is_remote(text: &str) -> bool {
    kiln_engine::graph::is_git_context(text) || text.starts_with("http://") || text.starts_with("https://")
}

fn context(text: &str) -> ContextSource {
    match text {
        "-" => ContextSource::Stream(Arc::new(Mutex::new(Some(Box::new(std::io::stdin()))))),
        t if is_remote(t) => ContextSource::Remote(t.to_owned()),
        t => ContextSource::Local(PathBuf::from(t)),
    }
}

fn dockerfile(args: &BuildArgs) -> Result<DockerfileSource> {
    match args.file.as_deref() {
        None => Ok(DockerfileSource::Default),
        Some("-") if args.context == "-" => {
            Err(CliError::usage("the context and the Dockerfile can't both come from standard input"))
        }
        Some("-") => {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut text)
                .map_err(|e| CliError::failed(format!("can't read the Dockerfile from standard input: {e}")))?;
            Ok(DockerfileSource::Inline(text))
        }
        Some(url) if is_remote(url) => Ok(DockerfileSource::Remote(url.to_owned())),
        Some(path) => Ok(DockerfileSource::Path(PathBuf::from(path))),
    }
}

fn reference(text: &str) -> Result<Reference> {
    text.parse::<Reference>().map(Reference::with_default_tag).map_err(|e| CliError::usage(e.to_string()))
}

/// The platforms of a list, each once.
pub fn platforms(list: &[String]) -> Result<Vec<Platform>> {
    let mut all: Vec<Platform> = Vec::new();
    for text in list.iter().filter(|t| !t.is_empty()) {
        let platform = text.parse::<Platform>().map_err(|e| CliError::usage(format!("--platform: {e}")))?;
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    Ok(all)
}

fn pairs(flag: &str, list: &[String]) -> Result<BTreeMap<String, String>> {
    list.iter().map(|text| key_value(flag, text)).collect()
}

fn split_label(text: &str) -> (String, String) {
    text.split_once('=').map_or_else(|| (text.to_owned(), String::new()), |(k, v)| (k.to_owned(), v.to_owned()))
}

/// `[type[platform][,type…]:]key=value`
fn annotation(text: &str) -> Result<Annotation> {
    let (key, value) = key_value("--annotation", text)?;
    let (prefix, key) = match key.split_once(':') {
        Some((prefix, key)) => (prefix.to_owned(), key.to_owned()),
        None => (String::new(), key),
    };
    let (kind, platform) = match prefix.split_once('[') {
        Some((kind, platform)) => {
            let platform =
                platform.trim_end_matches(']').parse().map_err(|e| CliError::usage(format!("--annotation: {e}")))?;
            (kind.to_owned(), Some(platform))
        }
        None => (prefix, None),
    };
    let target = match kind.as_str() {
        "" | "manifest" => AnnotationTarget::Manifest,
        "index" => AnnotationTarget::Index,
        "manifest-descriptor" => AnnotationTarget::ManifestDescriptor,
        "index-descriptor" => AnnotationTarget::IndexDescriptor,
        other => {
            return Err(CliError::usage(format!(
                "--annotation: {other:?} is not index, manifest, index-descriptor or manifest-descriptor"
            )));
        }
    };
    Ok(Annotation { target, platform, key, value })
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
                return Err(CliError::usage(format!(
                    "--secret: {key}={value} is not type=file|env, id=, src= or env="
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
        (None, None, None) => from_env(&id).unwrap_or_else(|| SecretSource::File(PathBuf::from(&id))),
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

fn run_options(args: &BuildArgs) -> Result<RunOptions> {
    let network = match args.network.as_str() {
        "default" | "" => NetworkMode::Default,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => return Err(CliError::usage(format!("--network {other}: use default, none or host"))),
    };
    let ulimits = args.ulimits.iter().map(|u| ulimit(u)).collect::<Result<_>>()?;
    let shm_size = args.shm_size.as_deref().map(|s| bytes("--shm-size", s)).transpose()?;
    Ok(RunOptions {
        network,
        extra_hosts: args.add_hosts.iter().map(|h| add_host(h)).collect::<Result<_>>()?,
        limits: Limits { ulimits, shm_size },
        resources: resources(args)?,
        hostname: None,
        allow: entitlements(&args.allow)?,
        proxy: proxy_variables(),
    })
}

fn proxy_variables() -> BTreeMap<String, String> {
    const NAMES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
    let both = NAMES.iter().flat_map(|n| [(*n).to_owned(), n.to_lowercase()]);
    both.filter_map(|n| std::env::var(&n).ok().map(|v| (n, v))).collect()
}

fn entitlements(list: &[String]) -> Result<Entitlements> {
    let mut allow = Entitlements::default();
    for text in list {
        match text.as_str() {
            "network.host" => allow.network_host = true,
            "security.insecure" => allow.security_insecure = true,
            other => return Err(CliError::usage(format!("--allow {other}: use network.host or security.insecure"))),
        }
    }
    Ok(allow)
}

/// `host:ip` or `host=ip`; IPv6 may be bracketed.
fn add_host(text: &str) -> Result<HostIp> {
    let bad = || CliError::usage(format!("--add-host {text}: expected HOST:IP"));
    let (host, ip) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(bad)?;
    let ip = ip.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || (ip != "host-gateway" && ip.parse::<std::net::IpAddr>().is_err()) {
        return Err(bad());
    }
    Ok(HostIp { host: host.to_owned(), ip: ip.to_owned() })
}

/// `type=soft[:hard]`
fn ulimit(text: &str) -> Result<Ulimit> {
    let bad = || CliError::usage(format!("--ulimit {text}: expected NAME=SOFT[:HARD]"));
    let (name, values) = text.split_once('=').ok_or_else(bad)?;
    let number = |v: &str| if v == "unlimited" { Ok(-1) } else { v.parse::<i64>().map_err(|_| bad()) };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(values)?, number(values)?),
    };
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

fn resources(args: &BuildArgs) -> Result<Resources> {
    let mut r = Resources {
        memory: args.memory.as_deref().map(|m| bytes("--memory", m)).transpose()?,
        memory_swap: args.memory_swap.as_deref().map(swap).transpose()?,
        cpu_shares: args.cpu_shares,
        cpu_period: args.cpu_period,
        cpu_quota: args.cpu_quota,
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        pids: None,
    };
    if let Some(cpus) = &args.cpus {
        let count: f64 = cpus
            .parse()
            .ok()
            .filter(|c| *c > 0.0)
            .ok_or_else(|| CliError::usage(format!("--cpus {cpus}: expected a number such as 1.5")))?;
        r.cpu_period = Some(100_000);
        r.cpu_quota = Some((count * 100_000.0) as i64);
    }
    for text in &args.resources {
        let (name, value) = key_value("--resource", text)?;
        let number =
            || value.parse::<i64>().map_err(|_| CliError::usage(format!("--resource {name}={value}: not a number")));
        match name.as_str() {
            "memory" => r.memory = Some(bytes("--resource memory", &value)?),
            "memory-swap" => r.memory_swap = Some(swap(&value)?),
            "cpu-shares" => r.cpu_shares = Some(number()?.unsigned_abs()),
            "cpu-period" => r.cpu_period = Some(number()?.unsigned_abs()),
            "cpu-quota" => r.cpu_quota = Some(number()?),
            "cpuset-cpus" => r.cpuset_cpus = Some(value),
            "cpuset-mems" => r.cpuset_mems = Some(value),
            other => return Err(CliError::usage(format!("--resource: {other} is not known"))),
        }
    }
    Ok(r)
}

fn swap(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    Ok(i64::try_from(bytes("--memory-swap", text)?).unwrap_or(i64::MAX))
}

fn outputs(args: &BuildArgs) -> Result<Vec<Output>> {
    let mut all = args.outputs.iter().map(|o| output(o)).collect::<Result<Vec<_>>>()?;
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
    let stdout = |o: &&Output| {
        matches!(o, Output::Tar(Destination::Stdout) | Output::Archive(ArchiveOutput { dest: Destination::Stdout, .. }))
    };
    if all.iter().filter(stdout).count() > 1 {
        return Err(CliError::usage("only one --output can go to standard output"));
    }
    Ok(all)
}

fn output(text: &str) -> Result<Output> {
    if text == "-" {
        return Ok(Output::Tar(Destination::Stdout));
    }
    if !text.contains('=') {
        return Ok(Output::Local { dest: PathBuf::from(text), delete: false });
    }
    let mut spec = OutputSpec { text, attrs: attributes(text)?.into_iter().collect() };
    let kind = spec.take("type").ok_or_else(|| CliError::usage(format!("--output {text}: type= is missing")))?;
    let output = match kind.as_str() {
        "local" => Output::Local {
            dest: PathBuf::from(spec.need("dest")?),
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
    spec.finish()?;
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

    fn destination(&mut self) -> Result<Destination> {
        Ok(match self.take("dest").as_deref() {
            None | Some("-") => Destination::Stdout,
            Some(path) => Destination::Path(PathBuf::from(path)),
        })
    }

    fn names(&mut self) -> Result<Vec<Reference>> {
        let names = self.take("name").unwrap_or_default();
        names.split(',').filter(|n| !n.is_empty()).map(reference).collect()
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
        let level = self.take("compression-level").map(|l| l.parse::<i32>()).transpose();
        let level = level.ok().filter(|l| l.is_none_or(|l| (0..=22).contains(&l)));
        let level = level.ok_or_else(|| CliError::usage("--output compression-level=: expected 0 to 22"))?;
        Ok(LayerFormat {
            compression,
            level,
            force: self.flag("force-compression")?.unwrap_or(false),
            oci: self.flag("oci-mediatypes")?.unwrap_or(oci_default),
            rewrite_timestamp: self.flag("rewrite-timestamp")?.unwrap_or(false),
        })
    }

    fn archive(&mut self, docker: bool) -> Result<ArchiveOutput> {
        Ok(ArchiveOutput {
            docker,
            dest: self.destination()?,
            directory: !self.flag("tar")?.unwrap_or(true),
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
            name_canonical: self.flag("name-canonical")?.unwrap_or(false),
            insecure: self.flag("registry.insecure")?.unwrap_or(false),
            layers: self.layers(true)?,
        })
    }

    fn finish(self) -> Result<()> {
        match self.attrs.keys().next() {
            None => Ok(()),
            Some(key) => Err(CliError::usage(format!("--output {}: {key}= is not supported for this type", self.text))),
        }
    }
}
