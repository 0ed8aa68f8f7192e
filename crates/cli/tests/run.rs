//! `kiln run`: what the command sees, terminals, signals, exit codes.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use support::*;

/// A sandbox with an image `box` that has a shell.
fn with_image(rest: &str) -> Option<Sandbox> {
    let s = Sandbox::new(&format!("{BASE}FROM base\n{rest}"))?;
    s.build(&["-t", "box"]).ok();
    Some(s)
}

#[test]
fn the_command_sees_what_was_asked_for() {
    let Some(mut s) = with_image("ENV A=image B=image\nWORKDIR /w\nENTRYPOINT [\"echo\", \"entry\"]\nCMD [\"cmd\"]\n")
    else {
        return;
    };
    assert_eq!(s.kiln(&["run", "box"]).ok().stdout, "entry cmd\n");
    assert_eq!(s.kiln(&["run", "--rm", "box", "other", "-x"]).ok().stdout, "entry other -x\n");
    let sh = |s: &Sandbox, args: &[&str], script: &str| {
        let all = [&["run", "--entrypoint", "sh"], args, &["box", "-c", script]].concat();
        s.kiln(&all).ok().stdout
    };
    s.env("FROM_CLIENT", "client");
    let file = s.file("variables", "# comment\nC=file\nFROM_CLIENT\n\nA=file\n");
    let args = ["-e", "A=flag", "-e", "FROM_CLIENT", "--env-file", file.to_str().unwrap()];
    assert_eq!(sh(&s, &args, "echo $A $B $C $FROM_CLIENT"), "flag image file client\n");
    assert_eq!(sh(&s, &[], "pwd"), "/w\n");
    assert_eq!(sh(&s, &["-w", "/new/place"], "pwd"), "/new/place\n");
    assert_eq!(sh(&s, &["-u", "12:13"], "id -u; id -g"), "12\n13\n");
    std::fs::create_dir(s.path("shared")).unwrap();
    std::fs::write(s.path("shared/in"), "from outside").unwrap();
    let volume = format!("{}:/v", s.path("shared").display());
    assert_eq!(sh(&s, &["-v", &volume], "cat /v/in; echo back > /v/out"), "from outside");
    assert_eq!(text(s.path("shared/out")), "back\n");
    let readonly = format!("{volume}:ro");
    s.kiln(&["run", "--entrypoint", "touch", "-v", &readonly, "box", "/v/x"]).fails(1).says(&["Read-only"]);
}

#[test]
fn exit_codes_mean_what_they_mean_in_docker() {
    let Some(s) = with_image("RUN echo x > /not-executable\n") else { return };
    s.kiln(&["run", "box", "sh", "-c", "exit 42"]).fails(42);
    s.kiln(&["run", "box", "sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]).fails(143);
    s.kiln(&["run", "box", "/not-executable"]).fails(126);
    s.kiln(&["run", "box", "no-such-command"]).fails(127).says(&["no-such-command"]);
    s.kiln(&["run", "no-such-image-anywhere.invalid/x"]).fails(125);
}

#[test]
fn standard_input_is_passed_on_if_asked() {
    let Some(s) = with_image("") else { return };
    let cat = |args: &[&str]| {
        let mut child = s.command([&["run"], args, &["box", "cat"]].concat());
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Who does not read may be gone already.
        let _ = child.stdin.take().unwrap().write_all(b"piped\n");
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(cat(&["-i"]), "piped\n");
    assert_eq!(cat(&[]), "");
    s.kiln(&["run", "-it", "box", "true"]).fails(1).says(&["not a terminal", "--tty"]);
}

#[test]
fn a_terminal_has_the_users_size_and_gives_it_back() {
    let Some(s) = with_image("") else { return };
    if !has_tool("script") {
        eprintln!("SKIPPED: script is not installed");
        return;
    }
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let inside = "tty; stty size; test -t 0 && test -t 1 && echo terminal; stty -a | grep -o ' echo '; exit 9";
    let line = format!(
        "stty rows 31 cols 97; {kiln} run -it box sh -c '{}'; echo code $?; stty -a | grep -o ' icanon '",
        inside.replace('\'', "'\\''")
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("KILN_ROOT", s.path("store")).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let keys = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(keys);
    let shown = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    assert_eq!(shown, "/dev/pts/0\n31 97\nterminal\n echo \ncode 9\n icanon \n");
}

#[test]
fn the_first_signal_is_the_commands_and_the_second_ends_it() {
    let Some(s) = with_image("") else { return };
    let start = |script: &str| {
        let mut child = s.command(["run", "box", "sh", "-c", script]);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        (child, lines)
    };
    let interrupt = |child: &std::process::Child| {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    };
    let (mut child, mut lines) = start("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done");
    interrupt(&child);
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(5));

    let (mut child, mut lines) = start("trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done");
    interrupt(&child);
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
