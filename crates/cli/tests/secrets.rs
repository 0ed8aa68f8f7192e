//! The forms of `--secret` and of `RUN --mount=type=secret`.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

/// What a step sees of the secret `id`.
fn seen(s: &Sandbox, spec: &str, mount: &str) -> Result<String, Run> {
    s.file(
        "Dockerfile",
        format!("{BASE}RUN --mount=type=secret,{mount} cat /run/secrets/id | tr 'a-z' 'b-za' > /seen\n"),
    );
    let _ = std::fs::remove_dir_all(s.path("out"));
    let run = s.build(&["--no-cache", "--secret", spec, "-o", "out"]);
    if run.code == 0 { Ok(text(s.path("out/seen"))) } else { Err(run) }
}

#[test]
fn where_a_value_comes_from() {
    let Some(mut s) = Sandbox::new("") else { return };
    for name in ["id", "other", "VARIABLE"] {
        std::fs::write(s.path(name), format!("file {name}")).unwrap();
    }
    s.env("VARIABLE", "variable");
    for (spec, value) in [
        ("id=id", "file id"),
        ("id=id,src=other", "file other"),
        ("id=id,source=other", "file other"),
        ("type=file,id=id,src=VARIABLE", "file VARIABLE"),
        ("type=file,id=id", "file id"),
        ("id=id,env=VARIABLE", "variable"),
        ("type=env,id=id,env=VARIABLE", "variable"),
        ("type=env,id=id,src=VARIABLE", "variable"),
    ] {
        let shifted: String = value
            .chars()
            .map(|c| {
                if c == 'z' {
                    'a'
                } else if c.is_ascii_lowercase() {
                    (c as u8 + 1) as char
                } else {
                    c
                }
            })
            .collect();
        assert_eq!(seen(&s, spec, "id=id").unwrap_or_else(|r| panic!("{spec}: {}", r.stderr)), shifted, "{spec}");
    }
    // A variable named like the id wins over a file.
    s.env("id", "variable");
    assert_eq!(seen(&s, "id=id", "id=id").ok().unwrap(), "wbsjbcmf");
    for (spec, says) in [
        ("src=other", "id= is missing"),
        ("id=id,env=UNSET", "UNSET is not set"),
        ("type=env,id=unset", "unset is not set"),
        ("id=id,src=nowhere", "nowhere"),
        ("id=id,src=ctx", "directory"),
        ("id=id,src=other,env=VARIABLE", "exclude each other"),
        ("type=vault,id=id", "type=vault"),
        ("id=id,mode=0400", "mode=0400"),
    ] {
        let run = seen(&s, spec, "id=id").err().unwrap_or_else(|| panic!("{spec} was taken"));
        assert!(run.code != 0 && run.stderr.contains(says), "{spec}: {}", run.stderr);
    }
    // A word that busybox has in it is no proof.
    let run = s.build(&["--secret", "id=id,env=VARIABLE"]);
    run.ok().says(&["a common one, is in /bin/busybox", "by chance"]);
    std::fs::write(s.path("large"), vec![b'x'; 600 << 10]).unwrap();
    seen(&s, "id=id,src=large", "id=id").err().unwrap().says(&["more than 512000 bytes"]);
}

#[test]
fn how_a_step_gets_it() {
    let Some(s) = Sandbox::new(&format!(
        "{BASE}RUN --mount=type=secret,id=a.b stat -c '%a %u:%g' /run/secrets/a.b > /default\n\
         RUN --mount=type=secret,id=a.b,target=/root/x/y,mode=0640,uid=3,gid=4 stat -c '%a %u:%g' /root/x/y > /given\n\
         RUN --mount=type=secret,id=a.b,env=A test -n \"$A\" && test ! -e /run/secrets/a.b\n\
         RUN --mount=type=secret,id=a.b,env=A,target=/t test -n \"$A\" && test -s /t\n\
         RUN --mount=type=secret,target=/etc/a.b test -s /etc/a.b\n\
         RUN --mount=type=secret,id=none test ! -e /run/secrets/none\n\
         USER 5\nRUN --mount=type=secret,id=a.b ! cat /run/secrets/a.b\n\
         RUN --mount=type=secret,id=a.b,uid=5 test -s /run/secrets/a.b && ! echo x > /run/secrets/a.b\n"
    )) else {
        return;
    };
    std::fs::write(s.path("value"), "not to be seen in here").unwrap();
    let out = s.export(&["--secret", "id=a.b,src=value"]);
    assert_eq!(text(out.join("default")), "400 0:0\n");
    assert_eq!(text(out.join("given")), "640 3:4\n");
    assert_eq!(names(&out), ["bin", "default", "given"], "no mount point stays");
    for mount in ["id=none,required", "id=none,required=true", "id=none,env=X,required"] {
        s.file("Dockerfile", format!("{BASE}RUN --mount=type=secret,{mount} true\n"));
        s.build(&[]).fails(1).says(&["\"none\"", "Dockerfile:4", "--secret id=none"]);
    }
}

#[test]
fn core_dumps_hold_no_memory() {
    let Some(s) = Sandbox::new(&format!("{BASE}RUN cat /proc/self/coredump_filter > /filter\n")) else { return };
    let Ok(usual) = std::fs::read_to_string("/proc/self/coredump_filter") else {
        eprintln!("SKIPPED: this kernel makes no core dumps");
        return;
    };
    assert_eq!(text(s.export(&["--no-cache"]).join("filter")), usual);
    std::fs::write(s.path("value"), "not to be seen in here").unwrap();
    assert_eq!(text(s.export(&["--no-cache", "--secret", "id=a,src=value"]).join("filter")), "00000000\n");
}
