//! The cache between machines through a registry: each machine is a store of its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kiln_registry::testing::{DockerRegistry, Fault, FaultProxy, RegistryOptions, Server};
use support::*;

const APP: &str = "FROM base AS builder\nCOPY deps /deps\nRUN cat /deps > /installed\n\
                   FROM base AS app\nCOPY src /src\nCOPY --from=builder /installed /installed\nRUN cat /src/a /installed > /app\n";

fn app() -> Option<(Sandbox, DockerRegistry)> {
    let s = Sandbox::new(&format!("{BASE}{APP}"))?;
    s.file("deps", "express");
    s.file("src/a", "a");
    Some((s, DockerRegistry::start(&RegistryOptions::default())?))
}

/// Another machine: nothing but the context is the same.
fn machine(s: &mut Sandbox, name: &str) {
    s.env("KILN_ROOT", s.path(name).to_str().unwrap());
}

/// What an article on multi-stage builds tells to do in CI.
fn article(s: &Sandbox, host: &str) -> (Run, Run) {
    let (builder, latest) = (format!("{host}/app:builder"), format!("{host}/app:latest"));
    s.kiln(&["pull", &builder]);
    let first = s.build(&["--cache-from", &builder, "--target", "builder", "-t", &builder]).ok();
    s.kiln(&["pull", &latest]);
    let second = s.build(&["--cache-from", &builder, "--cache-from", &latest, "-t", &latest]).ok();
    s.kiln(&["push", &latest]).ok();
    s.kiln(&["push", &builder]).ok();
    (first, second)
}

#[test]
fn the_articles_flow_rebuilds_nothing_on_another_machine() {
    let Some((mut s, registry)) = app() else { return };
    let host = registry.host();
    let (first, second) = article(&s, &host);
    assert_eq!((first.executed().len(), second.executed().len()), (4, 3), "{}", second.stderr);
    let digest =
        |s: &Sandbox| s.kiln(&["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).ok().stdout;
    let before = digest(&s);
    machine(&mut s, "second");
    let (first, second) = article(&s, &host);
    assert_eq!((first.executed(), second.executed()), (Vec::new(), Vec::new()), "{}{}", first.stderr, second.stderr);
    assert_eq!(digest(&s), before, "the same input gives the same image on any machine");
    // A changed source runs what reads it, and nothing of the builder.
    machine(&mut s, "third");
    s.file("src/a", "changed ");
    let (first, second) = article(&s, &host);
    assert_eq!(first.executed(), [""; 0], "{}", first.stderr);
    assert_eq!(second.executed().len(), 3, "{}", second.stderr);
    assert_eq!(text(s.export(&[]).join("app")), "changed express");
}

/// A layer that was pulled is the base's only if it is in a base of this build.
#[test]
fn an_image_that_was_pulled_again_is_exported_with_its_layers() {
    let Some((mut s, registry)) = app() else { return };
    let name = format!("{}/app:1", registry.host());
    let cache = format!("type=registry,ref={}/app:cache", registry.host());
    s.build(&["-t", &name, "--push"]).ok();
    s.kiln(&["rmi", "-f", &name]).ok();
    s.kiln(&["pull", &name]).ok();
    s.build(&["-t", &name, "--cache-to", &format!("{cache},mode=max")]).ok();
    machine(&mut s, "second");
    let run = s.build(&["--cache-from", &cache]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
}

#[test]
fn without_a_pull_the_registry_is_asked_and_only_for_manifests() {
    let Some((mut s, registry)) = app() else { return };
    let proxy = FaultProxy::start(&registry.host());
    let name = format!("{}/app:1", proxy.host());
    s.build(&["-t", &name, "--push"]).ok();
    machine(&mut s, "second");
    let before = proxy.lines().len();
    let run = s.build(&["--cache-from", &name, "-t", &name, "--push"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    let lines = proxy.lines().split_off(before);
    let blobs = lines.iter().filter(|l| l.starts_with("GET") && l.contains("/blobs/")).count();
    assert_eq!(blobs, 1, "the config alone: {lines:#?}");
    assert!(!lines.iter().any(|l| l.starts_with("POST") || l.starts_with("PATCH")), "{lines:#?}");
}

#[test]
fn the_same_input_gives_the_same_digest_with_any_cache() {
    let Some((mut s, _registry)) = app() else { return };
    s.env("SOURCE_DATE_EPOCH", "1700000000");
    let mut all = Vec::new();
    for (number, args) in [&[][..], &["--no-cache"], &[], &["--cache-to", "type=inline"]].into_iter().enumerate() {
        machine(&mut s, &format!("store-{}", number / 2));
        s.build(&[args, &["-o", "type=oci,dest=out.tar,rewrite-timestamp=true", "--iidfile", "iid"]].concat()).ok();
        all.push(text(s.path("iid")));
    }
    all.dedup();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(s.config(&[])["kiln.cache.v1"]["records"].as_array().map(Vec::len), Some(5));
    assert!(s.config(&["--build-arg", "BUILDKIT_INLINE_CACHE=0"])["kiln.cache.v1"].is_null());
}

#[test]
fn a_cache_of_its_own_uploads_what_is_missing() {
    let Some((mut s, registry)) = app() else { return };
    let proxy = FaultProxy::start(&registry.host());
    let to = format!("type=registry,ref={}/cache:1,mode=max,compression=zstd", proxy.host());
    s.build(&["--cache-to", &to, "-o", "type=cacheonly"]).ok();
    let uploads = |from: usize| proxy.lines()[from..].iter().filter(|l| l.starts_with("POST")).count();
    assert_eq!(uploads(0), 7, "six layers and the config: {:#?}", proxy.lines());
    let before = proxy.lines().len();
    s.build(&["--cache-to", &to, "-o", "type=cacheonly"]).ok();
    assert_eq!(uploads(before), 0);
    s.file("src/a", "changed ");
    let before = proxy.lines().len();
    s.build(&["--cache-to", &to, "-o", "type=cacheonly"]).ok();
    assert!(uploads(before) <= 4, "{:#?}", &proxy.lines()[before..]);
    machine(&mut s, "second");
    let from = format!("type=registry,ref={}/cache:1", proxy.host());
    assert_eq!(s.build(&["--cache-from", &from]).ok().executed(), [""; 0]);
    assert_eq!(text(s.export(&[]).join("app")), "changed express");
}

#[test]
fn layers_are_uploaded_while_later_steps_run() {
    let Some((s, registry)) = app() else { return };
    let proxy = Arc::new(FaultProxy::start(&registry.host()));
    let (seen, asked) = (Arc::new(AtomicBool::new(false)), AtomicU32::new(0));
    let (watched, noted) = (Arc::clone(&proxy), Arc::clone(&seen));
    // The last step runs until a layer of an earlier one is in the registry, or for a minute.
    let server = Server::start(move |exchange| {
        let uploaded = watched.lines().iter().any(|l| l.starts_with("PUT") && l.contains("/blobs/"));
        noted.store(uploaded, Ordering::Relaxed);
        let is_over = uploaded || asked.fetch_add(1, Ordering::Relaxed) > 1200;
        exchange.respond(if is_over { 200 } else { 404 }, &[], b"")
    });
    let wait = format!("until wget -q -O /dev/null {}/; do usleep 50000; done", server.url());
    s.file("Dockerfile", format!("{BASE}RUN {wait}\n"));
    let to = format!("type=registry,ref={}/cache:1,mode=max", proxy.host());
    s.build(&["--cache-to", &to, "-o", "type=cacheonly"]).ok();
    assert!(seen.load(Ordering::Relaxed), "{:#?}", proxy.lines());
}

#[test]
fn a_registry_that_fails_never_fails_the_build() {
    let Some((mut s, registry)) = app() else { return };
    let proxy = FaultProxy::start(&registry.host());
    let (name, host) = (format!("{}/app:1", proxy.host()), registry.host());
    s.build(&["-t", &format!("{host}/app:1"), "--push"]).ok();
    let faults: [(&str, &str, Fault); 7] = [
        ("no access to the manifest", "/manifests/", Fault::status(401)),
        (
            "a manifest that is not JSON",
            "/manifests/",
            Fault::answer(200, &[("content-type", "application/vnd.oci.image.manifest.v1+json")], b"{"),
        ),
        ("no layers", "/blobs/", Fault::answer(404, &[], br#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#)),
        ("no access to layers", "/blobs/", Fault::status(403)),
        ("other bytes", "/blobs/", Fault::Flip(40)),
        ("other lengths", "/blobs/", Fault::Resize(-3)),
        ("cut", "/blobs/", Fault::CutAfter(30)),
    ];
    for (number, (what, part, fault)) in faults.into_iter().enumerate() {
        let proxy = FaultProxy::start(&host);
        proxy.fault("GET", part, 1000, fault.clone()).fault("HEAD", part, 1000, fault);
        machine(&mut s, &format!("store-{number}"));
        let from = name.replace(&name[..name.find('/').unwrap()], &proxy.host());
        let run = s.build(&["--cache-from", &from, "-o", "type=local,dest=out,mode=delete"]).ok();
        assert_eq!(text(s.path("out/app")), "aexpress", "{what}");
        assert!(run.stderr.contains("WARNING"), "{what}: {}", run.stderr);
        let to = format!("type=registry,ref={}/cache:2", proxy.host());
        s.build(&["--cache-to", &to, "-o", "type=cacheonly"]).ok();
    }
    // Layers that can be had when the image is made, and not when it is pushed.
    let from = FaultProxy::start(&host);
    machine(&mut s, "late");
    s.file("src/a", "late ");
    let cache = format!("{}/app:1", from.host());
    from.fault("GET", "/blobs/", 1000, Fault::status(404));
    let run = s.build(&["--cache-from", &cache, "-t", &format!("{host}/other:1"), "--push"]).ok();
    assert!(run.stderr.contains("WARNING"), "{}", run.stderr);
}

#[test]
fn nobody_there_and_no_cache_there() {
    let Some((s, registry)) = app() else { return };
    let run = s.build(&["--cache-from", &format!("{}/none:1", registry.host())]).ok();
    assert_eq!(run.executed().len(), 7, "{}", run.stderr);
    s.build(&["--cache-from", "127.0.0.1:1/none:1", "--no-cache-filter", "app"]).ok();
    s.build(&["--cache-to", "type=registry,ref=127.0.0.1:1/none:1"])
        .ok()
        .says(&["WARNING: the cache was not exported"]);
    s.build(&["--cache-to", "type=gha"]).fails(2).says(&["type=gha is not supported yet"]);
    s.build(&["--cache-from", "type=azblob,name=x"]).fails(2).says(&["type=azblob is not supported yet"]);
}

#[test]
fn layers_of_a_base_stay_in_its_registry() {
    let Some((mut s, registry)) = app() else { return };
    let host = registry.host();
    s.build(&["-t", &format!("{host}/base:1"), "--push"]).ok();
    let proxy = FaultProxy::start(&host);
    s.file("child", format!("FROM {host}/base:1\nCOPY src /more\nRUN cat /more/a > /x\n"));
    let cache = format!("{}/cache:1", proxy.host());
    machine(&mut s, "first");
    s.build(&["-f", "ctx/child", "--cache-to", &format!("type=registry,ref={cache},mode=max"), "-t", "x"]).ok();
    let uploads = proxy.lines().iter().filter(|l| l.starts_with("POST")).count();
    assert_eq!(uploads, 3, "two layers and the config: {:#?}", proxy.lines());
    machine(&mut s, "second");
    let run = s.build(&["-f", "ctx/child", "--cache-from", &format!("type=registry,ref={cache}"), "-t", "x"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    s.file("child", format!("FROM {host}/base:1\nCOPY src /more\nRUN cat /more/a /app > /x\n"));
    assert_eq!(text(s.export(&["-f", "ctx/child"]).join("x")), "aaexpress");
}
