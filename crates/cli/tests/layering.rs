//! Which crate may depend on which: the edges that ARCHITECTURE.md lists, and no other.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// A crate and the crates of ours that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("dockerfile", &[]),
    ("secrets", &[]),
    ("sshagent", &[]),
    ("compress", &["oci"]),
    ("graph", &["oci"]),
    ("solver", &["oci"]),
    ("httpproxy", &[]),
    ("process", &[]),
    ("registry", &["oci", "httpproxy"]),
    ("rootfs", &["oci", "compress"]),
    ("store", &["rootfs", "oci", "compress"]),
    ("executor", &["process", "rootfs"]),
    ("source", &["graph", "oci", "rootfs", "compress"]),
    ("deb", &["oci", "rootfs", "compress", "httpproxy"]),
    ("linkage", &["rootfs"]),
    ("container", &["store", "process", "rootfs", "oci"]),
    ("frontend", &["dockerfile", "graph", "oci"]),
    (
        "engine",
        &[
            "compress",
            "container",
            "deb",
            "dockerfile",
            "executor",
            "frontend",
            "graph",
            "linkage",
            "oci",
            "process",
            "registry",
            "rootfs",
            "secrets",
            "solver",
            "source",
            "sshagent",
            "store",
        ],
    ),
    ("cli", &["engine", "oci", "store", "registry", "rootfs", "executor", "secrets", "deb", "dockerfile", "compress"]),
];

fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let short = |name: &serde_json::Value| name.as_str().unwrap().strip_prefix("kiln-").map(str::to_owned);
    let mut edges = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        // Tests may use what they like.
        let used = package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"] != "dev");
        let used = used.filter_map(|d| short(&d["name"]));
        edges.insert(short(&package["name"]).expect("our packages are named kiln-*"), used.collect());
    }
    edges
}

#[test]
fn crates_depend_on_each_other_only_as_architecture_says() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for (package, used) in edges() {
        let Some(may) = allowed.get(package.as_str()) else {
            wrong.push(format!("{package} is not listed in this test and in ARCHITECTURE.md"));
            continue;
        };
        wrong.extend(used.iter().filter(|u| !may.contains(&u.as_str())).map(|u| format!("{package} -> {u}")));
    }
    assert!(wrong.is_empty(), "edges that ARCHITECTURE.md does not allow: {wrong:#?}");
}

#[test]
fn the_table_has_no_cycle() {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for (package, used) in ALLOWED {
        // The table is in topological order but for `cli` and `engine`, which come last: a crate uses only those above it.
        for other in *used {
            assert!(known.contains(other), "{package} uses {other}, which the table lists after it");
        }
        known.insert(package);
    }
}
