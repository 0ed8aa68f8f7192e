use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::*;

fn named(name: &str) -> VertexMeta {
    VertexMeta { name: name.to_owned(), ..VertexMeta::default() }
}

fn local(name: &str) -> Op {
    Op::Source(SourceOp::Local(LocalSource { name: name.to_owned(), ..LocalSource::default() }))
}

fn image(name: &str, resolve: ResolveMode) -> Op {
    Op::Source(SourceOp::Image(ImageSource { reference: name.parse().unwrap(), resolve }))
}

fn run(command: &str) -> ExecOp {
    ExecOp {
        args: vec!["/bin/sh".into(), "-c".into(), command.into()],
        cwd: "/".into(),
        mounts: vec![Mount::root(Some(0))],
        ..ExecOp::default()
    }
}

fn copy(from: ActionInput, src: &str) -> FileAction {
    let copy = CopyAction::new(from, src, "/dest");
    FileAction { input: ActionInput::Input(0), output: Some(0), kind: FileActionKind::Copy(copy) }
}

fn file(actions: Vec<FileAction>) -> Op {
    Op::File(FileOp { actions })
}

#[test]
fn equal_vertices_are_one_and_the_first_name_stays() {
    let mut g = Graph::new();
    let base = g.add(image("alpine", ResolveMode::Default), vec![], None, named("base")).unwrap();
    let again = g.add(image("alpine", ResolveMode::ForcePull), vec![], None, named("other")).unwrap();
    assert_eq!(base, again, "how a name is resolved is not what it is");
    let a = g.add(Op::Exec(run("make")), vec![base.into()], None, named("[a 1/1] RUN make")).unwrap();
    let fresh = VertexMeta { ignore_cache: true, ..named("[b 1/1] RUN make") };
    let b = g.add(Op::Exec(run("make")), vec![base.into()], None, fresh).unwrap();
    assert_eq!(a, b);
    assert_eq!(g.len(), 2);
    assert_eq!(g[a].meta.name, "[a 1/1] RUN make");
    assert!(g[a].meta.ignore_cache, "one of them asked for it");
    assert_eq!(g.find(&g[a].digest()), Some(a));
}

#[test]
fn inputs_outputs_and_platforms_make_another_vertex_but_not_another_op() {
    let mut g = Graph::new();
    let a = g.add(local("a"), vec![], None, named("a")).unwrap();
    let b = g.add(local("b"), vec![], None, named("b")).unwrap();
    let on_a = g.add(Op::Exec(run("x")), vec![a.into()], None, named("x")).unwrap();
    let on_b = g.add(Op::Exec(run("x")), vec![b.into()], None, named("x")).unwrap();
    assert_ne!(on_a, on_b);
    assert_eq!(g[on_a].op_digest(), g[on_b].op_digest());
    let arm = g.add(Op::Exec(run("x")), vec![a.into()], Some("linux/arm64".parse().unwrap()), named("x")).unwrap();
    assert_ne!(arm, on_a);
    assert_ne!(g[arm].op_digest(), g[on_a].op_digest());
}

/// Every field that the table in `digest` lists changes the digest; those that it excludes do not.
#[test]
fn what_counts_for_the_digest_of_an_exec() {
    type Change = (&'static str, fn(&mut ExecOp));
    let counts: Vec<Change> = vec![
        ("args", |e| e.args.push("x".into())),
        ("env", |e| e.env = ["A=b".into()].into()),
        ("cwd", |e| e.cwd = "/x".into()),
        ("user", |e| e.user = "1".into()),
        ("hostname", |e| e.hostname = Some("h".into())),
        ("mount", |e| e.mounts.push(Mount::new("/x", MountKind::Tmpfs { size: 0 }))),
        ("tmpfs size", |e| e.mounts.push(Mount::new("/x", MountKind::Tmpfs { size: 1 }))),
        ("readonly", |e| e.mounts[0].readonly = true),
        ("selector", |e| e.mounts[0].selector = "/x".into()),
        ("content cache", |e| e.mounts[0].content_cache = ContentCache::On),
        ("secret", |e| e.secret_env.push(SecretEnv { id: "i".into(), name: "N".into(), optional: false })),
        ("network", |e| e.network = NetworkMode::None),
        ("security", |e| e.security = SecurityMode::Insecure),
        ("hosts", |e| e.extra_hosts.push(HostIp { host: "h".into(), ip: "::1".into() })),
        ("ulimit", |e| e.limits.ulimits.push(Ulimit { name: "nofile".into(), soft: 1, hard: 2 })),
        ("shm", |e| e.limits.shm_size = Some(1)),
        ("device", |e| e.devices.push(Device { name: "d".into(), optional: false })),
        ("exit codes", |e| e.valid_exit_codes.push(1)),
    ];
    let digest = |change: fn(&mut ExecOp)| {
        let mut exec = run("x");
        change(&mut exec);
        OpDigest::of(&Op::Exec(exec), None)
    };
    let plain = digest(|_| {});
    let mut seen = std::collections::HashMap::from([(plain, "nothing")]);
    for (what, change) in counts {
        assert_eq!(seen.insert(digest(change), what), None, "{what}");
    }
    let ignored: Vec<Change> = vec![
        ("memory", |e| e.resources.memory = Some(1)),
        ("proxy", |e| drop(e.proxy.0.insert("http_proxy".into(), "http://secret@proxy".into()))),
    ];
    for (what, change) in ignored {
        assert_eq!(digest(change), plain, "{what}");
    }
}

#[test]
fn what_counts_for_the_digest_of_a_copy() {
    type Change = (&'static str, fn(&mut CopyAction));
    let counts: Vec<Change> = vec![
        ("src", |c| c.src = "/b".into()),
        ("dest", |c| c.dest = "/dest/".into()),
        ("owner", |c| c.owner = Some(Owner { user: Some(UserRef::Id(0)), group: None })),
        ("group", |c| c.owner = Some(Owner { user: None, group: Some(UserRef::Id(0)) })),
        ("mode", |c| c.mode = Some(Mode::Octal(0o755))),
        ("symbolic mode", |c| c.mode = Some(Mode::Symbolic("u+x".into()))),
        ("follow", |c| c.follow_symlink = true),
        ("contents", |c| c.dir_contents_only = true),
        ("unpack", |c| c.attempt_unpack = true),
        ("create", |c| c.create_dest_path = true),
        ("wildcard", |c| c.allow_wildcard = true),
        ("empty wildcard", |c| c.allow_empty_wildcard = true),
        ("parents", |c| c.parents = true),
        ("include", |c| c.include_patterns.push("x".into())),
        ("exclude", |c| c.exclude_patterns.push("x".into())),
        ("required", |c| c.required_paths.push("x".into())),
        ("replace", |c| c.always_replace = true),
        ("timestamp", |c| c.timestamp = Some(0)),
    ];
    let digest = |change: fn(&mut CopyAction)| {
        let mut action = CopyAction::new(ActionInput::Input(1), "/a", "/dest");
        change(&mut action);
        let action = FileAction { input: ActionInput::Input(0), output: None, kind: FileActionKind::Copy(action) };
        OpDigest::of(&file(vec![action]), None)
    };
    let mut seen = std::collections::HashMap::from([(digest(|_| {}), "nothing")]);
    for (what, change) in counts {
        assert_eq!(seen.insert(digest(change), what), None, "{what}");
    }
}

/// A stored cache is keyed by these: a change here is a change of `digest::VERSION`.
#[test]
fn digests_do_not_change_between_releases() {
    let exec = OpDigest::of(&Op::Exec(run("make")), Some(&"linux/amd64".parse().unwrap()));
    let files = OpDigest::of(&file(vec![copy(ActionInput::Input(1), "/a")]), None);
    assert_eq!(exec.0.short(), "47d40b0844e5");
    assert_eq!(files.0.short(), "67bda5d79532");
}

#[test]
fn what_is_not_there_is_refused() {
    let mut g = Graph::new();
    let a = g.add(local("a"), vec![], None, named("a")).unwrap();
    let foreign = Edge { vertex: VertexId(9), output: 0 };
    let add = |g: &mut Graph, op, inputs| g.add(op, inputs, None, named("v")).unwrap_err();
    assert!(matches!(add(&mut g, Op::Merge(MergeOp), vec![foreign]), GraphError::UnknownVertex { .. }));
    let second = Edge { vertex: a, output: 1 };
    let error = add(&mut g, Op::Merge(MergeOp), vec![second]);
    assert_eq!(error.to_string(), r#""v": an input names output 1 of "a", which has 1"#);
    assert!(matches!(add(&mut g, Op::Exec(run("x")), vec![]), GraphError::UnknownInput { index: 0, .. }));
    let diff = Op::Diff(DiffOp { lower: Some(0), upper: Some(1) });
    assert!(matches!(add(&mut g, diff, vec![a.into()]), GraphError::UnknownInput { index: 1, .. }));
    let forward = file(vec![copy(ActionInput::Action(0), "/")]);
    assert!(matches!(add(&mut g, forward, vec![a.into()]), GraphError::ForwardAction { action: 0, .. }));
}

#[test]
fn what_is_only_read_counts_by_content() {
    let base = || copy(ActionInput::Input(1), "/a");
    let mut with_owner = base();
    if let FileActionKind::Copy(c) = &mut with_owner.kind {
        let name = |input| Some(UserRef::Name { name: "app".into(), input });
        c.owner = Some(Owner { user: name(ActionInput::Input(2)), group: name(ActionInput::Input(0)) });
    }
    let uses = file(vec![with_owner, copy(ActionInput::Input(1), "/b"), base()]).input_uses(3);
    assert_eq!(uses[0], InputUse::Key, "what is changed counts as a whole, whatever else is read from it");
    let plain = |p: &str| Selector { follow_links: false, ..Selector::path(p) };
    assert_eq!(uses[1], InputUse::Content(vec![plain("/a"), plain("/b")]));
    assert_eq!(uses[2], InputUse::Content(vec![Selector::path("/etc/passwd"), Selector::path("/etc/group")]));

    let mut exec = run("x");
    let bind = |input, readonly, output| Mount {
        input: Some(input),
        readonly,
        output,
        selector: "src".into(),
        ..Mount::new("/m", MountKind::Bind)
    };
    exec.mounts.extend([bind(1, true, None), bind(2, false, None), bind(3, false, Some(1))]);
    let sees = InputUse::Content(vec![Selector::path("/src")]);
    assert_eq!(Op::Exec(exec).input_uses(4), [InputUse::Key, sees.clone(), sees, InputUse::Key]);
    let mut root = run("x");
    root.mounts[0].readonly = true;
    root.mounts[0].output = None;
    assert_eq!(Op::Exec(root).input_uses(1), [InputUse::Key]);
}

#[test]
fn only_what_is_needed_is_reachable() {
    let mut g = Graph::new();
    let a = g.add(local("a"), vec![], None, named("a")).unwrap();
    let unused = g.add(local("b"), vec![], None, named("b")).unwrap();
    let c = g.add(Op::Exec(run("x")), vec![a.into()], None, named("c")).unwrap();
    let d = g.add(Op::Exec(run("y")), vec![c.into()], None, named("d")).unwrap();
    assert_eq!(g.reachable([c]), [a, c]);
    assert_eq!(g.reachable([d, d]), [a, c, d]);
    assert_eq!(g.reachable([unused]), [unused]);
    assert!(g.reachable([]).is_empty());
}

#[test]
fn ten_thousand_vertices_take_no_time() {
    let start = Instant::now();
    let mut g = Graph::new();
    let mut last = g.add(local("context"), vec![], None, named("context")).unwrap();
    for i in 0..10_000 {
        last = g.add(Op::Exec(run(&format!("step {i}"))), vec![last.into()], None, named("step")).unwrap();
    }
    assert_eq!(g.reachable([last]).len(), 10_001);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

proptest! {
    #[test]
    fn any_graph_is_topological_and_free_of_duplicates(picks in prop::collection::vec((0..4usize, 0..1000usize, 0..1000usize), 1..60)) {
        let mut g = Graph::new();
        let mut ids = vec![g.add(local("context"), vec![], None, named("context")).unwrap()];
        for (kind, a, b) in picks {
            let (a, b) = (ids[a % ids.len()].into(), ids[b % ids.len()].into());
            let (op, inputs) = match kind {
                0 => (Op::Merge(MergeOp), vec![a, b]),
                1 => (Op::Diff(DiffOp { lower: Some(0), upper: Some(1) }), vec![a, b]),
                2 => (file(vec![copy(ActionInput::Input(1), "/")]), vec![a, b]),
                _ => (Op::Exec(run("x")), vec![a]),
            };
            ids.push(g.add(op, inputs, None, named("v")).unwrap());
        }
        let mut digests = std::collections::HashSet::new();
        for (id, vertex) in g.iter() {
            prop_assert!(vertex.inputs.iter().all(|e| e.vertex < id));
            prop_assert!(digests.insert(vertex.digest()));
        }
        let last = ids[ids.len() - 1];
        let all = g.reachable([last]);
        prop_assert!(all.windows(2).all(|w| w[0] < w[1]));
        prop_assert!(all.iter().all(|v| g[*v].inputs.iter().all(|e| all.contains(&e.vertex))));
    }
}
