//! `kiln debug` and `kiln build --on-error=shell`.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use support::*;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

#[test]
fn an_image_without_a_shell_gets_tools_and_stays_as_it_is() {
    let Some(s) = Sandbox::new(
        "FROM scratch\nCOPY --chmod=755 busybox /app/tool\nENV WHERE=inside\nWORKDIR /app\nUSER 1234\nCMD [\"/app/tool\"]\n",
    ) else {
        return;
    };
    s.build(&["-t", "app"]).ok();
    s.kiln(&["run", "app", "sh"]).fails(127);
    assert_eq!(s.kiln(&["debug", "app", "ls", "/app"]).ok().stdout, "tool\n");
    let shown = s.kiln(&["debug", "app", "sh", "-c", "id -u; pwd; echo $WHERE; touch /tmp-file || echo refused"]).ok();
    assert_eq!(shown.stdout, "1234\n/app\ninside\nrefused\n");
    assert_eq!(s.kiln(&["debug", "-u", "0", "app", "id", "-u"]).ok().stdout, "0\n");
    assert_eq!(s.kiln(&["debug", "app", "sh", "-c", "exit 6"]).code, 6);
    let out = s.export(&[]);
    assert_eq!(names(&out), ["app"], "nothing of the tools is in the image");
    s.kiln(&["debug", "--tools", "/no/such/file", "app"]).fails(125).says(&["/no/such/file"]);
}

#[test]
fn a_failed_step_can_be_looked_into() {
    if !has_tool("script") {
        eprintln!("SKIPPED: script is not installed");
        return;
    }
    let dockerfile = format!(
        "{BASE}FROM base\nENV WHERE=inside\nWORKDIR /work\n\
         RUN --mount=type=cache,target=/cache,sharing=locked --mount=type=secret,id=s \
         echo half > made && echo kept > /cache/f && exit 3\n"
    );
    let Some(s) = Sandbox::new(&dockerfile) else { return };
    let secret = s.file("secret", "hidden");
    s.build(&["--secret", &format!("id=s,src={}", secret.display())]).fails(1).says(&["--on-error=shell"]);
    let in_terminal = |line: &str| {
        let mut command = Command::new("script");
        command.args(["-qec", line, "/dev/null"]).env("KILN_ROOT", s.path("store"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let line = format!("{} build --secret 'id=s,src={}' {}", KILN, secret.display(), s.ctx().display());
    let output = in_terminal(&line).wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let pasted = shown.lines().find(|l| l.starts_with("  ") && l.contains("--on-error=shell"));
    let pasted = pasted.unwrap_or_else(|| panic!("no command in {shown}"));
    assert!(pasted.trim_start().starts_with(&format!("{KILN} build --on-error=shell --secret")), "{pasted}");
    let mut child = in_terminal(pasted);
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"echo \"[$(cat made /cache/f /run/secrets/s) $(pwd) $WHERE]\"; exit\n").unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keys);
    let shown = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(shown.contains("[half\nkept\nhidden /work inside]"), "{shown}");
    assert!(shown.contains("exit code: 3"), "{shown}");
    assert_eq!(output.status.code(), Some(1));
}
