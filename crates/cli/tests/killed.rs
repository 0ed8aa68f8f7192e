//! `kill -9` in each phase of what kiln does: the next command knows nothing of it, the result is the same as without, and nothing is
//! left: no process, no mount, no file. Signals that can be caught end all at once.
#![allow(clippy::unwrap_used)]

#[path = "../../deb/tests/common/mod.rs"]
mod common;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_registry::testing::{DockerRegistry, Fault, FaultProxy, RegistryOptions};
use support::*;

/// A server of one large file, which can be made to stop in the middle of it.
struct Halting {
    host: String,
    halt: Arc<AtomicBool>,
    halted: Arc<AtomicBool>,
}

impl Halting {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (halt, halted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (h1, h2) = (halt.clone(), halted.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (h1, h2) = (h1.clone(), h2.clone());
                std::thread::spawn(move || serve(client, &h1, &h2));
            }
        });
        Self { host, halt, halted }
    }
}

fn serve(mut client: TcpStream, halt: &AtomicBool, halted: &AtomicBool) {
    let mut line = String::new();
    let mut lines = BufReader::new(client.try_clone().unwrap());
    while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
        line.clear();
    }
    let body = vec![b'x'; 400_000];
    let head = "HTTP/1.1 200 OK\r\nlast-modified: Thu, 01 Oct 2020 00:00:00 GMT\r\nconnection: close\r\n";
    _ = write!(client, "{head}content-length: {}\r\n\r\n", body.len());
    _ = client.write_all(&body[..200_000]);
    if halt.load(SeqCst) {
        halted.store(true, SeqCst);
        // Until the other side is gone.
        _ = client.read(&mut [0]);
        return;
    }
    _ = client.write_all(&body[200_000..]);
}

/// The output of a child so far.
fn follow(child: &mut Child) -> Arc<Mutex<String>> {
    let seen = Arc::new(Mutex::new(String::new()));
    let (sink, lines) = (seen.clone(), BufReader::new(child.stderr.take().unwrap()));
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let mut seen = sink.lock().unwrap();
            seen.push_str(&line);
            seen.push('\n');
        }
    });
    seen
}

struct World {
    s: Sandbox,
    web: Halting,
    registry: Option<(DockerRegistry, FaultProxy)>,
    /// The build that has to work after each kill.
    build: Vec<&'static str>,
    /// The image ID without any disturbance.
    id: String,
}

const BUILD: [&str; 5] =
    ["build", "--progress=plain", "--iidfile=id", "--output=type=image,name=made,rewrite-timestamp=true", "ctx"];

impl World {
    fn new() -> Option<Self> {
        let mut s = Sandbox::new(BASE)?;
        s.env("SOURCE_DATE_EPOCH", "1600000000");
        let web = Halting::start();
        let registry = DockerRegistry::start(&RegistryOptions::default());
        let registry = registry.map(|r| (FaultProxy::start(&r.host()), r)).map(|(p, r)| (r, p));
        let mut from = format!("{BASE}FROM base\n");
        if let Some((_, proxy)) = &registry {
            let image = format!("{}/base:1", proxy.host());
            s.build(&["-t", &image, "--push"]).ok();
            from = format!("FROM {image}\n");
        }
        for n in 0..80 {
            s.file(&format!("data/{}/{n}", n % 10), vec![b'a' + (n % 26) as u8; 20_000]);
        }
        s.file(
            "Dockerfile",
            format!(
                "{from}ADD http://{}/big /big\nCOPY data /data\n\
                 RUN echo started; test -e /never || sleep 0.1; cp -a /data /copy; echo sleeps 98765.43 > /note\n",
                web.host
            ),
        );
        Some(Self { s, web, registry, build: BUILD.to_vec(), id: String::new() }.undisturbed())
    }

    /// Remembers what the build makes when nothing happens.
    fn undisturbed(mut self) -> Self {
        self.fresh();
        self.s.kiln(&self.build).ok();
        self.id = text(self.s.path("id"));
        self
    }

    fn fresh(&self) {
        _ = std::fs::remove_dir_all(self.s.path("store"));
    }

    /// Starts kiln and kills it once `ready` says so of its output, or when it is done.
    fn kill(&self, args: &[&str], ready: &mut dyn FnMut(&str, &mut Child) -> bool) {
        let mut command = self.s.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let seen = follow(&mut child);
        wait_until(&format!("{args:?} comes so far"), || {
            let text = seen.lock().unwrap().clone();
            ready(&text, &mut child) || child.try_wait().unwrap().is_some()
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What must hold after a kill.
    fn check(&self, phase: &str) {
        let dir = self.s.path("").to_str().unwrap().trim_end_matches('/').to_owned();
        wait_until(&format!("{phase}: all processes end"), || processes_of(&dir).is_empty());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&dir), "{phase}: {mounts}");
        let run = self.s.kiln(&self.build).ok();
        let words = run.stderr.to_lowercase();
        assert!(!words.contains("warn") && !words.contains("error"), "{phase}: {}", run.stderr);
        assert_eq!(text(self.s.path("id")), self.id, "{phase}");
        self.s.kiln(&["prune", "-af"]).ok();
        for left in ["tmp", "leases", "layers", "mounts", "content/blobs/sha256"] {
            assert_eq!(names(self.s.path("store").join(left)), [""; 0], "{phase}: {left}");
        }
    }
}

/// Processes whose environment or arguments name a directory.
fn processes_of(dir: &str) -> Vec<String> {
    let here = |p: &std::fs::DirEntry| {
        let read = |file: &str| std::fs::read(p.path().join(file)).unwrap_or_default();
        let all = [read("environ"), read("cmdline")].concat();
        let names_it = String::from_utf8_lossy(&all).contains(dir);
        names_it.then(|| String::from_utf8_lossy(&read("cmdline")).replace('\0', " "))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|p| here(&p)).collect()
}

#[test]
fn a_kill_in_any_phase_leaves_nothing_and_changes_nothing() {
    let Some(world) = World::new() else { return };
    // By what the plain progress shows.
    for mark in ["load build definition", "ADD http", "COPY data", " started", "exporting to image", "naming to"] {
        world.fresh();
        world.kill(&BUILD, &mut |seen, _| seen.contains(mark));
        world.check(mark);
    }
    // In the middle of a download.
    world.fresh();
    world.web.halt.store(true, SeqCst);
    world.kill(&BUILD, &mut |_, _| world.web.halted.load(SeqCst));
    world.web.halt.store(false, SeqCst);
    world.check("download");
    // In the middle of an archive.
    world.s.kiln(&BUILD).ok();
    world.s.kiln(&["save", "-o", "made.tar", "made"]).ok();
    let archive = std::fs::read(world.s.path("made.tar")).unwrap();
    world.fresh();
    world.kill(&["load"], &mut |_, child| {
        _ = child.stdin.as_mut().unwrap().write_all(&archive[..archive.len() / 2]);
        names(world.s.path("store/tmp")).iter().any(|n| n != "sweep")
    });
    world.check("load");
    // A collection, at some moments.
    for moment in 0..4 {
        world.s.kiln(&BUILD).ok();
        world.s.kiln(&["rmi", "-f", "made"]).ok();
        let start = Instant::now();
        world.kill(&["prune", "-af"], &mut |_, _| start.elapsed() > Duration::from_millis(moment * 7));
        world.check("prune");
    }
}

#[test]
fn a_kill_while_a_base_is_made_leaves_nothing_and_changes_nothing() {
    let Some(mut s) = Sandbox::new("") else { return };
    s.env("SOURCE_DATE_EPOCH", "1600000000");
    // In place of the shell that would run dpkg: busybox has its own.
    let shell = b"#!/bin/busybox sh\necho configured > /etc/configured\ntest -e /never || sleep 0.2\n";
    let mut many = common::repo::pkg("many", "1").field("Priority", "required");
    for n in 0..600 {
        many = many.file(&format!("usr/share/many/{}/{n}", n % 20), b"text");
    }
    let packages = vec![
        common::base_files(),
        common::repo::pkg("awk", "1").program("usr/bin/awk", b"x"),
        many,
        common::repo::pkg("busybox", "1")
            .field("Essential", "yes")
            .program("bin/busybox", &std::fs::read(BUSYBOX).unwrap())
            .program("bin/sh", shell),
    ];
    let mut bookworm = common::repo::suite("bookworm", packages);
    bookworm.head = bookworm.head.replace("Thu, 01 Oct 2026", "Thu, 01 Jan 2026");
    let archive = common::World::with(&[bookworm]);
    let (url, keys) = (&archive.server.url, archive.path("keys.gpg"));
    let base = format!("deb://bookworm?mirror={url}/debian&keyring={}&suites=bookworm", keys.display());
    s.file("Dockerfile", format!("FROM {base}\nRUN [\"/bin/busybox\", \"cat\", \"/etc/configured\"]\n"));
    let world =
        World { s, web: Halting::start(), registry: None, build: BUILD.to_vec(), id: String::new() }.undisturbed();
    let package = archive.server.path("many_1_amd64.deb");
    let unpacked = || {
        let drafts = std::fs::read_dir(world.s.path("store/tmp")).into_iter().flatten().flatten();
        drafts.into_iter().any(|d| d.path().join("fs/usr/share/many").exists())
    };
    for phase in ["index", "download", "unpack", "configure"] {
        world.fresh();
        if phase == "download" {
            archive.server.set_fault(&package, common::server::Fault::Stall { after: 1000 });
        }
        archive.server.take_log();
        world.kill(&BUILD, &mut |seen, _| match phase {
            "index" => seen.contains("reading "),
            "download" => archive.server.state.lock().unwrap().log.iter().any(|line| line.contains(&package)),
            "unpack" => unpacked(),
            _ => seen.contains("configuring "),
        });
        archive.server.clear_faults();
        world.check(phase);
    }
}

#[test]
fn a_kill_while_secrets_are_searched_leaves_nothing_and_changes_nothing() {
    let Some(mut s) =
        Sandbox::new(&format!("{BASE}COPY data /data\nRUN --mount=type=secret,id=key cp -a /data /copy\n"))
    else {
        return;
    };
    s.env("SOURCE_DATE_EPOCH", "1600000000");
    std::fs::write(s.path("key"), "a-secret-of-this-test-5f0c1e").unwrap();
    for n in 0..200 {
        s.file(&format!("data/{n}"), vec![b'a' + (n % 26) as u8; 20_000]);
    }
    let mut build = BUILD.to_vec();
    build.splice(3..4, ["--secret=id=key,src=key", "--output=type=oci,dest=out.tar,rewrite-timestamp=true"]);
    let world = World { s, web: Halting::start(), registry: None, build, id: String::new() }.undisturbed();
    let made = std::fs::read(world.s.path("out.tar")).unwrap();
    for moment in 0..4 {
        world.fresh();
        _ = std::fs::remove_file(world.s.path("out.tar"));
        let mut since = None;
        world.kill(&world.build, &mut |seen, _| {
            let begun = seen.contains("exporting to").then(|| *since.get_or_insert_with(Instant::now));
            begun.is_some_and(|begun| begun.elapsed() >= Duration::from_millis(moment * 15))
        });
        let left = names(world.s.path(""));
        assert!(!left.iter().any(|n| n.contains("out.tar") && n != "out.tar"), "{left:?}");
        if let Ok(bytes) = std::fs::read(world.s.path("out.tar")) {
            assert!(bytes == made, "half of an archive");
        }
        world.check("search");
        assert!(std::fs::read(world.s.path("out.tar")).unwrap() == made);
    }
}

#[test]
fn a_kill_in_a_transfer_leaves_nothing_and_changes_nothing() {
    let Some(world) = World::new() else { return };
    let Some((_, proxy)) = &world.registry else { return };
    let asked = |method: &str, part: &str| {
        let start = proxy.lines().len();
        let (method, part) = (method.to_owned(), part.to_owned());
        move |_: &str, _: &mut Child| {
            proxy.lines().iter().skip(start).any(|l| l.starts_with(&method) && l.contains(&part))
        }
    };
    let image = format!("{}/base:1", proxy.host());
    for command in [&BUILD[..], &["pull", &image]] {
        world.fresh();
        proxy.fault("GET", "/blobs/", 9, Fault::StallAfter(20_000));
        world.kill(command, &mut asked("GET", "/blobs/"));
        proxy.clear();
        world.check("pull");
    }
    let pushed = format!("{}/made:1", proxy.host());
    for (method, part) in [("POST", "/made/blobs/uploads"), ("PUT", "/made/"), ("PUT", "/made/manifests/")] {
        world.s.kiln(&BUILD).ok();
        world.s.kiln(&["tag", "made", &pushed]).ok();
        world.kill(&["push", &pushed], &mut asked(method, part));
        world.s.kiln(&["push", &pushed]).ok();
        world.s.kiln(&["rmi", &pushed]).ok();
        world.check("push");
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: the process is our child and has not been waited for.
    assert_eq!(unsafe { libc::kill(i32::try_from(child.id()).unwrap(), signal) }, 0);
}

#[test]
fn a_signal_ends_a_pull_and_a_daemon_that_does_not_listen() {
    let Some(world) = World::new() else { return };
    let s = &world.s;
    s.file(
        "daemon/Dockerfile",
        format!(
            "{BASE}RUN (trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM INT HUP; sleep 43210.9' >/dev/null 2>&1 &); \
             echo up; test -e /x || sleep 43210.8\n"
        ),
    );
    std::fs::copy(BUSYBOX, s.ctx().join("daemon/busybox")).unwrap();
    let pull = world.registry.as_ref().map(|(_, proxy)| {
        proxy.fault("GET", "/blobs/", 9, Fault::StallAfter(20_000));
        ("pull", vec!["build", "--progress=plain", "ctx"])
    });
    let daemon = ("daemon", vec!["build", "--progress=plain", "ctx/daemon"]);
    for (what, args) in [daemon].into_iter().chain(pull) {
        for number in [libc::SIGTERM, libc::SIGINT] {
            world.fresh();
            let before = world.registry.as_ref().map_or(0, |(_, proxy)| proxy.lines().len());
            let mut child = s.command(&args).stderr(Stdio::piped()).spawn().unwrap();
            let seen = follow(&mut child);
            wait_until(what, || match (what, &world.registry) {
                ("pull", Some((_, proxy))) => proxy.lines().iter().skip(before).any(|l| l.contains("/blobs/")),
                _ => seen.lock().unwrap().contains(" up\n") && process_with("43210.9"),
            });
            let start = Instant::now();
            signal(&child, number);
            let code = child.wait().unwrap().code();
            let elapsed = start.elapsed();
            assert_eq!(code, Some(130), "{what}: {}", seen.lock().unwrap());
            assert!(elapsed < Duration::from_secs(2), "{what} {elapsed:?}");
            assert!(!process_with("43210.9") && !process_with("43210.8"), "{what}");
            wait_until("all processes end", || processes_of(s.path("").to_str().unwrap()).is_empty());
            assert_eq!(names(s.path("store/tmp")).iter().filter(|n| !n.starts_with("partial.")).count(), 0, "{what}");
        }
    }
    // A step that leaves a daemon behind is over when its command is.
    s.file("daemon/Dockerfile", format!("{BASE}RUN (setsid sleep 43210.7 >/dev/null 2>&1 &); echo done\n"));
    let start = Instant::now();
    s.kiln(&["build", "ctx/daemon"]).ok();
    assert!(start.elapsed() < Duration::from_secs(10) && !process_with("43210.7"));
}
