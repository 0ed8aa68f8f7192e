//! Debian's `docker-registry`, started on a free loopback port.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How the registry is to be.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// User and password for Basic authentication.
    pub htpasswd: Option<(String, String)>,
    /// Serve TLS.
    pub tls: Option<TestCerts>,
    /// Ask for tokens of this server; needs TLS, and takes tokens that the test CA has signed.
    pub token_realm: Option<String>,
}

/// A running registry with its own storage.
pub struct DockerRegistry {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl DockerRegistry {
    /// Starts a registry. `None`, and a line on standard error, if the program is not installed; in CI (variable `CI`
    /// set) that is a failure.
    pub fn start(options: &RegistryOptions) -> Option<Self> {
        let program = find_program("docker-registry").or_else(|| find_program("registry"));
        let Some(program) = program else {
            assert!(std::env::var_os("CI").is_none(), "docker-registry is not installed, and CI must run this test");
            eprintln!("SKIPPED: docker-registry is not installed (Debian package docker-registry)");
            return None;
        };
        // the port is free when it is chosen and may be taken when it is used: then another one
        (0..5).find_map(|_| Self::try_start(&program, options))
    }

    fn try_start(program: &Path, options: &RegistryOptions) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = dir.path().join("config.yml");
        std::fs::write(&config, config_text(dir.path(), port, options)).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        // its own word, not a connection: somebody else may have got the port
        let listening = |dir: &TempDir| {
            std::fs::read_to_string(dir.path().join("log")).is_ok_and(|log| log.contains("listening on "))
        };
        while !listening(&dir) {
            if child.try_wait().unwrap().is_some() || Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                eprintln!("{}", std::fs::read_to_string(dir.path().join("log")).unwrap_or_default());
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { child, port, dir })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port below those that the kernel gives to other servers and clients of the tests meanwhile.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(97));
        let port = 10_000 + (n % 22_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn config_text(dir: &Path, port: u16, options: &RegistryOptions) -> String {
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: 127.0.0.1:{port}\n  secret: not-secret\n",
        dir.join("data").display()
    );
    if let Some(certs) = &options.tls {
        text.push_str(&format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certs.cert.display(),
            certs.key.display()
        ));
    }
    if let Some((user, password)) = &options.htpasswd {
        let path = dir.join("htpasswd");
        let output = Command::new("htpasswd").args(["-Bbn", "-C", "4", user, password]).output();
        let output = output.expect("htpasswd (Debian package apache2-utils) is needed");
        std::fs::write(&path, output.stdout).unwrap();
        text.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()));
    }
    if let (Some(realm), Some(certs)) = (&options.token_realm, &options.tls) {
        text.push_str(&format!(
            "auth:\n  token:\n    realm: {realm}\n    service: test\n    issuer: test\n    rootcertbundle: {}\n",
            certs.ca.display()
        ));
    }
    text
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file())
}

/// A throw-away CA and a certificate of it for 127.0.0.1 and localhost, made with `openssl`.
#[derive(Debug, Clone)]
pub struct TestCerts {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// The server's key.
    pub key: PathBuf,
}

impl TestCerts {
    /// Makes them in `dir`.
    pub fn create(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let openssl = |args: &[&str]| {
            let output = Command::new("openssl").args(args).current_dir(dir).output().expect("openssl is needed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let mut ca =
            vec!["req", "-x509", "-days", "2", "-subj", "/CN=kiln test CA", "-keyout", "ca.key", "-out", "ca.crt"];
        ca.extend(curve);
        openssl(&ca);
        let mut request = vec!["req", "-subj", "/CN=kiln test server", "-keyout", "server.key", "-out", "server.csr"];
        request.extend(curve);
        openssl(&request);
        std::fs::write(path("ext"), "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "ext",
            "-out",
            "server.crt",
        ]);
        Self { ca: path("ca.crt"), cert: path("server.crt"), key: path("server.key") }
    }
}
