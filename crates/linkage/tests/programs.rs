//! Real programs of the machine that runs the tests, in roots that lack something.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_linkage::{Checker, Finding, Libc, Problem, Start};
use kiln_rootfs::Root;

struct Image {
    directory: tempfile::TempDir,
    start: Start,
}

impl Image {
    fn new(args: &[&str]) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let start = Start {
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            architecture: architecture.to_owned(),
            ..Start::default()
        };
        Self { directory: tempfile::tempdir().unwrap(), start }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> &Self {
        let at = self.path(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(&at, content).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn host(&self, path: &str) -> &Self {
        self.file(path, std::fs::read(path).unwrap(), 0o755)
    }

    /// Compiles C into the image.
    fn compile(&self, path: &str, source: &str, flags: &[&str]) -> &Self {
        let out = self.path(path);
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let text = self.path("source.c");
        std::fs::write(&text, source).unwrap();
        let done = Command::new("cc").arg(&text).arg("-o").arg(&out).args(flags).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self
    }

    fn findings(&self, programs: &[&str]) -> Vec<Finding> {
        let root = Root::open(self.directory.path()).unwrap();
        let mut checker = Checker::new(&root, &self.start);
        checker.command();
        for program in programs {
            checker.program(Path::new(program));
        }
        checker.finish()
    }

    fn problems(&self) -> Vec<Problem> {
        self.findings(&[]).into_iter().map(|f| f.problem).collect()
    }
}

const HELLO: &str = "#include <stdio.h>\nint main() { puts(\"hello\"); return 0; }\n";

/// The loader and C library of this machine, as paths that programs know them by.
fn libc_files() -> (String, String) {
    let image = Image::new(&[]);
    image.compile("/hello", HELLO, &[]);
    let output = Command::new("ldd").arg(image.path("/hello")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let word = |line: &str, start: char| line.split_whitespace().find(|w| w.starts_with(start)).unwrap().to_owned();
    let libc = word(text.lines().find(|l| l.contains("libc.so")).unwrap(), '/');
    let loader = word(text.lines().find(|l| l.contains("ld-linux")).unwrap(), '/');
    (loader, libc)
}

#[test]
fn a_dynamic_program_in_scratch_lacks_its_loader() {
    let image = Image::new(&["/hello"]);
    image.compile("/hello", HELLO, &[]);
    let findings = image.findings(&[]);
    let [Finding { problem: Problem::MissingLoader { libc, image_has, loader }, .. }] = findings.as_slice() else {
        panic!("{findings:?}");
    };
    assert_eq!((*libc, *image_has), (Libc::Glibc, None));
    assert!(findings[0].describe().contains(loader.as_str()));
    assert!(findings[0].remedy().contains("-static"));
}

#[test]
fn a_static_program_needs_nothing() {
    let image = Image::new(&["/hello"]);
    image.compile("/hello", HELLO, &["-static"]);
    assert_eq!(image.findings(&["/hello"]), []);
    image.compile("/hello", HELLO, &["-static-pie"]);
    assert_eq!(image.findings(&["/hello"]), []);
}

#[test]
fn a_program_for_glibc_in_an_image_with_musl_is_told_so() {
    let image = Image::new(&["/hello"]);
    image.compile("/hello", HELLO, &[]).file("/lib/ld-musl-x86_64.so.1", "", 0o755);
    assert!(matches!(image.problems()[..], [Problem::MissingLoader { image_has: Some(Libc::Musl), .. }]));
}

#[test]
fn libraries_are_found_where_the_loader_finds_them() {
    let (loader, libc) = libc_files();
    let image = Image::new(&["/hello"]);
    image.compile("/hello", HELLO, &[]).host(&loader);
    let missing = Problem::MissingLibrary { name: "libc.so.6".into(), needed_by: None };
    assert_eq!(image.problems(), std::slice::from_ref(&missing));
    image.file("/opt/odd/libc.so.6", std::fs::read(&libc).unwrap(), 0o644);
    assert_eq!(image.problems(), [missing]);
    image.file("/etc/ld.so.conf", "# comment\ninclude /etc/ld.so.conf.d/*.conf\n", 0o644);
    image.file("/etc/ld.so.conf.d/odd.conf", "/opt/odd\n", 0o644);
    assert_eq!(image.problems(), []);
    std::fs::remove_file(image.path("/etc/ld.so.conf")).unwrap();
    let mut image = image;
    image.start.env = vec!["LD_LIBRARY_PATH=/nowhere:/opt/odd".into()];
    assert_eq!(image.problems(), []);
}

#[test]
fn run_paths_and_libraries_of_libraries_are_followed() {
    let (loader, libc) = libc_files();
    let image = Image::new(&["/app/bin/program"]);
    image.host(&loader).host(&libc);
    image.compile("/app/lib/libinner.so", "int inner() { return 1; }", &["-shared", "-fPIC"]);
    let lib = image.path("/app/lib");
    let search = format!("-L{}", lib.display());
    let outer = "int inner(); int outer() { return inner(); }";
    image.compile("/app/lib/libouter.so", outer, &["-shared", "-fPIC", &search, "-linner"]);
    let main = "int outer(); int main() { return outer(); }";
    let link = format!("-Wl,-rpath-link,{}", lib.display());
    let all = [search.as_str(), "-louter", link.as_str()];
    image.compile("/app/bin/program", main, &[&all[..], &["-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib"]].concat());
    assert_eq!(image.problems(), [], "the old kind of run path is inherited by libraries");
    image.compile("/app/bin/program", main, &[&all[..], &["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"]].concat());
    let by = "/app/lib/libouter.so".to_owned();
    let missing = Problem::MissingLibrary { name: "libinner.so".into(), needed_by: Some(by) };
    assert_eq!(image.problems(), [missing], "the new kind is not");
    let musl = "/lib/ld-musl-x86_64.so.1";
    let loader = format!("-Wl,--dynamic-linker={musl}");
    let flags = ["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib", &loader];
    image.file(musl, "", 0o755).compile("/app/bin/program", main, &[&all[..], &flags].concat());
    assert_eq!(image.problems(), [], "musl knows one kind only");
}

#[test]
fn a_version_that_the_library_does_not_have_is_named() {
    let (loader, libc) = libc_files();
    let image = Image::new(&["/program"]);
    image.host(&loader).host(&libc);
    let script = image.path("versions");
    std::fs::write(&script, "ODD_1.9 { global: odd; }; ODD_1.10 { global: even; };").unwrap();
    let versions = format!("-Wl,--version-script={}", script.display());
    let flags = ["-shared", "-fPIC", "-Wl,-soname,libodd.so.1", &versions];
    image.compile("/usr/lib/libodd.so.1", "void odd() {} void even() {}", &flags);
    let library = image.path("/usr/lib/libodd.so.1").display().to_string();
    image.compile("/program", "void odd(); void even(); int main() { odd(); even(); return 0; }", &[&library]);
    assert_eq!(image.problems(), []);
    std::fs::write(&script, "ODD_1.0 { global: odd; even; };").unwrap();
    image.compile("/usr/lib/libodd.so.1", "void odd() {} void even() {}", &flags);
    let newest = Problem::MissingVersion { library: "libodd.so.1".into(), version: "ODD_1.10".into() };
    assert_eq!(image.problems(), [newest]);
}

#[test]
fn commands_that_cannot_start_are_told_apart() {
    assert_eq!(Image::new(&["node", "server.js"]).problems(), [Problem::NoSuchCommand { shell: false }]);
    assert_eq!(Image::new(&["/bin/sh", "-c", "node"]).problems(), [Problem::NoSuchCommand { shell: true }]);
    let image = Image::new(&["start.sh"]);
    image.file("/bin/start.sh", "#!/bin/bash -e\n", 0o644);
    assert_eq!(image.problems(), [Problem::NotExecutable { directory: false }]);
    image.file("/bin/start.sh", "#!/bin/bash -e\n", 0o755);
    assert_eq!(image.problems(), [Problem::MissingInterpreter { interpreter: "/bin/bash".into() }]);
    image.file("/bin/start.sh", "#!/bin/sh\r\n", 0o755).compile("/bin/sh", HELLO, &["-static"]);
    assert_eq!(image.problems(), [Problem::MissingInterpreter { interpreter: "/bin/sh\r".into() }]);
    image.file("/bin/start.sh", "#! /bin/sh\n", 0o755);
    assert_eq!(image.problems(), []);
    let directory = Image::new(&["/opt"]);
    std::fs::create_dir(directory.path("/opt")).unwrap();
    assert_eq!(directory.problems(), [Problem::NotExecutable { directory: true }]);
}

#[test]
fn a_program_for_another_processor_matters_only_as_the_command() {
    let mut image = Image::new(&["/hello"]);
    image.compile("/hello", HELLO, &[]);
    image.start.architecture = "s390x".into();
    assert!(matches!(image.problems()[..], [Problem::WrongArchitecture { .. }]));
    image.start.args.clear();
    assert_eq!(image.findings(&["/hello"]), []);
}

#[test]
fn links_stay_in_the_image() {
    let image = Image::new(&["/usr/bin/tool"]);
    std::fs::create_dir_all(image.path("/usr/bin")).unwrap();
    symlink("../../../../../../bin/real", image.path("/usr/bin/tool")).unwrap();
    image.compile("/bin/real", HELLO, &["-static"]);
    assert_eq!(image.problems(), []);
    std::fs::remove_file(image.path("/usr/bin/tool")).unwrap();
    symlink("/bin/ls", image.path("/usr/bin/tool")).unwrap();
    assert_eq!(image.problems(), [Problem::NoSuchCommand { shell: false }], "the host's /bin/ls is not the image's");
}

#[test]
fn damaged_files_are_no_problem_and_cost_nothing() {
    let image = Image::new(&[]);
    image.compile("/hello", HELLO, &[]);
    let whole = std::fs::read(image.path("/hello")).unwrap();
    for at in (0..whole.len().min(1024)).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        image.file("/damaged", &damaged, 0o755);
        image.findings(&["/damaged"]);
        image.file("/short", &whole[..at], 0o755);
        image.findings(&["/short"]);
    }
}
