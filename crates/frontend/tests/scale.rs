//! A thousand stages and ten thousand steps, and what a hostile file would do to a stack.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;
use std::time::Duration;

use support::*;

/// `stages` stages of `steps` steps; each is based on the one before, or copies from it.
fn generate(stages: usize, steps: usize, chained: bool) -> String {
    let mut text = String::from("FROM base AS s0\n");
    for stage in 1..stages {
        match chained {
            true => drop(writeln!(text, "FROM s{} AS s{stage}", stage - 1)),
            false => drop(writeln!(text, "FROM base AS s{stage}\nCOPY --from=s{} /a /b", stage - 1)),
        }
        for step in 0..steps {
            let _ = writeln!(text, "RUN step {stage} {step}");
        }
    }
    text
}

/// Time this thread spent on a processor, so that a busy machine does not matter.
fn on_processor() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(told.split(' ').next().unwrap().parse().unwrap())
}

fn time(text: &str) -> (Duration, usize) {
    let file = dockerfile(text);
    let request = kiln_frontend::LowerRequest::new(&file, amd64());
    let before = on_processor();
    let lowered = kiln_frontend::lower(&request, &Images::default()).unwrap();
    (on_processor() - before, lowered.graph.len())
}

/// The limits are for a debug build; a release build needs about a tenth.
#[test]
fn a_thousand_stages_and_ten_thousand_steps() {
    for chained in [true, false] {
        let (small, _) = time(&generate(250, 10, chained));
        let (large, vertices) = time(&generate(1000, 10, chained));
        println!("chained {chained}: {small:?} {large:?} for {vertices} vertices");
        assert!(vertices >= 9_990);
        assert!(large < Duration::from_secs(8), "{large:?}");
    }
}

/// Stages and steps share what they inherit: five hundred over a base with five hundred variables and args hold it once.
#[test]
fn many_stages_over_many_variables() {
    let mut text = String::from("FROM base AS s0\n");
    for i in 0..500 {
        let _ = write!(text, "ENV VARIABLE_{i}=value\nARG ARGUMENT_{i}\n");
    }
    for i in 1..500 {
        let _ = writeln!(text, "FROM s{} AS s{i}\nRUN step {i}", i - 1);
    }
    let (taken, vertices) = time(&text);
    println!("{taken:?} for {vertices} vertices");
    assert!(taken < Duration::from_secs(8), "{taken:?}");
}

#[test]
fn the_stack_is_not_the_limit() {
    let mut text = String::from("FROM base AS s0\n");
    for i in 1..20_000 {
        let _ = writeln!(text, "FROM s{} AS s{i}", i - 1);
    }
    let text = format!("{text}RUN x\n");
    let thread = std::thread::Builder::new().stack_size(256 << 10);
    let done = thread.spawn(move || {
        let file = dockerfile(&text);
        let request = kiln_frontend::LowerRequest::new(&file, amd64());
        kiln_frontend::lower(&request, &Images::default()).unwrap().graph.len()
    });
    assert_eq!(done.unwrap().join().unwrap(), 2);
}
