//! Finding here-documents on a logical line.

use crate::expand::{ExpandMode, expand_word};

use super::lines::View;

/// A `<<word` found on a line; offsets are in the logical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) expand: bool,
    pub(crate) strip_tabs: bool,
    pub(crate) fd: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The here-documents that a line announces. Always lexed with `\` as the escape character, whatever the directive says.
pub(crate) fn find(view: View<'_>) -> Vec<Head> {
    let text = view.str();
    if !text.contains("<<") {
        return Vec::new();
    }
    // A line that cannot be lexed (an unbalanced quote) has no here-documents.
    let Ok(expanded) = expand_word(text, '\\', &|_| None, ExpandMode::LINE) else { return Vec::new() };
    let places = expanded.words.iter().zip(expanded.places);
    let heads = places.filter_map(|(word, (start, end))| {
        let head = parse_word(word)?;
        Some(Head { start: view.start + start, end: view.start + end, ..head })
    });
    heads.collect()
}

/// Recognises `[fd]<<[-]word`. White space between operator and word is allowed; a word of several parts is not one.
pub(crate) fn parse_word(word: &str) -> Option<Head> {
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let rest = word[digits..].strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(after) => (true, after),
        None => (false, rest),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let lex = |raw_quotes| {
        let mode = ExpandMode { raw_quotes, keep_unset: true, ..ExpandMode::WORD };
        expand_word(rest, '\\', &|_| None, mode).ok().map(|e| e.words)
    };
    let (plain, raw) = (lex(false)?, lex(true)?);
    let [name] = plain.as_slice() else { return None };
    let [raw] = raw.as_slice() else { return None };
    let quotes = |s: &str| s.chars().filter(|c| matches!(c, '\'' | '"')).count();
    Some(Head {
        name: name.clone(),
        expand: quotes(name) == quotes(raw),
        strip_tabs,
        fd: word[..digits].parse().unwrap_or(0),
        start: 0,
        end: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for valid in ["<<EOF", "<<'EOF'", "<<\"EOF\"", "<<-EOF", "<<-'EOF'", "<<EO\"F\"", "<< EOF", "<<- EOF", "3<<EOF"]
        {
            assert_eq!(parse_word(valid).map(|h| h.name).as_deref(), Some("EOF"), "{valid}");
        }
        for invalid in ["", "EOF", "<<", "<<-", "<EOF", "<<<EOF", "<<EOF sh", "<<'EOF", "<<\"EOF", "<<EOF'", "a<<EOF"] {
            assert_eq!(parse_word(invalid), None, "{invalid}");
        }
        assert!(parse_word("<<EOF").unwrap().expand);
        assert!(!parse_word("<<eo'f'").unwrap().expand);
        let escaped = parse_word("<<eo\\'f").unwrap();
        assert_eq!((escaped.name.as_str(), escaped.expand), ("eo'f", true));
        assert_eq!(parse_word("<<$EOF").unwrap().name, "$EOF");
        assert_eq!(parse_word("<<'one two'").unwrap().name, "one two");
        assert_eq!(parse_word("4<<-X").map(|h| (h.fd, h.strip_tabs)), Some((4, true)));
    }
}
