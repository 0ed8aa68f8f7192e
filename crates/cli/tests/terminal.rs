//! The view on a terminal, in one that `script` makes.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};

use support::*;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// What a build writes to a terminal of this size, escapes included; nothing if there is no `script`.
fn seen(s: &Sandbox, size: (u32, u32)) -> Option<String> {
    seen_on(s, size, "xterm")
}

fn seen_on(s: &Sandbox, size: (u32, u32), kind: &str) -> Option<String> {
    if !has_tool("script") || !has_tool("stty") {
        eprintln!("SKIPPED: script or stty is not installed");
        return None;
    }
    let line = format!("stty rows {} cols {}; {KILN} build --no-cache {}", size.0, size.1, s.ctx().display());
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .env("KILN_ROOT", s.path("store"))
        .env("TERM", kind)
        .env_remove("NO_COLOR");
    let output = script.stdin(Stdio::null()).output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// By how many rows each frame goes up to draw over the one before.
fn rows_up(seen: &str) -> Vec<u32> {
    let ups = seen.split("\x1b[").filter_map(|part| part.split_once('A')?.0.parse().ok());
    ups.collect()
}

#[test]
fn a_frame_never_exceeds_the_window() {
    let stages: String = (0..4)
        .map(|i| format!("FROM base AS s{i}\nRUN for k in 1 2; do echo stage {i} line $k; sleep 0.1; done\n"))
        .collect();
    let copies: String = (0..4).map(|i| format!("COPY --from=s{i} /bin/sh /x{i}\n")).collect();
    let Some(s) = Sandbox::new(&format!("{BASE}{stages}FROM scratch\n{copies}")) else { return };
    for (rows, columns) in [(2, 40), (4, 20)] {
        let Some(seen) = seen(&s, (rows, columns)) else { return };
        let ups = rows_up(&seen);
        assert!(!ups.is_empty() && ups.iter().all(|up| *up < rows), "{rows} rows: {ups:?}");
        assert_eq!(seen.contains("more lines") || seen.contains("more l"), rows == 4, "{seen}");
        assert!(seen.contains("=> [s3") && !seen.contains("panicked"), "{seen}");
    }
}

#[test]
fn a_build_that_failed_is_not_finished() {
    let Some(s) = Sandbox::new(&format!("{BASE}FROM base\nCOPY --from=base /nothing /\n")) else { return };
    let Some(shown) = seen(&s, (24, 80)) else { return };
    assert!(shown.contains("=> ERROR [stage-1 1/1] COPY --from=base /nothing /"), "{shown}");
    assert!(!shown.contains("FINISHED"), "{shown}");
    s.file("Dockerfile", "FROM scratch AS a\nFROM a\nCOPY busybox /\n");
    assert!(seen(&s, (24, 80)).unwrap().contains("FINISHED"));
}

#[test]
fn bars_that_erase_their_line_are_seen() {
    let steps = "RUN for i in 1 2 3 4 5; do printf 'bar %d\\r\\033[K' $i; sleep 0.1; done\n";
    let Some(s) = Sandbox::new(&format!("{BASE}{steps}")) else { return };
    let Some(shown) = seen(&s, (24, 80)) else { return };
    assert!(shown.contains("=> => # bar 2") && !shown.contains("# \x1b"), "{shown}");
}

#[test]
fn a_terminal_that_cannot_redraw_gets_the_plain_log() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /\n");
    let Some(shown) = seen_on(&s, (24, 80), "dumb") else { return };
    assert!(shown.contains("#2 [1/1] COPY busybox /") && !shown.contains("\x1b[K"), "{shown}");
}
