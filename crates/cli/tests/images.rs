//! Images of the store: lists, history, inspect, names, removal. What a docker user types, and what comes out.

mod support;

use serde_json::Value;
use support::Sandbox;

const SMALL: &str =
    "FROM scratch\nLABEL stage=test\nENV A=b C=\"d e\"\nCOPY data /data\nENTRYPOINT [\"/data\"]\nCMD [\"x\"]\n";

/// Two images: `app` with another name, and `other`, which has one layer more.
fn two_images() -> Sandbox {
    let sandbox = Sandbox::bare(SMALL);
    sandbox.file("data", vec![b'x'; 5000]);
    sandbox.build(&["-t", "app", "-t", "team/app:1.2"]).ok();
    sandbox.file("more", "more");
    sandbox.file("Dockerfile", format!("{SMALL}COPY more /more\nLABEL stage=late\n"));
    sandbox.build(&["-t", "other"]).ok();
    sandbox
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn the_list_has_dockers_columns_filters_and_formats() {
    let sandbox = two_images();
    let list = sandbox.kiln(&["images"]).ok().stdout;
    let head: Vec<&str> = lines(&list)[0].split_whitespace().collect();
    assert_eq!(head, ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert_eq!(lines(&list).len(), 4, "{list}");
    let names = |args: &[&str]| {
        let all: Vec<&str> = ["images", "--format", "{{.Repository}}:{{.Tag}}"].iter().chain(args).copied().collect();
        let mut found: Vec<String> = sandbox.kiln(&all).ok().stdout.lines().map(str::to_owned).collect();
        found.sort();
        found
    };
    assert_eq!(names(&["team/app"]), ["team/app:1.2"]);
    assert_eq!(names(&["*/*:1.*"]), ["team/app:1.2"]);
    assert_eq!(names(&["--filter", "label=stage=late"]), ["other:latest"]);
    assert_eq!(names(&["-f", "reference=app", "-f", "label=stage"]), ["app:latest"]);
    assert_eq!(names(&["--filter", "until=24h"]), [""; 0]);
    assert_eq!(names(&["--filter", "dangling=true"]), [""; 0]);
    let json = sandbox.kiln(&["image", "ls", "--format", "json", "other"]).ok().stdout;
    let row: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(row["Repository"], "other");
    let table = sandbox.kiln(&["images", "--format", "table {{.Tag}}\\t{{upper .Repository}}", "other"]).ok().stdout;
    assert_eq!(lines(&table), ["TAG       REPOSITORY", "latest    OTHER"]);
    let ids = sandbox.kiln(&["images", "-q"]).ok().stdout;
    assert_eq!(lines(&ids).len(), 2, "an image with two names has one ID: {ids}");
    let tree = sandbox.kiln(&["images", "--tree", "team/app"]).ok().stdout;
    assert!(tree.contains("└─ linux/"), "{tree}");
    sandbox.kiln(&["images", "--filter", "colour=red"]).fails(2).says(&["dangling, reference, label"]);
    let raw = sandbox.kiln(&["images", "--format", "raw", "other"]).ok().stdout;
    let fields: Vec<&str> = raw.lines().filter_map(|l| Some(l.split_once(": ")?.0)).collect();
    assert_eq!(fields, ["repository", "tag", "image_id", "created_at", "virtual_size"], "{raw}");
    sandbox.kiln(&["images", "--format", "{{.Repo}}"]).fails(2).says(&["no field Repo", "Repository"]);
}

#[test]
fn an_image_without_its_name_is_dangling_and_pruned() {
    let sandbox = Sandbox::bare("FROM scratch\nARG V\nLABEL v=$V\nCOPY data /\n");
    sandbox.file("data", "1");
    sandbox.build(&["-t", "app", "--build-arg", "V=1"]).ok();
    sandbox.build(&["-t", "app", "--build-arg", "V=2"]).ok();
    let dangling = sandbox.kiln(&["images", "-q", "--no-trunc", "-f", "dangling=true"]).ok().stdout;
    let id = dangling.trim();
    assert!(id.starts_with("sha256:") && dangling.lines().count() == 1, "{dangling}");
    sandbox.kiln(&["image", "prune"]).fails(2).says(&["dangling images", "nobody answered", "--force"]);
    sandbox.kiln(&["image", "prune", "-f", "--filter", "until=1h"]).ok();
    let pruned = sandbox.kiln(&["image", "prune", "-f"]).ok().stdout;
    assert!(pruned.contains(&format!("deleted: {id}")) && pruned.contains("Total reclaimed space: "), "{pruned}");
    let all = sandbox.kiln(&["image", "prune", "-f", "-a", "--filter", "label!=v=2"]).ok().stdout;
    assert!(!all.contains("app"), "{all}");
    let all = sandbox.kiln(&["image", "prune", "-f", "-a"]).ok().stdout;
    assert!(all.contains("untagged: app:latest"), "{all}");
    assert_eq!(sandbox.kiln(&["images", "-q"]).ok().stdout, "");
}

#[test]
fn history_is_dockers_table() {
    let sandbox = two_images();
    let table = sandbox.kiln(&["history", "other"]).ok().stdout;
    let rows = lines(&table);
    assert!(rows[0].starts_with("IMAGE") && rows[0].contains("CREATED BY"), "{table}");
    assert!(rows[1].contains("LABEL stage=late") && !rows[1].starts_with("<missing>"), "{table}");
    assert!(rows[2].starts_with("<missing>") && rows[2].contains("COPY more /more # buildkit"), "{table}");
    let bytes = sandbox.kiln(&["history", "--human=false", "--format", "{{.Size}} {{.CreatedAt}}", "app"]).ok().stdout;
    let copy = lines(&bytes)[2];
    assert!(copy.split(' ').next().is_some_and(|n| n == "5000"), "{bytes}");
    assert!(copy.ends_with('Z'), "{bytes}");
    assert_eq!(sandbox.kiln(&["image", "history", "-q", "app"]).ok().stdout.lines().count(), 5);
    sandbox.kiln(&["history", "--platform", "linux/s390x", "app"]).fails(1).says(&["not for linux/s390x"]);
    sandbox.kiln(&["history", "ap"]).fails(1).says(&["no such image: ap:latest", "did you mean app?"]);
}

#[test]
fn inspect_has_dockers_shape() {
    let sandbox = two_images();
    let json = sandbox.kiln(&["inspect", "app", "other"]).ok().stdout;
    let all: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    assert_eq!(all[0]["RepoTags"], serde_json::json!(["app:latest", "team/app:1.2"]));
    assert_eq!(all[0]["Config"]["Env"][1], "A=b");
    assert_eq!(all[1]["Config"]["Labels"]["stage"], "late");
    assert_eq!(all[1]["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
    let show = |format: &str| sandbox.kiln(&["inspect", "-f", format, "app"]).ok().stdout.trim_end().to_owned();
    assert_eq!(show("{{.Config.Entrypoint}} {{.Config.Cmd}} {{.Config.OnBuild}}"), "[/data] [x] []");
    assert_eq!(show("{{index .Config.Labels \"stage\"}} {{.Os}}"), "test linux");
    assert_eq!(show("{{json .Config.Healthcheck}}"), "null");
    assert_eq!(show("{{range .Config.Env}}{{println .}}{{end}}").lines().nth(2), Some("C=d e"));
    let id = show("{{.Id}}");
    let short = &id["sha256:".len()..][..12];
    assert_eq!(sandbox.kiln(&["image", "inspect", "--format", "{{.Id}}", short]).ok().stdout.trim(), id);
    let partly =
        sandbox.kiln(&["inspect", "-f", "{{.Id}}", "app", "nope"]).fails(1).says(&["no such image: nope:latest"]);
    assert_eq!(partly.stdout.trim(), id);
    sandbox.kiln(&["inspect", "Bad Name!"]).fails(1).says(&["neither an image name nor an image ID"]);
}

#[test]
fn names_come_and_go_and_the_last_takes_the_image_with_it() {
    let sandbox = two_images();
    let id = sandbox.kiln(&["images", "-q", "--no-trunc", "app"]).ok().stdout;
    let id = id.trim();
    sandbox.kiln(&["tag", id, "registry.example.com/x:3"]).ok();
    sandbox.kiln(&["tag", "app", "app@sha256:00"]).fails(2);
    sandbox.kiln(&["image", "tag", "app", "UPPER"]).fails(2).says(&["upper-case"]);
    let removed = sandbox.kiln(&["rmi", "registry.example.com/x:3"]).ok().stdout;
    assert_eq!(removed, "Untagged: registry.example.com/x:3\n");
    sandbox.kiln(&["rmi", &id[7..20]]).fails(1).says(&["several names: app:latest, team/app:1.2", "--force"]);
    sandbox.kiln(&["rmi", "nope", "other"]).fails(1).says(&["no such image: nope:latest"]);
    assert_eq!(sandbox.kiln(&["images", "-q", "other"]).ok().stdout, "", "what is there was removed all the same");
    sandbox.kiln(&["rmi", "-f", "nope"]).ok();
    let removed = sandbox.kiln(&["image", "rm", "-f", &id[7..20]]).ok().stdout;
    assert_eq!(removed, format!("Untagged: app:latest\nUntagged: team/app:1.2\nDeleted: {id}\n"));
    assert_eq!(sandbox.kiln(&["images", "-q"]).ok().stdout, "");
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let sandbox = two_images();
    let mut child = sandbox.command(["images"]).stdout(std::process::Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("it ends").success());
}
