//! Secrets in results: every exporter is searched, `kiln check-leaks` searches what exists, and nothing is left elsewhere.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

const TOKEN: &str = "t0ken-Zx81-very-secret-value";

fn sandbox(rest: &str) -> Option<Sandbox> {
    let s = Sandbox::new(&format!("{BASE}{rest}"))?;
    std::fs::write(s.path("token"), TOKEN).unwrap();
    Some(s)
}

const SECRET: [&str; 2] = ["--secret", "id=token,src=token"];

#[test]
fn every_exporter_refuses_a_secret() {
    let Some(s) = sandbox("RUN --mount=type=secret,id=token cp /run/secrets/token /leak\n") else { return };
    for output in [
        "type=image,name=x",
        "type=oci,dest=o.tar",
        "type=oci,dest=o.dir,tar=false",
        "type=docker,dest=d.tar",
        "type=tar,dest=t.tar",
        "type=local,dest=files",
        "-",
    ] {
        let run = s.build(&[&SECRET[..], &["-o", output]].concat()).fails(4);
        let run = run.says(&["secret \"token\"", "/leak", "Dockerfile:4", "in plain", "--leaks=warn"]).hides(TOKEN);
        assert_eq!(run.stdout, "", "{output}");
    }
    assert_eq!(names(s.path("")), ["ctx", "home", "store", "token"], "nothing was written");
    // Found again when all is cached, and written when asked for.
    s.build(&[&SECRET[..], &["-o", "files", "--leaks=warn"]].concat()).ok().says(&["WARNING", "/leak"]).hides(TOKEN);
    assert_eq!(text(s.path("files/leak")), TOKEN);
    s.build(&[&SECRET[..], &["-o", "files", "--leaks=off"]].concat()).ok();
}

#[test]
fn files_that_are_not_exported_do_not_count() {
    let Some(s) = sandbox("RUN --mount=type=secret,id=token cp /run/secrets/token /leak\nRUN rm /leak\n") else {
        return;
    };
    // The layers of an image keep it, a directory does not.
    s.build(&[&SECRET[..], &["-o", "type=tar,dest=t.tar"]].concat()).ok();
    s.build(&SECRET).fails(4);
}

#[test]
fn a_bundle_of_certificates_is_no_secret_but_a_key_in_it_is() {
    let copy = "RUN --mount=type=secret,id=token cp /run/secrets/token /bundle.pem\n";
    let Some(s) = sandbox(copy) else { return };
    let block = |label: &str, line: &str| format!("-----BEGIN {label}-----\n{line}\n-----END {label}-----\n");
    let certificate = block("CERTIFICATE", "MIIFazCCA1OgAwIBAgIRAIIQz7DSQONZRGPgu2OCiwAwDQYJKoZIhvcNAQELBQAw");
    std::fs::write(s.path("token"), &certificate).unwrap();
    s.build(&[&SECRET[..], &["-o", "files"]].concat()).ok();
    assert_eq!(text(s.path("files/bundle.pem")), certificate);
    let key = block("PRIVATE KEY", "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2");
    std::fs::write(s.path("token"), certificate + &key).unwrap();
    s.build(&[&SECRET[..], &["--no-cache", "-o", "files"]].concat()).fails(4).says(&["/bundle.pem"]);
}

#[test]
fn names_links_attributes_and_metadata_are_searched() {
    for (what, line, args, place) in [
        ("name", format!("RUN mkdir /{TOKEN}"), &[][..], "Dockerfile:4"),
        ("link", format!("RUN ln -s {TOKEN} /l"), &[], "/l"),
        ("label", format!("LABEL l={TOKEN}"), &[], "labels (l)"),
        ("env", format!("ENV E=x{TOKEN}"), &[], "environment (E)"),
        ("history", format!("RUN : {TOKEN}"), &[], "history"),
        ("cmd", format!("CMD [\"{TOKEN}\"]"), &[], "history"),
        ("annotation", String::new(), &["--annotation", "a=t0ken-Zx81-very-secret-value"], "an"),
        ("index", String::new(), &["--annotation", "index:a=t0ken-Zx81-very-secret-value"], "an"),
    ] {
        let Some(s) = sandbox(&format!("{line}\n")) else { return };
        let run = s.build(&[&SECRET[..], args, &["-o", "type=oci,dest=o.tar"]].concat());
        let run = run.fails(4).hides(TOKEN);
        assert!(run.stderr.contains(place), "{what}: {}", run.stderr);
        assert!(!s.path("o.tar").exists(), "{what}");
    }
}

#[test]
fn every_notation_is_found_and_nothing_is_left_in_the_store() {
    let Some(s) = sandbox(
        "FROM base AS b64\nRUN --mount=type=secret,id=token,env=T printf 'user:%s@host' \"$T\" | base64 -w 20 > /f\n\
         FROM base AS hex\nRUN --mount=type=secret,id=token,env=T printf %s \"$T\" | hexdump -v -e '1/1 \"%02x\"' > /f\n\
         FROM base AS sum\nRUN --mount=type=secret,id=token,env=T printf %s \"$T\" | sha256sum > /f\n",
    ) else {
        return;
    };
    for (stage, form) in [("b64", "base64-encoded"), ("hex", "hex-encoded")] {
        s.build(&[&SECRET[..], &["--target", stage]].concat()).fails(4).says(&[form, "/f"]).hides(TOKEN);
    }
    s.build(&[&SECRET[..], &["--target", "sum"]].concat()).ok();
    // A store that only ever saw builds which behave has the value nowhere: layers, records, logs, caches.
    let Some(s) = sandbox(
        "RUN --mount=type=secret,id=token test -s /run/secrets/token && cat /run/secrets/token\nRUN --mount=type=secret,id=token,env=T echo $T\n",
    ) else {
        return;
    };
    s.build(&[&SECRET[..], &["-t", "x"]].concat()).ok().hides(TOKEN);
    assert_eq!(files_with(&s.path("store"), TOKEN.as_bytes()), Vec::<std::path::PathBuf>::new());
    s.kiln(&["logs"]).ok().hides(TOKEN);
    s.kiln(&["history", "--no-trunc", "x"]).ok().hides(TOKEN);
}

#[test]
fn credentials_of_git_and_http_urls_stay_out() {
    let Some(s) = sandbox("LABEL x=1\n") else { return };
    let arg = "ADD https://user:t0ken-Zx81-very-secret-value@127.0.0.1:1/r.git /src\n";
    s.file("Dockerfile", format!("FROM scratch\n{arg}"));
    s.build(&[]).fails(1).hides(TOKEN);
    s.file("Dockerfile", format!("FROM scratch\n{}", arg.replace("r.git", "file")));
    s.build(&[]).fails(1).hides(TOKEN);
    let run = s.kiln(&["build", "https://user:t0ken-Zx81-very-secret-value@127.0.0.1:1/r.git"]);
    run.fails(1).hides(TOKEN);
    assert_eq!(files_with(&s.path("store"), TOKEN.as_bytes()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn cve_2023_26054_credentials_of_urls_are_not_in_history_names_or_records() {
    use std::io::{Read, Write};
    let s = Sandbox::bare("");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = vec![0; 8192];
            let n = client.read(&mut request).unwrap_or(0);
            let authorized = String::from_utf8_lossy(&request[..n]).to_lowercase().contains("authorization: basic");
            let head = if authorized { "200 OK" } else { "401 Unauthorized" };
            let _ = client.write_all(
                format!("HTTP/1.1 {head}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").as_bytes(),
            );
        }
    });
    let url = format!("http://user:{TOKEN}@127.0.0.1:{port}/file");
    s.file("Dockerfile", format!("FROM scratch\nADD {url} /a\nADD [\"{url}\", \"/b\"]\n"));
    s.build(&["-t", "x"]).ok().hides(TOKEN);
    let history = s.kiln(&["history", "--no-trunc", "x"]).ok();
    assert!(history.stdout.contains(&format!("ADD http://127.0.0.1:{port}/file /a")), "{}", history.stdout);
    s.kiln(&["logs"]).ok().hides(TOKEN);
    // An instruction that keeps its text as it is can't be helped, but is found.
    s.file("Dockerfile", format!("FROM scratch\nARG U={url}\nADD $U /a\n"));
    s.build(&["-t", "x"]).fails(4).says(&["the token of http://127.0.0.1", "history"]).hides(TOKEN);
    // As a context, too: the record of the build has no credentials in it.
    s.kiln(&["build", &url]).hides(TOKEN);
    s.kiln(&["logs", "--list"]).ok().hides(TOKEN);
}

/// A `git` that writes down what others can see of it, and what it can read.
fn spying_git(s: &Sandbox) {
    let script = "#!/bin/sh\n{ tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' '\\n' < /proc/$$/environ; } >> SEEN\n\
                  /usr/bin/git config --get-urlmatch http.extraHeader https://git.example.com/r.git >> CONFIG\n\
                  /usr/bin/git config --get-urlmatch http.extraHeader https://evil.example.com/r.git >> OTHER\nexit 1\n";
    let at = |name: &str| s.path(name).display().to_string();
    let script = script.replace("SEEN", &at("seen")).replace("CONFIG", &at("config")).replace("OTHER", &at("other"));
    s.file_mode("../bin/git", &script, 0o755);
}

#[test]
fn git_tokens_are_not_in_arguments_or_environment_and_go_to_their_host_only() {
    if !has_tool("git") {
        return;
    }
    for (args, url) in [
        (&["--secret", "id=GIT_AUTH_TOKEN,src=token"][..], "https://git.example.com/r.git".to_owned()),
        (&["--secret", "id=GIT_AUTH_TOKEN.git.example.com,src=token"], "https://git.example.com/r.git".to_owned()),
        (&[], format!("https://x-access-token:{TOKEN}@git.example.com/r.git")),
    ] {
        let mut s = Sandbox::bare("");
        std::fs::write(s.path("token"), TOKEN).unwrap();
        spying_git(&s);
        s.env("PATH", &format!("{}:/usr/bin:/bin", s.path("bin").display()));
        s.kiln(&[&["build"], args, &[&url]].concat()).fails(1).hides(TOKEN);
        let header = "eC1hY2Nlc3MtdG9rZW46dDBrZW4tWng4MS12ZXJ5LXNlY3JldC12YWx1ZQ==";
        assert_eq!(text(s.path("config")), format!("Authorization: basic {header}\n"), "{url}");
        assert_eq!(text(s.path("other")), "", "another host gets nothing");
        let seen = text(s.path("seen"));
        assert!(seen.contains("ls-remote -- https://git.example.com/r.git"), "{seen}");
        assert!(!seen.contains(TOKEN) && !seen.contains(header), "{seen}");
    }
}

#[test]
fn helpers_and_other_steps_do_not_see_secrets_of_the_environment() {
    let Some(mut s) = sandbox(
        "RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=T echo started; nc 127.0.0.1 PORT\n",
    ) else {
        return;
    };
    // The step ends when its connection does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    s.file("Dockerfile", text(s.path("ctx/Dockerfile")).replace("PORT", &port));
    // While a step runs, every process of ours but the one that the user gave the variable to is looked at.
    s.env("VARIABLE", TOKEN);
    let mut child = s.command(["build", "--progress=plain", "--secret", "id=token,env=VARIABLE", "ctx"]);
    let mut child = child.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    assert!(lines.any(|l| l.unwrap().ends_with("started")), "the step runs");
    let mut seen = 0;
    let mut pending = vec![child.id()];
    while let Some(pid) = pending.pop() {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let has = |bytes: &[u8]| bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes());
        assert!(!has(&read("cmdline")), "the command line of {pid}");
        let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        if pid != child.id() && name.starts_with("kiln") {
            assert!(!has(&read("environ")), "the environment of {name} {pid}");
            seen += 1;
        }
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pending.extend(children.split_whitespace().filter_map(|p| p.parse::<u32>().ok()));
        }
    }
    drop(listener.accept());
    drop(lines);
    assert!(seen > 0, "there was a helper");
    child.wait().unwrap();
}

#[test]
fn the_mistake_of_the_article_fails_and_its_remedy_passes() {
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\nQyNTUxOQAAACDcMPG1Q9n8Zl0W1n4bq2m7r8yq0d8M2n3b1u5w7x9zAQAAAJj1lK1N9ZS\n-----END OPENSSH PRIVATE KEY-----";
    let Some(s) = sandbox(
        "FROM base AS fetch\nARG SSH_PRIVATE_KEY\nRUN echo \"$SSH_PRIVATE_KEY\" > /key && wc -l < /key > /gem\nFROM base\nCOPY --from=fetch /gem /gem\n",
    ) else {
        return;
    };
    let arg = format!("SSH_PRIVATE_KEY={key}");
    s.build(&["--build-arg", &arg, "-t", "good"]).ok().hides("QyNTUxOQAAACDcMPG1Q9n8");
    let run = s.build(&["--build-arg", &arg, "--target", "fetch", "-t", "bad"]).fails(4);
    run.says(&["\"SSH_PRIVATE_KEY\"", "/key", "[fetch 1/1]", "Dockerfile:6", "history", "--mount=type=secret"])
        .hides("QyNTUxOQAAACDcMPG1Q9n8");
    // The config of the image that is refused is nowhere.
    let left = files_with(&s.path("store/content"), b"QyNTUxOQAAACDcMPG1Q9n8");
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    // The same judgement of an image that exists.
    s.build(&["--build-arg", &arg, "--target", "fetch", "-t", "bad", "--leaks=off"]).ok();
    std::fs::write(s.path("id"), key).unwrap();
    let found = s.kiln(&["check-leaks", "--secret", "id=key,src=id", "bad"]).fails(4);
    assert!(found.stdout.contains("/key of layer 3 of 3, RUN echo"), "{}", found.stdout);
    found.hides("QyNTUxOQAAACDcMPG1Q9n8");
    s.kiln(&["check-leaks", "--secret", "id=key,src=id", "good"]).ok();
}

#[test]
fn check_leaks_looks_into_archives_and_layouts_and_at_shapes() {
    let Some(s) = sandbox(
        "RUN printf 'aws_access_key_id=AKIAIOSFODNN7EXAMPLE\\n' > /credentials\nRUN --mount=type=secret,id=token cp /run/secrets/token /leak\nRUN rm /leak\n",
    ) else {
        return;
    };
    let build = |output: &str| drop(s.build(&[&SECRET[..], &["--leaks=off", "-o", output]].concat()).ok());
    build("type=docker,dest=d.tar,name=app:1");
    build("type=oci,dest=o.tar");
    build("type=oci,dest=layout,tar=false,compression=zstd");
    for image in ["d.tar", "o.tar", "layout"] {
        let run = s.kiln(&[&["check-leaks"], &SECRET[..], &[image]].concat()).fails(4);
        assert!(run.stdout.contains("secret \"token\" is in /leak of layer"), "{image}: {}", run.stdout);
        run.hides(TOKEN);
        let shapes = s.kiln(&["check-leaks", image]).ok();
        assert!(shapes.stdout.contains("an AWS access key is in /credentials"), "{image}: {}", shapes.stdout);
        s.kiln(&["check-leaks", "--strict", image]).fails(4);
    }
    let json = s.kiln(&[&["check-leaks", "--format=json"], &SECRET[..], &["o.tar"]].concat()).fails(4);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert!(
        findings.iter().any(|f| f["kind"] == "secret" && f["path"] == "/leak" && f["form"] == "in plain"),
        "{json}"
    );
    // What an index names often is looked at once.
    let layout = s.path("layout/index.json");
    let mut index: serde_json::Value = serde_json::from_str(&text(&layout)).unwrap();
    let one = index["manifests"][0].clone();
    index["manifests"] = vec![one; 50].into();
    std::fs::write(&layout, index.to_string()).unwrap();
    let json = s.kiln(&["check-leaks", "--format=json", "layout"]).ok().stdout;
    assert!(json.contains("\"images\": 1,"), "{json}");
    s.kiln(&["check-leaks", "token"]).fails(1).says(&["archive"]);
}

#[test]
fn common_short_and_empty_values_are_told_in_a_few_lines() {
    let Some(s) = sandbox("RUN for i in $(seq 30); do echo is it qwxyzzy > /f$i; done\n") else { return };
    for (value, says, lines) in [
        ("qwxyzzy\n", "the value of secret \"s\", which is a common one, is in 26 more", 6),
        ("abc", "secret \"s\" is too short to be searched for", 1),
        ("\n", "secret \"s\" is empty", 1),
    ] {
        std::fs::write(s.path("value"), value).unwrap();
        let run = s.build(&["--secret", "id=s,src=value", "-o", "type=oci,dest=o.tar"]).ok();
        let told: Vec<&str> = run.stderr.lines().filter(|l| l.contains("WARNING")).collect();
        assert_eq!(told.len(), lines, "{told:?}");
        assert!(told.iter().any(|l| l.contains(says)), "{told:?}");
    }
}

#[test]
fn linked_copies_are_named_by_their_line_and_other_findings_hide_no_secret() {
    let Some(s) = sandbox("ENV ID=AKIAIOSFODNN7EXAMPLE\nCOPY --link keys /keys\n") else { return };
    let keys: String = (0..200).map(|i| format!("AKIA{i:016}\n")).collect();
    s.file("keys", format!("{keys}{TOKEN}\n"));
    let run = s.build(&[&SECRET[..], &["-o", "type=oci,dest=o.tar"]].concat()).fails(4);
    run.says(&["secret \"token\" is in /keys of ", "COPY --link keys /keys", "Dockerfile:5"]).hides(TOKEN);
}

#[test]
fn what_a_base_image_says_of_itself_is_searched_for_secrets_but_not_for_shapes() {
    const SHAPE: &str = "AKIAIOSFODNN7EXAMPLE";
    let lines = format!("ENV ID={SHAPE}\nLABEL id={SHAPE}\nRUN : {SHAPE}\nLABEL t={TOKEN}\n");
    let Some(s) = sandbox(&lines) else { return };
    let built = s.build(&["-t", "base:1"]).ok();
    assert!(built.stderr.contains("an AWS access key is in the image's environment (ID)"), "{}", built.stderr);
    s.file("Dockerfile", "FROM base:1\nENV MINE=1\n");
    for output in ["type=oci,dest=o.tar", "type=image,name=x"] {
        let run = s.build(&["-o", output]).ok();
        assert!(!run.stderr.contains("WARNING"), "{}", run.stderr);
        let run = s.build(&[&SECRET[..], &["-o", output]].concat()).fails(4);
        run.says(&["is in the base image's labels (t)", "is in the base image's history", "take another base"]);
    }
    s.file("Dockerfile", format!("FROM base:1\nENV MINE={SHAPE}\n"));
    s.build(&["-o", "type=oci,dest=o.tar"]).ok().says(&["an AWS access key is in the image's environment (MINE)"]);
}

#[test]
fn base_images_are_searched_for_secrets_but_not_for_shapes() {
    const SHAPE: &str = "aws_access_key_id=AKIAIOSFODNN7EXAMPLE";
    let Some(mut s) = sandbox(&format!("RUN echo {SHAPE} > /old && echo {TOKEN} > /kept\n")) else { return };
    let registry = kiln_registry::testing::DockerRegistry::start(&kiln_registry::testing::RegistryOptions::default());
    let pulled = registry.as_ref().map(|r| format!("{}/base:1", r.host()));
    let built = s.build(&["-t", "base:1"]).ok();
    assert!(built.stderr.contains("an AWS access key is in /old of [3/3] RUN echo"), "{}", built.stderr);
    if let Some(pulled) = &pulled {
        s.build(&["-t", pulled, "--push"]).ok();
    }
    // The base is in the store, or comes from a registry into another store.
    for base in [Some("base:1"), pulled.as_deref()].into_iter().flatten() {
        if base != "base:1" {
            s.env("KILN_ROOT", s.path("second").to_str().unwrap());
        }
        s.file("Dockerfile", format!("FROM {base}\nRUN echo {SHAPE} > /new\n"));
        for output in ["type=oci,dest=o.tar", "files"] {
            let run = s.build(&["-o", output]).ok();
            assert!(run.stderr.contains("/new of [2/2] RUN echo"), "{base}, {output}: {}", run.stderr);
            assert!(!run.stderr.contains("/old"), "{base}, {output}: {}", run.stderr);
            let run = s.build(&[&SECRET[..], &["-o", output]].concat()).fails(4);
            run.says(&["secret \"token\" is in /kept of the base image, in plain"]).hides(TOKEN);
        }
    }
}
