//! What goes up comes down the same, and nothing goes twice.

use super::{World, hello};

#[test]
fn a_pushed_image_is_pulled_as_docker_would_say_it() {
    let Some(world) = World::new() else { return };
    let name = world.name("team/app:1");
    world.sandbox.build(&["-t", &name]).ok();
    let pushed = world.sandbox.kiln(&["push", &name]).ok();
    let line = pushed.stdout.trim().to_owned();
    let digest = line.split(' ').nth(2).expect("a digest").to_owned();
    assert!(line.starts_with("1: digest: sha256:") && line.contains(" size: "), "{line}");
    pushed.says(&["The push refers to repository", ": Pushed"]);

    let pulled = world.elsewhere(&["pull", &name]).ok();
    let lines: Vec<&str> = pulled.stdout.lines().collect();
    let status = format!("Status: Downloaded newer image for {name}");
    assert_eq!(lines, [format!("Digest: {digest}"), status, name.clone()]);
    pulled.says(&["1: Pulling from team/app", ": Pull complete"]);
    assert_eq!(world.text_of(&name), hello());

    let again = world.elsewhere(&["pull", &name]).ok();
    assert!(again.stdout.contains("Status: Image is up to date for"), "{}", again.stdout);
    again.says(&[": Already exists"]).hides("Pull complete");
    let quiet = world.elsewhere(&["pull", "-q", &name]).ok();
    assert_eq!((quiet.stdout.trim(), quiet.stderr.as_str()), (name.as_str(), ""));
    let by_digest = format!("{}@{digest}", world.name("team/app"));
    assert!(world.elsewhere(&["pull", &by_digest]).ok().stdout.contains(&digest));
}

#[test]
fn an_unchanged_image_is_not_sent_again() {
    let Some(world) = World::new() else { return };
    let name = world.through("team/app:1");
    world.sandbox.build(&["-t", &name]).ok();
    world.sandbox.kiln(&["push", &name]).ok();
    let (uploads, all) = (world.requests("POST", "/blobs/uploads/"), world.proxy.lines().len());
    assert_eq!(uploads, 3, "two layers and a config");
    world.sandbox.kiln(&["push", &name]).ok().says(&["Layer already exists"]);
    assert_eq!(world.requests("POST", "/blobs/uploads/"), uploads);
    assert!(world.proxy.lines().len() <= all + 6, "{:#?}", world.proxy.lines());

    world.sandbox.file("text", "changed");
    world.sandbox.build(&["-t", &name]).ok();
    world.sandbox.kiln(&["push", "-q", &name]).ok();
    assert_eq!(world.requests("POST", "/blobs/uploads/"), uploads + 2, "the new layer and the config");
}

#[test]
fn a_base_is_mounted_from_where_it_was_pulled() {
    let Some(world) = World::new() else { return };
    world.push("team/base:1");
    let (base, name) = (world.through("team/base:1"), world.through("apps/app:1"));
    world.sandbox.file("App", format!("FROM {base}\nCOPY text /more\n"));
    let args = ["--root", "other-store", "build", "--progress=plain", "-f", "ctx/App", "-t", &name, "--push", "ctx"];
    world.sandbox.kiln(&args).ok().says(&["mounted from team/base"]);
    assert_eq!(world.requests("POST", "mount=sha256"), 2);
    assert_eq!(world.requests("PUT", "/blobs/uploads/"), 2, "the new layer and the config");
}

#[test]
fn an_image_that_was_pushed_once_is_mounted_into_the_next_repository() {
    let Some(world) = World::new() else { return };
    let (first, second) = (world.through("team/one:1"), world.through("team/two:1"));
    world.sandbox.build(&["-t", &first, "-t", &second]).ok();
    world.sandbox.kiln(&["push", &first]).ok();
    world.sandbox.kiln(&["push", &second]).ok().says(&["Mounted from team/one"]);
    assert_eq!(world.requests("PUT", "/blobs/uploads/"), 3, "all of them for the first");
}

#[test]
fn an_image_of_two_platforms_travels_as_one() {
    let Some(world) = World::new() else { return };
    let name = world.name("multi:1");
    world.sandbox.build(&["--platform=linux/amd64,linux/arm64", "-t", &name, "--push"]).ok();
    let json = world.sandbox.kiln(&["manifest", "inspect", &name]).ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON, as docker's");
    assert_eq!(json["manifests"][1]["platform"]["architecture"], "arm64");
    let shown = world.sandbox.kiln(&["manifest", "inspect", "--summary", &name]).ok().stdout;
    assert!(shown.contains("Platform:  linux/amd64") && shown.contains("Platform:  linux/arm64"), "{shown}");
    let digest = shown.lines().find_map(|l| l.strip_prefix("Digest:")).expect("a digest").trim().to_owned();

    // Somebody who has only one of the two passes both on.
    world.elsewhere(&["pull", "-q", &name]).ok();
    let copy = world.name("copy:1");
    world.elsewhere(&["tag", &name, &copy]).ok();
    let pushed = world.elsewhere(&["push", &copy]).ok();
    assert!(pushed.stdout.contains(&digest), "{}", pushed.stdout);
    world.elsewhere(&["pull", "-q", "--platform=linux/arm64", &copy]).ok();
    let missing = world.elsewhere(&["pull", "--platform=linux/s390x", &copy]).fails(1);
    missing.says(&["has no image for linux/s390x", "linux/amd64"]);
}

#[test]
fn all_tags_go_up_and_come_down() {
    let Some(world) = World::new() else { return };
    let (one, two) = (world.name("app:one"), world.name("app:two"));
    world.sandbox.build(&["-t", &one, "-t", &two]).ok();
    let pushed = world.sandbox.kiln(&["push", "--all-tags", &world.name("app")]).ok();
    assert!(pushed.stdout.contains("one: digest:") && pushed.stdout.contains("two: digest:"), "{}", pushed.stdout);
    let pulled = world.elsewhere(&["pull", "-a", "-q", &world.name("app")]).ok();
    assert_eq!(pulled.stdout.lines().collect::<Vec<_>>(), [one, two]);
    // Other tools find them all.
    let index = super::support::text(world.sandbox.path("other-store/content/index.json"));
    assert!(index.contains(&world.name("app:one")) && index.contains(&world.name("app:two")), "{index}");
    world.elsewhere(&["pull", "-a", &world.name("app:one")]).fails(2);
    world.sandbox.kiln(&["push", &world.name("nothing:here")]).fails(1).says(&["there is no image", "kiln images"]);
}

#[test]
fn a_result_is_pushed_by_digest_without_a_name() {
    let Some(world) = World::new() else { return };
    let name = world.name("team/app");
    let output = format!("type=image,name={name},push-by-digest=true,name-canonical=true,push=true");
    world.sandbox.build(&["-o", &output, "--metadata-file", "meta.json"]).ok();
    let meta: serde_json::Value =
        serde_json::from_str(&super::support::text(world.sandbox.path("meta.json"))).expect("JSON");
    let digest = meta["containerimage.digest"].as_str().expect("a digest");
    assert!(world.sandbox.kiln(&["images", "--digests"]).ok().stdout.contains(digest));
    world.elsewhere(&["pull", "-q", &format!("{name}@{digest}")]).ok();
    world.elsewhere(&["pull", "-q", &name]).fails(1).says(&["not found"]);
    let output = format!("type=registry,name={name}:tagged,push-by-digest=true");
    world.sandbox.build(&["-o", &output]).fails(2).says(&["push-by-digest", "tag"]);
}

#[test]
fn a_newer_base_is_seen_when_asked_for() {
    let Some(world) = World::new() else { return };
    let base = world.push("base:1");
    let text = || world.text_of(&base);
    assert_eq!(text(), hello());
    world.sandbox.file("text", "newer");
    world.push("base:1");
    assert_eq!(text(), hello(), "a tag is remembered");
    world.sandbox.file("Again", format!("FROM {base}\n"));
    world.elsewhere(&["build", "--pull", "-q", "-f", "ctx/Again", "-o", "type=local,dest=new", "ctx"]).ok();
    assert_eq!(super::support::text(world.sandbox.path("new/dir/text")), "newer");
}

#[test]
fn referrers_are_listed() {
    let Some(world) = World::new() else { return };
    let name = world.push("app:1");
    let empty = world.sandbox.kiln(&["referrers", &name]).ok();
    assert_eq!(empty.stdout.lines().count(), 1, "{}", empty.stdout);
    let client = kiln_registry::Client::new(kiln_registry::ClientOptions::default());
    let image: kiln_oci::Reference = name.parse().expect("a name");
    let subject = client.resolve(&image).expect("it is there").descriptor;
    let config = kiln_oci::Descriptor::of("application/vnd.example.sbom", b"{}");
    client.push_blob(&image, &config, &b"{}".to_vec(), &[]).expect("pushed");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kiln_oci::media::OCI_MANIFEST, "artifactType": "application/vnd.example.sbom",
        "config": config, "layers": [config], "subject": subject,
    });
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    let digest = kiln_oci::Descriptor::of(kiln_oci::media::OCI_MANIFEST, &bytes).digest;
    client.push_manifest(&image.with_digest(digest), kiln_oci::media::OCI_MANIFEST, &bytes).expect("pushed");
    let listed = world.sandbox.kiln(&["referrers", &name]).ok();
    assert!(
        listed.stdout.contains(&digest.to_string()) && listed.stdout.contains("vnd.example.sbom"),
        "{}",
        listed.stdout
    );
    let others = world.sandbox.kiln(&["referrers", "--artifact-type", "application/other", &name]).ok();
    assert_eq!(others.stdout.lines().count(), 1);
}
