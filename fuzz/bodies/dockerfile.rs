//! Any bytes as a Dockerfile: no panic, and every place lies inside the file.

use kiln_dockerfile::{ExpandMode, LintContext, expand_word, lint, parse, parse_onbuild};

/// One input.
pub fn run(data: &[u8]) {
    let result = parse(data, "Dockerfile");
    let report = lint(&result.dockerfile, &LintContext { all_stages: true, ..LintContext::default() });
    for diagnostic in result.diagnostics.iter().chain(&report.diagnostics) {
        assert!(diagnostic.span.start <= diagnostic.span.end && diagnostic.span.end <= data.len());
        let _ = diagnostic.one_line(&result.dockerfile.source);
    }
    for instruction in result.dockerfile.stages.iter().flat_map(|s| &s.instructions) {
        assert!(instruction.span.end <= data.len());
        let _ = parse_onbuild(&instruction.original_with_heredocs());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let lookup = |name: &str| name.len().is_multiple_of(2).then(|| name.to_owned());
        for mode in [ExpandMode::WORD, ExpandMode::HEREDOC, ExpandMode::DISPLAY] {
            let _ = expand_word(text, '\\', &lookup, mode);
        }
    }
}
