//! The cache: what is run again, what is not, and the reasons.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

const APP: &str = "FROM base AS deps\nCOPY deps /deps\nRUN cat /deps > /installed\nFROM deps AS app\nCOPY src /src\nRUN cat /src/* > /app\n\
                   FROM scratch\nCOPY --from=app /app /app\nCMD [\"/app\"]\n";

fn app() -> Option<Sandbox> {
    let s = Sandbox::new(&format!("{BASE}{APP}"))?;
    s.file("deps", "express");
    s.file_mode("src/a", "a", 0o644);
    s.file("src/b", "b");
    s.file("unrelated", "1");
    Some(s)
}

fn id(s: &Sandbox, args: &[&str]) -> String {
    s.build(&[args, &["--iidfile", "iid"]].concat()).ok();
    text(s.path("iid"))
}

#[test]
fn nothing_changed_runs_nothing_and_gives_the_same_image() {
    let Some(s) = app() else { return };
    let first = id(&s, &["-t", "app"]);
    let run = s.build(&["-t", "app", "--iidfile", "iid"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    assert_eq!(text(s.path("iid")), first);
    // Neither do a touched file and one that no step reads.
    s.file("src/a", "a");
    s.file("unrelated", "2");
    let run = s.build(&["-t", "app", "--iidfile", "iid"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    assert_eq!(text(s.path("iid")), first);
}

#[test]
fn a_changed_file_reruns_the_steps_that_read_it() {
    let Some(s) = app() else { return };
    let first = id(&s, &[]);
    s.file("src/a", "changed");
    let run = s.build(&["--iidfile", "iid"]).ok();
    assert_eq!(run.executed().len(), 3, "{:?}", run.executed());
    for (step, outcome) in
        [("COPY deps", "CACHED"), ("RUN cat /deps", "CACHED"), ("COPY src", "DONE"), ("RUN cat /src", "DONE")]
    {
        assert_eq!(run.step(step), outcome, "{step}");
    }
    assert_ne!(text(s.path("iid")), first);
    // Back again: both are remembered.
    s.file("src/a", "a");
    let run = s.build(&["--iidfile", "iid"]).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    assert_eq!(text(s.path("iid")), first);
}

#[test]
fn a_step_whose_inputs_came_out_the_same_is_not_run_again() {
    // The generating step runs again, but makes the same bytes: what reads them does not care.
    let Some(s) = Sandbox::new(&format!(
        "{BASE}FROM base AS gen\nCOPY input /\nRUN wc -c < /input > /size\nFROM base\nCOPY --from=gen /size /size\nRUN cat /size > /out\n"
    )) else {
        return;
    };
    s.file("input", "one");
    s.build(&[]).ok();
    s.file("input", "two");
    let run = s.build(&[]).ok();
    assert_eq!(
        (run.step("RUN wc"), run.step("COPY --from=gen"), run.step("RUN cat")),
        ("DONE", "CACHED", "CACHED"),
        "{}",
        run.stderr
    );
}

#[test]
fn no_cache_and_its_filter() {
    let Some(s) = app() else { return };
    s.build(&[]).ok();
    assert_eq!(s.build(&["--no-cache"]).ok().executed().len(), 7);
    let run = s.build(&["--no-cache-filter", "deps"]).ok();
    assert_eq!((run.step("COPY deps"), run.step("RUN cat /deps")), ("DONE", "DONE"), "{}", run.stderr);
    assert_eq!(run.step("COPY busybox"), "CACHED", "{}", run.stderr);
}

#[test]
fn cached_steps_are_shown_in_the_order_of_the_file() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN echo 1\nRUN echo 2\nFROM base\nRUN echo 3\n")) else { return };
    s.build(&[]).ok();
    let run = s.build(&[]).ok();
    let place = |name: &str| run.stderr.find(name).unwrap_or_else(|| panic!("{name} in {}", run.stderr));
    assert!(place("COPY busybox") < place("RUN echo 1") && place("RUN echo 1") < place("RUN echo 3"), "{}", run.stderr);
    assert!(run.executed().is_empty(), "{}", run.stderr);
}

#[test]
fn the_reason_of_each_miss_is_told_in_words() {
    let Some(s) = Sandbox::new(&format!("{BASE}ARG VERSION=1\nCOPY src /src\nRUN echo $VERSION > /v\nRUN echo one\n"))
    else {
        return;
    };
    s.file_mode("src/a.py", "print()", 0o644);
    s.build(&["--explain-cache"]).ok().says(&["not cached: this step has not run before"]);
    s.file_mode("src/a.py", "print()", 0o664);
    s.build(&["--explain-cache"]).ok().says(&["src/a.py: mode 0644 -> 0664"]);
    s.file_mode("src/a.py", "print(1)", 0o664);
    s.build(&["--explain-cache"]).ok().says(&["src/a.py: content changed"]);
    s.file("src/b.py", "");
    s.build(&["--explain-cache"]).ok().says(&["src/b.py is new"]);
    std::fs::remove_file(s.ctx().join("src/b.py")).unwrap();
    s.build(&["--explain-cache", "--build-arg", "VERSION=2"]).ok().says(&["VERSION changed: \"1\" -> \"2\""]);
    // VERSION is 1 again, which ran before: it is not what changed.
    s.file("Dockerfile", text(s.ctx().join("Dockerfile")).replace("RUN echo $VERSION", "RUN echo v $VERSION"));
    let run = s.build(&["--explain-cache"]).ok().says(&["the command changed"]);
    assert!(!run.stderr.contains("VERSION changed"), "{}", run.stderr);
    s.file("Dockerfile", text(s.ctx().join("Dockerfile")).replace("COPY src /src", "COPY --chmod=600 src /srv"));
    let says = ["the destination changed: /src -> /srv", "--chmod changed: none -> 600"];
    s.build(&["--explain-cache"]).ok().says(&says).hides("the instruction changed");
    let says = ["--add-host changed: none -> db:10.0.0.1"];
    s.build(&["--explain-cache", "--add-host", "db:10.0.0.1"]).ok().says(&says);
    s.file("Dockerfile", text(s.ctx().join("Dockerfile")).replace("echo one", "echo two"));
    s.build(&["--explain-cache", "--build-arg", "VERSION=2"]).ok().says(&["the command changed"]);
    s.build(&["--explain-cache", "--no-cache"]).ok().says(&["--no-cache"]);
}

#[test]
fn the_reason_names_a_moved_base() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN echo 1 > /v\n")) else { return };
    s.build(&["-t", "mybase"]).ok();
    s.file("child", "FROM mybase\nRUN cat /v > /w\n");
    s.build(&["-f", "ctx/child"]).ok();
    s.file("Dockerfile", format!("{BASE}RUN echo 2 > /v\n"));
    s.build(&["-t", "mybase"]).ok();
    s.build(&["-f", "ctx/child", "--explain-cache"]).ok().says(&["base", "mybase", "moved", "sha256:"]);
    assert_eq!(text(s.export(&["-f", "ctx/child"]).join("w")), "2\n");
}

#[test]
fn the_same_input_and_time_give_the_same_digest_in_any_store() {
    let Some(mut s) = app() else { return };
    s.env("SOURCE_DATE_EPOCH", "1700000000");
    let mut ids = Vec::new();
    for round in 0..2 {
        s.env("KILN_ROOT", s.path(format!("store-{round}")).to_str().unwrap());
        // Times on disk differ between rounds.
        s.file("src/a", "a");
        s.build(&["-o", "type=oci,dest=out.tar,rewrite-timestamp=true", "--iidfile", "iid"]).ok();
        ids.push((text(s.path("iid")), std::fs::read(s.path("out.tar")).unwrap()));
    }
    assert_eq!(ids[0].0, ids[1].0);
    assert!(ids[0].1 == ids[1].1, "the archives differ");
    let config = s.config(&[]);
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
}
