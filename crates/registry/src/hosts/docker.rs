//! docker's `daemon.json`: `registry-mirrors` (of Docker Hub) and `insecure-registries`, read-only.

use std::net::IpAddr;

use serde::Deserialize;

use super::{Mirror, MirrorPull, parse_location, parse_network};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry_mirrors: Vec<String>,
    #[serde(default)]
    insecure_registries: Vec<String>,
}

/// What is of use to us.
pub(super) struct Daemon {
    pub mirrors: Vec<Mirror>,
    pub insecure_hosts: Vec<String>,
    pub insecure_networks: Vec<(IpAddr, u8)>,
}

pub(super) fn parse(text: &str) -> Result<Daemon, String> {
    let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut daemon = Daemon { mirrors: Vec::new(), insecure_hosts: Vec::new(), insecure_networks: Vec::new() };
    for text in &file.registry_mirrors {
        let (location, settings) = parse_location(text)?;
        daemon.mirrors.push(Mirror { location, settings, ns: false, pull: MirrorPull::All });
    }
    for text in file.insecure_registries {
        match parse_network(&text) {
            Some(network) if text.contains('/') => daemon.insecure_networks.push(network),
            _ => daemon.insecure_hosts.push(text.trim_end_matches('/').replace("http://", "").replace("https://", "")),
        }
    }
    Ok(daemon)
}
