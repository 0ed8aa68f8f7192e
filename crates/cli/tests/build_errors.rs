//! What a build says when it fails: what happened, where, what to do, each once.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

#[test]
fn a_failed_step_is_told_once() {
    let steps = "RUN echo words-of-it && \\\n    exit 7\n";
    let Some(s) = Sandbox::new(&format!("FROM scratch\nCOPY busybox /bin/sh\n\n{steps}")) else { return };
    // In a plain log the output is right above.
    let plain = s.build(&["--progress=plain"]).fails(1);
    let end = &plain.stderr[plain.stderr.find("Dockerfile:").unwrap()..];
    assert_eq!(end.matches("exit 7").count(), 1, "the excerpt has the command:\n{end}");
    assert!(!end.contains("last output"), "{end}");
    assert!(end.contains("RUN (Dockerfile:4) did not complete successfully: exit code: 7"), "{end}");
    assert!(end.contains("--on-error=shell"), "{end}");
    // Where the log is not shown, its end is.
    s.file("Dockerfile", "FROM scratch\nCOPY busybox /bin/sh\nRUN printf unfinished && exit 1\n");
    s.build(&[]).fails(1);
    assert!(s.kiln(&["logs"]).ok().stdout.contains("\nunfinished\n   failed: "), "the log's own lines are lines");
    s.file("Dockerfile", format!("FROM scratch\nCOPY busybox /bin/sh\n\n{steps}"));
    let quiet = s.build(&["--quiet"]).fails(1).says(&["last output:", " > words-of-it"]);
    assert_eq!(quiet.stderr.matches("exit 7").count(), 1, "{}", quiet.stderr);
}

#[test]
fn files_that_are_not_there_come_with_what_was_meant() {
    let Some(s) = Sandbox::new("") else { return };
    s.file("src/main.c", "int main;");
    for (instruction, says) in [
        ("COPY src/mian.c /x", "did you mean src/main.c?"),
        ("COPY scr/main.c /x", "did you mean src/main.c?"),
        ("COPY main.c /x", "there is src/main.c"),
        ("COPY --from=first /bin/busibox /x", "did you mean /bin/busybox?"),
        ("COPY --from=first /busybox /x", "there is /bin/busybox"),
        ("COPY --from=frist /bin /x", "did you mean first?"),
    ] {
        s.file("Dockerfile", format!("FROM scratch AS first\nCOPY busybox /bin/\nFROM scratch\n{instruction}\n"));
        let run = s.build(&[]).fails(1).says(&[instruction, says]);
        // What is no stage is taken for an image, and there is no step yet.
        assert!(instruction.contains("frist") || run.step(instruction) == "ERROR", "{}", run.stderr);
    }
    s.kiln(&["build", "-f", "ctx/Dockerfle", "ctx"]).fails(1).says(&["did you mean ctx/Dockerfile?"]);
}

#[test]
fn checks_that_are_errors_have_their_exit_code() {
    let s = Sandbox::bare("# check=error=true\nFROM scratch\nENV a=$b\n");
    s.build(&[]).fails(3).says(&["UndefinedVar", "Dockerfile:3:7", "# check=skip=RULE"]);
    s.build(&["--check"]).fails(3);
    let one = Sandbox::bare("FORM scratch\n").build(&[]).fails(1).says(&["did you mean FROM?"]);
    assert!(!one.stderr.contains("1 error"), "{}", one.stderr);
}

#[test]
fn excerpts_are_of_any_file() {
    // A comment in another encoding, and a file of many megabytes.
    let s = Sandbox::bare("");
    let mut text = b"# caf\xe9\nFROM scratch\n".to_vec();
    text.extend(b"# comment\n".repeat(200_000));
    text.extend(b"RNU x\xe9y\nRUN --netwrok=none \xff\n");
    s.file("Dockerfile", text);
    let places =
        ["Dockerfile:200003:1", "200003 | RNU x?y", "^^^", "Dockerfile:200004:5", "200004 | RUN --netwrok=none ?"];
    s.build(&[]).fails(1).says(&places).says(&["save the file as UTF-8", "did you mean --network?"]);
}

#[test]
fn a_missing_base_names_the_image_that_was_meant() {
    let s = Sandbox::bare("FROM scratch\nCOPY busybox /b\n");
    s.build(&["-t", "localhost:1/mybase:1"]).ok();
    s.file("Dockerfile", "FROM localhost:1/mybaes:1\n");
    s.build(&[]).fails(1).says(&["Dockerfile:1:6", "connection refused", "did you mean localhost:1/mybase:1"]);
    s.file("Dockerfile", "FROM localhost:1/mybase:1\nRUN --security=insecure true\n");
    s.build(&[]).fails(1).says(&["Dockerfile:2", "add --allow security.insecure"]);
}

#[test]
fn a_program_of_another_machine_comes_with_what_to_do() {
    let Some(s) = Sandbox::new("FROM scratch\nCOPY --chmod=755 program /program\nRUN [\"/program\"]\n") else { return };
    if std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|mut dir| dir.next().is_some()) {
        eprintln!("SKIPPED: this machine may have emulators");
        return;
    }
    // An ELF file for s390x.
    let mut program = [0; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x02\x01");
    (program[17], program[19]) = (2, 22);
    s.file("program", program);
    let says =
        ["RUN (Dockerfile:3)", "/program: built for linux/s390x", "qemu-user-static", "--platform=$BUILDPLATFORM"];
    s.build(&["--platform=linux/s390x"]).fails(1).says(&says);
}

#[test]
fn who_stops_reading_gets_no_panic() {
    let s = Sandbox::bare("FROM scratch\nCOPY nothing /\n");
    for stream in ["build", "images"] {
        let mut child = s.command([stream, "ctx"]);
        child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(i32::from(stream == "build")), "{stream}");
    }
}
