//! Uploads to a real registry, with everything that can go wrong on the way.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use common::{Setup, bytes, fetch, manifest, push_image};
use kiln_oci::{Descriptor, Digest, media};
use kiln_registry::testing::{Fault, Server};
use kiln_registry::{BlobSource, Error, Pushed};

const NAME: &str = "team/app";
const BIG: usize = 3 << 20;

fn layer(content: &[u8]) -> Descriptor {
    Descriptor::of(media::OCI_LAYER_GZIP, content)
}

#[test]
fn only_missing_blobs_are_sent() {
    let Some(s) = Setup::new() else { return };
    let (content, name) = (bytes(1, BIG), s.image(NAME));
    let blob = layer(&content);
    assert!(!s.client.has_blob(&name, &blob.digest).unwrap());
    assert_eq!(s.client.push_blob(&name, &blob, &content, &[]).unwrap(), Pushed::Uploaded(BIG as u64));
    assert!(s.client.has_blob(&name, &blob.digest).unwrap());
    let before = s.proxy.lines().len();
    assert_eq!(s.client.push_blob(&name, &blob, &content, &[]).unwrap(), Pushed::Exists);
    assert_eq!(s.proxy.lines()[before..], [format!("HEAD /v2/{NAME}/blobs/{}", blob.digest)]);
    assert_eq!(fetch(&s.client, &name, &blob).unwrap(), content);
    let empty = layer(b"");
    assert_eq!(s.client.push_blob(&name, &empty, &Vec::new(), &[]).unwrap(), Pushed::Uploaded(0));
    assert!(s.client.has_blob(&name, &empty.digest).unwrap());
}

#[test]
fn other_repositories_give_their_blobs() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(2, BIG);
    let blob = s.put_blob("base/os", &content);
    let from = [s.image("base/none"), s.image("base/os"), s.image("base/other")];
    let pushed = s.client.push_blob(&s.image(NAME), &blob, &content, &from).unwrap();
    assert_eq!(pushed, Pushed::Mounted("base/os".into()));
    assert!(!s.proxy.lines().iter().any(|l| l.starts_with("PUT")));
    // the upload that the failed attempt had opened is not left behind or is used
    let other = bytes(3, 1000);
    let from = [s.image("base/none"), s.image("base/other")];
    assert_eq!(s.client.push_blob(&s.image(NAME), &layer(&other), &other, &from).unwrap(), Pushed::Uploaded(1000));
    let posts = s.proxy.lines().iter().filter(|l| l.starts_with("POST")).count();
    assert_eq!(posts, 4);
    // a registry that knows no mounts
    let third = bytes(4, 1000);
    s.proxy.fault("POST", "mount=", 1, Fault::status(405));
    assert_eq!(s.client.push_blob(&s.image(NAME), &layer(&third), &third, &from[..1]).unwrap(), Pushed::Uploaded(1000));
}

#[test]
fn a_broken_upload_goes_on_where_the_registry_is() {
    let Some(s) = Setup::new() else { return };
    let (content, name) = (bytes(5, BIG), s.image(NAME));
    let blob = layer(&content);
    s.proxy.fault("PUT", "/uploads/", 1, Fault::CutUploadAfter(1_000_000));
    let Pushed::Uploaded(sent) = s.client.push_blob(&name, &blob, &content, &[]).unwrap() else { panic!() };
    assert_eq!(fetch(&s.client, &name, &blob).unwrap(), content);
    assert!(sent >= BIG as u64);
    // the state of the upload was asked for
    assert!(s.proxy.lines().iter().any(|l| l.starts_with("GET") && l.contains("/uploads/")), "{:?}", s.proxy.lines());
    assert_eq!(s.proxy.pending(), 0);
}

#[test]
fn faults_of_uploads_are_overcome() {
    let Some(s) = Setup::new() else { return };
    let name = s.image(NAME);
    let faults = [
        ("POST", Fault::status(503)),
        ("POST", Fault::answer(429, &[("retry-after", "0")], b"")),
        ("PUT", Fault::status(500)),
        ("PUT", Fault::Drop),
        ("PUT", Fault::LoseAnswer),
        ("PUT", Fault::CutUploadAfter(0)),
        ("PUT", Fault::status(404)),
    ];
    for (seed, (method, fault)) in faults.into_iter().enumerate() {
        let content = bytes(100 + seed as u64, BIG);
        let blob = layer(&content);
        s.proxy.fault(method, "/uploads/", 1, fault.clone());
        s.client.push_blob(&name, &blob, &content, &[]).unwrap_or_else(|e| panic!("{method} {fault:?}: {e}"));
        assert_eq!(s.proxy.pending(), 0, "{fault:?}");
        assert_eq!(fetch(&s.client, &name, &blob).unwrap(), content);
    }
}

#[test]
fn failures_that_stay_are_errors_with_their_reason() {
    let Some(s) = Setup::new() else { return };
    let (content, name) = (bytes(6, 1000), s.image(NAME));
    let denied = br#"{"errors":[{"code":"DENIED","message":"read-only project"}]}"#;
    s.proxy.fault("POST", "/uploads/", 1, Fault::answer(403, &[], denied));
    let e = s.client.push_blob(&name, &layer(&content), &content, &[]).unwrap_err();
    assert!(matches!(e, Error::Denied { .. }) && e.to_string().contains("read-only project"), "{e}");
    s.proxy.fault("PUT", "/uploads/", 99, Fault::status(503));
    let e = s.client.push_blob(&name, &layer(&content), &content, &[]).unwrap_err();
    assert!(matches!(e, Error::Status { status: 503, .. }), "{e}");
    assert!(e.to_string().contains("PUT http://") && !e.to_string().contains("_state"), "{e}");
    assert!(!s.client.has_blob(&name, &layer(&content).digest).unwrap());
    // content that is not what its descriptor says: the registry checks
    let other = Setup::new().unwrap();
    let lie = Descriptor::new(media::OCI_LAYER_GZIP, Digest::of(b"other"), content.len() as u64);
    let e = other.client.push_blob(&other.image(NAME), &lie, &content, &[]).unwrap_err();
    assert_eq!(e.codes()[0].code, "DIGEST_INVALID", "{e}");
}

struct Broken;

impl BlobSource for Broken {
    fn open(&self, _: u64) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(io::repeat(7).take(10).chain(Fails)))
    }
}

struct Fails;

impl Read for Fails {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("disk on fire"))
    }
}

#[test]
fn local_problems_are_not_blamed_on_the_registry() {
    let Some(s) = Setup::new() else { return };
    let blob = Descriptor::new(media::OCI_LAYER_GZIP, Digest::of(b"x"), 1000);
    let e = s.client.push_blob(&s.image(NAME), &blob, &Broken, &[]).unwrap_err();
    assert!(matches!(&e, Error::Source { source, .. } if source.to_string() == "disk on fire"), "{e}");
    let e = s.client.push_blob(&s.image(NAME), &blob, &vec![0; 10], &[]).unwrap_err();
    assert!(matches!(&e, Error::Source { .. }) && e.to_string().contains("shorter"), "{e}");
    assert_eq!(s.events.all(), Vec::<String>::new());
}

#[test]
fn a_location_on_another_host_gets_no_credentials() {
    let Some(s) = Setup::new() else { return };
    let mut options = common::options(&s.events);
    options.keychain.add(&s.proxy.host(), kiln_registry::Credential::basic("me", "pw"), "the test");
    let client = kiln_registry::Client::new(options);
    s.proxy.fault("GET", "/v2/", 2, Fault::answer(401, &[("www-authenticate", "Basic realm=x")], b""));
    client.ping(&s.proxy.host()).unwrap();
    let storage = kiln_registry::testing::Server::start(|x| {
        x.read_body()?;
        x.respond(201, &[], b"")
    });
    let to = format!("{}/bucket/1?sig=abc", storage.url());
    s.proxy.fault("POST", "/uploads/", 1, Fault::answer(202, &[("location", &to)], b""));
    let content = bytes(7, 1000);
    client.push_blob(&s.image(NAME), &layer(&content), &content, &[]).unwrap();
    let request = &storage.requests()[0];
    assert_eq!((request.method.as_str(), request.header("authorization")), ("PUT", None));
    assert!(request.path.starts_with("/bucket/1?sig=abc&digest=sha256%3A"), "{}", request.path);
    let posts: Vec<_> = s.proxy.requests().into_iter().filter(|r| r.method == "POST").collect();
    assert!(posts.iter().all(|r| r.header("authorization").is_some()));
}

#[test]
fn manifests_keep_their_bytes() {
    let Some(s) = Setup::new() else { return };
    let (pushed, raw) = push_image(&s.client, &s.image("team/app:1"), &bytes(8, 1000));
    assert_eq!(s.client.resolve(&s.image("team/app:1")).unwrap().bytes, raw);
    // by digest only
    let mut spaced = raw.clone();
    spaced.extend(b"\n\n");
    let digest = Digest::of(&spaced);
    let by_digest = s.image(NAME).with_digest(digest);
    s.client.push_manifest(&by_digest, media::OCI_MANIFEST, &spaced).unwrap();
    assert_eq!(s.client.resolve(&by_digest).unwrap().bytes, spaced);
    let wrong = s.image(NAME).with_digest(pushed.digest);
    assert!(matches!(s.client.push_manifest(&wrong, media::OCI_MANIFEST, &spaced), Err(Error::DigestMismatch { .. })));
    // blobs that are missing
    let missing = manifest(&layer(b"never pushed"), &[]);
    let e = s.client.push_manifest(&s.image("team/app:2"), media::OCI_MANIFEST, &missing).unwrap_err();
    assert!(e.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{e}");
    s.client.delete_manifest(&s.image("team/app:1")).unwrap();
    assert!(s.client.resolve(&s.image("team/app:1")).unwrap_err().is_not_found());
    assert!(s.client.delete_manifest(&s.image("team/app:1")).unwrap_err().is_not_found());
}

/// Uploads content as if nobody knew its length and digest before its end.
fn stream(s: &Setup, content: &[u8]) -> Result<u64, Error> {
    s.client.push_stream(&s.image(NAME), &mut &content[..], &mut || Some(Digest::of(content)))
}

#[test]
fn streams_arrive_in_one_request() {
    let Some(s) = Setup::new() else { return };
    for content in [bytes(10, BIG + 5), bytes(11, 1), Vec::new()] {
        assert_eq!(stream(&s, &content).unwrap(), content.len() as u64);
        assert_eq!(fetch(&s.client, &s.image(NAME), &layer(&content)).unwrap(), content);
    }
    let patches = s.proxy.requests().into_iter().filter(|r| r.method == "PATCH").count();
    assert_eq!(patches, 3);
}

#[test]
fn a_stream_that_fails_is_not_tried_again_and_leaves_nothing() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(12, BIG);
    for (method, fault) in [
        ("POST", Fault::status(404)),
        ("PATCH", Fault::CutUploadAfter(500_000)),
        ("PATCH", Fault::status(405)),
        ("PATCH", Fault::Drop),
        ("PATCH", Fault::SetHeader("range", "0-99".into())),
        ("PUT", Fault::status(503)),
    ] {
        s.proxy.fault(method, "/uploads/", 1, fault.clone());
        stream(&s, &content).unwrap_err();
        assert_eq!(s.proxy.pending(), 0, "{method} {fault:?}");
        assert!(!s.client.has_blob(&s.image(NAME), &Digest::of(&content)).unwrap(), "{method} {fault:?}");
    }
    let e = s.client.push_stream(&s.image(NAME), &mut &content[..], &mut || Some(Digest::of(b"other"))).unwrap_err();
    assert_eq!(e.codes()[0].code, "DIGEST_INVALID", "{e}");
    s.client.push_stream(&s.image(NAME), &mut &content[..], &mut || None).unwrap_err();
    let mut broken = io::Read::chain(&content[..], Unreadable);
    s.client.push_stream(&s.image(NAME), &mut broken, &mut || panic!("not asked")).unwrap_err();
    assert!(s.proxy.lines().iter().any(|l| l.starts_with("DELETE") && l.contains("/uploads/")));
    assert!(!s.client.has_blob(&s.image(NAME), &Digest::of(&content)).unwrap());
    // what the caller does then
    s.client.push_blob(&s.image(NAME), &layer(&content), &content, &[]).unwrap();
}

/// As registries on S3 do it: what is there is a redirect to a URL that was signed for GET alone.
#[test]
fn a_blob_is_there_when_the_registry_says_where() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(13, 1000);
    let storage = Server::start(|x| x.respond(403, &[], b"SignatureDoesNotMatch"));
    let elsewhere = format!("http://localhost:{}/signed", storage.host().rsplit_once(':').unwrap().1);
    s.proxy.fault("HEAD", "/blobs/", 2, Fault::redirect(&elsewhere));
    assert!(s.client.has_blob(&s.image(NAME), &Digest::of(&content)).unwrap());
    assert_eq!(s.client.push_blob(&s.image(NAME), &layer(&content), &content, &[]).unwrap(), Pushed::Exists);
    assert!(storage.requests().is_empty());
    // a redirect within the registry says nothing yet
    let within = format!("/v2/team/other/blobs/{}", Digest::of(&content));
    s.proxy.fault("HEAD", "/team/app/blobs/", 1, Fault::redirect(&within));
    assert!(!s.client.has_blob(&s.image("team/app"), &Digest::of(&content)).unwrap());
}

struct Unreadable;

impl io::Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("it could not be made"))
    }
}

/// A registry that keeps what it got of a broken upload, and says how much that is, as the specification wants.
/// (docker-registry 2 forgets such uploads.) It breaks each of the first `breaks` requests with a body.
struct Resuming {
    server: Server,
    blob: Arc<Mutex<Vec<u8>>>,
}

impl Resuming {
    fn start(breaks: usize) -> Self {
        let (blob, left) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(breaks));
        let content = blob.clone();
        let server = Server::start(move |x| {
            let mut content = content.lock().unwrap();
            match x.request.method.as_str() {
                "HEAD" => return x.respond(404, &[], b""),
                "POST" => content.clear(),
                "PUT" | "PATCH" => {
                    let mut left = left.lock().unwrap();
                    let until = if *left > 0 { content.len() + 700_000 } else { usize::MAX };
                    loop {
                        let part = x.read_some()?;
                        content.extend(&part);
                        if part.is_empty() {
                            break;
                        }
                        if content.len() > until {
                            *left -= 1;
                            return Err(io::Error::other("broken on purpose"));
                        }
                    }
                }
                _ => {}
            }
            let status = match x.request.method.as_str() {
                "PUT" => 201,
                "GET" => 204,
                _ => 202,
            };
            let range = format!("0-{}", content.len().saturating_sub(1));
            x.respond(status, &[("location", "/v2/a/blobs/uploads/1"), ("range", &range)], b"")
        });
        Self { server, blob }
    }

    fn sent(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        requests.filter(|r| matches!(r.method.as_str(), "PUT" | "PATCH")).map(|r| r.method).collect()
    }
}

#[test]
fn uploads_resume_where_the_registry_can() {
    let content = bytes(40, 16 << 20);
    let registry = Resuming::start(3);
    let name = common::image(&registry.server.host(), "a");
    let Pushed::Uploaded(sent) = common::client().push_blob(&name, &layer(&content), &content, &[]).unwrap() else {
        panic!()
    };
    assert!(*registry.blob.lock().unwrap() == content);
    // what was on the way when a connection broke is sent twice, not everything
    assert!(sent < 2 * content.len() as u64, "{sent}");
    assert_eq!(registry.sent(), ["PUT"; 4]);
    let ranges: Vec<_> =
        registry.server.requests().iter().filter_map(|r| r.header("content-range").map(str::to_owned)).collect();
    assert!(ranges.len() == 3 && ranges.iter().all(|r| r.ends_with("-16777215") && !r.starts_with("0-")), "{ranges:?}");
}

#[test]
fn skopeo_reads_what_we_push_and_we_read_what_it_pushes() {
    let Some(s) = Setup::new() else { return };
    if std::process::Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let content = bytes(50, 100_000);
    let (pushed, raw) = push_image(&s.client, &s.image("team/app:1"), &content);
    let docker = |name: &str| format!("docker://{}/{name}", s.registry.host());
    let home = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .args([docker("team/app:1"), docker("other/copy:1")])
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copy = s.client.resolve(&s.image("other/copy:1")).unwrap();
    assert_eq!((copy.descriptor, copy.bytes), (pushed, raw));
    assert_eq!(fetch(&s.client, &s.image("other/copy"), &layer(&content)).unwrap(), content);
}
