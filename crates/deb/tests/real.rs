//! Bases from the archive that this machine's apt uses; their programs really run. Skipped, loudly, where there is no
//! such archive or it does not answer soon, unless `KILN_TEST_NETWORK=1` demands it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use kiln_deb::{BuildOptions, Configure, Context, Outcome, Resolution, Spec, Step, build, fetch, resolve};

fn cache() -> PathBuf {
    // Kept between runs: the packages of these bases have 80 MB.
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("deb-cache")
}

/// The base, with its packages in the cache; None if the test can't run here.
fn prepare(packages: &str) -> Option<Resolution> {
    let demanded = std::env::var_os("KILN_TEST_NETWORK").is_some_and(|v| v == "1");
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    let skip = |why: &str| {
        assert!(!demanded, "KILN_TEST_NETWORK=1, but {why}");
        eprintln!("SKIPPED: {why}");
        None
    };
    let Some(codename) = codename else { return skip("this machine has no Debian codename") };
    if !rustix::process::geteuid().is_root() {
        return skip("entering a root needs root");
    }
    let spec = Spec::parse(&format!("deb://{codename}{packages}")).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let context = Context::new(cache());
        let ready = resolve(&spec, &context).and_then(|r| fetch(&r, &context).map(|()| r));
        let _ = sender.send(ready.map_err(|error| error.to_string()));
    });
    match receiver.recv_timeout(Duration::from_secs(if demanded { 600 } else { 25 })) {
        Ok(Ok(resolution)) => Some(resolution),
        Ok(Err(error)) => skip(&error),
        Err(_) => skip("the archive is too slow"),
    }
}

fn build_into(resolution: &Resolution) -> tempfile::TempDir {
    // In memory where possible: dpkg syncs its files, which on a slow disk takes longer than all else.
    let memory = Path::new("/dev/shm");
    let dest = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let options = BuildOptions { configure: Some(&Chroot), ..BuildOptions::default() };
    build(resolution, dest.path(), &Context::new(cache()), &options).unwrap();
    dest
}

/// Runs a program with `root` as its `/`, in a mount namespace of its own.
fn enter(root: &Path, argv: &[&str], env: &[(String, String)]) -> std::io::Result<Output> {
    let script = "mount -t proc proc \"$1/proc\" && mount --rbind /dev \"$1/dev\" && root=$1 && shift && exec chroot \"$root\" \"$@\"";
    Command::new("/usr/bin/unshare")
        .args(["--mount", "--pid", "--fork", "/bin/sh", "-c", script, "sh"])
        .arg(root)
        .args(argv)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(env.iter().cloned())
        .output()
}

struct Chroot;

impl Configure for Chroot {
    fn run(&self, root: &Path, step: &Step<'_>) -> Result<Outcome, String> {
        let argv: Vec<&str> = step.argv.iter().map(String::as_str).collect();
        let output = enter(root, &argv, &step.env).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok(Outcome { success: output.status.success(), status: output.status.to_string(), output: text })
    }
}

fn says(root: &Path, argv: &[&str]) -> String {
    let output = enter(root, argv, &[]).unwrap();
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_node_base_runs_node() {
    let Some(resolution) = prepare("?packages=nodejs,ca-certificates") else { return };
    let root = build_into(&resolution);
    let program = "const s = require('http').createServer((q, r) => r.end('ok')); console.log(1 + 1, new Intl.NumberFormat('de').format(1234.5), require('zlib').gzipSync('x').length > 0); s.close()";
    assert_eq!(says(root.path(), &["/usr/bin/node", "-e", program]), "2 1.234,5 true");
    assert!(!root.path().join("bin/sh").exists() && !root.path().join("usr/bin/dpkg").exists());
    let bundle = std::fs::read_to_string(root.path().join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(bundle.matches("BEGIN CERTIFICATE").count() > 100);
}

#[test]
fn a_python_base_runs_python() {
    let Some(resolution) = prepare("?packages=python3,ca-certificates") else { return };
    let root = build_into(&resolution);
    let program = "import ssl, sqlite3, json, ctypes, decimal; print(ssl.create_default_context().cert_store_stats()['x509'] > 100, sqlite3.connect(':memory:').execute('select 6*7').fetchone()[0])";
    assert_eq!(says(root.path(), &["/usr/bin/python3", "-c", program]), "True 42");
}

#[test]
fn a_minbase_is_a_working_system_and_the_same_each_time() {
    let Some(resolution) = prepare("") else { return };
    let root = build_into(&resolution);
    let sums = |root: &Path| {
        let script = "cd / && find . -xdev -path ./proc -prune -o -path ./dev -prune -o -printf '%p %y %m %U %G %s %T@ %l\n' | sort; find . -xdev -path ./proc -prune -o -path ./dev -prune -o -type f -exec sha256sum {} + | sort";
        says(root, &["/bin/sh", "-ec", script])
    };
    let before = sums(root.path());
    let sh = |script: &str| says(root.path(), &["/bin/sh", "-ec", script]);
    assert_eq!(sh("dpkg --audit"), "");
    assert_eq!(sh("dpkg-query -W -f '${db:Status-Abbrev}\n' | sort -u"), "ii");
    assert_eq!(sh("dpkg --verify | wc -l"), "0", "all files are as their packages have them");
    assert_eq!(sh("id -un; ls -l /bin/sh | wc -l; echo ok | grep ok; awk 'BEGIN{print 7}'"), "root\n1\nok\n7");
    assert!(sh("getent passwd _apt nobody && apt-config dump | head -1 && apt-get --simulate install bash && ldconfig -p | grep -c libc.so").contains("_apt:"));
    let (one, two) = (before, sums(build_into(&resolution).path()));
    let different: Vec<_> = one.lines().zip(two.lines()).filter(|(a, b)| a != b).take(5).collect();
    assert!(one == two, "{different:#?}");
}
