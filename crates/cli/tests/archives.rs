//! `save`, `load` and `import`: pipes, compressions, other tools, and archives that lie.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{Run, Sandbox, has_tool, text};

const APP: &str = "FROM scratch\nCOPY data /data\nLABEL made=here\nCMD [\"/data\"]\n";

/// A sandbox with the image `app`, also named `team/app:1.2`.
fn with_app() -> Sandbox {
    let sandbox = Sandbox::bare(APP);
    // Does not compress, so that a cut goes through it.
    let mut noise = 0x9e37_79b9_u32;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        noise as u8
    })
    .take(300_000)
    .collect();
    sandbox.file("data", data);
    sandbox.build(&["-t", "app", "-t", "team/app:1.2"]).ok();
    sandbox
}

/// `kiln ARGS` in another store of the sandbox, fed from a file.
fn elsewhere(sandbox: &Sandbox, args: &[&str], stdin: Option<&Path>) -> Run {
    let mut command = sandbox.command(args);
    command.env("KILN_ROOT", sandbox.path("elsewhere"));
    if let Some(path) = stdin {
        command.stdin(std::fs::File::open(path).expect("a file"));
    }
    command.output().expect("kiln starts").into()
}

fn id(run: impl Fn(&[&str]) -> Run, name: &str) -> String {
    run(&["inspect", "-f", "{{.Id}}", name]).ok().stdout.trim().to_owned()
}

fn tool(sandbox: &Sandbox, name: &str, args: &[&str]) -> String {
    let output = Command::new(name).args(args).current_dir(sandbox.path("")).output().expect("it starts");
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_is_saved_can_be_loaded_however_it_was_compressed() {
    let sandbox = with_app();
    let here = id(|a| sandbox.kiln(a), "app");
    sandbox.kiln(&["save", "-o", "app.tar", "app", "team/app"]).ok();
    let again = sandbox.command(["save", "app", "team/app"]).output().expect("kiln starts");
    assert_eq!(
        again.stdout,
        std::fs::read(sandbox.path("app.tar")).expect("it is there"),
        "the same bytes through a pipe"
    );
    for (program, ending) in [("cat", "tar"), ("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")] {
        if !has_tool(program) {
            continue;
        }
        let packed = sandbox.path(format!("packed.{ending}"));
        let args: &[&str] = if program == "cat" { &["-"] } else { &["-c"] };
        let plain = std::fs::File::open(sandbox.path("app.tar")).expect("a file");
        let output = Command::new(program).args(args).stdin(plain).output();
        std::fs::write(&packed, output.expect("it runs").stdout).expect("a file");
        let loaded = elsewhere(&sandbox, &["load"], Some(&packed)).ok();
        assert_eq!(loaded.stdout, "Loaded image: app:latest\nLoaded image: team/app:1.2\n", "{program}");
        assert_eq!(id(|a| elsewhere(&sandbox, a, None), "app"), here, "{program}");
        elsewhere(&sandbox, &["rmi", "-f", &here[7..19]], None).ok();
    }
}

#[test]
fn an_image_without_a_name_is_loaded_by_its_id_and_a_moved_name_is_told() {
    let sandbox = with_app();
    let first = id(|a| sandbox.kiln(a), "app");
    sandbox.kiln(&["image", "save", "-o", "id.tar", &first[7..20]]).ok();
    let loaded = elsewhere(&sandbox, &["image", "load", "-i", "id.tar"], None).ok();
    assert_eq!(loaded.stdout, format!("Loaded image ID: {first}\n"));
    sandbox.kiln(&["save", "-o", "old.tar", "app"]).ok();
    sandbox.build(&["-t", "app", "--label", "n=2"]).ok();
    sandbox.kiln(&["save", "-o", "new.tar", "app:latest"]).ok();
    elsewhere(&sandbox, &["load", "-q", "-i", "old.tar"], None).ok();
    let loaded = elsewhere(&sandbox, &["load", "-i", "new.tar"], None).ok();
    assert!(loaded.stdout.contains("The image app:latest existed already"), "{}", loaded.stdout);
    sandbox.kiln(&["save", "-o", "none.tar", "nope"]).fails(1).says(&["no such image: nope:latest"]);
    assert!(!sandbox.path("none.tar").exists());
}

#[test]
fn oci_layouts_are_written_and_read() {
    let sandbox = with_app();
    sandbox.kiln(&["save", "--format", "oci-dir", "-o", "layout", "app"]).ok();
    assert!(text(sandbox.path("layout/oci-layout")).contains("1.0.0"));
    sandbox.kiln(&["save", "--format", "oci-archive", "-o", "oci.tar", "app"]).ok();
    for source in ["layout", "oci.tar"] {
        let loaded = elsewhere(&sandbox, &["load", "-i", source], None).ok();
        assert_eq!(loaded.stdout, "Loaded image: app:latest\n");
    }
    assert_eq!(id(|a| elsewhere(&sandbox, a, None), "app"), id(|a| sandbox.kiln(a), "app"));
    sandbox.kiln(&["save", "--format", "oci-dir", "app"]).fails(2).says(&["needs --output"]);
}

#[test]
fn one_platform_of_several() {
    let sandbox = with_app();
    sandbox.build(&["-t", "multi", "--platform", "linux/amd64,linux/arm64"]).ok();
    sandbox.kiln(&["save", "-o", "both.tar", "multi"]).ok();
    sandbox.kiln(&["save", "-o", "one.tar", "--platform", "linux/arm64", "multi"]).ok();
    sandbox
        .kiln(&["save", "-o", "x.tar", "--platform", "linux/s390x", "multi"])
        .fails(1)
        .says(&["linux/s390x", "linux/arm64"]);
    elsewhere(&sandbox, &["load", "-i", "one.tar"], None).ok();
    let arch = ["inspect", "-f", "{{.Architecture}}", "multi"];
    assert_eq!(elsewhere(&sandbox, &arch, None).ok().stdout, "arm64\n");
    elsewhere(&sandbox, &["load", "-i", "both.tar", "--platform", "linux/amd64"], None).ok();
    assert_eq!(elsewhere(&sandbox, &arch, None).ok().stdout, "amd64\n");
    elsewhere(&sandbox, &["load", "-i", "both.tar"], None).ok();
    let tree = elsewhere(&sandbox, &["images", "--tree", "multi"], None).ok().stdout;
    assert!(tree.contains("├─ linux/amd64") && tree.contains("└─ linux/arm64"), "{tree}");
}

#[test]
fn skopeo_reads_what_kiln_saves_and_the_other_way_round() {
    if !has_tool("skopeo") {
        return;
    }
    let sandbox = with_app();
    let here = id(|a| sandbox.kiln(a), "app");
    sandbox.kiln(&["save", "-o", "app.tar", "app", "team/app"]).ok();
    sandbox.kiln(&["save", "--format", "oci", "-o", "oci.tar", "app"]).ok();
    for source in ["docker-archive:app.tar:team/app:1.2", "oci-archive:oci.tar"] {
        let config = tool(&sandbox, "skopeo", &["inspect", "--config", source]);
        assert!(config.contains("\"made\": \"here\""), "{source}: {config}");
    }
    tool(&sandbox, "skopeo", &["copy", "-q", "docker-archive:app.tar:app:latest", "docker-archive:sk.tar:sk/docker:1"]);
    tool(&sandbox, "skopeo", &["copy", "-q", "oci-archive:oci.tar", "oci-archive:sk-oci.tar:sk/oci:1"]);
    tool(&sandbox, "skopeo", &["copy", "-q", "oci-archive:oci.tar", "oci:sk-dir:latest"]);
    for (source, said) in [("sk.tar", "Loaded image: sk/docker:1\n"), ("sk-oci.tar", "Loaded image: sk/oci:1\n")] {
        assert_eq!(elsewhere(&sandbox, &["load", "-i", source], None).ok().stdout, said);
    }
    let from_dir = elsewhere(&sandbox, &["load", "-i", "sk-dir"], None).ok().stdout;
    assert_eq!(from_dir, format!("Loaded image ID: {here}\n"), "`latest` is not a name");
    tool(&sandbox, "skopeo", &["copy", "-q", "oci-archive:oci.tar", "oci:word:my-app"]);
    assert_eq!(elsewhere(&sandbox, &["load", "-i", "word"], None).ok().stdout, "Loaded image: my-app:latest\n");
    assert_eq!(id(|a| elsewhere(&sandbox, a, None), "sk/docker:1"), here);
}

#[test]
fn podman_reads_what_kiln_saves_and_the_other_way_round() {
    if !has_tool("podman") {
        return;
    }
    let sandbox = with_app();
    let podman = |args: &[&str]| {
        let (root, run) = (sandbox.path("podman"), sandbox.path("podman-run"));
        let (root, run) = (root.to_string_lossy().into_owned(), run.to_string_lossy().into_owned());
        let all: Vec<&str> =
            ["--root", &root, "--runroot", &run, "--storage-driver", "vfs"].iter().chain(args).copied().collect();
        tool(&sandbox, "podman", &all)
    };
    let here = id(|a| sandbox.kiln(a), "app");
    sandbox.kiln(&["save", "-o", "app.tar", "app"]).ok();
    assert!(podman(&["load", "-q", "-i", "app.tar"]).contains("app:latest"));
    assert!(podman(&["images", "-q", "--no-trunc"]).contains(&here), "the ID is the same there");
    for format in ["docker-archive", "oci-archive"] {
        let file = format!("{format}.tar");
        podman(&["save", "-q", "--format", format, "-o", &file, &here[7..]]);
        let loaded = elsewhere(&sandbox, &["load", "-i", &file], None).ok().stdout;
        assert!(loaded.starts_with("Loaded image"), "{format}: {loaded}");
    }
    let found = elsewhere(&sandbox, &["images", "-q", "--no-trunc"], None).ok().stdout;
    assert!(found.contains(&here), "{found}");
}

#[test]
fn archives_that_lie_leave_nothing() {
    let sandbox = with_app();
    sandbox.kiln(&["save", "-o", "app.tar", "app"]).ok();
    let whole = std::fs::read(sandbox.path("app.tar")).expect("it is there");
    let mut swapped = whole.clone();
    let at = swapped.len() / 2;
    swapped[at] ^= 1;
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("cut", whole[..whole.len() / 2].to_vec(), "damaged or cut off"),
        ("flipped", swapped, "is damaged: expected"),
        ("text", b"root:x:0:0:root:/root:/bin/bash\n".repeat(100), "it is not a tar"),
        ("empty", Vec::new(), "neither an index.json nor a manifest.json"),
        ("other", tar_of(&[("etc/passwd", b"x")]), "neither an index.json nor a manifest.json"),
        ("escape", tar_of(&[("manifest.json", br#"[{"Config":"../../../etc/passwd","Layers":[]}]"#)]), "lacks"),
    ];
    for (name, bytes, says) in cases {
        let path = sandbox.path(name);
        std::fs::write(&path, bytes).expect("a file");
        let run = elsewhere(&sandbox, &["load", "-i", name], None).fails(1);
        assert!(run.stderr.contains(says), "{name}: {}", run.stderr);
    }
    assert_eq!(elsewhere(&sandbox, &["images", "-q"], None).ok().stdout, "");
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().div_ceil(512) * 512, 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn a_load_that_is_killed_leaves_nothing_to_see() {
    let sandbox = with_app();
    sandbox.kiln(&["save", "-o", "app.tar", "app"]).ok();
    let whole = std::fs::read(sandbox.path("app.tar")).expect("it is there");
    let mut command = sandbox.command(["load"]);
    command.env("KILN_ROOT", sandbox.path("elsewhere")).stdin(Stdio::piped());
    let mut child = command.spawn().expect("kiln starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // More than a pipe holds: when this returns, it is in the middle of it.
    stdin.write_all(&whole[..whole.len() - 1024]).expect("it reads");
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    drop(stdin);
    assert_eq!(elsewhere(&sandbox, &["images", "-q"], None).ok().stdout, "");
    elsewhere(&sandbox, &["image", "prune", "-f"], None).ok();
    let blobs = sandbox.path("elsewhere/content/blobs/sha256");
    assert_eq!(support::names(&blobs), [""; 0], "what it had read is debris");
    assert_eq!(support::names(sandbox.path("elsewhere/tmp")), [""; 0]);
    elsewhere(&sandbox, &["load"], Some(&sandbox.path("app.tar"))).ok();
}

/// A tar of a small root file system, made by tar.
fn rootfs(sandbox: &Sandbox) -> PathBuf {
    let root = sandbox.path("root");
    std::fs::create_dir_all(root.join("etc")).expect("a directory");
    std::fs::write(root.join("etc/motd"), "hello\n").expect("a file");
    if Path::new(support::BUSYBOX).exists() {
        std::fs::copy(support::BUSYBOX, root.join("busybox")).expect("busybox is copied");
    }
    tool(sandbox, "tar", &["-C", "root", "-cf", "root.tar", "."]);
    sandbox.path("root.tar")
}

#[test]
fn a_root_file_system_is_imported() {
    let sandbox = Sandbox::bare("FROM base:1\nCOPY data /data\n");
    let tar = rootfs(&sandbox);
    let mut command = sandbox.command(["import", "-c", "CMD [\"/busybox\",\"true\"]", "-c", "ENV A=b", "-", "base:1"]);
    command.stdin(std::fs::File::open(tar).expect("a file"));
    let run = Run::from(command.output().expect("kiln starts")).ok();
    let shown = sandbox.kiln(&["inspect", "-f", "{{.Id}} {{.Config.Cmd}} {{.Config.Env}} {{.Comment}}", "base:1"]).ok();
    assert_eq!(shown.stdout, format!("{} [/busybox true] [A=b] Imported from -\n", run.stdout.trim()));
    for program in ["gzip", "xz"] {
        if !has_tool(program) {
            continue;
        }
        tool(&sandbox, program, &["-kf", "root.tar"]);
        let file = if program == "gzip" { "root.tar.gz" } else { "root.tar.xz" };
        sandbox.kiln(&["image", "import", "-m", "packed", "--platform", "linux/arm64", file, "packed"]).ok();
        let history = sandbox.kiln(&["history", "--format", "{{.Comment}}", "packed"]).ok().stdout;
        assert_eq!(history, "packed\n");
        let arch = sandbox.kiln(&["inspect", "-f", "{{.Architecture}}", "packed"]).ok().stdout;
        assert_eq!(arch, "arm64\n");
    }
    // It is a base like any other.
    sandbox.file("data", "x");
    let out = sandbox.export(&[]);
    assert_eq!(text(out.join("etc/motd")), "hello\n");
    sandbox.kiln(&["import", "-c", "RUN x", "root.tar", "x"]).fails(1).says(&["--change takes CMD"]);
    sandbox.kiln(&["import", "ctx", "x"]).fails(2).says(&["is a directory", "tar -C ctx"]);
    std::fs::write(sandbox.path("junk"), "junk".repeat(1000)).expect("a file");
    sandbox.kiln(&["import", "junk", "x"]).fails(1).says(&["junk"]);
    sandbox.kiln(&["import", "/dev/null", "x"]).fails(1).says(&["is empty"]);
}

#[test]
fn names_that_only_look_like_whiteouts_are_not_taken_for_them() {
    let sandbox = Sandbox::bare("FROM scratch\n");
    let bytes = tar_of(&[("keep", b"kept"), (".wh.keep", b"")]);
    std::fs::write(sandbox.path("odd.tar"), bytes).expect("a file");
    sandbox.kiln(&["import", "odd.tar", "odd"]).fails(1).says(&[".wh.keep", "cannot be stored in a layer"]);
}

#[test]
fn a_url_is_imported_without_its_credentials() {
    let sandbox = Sandbox::bare("FROM scratch\n");
    let tar = std::fs::read(rootfs(&sandbox)).expect("it is there");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = [0; 4096];
        _ = std::io::Read::read(&mut stream, &mut head).expect("a request");
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", tar.len())
            .expect("it is sent");
        stream.write_all(&tar).expect("it is sent");
    });
    sandbox.kiln(&["import", &format!("http://me:secret@127.0.0.1:{port}/root.tar"), "web"]).ok();
    server.join().expect("it ends");
    let comment = sandbox.kiln(&["inspect", "-f", "{{.Comment}}", "web"]).ok().stdout;
    assert!(comment.starts_with("Imported from http://") && !comment.contains("secret"), "{comment}");
}
