//! Hosts: certificates, mirrors, kiln's own file and those of others.

use kiln_registry::testing::{DockerRegistry, RegistryOptions, TestCerts};

use super::World;
use super::support::Sandbox;

#[test]
fn a_private_ca_is_trusted_from_a_file_or_a_directory() {
    let Some(mut sandbox) = Sandbox::new("FROM scratch\nCOPY text /text\n") else { return };
    sandbox.file("text", "hello");
    let certs = TestCerts::create(&sandbox.path(""));
    let options = RegistryOptions { tls: Some(certs.clone()), ..RegistryOptions::default() };
    let Some(registry) = DockerRegistry::start(&options) else { return };
    let host = registry.host().replace("127.0.0.1", "localhost");
    // A loopback address may be insecure; that a certificate is checked shows where a rule says so.
    let name = format!("{host}/app:1");
    sandbox.build(&["-t", &name]).ok();
    let certs_d = sandbox.path(format!("home/.config/kiln/certs.d/{host}"));
    std::fs::create_dir_all(&certs_d).expect("a directory");
    let other = sandbox.path("other");
    std::fs::create_dir_all(&other).expect("a directory");
    std::fs::copy(TestCerts::create(&other).ca, certs_d.join("ca.crt")).expect("a copy");
    std::fs::copy(&certs.ca, certs_d.join("ca.crt")).expect("a copy");
    sandbox.kiln(&["push", &name]).ok();
    std::fs::remove_file(certs_d.join("ca.crt")).expect("removed");
    sandbox.env("SSL_CERT_FILE", certs.ca.to_str().expect("UTF-8"));
    sandbox.kiln(&["push", &name]).ok();
}

#[test]
fn a_mirror_of_kilns_file_is_asked_first() {
    let Some(world) = World::new() else { return };
    world.push("mirrored/app:1");
    let dir = world.sandbox.path("home/.config/kiln");
    std::fs::create_dir_all(&dir).expect("a directory");
    let file = format!("[registries.\"images.invalid\"]\nmirrors = [\"http://{}/mirrored\"]\n", world.registry.host());
    std::fs::write(dir.join("kiln.toml"), file).expect("a file");
    let pulled = world.elsewhere(&["pull", "images.invalid/app:1"]).ok();
    assert!(pulled.stdout.ends_with("images.invalid/app:1\n"), "{}", pulled.stdout);
}

#[test]
fn registries_conf_is_read_and_a_broken_one_is_a_warning() {
    let Some(mut world) = World::new() else { return };
    world.push("mirrored/app:1");
    let path = world.sandbox.path("registries.conf");
    let host = world.registry.host();
    let rule = format!("[[registry]]\nprefix = \"images.invalid\"\nlocation = \"{host}/mirrored\"\ninsecure = true\n");
    std::fs::write(&path, rule).expect("a file");
    world.sandbox.env("CONTAINERS_REGISTRIES_CONF", path.to_str().expect("UTF-8"));
    world.elsewhere(&["pull", "-q", "images.invalid/app:1"]).ok();
    std::fs::write(&path, "[[registry\n").expect("a file");
    let name = world.name("mirrored/app:1");
    let pulled = world.elsewhere(&["pull", &name]).ok();
    assert_eq!(pulled.stderr.matches("registries.conf is ignored").count(), 1, "{}", pulled.stderr);
}

#[test]
fn an_error_in_kilns_own_file_is_an_error_once_a_registry_is_needed() {
    let Some(mut world) = World::new() else { return };
    let path = world.sandbox.file("kiln.toml", "[registries.\"a.example\"]\nmirors = []\n");
    world.sandbox.env("KILN_CONFIG", path.to_str().expect("UTF-8"));
    world.sandbox.build(&[]).ok();
    world.elsewhere(&["pull", &world.name("app:1")]).fails(1).says(&["kiln.toml", "mirors"]);
}

#[test]
fn a_proxy_that_fails_is_named() {
    let mut sandbox = Sandbox::bare("");
    let pull = ["pull", "-q", "images.invalid/app"];
    for (url, says) in [
        ("http://me:pass-word@127.0.0.1:1", "images.invalid through the proxy 127.0.0.1:1 failed: connection refused"),
        ("socks5://127.0.0.1:1", "images.invalid through the proxy 127.0.0.1:1 failed"),
        ("ftp://127.0.0.1:1", "not a proxy URL that kiln supports"),
    ] {
        sandbox.env("ALL_PROXY", url);
        sandbox.kiln(&pull).fails(1).says(&[says]).hides("pass-word");
    }
    sandbox.env("NO_PROXY", ".invalid");
    sandbox.kiln(&pull).fails(1).says(&["there is no host of this name"]).hides("proxy");
}
