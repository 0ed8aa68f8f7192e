//! Connections: TLS with a private CA, insecure registries, mirrors, proxies, lists.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::{Events, Setup, bytes, client, fetch, image, options, push_image};
use kiln_oci::{Descriptor, Digest, media};
use kiln_registry::testing::{DockerRegistry, Fault, FaultProxy, RegistryOptions, Server, TestCerts};
use kiln_registry::{Client, ClientOptions, Error, HostSettings, HostsConfig, ProxyConfig, Rule};

fn tls_registry(dir: &std::path::Path) -> Option<(DockerRegistry, TestCerts)> {
    let certs = TestCerts::create(dir);
    let registry = DockerRegistry::start(&RegistryOptions { tls: Some(certs.clone()), ..RegistryOptions::default() })?;
    Some((registry, certs))
}

fn with_hosts(hosts: HostsConfig) -> Client {
    Client::new(ClientOptions { hosts, ..options(&Events::default()) })
}

#[test]
fn tls_with_a_ca_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let Some((registry, certs)) = tls_registry(dir.path()) else { return };
    let name = image(&registry.host(), "team/app:1");
    // certs.d/<host:port>/ca.crt
    let certs_d = dir.path().join("certs.d");
    std::fs::create_dir_all(certs_d.join(registry.host())).unwrap();
    std::fs::copy(&certs.ca, certs_d.join(registry.host()).join("ca.crt")).unwrap();
    let mut hosts = HostsConfig::default();
    hosts.add_certs_dir(certs_d.clone());
    push_image(&with_hosts(hosts), &name, &bytes(1, 3 << 20));
    // kiln's own configuration
    let text = format!("[registries.\"{}\"]\nca = {:?}\n", registry.host(), certs.ca);
    let client = with_hosts(HostsConfig::from_toml(&text).unwrap());
    client.resolve(&name).unwrap();
    // the wrong CA is not accepted, though loopback counts as insecure
    let other = tempfile::tempdir().unwrap();
    let text = format!("[registries.\"{}\"]\nca = {:?}\n", registry.host(), TestCerts::create(other.path()).ca);
    let e = with_hosts(HostsConfig::from_toml(&text).unwrap()).resolve(&name).unwrap_err();
    assert!(matches!(&e, Error::Tls { .. }), "{e}");
    assert!(e.hint().unwrap().contains("certs.d"), "{:?}", e.hint());
    // no certificate at all in the file
    std::fs::write(certs_d.join(registry.host()).join("ca.crt"), "hello").unwrap();
    let mut hosts = HostsConfig::default();
    hosts.add_certs_dir(certs_d);
    let e = with_hosts(hosts).resolve(&name).unwrap_err();
    assert!(matches!(&e, Error::Config { .. }) && e.to_string().contains("ca.crt"), "{e}");
}

#[test]
fn client_certificates_are_checked_before_use() {
    let dir = tempfile::tempdir().unwrap();
    let Some((registry, certs)) = tls_registry(dir.path()) else { return };
    let name = image(&registry.host(), "team/app:1");
    let settings = |cert: &std::path::Path, key: &std::path::Path| {
        let mut hosts = HostsConfig::default();
        hosts.push_rule(Rule {
            prefix: registry.host(),
            settings: HostSettings {
                ca: vec![certs.ca.clone()],
                client_cert: Some((cert.to_owned(), key.to_owned())),
                ..HostSettings::default()
            },
            ..Rule::default()
        });
        with_hosts(hosts)
    };
    // this registry asks for none, but offering one does not hurt
    assert!(settings(&certs.cert, &certs.key).resolve(&name).unwrap_err().is_not_found());
    let e = settings(&certs.cert, &dir.path().join("ca.key")).resolve(&name).unwrap_err();
    assert!(matches!(e, Error::Config { .. }), "{e}");
    let e = settings(&certs.cert, &certs.cert).resolve(&name).unwrap_err();
    assert!(matches!(e, Error::Config { .. }), "{e}");
}

#[test]
fn insecure_means_any_certificate_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let Some((registry, _)) = tls_registry(dir.path()) else { return };
    // loopback needs no configuration, as with docker
    let name = image(&registry.host(), "team/app:1");
    push_image(&client(), &name, &bytes(1, 1000));
    client().resolve(&name).unwrap();
    let plain_only = format!("[registries.\"{}\"]\nhttp = true\n", registry.host());
    assert!(with_hosts(HostsConfig::from_toml(&plain_only).unwrap()).resolve(&name).is_err());
}

#[test]
fn mirrors_are_asked_first_and_failures_fall_through() {
    let Some(origin) = Setup::new() else { return };
    let mirror = Setup::new().unwrap();
    let content = bytes(1, 2 << 20);
    let tag = "team/app:1";
    push_image(&client(), &origin.direct(tag), &content);
    push_image(&client(), &mirror.direct(tag), &content);
    let events = Events::default();
    let text = format!(
        "[registries.{:?}]\nmirrors = [{:?}]\n",
        origin.proxy.host(),
        format!("http://{}", mirror.proxy.host())
    );
    let new_client = || {
        let hosts = HostsConfig::from_toml(&text).unwrap();
        Client::new(ClientOptions { hosts, ..options(&events) })
    };
    let (name, blob) = (origin.image(tag), Descriptor::of(media::OCI_LAYER_GZIP, &content));
    let c = new_client();
    c.resolve(&name).unwrap();
    assert_eq!(fetch(&c, &name, &blob).unwrap(), content);
    assert_eq!(origin.proxy.lines(), Vec::<String>::new());
    let ns = mirror.proxy.requests().last().unwrap().query("ns");
    assert_eq!(ns, Some(origin.proxy.host()));
    // down, broken, without the image
    for fault in [Fault::status(500), Fault::Drop, Fault::status(404), Fault::status(401)] {
        mirror.proxy.fault("GET", "/manifests/", 9, fault.clone());
        c.resolve(&name).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        let rest = mirror.proxy.pending();
        (0..rest).for_each(|_| drop(Client::new(options(&events)).resolve(&mirror.image(tag))));
        assert_eq!(mirror.proxy.pending(), 0);
    }
    assert!(events.contain(&format!("mirror {} of", mirror.proxy.host())), "{:?}", events.all());
    // it breaks for good in the middle of a blob: the registry itself gives the rest
    mirror.proxy.fault("GET", "/blobs/", 1, Fault::CutAfter(1_000_000));
    mirror.proxy.fault("GET", "/blobs/", 9, Fault::Drop);
    assert_eq!(fetch(&c, &name, &blob).unwrap(), content);
    assert!(origin.proxy.requests().iter().any(|r| r.header("range") == Some("bytes=1000000-")));
    // it lies: the error says that another attempt goes elsewhere, and so it does
    let lying = Setup::new().unwrap();
    push_image(&client(), &lying.direct(tag), &content);
    lying.proxy.fault("GET", "/blobs/", 9, Fault::Flip(77));
    let text = text.replace(&mirror.proxy.host(), &lying.proxy.host());
    let c = Client::new(ClientOptions { hosts: HostsConfig::from_toml(&text).unwrap(), ..options(&events) });
    let e = fetch(&c, &name, &blob).unwrap_err();
    assert!(e.may_retry_elsewhere(), "{e}");
    assert_eq!(fetch(&c, &name, &blob).unwrap(), content);
    // pushes do not go to mirrors
    c.push_blob(&name, &Descriptor::of("x", b"new"), &b"new".to_vec(), &[]).unwrap();
    assert!(lying.proxy.requests().iter().all(|r| r.method == "GET"));
}

#[test]
fn blocked_registries_are_not_asked() {
    let hosts = HostsConfig::from_toml("[registries.\"bad.example\"]\nblocked = true\n").unwrap();
    let e = with_hosts(hosts).resolve(&image("bad.example", "a")).unwrap_err();
    assert!(matches!(e, Error::Blocked { .. }), "{e}");
}

#[test]
fn requests_take_the_proxy_unless_the_host_is_excepted() {
    let proxy = Server::start(|x| x.respond(403, &[], b"no"));
    let proxies = |no_proxy| ProxyConfig::new(Some(&proxy.url()), Some(&proxy.url()), Some(no_proxy));
    let ask = |no_proxy| {
        let options = ClientOptions { proxies: proxies(no_proxy), ..options(&Events::default()) };
        Client::new(options).resolve(&image("registry.invalid", "a")).unwrap_err()
    };
    let e = ask("");
    assert!(e.to_string().contains("proxy"), "{e}");
    assert_eq!(proxy.lines()[0], "CONNECT registry.invalid:443");
    let before = proxy.lines().len();
    ask("invalid");
    assert_eq!(proxy.lines().len(), before);
}

/// As curl and docker do it; many proxies refuse tunnels to ports other than 443.
#[test]
fn plain_http_takes_no_tunnel_through_a_proxy() {
    let Some(registry) = DockerRegistry::start(&RegistryOptions::default()) else { return };
    let proxy = FaultProxy::start(&registry.host());
    let hosts = HostsConfig::from_toml("[registries.\"registry.invalid\"]\nhttp = true\n").unwrap();
    let proxies = ProxyConfig::new(Some(&format!("http://me:pw@{}", proxy.host())), None, None);
    let client = Client::new(ClientOptions { hosts, proxies, ..options(&Events::default()) });
    let content = bytes(1, 3 << 20);
    let name = image("registry.invalid", "team/app:1");
    push_image(&client, &name, &content);
    client.resolve(&name).unwrap();
    let layer = Descriptor::of(media::OCI_LAYER_GZIP, &content);
    assert_eq!(fetch(&client, &name, &layer).unwrap(), content);
    let other = [&content[..], b"more"].concat();
    client.push_stream(&name, &mut &other[..], &mut || Some(Digest::of(&other))).unwrap();
    let requests = proxy.requests();
    assert!(requests.iter().all(|r| r.path.starts_with("http://registry.invalid/v2/")), "{:?}", proxy.lines());
    assert!(requests.iter().all(|r| r.header("proxy-authorization") == Some("Basic bWU6cHc=")));
    assert!(["GET", "HEAD", "POST", "PUT", "PATCH"].iter().all(|m| requests.iter().any(|r| r.method == *m)));
}

#[test]
fn a_client_is_made_in_no_time() {
    let started = Instant::now();
    for _ in 0..100 {
        std::hint::black_box(Client::new(ClientOptions::default()));
    }
    assert!(started.elapsed().as_micros() / 100 < 1000);
}

#[test]
fn tags_over_several_pages_and_repositories() {
    let Some(s) = Setup::new() else { return };
    for tag in ["a", "b", "c"] {
        push_image(&client(), &s.direct(&format!("team/app:{tag}")), b"x");
    }
    let tags = |s: &Setup| {
        let mut tags = s.client.tags(&s.image("team/app")).unwrap();
        tags.sort();
        tags
    };
    assert_eq!(tags(&s), ["a", "b", "c"]);
    assert_eq!(s.client.catalog(&s.proxy.host()).unwrap(), ["team/app"]);
    assert!(s.client.tags(&s.image("no/such")).unwrap_err().is_not_found());
    let page = |tags: &str, link: &str| {
        let next = format!("<{link}>; rel=\"next\"");
        Fault::answer(200, &[("link", &next)], format!("{{\"tags\":{tags}}}").as_bytes())
    };
    s.proxy.fault("GET", "/tags/", 1, page("[\"x\"]", "/v2/team/app/tags/list?last=x"));
    assert_eq!(tags(&s), ["a", "b", "c", "x"]);
    // pages that lead in a circle, or to another host
    s.proxy.fault("GET", "/tags/", 50, page("null", "/v2/team/app/tags/list?n=1000"));
    assert!(matches!(s.client.tags(&s.image("team/app")), Err(Error::Protocol { .. })));
    let other = FaultProxy::start(&s.registry.host());
    let s = Setup::new().unwrap();
    s.proxy.fault("GET", "/tags/", 1, page("[\"x\"]", &format!("http://{}/v2/", other.host())));
    assert_eq!(s.client.tags(&s.image("team/app")).unwrap(), ["x"]);
    assert!(other.lines().is_empty());
}

#[test]
fn referrers_by_list_and_by_fallback_tag() {
    let Some(s) = Setup::new() else { return };
    let name = s.image("team/app:1");
    let (subject, _) = push_image(&s.client, &name, b"layer");
    assert_eq!(s.client.referrers(&name, &subject.digest, None).unwrap(), []);
    let empty = Descriptor::of(media::OCI_EMPTY, b"{}");
    s.client.push_blob(&name, &empty, &b"{}".to_vec(), &[]).unwrap();
    let attach = |kind: &str| {
        let bytes = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": kind,
            "config": empty, "layers": [empty], "subject": subject
        }))
        .unwrap();
        let by_digest = name.with_digest(Digest::of(&bytes));
        s.client.push_manifest(&by_digest, media::OCI_MANIFEST, &bytes).unwrap()
    };
    // this registry keeps no list itself
    let (sbom, signature) = (attach("application/sbom"), attach("application/signature"));
    attach("application/sbom");
    let digests = |kind| {
        let all = s.client.referrers(&name, &subject.digest, kind).unwrap();
        all.into_iter().map(|d| d.digest).collect::<Vec<_>>()
    };
    assert_eq!(digests(None), [sbom.digest, signature.digest]);
    assert_eq!(digests(Some("application/signature")), [signature.digest]);
    // one that does, and does not filter
    let entry = |kind: &str| serde_json::json!({"mediaType": media::OCI_MANIFEST, "digest": sbom.digest, "size": 1, "artifactType": kind});
    let list =
        serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [entry("a"), entry("b")]});
    let answer = Fault::answer(200, &[("content-type", media::OCI_INDEX)], list.to_string().as_bytes());
    s.proxy.fault("GET", "/referrers/", 1, answer);
    assert_eq!(digests(Some("b")).len(), 1);
}
