//! Which hosts to ask for an image, in which order, and how to connect to each.
//!
//! Settings come from three places, in this order: kiln's own file, containers' `registries.conf` (version 2) and
//! docker's `daemon.json`, the latter two read-only. The first place that has a rule for an image decides where it is
//! fetched from; that a host is insecure, its CA or its client certificate may come from any of them.
//!
//! Invariants:
//! - a push goes to the registry itself, never to a mirror;
//! - the last endpoint of a pull is the registry itself;
//! - plain http is used for loopback addresses and where configured, nowhere else.

mod containers;
mod docker;
mod kiln;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::Reference;

use crate::error::Error;
use crate::url::{is_loopback, split_port};

/// Where configuration is read from. Paths that do not exist are fine. See [`ConfigPaths::standard`].
#[derive(Debug, Clone, Default)]
pub struct ConfigPaths {
    /// kiln's own file (TOML).
    pub kiln: Option<PathBuf>,
    /// containers' `registries.conf` and the files of `registries.conf.d`, the most important last.
    pub registries_conf: Vec<PathBuf>,
    /// docker's `daemon.json`.
    pub daemon_json: Vec<PathBuf>,
    /// Directories with `<host[:port]>/{*.crt,*.cert,*.key}`.
    pub certs_dirs: Vec<PathBuf>,
}

impl ConfigPaths {
    /// The usual places of docker and containers, and `kiln.toml` and `certs.d` in kiln's own directory.
    pub fn standard(home: Option<&Path>, kiln_dir: Option<&Path>) -> Self {
        let etc = Path::new("/etc");
        let user = home.map(|h| h.join(".config"));
        let user_conf = user.as_ref().map(|u| u.join("containers/registries.conf")).filter(|p| p.exists());
        let mut registries_conf = vec![user_conf.unwrap_or_else(|| etc.join("containers/registries.conf"))];
        registries_conf.extend(drop_ins(&etc.join("containers/registries.conf.d")));
        registries_conf.extend(user.iter().flat_map(|u| drop_ins(&u.join("containers/registries.conf.d"))));
        let mut certs_dirs: Vec<_> = kiln_dir.map(|d| d.join("certs.d")).into_iter().collect();
        certs_dirs.extend(user.iter().map(|u| u.join("containers/certs.d")));
        certs_dirs.extend(["containers/certs.d", "docker/certs.d"].map(|p| etc.join(p)));
        let mut daemon_json: Vec<_> = user.iter().map(|u| u.join("docker/daemon.json")).collect();
        daemon_json.push(etc.join("docker/daemon.json"));
        Self { kiln: kiln_dir.map(|d| d.join("kiln.toml")), registries_conf, daemon_json, certs_dirs }
    }
}

/// Says where the configuration files are, when it is asked; by default there are none.
#[derive(Clone, Default)]
pub struct ConfigSource(Option<Arc<dyn Fn() -> ConfigPaths + Send + Sync>>);

impl ConfigSource {
    /// Asks `paths` at most once for each client.
    pub fn new(paths: impl Fn() -> ConfigPaths + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(paths)))
    }

    /// What the files say, after the rules that are `given`.
    pub(crate) fn load(&self, given: &HostsConfig) -> Result<(HostsConfig, Vec<ConfigWarning>), Error> {
        let mut config = given.clone();
        let Some(paths) = &self.0 else { return Ok((config, Vec::new())) };
        let (loaded, warnings) = HostsConfig::load(&paths())?;
        config.sources.extend(loaded.sources);
        config.insecure_networks.extend(loaded.insecure_networks);
        config.certs_dirs.extend(loaded.certs_dirs);
        Ok((config, warnings))
    }
}

impl std::fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "ConfigSource(..)" } else { "ConfigSource(none)" })
    }
}

fn drop_ins(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "conf")).collect();
    files.sort();
    files
}

/// How to connect to a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Plain http only.
    pub http: bool,
    /// Https, whatever the certificate says.
    pub skip_verify: bool,
    /// Https without verification, or plain http where the host does not speak TLS.
    pub insecure: bool,
    /// CA files (PEM) trusted for this host besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificate and key (PEM).
    pub client_cert: Option<(PathBuf, PathBuf)>,
}

impl HostSettings {
    fn merge(&mut self, other: &Self) {
        self.http |= other.http;
        self.skip_verify |= other.skip_verify;
        self.insecure |= other.insecure;
        self.ca.extend(other.ca.iter().filter(|p| !self.ca.contains(p)).cloned().collect::<Vec<_>>());
        if self.client_cert.is_none() {
            self.client_cert.clone_from(&other.client_cert);
        }
    }
}

/// A mirror of a registry or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// `host[:port][/path]`, put in place of the matched prefix.
    pub location: String,
    /// How to connect to it.
    pub settings: HostSettings,
    /// Tell it with `?ns=` which registry is meant (containerd's convention for mirrors of several registries).
    pub ns: bool,
    /// Ask it for these only.
    pub pull: MirrorPull,
}

/// What a mirror is asked for (`pull-from-mirror` of `registries.conf`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MirrorPull {
    /// Everything.
    #[default]
    All,
    /// Images by digest.
    DigestOnly,
    /// Images by tag.
    TagOnly,
}

/// Settings of a registry, or of a part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `host[:port][/path]` or `*.domain`: which images it is about.
    pub prefix: String,
    /// Where the matched prefix really is.
    pub location: Option<String>,
    /// Not to be used.
    pub blocked: bool,
    /// How to connect.
    pub settings: HostSettings,
    /// Mirrors, in order.
    pub mirrors: Vec<Mirror>,
    /// The file it came from.
    pub origin: String,
}

impl Rule {
    fn routes(&self) -> bool {
        self.blocked || self.location.is_some() || !self.mirrors.is_empty()
    }

    /// Length of the match on `registry/repository`; `None` if it is not about that image.
    fn matches(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.prefix.strip_prefix("*.") {
            let host = name.split('/').next().unwrap_or("");
            let host_only = host.split(':').next().unwrap_or("");
            return host_only.strip_suffix(domain).filter(|rest| rest.ends_with('.')).map(|_| host.len());
        }
        let rest = name.strip_prefix(&self.prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(self.prefix.len())
    }
}

/// The host table.
#[derive(Debug, Clone, Default)]
pub struct HostsConfig {
    /// Rules by source, the most important source first.
    sources: Vec<Vec<Rule>>,
    /// Addresses that docker calls insecure: (network, prefix length).
    insecure_networks: Vec<(IpAddr, u8)>,
    pub(crate) certs_dirs: Vec<PathBuf>,
}

/// A file that was ignored, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    /// The file.
    pub path: PathBuf,
    /// Why it was ignored.
    pub reason: String,
}

/// One host to ask, with the repository's name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointSpec {
    /// `host[:port]` to connect to.
    pub host: String,
    /// Registry name under which credentials are kept.
    pub registry: String,
    /// Repository there.
    pub repository: String,
    /// `?ns=` value.
    pub ns: Option<String>,
    pub mirror: bool,
    pub settings: HostSettings,
}

const HUB: &str = "docker.io";

impl HostsConfig {
    /// Reads the files. An error in kiln's own file is an error; others are skipped with a warning.
    pub fn load(paths: &ConfigPaths) -> Result<(Self, Vec<ConfigWarning>), Error> {
        let mut config = Self { certs_dirs: paths.certs_dirs.clone(), ..Self::default() };
        let mut warnings = Vec::new();
        if let Some(path) = &paths.kiln
            && let Some(text) = read_config(path).map_err(|reason| Error::Config { path: path.clone(), reason })?
        {
            let rules = kiln::parse(&text, &path.display().to_string())
                .map_err(|reason| Error::Config { path: path.clone(), reason })?;
            config.sources.push(rules);
        }
        let mut foreign = Vec::new();
        // the most important file is last; the first rule of a prefix wins
        for path in paths.registries_conf.iter().rev() {
            let parsed = read_config(path)
                .and_then(|text| text.map(|t| containers::parse(&t, &path.display().to_string())).transpose());
            match parsed {
                Ok(rules) => foreign.extend(rules.unwrap_or_default()),
                Err(reason) => warnings.push(ConfigWarning { path: path.clone(), reason }),
            }
        }
        config.sources.push(foreign);
        for path in &paths.daemon_json {
            match read_config(path).and_then(|text| text.map(|t| docker::parse(&t)).transpose()) {
                Ok(None) => {}
                Ok(Some(daemon)) => config.add_daemon(daemon, path),
                Err(reason) => warnings.push(ConfigWarning { path: path.clone(), reason }),
            }
        }
        Ok((config, warnings))
    }

    /// The rules of a `[registries]` section in kiln's format, as text; for tests and embedders.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        Ok(Self { sources: vec![kiln::parse(text, "configuration")?], ..Self::default() })
    }

    /// Adds a rule before all others (`--insecure-registry`, output attribute `registry.insecure`).
    pub fn push_rule(&mut self, rule: Rule) {
        self.sources.insert(0, vec![rule]);
    }

    /// Marks a registry as insecure.
    pub fn set_insecure(&mut self, registry: &str) {
        let settings = HostSettings { insecure: true, ..HostSettings::default() };
        self.push_rule(Rule { prefix: registry.to_owned(), settings, ..Rule::default() });
    }

    /// Adds a directory of `<host>/{ca.crt,…}`.
    pub fn add_certs_dir(&mut self, dir: PathBuf) {
        self.certs_dirs.insert(0, dir);
    }

    fn add_daemon(&mut self, daemon: docker::Daemon, path: &Path) {
        let origin = path.display().to_string();
        let mut rules = Vec::new();
        if !daemon.mirrors.is_empty() {
            let (mirrors, prefix) = (daemon.mirrors, HUB.to_owned());
            rules.push(Rule { prefix, mirrors, origin: origin.clone(), ..Rule::default() });
        }
        for host in daemon.insecure_hosts {
            let settings = HostSettings { insecure: true, ..HostSettings::default() };
            rules.push(Rule { prefix: host, settings, origin: origin.clone(), ..Rule::default() });
        }
        self.sources.push(rules);
        self.insecure_networks.extend(daemon.insecure_networks);
    }

    /// The hosts to ask for an image, in order.
    pub(crate) fn pull_endpoints(&self, image: &Reference) -> Result<Vec<EndpointSpec>, Error> {
        let mut endpoints = Vec::new();
        let name = image.name();
        if let Some((rule, matched)) = self.route(&name) {
            self.refuse_blocked(rule)?;
            for mirror in &rule.mirrors {
                let by_digest = image.digest().is_some();
                let wanted = match mirror.pull {
                    MirrorPull::All => true,
                    MirrorPull::DigestOnly => by_digest,
                    MirrorPull::TagOnly => !by_digest,
                };
                let target = format!("{}{}", mirror.location, &name[matched..]);
                if let (true, Some(mut spec)) = (wanted, self.endpoint(&target, &mirror.settings)) {
                    spec.mirror = true;
                    spec.ns = mirror.ns.then(|| image.registry().to_owned());
                    endpoints.push(spec);
                }
            }
        }
        endpoints.push(self.origin_endpoint(image)?);
        Ok(endpoints)
    }

    /// The registry itself.
    pub(crate) fn origin_endpoint(&self, image: &Reference) -> Result<EndpointSpec, Error> {
        let name = image.name();
        let routed = self.route(&name);
        let target = match routed {
            Some((rule, matched)) => {
                self.refuse_blocked(rule)?;
                rule.location.as_ref().map_or_else(|| name.clone(), |l| format!("{l}{}", &name[matched..]))
            }
            None => name.clone(),
        };
        let malformed = || Error::Protocol { host: image.registry().to_owned(), reason: "not a host name".into() };
        self.endpoint(&target, &HostSettings::default()).ok_or_else(malformed)
    }

    /// Just a host (log-in, catalog).
    pub(crate) fn host_endpoint(&self, registry: &str) -> Result<EndpointSpec, Error> {
        let malformed =
            || Error::Protocol { host: registry.chars().take(200).collect(), reason: "not a registry host".into() };
        self.endpoint(&format!("{registry}/"), &HostSettings::default()).ok_or_else(malformed)
    }

    fn refuse_blocked(&self, rule: &Rule) -> Result<(), Error> {
        match rule.blocked {
            true => Err(Error::Blocked { registry: rule.prefix.clone(), origin: rule.origin.clone() }),
            false => Ok(()),
        }
    }

    /// The most specific rule of the first source that has one.
    fn route(&self, name: &str) -> Option<(&Rule, usize)> {
        self.sources.iter().find_map(|rules| {
            let matching = rules.iter().filter(|r| r.routes()).filter_map(|r| r.matches(name).map(|n| (r, n)));
            // `max_by_key` gives the last of equals, the first rule is the one that counts
            matching.rev().max_by_key(|(r, n)| (!r.prefix.starts_with("*."), *n))
        })
    }

    fn endpoint(&self, target: &str, extra: &HostSettings) -> Option<EndpointSpec> {
        let (registry, repository) = target.split_once('/')?;
        let (host_only, _) = split_port(registry)?;
        let mut settings = extra.clone();
        for rule in self.sources.iter().flatten() {
            let name_matches = rule.matches(target).is_some() || rule.matches(registry).is_some();
            let location_matches =
                rule.location.as_ref().is_some_and(|l| l == registry || target.starts_with(&format!("{l}/")));
            if (name_matches && rule.location.is_none()) || location_matches {
                settings.merge(&rule.settings);
            }
        }
        settings.insecure |= is_loopback(host_only) || self.in_insecure_network(host_only);
        let registry = if registry == "index.docker.io" || registry == "registry-1.docker.io" { HUB } else { registry };
        let host = if registry == HUB { "registry-1.docker.io" } else { registry };
        Some(EndpointSpec {
            host: host.to_owned(),
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            ns: None,
            mirror: false,
            settings,
        })
    }

    fn in_insecure_network(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.parse().is_ok_and(|ip| self.insecure_networks.iter().any(|(net, len)| in_network(ip, *net, *len)))
    }
}

/// Whether `ip` is inside `net/len`.
pub(crate) fn in_network(ip: IpAddr, net: IpAddr, len: u8) -> bool {
    fn equal(a: &[u8], b: &[u8], len: u8) -> bool {
        let (whole, rest) = (usize::from(len / 8), len % 8);
        let mask = !(0xff_u8.checked_shr(u32::from(rest)).unwrap_or(0));
        a.get(..whole) == b.get(..whole)
            && (rest == 0 || a.get(whole).zip(b.get(whole)).is_some_and(|(a, b)| a & mask == b & mask))
    }
    match (ip, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) if len <= 32 => equal(&a.octets(), &b.octets(), len),
        (IpAddr::V6(a), IpAddr::V6(b)) if len <= 128 => equal(&a.octets(), &b.octets(), len),
        _ => false,
    }
}

/// Parses `a.b.c.d/n` or an address.
pub(crate) fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, len) = text.split_once('/').map_or((text, None), |(ip, len)| (ip, Some(len)));
    let ip: IpAddr = ip.parse().ok()?;
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let len = len.map_or(Some(max), |l| l.parse().ok())?;
    (len <= max).then_some((ip, len))
}

/// A configuration file's text; `None` if it does not exist.
fn read_config(path: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Splits `[http[s]://]host[:port][/path]` as mirrors are written; `http://` means plain http.
fn parse_location(text: &str) -> Result<(String, HostSettings), String> {
    let (http, rest) = match text.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some((scheme, _)) => return Err(format!("{scheme}:// is not supported in {text:?}")),
        None => (false, text),
    };
    let location = rest.trim_end_matches('/').to_owned();
    let host = location.split('/').next().unwrap_or("");
    if split_port(host).is_none() {
        return Err(format!("{text:?} is not a registry location"));
    }
    Ok((location, HostSettings { http, ..HostSettings::default() }))
}

#[cfg(test)]
mod tests;
