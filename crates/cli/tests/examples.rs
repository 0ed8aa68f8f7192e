//! The examples, built and run as a newcomer would. They need the distribution's package archive, some of them the npm
//! registry or PyPI, too; without them, or when they are too slow, the tests say so and pass, unless `KILN_TEST_NETWORK=1`
//! demands them.
//!
//! The store is kept between runs, so that bases are made once.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::*;

/// How kiln, npm and pip say that a host can't be reached.
const UNREACHABLE: [&str; 12] = [
    "tries)",
    "lookup",
    "host not found",
    "no mirror",
    "apt configuration",
    "ENOTFOUND",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ENETUNREACH",
    "NewConnectionError",
    "ConnectTimeoutError",
];

/// Says why a test can't be done, and fails where that is not accepted.
fn skip(why: &str) {
    assert!(std::env::var("KILN_TEST_NETWORK").as_deref() != Ok("1"), "KILN_TEST_NETWORK=1, but {why}");
    eprintln!("SKIPPED: {why}");
}

/// A sandbox over the kept store, from which packages can be had.
fn sandbox() -> Option<Sandbox> {
    let mut s = Sandbox::new("ARG SUITE=bookworm\nFROM deb://$SUITE?packages=dash,coreutils\n")?;
    let store = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("examples-store");
    s.env("KILN_ROOT", store.to_str().unwrap());
    let release = text("/etc/os-release");
    if let Some(suite) = release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")) {
        s.env("SUITE", suite);
    }
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE"] {
        if let Ok(value) = std::env::var(name) {
            s.env(name, &value);
        }
    }
    s.env("KILN", env!("CARGO_BIN_EXE_kiln"));
    // Where the machine says that packages of npm and pip are.
    for (name, ask) in [
        ("NPM_CONFIG_REGISTRY", ["npm", "config", "get", "registry"]),
        ("PIP_INDEX_URL", ["pip", "config", "get", "global.index-url"]),
    ] {
        let told = || Command::new(ask[0]).args(&ask[1..]).output().ok().filter(|o| o.status.success());
        let told = || told().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        if let Some(url) = std::env::var(name).ok().or_else(told).filter(|url| url.starts_with("http")) {
            s.env(name, &url);
        }
    }
    online(&s, 60, &["build", "--build-arg", "SUITE", "ctx"]).then_some(s)
}

/// Runs kiln for so many seconds at most; it must succeed, or be unable to reach something.
#[track_caller]
fn online(s: &Sandbox, seconds: u32, args: &[&str]) -> bool {
    let kiln = s.command([""; 0]);
    let mut bounded = Command::new("timeout");
    bounded.args(["--signal=INT", "--kill-after=10", &seconds.to_string()]).arg(kiln.get_program()).args(args);
    bounded.env_clear().envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let run = Run::from(bounded.current_dir(s.path("")).stdin(Stdio::null()).output().unwrap());
    if run.code == 124 || run.code == 130 {
        skip(&format!("this took more than {seconds} s:\n{}", run.stderr));
    } else if run.code != 0 && UNREACHABLE.iter().any(|w| run.stderr.contains(w)) {
        skip(&format!("something can't be reached:\n{}", run.stderr));
    } else {
        run.ok();
        return true;
    }
    false
}

/// Builds a file of an example, as the machine's npm and pip are set up.
#[track_caller]
fn build_example(s: &Sandbox, name: &str, dir: &str, file: &str) -> bool {
    let (dir, file) = (example(dir), format!("{}/{file}", example(dir)));
    let mut args = vec!["build", "--progress=plain", "-t", name, "-f", &file, "--build-arg", "SUITE"];
    let dockerfile = text(&file);
    let mirrors = ["NPM_CONFIG_REGISTRY", "PIP_INDEX_URL"];
    args.extend(mirrors.into_iter().filter(|m| dockerfile.contains(m)).flat_map(|m| ["--build-arg", m]));
    // Authorities that only this machine trusts, where TLS is looked into.
    let own = ["NODE_EXTRA_CA_CERTS", "PIP_CERT", "SSL_CERT_FILE"].iter().find_map(|v| std::env::var(v).ok());
    let ca = own.unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into());
    if dockerfile.contains("AS certs") && Path::new(&ca).is_file() {
        std::fs::create_dir_all(s.path("certs")).unwrap();
        std::fs::copy(ca, s.path("certs/ca.pem")).unwrap();
        args.extend(["--build-context", "certs=certs"]);
    }
    args.push(&dir);
    online(s, 300, &args)
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
    let Some(s) = sandbox() else { return };
    let built = ["one.Dockerfile", "Dockerfile", "dynamic.Dockerfile"].iter().zip(["one", "multi", "dynamic"]);
    for (file, image) in built {
        if !build_example(&s, &format!("hello-{image}"), "hello-c", file) {
            return;
        }
    }
    let kiln = s.command([""; 0]);
    let mut script = Command::new(format!("{}/build.sh", example("hello-c")));
    script.arg("hello-script").env_clear().envs(kiln.get_envs().filter_map(|(k, v)| Some((k, v?))));
    Run::from(script.output().unwrap()).ok();
    for image in ["hello-one", "hello-multi", "hello-script", "hello-dynamic"] {
        assert_eq!(s.kiln(&["run", "--rm", image]).ok().stdout, "Hello World!\n", "{image}");
    }
    let (one, multi, script) = (size(&s, "hello-one"), size(&s, "hello-multi"), size(&s, "hello-script"));
    assert_eq!(multi, script);
    assert!(multi * 40 < one && multi < 1_000_000, "{one} {multi}");
    let dynamic = size(&s, "hello-dynamic");
    assert!(multi < dynamic && dynamic * 8 < one, "{multi} {dynamic} {one}");
}

#[test]
fn a_cxx_program_finds_its_libraries() {
    let Some(s) = sandbox() else { return };
    s.file("hello.cc", "#include <iostream>\nint main() { std::cout << \"Hello \" << __cplusplus << std::endl; }\n");
    let last = |packages: &str| {
        let stages = "ARG SUITE=bookworm\nFROM deb://$SUITE?packages=g%2B%2B,dash AS build\nCOPY hello.cc .\n\
                      RUN g++ -std=c++20 -O1 -o /hello hello.cc\n";
        s.file(
            "Dockerfile",
            format!("{stages}FROM deb://$SUITE?packages={packages}\nCOPY --from=build /hello /\nCMD [\"/hello\"]\n"),
        );
        online(&s, 300, &["build", "-t", "hello-cxx", "--build-arg", "SUITE", "ctx"])
    };
    if last("libstdc%2B%2B6") {
        assert_eq!(s.kiln(&["run", "--rm", "hello-cxx"]).ok().stdout, "Hello 202002\n");
    }
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
        "--build-arg",
        "SUITE",
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
        .says(&[
            "SSH_PRIVATE_KEY",
            "/key",
            "RUN echo \"*** \" > /key",
            "the image's history (entries 2, 3, 4, 5;",
            "--mount=type=secret",
        ])
        .hides(line);
    assert!(!s.kiln(&["images"]).ok().stdout.contains("key-wrong"));
    s.kiln(&["build", "--progress=plain", "--build-arg", "SUITE", "-t", "key-right", "--build-arg", &arg, &dir])
        .ok()
        .hides(line);
    let secret = s.kiln(&[
        "build",
        "--progress=plain",
        "--build-arg",
        "SUITE",
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
        "SUITE",
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
        .stderr(Stdio::null())
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
fn a_python_app() {
    let Some(s) = sandbox() else { return };
    if !build_example(&s, "python-app", "python-app", "Dockerfile") {
        return;
    }
    let text = answer(&s, "python-app");
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("Hello World!"), "{text}");
    assert_ne!(s.kiln(&["run", "--entrypoint", "/bin/sh", "python-app", "-c", "true"]).code, 0, "there is no shell");
}

#[test]
fn a_node_app_in_four_ways() {
    let Some(s) = sandbox() else { return };
    for variant in ["plain", "multi-stage", "distroless", "alpine-like"] {
        let name = format!("node-{variant}");
        if !build_example(&s, &name, "node-app", &format!("{variant}.Dockerfile")) {
            return;
        }
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
