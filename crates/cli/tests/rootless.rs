//! Builds of a user who has no subordinate ids.

mod support;

use support::{BASE, Run, Sandbox, is_root, text};

/// What the user lacks: a line in /etc/subuid, or the tools.
const SUBUIDS: &str = "uid";

fn built_by_nobody(dockerfile: &str) -> Option<(Sandbox, Run)> {
    let sandbox = Sandbox::new(dockerfile)?;
    if !is_root() {
        eprintln!("SKIPPED: only root can become somebody else");
        return None;
    }
    let args = ["build", "--progress=plain", "--no-cache", "--iidfile", "id", "ctx"];
    let mut command = sandbox.command_of_nobody(args);
    command.env("SOURCE_DATE_EPOCH", "1");
    let run = Run::from(command.output().expect("it starts"));
    if run.stderr.contains("user namespace") {
        eprintln!("SKIPPED: users may not make namespaces here:\n{}", run.stderr);
        return None;
    }
    Some((sandbox, run.ok()))
}

#[test]
fn owners_are_recorded_give_the_digest_of_root_and_it_is_said_once() {
    let dockerfile = format!("{BASE}RUN touch /a && chown 7:8 /a && chmod 640 /a\nRUN touch /b && chown 9 /b\n");
    let Some((sandbox, run)) = built_by_nobody(&dockerfile) else { return };
    assert_eq!(run.stderr.matches("single user id").count(), 1, "{}", run.stderr);
    run.says(&["WARNING", "owners that they give to files are recorded for the image", SUBUIDS]);
    let roots = Sandbox::bare(&dockerfile);
    let mut command = roots.command(["build", "--progress=plain", "--iidfile", "id", "ctx"]);
    Run::from(command.env("SOURCE_DATE_EPOCH", "1").output().expect("it starts")).ok().hides("single user id");
    assert_eq!(text(sandbox.path("id")), text(roots.path("id")));
}

#[test]
fn files_of_another_user_are_its_own() {
    let made = "mkdir -m 2775 /srv/d && touch /srv/a /srv/d/f && chmod 4755 /srv/a && echo x >> /srv/old";
    let dockerfile = format!(
        "{BASE}RUN mkdir -m 777 /srv && touch /srv/old && chmod 666 /srv/old\nUSER 7:8\nWORKDIR /srv/cwd\nRUN {made}\n"
    );
    let Some((sandbox, _)) = built_by_nobody(&dockerfile) else { return };
    let roots = Sandbox::bare(&dockerfile);
    let mut command = roots.command(["build", "--iidfile", "id", "ctx"]);
    Run::from(command.env("SOURCE_DATE_EPOCH", "1").output().expect("it starts")).ok();
    assert_eq!(text(sandbox.path("id")), text(roots.path("id")));
}

#[test]
fn links_of_another_user_are_roots_and_it_is_said() {
    let Some((_, run)) =
        built_by_nobody(&format!("{BASE}RUN mkdir -m 777 /srv\nUSER 7\nRUN ln -s x /srv/l\nRUN ln -s x /srv/m\n"))
    else {
        return;
    };
    let run = run.says(&["1 link that it made as another user than root belongs to root", SUBUIDS]);
    assert_eq!(run.stderr.matches("single user id").count(), 1, "{}", run.stderr);
}
