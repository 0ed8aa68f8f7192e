//! Content for /etc/resolv.conf.

use std::path::Path;

use crate::spec::Network;

const STUB_FILE: &str = "/run/systemd/resolve/resolv.conf";
const PUBLIC: &[u8] = b"nameserver 8.8.8.8\nnameserver 8.8.4.4\n";
const MAX: u64 = 1 << 20;

/// What a container should find in /etc/resolv.conf: the machine's own content.
///
/// On the machine's network a resolver on loopback (systemd-resolved's 127.0.0.53, a local dnsmasq) works as it is. In
/// a network of its own it does not: then systemd-resolved's list of real servers is used, loopback servers are left
/// out, and if none is left there are public ones, as Docker does. Without any network the content does not matter.
pub fn default_resolv_conf(network: Network) -> Vec<u8> {
    resolv_conf_from(Path::new("/etc/resolv.conf"), Path::new(STUB_FILE), network == Network::Host)
}

fn resolv_conf_from(file: &Path, resolved: &Path, same_network: bool) -> Vec<u8> {
    let content = read(file).unwrap_or_default();
    if same_network {
        return if content.is_empty() { PUBLIC.to_vec() } else { content };
    }
    let text = String::from_utf8_lossy(&content);
    let servers = |text: &str| text.lines().filter_map(nameserver).map(str::to_owned).collect::<Vec<_>>();
    let real = |server: &String| !is_loopback(server);
    let text = if servers(&text).iter().any(real) {
        text.into_owned()
    } else {
        String::from_utf8_lossy(&read(resolved).unwrap_or_default()).into_owned()
    };
    let mut out = Vec::new();
    for line in text.lines().filter(|line| nameserver(line).is_none_or(|s| !is_loopback(s))) {
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    if !servers(&text).iter().any(real) {
        out.extend_from_slice(PUBLIC);
    }
    out
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.is_file() && meta.len() <= MAX { std::fs::read(path).ok() } else { None }
}

fn nameserver(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

fn is_loopback(server: &str) -> bool {
    let address = server.split('%').next().unwrap_or(server);
    address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(content: &str, resolved: &str, same: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, content).unwrap();
        std::fs::write(&b, resolved).unwrap();
        String::from_utf8(resolv_conf_from(&a, &b, same)).unwrap()
    }

    #[test]
    fn the_machines_resolver_is_kept_on_its_network() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
        assert_eq!(conf(stub, "nameserver 10.0.0.1\n", true), stub);
    }

    #[test]
    fn elsewhere_loopback_servers_are_replaced() {
        assert_eq!(
            conf("nameserver 127.0.0.53\n", "nameserver 10.0.0.1\nsearch x\n", false),
            "nameserver 10.0.0.1\nsearch x\n"
        );
        assert_eq!(conf("nameserver ::1\nnameserver 9.9.9.9\nsearch y\n", "", false), "nameserver 9.9.9.9\nsearch y\n");
        assert_eq!(conf("nameserver 127.0.0.1\n", "nameserver 127.0.0.1\n", false).as_bytes(), PUBLIC);
        assert_eq!(resolv_conf_from(Path::new("/nonexistent"), Path::new("/nonexistent"), true), PUBLIC);
    }
}
