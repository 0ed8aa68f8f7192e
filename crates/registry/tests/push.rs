//! Uploads to a real registry, with everything that can go wrong on the way.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use common::{Setup, bytes, fetch, manifest, push_image};
use kiln_oci::{Descriptor, Digest, media};
use kiln_registry::testing::{Fault, Server};
use kiln_registry::{BlobSource, Error, Pushed, UploadMode};

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

/// Streams content in uneven pieces.
fn stream(s: &Setup, mode: UploadMode, content: &[u8]) -> Result<u64, Error> {
    let mut upload = s.client.upload(&s.image(NAME), mode)?;
    for piece in content.chunks(77_777) {
        upload.write_all(piece).map_err(|e| Error::from_io(e).unwrap())?;
    }
    upload.finish(&Digest::of(content))
}

#[test]
fn streams_arrive_in_both_modes() {
    let Some(s) = Setup::new() else { return };
    for (seed, mode) in [(10, UploadMode::Stream), (11, UploadMode::Chunked(1 << 20))] {
        let content = bytes(seed, BIG + 5);
        assert_eq!(stream(&s, mode, &content).unwrap(), content.len() as u64);
        assert_eq!(fetch(&s.client, &s.image(NAME), &layer(&content)).unwrap(), content);
        let patches = s.proxy.requests().into_iter().filter(|r| r.method == "PATCH");
        let ranges: Vec<_> = patches.filter_map(|r| r.header("content-range").map(str::to_owned)).collect();
        match mode {
            UploadMode::Stream => assert_eq!(ranges, Vec::<String>::new()),
            _ => assert_eq!(ranges, ["0-1048575", "1048576-2097151", "2097152-3145727", "3145728-3145732"]),
        }
    }
    for mode in [UploadMode::Stream, UploadMode::Chunked(1 << 20)] {
        assert_eq!(stream(&s, mode, b"").unwrap(), 0);
    }
}

#[test]
fn streams_survive_breaks() {
    let Some(s) = Setup::new() else { return };
    for (seed, fault) in
        [Fault::CutUploadAfter(500_000), Fault::status(503), Fault::Drop, Fault::LoseAnswer].iter().enumerate()
    {
        for mode in [UploadMode::Stream, UploadMode::Chunked(1 << 20)] {
            let content = bytes(200 + seed as u64 * 2 + u64::from(mode == UploadMode::Stream), BIG);
            s.proxy.fault("PATCH", "/uploads/", 1, fault.clone());
            stream(&s, mode, &content).unwrap_or_else(|e| panic!("{mode:?} {fault:?}: {e}"));
            assert_eq!(s.proxy.pending(), 0, "{mode:?} {fault:?}");
            assert_eq!(fetch(&s.client, &s.image(NAME), &layer(&content)).unwrap(), content);
        }
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
    // a stream of more than is kept for sending again
    let content = bytes(41, 40 << 20);
    for mode in [UploadMode::Stream, UploadMode::Chunked(1 << 20)] {
        let registry = Resuming::start(5);
        let name = common::image(&registry.server.host(), "a");
        let mut upload = common::client().upload(&name, mode).unwrap();
        upload.write_all(&content).unwrap();
        upload.finish(&Digest::of(&content)).unwrap();
        assert!(*registry.blob.lock().unwrap() == content, "{mode:?}");
    }
}

#[test]
fn a_stream_that_cannot_be_repeated_says_so() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(42, 32 << 20);
    s.proxy.fault("PATCH", "/uploads/", 1, Fault::CutUploadAfter(20 << 20));
    let e = stream(&s, UploadMode::Stream, &content).unwrap_err();
    assert!(matches!(e, Error::UploadInterrupted { .. }), "{e}");
    // what the caller does then
    s.client.push_blob(&s.image(NAME), &layer(&content), &content, &[]).unwrap();
}

#[test]
fn chunks_become_smaller_where_the_registry_wants() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(30, BIG);
    s.proxy.fault("PATCH", "/uploads/", 1, Fault::status(416));
    s.proxy.fault("PATCH", "/uploads/", 1, Fault::status(413));
    stream(&s, UploadMode::Chunked(1 << 20), &content).unwrap();
    assert_eq!(fetch(&s.client, &s.image(NAME), &layer(&content)).unwrap(), content);
    assert!(s.proxy.requests().iter().any(|r| r.header("content-range") == Some("0-262143")));
    s.proxy.fault("POST", "/uploads/", 1, Fault::SetHeader("oci-chunk-min-length", "2000000".into()));
    let content = bytes(31, BIG);
    stream(&s, UploadMode::Chunked(1 << 20), &content).unwrap();
    assert!(s.proxy.requests().iter().any(|r| r.header("content-range") == Some("0-1999999")));
}

#[test]
fn a_wrong_digest_or_an_abandoned_stream_leaves_nothing() {
    let Some(s) = Setup::new() else { return };
    let content = bytes(32, BIG);
    let mut upload = s.client.upload(&s.image(NAME), UploadMode::Stream).unwrap();
    upload.write_all(&content).unwrap();
    let e = upload.finish(&Digest::of(b"other")).unwrap_err();
    assert_eq!(e.codes()[0].code, "DIGEST_INVALID", "{e}");
    let mut upload = s.client.upload(&s.image(NAME), UploadMode::Stream).unwrap();
    upload.write_all(&content).unwrap();
    drop(upload);
    assert!(s.proxy.lines().iter().any(|l| l.starts_with("DELETE") && l.contains("/uploads/")));
    assert!(!s.client.has_blob(&s.image(NAME), &Digest::of(&content)).unwrap());
    // a registry that refuses ends the writer too
    s.proxy.fault("PATCH", "/uploads/", 9, Fault::status(400));
    let mut upload = s.client.upload(&s.image(NAME), UploadMode::Stream).unwrap();
    let endless = bytes(33, 64 << 20);
    let e = upload.write_all(&endless).unwrap_err();
    assert!(matches!(Error::of_io(&e), Some(Error::Status { status: 400, .. })), "{e}");
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
