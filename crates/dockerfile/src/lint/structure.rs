//! Checks that need only the text: names, casing, deprecated and ambiguous forms, descriptions.

use std::collections::HashMap;

use crate::ast::{Arg, Dockerfile, Instruction, InstructionKind};
use crate::diagnostic::Diagnostic;
use crate::parse::split_directive;
use crate::rules::Rule;
use crate::source::{Span, Spanned};

use super::Findings;

pub(super) fn check(dockerfile: &Dockerfile, out: &mut Findings) {
    for empty in &dockerfile.empty_continuations {
        out.at(&empty.comments);
        let finding = Diagnostic::lint(Rule::NoEmptyContinuation, empty.line, "Empty continuation line");
        out.push(finding.with_other(empty.instruction, "in this instruction"));
    }
    for instruction in &dockerfile.global_args {
        describe_arg(instruction, out);
    }
    stage_names(dockerfile, out);
    instruction_casing(dockerfile, out);
    for instruction in dockerfile.stages.iter().flat_map(|s| &s.instructions) {
        describe_arg(instruction, out);
        out.at(&instruction.comments);
        if matches!(instruction.kind, InstructionKind::Maintainer(_)) {
            let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
            let finding = Diagnostic::lint(Rule::MaintainerDeprecated, instruction.span, message);
            out.push(finding.with_help("write LABEL org.opencontainers.image.authors=\"...\""));
        }
    }
}

fn stage_names(dockerfile: &Dockerfile, out: &mut Findings) {
    let mut first: HashMap<&str, Span> = HashMap::new();
    for stage in &dockerfile.stages {
        out.at(&stage.comments);
        let Some(name) = &stage.name else { continue };
        let written = stage.written_name.as_deref().unwrap_or(name);
        if written != name.value {
            out.add(Rule::StageNameCasing, name.span, format!("Stage name '{written}' should be lowercase"));
        }
        if let Some(as_keyword) = &stage.as_keyword {
            from_as_casing(&stage.keyword, as_keyword, out);
        }
        if matches!(name.as_str(), "scratch" | "context") {
            let message = format!("Stage name should not use the same name as reserved stage {:?}", name.value);
            out.add(Rule::ReservedStageName, name.span, message);
        }
        if let Some(earlier) = first.get(name.as_str()) {
            let message = format!("Duplicate stage name {:?}, stage names should be unique", name.value);
            let finding = Diagnostic::lint(Rule::DuplicateStageName, name.span, message);
            out.push(finding.with_other(*earlier, "first used here"));
        }
        first.entry(name).or_insert(name.span);
        describe("FROM", &[name.as_str()], &stage.comments, stage.span, out);
    }
}

fn from_as_casing(from: &str, as_keyword: &Spanned<String>, out: &mut Findings) {
    let matching = if from == from.to_lowercase() {
        as_keyword.value == as_keyword.to_lowercase()
    } else {
        // Mixed case is reported by another rule.
        from != from.to_uppercase() || as_keyword.value == as_keyword.to_uppercase()
    };
    if !matching {
        let message = format!("'{as_keyword}' and '{from}' keywords' casing do not match");
        out.add(Rule::FromAsCasing, as_keyword.span, message);
    }
}

fn instruction_casing(dockerfile: &Dockerfile, out: &mut Findings) {
    let keywords = || {
        dockerfile.stages.iter().flat_map(|s| {
            let own = std::iter::once((&s.keyword, &s.comments));
            own.chain(s.instructions.iter().map(|i| (&i.keyword, &i.comments)))
        })
    };
    let lower = keywords().filter(|(k, _)| k.value == k.to_lowercase()).count();
    let upper = keywords().filter(|(k, _)| k.value == k.to_uppercase()).count();
    for (keyword, comments) in keywords() {
        let (right, casing) = match lower > upper {
            true => (keyword.to_lowercase(), "lowercase"),
            false => (keyword.to_uppercase(), "uppercase"),
        };
        if keyword.value != right {
            out.at(comments);
            let message = format!("Command '{keyword}' should match the case of the command majority ({casing})");
            out.add(Rule::ConsistentInstructionCasing, keyword.span, message);
        }
    }
}

fn describe_arg(instruction: &Instruction, out: &mut Findings) {
    if let InstructionKind::Arg(Arg { args }) = &instruction.kind {
        let keys: Vec<&str> = args.iter().map(|a| a.name.as_str()).collect();
        describe("ARG", &keys, &instruction.comments, instruction.span, out);
    }
}

/// A comment directly before a definition should describe it.
fn describe(instruction: &str, keys: &[&str], comments: &[String], span: Span, out: &mut Findings) {
    out.at(comments);
    if !out.wants(Rule::InvalidDefinitionDescription) {
        return;
    }
    let is_check = |c: &&String| split_directive(c).is_some_and(|(key, _)| key == "check");
    let Some(last) = comments.iter().rev().find(|c| !is_check(c)) else { return };
    let word = last.split(' ').next().unwrap_or_default();
    if keys.contains(&word) {
        return;
    }
    let example = if let [key] = keys { key } else { "<arg_key>" };
    let message = format!("Comment for {instruction} should follow the format: `# {example} <description>`");
    out.add(Rule::InvalidDefinitionDescription, span, message);
}
