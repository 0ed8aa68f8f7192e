//! Resolution against a synthetic archive: what is found, and what bad archives give.
#![allow(clippy::unwrap_used)]
mod common;

use common::keys::{Flaws, Key};
use common::repo::{Suite, pkg, suite};
use common::server::Fault;
use common::{NOW, World, names};
use kiln_deb::{Error, Reason, Refresh, Spec};

fn simple() -> Suite {
    suite(
        "bookworm",
        vec![
            pkg("app", "1.0").depends("libapp (>= 1), data | other-data"),
            pkg("libapp", "1.2").field("Source", "app"),
            pkg("libapp", "0.9"),
            pkg("data", "2:1-1").arch("all"),
        ],
    )
}

#[test]
fn a_closure_with_reasons() {
    let world = World::with(&[simple()]);
    let resolution = world.resolve("bookworm?packages=app").unwrap();
    assert_eq!(names(&resolution), ["app", "data", "libapp"]);
    assert_eq!(resolution.package("libapp").unwrap().version, "1.2");
    assert_eq!(resolution.why("libapp").unwrap(), ["app 1.0 is asked for", "app 1.0 depends on libapp (>= 1)"]);
    assert_eq!(resolution.package("app").unwrap().reason, Reason::Requested);
    assert_eq!(resolution.why("nothere"), None);
    assert_eq!(resolution.nearest("lipapp"), ["libapp"]);
    assert_eq!(resolution.distribution.codename, "bookworm");
    assert_eq!(resolution.date, 1_790_812_800);
    assert!(resolution.download_size() > 500);
}

#[test]
fn updates_and_security_are_used_where_they_are() {
    let world = World::with(&[simple(), suite("bookworm-updates", vec![pkg("libapp", "1.3")])]);
    let mut security = suite("bookworm-security", vec![pkg("data", "2:1-1+deb12u1").arch("all")]);
    security.dir = "debian-security".into();
    security.publish(&world.server, &world.key);
    let resolution = world.resolve("bookworm?packages=app").unwrap();
    assert_eq!(resolution.package("libapp").unwrap().version, "1.3");
    let data = resolution.package("data").unwrap();
    assert_eq!(
        (data.version.as_str(), resolution.suites[data.suite].name.as_str()),
        ("2:1-1+deb12u1", "bookworm-security")
    );
    let (dest, _) = world.build(&resolution).unwrap();
    assert!(dest.join("var/lib/dpkg/status.d/data").exists());
    // An exact version is taken from where it is.
    let old = world.resolve("bookworm?packages=app,libapp=1.2").unwrap();
    assert_eq!(old.package("libapp").unwrap().version, "1.2");
}

#[test]
fn unknown_names_suggest_near_ones() {
    let world = World::with(&[simple()]);
    std::fs::create_dir_all(world.path("machine/etc/apt")).unwrap();
    std::fs::write(world.path("machine/etc/apt/sources.list"), "deb http://127.0.0.1:1/x bookworm main\n").unwrap();
    assert!(world.fails("bookwrom?packages=app").contains("has no suite bookwrom (did you mean bookworm?)"));
    let text = world.fails("bookworm?packages=lipapp,app,nowhere");
    assert!(
        text.contains("no package lipapp in bookworm (did you mean libapp?)\nno package nowhere in bookworm"),
        "{text}"
    );
    assert!(world.fails("bookworm?packages=app&components=mian").contains("no component mian: it has main"));
    assert!(world.fails("bookworm?packages=app=7").contains("no version 7 in bookworm: there is 1.0"));
    let error = world.fails("bookworm?packages=app&arch=sparc");
    assert!(error.contains("no packages for architecture sparc: it has amd64, arm64"), "{error}");
}

#[test]
fn chains_of_reasons() {
    let world = World::with(&[suite(
        "bookworm",
        vec![
            pkg("app", "1").depends("mid"),
            pkg("mid", "1").depends("gone (>= 3)"),
            pkg("gone", "2"),
            pkg("left", "1").depends("core"),
            pkg("right", "1").field("Conflicts", "core"),
            pkg("core", "1"),
        ],
    )]);
    let error = world.fails("bookworm?packages=app");
    assert!(error.contains("app is asked for\n    app 1 depends on mid\n      mid 1 depends on gone (>= 3)\n        gone is there only in version 2"), "{error}");
    let error = world.fails("bookworm?packages=left,right");
    assert!(error.contains("left 1 depends on core") && error.contains("right conflicts with core"), "{error}");
}

#[test]
fn detached_signatures_and_plain_indexes() {
    let mut old = simple();
    (old.inline, old.by_hash, old.suffixes) = (false, false, vec![]);
    let world = World::with(&[old]);
    assert_eq!(names(&world.resolve("bookworm?packages=app").unwrap()).len(), 3);
    world.server.edit("dists/bookworm/Release", |release| release.extend(b"X: y\n"));
    assert!(world.fails("bookworm?packages=app").contains("did not sign this text"));
    let gpg = world.server.path("Release.gpg");
    world.server.state.lock().unwrap().files.remove(&gpg);
    assert!(world.fails("bookworm?packages=app").contains("neither InRelease nor Release.gpg"));
}

/// Publishes with a flawed key that is trusted all the same.
fn flawed(flaws: Flaws) -> String {
    let world = World::new();
    let key = Key::with(flaws);
    world.trust(&key.binary());
    simple().publish(&world.server, &key);
    let error = world.fails("bookworm?packages=app");
    assert!(!world.path("cache/index").exists(), "an index was used: {error}");
    error
}

#[test]
fn signatures_that_do_not_count() {
    let day = 86_400;
    let contains = |flaws: Flaws, text: &str| {
        let error = flawed(flaws);
        assert!(error.contains(text), "{error}");
    };
    contains(Flaws { key_lifetime: Some(30 * day), ..Flaws::default() }, "expired on");
    contains(Flaws { signature_lifetime: Some(60), ..Flaws::default() }, "expired on 2026-11-01");
    contains(Flaws { signed_at: Some(NOW as u32 + 10 * day), ..Flaws::default() }, "in the future");
    contains(Flaws { signed_at: Some(NOW as u32 - 900 * day), ..Flaws::default() }, "younger than the signature");
    contains(Flaws { sha1: true, ..Flaws::default() }, "broken or unknown hash");
    contains(Flaws { revoked: true, ..Flaws::default() }, "is revoked");
    contains(Flaws { stolen_subkey: true, ..Flaws::default() }, "its primary key did not sign");
    contains(Flaws { no_back_signature: true, ..Flaws::default() }, "without the signature back");
}

#[test]
fn subkeys_and_several_signatures() {
    let world = World::new();
    let key = Key::with(Flaws { subkey: true, ..Flaws::default() });
    let stranger = Key::good();
    world.trust(key.armored().as_bytes());
    simple().publish_with(&world.server, |text| {
        vec![("InRelease".into(), Key::sign_inline_many(&[&stranger, &key], text).into_bytes())]
    });
    assert_eq!(names(&world.resolve("bookworm?packages=app").unwrap()).len(), 3);
}

#[test]
fn wrong_keys_tampering_and_extra_text() {
    let world = World::with(&[simple()]);
    let path = world.server.path("InRelease");
    let good = world.server.state.lock().unwrap().files[&path].clone();
    let set = |bytes: Vec<u8>| world.server.edit("InRelease", |f| *f = bytes);
    let text = String::from_utf8(good.clone()).unwrap();
    set(text.replace("Origin: Debian", "Origin: Debiam").into_bytes());
    let error = world.fails("bookworm?packages=app");
    assert!(error.contains("did not sign this text: it was changed") && !error.contains("left =="), "{error}");
    set(format!("Origin: Evil\n{text}").into_bytes());
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Signature { .. })));
    set(format!("{text}\nOrigin: Evil\n").into_bytes());
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Signature { .. })));
    set(text.split("-----BEGIN PGP SIGNATURE").next().unwrap().into());
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Signature { .. })));
    set(b"<html>captive portal</html>".to_vec());
    assert!(world.fails("bookworm?packages=app").contains("begins with \"<html>captive portal"));
    set(good);
    world.trust(&Key::good().binary());
    assert!(world.fails("bookworm?packages=app").contains("is not in the keyring"));
    world.trust(b"garbage");
    assert!(world.fails("bookworm?packages=app").contains("keys.gpg: "));
    world.trust(b"");
    assert!(world.fails("bookworm?packages=app").contains("keys.gpg: it holds no OpenPGP public key"));
}

#[test]
fn no_keys_at_all() {
    let world = World::with(&[simple()]);
    let spec = Spec::parse(&format!("deb://bookworm?packages=app&mirror={}/debian", world.server.url)).unwrap();
    let error = kiln_deb::resolve(&spec, &world.context()).unwrap_err().to_string();
    assert!(error.contains("no OpenPGP keys") && error.contains("keyring="), "{error}");
    assert!(kiln_deb::resolve(&Spec::suite("bookworm"), &world.context()).unwrap_err().to_string().contains("mirror="));
}

#[test]
fn the_machines_own_configuration() {
    let world = World::with(&[simple(), suite("bookworm-updates", vec![])]);
    let keyring = world.path("machine/usr/share/keyrings/debian-archive-keyring.gpg");
    std::fs::create_dir_all(keyring.parent().unwrap()).unwrap();
    std::fs::write(&keyring, world.key.binary()).unwrap();
    let sources = world.path("machine/etc/apt/sources.list.d/debian.sources");
    std::fs::create_dir_all(sources.parent().unwrap()).unwrap();
    let text =
        format!("Types: deb\nURIs: {}/debian\nSuites: bookworm bookworm-updates\nComponents: main\n", world.server.url);
    let resolve = |signed_by: &str| {
        std::fs::write(&sources, format!("{text}{signed_by}")).unwrap();
        kiln_deb::resolve(&Spec::parse("deb://bookworm?packages=app").unwrap(), &world.context())
    };
    assert_eq!(names(&resolve("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n").unwrap()).len(), 3);
    assert_eq!(names(&resolve("").unwrap()).len(), 3, "the machine's keyrings");
    assert!(
        resolve("Signed-By: 0123456789ABCDEF0123456789ABCDEF01234567\n")
            .unwrap_err()
            .to_string()
            .contains("fingerprints")
    );
    std::fs::remove_file(&keyring).unwrap();
    let inline: String =
        world.key.armored().lines().map(|l| if l.is_empty() { " .\n".into() } else { format!(" {l}\n") }).collect();
    assert_eq!(names(&resolve(&format!("Signed-By:\n{inline}")).unwrap()).len(), 3);
}

#[test]
fn old_and_future_indexes() {
    let mut stale = simple();
    stale.head += "Valid-Until: Mon, 05 Oct 2026 00:00:00 UTC\n";
    let world = World::with(&[stale]);
    assert!(world.fails("bookworm?packages=app").contains("expired on 2026-10-05"));
    // A machine that is told not to check does not.
    std::fs::create_dir_all(world.path("machine/etc/apt")).unwrap();
    std::fs::write(world.path("machine/etc/apt/apt.conf"), "Acquire::Check-Valid-Until \"false\";\n").unwrap();
    assert!(world.resolve("bookworm?packages=app").is_ok());
    let mut future = simple();
    future.head = "Date: Fri, 01 Jan 2027 00:00:00 UTC\n".into();
    let world = World::with(&[future]);
    assert!(world.fails("bookworm?packages=app").contains("in the future"));
}

#[test]
fn a_mirror_that_goes_back_in_time_is_not_followed() {
    let world = World::with(&[simple()]);
    let new = world.resolve("bookworm?packages=app").unwrap();
    let mut older = suite("bookworm", vec![pkg("app", "0.1")]);
    older.head = older.head.replace("01 Oct", "01 Sep");
    older.publish(&world.server, &world.key);
    assert_eq!(world.resolve("bookworm?packages=app").unwrap().digest, new.digest);
}

#[test]
fn an_index_that_is_not_the_signed_one() {
    let world = World::with(&[simple()]);
    let packages = world.server.path("Packages.gz");
    let by_hash: Vec<String> =
        world.server.state.lock().unwrap().files.keys().filter(|p| p.contains("by-hash")).cloned().collect();
    // Not by its hash, but by its name, and then another one.
    for path in &by_hash {
        world.server.state.lock().unwrap().files.remove(path);
    }
    world.server.edit("Packages.gz", |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert!(world.fails("bookworm?packages=app").contains("but"), "hash");
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Hash { .. })));
    world.server.edit("Packages.gz", |bytes| bytes.truncate(bytes.len() - 1));
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Size { more: false, .. })));
    world.server.set_fault(&packages, Fault::Endless);
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Size { more: true, .. })));
    world.server.clear_faults();
    world.server.state.lock().unwrap().files.remove(&packages);
    assert_eq!(names(&world.resolve("bookworm?packages=app").unwrap()).len(), 3, "the other spelling is there");
    assert_eq!(world.debris(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_rebuild_does_not_fetch_indexes_again() {
    let world = World::with(&[simple()]);
    let first = world.resolve("bookworm?packages=app").unwrap();
    world.server.take_log();
    let second = world.resolve("bookworm?packages=app").unwrap();
    assert_eq!(first.digest, second.digest);
    let log = world.server.take_log();
    assert!(log.contains(&"304 /debian/dists/bookworm/InRelease".to_owned()), "{log:?}");
    assert!(!log.iter().any(|l| l.starts_with("GET")), "{log:?}");
    let spec = world.spec("bookworm?packages=app&suites=bookworm");
    let mut context = world.context();
    for refresh in [Refresh::After(3600), Refresh::Offline] {
        context.refresh = refresh;
        kiln_deb::resolve(&spec, &context).unwrap();
        assert_eq!(world.server.take_log(), Vec::<String>::new());
    }
    context.refresh = Refresh::After(3600);
    context.now += 4000;
    kiln_deb::resolve(&spec, &context).unwrap();
    assert_eq!(world.server.take_log(), ["304 /debian/dists/bookworm/InRelease"]);
    // Another package of the same index, while the mirror is away: the index in the cache is good for it.
    world.server.set_fault("/debian/dists/bookworm/InRelease", Fault::Status(503));
    world.server.edit("InRelease", |bytes| bytes.push(b'\n'));
    context.now += 4000;
    let other = world.spec("bookworm?packages=libapp&suites=bookworm");
    assert_eq!(names(&kiln_deb::resolve(&other, &context).unwrap()), ["libapp"]);
}

#[test]
fn a_damaged_cache_is_made_again() {
    let world = World::with(&[simple()]);
    world.resolve("bookworm?packages=app").unwrap();
    for dir in ["index", "release", "resolution"] {
        for entry in std::fs::read_dir(world.path("cache").join(dir)).unwrap().flatten() {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes.truncate(middle);
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
    assert_eq!(names(&world.resolve("bookworm?packages=app").unwrap()).len(), 3);
}

#[test]
fn another_key_means_another_verification() {
    let world = World::with(&[simple()]);
    world.resolve("bookworm?packages=app").unwrap();
    world.trust(&Key::good().binary());
    let mut context = world.context();
    context.refresh = Refresh::After(3600);
    let error = kiln_deb::resolve(&world.spec("bookworm?packages=app&suites=bookworm"), &context).unwrap_err();
    assert!(matches!(error, Error::Signature { .. }), "{error}");
}

#[test]
fn a_mirror_that_is_not_there() {
    let world = World::with(&[simple()]);
    let spec = Spec::parse(&format!(
        "deb://bookworm?packages=app&mirror=http://127.0.0.1:1/&keyring={}",
        world.path("keys.gpg").display()
    ))
    .unwrap();
    let error = kiln_deb::resolve(&spec, &world.context()).unwrap_err();
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("5 tries")), "{error}");
    world.server.set_fault("/debian/dists/bookworm/InRelease", Fault::Status(403));
    assert!(matches!(world.resolve("bookworm?packages=app"), Err(Error::Http { status: 403, .. })));
    let mut context = world.context();
    context.refresh = Refresh::Offline;
    assert!(matches!(kiln_deb::resolve(&world.spec("bookworm?packages=app"), &context), Err(Error::Offline(_))));
}

#[test]
fn proxies_are_asked_for_whole_addresses() {
    let world = World::with(&[simple()]);
    let apt = world.path("machine/etc/apt");
    std::fs::create_dir_all(&apt).unwrap();
    let spec = world.spec("bookworm?packages=app&suites=bookworm");
    let at = |spec: &Spec, host: &str| Spec { mirror: Some(format!("http://{host}/debian")), ..spec.clone() };
    let address = world.server.url.strip_prefix("http://").unwrap();
    let (configured, environment) = (format!("http://me:p%40ss@{address}"), world.server.url.clone());
    let resolve = |spec: &Spec, from_environment: &kiln_deb::Proxies<'_>| {
        let mut context = world.context();
        context.proxy = None;
        context.environment_proxy = Some(from_environment);
        let resolution = kiln_deb::resolve(spec, &context).unwrap();
        kiln_deb::fetch(&resolution, &context).unwrap();
        std::mem::take(&mut world.server.state.lock().unwrap().proxied)
    };
    // apt's configuration counts before the environment. Names are the proxy's business.
    std::fs::write(apt.join("apt.conf"), format!("Acquire::http::Proxy \"{configured}\";\n")).unwrap();
    let asked = resolve(&at(&spec, "one.invalid"), &|_| panic!("not asked"));
    assert!(asked.len() > 3, "{asked:?}");
    assert!(asked.iter().all(|a| *a == ("one.invalid".into(), Some("Basic bWU6cEBzcw==".into()))), "{asked:?}");
    std::fs::remove_file(apt.join("apt.conf")).unwrap();
    let asked = resolve(&at(&spec, "two.invalid:8080"), &|_| Some(environment.clone()));
    assert!(!asked.is_empty() && asked.iter().all(|a| *a == ("two.invalid:8080".into(), None)), "{asked:?}");
    assert!(resolve(&spec, &|_| None).is_empty());
}

#[test]
fn passwords_in_addresses_are_not_shown() {
    let world = World::new();
    let url = world.server.url.replace("http://", "http://user:hunter2@");
    let spec = Spec::parse(&format!(
        "deb://nosuch?packages=a&mirror={url}/debian&keyring={}",
        world.path("keys.gpg").display()
    ))
    .unwrap();
    let error = kiln_deb::resolve(&spec, &world.context()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn hostile_indexes() {
    // Paths that lead out of the archive are in the unit tests of the index.
    for (field, value) in [("Version", "1/../2"), ("Package", "../x")] {
        let mut hostile = simple();
        hostile.components.get_mut("main").unwrap().push(pkg("zz", "1").field(field, value));
        let world = World::with(&[hostile]);
        let error = world.fails("bookworm?packages=app");
        assert!(error.contains("not a name and version"), "{error}");
    }
}

#[test]
fn snapshots() {
    let mut now = simple();
    let world = World::new();
    now.head += &format!("Snapshots: {}/archive/@SNAPSHOTID@/\n", world.server.url);
    now.publish(&world.server, &world.key);
    let mut past = suite("bookworm", vec![pkg("app", "0.5")]);
    past.dir = "archive/20260901T000000Z".into();
    past.head = past.head.replace("01 Oct", "30 Aug") + "Valid-Until: Sat, 05 Sep 2026 00:00:00 UTC\n";
    past.publish(&world.server, &world.key);
    let resolution = world.resolve("bookworm?packages=app&suites=bookworm&snapshot=20260901").unwrap();
    assert_eq!(resolution.package("app").unwrap().version, "0.5");
    let by_mirror = format!(
        "deb://bookworm?packages=app&suites=bookworm&snapshot=20260901&mirror={}/archive/@SNAPSHOTID@&keyring={}",
        world.server.url,
        world.path("keys.gpg").display()
    );
    let resolution = kiln_deb::resolve(&Spec::parse(&by_mirror).unwrap(), &world.context()).unwrap();
    assert_eq!(resolution.package("app").unwrap().version, "0.5");
    let plain = World::with(&[simple()]);
    assert!(plain.fails("bookworm?packages=app&snapshot=20260901").contains("@SNAPSHOTID@"));
}

#[test]
fn many_at_once_share_the_cache() {
    let world = World::with(&[simple()]);
    let digests: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| world.resolve("bookworm?packages=app").unwrap().digest)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(digests.windows(2).all(|w| w[0] == w[1]));
    assert_eq!(world.debris(), Vec::<std::path::PathBuf>::new());
}
