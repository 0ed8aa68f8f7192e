//! The cache between machines: each machine is a store of its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use support::*;

const APP: &str = "FROM base AS builder\nCOPY deps /deps\nRUN cat /deps > /installed\n\
                   FROM base AS app\nCOPY src /src\nCOPY --from=builder /installed /installed\nRUN cat /src/a /installed > /app\n\
                   RUN true\nRUN true\n";

fn app() -> Option<Sandbox> {
    let s = Sandbox::new(&format!("{BASE}{APP}"))?;
    s.file("deps", "express");
    s.file("src/a", "a");
    Some(s)
}

/// Another machine: nothing but the context is the same.
fn machine(s: &mut Sandbox, name: &str) {
    s.env("KILN_ROOT", s.path(name).to_str().unwrap());
}

fn unpacked_layers(s: &Sandbox, name: &str) -> usize {
    names(s.path(name).join("layers")).len()
}

fn id(s: &Sandbox, args: &[&str]) -> (Run, String) {
    let _ = std::fs::remove_file(s.path("iid"));
    let run = s.build(&[args, &["--iidfile", "iid"]].concat()).ok();
    (run, std::fs::read_to_string(s.path("iid")).unwrap_or_default())
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn blob_path(cache: &Path, digest: &serde_json::Value) -> PathBuf {
    cache.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
}

/// The manifest and the config of a cache in a directory.
fn parts(cache: &Path) -> (serde_json::Value, serde_json::Value, PathBuf) {
    let index = json(&cache.join("index.json"));
    let manifest = json(&blob_path(cache, &index["manifests"][0]["digest"]));
    let config = blob_path(cache, &manifest["config"]["digest"]);
    (manifest, json(&config), config)
}

#[test]
fn a_directory_carries_the_cache_and_only_manifests_are_read() {
    let Some(mut s) = app() else { return };
    let (_, first) = id(&s, &["--cache-to", "type=local,dest=cache,mode=max"]);
    machine(&mut s, "second");
    let run = s.build(&["--cache-from", "type=local,src=cache", "-o", "type=cacheonly"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    assert_eq!(unpacked_layers(&s, "second"), 0, "layers come when they are needed");
    // The same image, to the byte: times of layers travel.
    let (run, second) = id(&s, &[]);
    assert_eq!(run.executed(), [""; 0], "what was imported stays known: {}", run.stderr);
    assert_eq!(second, first);
}

#[test]
fn what_changed_is_run_on_the_layers_of_the_cache() {
    let Some(mut s) = app() else { return };
    s.build(&["--cache-to", "type=local,dest=cache,mode=max"]).ok();
    machine(&mut s, "second");
    s.file("src/a", "changed ");
    let out = ["-o", "type=local,dest=out", "--explain-cache"];
    let run = s.build(&[&["--cache-from", "type=local,src=cache"], &out[..]].concat()).ok();
    assert_eq!(
        (run.step("COPY deps"), run.step("RUN cat /deps"), run.step("RUN cat /src")),
        ("CACHED", "CACHED", "DONE")
    );
    assert_eq!(text(s.path("out/app")), "changed express");
    run.says(&["not cached: no imported cache has it"]);
}

#[test]
fn mode_min_has_the_layers_of_the_result_alone() {
    let Some(mut s) = app() else { return };
    s.build(&["--cache-to", "type=local,dest=min", "--cache-to", "type=local,dest=max,mode=max"]).ok();
    let steps = |dir: &str| -> Vec<String> {
        let (_, config, _) = parts(&s.path(dir));
        let records = config["records"].as_array().unwrap();
        records.iter().map(|r| r["kiln"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(steps("max").iter().any(|n| n.contains("RUN cat /deps")));
    assert!(!steps("min").iter().any(|n| n.contains("RUN cat /deps")), "{:?}", steps("min"));
    machine(&mut s, "second");
    let run = s.build(&["--cache-from", "type=local,src=min"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
}

#[test]
fn a_cache_that_is_not_good_is_a_warning_and_a_rebuild() {
    let Some(mut s) = app() else { return };
    s.build(&["--cache-to", "type=local,dest=cache,mode=max"]).ok();
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 7] = [
        ("nothing there", |c| std::fs::remove_dir_all(c).unwrap()),
        ("an index that is not JSON", |c| std::fs::write(c.join("index.json"), "{").unwrap()),
        ("a config that is not what its digest says", |c| std::fs::write(parts(c).2, "{}").unwrap()),
        ("layers that are gone", |c| for_layers(c, |p| std::fs::remove_file(p).unwrap())),
        ("layers with other bytes", |c| {
            for_layers(c, |p| {
                let mut bytes = std::fs::read(p).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0xff;
                std::fs::write(p, bytes).unwrap();
            });
        }),
        ("layers that end early", |c| for_layers(c, |p| std::fs::write(p, &std::fs::read(p).unwrap()[..20]).unwrap())),
        ("layers that do not end", |c| {
            for_layers(c, |p| {
                let mut bytes = std::fs::read(p).unwrap();
                bytes.resize(bytes.len() + 100_000, 0);
                std::fs::write(p, bytes).unwrap();
            });
        }),
    ];
    for (number, (what, spoil)) in damage.into_iter().enumerate() {
        let copy = s.path(format!("cache-{number}"));
        assert!(std::process::Command::new("cp").arg("-a").arg(s.path("cache")).arg(&copy).status().unwrap().success());
        spoil(&copy);
        machine(&mut s, &format!("store-{number}"));
        let from = format!("type=local,src=cache-{number}");
        let run = s.build(&["--cache-from", &from, "-o", "type=local,dest=out,mode=delete"]).ok();
        assert_eq!(text(s.path("out/app")), "aexpress", "{what}");
        assert!(run.stderr.contains("WARNING: "), "{what}: {}", run.stderr);
        assert!(!run.stderr.contains("ERROR"), "{what}: {}", run.stderr);
        // And it is right from then on.
        let run = s.build(&["--cache-from", &from, "-t", "app"]).ok();
        assert_eq!(run.executed(), [""; 0], "{what}: {}", run.stderr);
    }
}

fn for_layers(cache: &Path, change: impl Fn(&Path)) {
    let (manifest, _, _) = parts(cache);
    for layer in manifest["layers"].as_array().unwrap() {
        change(&blob_path(cache, &layer["digest"]));
    }
}

#[test]
fn hostile_configs_cost_nothing_and_break_nothing() {
    let Some(mut s) = app() else { return };
    s.build(&["--cache-to", "type=local,dest=cache,mode=max"]).ok();
    let (manifest, config, _) = parts(&s.path("cache"));
    let loops = {
        let mut c = config.clone();
        c["layers"].as_array_mut().unwrap().iter_mut().for_each(|l| l["parent"] = 0.into());
        c
    };
    let far = {
        let mut c = config.clone();
        c["records"].as_array_mut().unwrap().iter_mut().for_each(|r| r["kiln"]["layer"] = 99_999_999.into());
        c
    };
    let huge = {
        let mut c = config.clone();
        c["layers"].as_array_mut().unwrap().iter_mut().for_each(|l| l["annotations"]["size"] = u64::MAX.into());
        c
    };
    let buildkit = {
        let mut c = config.clone();
        c["records"].as_array_mut().unwrap().iter_mut().for_each(|r| _ = r.as_object_mut().unwrap().remove("kiln"));
        c
    };
    for (number, config) in
        [loops, far, huge, buildkit, serde_json::json!([1]), serde_json::json!({"records": 7})].iter().enumerate()
    {
        write_cache(&s.path("cache"), &manifest, config);
        machine(&mut s, &format!("store-{number}"));
        let run = s.build(&["--cache-from", "type=local,src=cache", "-o", "type=local,dest=out,mode=delete"]).ok();
        assert_eq!(text(s.path("out/app")), "aexpress", "{number}");
        assert_eq!(run.stderr.contains("it is BuildKit's"), number == 3, "{}", run.stderr);
    }
}

/// Replaces the cache of a directory by one with another config.
fn write_cache(cache: &Path, manifest: &serde_json::Value, config: &serde_json::Value) {
    let put = |value: &serde_json::Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = kiln_oci::Digest::of(&bytes).to_string();
        std::fs::write(blob_path(cache, &digest.clone().into()), &bytes).unwrap();
        (digest, bytes.len())
    };
    let mut manifest = manifest.clone();
    let (digest, size) = put(config);
    (manifest["config"]["digest"], manifest["config"]["size"]) = (digest.into(), size.into());
    let (digest, size) = put(&manifest);
    let mut index = json(&cache.join("index.json"));
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = (digest.into(), size.into());
    std::fs::write(cache.join("index.json"), index.to_string()).unwrap();
}

#[test]
fn a_layer_with_a_secret_is_not_exported() {
    let Some(mut s) = Sandbox::new(&format!(
        "{BASE}FROM base AS builder\nRUN --mount=type=secret,id=key cp /run/secrets/key /key\n\
         FROM base\nCOPY --from=builder /bin/busybox /other\n"
    )) else {
        return;
    };
    std::fs::write(s.path("key"), "correct-horse-battery").unwrap();
    let args = ["--secret", "id=key,src=key", "--cache-to", "type=local,dest=cache,mode=max,compression=uncompressed"];
    s.build(&args).ok().says(&["WARNING", "secret \"key\"", "not exported to the cache"]);
    let found =
        std::process::Command::new("grep").args(["-rq", "correct-horse"]).arg(s.path("cache")).status().unwrap();
    assert!(!found.success(), "the secret is in the cache");
    machine(&mut s, "second");
    let run =
        s.build(&["--secret", "id=key,src=key", "--cache-from", "type=local,src=cache", "-o", "type=cacheonly"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
}

#[test]
fn tags_and_old_blobs_of_a_directory() {
    let Some(mut s) = app() else { return };
    s.build(&[
        "--cache-to",
        "type=local,dest=cache,tag=one",
        "--cache-to",
        "type=local,dest=cache,tag=two,image-manifest=false",
    ])
    .ok();
    let index = json(&s.path("cache/index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    // What nothing leads to any more goes away, if no other export may just have put it there.
    let old = s.path("cache/blobs/sha256").join("0".repeat(64));
    std::fs::write(&old, "old").unwrap();
    std::fs::File::open(&old).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    s.build(&["--cache-to", "type=local,dest=cache,tag=two,image-manifest=false"]).ok();
    assert!(!old.exists());
    for (number, from) in ["type=local,src=cache,tag=one", "type=local,src=cache,tag=two"].into_iter().enumerate() {
        machine(&mut s, &format!("fresh-{number}"));
        assert_eq!(s.build(&["--cache-from", from]).ok().executed(), [""; 0], "{from}");
    }
    machine(&mut s, "other");
    s.build(&["--cache-from", "type=local,src=cache,tag=three"]).ok().says(&["no cache with the tag \"three\""]);
}

#[test]
fn the_bad_is_told_before_the_build() {
    let s = Sandbox::bare("FROM scratch\n");
    s.build(&["--cache-to", "type=local,dest=x,mode=most"]).fails(2).says(&["mode=most is not min or max"]);
    s.build(&["--cache-to", "type=local"]).fails(2).says(&["dest= is missing"]);
    s.build(&["--cache-from", "src=x"]).fails(2).says(&["type= is missing"]);
}

#[test]
fn caches_that_are_exported_at_once_to_one_directory_are_all_there() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /\n");
    s.build(&["-o", "type=cacheonly"]).ok();
    let export = |n| format!("type=local,dest=cache,tag=t{n}");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let s = &s;
            scope.spawn(move || s.build(&["-o", "type=cacheonly", "--cache-to", &export(n)]).ok());
        }
    });
    assert_eq!(json(&s.path("cache/index.json"))["manifests"].as_array().unwrap().len(), 8);
}
