//! Instructions that hold a command: `RUN`, `CMD`, `ENTRYPOINT`, `SHELL`, `HEALTHCHECK`.

use std::time::Duration;

use crate::ast::{Command, Device, Healthcheck, InstructionKind, NetworkMode, Run, SecurityMode};
use crate::diagnostic::Diagnostic;
use crate::expand::{ExpandMode, expand_word};
use crate::mount::{Mount, MountError, split_csv};
use crate::nearest::nearest;
use crate::source::{Span, Spanned};
use crate::values::{format_duration, parse_bool, parse_duration};

use super::Context;
use super::flags::Takes;
use super::heredoc;
use super::instructions::{Line, json_form};
use super::json::Array;
use super::lines::is_blank;

const RUN_FLAGS: &[(&str, Takes)] =
    &[("mount", Takes::Texts), ("network", Takes::Text), ("security", Takes::Text), ("device", Takes::Texts)];

const HEALTH_FLAGS: &[(&str, Takes)] = &[
    ("interval", Takes::Text),
    ("timeout", Takes::Text),
    ("start-period", Takes::Text),
    ("start-interval", Takes::Text),
    ("retries", Takes::Text),
];

pub(crate) fn parse_run(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(RUN_FLAGS, context);
    let command = match json_form(line.arguments, context)? {
        Array::Strings(strings) => Command::Exec(strings),
        _ => shell_command(line.arguments.str(), context),
    };
    let mut mounts = Vec::new();
    for flag in line.flags.texts("mount") {
        match parse_mount(&flag, context.escape) {
            Ok(mount) => mounts.push(mount),
            Err(error) => {
                let mut diagnostic = Diagnostic::error(flag.span, error.message);
                diagnostic.help = error.help;
                context.sink.push(diagnostic);
            }
        }
    }
    let mut devices = Vec::new();
    for flag in line.flags.texts("device") {
        match parse_device(&flag) {
            Ok(device) => devices.push(device),
            Err(message) => context.sink.error(flag.span, message),
        }
    }
    let networks = [("default", NetworkMode::Default), ("none", NetworkMode::None), ("host", NetworkMode::Host)];
    let network = choice(line, "network", &networks, context);
    let securities = [("sandbox", SecurityMode::Sandbox), ("insecure", SecurityMode::Insecure)];
    let security = choice(line, "security", &securities, context);
    Some(InstructionKind::Run(Run { command, mounts, network, security, devices }))
}

/// The shell form, with here-documents if the line has any.
fn shell_command(text: &str, context: &Context<'_>) -> Command {
    let Some(first) = context.heredocs.first() else { return Command::Shell(text.to_owned()) };
    if heredoc::parse_word(text).is_some() {
        let content = first.text();
        return Command::Script { name: first.name.clone(), shebang: content.starts_with("#!"), content };
    }
    let mut command = text.to_owned();
    for document in &context.heredocs {
        command.push('\n');
        command.push_str(&document.content);
        command.push_str(&document.name);
    }
    Command::Shell(command)
}

/// A mount without variables is typed here, so that its mistakes are syntax errors.
fn parse_mount(flag: &Spanned<String>, escape: char) -> Result<Mount, MountError> {
    let mount = Mount::parse(flag, flag.span)?;
    if !mount.has_variables() {
        mount.resolve(&mut |value| Ok(expand_word(value, escape, &|_| None, ExpandMode::WORD)?.value))?;
    }
    Ok(mount)
}

fn parse_device(flag: &Spanned<String>) -> Result<Device, String> {
    let mut device = Device { name: String::new(), required: false, span: flag.span };
    for field in split_csv(flag).map_err(|e| e.message)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(v)) => {
                device.required = parse_bool(v).ok_or_else(|| format!("invalid value for required: {v}"))?;
            }
            ("name", Some(_)) if !device.name.is_empty() => {
                return Err(format!("device name already set to {}", device.name));
            }
            ("name", Some(v)) => v.clone_into(&mut device.name),
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(format!("invalid field '{field}' must be a key=value pair")),
            (key, Some(_)) => return Err(format!("unexpected key '{key}' in '{field}' (expected name or required)")),
        }
    }
    if device.name.is_empty() {
        return Err("a device needs a name".to_owned());
    }
    Ok(device)
}

fn choice<T: Copy>(line: &Line<'_>, name: &str, values: &[(&str, T)], context: &mut Context<'_>) -> Option<Spanned<T>> {
    let flag = line.flags.text(name)?;
    if let Some((_, value)) = values.iter().find(|(v, _)| *v == flag.value) {
        return Some(Spanned::new(*value, flag.span));
    }
    let names = values.iter().map(|(v, _)| *v);
    let help = match nearest(&flag, names.clone()) {
        Some(best) => format!("did you mean {best}?"),
        None => format!("expected one of {}", names.collect::<Vec<_>>().join(", ")),
    };
    let message = format!("unsupported {name} mode {:?}", flag.value);
    context.sink.push(Diagnostic::error(flag.span, message).with_help(help));
    None
}

pub(crate) fn parse_command(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    if line.name == "HEALTHCHECK" {
        return parse_healthcheck(line, context);
    }
    line.check_flags(&[], context);
    let command = match json_form(line.arguments, context)? {
        Array::Strings(strings) => Command::Exec(strings),
        _ => Command::Shell(line.arguments.str().to_owned()),
    };
    match (line.name, command) {
        ("CMD", command) => Some(InstructionKind::Cmd(command)),
        ("ENTRYPOINT", command) => Some(InstructionKind::Entrypoint(command)),
        (_, Command::Exec(words)) if !words.is_empty() => Some(InstructionKind::Shell(words)),
        (_, command) => {
            let empty = line.arguments.is_empty() || command == Command::Exec(Vec::new());
            let what = if empty { "at least one argument" } else { "the arguments to be in JSON form" };
            let error = Diagnostic::error(line.place(), format!("SHELL requires {what}"));
            context.sink.push(error.with_help("write SHELL [\"/bin/sh\", \"-c\"]"));
            None
        }
    }
}

fn parse_healthcheck(line: &Line<'_>, context: &mut Context<'_>) -> Option<InstructionKind> {
    line.check_flags(HEALTH_FLAGS, context);
    let usage = "write HEALTHCHECK [flags] CMD <command> or HEALTHCHECK NONE";
    let arguments = line.arguments;
    let text = arguments.str();
    let end = text.find(|c: char| c.is_whitespace()).unwrap_or(text.len());
    let rest = arguments.from(end).trim();
    match text[..end].to_uppercase().as_str() {
        "" => {
            let error = Diagnostic::error(line.place(), "HEALTHCHECK requires at least one argument");
            context.sink.push(error.with_help(usage));
            return None;
        }
        "NONE" if rest.is_empty() => return Some(InstructionKind::Healthcheck(Healthcheck::None)),
        "NONE" => {
            context.sink.error(rest.span(), "HEALTHCHECK NONE takes no arguments");
            return None;
        }
        "CMD" => {}
        other => {
            let error = Diagnostic::error(
                arguments.sub(0, end).span(),
                format!("Unknown type {other:?} in HEALTHCHECK (try CMD)"),
            );
            context.sink.push(error.with_help(usage));
            return None;
        }
    }
    let command = match json_form(rest, context)? {
        Array::Strings(strings) => Command::Exec(strings),
        _ => Command::Shell(rest.str().to_owned()),
    };
    if matches!(&command, Command::Exec(words) if words.is_empty()) || rest.str().chars().all(is_blank) {
        let error = Diagnostic::error(line.place(), "Missing command after HEALTHCHECK CMD");
        context.sink.push(error.with_help(usage));
        return None;
    }
    Some(InstructionKind::Healthcheck(Healthcheck::Check {
        command,
        interval: interval(line, "interval", context),
        timeout: interval(line, "timeout", context),
        start_period: interval(line, "start-period", context),
        start_interval: interval(line, "start-interval", context),
        retries: retries(line, context),
    }))
}

fn interval(line: &Line<'_>, name: &str, context: &mut Context<'_>) -> Option<Duration> {
    const MINIMUM: i64 = 1_000_000;
    let flag = line.flags.text(name)?;
    match parse_duration(&flag) {
        Ok(0) => None,
        Ok(n) if n < MINIMUM => {
            let minimum = format_duration(MINIMUM);
            context.sink.error(flag.span, format!("Interval {name:?} cannot be less than {minimum}"));
            None
        }
        Ok(n) => Some(Duration::from_nanos(n.unsigned_abs())),
        Err(error) => {
            let help = "expected a duration such as 30s, 1m30s or 500ms";
            context.sink.push(Diagnostic::error(flag.span, error.to_string()).with_help(help));
            None
        }
    }
}

fn retries(line: &Line<'_>, context: &mut Context<'_>) -> u32 {
    let Some(flag) = line.flags.text("retries") else { return 0 };
    let bad = |sink: &mut super::Sink, span: Span, message: String| sink.error(span, message);
    match flag.parse::<i32>() {
        Ok(n) if n < 0 => bad(context.sink, flag.span, format!("--retries cannot be negative ({n})")),
        Ok(n) => return n.unsigned_abs(),
        Err(_) => bad(context.sink, flag.span, format!("invalid value for --retries: {:?}", flag.value)),
    }
    0
}
