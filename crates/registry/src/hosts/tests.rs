use super::*;

fn image(s: &str) -> Reference {
    s.parse().unwrap()
}

fn shown(specs: &[EndpointSpec]) -> Vec<String> {
    let kind = |s: &EndpointSpec| if s.mirror { "mirror" } else { "origin" };
    specs.iter().map(|s| format!("{} {}/{}", kind(s), s.host, s.repository)).collect()
}

fn load(files: &[(&str, &str)]) -> (HostsConfig, Vec<ConfigWarning>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (name, text) in files {
        std::fs::write(path(name), text).unwrap();
    }
    let paths = ConfigPaths {
        kiln: Some(path("kiln.toml")),
        registries_conf: vec![path("registries.conf"), path("50-drop-in.conf")],
        daemon_json: vec![path("daemon.json")],
        certs_dirs: Vec::new(),
    };
    HostsConfig::load(&paths).unwrap()
}

#[test]
fn without_configuration_only_loopback_may_be_plain_http() {
    let (config, warnings) = load(&[]);
    assert!(warnings.is_empty());
    let hub = config.pull_endpoints(&image("alpine")).unwrap();
    assert_eq!(shown(&hub), ["origin registry-1.docker.io/library/alpine"]);
    assert_eq!(hub[0].registry, "docker.io");
    assert_eq!(hub[0].settings, HostSettings::default());
    assert!(config.origin_endpoint(&image("127.0.0.1:5000/a")).unwrap().settings.insecure);
    assert!(config.origin_endpoint(&image("[::1]:5000/a")).unwrap().settings.insecure);
    assert!(!config.origin_endpoint(&image("127.0.0.1.example.com/a")).unwrap().settings.insecure);
}

#[test]
fn mirrors_come_first_in_order_and_pushes_do_not_use_them() {
    let (config, _) = load(&[(
        "kiln.toml",
        "[registries.\"docker.io\"]\nmirrors = [\"https://m1.example\", \"http://10.0.0.5:5000/hub\"]\n[store]\nmax-used-space = 1\n",
    )]);
    let specs = config.pull_endpoints(&image("alpine:3")).unwrap();
    assert_eq!(
        shown(&specs),
        [
            "mirror m1.example/library/alpine",
            "mirror 10.0.0.5:5000/hub/library/alpine",
            "origin registry-1.docker.io/library/alpine"
        ]
    );
    assert_eq!(specs[0].ns.as_deref(), Some("docker.io"));
    assert!(!specs[0].settings.http && specs[1].settings.http && !specs[2].settings.http);
    assert!(!config.origin_endpoint(&image("alpine")).unwrap().mirror);
}

#[test]
fn registries_conf_prefixes_locations_mirrors_and_blocks() {
    let text = r#"
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "example.com/team"
location = "internal.example:5000/t"
insecure = true
[[registry.mirror]]
location = "mirror.example/m"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "*.bad.example"
blocked = true
"#;
    let (config, warnings) = load(&[("registries.conf", text)]);
    assert_eq!(warnings, []);
    let specs = config.pull_endpoints(&image("example.com/team/app:1")).unwrap();
    assert_eq!(shown(&specs), ["origin internal.example:5000/t/app"]);
    assert!(specs[0].settings.insecure);
    let digest = "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let specs = config.pull_endpoints(&image(&format!("example.com/team/{digest}"))).unwrap();
    assert_eq!(shown(&specs)[0], "mirror mirror.example/m/a");
    assert!(!specs[0].settings.insecure);
    assert_eq!(shown(&config.pull_endpoints(&image("example.com/teams/a")).unwrap()), ["origin example.com/teams/a"]);
    assert!(matches!(config.pull_endpoints(&image("x.bad.example/a")), Err(Error::Blocked { .. })));
    assert!(config.pull_endpoints(&image("bad.example/a")).is_ok());
}

#[test]
fn daemon_json_mirrors_the_hub_only_and_knows_insecure_networks() {
    let text = r#"{"registry-mirrors":["http://hub-mirror.example/"],"insecure-registries":["10.1.0.0/16","reg.example:5000"],"debug":true}"#;
    let (config, _) = load(&[("daemon.json", text)]);
    assert_eq!(config.pull_endpoints(&image("alpine")).unwrap().len(), 2);
    assert_eq!(config.pull_endpoints(&image("ghcr.io/a/b")).unwrap().len(), 1);
    let insecure = |name: &str| config.origin_endpoint(&image(name)).unwrap().settings.insecure;
    assert!(insecure("10.1.2.3:5000/a") && insecure("reg.example:5000/a"));
    assert!(!insecure("10.2.2.3:5000/a") && !insecure("reg.example/a"));
}

#[test]
fn first_source_decides_the_route_and_all_sources_the_trust() {
    let (config, _) = load(&[
        ("kiln.toml", "[registries.\"docker.io\"]\nmirrors = [\"kiln.example\"]\n"),
        ("registries.conf", "[[registry]]\nlocation = \"kiln.example\"\ninsecure = true\n"),
        ("daemon.json", r#"{"registry-mirrors":["https://docker.example"]}"#),
    ]);
    let specs = config.pull_endpoints(&image("alpine")).unwrap();
    assert_eq!(specs[0].host, "kiln.example");
    assert!(specs[0].settings.insecure);
    assert_eq!(specs.len(), 2);
}

#[test]
fn foreign_files_that_are_broken_are_warnings_and_our_own_an_error() {
    let (_, warnings) = load(&[("daemon.json", "{"), ("registries.conf", "= =")]);
    assert_eq!(warnings.len(), 2);
    assert!(HostsConfig::from_toml("[registries.\"a\"]\nmirors = []\n").unwrap_err().contains("mirors"));
    assert!(HostsConfig::from_toml("[registries.\"a\"]\nclient-cert = \"x\"\n").is_err());
}

#[test]
fn networks() {
    let inside = |ip: &str, net: &str| {
        let (n, l) = parse_network(net).unwrap();
        in_network(ip.parse().unwrap(), n, l)
    };
    assert!(inside("10.1.2.3", "10.1.0.0/16") && inside("10.1.2.3", "0.0.0.0/0") && inside("10.1.3.3", "10.1.2.0/23"));
    assert!(!inside("10.1.4.3", "10.1.2.0/23") && !inside("::1", "0.0.0.0/0"));
    assert!(parse_network("10.0.0.0/33").is_none());
}

#[test]
fn a_misspelt_section_is_told() {
    let paths = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kiln.toml"), text).unwrap();
        let paths = ConfigPaths { kiln: Some(dir.path().join("kiln.toml")), ..ConfigPaths::default() };
        HostsConfig::load(&paths).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(paths("[store]\nmax-used-space = \"1g\"\n[registries.\"a.example.com\"]\nblocked = true\n"), Ok(()));
    let error = paths("[registry.\"a.example.com\"]\nblocked = true\n").unwrap_err();
    assert!(error.contains("registry") && error.contains("registries"), "{error}");
}
