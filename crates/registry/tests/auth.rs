//! Log-in: Basic with htpasswd, tokens, refresh, rejected credentials.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Events, bytes, fetch, image, options, push_image};
use kiln_oci::{Descriptor, Digest, media};
use kiln_registry::testing::{DockerRegistry, Fault, FaultProxy, Grant, RegistryOptions, TokenServer};
use kiln_registry::{Client, Credential, Error, Keychain, Pushed, StoredIn};

fn client_with(keychain: Keychain, events: &Events) -> Client {
    let mut options = options(events);
    options.keychain = keychain;
    Client::new(options)
}

fn given(host: &str, user: &str, password: &str) -> Keychain {
    let mut keychain = Keychain::empty();
    keychain.add(host, Credential::basic(user, password), "the test's keychain");
    keychain
}

fn basic_registry() -> Option<DockerRegistry> {
    DockerRegistry::start(&RegistryOptions {
        htpasswd: Some(("me".into(), "s3cret".into())),
        ..RegistryOptions::default()
    })
}

#[test]
fn basic_authentication() {
    let Some(registry) = basic_registry() else { return };
    let (events, name) = (Events::default(), image(&registry.host(), "team/app:1"));
    let client = client_with(given(&registry.host(), "me", "s3cret"), &events);
    let (pushed, _) = push_image(&client, &name, &bytes(1, 2 << 20));
    assert_eq!(client.resolve(&name).unwrap().descriptor, pushed);
    assert_eq!(events.all(), Vec::<String>::new());
    let e = client_with(Keychain::empty(), &events).resolve(&name).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { .. }), "{e}");
    assert!(e.hint().unwrap().contains(&format!("kiln login {}", registry.host())));
    assert!(e.to_string().contains("there are none"), "{e}");
    let e = client_with(given(&registry.host(), "me", "wrong-pw"), &events).resolve(&name).unwrap_err();
    assert!(e.to_string().contains("the test's keychain were rejected"), "{e}");
    assert!(events.contain("rejected the credentials from the test's keychain"), "{:?}", events.all());
    assert!(!format!("{e:?}{:?}", events.all()).contains("wrong-pw"));
}

#[test]
fn login_verifies_and_stores() {
    let Some(registry) = basic_registry() else { return };
    let (dir, events, host) = (tempfile::tempdir().unwrap(), Events::default(), registry.host());
    let client = client_with(Keychain::new(Some(dir.path()), vec![]), &events);
    let file = dir.path().join("config.json");
    let e = client.login(&host, &Credential::basic("me", "wrong")).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { .. }), "{e}");
    assert!(!file.exists());
    let done = client.login(&host, &Credential::basic("me", "s3cret")).unwrap();
    assert_eq!((done.stored, done.identity_token), (StoredIn::File(file.clone()), false));
    client.ping(&host).unwrap();
    // another process sees it
    client_with(Keychain::new(Some(dir.path()), vec![]), &events).ping(&host).unwrap();
    // written as docker's files do, and for one namespace
    client.login(&format!("http://{host}/v1/"), &Credential::basic("me", "s3cret")).unwrap();
    client.login(&format!("{host}/team"), &Credential::basic("me", "s3cret")).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.matches(&host).count(), 2, "{text}");
    for name in [host.clone(), format!("{host}/team")] {
        assert!(client.logout(&name).unwrap());
        assert!(!client.logout(&name).unwrap());
    }
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&host));
}

struct Tokens {
    registry: DockerRegistry,
    server: TokenServer,
    proxy: FaultProxy,
    events: Events,
}

impl Tokens {
    fn new() -> Option<Self> {
        let registry = DockerRegistry::start(&RegistryOptions::default())?;
        let me = Grant {
            password: "pw".into(),
            repositories: vec!["team/".into(), "base/".into(), "public/".into()],
            refresh: Some("refresh-1".into()),
            strict: false,
        };
        let reader = Grant { password: "pw".into(), ..Grant::default() };
        let strict = Grant { strict: true, ..me.clone() };
        let server = TokenServer::start(&[("me", me), ("reader", reader), ("strict", strict)]);
        let proxy = FaultProxy::gated(&registry.host(), &server);
        Some(Self { registry, server, proxy, events: Events::default() })
    }

    fn client(&self, user: &str, password: &str) -> Client {
        client_with(given(&self.proxy.host(), user, password), &self.events)
    }

    fn anonymous(&self) -> Client {
        client_with(Keychain::empty(), &self.events)
    }

    fn image(&self, name: &str) -> kiln_oci::Reference {
        image(&self.proxy.host(), name)
    }
}

#[test]
fn tokens_are_scoped_cached_and_shared() {
    let Some(t) = Tokens::new() else { return };
    let client = t.client("me", "pw");
    push_image(&client, &t.image("public/app:1"), &bytes(1, 1000));
    let issued = t.server.issued();
    assert_eq!(issued, 1, "one token for the whole push");
    // anyone may pull from there; parallel requests share one token
    let anonymous = t.anonymous();
    let resolved = anonymous.resolve(&t.image("public/app:1")).unwrap();
    let kiln_oci::ManifestKind::Manifest(m) = resolved.kind else { panic!() };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| fetch(&anonymous, &t.image("public/app"), &m.layers[0]).unwrap());
        }
    });
    assert_eq!(t.server.issued(), issued + 1);
    let e = anonymous.push_manifest(&t.image("public/app:2"), media::OCI_MANIFEST, &resolved.bytes).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { .. }), "{e}");
    assert_eq!(e.codes()[0].code, "UNAUTHORIZED");
    // the right password, but no right to this repository
    let e = t.client("reader", "pw").resolve(&t.image("team/secret:1")).unwrap_err();
    assert!(e.to_string().contains("the test's keychain do not give access"), "{e}");
    for request in t.server.requests() {
        assert_eq!(request.query("service").as_deref(), Some("test registry"));
    }
}

#[test]
fn rejected_credentials_fall_back_to_none_with_a_warning() {
    let Some(t) = Tokens::new() else { return };
    push_image(&t.client("me", "pw"), &t.image("public/app:1"), &bytes(1, 1000));
    let client = t.client("me", "old-password");
    client.resolve(&t.image("public/app:1")).unwrap();
    client.resolve(&t.image("public/app:1")).unwrap();
    let warnings: Vec<_> = t.events.all().into_iter().filter(|e| e.contains("rejected")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("the test's keychain") && !warnings[0].contains("old-password"));
    // where a log-in is needed, the message says whose credentials were not good
    let e = client.resolve(&t.image("team/app:1")).unwrap_err();
    assert!(e.to_string().contains("the test's keychain were rejected"), "{e}");
}

#[test]
fn an_expired_refresh_token_is_a_rejected_credential() {
    let Some(t) = Tokens::new() else { return };
    push_image(&t.client("me", "pw"), &t.image("public/app:1"), &bytes(1, 1000));
    let mut keychain = Keychain::empty();
    keychain.add(&t.proxy.host(), Credential::IdentityToken(kiln_registry::Secret::new("refresh-0")), "a file");
    client_with(keychain, &t.events).resolve(&t.image("public/app:1")).unwrap();
    assert!(t.events.contain("rejected the credentials from a file"), "{:?}", t.events.all());
}

#[test]
fn login_keeps_an_identity_token_where_there_is_one() {
    let Some(t) = Tokens::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let keychain = || Keychain::new(Some(Path::new(dir.path())), vec![]);
    let client = client_with(keychain(), &t.events);
    assert!(client.login(&t.proxy.host(), &Credential::basic("me", "wrong")).is_err());
    let done = client.login(&t.proxy.host(), &Credential::basic("me", "pw")).unwrap();
    assert!(done.identity_token);
    let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(text.contains("refresh-1") && !text.contains("\"auth\""), "{text}");
    // used by the OAuth2 grant, in this process and in the next
    for client in [client, client_with(keychain(), &t.events)] {
        push_image(&client, &t.image("team/app:1"), &bytes(2, 1000));
    }
    assert!(t.server.requests().iter().any(|r| r.method == "POST"));
}

#[test]
fn a_mount_asks_for_both_repositories() {
    let Some(t) = Tokens::new() else { return };
    let client = t.client("me", "pw");
    let content = bytes(3, 1000);
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &content);
    client.push_blob(&t.image("base/os"), &blob, &content, &[]).unwrap();
    let pushed = client.push_blob(&t.image("team/app"), &blob, &content, &[t.image("base/os")]).unwrap();
    assert_eq!(pushed, Pushed::Mounted("base/os".into()));
    // a repository that we may not read is no reason to fail
    let other = bytes(4, 1000);
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &other);
    let pushed = client.push_blob(&t.image("team/app"), &blob, &other, &[t.image("foreign/os")]).unwrap();
    assert_eq!(pushed, Pushed::Uploaded(1000));
}

#[test]
fn a_token_server_that_denies_one_repository_does_not_spoil_the_credential() {
    let Some(t) = Tokens::new() else { return };
    let client = t.client("strict", "pw");
    let content = bytes(6, 1000);
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &content);
    let pushed = client.push_blob(&t.image("team/app"), &blob, &content, &[t.image("foreign/os")]).unwrap();
    assert_eq!(pushed, Pushed::Uploaded(1000));
    assert_eq!(t.events.all(), Vec::<String>::new());
    // not ours, and not for everyone
    let e = client.resolve(&t.image("foreign/os")).unwrap_err();
    assert!(matches!(&e, Error::Unauthorized { .. }), "{e}");
    assert!(t.events.contain("DENIED"), "{:?}", t.events.all());
    // still good for what is ours
    push_image(&client, &t.image("team/app:1"), &bytes(7, 1000));
    assert_eq!(t.events.all().len(), 1, "{:?}", t.events.all());
}

#[test]
fn tokens_that_expire_in_the_middle_of_a_push_are_replaced() {
    let Some(t) = Tokens::new() else { return };
    let client = t.client("me", "pw");
    let content = bytes(5, 3 << 20);
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &content);
    // between the start of the upload and its end
    client.push_blob(&t.image("team/app"), &Descriptor::of("x", b"a"), &b"a".to_vec(), &[]).unwrap();
    t.proxy.fault("PUT", "/uploads/", 1, Fault::answer(401, &[], b""));
    client.push_blob(&t.image("team/app"), &blob, &content, &[]).unwrap();
    assert_eq!(t.proxy.pending(), 0);
    assert_eq!(t.server.issued(), 2);
    assert_eq!(fetch(&client, &t.image("team/app"), &blob).unwrap(), content);
    // a stream's end needs a token as well
    let content = bytes(6, 3 << 20);
    t.proxy.fault("PUT", "/uploads/", 1, Fault::answer(401, &[], b""));
    client.push_stream(&t.image("team/app"), &mut &content[..], &mut || Some(Digest::of(&content))).unwrap();
    assert_eq!(fetch(&client, &t.image("team/app"), &Descriptor::of("x", &content)).unwrap(), content);
    // for pushing, for pulling, and one more after each 401
    assert_eq!((t.proxy.pending(), t.server.issued()), (0, 4));
    // and between the parts of a pull
    t.server.expire_all();
    client.resolve(&t.image("team/none:1")).unwrap_err();
    assert!(!t.events.contain("rejected"), "{:?}", t.events.all());
}

#[test]
fn a_token_server_that_is_down_is_an_error_that_names_it() {
    let Some(s) = common::Setup::new() else { return };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let challenge = format!("Bearer realm=\"http://{nobody}/token\",service=\"s\"");
    s.proxy.fault("GET", "/manifests/", 9, Fault::answer(401, &[("www-authenticate", &challenge)], b""));
    let e = s.client.resolve(&s.image("a")).unwrap_err();
    assert!(e.to_string().contains(&nobody.to_string()), "{e}");
    let s = common::Setup::new().unwrap();
    s.proxy.fault("GET", "/tags/", 9, Fault::answer(401, &[("www-authenticate", "Negotiate")], b""));
    let e = s.client.tags(&s.image("a")).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { .. }), "{e}");
}

#[test]
fn credentials_do_not_follow_a_realm_without_tls() {
    let dir = tempfile::tempdir().unwrap();
    let certs = kiln_registry::testing::TestCerts::create(dir.path());
    let realm = "http://tokens.invalid/token".to_owned();
    let options = RegistryOptions { tls: Some(certs), token_realm: Some(realm), ..RegistryOptions::default() };
    let Some(registry) = DockerRegistry::start(&options) else { return };
    let host = registry.host();
    let keychain = Keychain::new(Some(dir.path()), vec![]);
    let client = client_with(keychain, &Events::default());
    let e = client.login(&host, &Credential::basic("me", "pw")).unwrap_err();
    assert!(e.to_string().contains("not https"), "{e}");
    let client = client_with(given(&host, "me", "pw"), &Events::default());
    let e = client.resolve(&image(&host, "a")).unwrap_err();
    assert!(e.to_string().contains("not https"), "{e}");
}

/// As some registries offer both: the token is what gives access, and the password goes to the token server only.
#[test]
fn a_choice_of_basic_and_bearer_is_answered_with_a_token() {
    let Some(t) = Tokens::new() else { return };
    push_image(&t.client("me", "pw"), &t.image("public/app:1"), &bytes(1, 1000));
    let both = format!("Basic realm=\"x, y\", Bearer realm=\"{}\",service=\"test registry\"", t.server.realm());
    let proxy = FaultProxy::start(&t.registry.host());
    let client = client_with(given(&proxy.host(), "me", "pw"), &t.events);
    client.ping(&proxy.host()).unwrap();
    proxy.fault("GET", "/manifests/", 1, Fault::answer(401, &[("www-authenticate", &both)], b"{}"));
    client.resolve(&image(&proxy.host(), "public/app:1")).unwrap();
    let sent: Vec<_> = proxy.requests().iter().filter_map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert!(!sent.is_empty() && sent.iter().all(|a| a.starts_with("Bearer ")), "{sent:?}");
}
