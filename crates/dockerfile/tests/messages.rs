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
    insta::assert_snapshot!(show(&result.dockerfile.source, &result.diagnostics), @"");
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
    insta::assert_snapshot!(show(&result.dockerfile.source, &report.diagnostics), @"");
}
