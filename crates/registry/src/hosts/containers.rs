//! `registries.conf` version 2 of containers/image (podman, buildah, skopeo), read-only.
//!
//! Not used from it: `unqualified-search-registries` and `[aliases]`, because a short name always means Docker Hub
//! here, as in a Dockerfile it does for docker. Files of version 1 have nothing that we use.

use serde::Deserialize;

use super::{HostSettings, Mirror, MirrorPull, Rule, parse_location};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<MirrorEntry>,
    #[serde(default)]
    mirror_by_digest_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorEntry {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Vec<Rule>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    file.registry.into_iter().map(|entry| rule(entry, origin)).collect()
}

fn rule(entry: Entry, origin: &str) -> Result<Rule, String> {
    let insecure = |insecure| HostSettings { insecure, ..HostSettings::default() };
    let prefix = match entry.prefix.filter(|p| !p.is_empty()).or_else(|| entry.location.clone()) {
        Some(prefix) => prefix.trim_end_matches('/').to_owned(),
        None => return Err("a [[registry]] has neither prefix nor location".into()),
    };
    let mut mirrors = Vec::new();
    for mirror in entry.mirror {
        let (location, _) = parse_location(&mirror.location)?;
        let pull = match mirror.pull_from_mirror.as_deref() {
            Some("digest-only") => MirrorPull::DigestOnly,
            Some("tag-only") => MirrorPull::TagOnly,
            _ if entry.mirror_by_digest_only => MirrorPull::DigestOnly,
            _ => MirrorPull::All,
        };
        mirrors.push(Mirror { location, settings: insecure(mirror.insecure), ns: false, pull });
    }
    let location = entry.location.filter(|l| *l != prefix && !l.is_empty());
    let location = location.map(|l| parse_location(&l).map(|(l, _)| l)).transpose()?;
    let settings = insecure(entry.insecure);
    Ok(Rule { prefix, location, blocked: entry.blocked, settings, mirrors, origin: origin.to_owned() })
}
