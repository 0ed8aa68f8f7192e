//! Parser directives: `# syntax=`, `# escape=`, `# check=` in the first lines.
//!
//! Docker reads them twice with slightly different rules, which is kept: `escape` as the instructions are parsed (white space before `#`
//! allowed, a shebang line ends the search), `syntax` and `check` beforehand (`#` in the first column, a shebang line skipped, the value
//! ends at the first space). `syntax` is also found as `// syntax=` or as a JSON object.

use crate::ast::Directives;
use crate::diagnostic::Diagnostic;
use crate::source::{Source, Span, Spanned};

use super::json;
use super::lines::{Line, Lines};

/// What the top of the file says.
pub(crate) struct Scanned {
    pub(crate) directives: Directives,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Lines that start before this offset are directives, not comments.
    pub(crate) end: usize,
}

pub(crate) fn scan(source: &Source) -> Scanned {
    let mut found = Scanned { directives: Directives::default(), diagnostics: Vec::new(), end: 0 };
    let shebang = source.bytes().strip_prefix(b"\xef\xbb\xbf").unwrap_or(source.bytes()).starts_with(b"#!");
    scan_comments(source, &mut found, shebang);
    if found.directives.syntax.is_none() {
        found.directives.syntax = slash_syntax(source, shebang).or_else(|| json_syntax(source));
    }
    found
}

fn scan_comments(source: &Source, found: &mut Scanned, shebang: bool) {
    let mut lines = Lines::new(source);
    if shebang {
        lines.next();
    }
    let mut seen: Vec<String> = Vec::new();
    while let Some(line) = lines.next() {
        let Some((key, value)) = directive_on(&line, "#", true) else { break };
        if !matches!(key.as_str(), "syntax" | "escape" | "check") {
            break;
        }
        found.end = line.next;
        if seen.contains(&key) {
            let message = format!("only one {key} parser directive can be used");
            found.diagnostics.push(Diagnostic::error(line.span(), message));
            continue;
        }
        let indented = line.bytes.first() != Some(&b'#');
        let first_word = || {
            let end = value.value.find(' ').unwrap_or(value.value.len());
            Spanned::new(value.value[..end].to_owned(), Span::new(value.span.start, value.span.start + end))
        };
        match key.as_str() {
            "syntax" if !indented => found.directives.syntax = Some(first_word()),
            "check" if !indented => found.directives.check = Some(first_word()),
            // After a shebang the escape directive is an ordinary comment.
            "escape" if !shebang => match value.value.as_str() {
                "\\" => found.directives.escape = Some(Spanned::new('\\', value.span)),
                "`" => found.directives.escape = Some(Spanned::new('`', value.span)),
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    let help = "write # escape=\\ or # escape=`";
                    found.diagnostics.push(Diagnostic::error(value.span, message).with_help(help));
                }
            },
            _ => {}
        }
        seen.push(key);
    }
}

/// `key=value` behind the marker on a line: the key in lower case and the trimmed value.
fn directive_on(line: &Line<'_>, marker: &str, indent: bool) -> Option<(String, Spanned<String>)> {
    let text = std::str::from_utf8(line.bytes).ok()?;
    let body = if indent { text.trim_start() } else { text };
    let body = body.strip_prefix(marker)?;
    let (key, value) = split_directive(body)?;
    let start = line.start + (text.len() - value.len());
    let value = value.trim_end();
    Some((key, Spanned::new(value.to_owned(), Span::new(start, start + value.len()))))
}

/// `key = value` after the comment marker. The value is not empty and its end is not trimmed.
pub(crate) fn split_directive(body: &str) -> Option<(String, &str)> {
    let body = body.trim_start();
    let key_len = body.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(body.len());
    let (key, rest) = body.split_at(key_len);
    if !key.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let value = rest.trim_start().strip_prefix('=')?.trim_start();
    (!value.trim_end().is_empty()).then(|| (key.to_ascii_lowercase(), value))
}

fn slash_syntax(source: &Source, shebang: bool) -> Option<Spanned<String>> {
    let mut lines = Lines::new(source);
    if shebang {
        lines.next();
    }
    while let Some(line) = lines.next() {
        let (key, value) = directive_on(&line, "//", false)?;
        match key.as_str() {
            "syntax" => {
                let end = value.value.find(' ').unwrap_or(value.value.len());
                let span = Span::new(value.span.start, value.span.start + end);
                return Some(Spanned::new(value.value[..end].to_owned(), span));
            }
            "escape" | "check" => {}
            _ => return None,
        }
    }
    None
}

/// The whole file is a JSON object with a `syntax` member.
fn json_syntax(source: &Source) -> Option<Spanned<String>> {
    let bytes = source.bytes().strip_prefix(b"\xef\xbb\xbf").unwrap_or(source.bytes());
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let value = json::string_member(text, "syntax")?;
    Some(Spanned::new(value, Span::new(0, source.bytes().len().min(1))))
}

/// Whether a `# syntax=` names the standard Dockerfile frontend, whose language this crate implements: `docker/dockerfile` or
/// `docker/dockerfile-upstream` on Docker Hub, with any tag or digest.
pub fn is_docker_syntax(reference: &str) -> bool {
    let name = reference.split('@').next().unwrap_or(reference);
    // A colon after the last slash starts a tag; one before it is a registry's port.
    let name = match (name.rfind(':'), name.rfind('/')) {
        (Some(colon), Some(slash)) if colon > slash => &name[..colon],
        (Some(colon), None) => &name[..colon],
        _ => name,
    };
    let hosts = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"];
    let path = hosts.iter().find_map(|host| name.strip_prefix(host)).unwrap_or(name);
    matches!(path, "docker/dockerfile" | "docker/dockerfile-upstream")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directives(text: &str) -> (Directives, Vec<String>) {
        let source = Source::new("Dockerfile", text.as_bytes());
        let scanned = scan(&source);
        (scanned.directives, scanned.diagnostics.iter().map(|d| d.one_line(&source)).collect())
    }

    fn syntax(text: &str) -> Option<String> {
        directives(text).0.syntax.map(|s| s.value)
    }

    #[test]
    fn syntax_is_found_where_docker_finds_it() {
        assert_eq!(
            syntax("# syntax = dockerfile:experimental // opts\nFROM x\n").as_deref(),
            Some("dockerfile:experimental")
        );
        assert_eq!(syntax("#!/bin/sh\n# syntax = a/b\nFROM x\n").as_deref(), Some("a/b"));
        assert_eq!(syntax("#!/bin/sh\n\n# syntax = a/b\n"), None);
        assert_eq!(syntax("FROM x\n# syntax=a\n"), None);
        assert_eq!(syntax("//syntax=foo\n//key=value").as_deref(), Some("foo"));
        assert_eq!(syntax("#!/bin/sh\n//syntax=x").as_deref(), Some("x"));
        assert_eq!(syntax("{\"syntax\": \"foo\", \"bar\": [\"abc\"]}").as_deref(), Some("foo"));
        assert_eq!(syntax("{\"syntax\": \"foo\""), None);
        assert_eq!(syntax("{\"syntax\": \"foo\"}\n# syntax=bar"), None);
        assert_eq!(syntax("\u{feff}# SYNTAX=a/b\r\nFROM x").as_deref(), Some("a/b"));
        assert_eq!(syntax("# comment\n# syntax=a\n"), None);
        assert_eq!(syntax("# unknown=1\n# syntax=a\n"), None);
        assert_eq!(syntax("# escape=`\n# syntax=a\n").as_deref(), Some("a"));
    }

    #[test]
    fn escape_and_check() {
        let (d, errors) = directives("# EScape = `\n#check=skip=A;error=true // x\nFROM x\n");
        assert_eq!(d.escape.map(|e| e.value), Some('`'));
        assert_eq!(d.check.map(|e| e.value).as_deref(), Some("skip=A;error=true"));
        assert!(errors.is_empty());
        assert_eq!(directives("  # escape=`\n").0.escape.map(|e| e.value), Some('`'));
        assert_eq!(directives("#!x\n# escape=`\n").0.escape, None);
        assert_eq!(
            directives("# escape=x\n# escape=`\n").1,
            [
                "Dockerfile:1:10: error: invalid escape token 'x' does not match ` or \\ (write # escape=\\ or # escape=`)",
                "Dockerfile:2:1: error: only one escape parser directive can be used",
            ]
        );
    }

    #[test]
    fn families() {
        for ours in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.7-labs",
            "docker/dockerfile-upstream:master",
            "docker/dockerfile@sha256:abc",
            "index.docker.io/docker/dockerfile:1@sha256:abc",
        ] {
            assert!(is_docker_syntax(ours), "{ours}");
        }
        for other in
            ["dockerfile:1", "ghcr.io/docker/dockerfile:1", "tonistiigi/x", "localhost:5000/docker/dockerfile", ""]
        {
            assert!(!is_docker_syntax(other), "{other}");
        }
    }
}
