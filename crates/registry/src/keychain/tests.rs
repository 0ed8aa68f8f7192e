use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(config: &str) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        std::fs::write(dir.config(), config).unwrap();
        dir
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("config.json")
    }

    fn keychain(&self) -> Keychain {
        let mut keychain = Keychain::new(Some(self.0.path()), vec![self.0.path().join("auth.json")]);
        keychain.set_helper_dirs(vec![self.0.path().to_owned()]);
        keychain
    }

    /// A helper that keeps its secrets in a file and counts its calls.
    fn helper(&self, name: &str, body: &str) {
        let path = self.0.path().join(format!("docker-credential-{name}"));
        let text = format!("#!/bin/sh\ncd {}\necho $1 >> calls\n{body}\n", self.0.path().display());
        // written by another process: a descriptor open for writing, inherited by a helper that another test starts at
        // this moment, would make the script "busy"
        let mut sh = std::process::Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut sh.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(sh.wait().unwrap().success());
    }

    fn calls(&self) -> usize {
        std::fs::read_to_string(self.0.path().join("calls")).unwrap_or_default().lines().count()
    }
}

fn find(keychain: &Keychain, registry: &str, repository: &str) -> Option<String> {
    let found = keychain.find(registry, repository, &BTreeSet::new(), &mut |_| {})?;
    Some(match found.credential {
        Credential::Basic { username, password } => format!("{username}:{}", password.expose()),
        Credential::IdentityToken(t) => format!("identity:{}", t.expose()),
        Credential::Bearer(t) => format!("bearer:{}", t.expose()),
    })
}

#[test]
fn auths_with_all_their_spellings() {
    let dir = Dir::new(
        r#"{"auths":{
        "https://index.docker.io/v1/":{"auth":"aHViOnB3OndpdGg6Y29sb25z"},
        "ghcr.io":{"auth":"aG9zdDpwdw=="},
        "ghcr.io/org":{"auth":"b3JnOnB3"},
        "https://old.example/v2/":{"username":"u","password":"p"},
        "acr.example":{"auth":"MDAwOg==","identitytoken":"refresh"},
        "tok.example":{"registrytoken":"abc"},
        "broken.example":{"auth":"%%%"},
        "empty.example":{}}}"#,
    );
    let k = dir.keychain();
    assert_eq!(find(&k, "docker.io", "library/alpine").unwrap(), "hub:pw:with:colons");
    assert_eq!(find(&k, "ghcr.io", "org/app").unwrap(), "org:pw");
    assert_eq!(find(&k, "ghcr.io", "organic/app").unwrap(), "host:pw");
    assert_eq!(find(&k, "old.example", "a").unwrap(), "u:p");
    assert_eq!(find(&k, "acr.example", "a").unwrap(), "identity:refresh");
    assert_eq!(find(&k, "tok.example", "a").unwrap(), "bearer:abc");
    for none in ["broken.example", "empty.example", "other.example"] {
        assert_eq!(find(&k, none, "a"), None);
    }
}

#[test]
fn order_of_sources_and_rejected_ones_are_skipped() {
    let dir = Dir::new(r#"{"auths":{"r.example":{"auth":"ZG9ja2VyOnB3"}}}"#);
    std::fs::write(dir.0.path().join("auth.json"), r#"{"auths":{"r.example":{"auth":"cG9kbWFuOnB3"}}}"#).unwrap();
    let mut k = dir.keychain();
    assert_eq!(find(&k, "r.example", "a").unwrap(), "docker:pw");
    let rejected = BTreeSet::from([dir.config().display().to_string()]);
    let next = k.find("r.example", "a", &rejected, &mut |_| {}).unwrap();
    assert!(next.origin.ends_with("auth.json"));
    k.add("r.example", Credential::basic("flag", "pw"), "--username");
    assert_eq!(find(&k, "r.example", "a").unwrap(), "flag:pw");
}

#[test]
fn helpers_are_asked_once_by_the_right_name() {
    let dir = Dir::new(r#"{"credHelpers":{"gcr.example":"gcr"},"credsStore":"all"}"#);
    dir.helper("gcr", r#"read s; printf '{"ServerURL":"%s","Username":"_dcgcloud_token","Secret":"tok"}' "$s""#);
    dir.helper(
        "all",
        r#"read s; case "$s" in https://index.docker.io/v1/) echo '{"Username":"<token>","Secret":"hub"}';;
        *) echo "credentials not found in native keychain"; exit 1;; esac"#,
    );
    let k = dir.keychain();
    assert_eq!(find(&k, "gcr.example", "p/a").unwrap(), "_dcgcloud_token:tok");
    let before = dir.calls();
    assert_eq!(find(&k.clone(), "gcr.example", "p/b").unwrap(), "_dcgcloud_token:tok");
    assert_eq!(dir.calls(), before);
    assert_eq!(find(&k, "docker.io", "library/a").unwrap(), "identity:hub");
    assert_eq!(find(&k, "x.example", "a"), None);
}

#[test]
fn broken_sources_are_events_without_secrets() {
    let dir = Dir::new(r#"{"credHelpers":{"a.example":"missing","b.example":"bad","c.example":"../../bin/sh"}}"#);
    dir.helper("bad", r#"echo 'hunter2 is not json'"#);
    std::fs::write(dir.0.path().join("auth.json"), "{\"auths\": hunter2").unwrap();
    let mut seen = Vec::new();
    for host in ["a.example", "b.example", "c.example"] {
        assert!(dir.keychain().find(host, "x", &BTreeSet::new(), &mut |e| seen.push(e.to_string())).is_none());
    }
    let seen = seen.join("\n");
    for part in ["docker-credential-missing", "not the JSON", "not a helper's name", "auth.json"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(!seen.contains("hunter2"));
}

#[test]
fn login_and_logout_keep_everything_else_in_the_file() {
    let dir = Dir::new(r#"{"psFormat":"x","auths":{"r.example":{"auth":"b2xkOm9sZA=="}}}"#);
    let real = dir.0.path().join("real.json");
    std::fs::rename(dir.config(), &real).unwrap();
    symlink(&real, dir.config()).unwrap();
    let k = dir.keychain();
    let stored = k.store("https://r.example/", &Credential::basic("me", "new")).unwrap();
    assert_eq!(stored, StoredIn::File(dir.config()));
    k.store("docker.io", &Credential::basic("hub", "pw")).unwrap();
    assert_eq!(find(&k, "r.example", "a").unwrap(), "me:new");
    let text = std::fs::read_to_string(&real).unwrap();
    assert!(text.contains("psFormat") && text.contains(HUB_KEY), "{text}");
    assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::symlink_metadata(dir.config()).unwrap().is_symlink());
    assert!(k.erase("r.example").unwrap());
    assert!(!k.erase("r.example").unwrap());
    assert_eq!(find(&k, "r.example", "a"), None);
    assert_eq!(find(&k, "docker.io", "library/a").unwrap(), "hub:pw");
}

#[test]
fn logins_at_the_same_time_lose_nothing() {
    let dir = Dir::new("{}");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let k = dir.keychain();
            scope.spawn(move || k.store(&format!("r{n}.example"), &Credential::basic("me", "pw")).unwrap());
        }
    });
    let k = dir.keychain();
    for n in 0..8 {
        assert!(find(&k, &format!("r{n}.example"), "a").is_some(), "r{n}");
    }
}

#[test]
fn login_uses_the_store_that_the_file_names() {
    let dir = Dir::new(r#"{"credsStore":"box"}"#);
    dir.helper(
        "box",
        r#"case $1 in store) cat > kept;; erase) rm -f kept;;
        get) if [ -f kept ]; then cat kept; else echo "credentials not found in native keychain"; exit 1; fi;; esac"#,
    );
    let k = dir.keychain();
    assert_eq!(k.store("r.example", &Credential::basic("me", "pw")).unwrap(), StoredIn::Helper("box".into()));
    assert_eq!(find(&k, "r.example", "a").unwrap(), "me:pw");
    assert!(!std::fs::read_to_string(dir.config()).unwrap().contains("auths"));
    assert!(k.erase("r.example").unwrap());
    assert_eq!(find(&k, "r.example", "a"), None);
}
