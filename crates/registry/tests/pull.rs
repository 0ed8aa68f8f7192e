//! Downloads from a real registry, with everything that can go wrong on the way.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Events, Setup, bytes, client, fetch, image, options, push_image};
use kiln_oci::{Descriptor, Digest, ManifestKind, media};
use kiln_registry::testing::{Fault, Server};
use kiln_registry::{Client, Error, Timeouts};

const NAME: &str = "team/app";
const BIG: usize = 3 << 20;

#[test]
fn resolves_by_tag_and_digest_and_verifies() {
    let Some(s) = Setup::new() else { return };
    let (pushed, raw) = push_image(&s.client, &s.image("team/app:1"), &bytes(1, 1000));
    let by_tag = s.client.resolve(&s.image("team/app:1")).unwrap();
    assert_eq!((by_tag.bytes.as_slice(), &by_tag.descriptor), (raw.as_slice(), &pushed));
    let ManifestKind::Manifest(m) = &by_tag.kind else { panic!("an index") };
    assert_eq!(m.layers.len(), 1);
    let by_digest = s.client.manifest(&s.image(NAME), &pushed).unwrap();
    assert_eq!(by_digest.bytes, raw);
    assert_eq!(s.client.head(&s.image("team/app:1")).unwrap(), Some(pushed.clone()));
    assert_eq!(s.client.head(&s.image("team/app:2")).unwrap(), None);
    assert_eq!(s.client.small_blob(&s.image(NAME), &m.config, 4096).unwrap().len() as u64, m.config.size);
    assert!(matches!(s.client.small_blob(&s.image(NAME), &m.config, 10), Err(Error::SizeMismatch { .. })));
    let missing = s.client.resolve(&s.image("team/app:2")).unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert_eq!(missing.codes()[0].code, "MANIFEST_UNKNOWN");
    assert!(s.client.resolve(&s.image("no/such")).unwrap_err().is_not_found());
}

#[test]
fn a_wrong_manifest_is_refused() {
    let Some(s) = Setup::new() else { return };
    let (pushed, _) = push_image(&s.client, &s.image("team/app:1"), &bytes(1, 1000));
    let by_digest = s.image(NAME).with_digest(pushed.digest);
    s.proxy.fault("GET", "/manifests/", 1, Fault::Flip(30));
    let e = s.client.resolve(&by_digest).unwrap_err();
    assert!(matches!(e, Error::DigestMismatch { expected, .. } if expected == pushed.digest), "{e}");
    // by tag the registry's own header is what there is to compare with
    s.proxy.fault("GET", "/manifests/", 1, Fault::Flip(30));
    assert!(matches!(s.client.resolve(&s.image("team/app:1")), Err(Error::DigestMismatch { .. })));
    // a manifest that is declared to be an index (CVE-2021-41190)
    s.proxy.fault("GET", "/manifests/", 1, Fault::SetHeader("content-type", media::OCI_INDEX.into()));
    let e = s.client.resolve(&by_digest).unwrap_err();
    assert!(matches!(e, Error::Manifest { .. }) && e.to_string().contains("ambiguous"), "{e}");
    let both = br#"{"schemaVersion":2,"layers":[],"config":{},"manifests":[]}"#;
    s.proxy.fault("GET", "/manifests/", 1, Fault::answer(200, &[("content-type", media::OCI_INDEX)], both));
    assert!(matches!(s.client.resolve(&s.image("team/app:1")), Err(Error::Manifest { .. })));
    s.proxy.fault("GET", "/manifests/", 1, Fault::answer(200, &[], &vec![b' '; 5 << 20]));
    assert!(matches!(s.client.resolve(&s.image("team/app:1")), Err(Error::Manifest { .. })));
    s.proxy.fault("GET", "/manifests/", 1, Fault::Endless);
    assert!(matches!(s.client.resolve(&by_digest), Err(Error::Protocol { .. })));
    assert!(s.client.resolve(&by_digest).is_ok());
}

#[test]
fn a_download_goes_on_after_breaks() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(2, BIG);
    let blob = s.put_blob(NAME, &content);
    s.proxy.fault("GET", "/blobs/", 1, Fault::CutAfter(1_000_000));
    s.proxy.fault("GET", "/blobs/", 1, Fault::Drop);
    s.proxy.fault("GET", "/blobs/", 1, Fault::CutAfter(500_000));
    assert_eq!(fetch(&s.client, &s.image(NAME), &blob).unwrap(), content);
    let ranges: Vec<_> = s.proxy.requests().iter().filter_map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]);
    assert!(s.events.contain("going on at byte 1000000"), "{:?}", s.events.all());
}

#[test]
fn a_registry_that_ignores_ranges_is_read_again_from_the_start() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(3, BIG);
    let blob = s.put_blob(NAME, &content);
    s.proxy.fault("GET", "/blobs/", 1, Fault::CutAfter(1_000_000));
    s.proxy.fault("GET", "/blobs/", 1, Fault::IgnoreRange);
    assert_eq!(fetch(&s.client, &s.image(NAME), &blob).unwrap(), content);
}

#[test]
fn breaks_without_progress_end() {
    let Some(s) = Setup::new() else { return };
    let blob = s.put_blob(NAME, &bytes(4, BIG));
    s.proxy.fault("GET", "/blobs/", 100, Fault::CutAfter(10));
    let e = fetch(&s.client, &s.image(NAME), &blob).unwrap_err();
    assert!(matches!(e, Error::Connection { .. }), "{e}");
    assert!(s.proxy.lines().len() < 20, "{}", s.proxy.lines().len());
}

#[test]
fn a_download_starts_where_the_caller_wants() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(5, BIG);
    let blob = s.put_blob(NAME, &content);
    let half = BIG / 2;
    let mut rest = Vec::new();
    s.client.blob(&s.image(NAME), &blob, half as u64).unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, &content[half..]);
    // with the right prefix the whole is verified, with a wrong one it is not accepted
    for (prefix, good) in [(&content[..half], true), (&content[1..=half], false)] {
        let mut hasher = blob.digest.hasher();
        hasher.update(prefix);
        let mut reader = s.client.blob(&s.image(NAME), &blob, half as u64).unwrap().with_prefix(hasher);
        assert_eq!(reader.read_to_end(&mut Vec::new()).is_ok(), good);
    }
    // nothing left, and nothing to ask for
    let before = s.proxy.lines().len();
    assert_eq!(s.client.blob(&s.image(NAME), &blob, blob.size).unwrap().read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(s.proxy.lines().len(), before);
    assert!(s.client.blob(&s.image(NAME), &blob, blob.size + 1).is_err());
}

#[test]
fn wrong_bytes_and_lengths_are_found() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(6, BIG);
    let blob = s.put_blob(NAME, &content);
    let name = s.image(NAME);
    let fails = |fault: Fault| {
        s.proxy.fault("GET", "/blobs/", 1, fault);
        fetch(&s.client, &name, &blob).unwrap_err()
    };
    let e = fails(Fault::Flip(2_000_000));
    assert!(matches!(&e, Error::DigestMismatch { expected, .. } if *expected == blob.digest), "{e}");
    for by in [-1, 1, 1000] {
        let e = fails(Fault::Resize(by));
        assert!(matches!(e, Error::SizeMismatch { .. }), "{by}: {e}");
    }
    let e = fails(Fault::Endless);
    assert!(matches!(&e, Error::SizeMismatch { actual, .. } if actual.starts_with("more than")), "{e}");
    // a body without length is fine, if it is what was asked for
    s.proxy.fault("GET", "/blobs/", 1, Fault::NoLength);
    assert_eq!(fetch(&s.client, &name, &blob).unwrap(), content);
    // another descriptor for the same digest
    let lie = Descriptor { size: blob.size - 1, ..blob.clone() };
    assert!(matches!(fetch(&s.client, &name, &lie), Err(Error::SizeMismatch { .. })));
}

#[test]
fn a_blob_of_unknown_size_is_capped() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(7, 100_000);
    let blob = s.put_blob(NAME, &content);
    let name = s.image(NAME);
    let read = |cap: u64| {
        let mut out = Vec::new();
        let mut reader = s.client.blob_of_unknown_size(&name, &blob.digest, cap)?;
        reader.read_to_end(&mut out).map_err(|e| Error::from_io(e).unwrap())?;
        Ok::<_, Error>(out)
    };
    assert_eq!(read(1 << 20).unwrap(), content);
    assert_eq!(read(100_000).unwrap(), content);
    assert!(matches!(read(99_999), Err(Error::SizeMismatch { .. })));
    s.proxy.fault("GET", "/blobs/", 1, Fault::Endless);
    assert!(matches!(read(1 << 20), Err(Error::SizeMismatch { .. })));
    s.proxy.fault("GET", "/blobs/", 1, Fault::NoLength);
    assert_eq!(read(1 << 20).unwrap(), content);
}

/// A client for which half a second without enough bytes is a stall.
fn impatient(events: &Events) -> Client {
    let mut options = options(events);
    options.timeouts = Timeouts { stall: Duration::from_millis(500), min_rate: 1 << 20, ..Timeouts::default() };
    Client::new(options)
}

#[test]
fn a_slow_drip_is_left_and_the_download_goes_on() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(8, 1 << 20);
    let blob = s.put_blob(NAME, &content);
    s.proxy.fault("GET", "/blobs/", 1, Fault::Drip(100, Duration::from_millis(10)));
    let (events, started) = (Events::default(), Instant::now());
    assert_eq!(fetch(&impatient(&events), &s.image(NAME), &blob).unwrap(), content);
    assert!(events.contain("too slow"), "{:?}", events.all());
    assert!(started.elapsed() < Duration::from_secs(10));
    // nothing at all, while the connection stays
    s.proxy.fault("GET", "/blobs/", 1, Fault::StallAfter(500_000));
    let events = Events::default();
    assert_eq!(fetch(&impatient(&events), &s.image(NAME), &blob).unwrap(), content);
    assert!(events.contain("going on at byte 500000"), "{:?}", events.all());
}

#[test]
fn busy_registries_are_asked_again_when_they_say() {
    let Some(s) = Setup::new() else { return };
    push_image(&s.client, &s.image("team/app:1"), &bytes(9, 1000));
    let tag = s.image("team/app:1");
    s.proxy.fault("GET", "/manifests/1", 1, Fault::answer(429, &[("retry-after", "0")], b""));
    s.proxy.fault("GET", "/manifests/1", 1, Fault::status(503));
    s.proxy.fault("GET", "/manifests/1", 1, Fault::status(500));
    s.proxy.fault("GET", "/manifests/1", 1, Fault::Drop);
    s.client.resolve(&tag).unwrap();
    assert_eq!(s.events.all().iter().filter(|e| e.contains("trying again")).count(), 4);
    // too long to wait for
    let answer = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#;
    s.proxy.fault("GET", "/manifests/1", 9, Fault::answer(429, &[("retry-after", "3600")], answer));
    let e = s.client.resolve(&tag).unwrap_err();
    assert!(matches!(e, Error::RateLimited { retry_after: Some(t), .. } if t.as_secs() == 3600), "{e}");
    assert!(e.hint().unwrap().contains("kiln login"));
    assert_eq!(s.proxy.pending(), 8);
    // 4xx other than these are final
    s.proxy.fault("GET", "/manifests/2", 9, Fault::status(400));
    assert!(matches!(s.client.resolve(&s.image("team/app:2")), Err(Error::Status { status: 400, .. })));
    assert_eq!(s.proxy.pending(), 16);
}

#[test]
fn cve_2020_15157_redirects_and_foreign_urls_get_no_credentials() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(10, 200_000);
    let blob = s.put_blob(NAME, &content);
    let elsewhere = {
        let content = content.clone();
        Server::start(move |x| x.respond(200, &[], &content))
    };
    let events = Events::default();
    let mut with_login = options(&events);
    with_login.keychain.add(&s.proxy.host(), kiln_registry::Credential::basic("me", "hunter2"), "the test");
    let client = Client::new(with_login);
    // the registry wants Basic, so that from now on every request to it is authorised
    // (the first of these two asks which scheme the host speaks)
    s.proxy.fault("GET", "/v2/", 2, Fault::answer(401, &[("www-authenticate", "Basic realm=x")], b""));
    client.ping(&s.proxy.host()).unwrap();
    s.proxy.fault("GET", "/blobs/", 1, Fault::redirect(&format!("{}/signed?token=abc", elsewhere.url())));
    assert_eq!(fetch(&client, &s.image(NAME), &blob).unwrap(), content);
    let authorised = |r: &&kiln_registry::testing::Request| r.header("authorization").is_some();
    assert!(s.proxy.requests().iter().any(|r| authorised(&r)));
    assert_eq!(elsewhere.lines(), ["GET /signed?token=abc"]);
    // a layer that only its URL has
    let missing = bytes(11, 1000);
    let foreign = Server::start({
        let missing = missing.clone();
        move |x| x.respond(200, &[], &missing)
    });
    let mut layer = Descriptor::of(media::DOCKER_LAYER_FOREIGN, &missing);
    layer.urls = vec!["file:///etc/passwd".into(), format!("http://user:pw@{}/layer", foreign.host())];
    assert_eq!(fetch(&client, &s.image(NAME), &layer).unwrap(), missing);
    for request in elsewhere.requests().iter().chain(&foreign.requests()) {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
    let shown = format!("{client:?} {:?}", events.all());
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn redirect_loops_and_bad_locations_end() {
    let Some(s) = Setup::new() else { return };
    let blob = s.put_blob(NAME, &bytes(12, 1000));
    let here = format!("http://{}/v2/{NAME}/blobs/{}", s.proxy.host(), blob.digest);
    s.proxy.fault("GET", "/blobs/", 100, Fault::redirect(&here));
    assert!(matches!(fetch(&s.client, &s.image(NAME), &blob), Err(Error::Protocol { .. })));
    assert!(s.proxy.pending() > 80);
    let other = Setup::new().unwrap();
    other.proxy.fault("GET", "/blobs/", 1, Fault::redirect("file:///etc/passwd"));
    assert!(matches!(fetch(&other.client, &other.image(NAME), &blob), Err(Error::Protocol { .. })));
}

#[test]
fn unreachable_hosts_are_errors_soon() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let e = client().resolve(&image(&nobody.to_string(), "a")).unwrap_err();
    assert!(e.to_string().contains("connection refused"), "{e}");
    let e = client().resolve(&image("no-such-host.invalid", "a")).unwrap_err();
    assert!(matches!(e, Error::Connection { .. }), "{e}");
    // whatever answers there is no registry
    let server = Server::start(|x| x.raw(b"SSH-2.0-OpenSSH_9\r\n\r\n").map(|()| x.close()));
    let e = client().resolve(&image(&server.host(), "a")).unwrap_err();
    assert!(matches!(e, Error::Protocol { .. } | Error::Connection { .. }), "{e}");
    let server = Server::start(|x| x.respond(200, &[("content-type", "text/html")], b"<html>welcome</html>"));
    assert!(matches!(client().resolve(&image(&server.host(), "a")), Err(Error::Manifest { .. })));
}

#[test]
fn embedded_data_needs_no_request() {
    let content = b"{}".to_vec();
    let mut blob = Descriptor::of(media::OCI_EMPTY, &content);
    blob.extra.insert("data".into(), "e30=".into());
    let nowhere = image("no-such-host.invalid", "a");
    assert_eq!(client().small_blob(&nowhere, &blob, 100).unwrap(), content);
    blob.digest = Digest::of(b"other");
    assert!(client().small_blob(&nowhere, &blob, 100).is_err());
}

#[test]
fn cancelling_ends_waits() {
    let Some(s) = Setup::new() else { return };
    let mut options = options(&s.events);
    options.retry.base = Duration::from_secs(60);
    options.retry.max = Duration::from_secs(60);
    let cancel = options.cancel.clone();
    let client = Client::new(options);
    s.proxy.fault("GET", "/manifests/", 9, Fault::status(503));
    let started = Instant::now();
    let name = s.image(NAME);
    let waiting = std::thread::spawn(move || client.resolve(&name));
    while !s.events.contain("trying again") {
        std::thread::yield_now();
    }
    cancel.cancel();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    assert!(started.elapsed() < Duration::from_secs(10));
}
