//! Arbitrary input: no panic, spans inside the file, time linear in the input.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use kiln_dockerfile::{Dockerfile, LintContext, Span, lint, parse};
use proptest::prelude::*;

/// Everything that has a place, to see that the places are sane.
fn spans(dockerfile: &Dockerfile) -> Vec<Span> {
    let mut spans = Vec::new();
    for stage in &dockerfile.stages {
        spans.extend([stage.span, stage.base.span, stage.keyword.span]);
        for instruction in &stage.instructions {
            spans.extend([instruction.span, instruction.keyword.span]);
            spans.extend(instruction.heredocs.iter().flat_map(|h| [h.span, h.content_span]));
        }
    }
    spans
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let result = parse(bytes, "f");
    let report = lint(&result.dockerfile, &LintContext { all_stages: true, ..LintContext::default() });
    let places = result.diagnostics.iter().chain(&report.diagnostics).map(|d| d.span);
    for span in spans(&result.dockerfile).into_iter().chain(places) {
        prop_assert!(span.start <= span.end && span.end <= bytes.len(), "{:?} in {} bytes", span, bytes.len());
        let _ = result.dockerfile.source.line_col(span.start);
    }
    Ok(())
}

fn a_line() -> impl Strategy<Value = String> {
    let keyword = prop_oneof![
        Just("FROM"),
        Just("RUN"),
        Just("COPY"),
        Just("ADD"),
        Just("ENV"),
        Just("ARG"),
        Just("ONBUILD RUN"),
        Just("CMD"),
        Just("EXPOSE"),
        Just("HEALTHCHECK"),
        Just("LABEL"),
        Just("VOLUME"),
        Just("SHELL"),
        Just("# check=skip=all"),
        Just("# escape=`"),
        Just("nope"),
        Just(""),
    ];
    let rest = prop_oneof![
        "[ -~]{0,20}",
        Just("<<EOF\nx\nEOF".to_string()),
        Just("--from=a <<-'X' \"$y\" /z\n\tX".to_string()),
        Just("a \\\n\n# c\n b".to_string()),
        Just("--mount=type=cache,target=$A".to_string()),
        Just("[\"a\", \"b\"]".to_string()),
        Just("a AS b".to_string()),
        Just("é$é=\"ü".to_string()),
    ];
    (keyword, rest).prop_map(|(k, r)| format!("{k} {r}\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes)?;
    }

    #[test]
    fn anything_that_looks_like_a_dockerfile(lines in proptest::collection::vec(a_line(), 0..12)) {
        check(lines.concat().as_bytes())?;
    }

    /// Joining and mapping: an instruction's text can be parsed again to the same text.
    #[test]
    fn the_original_parses_to_itself(words in proptest::collection::vec("[a-z]{1,5}", 1..6), cut in 0usize..5) {
        let mut text = String::from("FROM x\nRUN");
        for (i, word) in words.iter().enumerate() {
            text.push_str(if i == cut { " \\\n# comment\n  " } else { " " });
            text.push_str(word);
        }
        let first = parse(text.as_bytes(), "f").dockerfile;
        let original = first.stages[0].instructions[0].original.clone();
        let again = parse(format!("FROM x\n{original}").as_bytes(), "f").dockerfile;
        prop_assert_eq!(&again.stages[0].instructions[0].original, &original);
        let keyword = first.source.text(first.stages[0].instructions[0].keyword.span).into_owned();
        prop_assert_eq!(keyword, "RUN");
    }
}

/// Time this thread spent on a processor, so that a busy machine does not matter; elapsed time where the kernel does not tell.
fn clock(start: Instant) -> Duration {
    let on_cpu = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = on_cpu.and_then(|s| s.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

fn time(bytes: &[u8]) -> Duration {
    let start = Instant::now();
    let before = clock(start);
    let result = parse(bytes, "f");
    let _ = lint(&result.dockerfile, &LintContext { all_stages: true, ..LintContext::default() });
    clock(start).saturating_sub(before)
}

type Shape = (&'static str, fn(usize) -> String);

/// Shapes that make careless parsers quadratic. Four times the input may take at most ten times the time (plus a floor against noise):
/// quadratic code takes sixteen times.
#[test]
fn time_is_linear() {
    let shapes: &[Shape] = &[
        ("many instructions", |n| format!("FROM x\n{}", "RUN echo hello\n".repeat(n))),
        ("many stages", |n| "FROM x\nENV a=b\n".repeat(n)),
        ("errors", |n| format!("FROM x\n{}", "RNU echo hello\n".repeat(n))),
        ("continuations", |n| format!("FROM x\nRUN {}", "echo hello \\\n".repeat(n))),
        ("comments in a continuation", |n| format!("FROM x\nRUN a \\\n{}b\n", "# comment\n".repeat(n))),
        ("one long line", |n| format!("FROM x\nENV {}", "abc=\"de f\" ".repeat(n))),
        ("many flags", |n| format!("FROM x\nRUN {}", "--mount=type=cache,target=/x ".repeat(n))),
        ("bad flags", |n| format!("FROM x\nRUN {}", "--muont=type ".repeat(n))),
        ("many heredocs", |n| format!("FROM x\nRUN {}", "<<A <<\"B\" ".repeat(n))),
        ("a long heredoc", |n| format!("FROM x\nCOPY <<E /x\n{}E\n", "line $a ${b:-c}\n".repeat(n))),
        ("unterminated heredocs", |n| format!("FROM x\n{}", "RUN <<EOF\nx\n".repeat(n))),
        ("open quotes", |n| format!("FROM x\nRUN <<X {}", "' \" ".repeat(n))),
        ("JSON", |n| format!("FROM x\nCMD [{}\"a\"]", "\"a\", ".repeat(n))),
        ("almost JSON", |n| format!("FROM x\nCMD {}", "[[\"a\"".repeat(n))),
        ("args with comments", |n| format!("{}FROM x\nARG {}", "# a b\n".repeat(n), "a ".repeat(n))),
        ("comments before an arg", |n| format!("FROM x\n{}ARG {}", "# b c\n".repeat(n), "a ".repeat(n))),
        ("undefined variables", |n| {
            let line = |i: usize| format!("ENV known{i}=1\nENV x=$stranger_{i:x}\n");
            format!("FROM x\n{}", (0..n).map(line).collect::<String>())
        }),
        ("a heredoc of undefined variables", |n| {
            let text: String = (0..n).map(|i| format!("$v{i}\n")).collect();
            format!("FROM scratch\nCOPY <<E /x\n{text}E\n")
        }),
        ("patterns", |n| format!("FROM x\nENV A={}\nENV B=${{A##*a*a*b}} C=${{A//a*b/c}}", "a".repeat(n))),
        ("copy operands", |n| format!("FROM x\nCOPY {}", "<<a b ".repeat(n))),
    ];
    for (name, shape) in shapes {
        let small = shape(2_500);
        let large = shape(10_000);
        let few = (0..3).map(|_| time(small.as_bytes())).min().unwrap();
        let many = (0..2).map(|_| time(large.as_bytes())).min().unwrap();
        assert!(many < few * 10 + Duration::from_millis(60), "{name}: {few:?} then {many:?}");
    }
}

#[test]
#[ignore = "a measurement, to be run with --release"]
fn ten_megabytes() {
    let text =
        format!("FROM x\n{}", "RUN --mount=type=cache,target=/x apt-get install -y \\\n    package\n".repeat(150_000));
    println!("{} MB in {:?}", text.len() / 1_000_000, time(text.as_bytes()));
}
