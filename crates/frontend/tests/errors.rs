//! What is wrong is said at its place, with what to do.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

#[test]
fn mistakes_and_their_places() {
    let table = [
        (
            "FROM $X",
            "1:6: error: base name ($X) should not be blank (X has no value here: only global args (before the first FROM) can be used in FROM)",
        ),
        ("ARG IMAGE=base\nFROM $IMGE", "2:6: error: base name ($IMGE) should not be blank (did you mean IMAGE?)"),
        ("FROM ${X:?missing}", "1:6: error: X: missing"),
        (
            "FROM --platform=$P base",
            "1:17: error: empty platform value from expression $P (P has no value here: only global args (before the first FROM) can be used in FROM)",
        ),
        (
            "FROM Base",
            "1:1: error: failed to parse stage name \"Base\": image name \"Base\" has upper-case letters: repository names are lower-case",
        ),
        ("FROM nothing", "1:6: error: nothing: pull access denied, repository does not exist"),
        (
            "FROM base AS builder\nFROM buidler",
            "2:6: error: buidler: pull access denied, repository does not exist (did you mean builder?)",
        ),
        (
            "FROM base AS builder\nFROM base\nCOPY --from=bulider /a /b",
            "3:13: error: bulider: pull access denied, repository does not exist (did you mean builder?)",
        ),
        ("FROM base\nCOPY --from=-1 a b", "2:13: error: invalid stage index -1 (the stages have the indexes 0 to 0)"),
        (
            "FROM base\nENV A=\"x${B=y}\"",
            "2:9: error: unsupported modifier (=) in substitution (expected one of - + ? (each also after a colon), # ## % %% / //)",
        ),
        (
            "FROM base\nCOPY f /${V:?set it}",
            "2:9: error: syntax error: missing '}' (expected a } in the same word; a word ends at white space)",
        ),
        (
            "FROM base\nCOPY <<E /x\nfine\nof ${this\nE",
            "4:4: error: syntax error: missing '}' (expected a } in the same word; a word ends at white space)",
        ),
        ("FROM base\nCOPY --from=7 a b", "2:13: error: invalid stage index 7 (the stages have the indexes 0 to 0)"),
        (
            "FROM base AS a\nCOPY --from=a x /",
            "2:13: error: circular dependency detected on stage: a (each of these stages needs the next: a -> a)",
        ),
        (
            "FROM base AS a\nCOPY --from=c x /\nFROM a AS b\nFROM base AS c\nCOPY --from=b x /",
            "3:1: error: circular dependency detected on stage: a (each of these stages needs the next: a -> c -> b -> a)",
        ),
        ("FROM base\nCOPY https://h/x /", "2:6: error: source can't be a URL for COPY (use ADD)"),
        ("FROM base\nCOPY git@h:o/r /", "2:6: error: source can't be a git ref for COPY (use ADD)"),
        ("FROM base\nADD https://h/r.git#--upload-pack=x /", "2:5: error: \"--upload-pack=x\" is not a git reference"),
        ("FROM base\nADD --checksum=sha256:12 https://h/x /", "2:16: error: "),
        ("FROM base\nADD --checksum=abc x /", "2:16: error: checksum requires HTTP(S) or Git sources"),
        (
            "FROM base\nADD --checksum=abc https://h/x https://h/y /",
            "2:16: error: checksum can't be specified for multiple sources",
        ),
        (
            "FROM base\nADD --checksum=abcdef1 https://h/r.git?checksum=abcdef2 /",
            "2:24: error: checksum mismatch \"abcdef1\" != \"abcdef2\"",
        ),
        (
            "FROM base\nADD --keep-git-dir=true https://h/r.git?keep-git-dir=false /",
            "2:25: error: inconsistent keep-git-dir configuration",
        ),
        (
            "FROM base\nARG M=999\nCOPY --chmod=$M a /",
            "3:14: error: invalid chmod parameter: '999'. it should be octal string and between 0 and 07777",
        ),
        ("FROM base\nARG S=SIGTREM\nSTOPSIGNAL $S", "3:12: error: invalid signal: SIGTREM (did you mean SIGTERM?)"),
        ("FROM base\nARG P=80/icmp\nEXPOSE $P", "3:8: error: "),
        (
            "FROM base\nEXPOSE 1-65535 1-65535 1-65535 1-65535 1-65535",
            "2:32: error: EXPOSE names more ports than there are",
        ),
        ("FROM base\nARG V\nVOLUME $V", "3:8: error: VOLUME specified can not be an empty string"),
        ("FROM base\nENV A=${B?}", "2:7: error: B: is not allowed to be unset"),
        (
            "FROM base\nARG T\nRUN --mount=type=bind,target=$T x",
            "3:13: error: a mount needs a target (add target=<path>)",
        ),
        ("FROM base\nRUN --mount=type=bind,target=/ x", "2:13: error: invalid mount target \"/\""),
        (
            "FROM base\nARG T=cahce\nRUN --mount=type=$T,target=/c x",
            "3:13: error: unsupported mount type \"cahce\" (did you mean cache?)",
        ),
    ];
    for (text, expected) in table {
        let actual = error(text);
        let actual = actual.strip_prefix("Dockerfile:").unwrap_or(&actual);
        if expected.ends_with(": ") {
            assert!(actual.starts_with(expected), "{text}\n{actual}");
        } else {
            assert_eq!(actual, expected, "{text}");
        }
    }
}

#[test]
fn a_later_stage_can_not_be_copied_from() {
    let text = "FROM base AS a\nCOPY --from=b x /\nFROM base AS b\nFROM a";
    let expected = "Dockerfile:2:13: error: cannot copy from stage \"b\", it needs to be defined before current stage \"a\" \
                    (move that stage up in the file)";
    assert_eq!(error(text), expected);
    assert!(try_lower(text, |r| r.target = Some("b".to_owned())).is_ok(), "nobody asks for stage a");
    let mount = "FROM base\nRUN --mount=from=b,target=/m x\nFROM base AS b\nFROM 0";
    assert!(error_with(mount, |r| r.target = Some("0".to_owned())).contains("cannot mount from stage \"b\""));
}

#[test]
fn errors_carry_their_cause() {
    let error = try_lower("FROM nothing", |_| {}).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "pull access denied, repository does not exist");
}

#[test]
fn of_several_failing_images_the_first_is_told() {
    for _ in 0..20 {
        let error = error("FROM nothing1 AS a\nFROM nothing2 AS b\nFROM base\nCOPY --from=b / /\nCOPY --from=a / /");
        assert!(error.contains("nothing1"), "{error}");
    }
}

#[test]
fn cycles_name_every_place() {
    let text = "FROM base AS a\nCOPY --from=c x /\nFROM a AS b\nFROM base AS c\nCOPY --from=b x /";
    let error = try_lower(text, |_| {}).unwrap_err();
    assert_eq!(error.diagnostic().unwrap().labels.len(), 2);
}
