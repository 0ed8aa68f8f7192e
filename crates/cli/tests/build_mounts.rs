//! `RUN --mount`: what a step gets for its own time only, and the proof that secrets do not stay.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

const TOKEN: &str = "t0ken-Zx81-very-secret-value";

fn with_base(rest: &str) -> Option<Sandbox> {
    let sandbox = Sandbox::new(&format!("{BASE}{rest}"))?;
    std::fs::write(sandbox.path("token"), TOKEN).unwrap();
    Some(sandbox)
}

#[test]
fn bind_mounts_lend_files_and_take_back_what_is_written() {
    let Some(s) = with_base(
        "FROM base AS other\nRUN mkdir /o && echo other > /o/f\nFROM base\n\
         RUN --mount=target=/src --mount=from=other,source=/o,target=/from,rw cat /src/a /from/f > /seen && echo x > /from/g && ! echo x > /src/b\n\
         RUN --mount=type=bind,from=other,source=/o/f,target=/one cat /one > /two\n",
    ) else {
        return;
    };
    s.file("a", "context\n");
    let out = s.export(&[]);
    assert_eq!(text(out.join("seen")), "context\nother\n");
    assert_eq!(text(out.join("two")), "other\n");
    assert_eq!(names(&out), ["bin", "seen", "two"], "no mount point stays");
    assert!(!s.ctx().join("b").exists());
}

#[test]
fn cache_mounts_outlive_builds_and_stay_out_of_the_image() {
    let Some(s) =
        with_base("ARG N\nRUN --mount=type=cache,target=/cache,id=c echo $N >> /cache/log; cp /cache/log /copy\n")
    else {
        return;
    };
    s.export(&["--build-arg", "N=1"]);
    let out = s.export(&["--build-arg", "N=2"]);
    assert_eq!(text(out.join("copy")), "1\n2\n");
    assert_eq!(names(&out), ["bin", "copy"]);
}

#[test]
fn locked_caches_are_used_one_after_the_other() {
    let steps: String = (0..4)
        .map(|i| {
            format!(
                "FROM base AS s{i}\nRUN --mount=type=cache,target=/c,id=locked,sharing=locked mkdir /c/held && sleep 0.1 && rmdir /c/held && echo {i} > /r{i}\n"
            )
        })
        .collect();
    let copies: String = (0..4).map(|i| format!("COPY --from=s{i} /r{i} /\n")).collect();
    let Some(s) = with_base(&format!("{steps}FROM scratch\n{copies}")) else { return };
    assert_eq!(names(s.export(&["--jobs", "4"])).len(), 4);
}

#[test]
fn bind_mounts_come_from_stages_images_and_contexts() {
    let Some(s) = with_base(
        "FROM base AS stage\nRUN mkdir -p /d/sub && echo stage > /d/sub/f\n\
         FROM base\nARG DIR=sub\nENV TO=/to\n\
         RUN --mount=from=stage,source=/d/${DIR},target=${TO}/a,rw --mount=from=local/image,source=d,target=/to/b,readwrite \\\n  \
             --mount=type=bind,from=named,source=$DIR,destination=/to/c,rw --mount=src=sub,dst=/to/d,rw=true \\\n  \
             for m in a b c d; do cat /to/$m/f >> /seen; echo changed > /to/$m/f; echo new > /to/$m/new; rm -rf /to/$m/gone; done; cat /to/*/f >> /seen\n\
         RUN --mount=from=named,target=/c --mount=target=/d cat /c/sub/f /d/sub/f >> /seen; ! test -e /c/sub/new && ! touch /c/x /d/x\n",
    ) else {
        return;
    };
    for (dir, text) in [("ctx", "context"), ("named", "named")] {
        std::fs::create_dir_all(s.path(dir).join("sub/gone")).unwrap();
        std::fs::write(s.path(dir).join("sub/f"), format!("{text}\n")).unwrap();
    }
    let dockerfile = text(s.path("ctx/Dockerfile"));
    s.file("Dockerfile", format!("{BASE}RUN mkdir /d && echo image > /d/f\n"));
    s.build(&["-t", "local/image"]).ok();
    s.file("Dockerfile", dockerfile);
    let out = s.export(&["--build-context", "named=named"]);
    let changed = "changed\n".repeat(4);
    assert_eq!(text(out.join("seen")), format!("stage\nimage\nnamed\ncontext\n{changed}named\ncontext\n"));
    assert_eq!(names(&out), ["bin", "seen"]);
    for dir in ["ctx", "named"] {
        assert_eq!(names(s.path(dir).join("sub")), ["f", "gone"], "nothing reaches the user's directory");
    }
    s.file("Dockerfile", format!("{BASE}RUN --mount=from=stag,target=/x true\n"));
    s.build(&[]).fails(1).says(&["Dockerfile:4"]);
}

#[test]
fn options_of_cache_mounts() {
    let Some(s) = with_base(
        "FROM base AS seed\nRUN mkdir -p /d/sub && echo seed > /d/sub/f\n\
         FROM base\nARG ID=given\nARG N\n\
         RUN --mount=type=cache,id=${ID},target=/c,mode=0750,uid=5,gid=6 stat -c '%a %u:%g' /c >> /seen; touch /c/$N\n\
         RUN --mount=type=cache,target=/plain stat -c '%a %u:%g' /plain >> /seen\n\
         RUN --mount=type=cache,id=seeded,from=seed,source=/d,target=/s cat /s/sub/f >> /seen; echo \"changed $N\" > /s/sub/f\n\
         RUN --mount=type=cache,id=seeded,target=/s,ro cat /s/sub/f >> /seen; ! touch /s/x\n",
    ) else {
        return;
    };
    let seen = |n: &str, seeded: &str| format!("750 5:6\n755 0:0\n{seeded}\nchanged {n}\n");
    assert_eq!(text(s.export(&["--build-arg", "N=1"]).join("seen")), seen("1", "seed"));
    assert_eq!(text(s.export(&["--build-arg", "N=2"]).join("seen")), seen("2", "changed 1"));
    assert_eq!(s.kiln(&["cache", "ls", "-q"]).ok().stdout, "/plain\ngiven\nseeded\n");
    for (bad, says) in [("sharing=none", "sharing"), ("id=x,mode=9", "mode"), ("uid=root", "uid"), ("size=1", "size")] {
        s.file("Dockerfile", format!("{BASE}RUN --mount=type=cache,target=/c,{bad} true\n"));
        s.build(&[]).fails(1).says(&["Dockerfile:4", says]);
    }
}

/// Two processes build at the same time, each with its own `N`, and meet in a shared mount.
#[test]
fn builds_at_the_same_time_share_a_cache_mount_or_do_not() {
    let meet = "touch /meet/$0-$N; i=0; while [ $(ls /meet | grep -c ^$0-) -lt 2 ]; do i=$((i+1)); [ $i -lt 600 ] || exit 7; sleep 0.05; done";
    let Some(s) = with_base(&format!(
        "FROM base\nARG N\n\
         RUN --mount=type=cache,id=meet,target=/meet --mount=type=cache,id=own,sharing=private,target=/own \\\n  \
             touch /own/$N; sh -c '{meet}' one; ls /own > /private; sh -c '{meet}' two\n\
         RUN --mount=type=cache,id=lock,sharing=locked,target=/lock mkdir /lock/held && sleep 0.1 && rmdir /lock/held && echo $N >> /lock/log\n"
    )) else {
        return;
    };
    s.build(&["--target", "base"]).ok();
    let start = |n: &str| {
        let arg = format!("N={n}");
        let dest = format!("out{n}");
        let args = ["build", "--progress=plain", "--build-arg", &arg, "-o", &dest, "ctx"];
        s.command(args).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    for (n, child) in ["1", "2"].map(|n| (n, start(n))) {
        let run: Run = child.wait_with_output().unwrap().into();
        run.ok();
        assert_eq!(text(s.path(format!("out{n}/private"))), format!("{n}\n"), "each has a mount of its own");
    }
    s.kiln(&["cache", "export", "lock", "-o", "lock.tar"]).ok();
    let log = std::process::Command::new("tar").args(["-xOf"]).arg(s.path("lock.tar")).arg("log").output().unwrap();
    assert_eq!(log.stdout.len(), 4, "both have written");
}

#[test]
fn tmpfs_mounts_are_gone_after_the_step() {
    let Some(s) = with_base(
        "RUN --mount=type=tmpfs,target=/t echo x > /t/f && mount | grep -q ' /t ' && cp /t/f /kept\nRUN ! test -e /t\n",
    ) else {
        return;
    };
    assert_eq!(names(s.export(&[])), ["bin", "kept"]);
}

#[test]
fn secrets_are_files_and_variables_for_one_step() {
    let Some(mut s) = with_base(
        "RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /size && stat -c %a /run/secrets/token > /mode\n\
         RUN --mount=type=secret,id=token,target=/etc/tok,mode=0444,uid=5 stat -c %a:%u /etc/tok > /mode2\n\
         RUN --mount=type=secret,id=var,env=VAR test ${#VAR} = 21 && printf %s \"$VAR\" | sha256sum > /sum\n\
         RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\nRUN test ! -e /run/secrets/token\n",
    ) else {
        return;
    };
    s.env("VARIABLE", "value-of-the-variable");
    let secrets = ["--secret", "id=token,src=token", "--secret", "id=var,env=VARIABLE"];
    let out = s.export(&secrets);
    assert_eq!(text(out.join("size")).trim(), TOKEN.len().to_string());
    assert_eq!((text(out.join("mode")).trim(), text(out.join("mode2")).trim()), ("400", "444:5"));
    assert_eq!(names(&out), ["bin", "mode", "mode2", "size", "sum"]);
    // The value is in no key: another one does not run the steps again.
    std::fs::write(s.path("token"), "another-value-of-the-secret").unwrap();
    assert_eq!(s.build(&secrets).ok().executed(), [""; 0]);
}

#[test]
fn a_required_secret_that_is_not_given_is_named() {
    let Some(s) = with_base("RUN --mount=type=secret,id=npmrc,required true\n") else { return };
    s.build(&[]).fails(1).says(&["npmrc", "Dockerfile:4"]);
    s.build(&["--secret", "id=npmrc,src=nowhere"]).fails(1).says(&["nowhere"]);
}

#[test]
fn a_secret_in_the_result_fails_the_build_and_leaves_no_image() {
    for (what, leak) in [
        ("plain", "cat /run/secrets/token > /leak"),
        ("inside", "(echo before; cat /run/secrets/token; echo after) > /leak"),
        ("base64", "base64 < /run/secrets/token > /leak"),
        ("deleted later", "cat /run/secrets/token > /leak\nRUN rm /leak"),
    ] {
        let Some(s) = with_base(&format!("RUN --mount=type=secret,id=token {leak}\n")) else { return };
        let run =
            s.build(&["--secret", "id=token,src=token", "-t", "leaky"]).fails(4).says(&["token", "leak"]).hides(TOKEN);
        assert!(
            run.stderr.contains("Dockerfile") || run.stderr.contains("RUN"),
            "{what}: it says where: {}",
            run.stderr
        );
        assert!(!s.kiln(&["images"]).ok().stdout.contains("leaky"), "{what}: no image was made");
        s.build(&["--secret", "id=token,src=token", "-o", "type=oci,dest=leaky.tar"]).fails(4);
        assert!(!s.path("leaky.tar").exists(), "{what}: no archive was made");
        s.build(&["--secret", "id=token,src=token", "-t", "leaky", "--leaks=warn"]).ok().hides(TOKEN);
    }
}

#[test]
fn build_args_with_secrets_are_found_in_history_and_env() {
    let Some(s) = with_base("ARG TOKEN\nENV SAVED=$TOKEN\n") else { return };
    let arg = format!("TOKEN={TOKEN}");
    s.build(&["--secret", "id=token,src=token", "--build-arg", &arg]).fails(4).hides(TOKEN);
}

#[test]
fn the_stage_that_saw_the_secret_may_keep_it_if_it_is_left_behind() {
    let Some(s) = with_base(
        "FROM base AS fetch\nRUN --mount=type=secret,id=token cat /run/secrets/token > /copy && echo product > /out\n\
         FROM scratch\nCOPY --from=fetch /out /out\n",
    ) else {
        return;
    };
    let secret = ["--secret", "id=token,src=token"];
    assert_eq!(names(s.export(&secret)), ["out"]);
    s.build(&[&secret[..], &["--target", "fetch"]].concat()).fails(4).says(&["/copy"]).hides(TOKEN);
}

#[test]
fn what_a_step_prints_of_a_secret_is_hidden() {
    let Some(s) = with_base("RUN --mount=type=secret,id=token cat /run/secrets/token; exit 3\n") else { return };
    s.build(&["--secret", "id=token,src=token"]).fails(1).says(&["exit code: 3"]).hides(TOKEN);
    s.kiln(&["logs"]).ok().hides(TOKEN);
}

#[test]
fn the_agent_is_reached_through_an_ssh_mount() {
    if !has_tool("ssh-agent") {
        return;
    }
    let Some(mut s) = with_base(
        "RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > /path\nRUN test -z \"$SSH_AUTH_SOCK\"\n",
    ) else {
        return;
    };
    // A socket's address has at most 107 bytes, the path of a store may have more.
    s.env("KILN_ROOT", s.path("long/".repeat(30)).to_str().unwrap());
    let socket = s.path("agent");
    let mut agent = std::process::Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(agent.try_wait().unwrap().is_none(), "the agent ended");
        std::thread::yield_now();
    }
    let out = s.build(&["--ssh", &format!("default={}", socket.display()), "-o", "out"]);
    agent.kill().unwrap();
    agent.wait().unwrap();
    out.ok();
    assert_eq!(names(s.path("out")), ["bin", "path"]);
    s.file("Dockerfile", format!("{BASE}RUN --mount=type=ssh,required true\n"));
    s.build(&[]).fails(1).says(&["ssh"]);
}

#[test]
fn an_empty_stage_is_an_empty_mount_for_every_user() {
    let Some(s) = Sandbox::new(&format!(
        "FROM scratch AS nothing\n{BASE}USER 5\nRUN --mount=from=nothing,target=/x test -z \"$(ls -A /x)\" && ls /x\n"
    )) else {
        return;
    };
    s.build(&[]).ok();
}
