use super::*;

const DEBIAN: &str = "Types: deb\nURIs: http://mirror.test/debian/\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";

fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Entry>) {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = root.path().join("etc/apt").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let entries = load(root.path()).unwrap();
    (root, entries)
}

fn chosen(spec: &str, entries: &[Entry]) -> Vec<String> {
    let spec = Spec::parse(spec).unwrap();
    let show = |r: Repository| {
        format!("{}{} {} {}", r.uri, if r.optional { "?" } else { "" }, r.suite, r.components.join(","))
    };
    select(&spec, entries, "amd64").unwrap().into_iter().map(show).collect()
}

#[test]
fn debians_own_layout() {
    let (root, entries) = machine(&[("sources.list.d/debian.sources", DEBIAN)]);
    assert_eq!(
        chosen("deb://bookworm", &entries),
        [
            "http://mirror.test/debian bookworm main",
            "http://mirror.test/debian bookworm-updates main",
            "http://mirror.test/debian-security bookworm-security main"
        ]
    );
    let keyring = root.path().join("usr/share/keyrings/debian-archive-keyring.gpg");
    let repositories = select(&Spec::suite("bookworm"), &entries, "amd64").unwrap();
    assert_eq!(repositories[0].keys, Keys::Listed { files: vec![keyring], fingerprints: Vec::new() });
}

#[test]
fn another_release_of_the_same_archive() {
    let (_root, entries) = machine(&[("sources.list.d/debian.sources", DEBIAN)]);
    assert_eq!(
        chosen("deb://trixie", &entries),
        [
            "http://mirror.test/debian trixie main",
            "http://mirror.test/debian? trixie-updates main",
            "http://mirror.test/debian-security? trixie-security main"
        ]
    );
}

#[test]
fn third_parties_only_when_asked() {
    let (_root, entries) = machine(&[
        (
            "sources.list",
            "deb http://mirror.test/ubuntu noble main restricted # x\ndeb-src http://mirror.test/ubuntu noble main\ndeb http://mirror.test/ubuntu noble universe\ndeb http://mirror.test/ubuntu noble-updates main\ndeb http://mirror.test/ubuntu noble-security main\n",
        ),
        (
            "sources.list.d/docker.list",
            "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://docker.test/linux/ubuntu noble stable\n",
        ),
        (
            "sources.list.d/node.list",
            "deb [signed-by=/etc/apt/keyrings/node.gpg] https://node.test/node_20.x nodistro main\n",
        ),
        ("sources.list.d/old.list.disabled", "deb http://gone.test x main\n"),
    ]);
    let expected = [
        "http://mirror.test/ubuntu noble main,restricted,universe",
        "http://mirror.test/ubuntu noble-updates main",
        "http://mirror.test/ubuntu noble-security main",
    ];
    assert_eq!(chosen("deb://noble", &entries), expected);
    let asked = chosen("deb://noble?suites=noble,nodistro", &entries);
    assert_eq!(
        asked[1..],
        ["https://docker.test/linux/ubuntu noble stable", "https://node.test/node_20.x nodistro main"]
    );
    assert_eq!(
        chosen("deb://noble?components=universe", &entries)[1],
        "http://mirror.test/ubuntu noble-updates universe"
    );
    let error = select(&Spec::parse("deb://x?suites=noble,nodisto").unwrap(), &entries, "amd64").unwrap_err();
    assert!(error.to_string().contains("did you mean nodistro?"), "{error}");
}

#[test]
fn a_mirror_needs_no_configuration() {
    assert_eq!(
        chosen("deb://bookworm?mirror=http://m.test/debian", &[]),
        [
            "http://m.test/debian bookworm main",
            "http://m.test/debian? bookworm-updates main",
            "http://m.test/debian? bookworm-security main",
            "http://m.test/debian-security? bookworm-security main"
        ]
    );
    assert_eq!(chosen("deb://sid-x?mirror=http://m.test", &[]), ["http://m.test sid-x main"]);
    assert_eq!(
        chosen("deb://a?mirror=http://m.test/@SNAPSHOTID@&snapshot=20260101&suites=a,b", &[]),
        ["http://m.test/20260101T000000Z a main", "http://m.test/20260101T000000Z b main"]
    );
}

#[test]
fn nothing_configured_is_a_clear_error() {
    let error = select(&Spec::suite("bookworm"), &[], "amd64").unwrap_err().to_string();
    assert!(error.contains("mirror="), "{error}");
}

#[test]
fn inline_keys_fingerprints_and_disabled_entries() {
    let text = "Enabled: no\nTypes: deb\nURIs: http://off.test\nSuites: x\nComponents: main\n\nTypes: deb deb-src\nURIs: http://a.test http://b.test\nSuites: x\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEabc\n -----END PGP PUBLIC KEY BLOCK-----\n\nTypes: deb\nURIs: file:/srv/repo\nSuites: y\nComponents: main\nSigned-By: abcdef0123! /k.gpg\n\nTypes: deb\nURIs: cdrom:[x]\nSuites: z\nComponents: main\n\nTypes: deb\nURIs: http://flat.test\nSuites: ./\n";
    let (root, entries) = machine(&[("sources.list.d/x.sources", text)]);
    let uris: Vec<&str> = entries.iter().map(|e| e.uri.as_str()).collect();
    assert_eq!(uris, ["http://a.test", "http://b.test", "file:///srv/repo"]);
    let armored = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEabc\n-----END PGP PUBLIC KEY BLOCK-----";
    assert_eq!(entries[0].keys, Keys::Inline(armored.into()));
    let listed = Keys::Listed { files: vec![root.path().join("k.gpg")], fingerprints: vec!["ABCDEF0123".into()] };
    assert_eq!(entries[2].keys, listed);
}

#[test]
fn broken_files_name_the_line() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/apt")).unwrap();
    std::fs::write(root.path().join("etc/apt/sources.list"), "\ndeb [arch=amd64 http://x y\n").unwrap();
    let error = load(root.path()).unwrap_err().to_string();
    assert!(error.contains("sources.list:2:"), "{error}");
}
