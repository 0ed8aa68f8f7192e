//! What the parser makes of whole Dockerfiles.

#![allow(clippy::unwrap_used)]

use kiln_dockerfile::{Command, Dockerfile, Healthcheck, Instruction, InstructionKind as Kind, parse, parse_onbuild};

fn ok(text: &str) -> Dockerfile {
    let result = parse(text.as_bytes(), "Dockerfile");
    let shown: Vec<_> = result.diagnostics.iter().map(|d| d.one_line(&result.dockerfile.source)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
    result.dockerfile
}

/// The instructions of a stage that starts with `FROM x`.
fn body(text: &str) -> Vec<Instruction> {
    ok(&format!("FROM x\n{text}")).stages.remove(0).instructions
}

fn one(text: &str) -> Kind {
    let mut list = body(text);
    assert_eq!(list.len(), 1, "{text}");
    list.remove(0).kind
}

fn errors(text: &str) -> Vec<String> {
    let result = parse(text.as_bytes(), "f");
    result.diagnostics.iter().map(|d| d.one_line(&result.dockerfile.source)).collect()
}

fn run_command(text: &str) -> Command {
    match one(text) {
        Kind::Run(run) => run.command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn stages_and_global_args() {
    let d = ok(
        "\u{feff}# syntax=docker/dockerfile:1\r\narg V=1 W\r\nFrom --platform=$BUILDPLATFORM a:$V aS Build\r\nRUN x\r\nFROM scratch\r\nCOPY --from=build /x /\r\n",
    );
    assert_eq!(d.directives.syntax.as_ref().unwrap().value, "docker/dockerfile:1");
    let args: Vec<_> =
        d.global_arg_decls().map(|(a, _)| (a.name.as_str(), a.default.as_ref().map(|v| v.as_str()))).collect();
    assert_eq!(args, [("V", Some("1")), ("W", None)]);
    assert_eq!(d.stages.len(), 2);
    let stage = &d.stages[0];
    assert_eq!((stage.base.as_str(), stage.platform.as_ref().unwrap().as_str()), ("a:$V", "$BUILDPLATFORM"));
    assert_eq!((stage.name.as_ref().unwrap().as_str(), stage.written_name.as_deref()), ("build", Some("Build")));
    assert_eq!((stage.keyword.as_str(), stage.as_keyword.as_ref().unwrap().as_str()), ("From", "aS"));
    assert_eq!(d.source.text(stage.base.span), "a:$V");
    assert_eq!(d.source.text(stage.name.as_ref().unwrap().span), "Build");
    assert_eq!(d.source.line_col(stage.base.span.start).line, 3);
    assert_eq!(d.find_stage("BUILD").unwrap().index, 0);
    assert_eq!(d.find_stage("1").unwrap().index, 1);
    assert_eq!(d.stages[1].display_name(), "stage-1");
}

#[test]
fn continuations_comments_and_escape() {
    let list = body("RUN a \\\n    b \\\n# comment\n\n  # another\n  c\nRUN d \\\\\nRUN e\\  \t\nf\n");
    let texts: Vec<_> = list.iter().map(|i| i.original.as_str()).collect();
    assert_eq!(texts, ["RUN a     b   c", "RUN d \\\\", "RUN ef"]);
    let d = ok("# escape=`\nFROM x\nRUN c:\\a\\ `\n d\n");
    assert_eq!((d.escape, d.stages[0].instructions[0].original.as_str()), ('`', "RUN c:\\a\\  d"));
    let d = ok("FROM x\nRUN a \\\n\nb\n");
    assert_eq!(d.source.line_of(d.empty_continuations[0].line.start), 3);
    // The last line may be continued by nothing.
    assert_eq!(body("RUN a \\")[0].original, "RUN a");
    assert_eq!(body("\\\n").len(), 0);
    // Spans cross continuation lines.
    let d = ok("FROM x\nENV A=1 \\\n    B=2\n");
    let Kind::Env(pairs) = &d.stages[0].instructions[0].kind else { panic!() };
    assert_eq!(d.source.text(pairs[1].value.span), "2");
    assert_eq!(d.source.line_col(pairs[1].key.span.start), kiln_dockerfile::LineCol { line: 3, column: 5 });
    assert_eq!(d.source.lines_of(d.stages[0].instructions[0].span), (2, 3));
}

#[test]
fn exec_and_shell_forms() {
    let exec = |words: &[&str]| Command::Exec(words.iter().map(|w| (*w).to_string()).collect());
    assert_eq!(run_command("RUN [\"a\", \"b c\"]"), exec(&["a", "b c"]));
    assert_eq!(run_command("RUN  a  'b' "), Command::Shell("a  'b'".into()));
    for shell in ["['a']", "[\"a\"] # c", "[\"c:\\x\"]", "[ -f x ]"] {
        assert_eq!(run_command(&format!("RUN {shell}")), Command::Shell(shell.into()));
    }
    assert!(matches!(one("CMD []"), Kind::Cmd(Command::Exec(w)) if w.is_empty()));
    assert!(matches!(one("ENTRYPOINT exec x"), Kind::Entrypoint(Command::Shell(t)) if t == "exec x"));
    assert!(matches!(one("SHELL [\"bash\", \"-c\"]"), Kind::Shell(w) if w == ["bash", "-c"]));
    assert_eq!(
        errors("FROM x\nRUN [\"a\", 1]\nSHELL bash\nSHELL\nSHELL []\n"),
        [
            "f:2:5: error: when using JSON array syntax, arrays must be comprised of strings only",
            "f:3:1: error: SHELL requires the arguments to be in JSON form (write SHELL [\"/bin/sh\", \"-c\"])",
            "f:4:1: error: SHELL requires at least one argument (write SHELL [\"/bin/sh\", \"-c\"])",
            "f:5:1: error: SHELL requires at least one argument (write SHELL [\"/bin/sh\", \"-c\"])",
        ]
    );
}

#[test]
fn env_label_and_arg_words() {
    let pairs = |text: &str| match one(text) {
        Kind::Env(p) | Kind::Label(p) => {
            p.into_iter().map(|p| (p.key.value, p.value.value, p.legacy)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let pair = |k: &str, v: &str| (k.to_string(), v.to_string(), false);
    assert_eq!(
        pairs("ENV a=1 b='x y' c=\"q\\\"r\" d=a\\ b e="),
        [pair("a", "1"), pair("b", "'x y'"), pair("c", "\"q\\\"r\""), pair("d", "a\\ b"), pair("e", ""),]
    );
    assert_eq!(pairs("ENV  a   b  c=d "), [("a".into(), "b  c=d".into(), true)]);
    assert_eq!(pairs("LABEL a=b=c \"d e\"=f"), [pair("a", "b=c"), pair("\"d e\"", "f")]);
    assert_eq!(
        errors("FROM x\nENV a\nENV\nENV a=1 b\nENV =x\nARG\nARG =x\n"),
        [
            "f:2:5: error: ENV must have two arguments (write ENV <key>=<value> ...)",
            "f:3:1: error: ENV requires at least one argument (write ENV <key>=<value> ...)",
            "f:4:9: error: Syntax error - can't find = in \"b\". Must be of the form: name=value (quote the value if it holds white space)",
            "f:5:5: error: ENV names can not be blank",
            "f:6:1: error: ARG requires at least one argument (write ARG <name>[=<default>] ...)",
            "f:7:5: error: ARG names can not be blank",
        ]
    );
    let d = ok("# V the version\nARG V\n# other\n\n# b builds\nFROM x AS b\n");
    assert_eq!(d.global_arg_decls().next().unwrap().0.doc.as_deref(), Some("the version"));
    assert_eq!(d.stages[0].doc.as_deref(), Some("builds"));
    assert_eq!(d.stages[0].comments, ["b builds"]);
}

#[test]
fn copy_and_add() {
    let Kind::Copy(c) =
        one("COPY --from=b --chown=1:2 --chmod=u+x --link --parents=true --exclude=*.a --exclude=b a b/ /d/")
    else {
        panic!()
    };
    let texts = |list: &[kiln_dockerfile::Spanned<String>]| list.iter().map(|s| s.value.clone()).collect::<Vec<_>>();
    assert_eq!(
        (texts(&c.sources), c.dest.as_str(), c.link, c.parents),
        (vec!["a".into(), "b/".into()], "/d/", true, true)
    );
    assert_eq!((texts(&c.excludes), c.from.unwrap().value), (vec!["*.a".to_string(), "b".into()], "b".to_string()));
    let Kind::Copy(c) = one("COPY --chown=\"a b\" [\"x y\", \"/z\"]") else { panic!() };
    assert_eq!(
        (texts(&c.sources), c.dest.as_str(), c.chown.unwrap().value),
        (vec!["x y".into()], "/z", "a b".to_string())
    );
    let Kind::Add(a) = one("ADD --checksum=sha256:x --keep-git-dir --unpack=false http://h/f /f") else { panic!() };
    assert_eq!((a.keep_git_dir, a.unpack, a.checksum.unwrap().value), (Some(true), Some(false), "sha256:x".into()));
    assert_eq!(
        errors(
            "FROM x\nCOPY a\nCOPY --from=$S a b\nADD --chwon=1 a b\nCOPY --link=maybe --link a b\nCOPY --chown a b\nCOPY a <<E\nE\nADD\n"
        ),
        [
            "f:2:1: error: COPY requires at least two arguments, but only one was provided. Destination could not be determined (write COPY <source>... <destination>)",
            "f:3:13: error: variable expansion is not supported for --from (define a new stage with FROM using ARG from global scope as a workaround)",
            "f:4:5: error: unknown flag: --chwon (did you mean --chown?)",
            "f:5:6: error: expecting boolean value for flag link, not: maybe (write --link or --link=false)",
            "f:5:19: error: duplicate flag specified: link",
            "f:6:6: error: missing a value on flag: chown (write --chown=<value>)",
            "f:7:8: error: COPY cannot accept a heredoc as a destination",
            "f:9:1: error: ADD requires at least two arguments (write ADD <source>... <destination>)",
        ]
    );
}

#[test]
fn the_other_instructions() {
    assert!(
        matches!(one("EXPOSE 80/tcp 443 $P"), Kind::Expose(p) if p.iter().map(|p| p.as_str()).eq(["$P", "443", "80/tcp"]))
    );
    assert!(
        matches!(one("VOLUME [\"/a b\", \"/c\"]"), Kind::Volume(v) if v.iter().map(|v| v.as_str()).eq(["/a b", "/c"]))
    );
    assert!(matches!(one("VOLUME /a /b"), Kind::Volume(v) if v.len() == 2));
    assert!(matches!(one("workdir  /a b "), Kind::Workdir(w) if w.as_str() == "/a b"));
    assert!(matches!(one("USER a:b"), Kind::User(u) if u.as_str() == "a:b"));
    assert!(matches!(one("STOPSIGNAL 9"), Kind::Stopsignal(_)));
    assert!(matches!(one("MAINTAINER A B <c>"), Kind::Maintainer(m) if m.as_str() == "A B <c>"));
    let Kind::Healthcheck(Healthcheck::Check { command, interval, timeout, retries, .. }) =
        one("HEALTHCHECK --interval=1m30s --timeout=0 --retries=3 cmd curl x")
    else {
        panic!()
    };
    assert_eq!(
        (command, interval.map(|i| i.as_secs()), timeout, retries),
        (Command::Shell("curl x".into()), Some(90), None, 3)
    );
    assert!(matches!(one("HEALTHCHECK none"), Kind::Healthcheck(Healthcheck::None)));
    assert_eq!(
        errors(
            "FROM x\nHEALTHCHECK\nHEALTHCHECK RUN x\nHEALTHCHECK NONE x\nHEALTHCHECK --interval=1us --retries=-1 --timeout=5 CMD x\nHEALTHCHECK CMD\nSTOPSIGNAL --x 9\nVOLUME [\"\"]\nUSER\n"
        ),
        [
            "f:2:1: error: HEALTHCHECK requires at least one argument (write HEALTHCHECK [flags] CMD <command> or HEALTHCHECK NONE)",
            "f:3:13: error: Unknown type \"RUN\" in HEALTHCHECK (try CMD) (write HEALTHCHECK [flags] CMD <command> or HEALTHCHECK NONE)",
            "f:4:18: error: HEALTHCHECK NONE takes no arguments",
            "f:5:24: error: Interval \"interval\" cannot be less than 1ms",
            "f:5:38: error: --retries cannot be negative (-1)",
            "f:5:51: error: time: missing unit in duration \"5\" (expected a duration such as 30s, 1m30s or 500ms)",
            "f:6:1: error: Missing command after HEALTHCHECK CMD (write HEALTHCHECK [flags] CMD <command> or HEALTHCHECK NONE)",
            "f:7:12: error: unknown flag: --x (STOPSIGNAL has no flags)",
            "f:8:8: error: VOLUME specified can not be an empty string",
            "f:9:1: error: USER requires exactly one argument",
        ]
    );
}

#[test]
fn run_flags() {
    let Kind::Run(run) = one(
        "RUN --mount=type=cache,target=$D --mount=from=b,target=/x --network=none --security=insecure --device=vendor/x=a,required -- --x",
    ) else {
        panic!()
    };
    assert_eq!(run.mounts.len(), 2);
    assert_eq!(run.mounts[1].from(), Some("b"));
    assert_eq!(
        run.devices[0],
        kiln_dockerfile::Device { name: "vendor/x=a".into(), required: true, span: run.devices[0].span }
    );
    assert_eq!(run.command, Command::Shell("--x".into()));
    assert_eq!(run.network.unwrap().value, kiln_dockerfile::NetworkMode::None);
    assert_eq!(
        errors(
            "FROM x\nRUN --mount=type=cahce,target=/x --netwrok=host a\nRUN --network=hots a\nRUN --security=x a\nRUN --mount=from=$A,target=/x a\n"
        ),
        [
            "f:2:13: error: unsupported mount type \"cahce\" (did you mean cache?)",
            "f:2:34: error: unknown flag: --netwrok (did you mean --network?)",
            "f:3:15: error: unsupported network mode \"hots\" (did you mean host?)",
            "f:4:16: error: unsupported security mode \"x\" (expected one of sandbox, insecure)",
            "f:5:13: error: 'from' doesn't support variable expansion, define alias stage instead (write FROM <image with variables> AS <name> and use from=<name>)",
        ]
    );
}

#[test]
fn heredocs() {
    assert_eq!(
        run_command("RUN <<EOF\n# kept\n\ta\nEOF\n"),
        Command::Script { name: "EOF".into(), content: "# kept\n\ta\n".into(), shebang: false }
    );
    assert_eq!(
        run_command("RUN --mount=type=cache,target=/c <<-'X Y'\n\t#!/bin/sh\n\tb\n\tX Y\n"),
        Command::Script { name: "X Y".into(), content: "#!/bin/sh\nb\n".into(), shebang: true }
    );
    assert_eq!(
        run_command("RUN <<  EOF\na\nEOF"),
        Command::Script { name: "EOF".into(), content: "a\n".into(), shebang: false }
    );
    assert_eq!(
        run_command("RUN <<A python3 <<B\n1\nA\n2\nB\n"),
        Command::Shell("<<A python3 <<B\n1\nA2\nB".replace("A2", "A\n2"))
    );
    assert_eq!(run_command("RUN cat <<EOF > f\r\nx\r\nEOF\r\n"), Command::Shell("cat <<EOF > f\nx\r\nEOF".into()));
    // Neither of these is a here-document.
    for line in ["RUN \"<<X\"", "RUN [\"<<X\"]", "RUN a<<X", "RUN x <<<X", "CMD <<X", "RUN echo it's <<X"] {
        assert_eq!(body(line)[0].heredocs, [], "{line}");
    }
    let Kind::Copy(c) = one("COPY <<a.txt <<-\"b c\" x /d/\n\tA $V\na.txt\n\tB\nb c\n") else { panic!() };
    assert_eq!(c.sources.len(), 1);
    let files: Vec<_> = c.files.iter().map(|f| (f.name.as_str(), f.content.as_str(), f.expand)).collect();
    assert_eq!(files, [("a.txt", "\tA $V\n", true), ("b c", "B\n", false)]);
    let list = body("COPY <<X <<Y /dest\nY\nX\nX\nY\nRUN z");
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].original_with_heredocs(), "COPY <<X <<Y /dest\nY\nX\nX\nY");
    assert_eq!(
        errors("FROM x\nRUN <<EOF\nFOO\n"),
        ["f:2:5: error: unterminated heredoc (expected a line that is exactly \"EOF\")"]
    );
    // The document of a broken instruction does not become instructions.
    assert_eq!(
        errors("FROM x\nCOPY --frm=a <<E /\nfoo\nE\n"),
        ["f:2:6: error: unknown flag: --frm (did you mean --from?)"]
    );
}

#[test]
fn onbuild() {
    let Kind::Onbuild(o) = one("onbuild  COPY --from=a . \\\n /app") else { panic!() };
    assert_eq!(o.expression, "COPY --from=a .  /app");
    assert!(matches!(o.trigger.kind, Kind::Copy(_)));
    let Kind::Onbuild(o) = one("ONBUILD RUN <<E\nx\nE") else { panic!() };
    assert_eq!(o.expression, "RUN <<E\nx\nE");
    let again = parse_onbuild(&o.expression).unwrap();
    assert!(matches!(again.kind, Kind::Run(_)));
    assert_eq!(
        errors("FROM x\nONBUILD\nONBUILD ONBUILD RUN x\nONBUILD FROM y\nONBUILD RNU x\n"),
        [
            "f:2:1: error: ONBUILD requires at least one argument",
            "f:3:9: error: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
            "f:4:9: error: FROM isn't allowed as an ONBUILD trigger",
            "f:5:9: error: unknown instruction: RNU (did you mean RUN?)",
        ]
    );
    for bad in ["", "FROM x", "MAINTAINER x", "RUN a\nRUN b", "ONBUILD RUN x", "FOO"] {
        assert!(parse_onbuild(bad).is_err(), "{bad}");
    }
}

#[test]
fn structure_errors() {
    assert_eq!(
        errors(""),
        ["f:1:1: error: the Dockerfile cannot be empty (a Dockerfile needs at least one FROM instruction)"]
    );
    assert_eq!(
        errors("# only\n\n"),
        ["f:3:1: error: file with no instructions (a Dockerfile needs at least one FROM instruction)"]
    );
    assert_eq!(
        errors("ARG A\n"),
        ["f:2:1: error: dockerfile contains no stages to build (a Dockerfile needs at least one FROM instruction)"]
    );
    assert_eq!(
        errors("RUN a\nRUN b\nFROM x as\nRNU c\nFROM x AS 1a\nCOPPY x y\napt-get install\n"),
        [
            "f:1:1: error: no build stage in current context: RUN comes before the first FROM (only ARG may come before FROM)",
            "f:3:6: error: FROM requires either one or three arguments (expected FROM [--platform=<platform>] <image> [AS <name>])",
            "f:4:1: error: unknown instruction: RNU (did you mean RUN?)",
            "f:5:11: error: invalid name for build stage: \"1a\", name can't start with a number or contain symbols (a stage name is a letter followed by letters, digits, '-', '_' and '.')",
            "f:6:1: error: unknown instruction: COPPY (did you mean COPY?)",
            "f:7:1: error: unknown instruction: apt-get (if this belongs to the instruction before it, end that line with the escape character or use a heredoc)",
        ]
    );
    let bytes = parse(b"# caf\xe9\nFROM x\nRUN echo caf\xe9\n", "f");
    let shown: Vec<_> = bytes.diagnostics.iter().map(|d| d.one_line(&bytes.dockerfile.source)).collect();
    assert_eq!(shown, ["f:3:13: error: the instruction holds bytes that are not UTF-8 (save the file as UTF-8)"]);
}

#[test]
fn findings_are_capped() {
    let result = parse("FROM x\nBAD\n".to_string().as_bytes(), "f");
    assert_eq!(result.diagnostics.len(), 1);
    let result = parse(format!("FROM x\n{}", "BAD\n".repeat(5000)).as_bytes(), "f");
    assert_eq!(result.diagnostics.len(), 1001);
    assert!(result.diagnostics[1000].message.contains("4000 more"));
}
