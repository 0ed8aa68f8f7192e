//! A template as pieces of text and actions, and an action as tokens.

use serde_json::{Number, Value};

use super::{Result, error};

/// Text, or what is between `{{` and `}}`.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

/// A token of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// `range`, `json`, …
    Word(String),
    /// `.`, `.A.B`, `$`, `$x.A`: the variable's name (none for the dot), and fields.
    Path(Option<String>, Vec<String>),
    /// Fields of the closing parenthesis before them.
    Fields(Vec<String>),
    Literal(Value),
    Open,
    Close,
    Pipe,
    Declare,
    Assign,
    Comma,
}

/// Splits a template. `{{-` and `-}}` take the white space beside them away; comments are left out.
pub fn pieces(mut text: &str) -> Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    while let Some(start) = text.find("{{") {
        let (mut before, rest) = (&text[..start], &text[start + 2..]);
        let trimmed = rest.strip_prefix('-').filter(|r| r.starts_with(char::is_whitespace));
        if trimmed.is_some() {
            before = before.trim_end();
        }
        pieces.push(Piece::Text(before));
        let rest = trimmed.unwrap_or(rest);
        let comment = rest.trim_start().strip_prefix("/*");
        let end = match comment {
            Some(comment) => {
                let skipped = rest.len() - comment.len();
                comment.find("*/").and_then(|e| Some(skipped + e + rest[skipped + e..].find("}}")?))
            }
            None => end_of_action(rest),
        };
        let Some(end) = end else { return error("an action is not closed: {{ without }}") };
        let mut action = &rest[..end];
        text = &rest[end + 2..];
        if let Some(shorter) = action.strip_suffix('-').filter(|a| a.is_empty() || a.ends_with(char::is_whitespace)) {
            action = shorter;
            text = text.trim_start();
        }
        if comment.is_none() {
            pieces.push(Piece::Action(action.trim()));
        }
    }
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

/// Where `}}` is, outside of strings.
fn end_of_action(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(q) => match c {
                _ if escaped => escaped = false,
                '\\' if q == '"' => escaped = true,
                c if c == q => quote = None,
                _ => {}
            },
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

/// The tokens of an action.
pub fn tokens(action: &str) -> Result<Vec<Token>> {
    let mut lexer = Lexer { rest: action };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next(tokens.last())? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    rest: &'a str,
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Lexer<'_> {
    fn next(&mut self, before: Option<&Token>) -> Result<Option<Token>> {
        let spaced = self.rest.starts_with(char::is_whitespace);
        self.rest = self.rest.trim_start();
        let Some(c) = self.rest.chars().next() else { return Ok(None) };
        let simple = [
            (":=", Token::Declare),
            ("=", Token::Assign),
            ("(", Token::Open),
            (")", Token::Close),
            ("|", Token::Pipe),
            (",", Token::Comma),
        ];
        for (text, token) in simple {
            if let Some(rest) = self.rest.strip_prefix(text) {
                self.rest = rest;
                return Ok(Some(token));
            }
        }
        let token = match c {
            '"' => Token::Literal(Value::String(self.quoted()?)),
            '`' => Token::Literal(Value::String(self.raw()?)),
            '.' => {
                let fields = self.fields(true);
                if before == Some(&Token::Close) && !spaced { Token::Fields(fields) } else { Token::Path(None, fields) }
            }
            '$' => {
                self.rest = &self.rest[1..];
                let name = self.name();
                Token::Path(Some(name), self.fields(false))
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => Token::Literal(self.number()?),
            c if is_name(c) => match self.name().as_str() {
                "true" => Token::Literal(Value::Bool(true)),
                "false" => Token::Literal(Value::Bool(false)),
                "nil" => Token::Literal(Value::Null),
                word => Token::Word(word.to_owned()),
            },
            c => return error(format!("unexpected {c:?} in {{{{{}}}}}", self.rest)),
        };
        Ok(Some(token))
    }

    fn name(&mut self) -> String {
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let name = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        name
    }

    /// `.A.B`; `dot` if a dot alone is meant, too.
    fn fields(&mut self, dot: bool) -> Vec<String> {
        let mut fields = Vec::new();
        while let Some(rest) = self.rest.strip_prefix('.') {
            let named = rest.starts_with(is_name);
            if !(named || dot && fields.is_empty()) {
                break;
            }
            self.rest = rest;
            if !named {
                break;
            }
            fields.push(self.name());
        }
        fields
    }

    fn number(&mut self) -> Result<Value> {
        let end = self.rest[1..].find(|c: char| !is_name(c) && c != '.').map_or(self.rest.len(), |e| e + 1);
        let text = &self.rest[..end];
        self.rest = &self.rest[end..];
        let whole = text.parse::<i64>().map(Value::from).ok();
        let float = || text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number);
        whole.or_else(float).map_or_else(|| error(format!("{text} is not a number")), Ok)
    }

    fn raw(&mut self) -> Result<String> {
        let Some(end) = self.rest[1..].find('`') else { return error("a string is not closed") };
        let text = self.rest[1..=end].to_owned();
        self.rest = &self.rest[end + 2..];
        Ok(text)
    }

    fn quoted(&mut self) -> Result<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c @ ('"' | '\\' | '\'')) => text.push(c),
                    other => return error(format!("the escape \\{} is not supported", other.unwrap_or(' '))),
                },
                c => text.push(c),
            }
        }
        error("a string is not closed")
    }
}
