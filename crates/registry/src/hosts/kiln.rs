//! kiln's own configuration file, section `[registries]`:
//!
//! ```toml
//! [registries."docker.io"]
//! mirrors = ["https://mirror.example.com", "http://10.0.0.5:5000/hub"]
//!
//! [registries."registry.example.com:5000"]
//! ca = "/etc/ssl/registry.crt"        # or a list
//! client-cert = "/etc/ssl/me.cert"
//! client-key = "/etc/ssl/me.key"
//! skip-verify = false                 # https, whatever the certificate says
//! http = false                        # plain http only
//! insecure = false                    # https without verification, or else plain http
//! blocked = false
//! location = "other.example.com/path" # where it really is
//! ```
//!
//! The section `[store]` is not looked at. A misspelt key in this section is an error, and so is any other section.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{HostSettings, Mirror, MirrorPull, Rule, parse_location};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    registries: BTreeMap<String, Entry>,
    /// Others read it.
    #[serde(default, rename = "store")]
    _store: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    mirrors: Vec<String>,
    location: Option<String>,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    http: bool,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    ca: OneOrMany,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(PathBuf),
    Many(Vec<PathBuf>),
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Vec<Rule>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    file.registries.into_iter().map(|(prefix, entry)| rule(prefix, entry, origin)).collect()
}

fn rule(prefix: String, entry: Entry, origin: &str) -> Result<Rule, String> {
    let mut mirrors = Vec::new();
    for text in &entry.mirrors {
        let (location, settings) = parse_location(text)?;
        mirrors.push(Mirror { location, settings, ns: true, pull: MirrorPull::All });
    }
    let client_cert = match (entry.client_cert, entry.client_key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err(format!("registries.{prefix:?}: client-cert and client-key belong together")),
    };
    let mut settings = HostSettings {
        http: entry.http,
        skip_verify: entry.skip_verify,
        insecure: entry.insecure,
        ca: match entry.ca {
            OneOrMany::None => Vec::new(),
            OneOrMany::One(path) => vec![path],
            OneOrMany::Many(paths) => paths,
        },
        client_cert,
    };
    let location = match entry.location {
        Some(text) => {
            let (location, from_scheme) = parse_location(&text)?;
            settings.merge(&from_scheme);
            Some(location)
        }
        None => None,
    };
    Ok(Rule { prefix, location, blocked: entry.blocked, settings, mirrors, origin: origin.to_owned() })
}
