//! The examples, built and run as a newcomer would. They need the distribution's package archive, the node ones the npm
//! registry, too; without them the tests say so and pass.
//!
//! The store is kept between runs, so that bases are made once.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::*;

/// A sandbox over the kept store, from which packages can be had.
fn sandbox() -> Option<Sandbox> {
    let mut s = Sandbox::new("FROM deb://bookworm?packages=dash,coreutils\n")?;
    let store = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("examples-store");
    s.env("KILN_ROOT", store.to_str().unwrap());
    let probe = s.build(&[]);
    if probe.code == 0 {
        return Some(s);
    }
    let unreachable = ["tries)", "lookup", "no mirror", "sources"].iter().any(|w| probe.stderr.contains(w));
    assert!(unreachable, "{}", probe.stderr);
    eprintln!("SKIPPED: the distribution's archive can't be reached:\n{}", probe.stderr);
    None
}

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Bytes of the image as `kiln images` shows them.
#[track_caller]
fn size(s: &Sandbox, name: &str) -> u64 {
    let format = s.kiln(&["images"]).ok().stdout;
    let line = format.lines().find(|l| l.split_whitespace().next() == Some(name));
    let text =
        line.unwrap_or_else(|| panic!("{name} is not in {format}")).split_whitespace().last().unwrap().to_owned();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap();
    let unit = match &text[split..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => panic!("{other}"),
    };
    (text[..split].parse::<f64>().unwrap() * unit) as u64
}

#[test]
fn hello_c_in_three_ways() {
    let Some(mut s) = sandbox() else { return };
    let dir = example("hello-c");
    s.kiln(&["build", "-t", "hello-one", "-f", &format!("{dir}/one.Dockerfile"), &dir]).ok();
    s.kiln(&["build", "-t", "hello-multi", &dir]).ok();
    s.env("KILN", env!("CARGO_BIN_EXE_kiln"));
    let kiln = s.command([""; 0]);
    let mut script = std::process::Command::new(format!("{dir}/build.sh"));
    script.arg("hello-script").env_clear().envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?))));
    Run::from(script.output().unwrap()).ok();
    for image in ["hello-one", "hello-multi", "hello-script"] {
        assert_eq!(s.kiln(&["run", "--rm", image]).ok().stdout, "Hello World!\n", "{image}");
    }
    let (one, multi, script) = (size(&s, "hello-one"), size(&s, "hello-multi"), size(&s, "hello-script"));
    assert_eq!(multi, script);
    assert!(multi * 40 < one && multi < 1_000_000, "{one} {multi}");
}

#[test]
fn a_private_key_in_one_stage_fails_and_in_two_passes() {
    if !has_tool("ssh-keygen") {
        return;
    }
    let Some(s) = sandbox() else { return };
    let dir = example("private-key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(s.path("key"))
        .status()
        .unwrap();
    assert!(made.success());
    let key = text(s.path("key"));
    let arg = format!("SSH_PRIVATE_KEY={key}");
    let line = key.lines().nth(1).unwrap();
    let file = |name: &str| format!("{dir}/{name}");
    let wrong = s.kiln(&[
        "build",
        "--progress=plain",
        "-t",
        "key-wrong",
        "--build-arg",
        &arg,
        "-f",
        &file("wrong.Dockerfile"),
        &dir,
    ]);
    wrong
        .fails(4)
        .says(&["SSH_PRIVATE_KEY", "/key", "RUN echo \"*** \" > /key", "the image's history", "--mount=type=secret"])
        .hides(line);
    assert!(!s.kiln(&["images"]).ok().stdout.contains("key-wrong"));
    s.kiln(&["build", "--progress=plain", "-t", "key-right", "--build-arg", &arg, &dir]).ok().hides(line);
    let secret = s.kiln(&[
        "build",
        "--progress=plain",
        "-t",
        "key-secret",
        "--secret",
        "id=key,src=key",
        "-f",
        &file("secret.Dockerfile"),
        &dir,
    ]);
    secret.ok().hides(line);
    let lines = key.lines().count();
    assert_eq!(s.kiln(&["run", "key-secret"]).ok().stdout, format!("{lines}\n"));
    // The proof by other means: the archive of the image holds no line of the key.
    s.kiln(&[
        "build",
        "--build-arg",
        &arg,
        "-o",
        "type=oci,dest=right.tar,compression=uncompressed,force-compression=true",
        &dir,
    ])
    .ok();
    let archive = std::fs::read(s.path("right.tar")).unwrap();
    assert!(!archive.windows(line.len()).any(|w| w == line.as_bytes()));
}

/// What the server answers.
fn answer(s: &Sandbox, image: &str) -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = s
        .command(["run", "--rm", "--init", "-e", &format!("PORT={port}"), image])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let answer = loop {
        assert!(child.try_wait().unwrap().is_none(), "{image} ended");
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            break text;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{image} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    };
    // SAFETY: the process is our child and has not been waited for.
    unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGTERM) };
    let stopping = Instant::now();
    child.wait().unwrap();
    assert!(stopping.elapsed() < Duration::from_secs(5), "{image} took {:?} to stop", stopping.elapsed());
    answer
}

#[test]
fn a_node_app_in_four_ways() {
    let Some(s) = sandbox() else { return };
    let dir = example("node-app");
    // A machine whose TLS is looked into says so with this variable.
    let ca = ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"].iter().find_map(|v| std::env::var(v).ok());
    if let Some(ca) = &ca {
        std::fs::create_dir(s.path("certs")).unwrap();
        std::fs::copy(ca, s.path("certs/ca.pem")).unwrap();
    }
    for variant in ["plain", "multi-stage", "distroless", "alpine-like"] {
        let (name, file) = (format!("node-{variant}"), format!("{dir}/{variant}.Dockerfile"));
        let mut args = vec!["build", "--progress=plain", "-t", &name, "-f", &file, &dir];
        if ca.is_some() {
            args.extend(["--build-context", "certs=certs"]);
        }
        let run = s.kiln(&args);
        if run.code != 0
            && ["ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH"]
                .iter()
                .any(|e| run.stderr.contains(e))
        {
            eprintln!("SKIPPED: the npm registry can't be reached:\n{}", run.stderr);
            return;
        }
        run.ok();
        let text = answer(&s, &name);
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("Hello World!"), "{variant}: {text}");
    }
    let (plain, multi, distroless) =
        (size(&s, "node-plain"), size(&s, "node-multi-stage"), size(&s, "node-distroless"));
    assert!(multi <= plain && distroless * 2 < plain, "{plain} {multi} {distroless}");
    assert_ne!(
        s.kiln(&["run", "--entrypoint", "/bin/sh", "node-distroless", "-c", "true"]).code,
        0,
        "there is no shell"
    );
    s.kiln(&["run", "node-alpine-like", "sh", "-c", "ls /app/index.js"]).ok();
}
