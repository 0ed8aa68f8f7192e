//! The cache between machines through a bucket: a server of the test's own that checks every signature.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use kiln_oci::Digest;
use kiln_registry::testing::{Exchange, Server};
use support::*;

const ID: &str = "AKIAEXAMPLE";
const SECRET: &str = "a/secret+key";

/// Objects by key.
type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A bucket `b` that only takes requests that are signed.
fn bucket() -> (Server, Objects) {
    let objects = Objects::default();
    let mine = Arc::clone(&objects);
    let server = Server::start(move |exchange| {
        let body = exchange.read_body()?;
        let request = exchange.request.clone();
        let refuse = |e: &mut Exchange, why: &str| {
            e.respond(
                403,
                &[],
                format!("<Error><Code>SignatureDoesNotMatch</Code><Message>{why}</Message></Error>").as_bytes(),
            )
        };
        let authorization = request.header("authorization").unwrap_or_default().to_owned();
        let hash = request.header("x-amz-content-sha256").unwrap_or_default().to_owned();
        if hash != Digest::of(&body).hex() {
            return refuse(exchange, "the body is another one");
        }
        let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
        if authorization != expected(&request.method, &request.path, &hash, &authorization, &header) {
            return refuse(exchange, "the signature is wrong");
        }
        let Some(key) = request.path.strip_prefix("/b/") else { return refuse(exchange, "not the bucket") };
        let mut objects = mine.lock().unwrap();
        answer(exchange, &mut objects, &request.method, key, body)
    });
    (server, objects)
}

fn answer(
    exchange: &mut Exchange,
    objects: &mut BTreeMap<String, Vec<u8>>,
    method: &str,
    key: &str,
    body: Vec<u8>,
) -> io::Result<()> {
    match (method, objects.get(key)) {
        ("PUT", _) => {
            objects.insert(key.to_owned(), body);
            exchange.respond(200, &[], b"")
        }
        ("HEAD" | "GET", Some(found)) => exchange.respond(200, &[], found),
        ("HEAD", None) => exchange.respond(404, &[], b""),
        _ => exchange.respond(404, &[], b"<Error><Code>NoSuchKey</Code></Error>"),
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|b| b ^ with).to_vec();
    let inner = Digest::of(&[pad(0x36), data.to_vec()].concat());
    Digest::of(&[pad(0x5c), inner.bytes().to_vec()].concat()).bytes().to_vec()
}

/// The signature as the documentation tells how to make it, over the headers that the request says it signs.
fn expected(method: &str, path: &str, hash: &str, given: &str, header: &dyn Fn(&str) -> String) -> String {
    let signed = given.split("SignedHeaders=").nth(1).and_then(|s| s.split(',').next()).unwrap_or_default();
    for must in ["host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"] {
        assert!(signed.split(';').any(|s| s == must), "{must} is not signed");
    }
    let lines: String = signed.split(';').map(|name| format!("{name}:{}\n", header(name))).collect();
    let canonical = format!("{method}\n{path}\n\n{lines}\n{signed}\n{hash}");
    let date = header("x-amz-date");
    let day = &date[..8];
    let scope = format!("{day}/eu-test-1/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", Digest::of(canonical.as_bytes()).hex());
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [day, "eu-test-1", "s3", "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    let signature: String = hmac(&key, text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("AWS4-HMAC-SHA256 Credential={ID}/{scope}, SignedHeaders={signed}, Signature={signature}")
}

fn app() -> Option<Sandbox> {
    let s = Sandbox::new(&format!(
        "{BASE}FROM base AS builder\nRUN --mount=type=cache,id=m,target=/m cat /m/log; echo one >> /m/log; echo b > /b\n\
         FROM base\nCOPY src /src\nCOPY --from=builder /b /b\n"
    ))?;
    s.file("src", "a");
    Some(s)
}

fn machine(s: &mut Sandbox, name: &str) {
    s.env("KILN_ROOT", s.path(name).to_str().unwrap());
}

#[test]
fn a_bucket_carries_the_cache() {
    let Some(mut s) = app() else { return };
    let (server, objects) = bucket();
    let place = format!(
        "type=s3,region=eu-test-1,bucket=b,endpoint_url={},use_path_style=true,prefix=team one/,name=main",
        server.url()
    );
    for (name, value) in
        [("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_SESSION_TOKEN", "t/o+ken")]
    {
        s.env(name, value);
    }
    let run = s.build(&["-t", "app", "--cache-to", &format!("{place},mode=max,mounts=all")]).ok();
    assert!(!run.stderr.contains("the cache was not"), "{}", run.stderr);
    let keys: Vec<String> = objects.lock().unwrap().keys().cloned().collect();
    assert!(keys.iter().any(|k| k == "team%20one/manifests/main"), "{keys:#?}");
    // Two of the steps make the same layer.
    assert_eq!(keys.iter().filter(|k| k.starts_with("team%20one/blobs/sha256")).count(), 6, "{keys:#?}");

    let before = server.lines().len();
    s.build(&["-t", "app", "--cache-to", &format!("{place},mode=max,mounts=all")]).ok();
    let puts: Vec<String> = server.lines().split_off(before).into_iter().filter(|l| l.starts_with("PUT")).collect();
    assert_eq!(puts.len(), 1, "the manifest alone: {puts:#?}");

    machine(&mut s, "second");
    let run = s.build(&["--cache-from", &place, "-o", "type=cacheonly"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    s.file("src", "changed");
    // In a later build, without the flag: the layers are still known, and the environment has the key.
    s.build(&["-o", "type=local,dest=out"]).ok();
    assert_eq!(text(s.path("out/src")), "changed");
    let run = s.build(&["--cache-from", &place, "--no-cache-filter", "builder"]).ok();
    assert!(run.stderr.contains(" one\n"), "the mount came too: {}", run.stderr);
}

#[test]
fn a_bucket_that_refuses_is_a_warning() {
    let Some(mut s) = app() else { return };
    let (server, objects) = bucket();
    let place = format!(
        "type=s3,region=eu-test-1,bucket=b,endpoint_url={},use_path_style=true,access_key_id={ID},session_token=t",
        server.url()
    );
    let (good, bad) = (format!("{place},secret_access_key={SECRET}"), format!("{place},secret_access_key=guess"));
    s.build(&["--cache-to", &bad])
        .ok()
        .says(&["WARNING: the cache was not exported", "403 SignatureDoesNotMatch"])
        .hides("guess");
    assert_eq!(objects.lock().unwrap().len(), 0);
    s.build(&["--cache-to", &good]).ok().hides(SECRET);
    machine(&mut s, "second");
    let run = s.build(&["--cache-from", &bad]).ok().hides("guess");
    assert_eq!(run.executed().len(), 5, "{}", run.stderr);
    machine(&mut s, "third");
    objects.lock().unwrap().retain(|key, _| key.starts_with("manifests/"));
    let run = s.build(&["--cache-from", &good, "-o", "type=local,dest=out"]).ok();
    assert_eq!(text(s.path("out/b")), "b\n");
    run.says(&["WARNING: a cached layer can't be had", "404"]);
    // Nothing of the key is kept.
    let found = std::process::Command::new("grep").args(["-rqa", SECRET]).arg(s.path("third")).status().unwrap();
    assert!(!found.success());
}
