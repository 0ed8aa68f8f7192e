//! `kiln build` tells of programs that cannot start in the image.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

/// A program that is linked dynamically: the tests' own.
fn dynamic_program(s: &Sandbox) {
    std::fs::copy(std::env::current_exe().unwrap(), s.path("ctx/hello")).unwrap();
}

#[test]
fn a_dynamic_program_in_scratch_is_told_before_anybody_runs_it() {
    let Some(s) = Sandbox::new("FROM scratch\nCOPY hello /hello\nENTRYPOINT [\"/hello\"]\n") else { return };
    dynamic_program(&s);
    let loader = "/hello is linked dynamically, but its loader /";
    s.build(&["-t", "hello"]).ok().says(&["WARNING", loader, "link it statically"]);
    // Also when nothing is run.
    s.build(&["-t", "hello"]).ok().says(&[loader]);
    s.build(&["-t", "hello", "--check-programs=off"]).ok().hides(loader);
    s.build(&["-t", "other", "--check-programs=fail"]).fails(1).says(&[loader, "--check-programs=warn"]);
    s.kiln(&["history", "other"]).fails(1);
}

#[test]
fn what_starts_is_not_complained_about() {
    let dockerfile = format!(
        "{BASE}FROM base\nCOPY --chmod=755 start /start\nCOPY hello /unused/hello\nENTRYPOINT [\"/start\"]\nCMD [\"sh\"]\n"
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    s.file("start", "#!/bin/sh\nexec \"$@\"\n");
    s.file("hello", "not a program");
    s.build(&["-t", "app"]).ok().hides("WARNING");
}

#[test]
fn a_command_that_is_missing_or_in_shell_form_without_a_shell() {
    let Some(s) = Sandbox::new("FROM scratch\nCOPY busybox /app\nCMD /app --help\n") else { return };
    s.build(&["-t", "app"]).ok().says(&["shell form", "no /bin/sh", "exec form"]);
    s.file("Dockerfile", "FROM scratch\nCOPY busybox /app\nCMD [\"/ap\"]\n");
    s.build(&["-t", "app"]).ok().says(&["the image's command /ap is not in the image"]);
    s.file("Dockerfile", "FROM scratch\nCOPY busybox /app\nCMD [\"/app\"]\n");
    s.build(&["-t", "app"]).ok().hides("WARNING");
}
