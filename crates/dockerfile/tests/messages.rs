//! What a person reads: one snapshot of all syntax errors of a bad file, one of the warnings of a careless one.

#![allow(clippy::unwrap_used)]

use kiln_dockerfile::{Diagnostic, LintContext, Source, lint, parse};

/// Plain excerpts, enough to see that the places are right.
fn show(source: &Source, diagnostics: &[Diagnostic]) -> String {
    let mut text = String::new();
    for d in diagnostics {
        let at = d.line_col(source);
        let line = source.line_text(at.line).into_owned();
        let width = source.text(d.span).lines().next().map_or(0, |l| l.chars().count()).max(1);
        let room = line.chars().count().saturating_sub(at.column - 1).max(1);
        text.push_str(&format!(
            "{}\n  | {line}\n  | {}{}\n",
            d.one_line(source),
            " ".repeat(at.column - 1),
            "^".repeat(width.min(room))
        ));
    }
    text
}

#[test]
fn syntax_errors() {
    let text = "\
# escape=/
ARG
FORM alpine AS build
FROM alpine:3 build
RUN --mount=type=bnd,target=/x --netwrok=none make
COPY --form=build /a /b
ENV A=1 B
EXPSE 80
HEALTHCHECK --interval=10 CMD true
RUN <<EOF
make
";
    let result = parse(text.as_bytes(), "Dockerfile");
    insta::assert_snapshot!(show(&result.dockerfile.source, &result.diagnostics), @r#"
Dockerfile:1:10: error: invalid escape token '/' does not match ` or \ (write # escape=\ or # escape=`)
  | # escape=/
  |          ^
Dockerfile:2:1: error: ARG requires at least one argument (write ARG <name>[=<default>] ...)
  | ARG
  | ^^^
Dockerfile:3:1: error: unknown instruction: FORM (did you mean FROM?)
  | FORM alpine AS build
  | ^^^^
Dockerfile:4:6: error: FROM requires either one or three arguments (to name the stage write FROM alpine:3 AS build)
  | FROM alpine:3 build
  |      ^^^^^^^^^^^^^^
Dockerfile:5:13: error: unsupported mount type "bnd" (did you mean bind?)
  | RUN --mount=type=bnd,target=/x --netwrok=none make
  |             ^^^^^^^^^^^^^^^^^^
Dockerfile:5:32: error: unknown flag: --netwrok (did you mean --network?)
  | RUN --mount=type=bnd,target=/x --netwrok=none make
  |                                ^^^^^^^^^^^^^^
Dockerfile:6:6: error: unknown flag: --form (did you mean --from?)
  | COPY --form=build /a /b
  |      ^^^^^^^^^^^^
Dockerfile:7:9: error: Syntax error - can't find = in "B". Must be of the form: name=value (quote the value if it holds white space)
  | ENV A=1 B
  |         ^
Dockerfile:8:1: error: unknown instruction: EXPSE (did you mean EXPOSE?)
  | EXPSE 80
  | ^^^^^
Dockerfile:9:24: error: time: missing unit in duration "10" (expected a duration such as 30s, 1m30s or 500ms)
  | HEALTHCHECK --interval=10 CMD true
  |                        ^^
Dockerfile:10:5: error: unterminated heredoc (expected a line that is exactly "EOF")
  | RUN <<EOF
  |     ^^^^^
"#);
}

#[test]
fn warnings() {
    let text = "\
ARG VERSION
FROM --platform=linux/amd64 alpine:${VERSOIN} as Build
ENV NODE_ENV prod
ENV HOMEDIR=/home
COPY $HOMEDR \\
     /x
EXPOSE 80/TCP
workdir app
CMD start
CMD run
";
    let result = parse(text.as_bytes(), "Dockerfile");
    let report = lint(&result.dockerfile, &LintContext::default());
    insta::assert_snapshot!(show(&result.dockerfile.source, &report.diagnostics), @r#"
Dockerfile:2:17: warning: FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value "linux/amd64"
  | FROM --platform=linux/amd64 alpine:${VERSOIN} as Build
  |                 ^^^^^^^^^^^
Dockerfile:2:29: warning: InvalidDefaultArgInFrom: Default value for ARG alpine:${VERSOIN} results in empty or invalid base image name (without build args the name is "alpine:")
  | FROM --platform=linux/amd64 alpine:${VERSOIN} as Build
  |                             ^^^^^^^^^^^^^^^^^
Dockerfile:2:36: warning: UndefinedArgInFrom: FROM argument 'VERSOIN' is not declared (did you mean VERSION?)
  | FROM --platform=linux/amd64 alpine:${VERSOIN} as Build
  |                                    ^^^^^^^^^^
Dockerfile:2:47: warning: FromAsCasing: 'as' and 'FROM' keywords' casing do not match
  | FROM --platform=linux/amd64 alpine:${VERSOIN} as Build
  |                                               ^^
Dockerfile:2:50: warning: StageNameCasing: Stage name 'Build' should be lowercase
  | FROM --platform=linux/amd64 alpine:${VERSOIN} as Build
  |                                                  ^^^^^
Dockerfile:3:1: warning: LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format
  | ENV NODE_ENV prod
  | ^^^^^^^^^^^^^^^^^
Dockerfile:5:6: warning: UndefinedVar: Usage of undefined variable '$HOMEDR' (did you mean $HOMEDIR?)
  | COPY $HOMEDR \
  |      ^^^^^^^
Dockerfile:7:8: warning: ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase
  | EXPOSE 80/TCP
  |        ^^^^^^
Dockerfile:8:1: warning: ConsistentInstructionCasing: Command 'workdir' should match the case of the command majority (uppercase)
  | workdir app
  | ^^^^^^^
Dockerfile:8:9: warning: WorkdirRelativePath: Relative workdir "app" can have unexpected results if the base image changes
  | workdir app
  |         ^^^
Dockerfile:9:1: warning: JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
  | CMD start
  | ^^^^^^^^^
Dockerfile:9:1: warning: MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used
  | CMD start
  | ^^^^^^^^^
Dockerfile:10:1: warning: JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
  | CMD run
  | ^^^^^^^
"#);
}
