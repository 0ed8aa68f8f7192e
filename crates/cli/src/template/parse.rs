//! The tree of a template.

use serde_json::Value;

use super::lex::{self, Piece, Token};
use super::{Result, error};

/// A part of a template.
#[derive(Debug)]
pub enum Node {
    Text(String),
    Print(Pipe),
    /// `$x := …` and `$x = …`.
    Set {
        name: String,
        value: Pipe,
        declare: bool,
    },
    If {
        condition: Pipe,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    /// `$index` and `$value` may be unnamed.
    Range {
        index: Option<String>,
        value: Option<String>,
        over: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        name: Option<String>,
        value: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands of which each gets the result of the one before it as its last argument.
#[derive(Debug)]
pub struct Pipe(pub Vec<Vec<Operand>>);

/// A value, or a function in front of its arguments.
#[derive(Debug)]
pub enum Operand {
    Path(Option<String>, Vec<String>),
    Literal(Value),
    Function(String),
    Group(Pipe, Vec<String>),
}

/// Nested blocks and parentheses.
const MAX_DEPTH: u32 = 64;

/// Parses a template.
pub fn parse(text: &str) -> Result<Vec<Node>> {
    let pieces = lex::pieces(text)?;
    let mut parser = Parser { pieces: pieces.into_iter(), depth: 0 };
    match parser.block()? {
        (nodes, None) => Ok(nodes),
        (_, Some(end)) => error(format!("{{{{{}}}}} without a block that it belongs to", end.word())),
    }
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    depth: u32,
}

/// What ends a block.
enum End {
    End,
    /// `else`, and what follows it: `if …`.
    Else(Vec<Token>),
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Else(_) => "else",
        }
    }
}

impl Parser<'_> {
    /// The nodes up to `end` or `else`, or to the end of the template.
    fn block(&mut self) -> Result<(Vec<Node>, Option<End>)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text("") => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let tokens = lex::tokens(action)?;
            let word = match tokens.first() {
                Some(Token::Word(word)) => word.clone(),
                Some(_) => String::new(),
                None => return error("an action is empty: {{}}"),
            };
            match word.as_str() {
                "end" => return Ok((nodes, Some(End::End))),
                "else" => return Ok((nodes, Some(End::Else(tokens[1..].to_vec())))),
                "if" | "range" | "with" => nodes.push(self.nested(&word, &tokens[1..])?),
                "define" | "template" | "block" | "break" | "continue" => {
                    return error(format!("{word} is not supported in --format"));
                }
                _ => nodes.push(statement(&tokens)?),
            }
        }
        Ok((nodes, None))
    }

    fn nested(&mut self, word: &str, head: &[Token]) -> Result<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return error("blocks are nested too deeply");
        }
        let (variables, pipe) = declared(head)?;
        if head.is_empty() {
            return error(format!("{word} needs a value"));
        }
        let (body, end) = self.block()?;
        let otherwise = match end {
            None => return error(format!("{{{{end}}}} is missing after {{{{{word}}}}}")),
            Some(End::End) => Vec::new(),
            Some(End::Else(rest)) => match rest.split_first() {
                Some((Token::Word(next), rest)) if next == "if" || next == "with" => vec![self.nested(next, rest)?],
                Some(_) => return error("expected {{else}} or {{else if …}}"),
                None => match self.block()? {
                    (nodes, Some(End::End)) => nodes,
                    (_, Some(End::Else(_))) => return error("a block has two {{else}}"),
                    (_, None) => return error("{{end}} is missing after {{else}}"),
                },
            },
        };
        self.depth -= 1;
        let mut variables = variables.into_iter();
        Ok(match (word, variables.next(), variables.next()) {
            ("if", None, _) => Node::If { condition: pipe, then: body, otherwise },
            ("range", first, Some(second)) => {
                Node::Range { index: first, value: Some(second), over: pipe, body, otherwise }
            }
            ("range", value, None) => Node::Range { index: None, value, over: pipe, body, otherwise },
            ("with", name, None) => Node::With { name, value: pipe, body, otherwise },
            _ => return error(format!("{word} does not take variables like this")),
        })
    }
}

/// Variables before `:=`, and the pipe after it.
fn declared(tokens: &[Token]) -> Result<(Vec<String>, Pipe)> {
    let Some(at) = tokens.iter().position(|t| *t == Token::Declare) else { return Ok((Vec::new(), pipe(tokens)?)) };
    let mut names = Vec::new();
    for part in tokens[..at].split(|t| *t == Token::Comma) {
        match part {
            [Token::Path(Some(name), fields)] if fields.is_empty() && !name.is_empty() => names.push(name.clone()),
            _ => return error("expected a variable such as $x before :="),
        }
    }
    Ok((names, pipe(&tokens[at + 1..])?))
}

fn statement(tokens: &[Token]) -> Result<Node> {
    match tokens {
        [Token::Path(Some(name), fields), sign @ (Token::Declare | Token::Assign), rest @ ..] if fields.is_empty() => {
            Ok(Node::Set { name: name.clone(), value: pipe(rest)?, declare: *sign == Token::Declare })
        }
        _ => pipe(tokens).map(Node::Print),
    }
}

fn pipe(tokens: &[Token]) -> Result<Pipe> {
    let mut at = 0;
    let pipe = pipe_at(tokens, &mut at, 0)?;
    match tokens.get(at) {
        None => Ok(pipe),
        Some(Token::Close) => error("a ) is too many"),
        Some(_) => error("a pipe is not understood"),
    }
}

fn pipe_at(tokens: &[Token], at: &mut usize, depth: u32) -> Result<Pipe> {
    if depth > MAX_DEPTH {
        return error("parentheses are nested too deeply");
    }
    let mut commands = vec![Vec::new()];
    while let Some(token) = tokens.get(*at) {
        let operand = match token {
            Token::Close => break,
            Token::Pipe => {
                commands.push(Vec::new());
                *at += 1;
                continue;
            }
            Token::Path(name, fields) => Operand::Path(name.clone(), fields.clone()),
            Token::Literal(value) => Operand::Literal(value.clone()),
            Token::Word(word) => Operand::Function(word.clone()),
            Token::Open => {
                *at += 1;
                let inner = pipe_at(tokens, at, depth + 1)?;
                if tokens.get(*at) != Some(&Token::Close) {
                    return error("a ( is not closed");
                }
                match tokens.get(*at + 1) {
                    Some(Token::Fields(fields)) => {
                        *at += 1;
                        Operand::Group(inner, fields.clone())
                    }
                    _ => Operand::Group(inner, Vec::new()),
                }
            }
            Token::Fields(_) | Token::Declare | Token::Assign | Token::Comma => {
                return error("an action is not understood: check its punctuation");
            }
        };
        *at += 1;
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
    }
    if commands.iter().any(Vec::is_empty) {
        return error(if commands.len() > 1 { "a pipe begins or ends with |" } else { "a value is missing" });
    }
    Ok(Pipe(commands))
}
