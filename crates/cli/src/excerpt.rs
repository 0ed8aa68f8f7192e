//! Shows places in a Dockerfile.

use std::io::IsTerminal;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use kiln_engine::dockerfile::{Diagnostic, Source, Span};
use kiln_engine::graph::Location;

use crate::progress::{after_carriage_return, printable};

/// More than this many diagnostics help nobody; the rest is counted.
const MOST: usize = 50;

/// Lines with more than this are not shown.
const MOST_BYTES: usize = 64 << 10;

/// Of a step that failed, at its beginning.
const MOST_LINES: usize = 30;
/// Of one of these lines.
const MOST_COLUMNS: usize = 1000;

fn renderer(terminal: bool) -> Renderer {
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    if colour { Renderer::styled() } else { Renderer::plain() }
}

/// Shows diagnostics with the lines they are about.
pub fn show(source: &Source, diagnostics: &[Diagnostic]) {
    let renderer = renderer(std::io::stderr().is_terminal());
    for diagnostic in diagnostics.iter().take(MOST) {
        eprintln!("{}\n", render(source, diagnostic, &renderer));
    }
    if diagnostics.len() > MOST {
        eprintln!("… and {} more", diagnostics.len() - MOST);
    }
}

/// All of them as a text for standard output.
pub fn report(source: &Source, diagnostics: &[Diagnostic]) -> String {
    let renderer = renderer(std::io::stdout().is_terminal());
    diagnostics.iter().map(|d| render(source, d, &renderer) + "\n\n").collect()
}

fn render(source: &Source, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
    let whole = diagnostic.labels.iter().fold(diagnostic.span, |all, label| all.to(label.span));
    let Some((first, from, to)) = [whole, diagnostic.span].into_iter().find_map(|span| shown_lines(source, span))
    else {
        return diagnostic.one_line(source);
    };
    let text = without_credentials(&same_length(&source.bytes()[from..to]));
    let place = |at: usize| boundary(&text, at.saturating_sub(from));
    let clamp = |span: Span| place(span.start)..place(span.end.max(span.start));
    let level = if diagnostic.is_error() { Level::ERROR } else { Level::WARNING };
    let main = AnnotationKind::Primary.span(clamp(diagnostic.span)).label(diagnostic.label.as_str());
    let labels = diagnostic.labels.iter().filter(|l| (from..to).contains(&l.span.start));
    let others = labels.map(|l| AnnotationKind::Context.span(clamp(l.span)).label(l.text.as_str()));
    let snippet = Snippet::source(text.as_str()).line_start(first).path(source.name());
    let snippet = snippet.annotation(main).annotations(others);
    let title = match diagnostic.rule {
        Some(rule) => format!("{}: {}", rule.name(), diagnostic.message),
        None => diagnostic.message.clone(),
    };
    let mut group: Group<'_> = level.primary_title(title.as_str()).element(snippet);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    if let Some(url) = diagnostic.url {
        group = group.element(Level::NOTE.message(url));
    }
    renderer.render(&[group])
}

/// The first line of a place, and where its lines begin and end; nothing if they are more than anybody reads.
fn shown_lines(source: &Source, span: Span) -> Option<(usize, usize, usize)> {
    let (first, last) = source.lines_of(span);
    let from = source.line_start(first).unwrap_or(0);
    let to = source.line_start(last + 1).unwrap_or(source.bytes().len());
    (to - from <= MOST_BYTES).then_some((first, from, to))
}

/// Bytes as text; each that is not UTF-8 as one question mark, so that places stay what they are.
fn same_length(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('?', chunk.invalid().len()));
    }
    text
}

/// User names and passwords of URLs as stars, as many as there were bytes, so that places stay what they are.
fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'".contains(c)).unwrap_or(after.len());
        let hidden = after[..end].rfind('@').unwrap_or(0);
        out.push_str(before);
        out.extend(std::iter::repeat_n('*', hidden));
        rest = &after[hidden..];
    }
    out + rest
}

fn boundary(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Shows the lines of a step, as BuildKit does: two lines around, the step's own marked.
pub fn lines(source: &Source, location: &Location) {
    let (first, last) = (location.start_line as usize, location.end_line as usize);
    eprintln!("{}:{first}", location.file);
    eprintln!("--------------------");
    for line in first.saturating_sub(2).max(1)..=(last + 2).min(source.line_count()) {
        if (first + MOST_LINES..last).contains(&line) {
            if line == first + MOST_LINES {
                eprintln!("     | … {} more lines", last - line);
            }
            continue;
        }
        let mark = if (first..=last).contains(&line) { ">>>" } else { "   " };
        let shown = without_credentials(source.line_text(line).as_ref());
        eprintln!("{line:4} | {mark} {}", clipped(&shown, MOST_COLUMNS));
    }
    eprintln!("--------------------");
}

/// Shows the end of a step's output.
pub fn tail(output: &[String]) {
    if !output.is_empty() {
        eprintln!("last output:");
    }
    for line in output {
        // What redrew a line, moved the cursor or changed colours would do so here.
        eprintln!(" > {}", clipped(&printable(after_carriage_return(line.as_bytes())), MOST_COLUMNS));
    }
}

/// A text that is not longer than a reader's patience.
pub fn clipped(text: &str, most: usize) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::without_credentials;

    #[test]
    fn credentials_of_urls_are_stars() {
        for (text, shown) in [
            ("ADD https://u:pass@h/x /y", "ADD https://******@h/x /y"),
            ("ADD [\"http://tok@h\", \"/a@b\"]", "ADD [\"http://***@h\", \"/a@b\"]"),
            ("RUN curl https://h/x@y; echo a@b", "RUN curl https://h/x@y; echo a@b"),
            ("FROM a://b@c://d@e", "FROM a://*@c://*@e"),
        ] {
            assert_eq!(without_credentials(text), shown);
            assert_eq!(text.len(), shown.len());
        }
    }
}
