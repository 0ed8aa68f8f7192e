//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?` and `\` escapes, no bracket expressions. As in BuildKit (which translates
//! them to regular expressions) neither wildcard matches a line break.

use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Any,
}

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct ShellPattern {
    tokens: Vec<Token>,
}

impl ShellPattern {
    pub(crate) fn parse(pattern: &str) -> Result<ShellPattern, String> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Any,
                '?' => Token::One,
                // Inside `${}` these two must be escaped to reach the pattern at all; the escape is not part of it.
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\')) => Token::Char(c),
                    Some(c) => return Err(format!("invalid escape '\\{c}'")),
                    None => return Err("the pattern ends with an escape character".to_owned()),
                },
                c => Token::Char(c),
            });
        }
        Ok(ShellPattern { tokens })
    }

    /// `${v#p}` and, with `longest`, `${v##p}`.
    pub(crate) fn strip_prefix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let end = match_at(&self.tokens, &chars, 0, longest, &mut HashSet::new()).unwrap_or(0);
        chars[end..].iter().collect()
    }

    /// `${v%p}` and, with `longest`, `${v%%p}`: the same on the mirror image.
    pub(crate) fn strip_suffix(&self, value: &str, longest: bool) -> String {
        let tokens: Vec<Token> = self.tokens.iter().rev().copied().collect();
        let mut chars: Vec<char> = value.chars().rev().collect();
        let end = match_at(&tokens, &chars, 0, longest, &mut HashSet::new()).unwrap_or(0);
        chars.drain(..end);
        chars.iter().rev().collect()
    }

    /// `${v/p/r}` and, with `all`, `${v//p/r}`.
    pub(crate) fn replace(&self, value: &str, replacement: &str, all: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let mut result = String::with_capacity(value.len());
        let mut position = 0;
        // An empty match right after a match does not count.
        let mut after_match = false;
        let mut dead = HashSet::new();
        while position <= chars.len() {
            let found = match_at(&self.tokens, &chars, position, true, &mut dead)
                .filter(|end| !(after_match && *end == position));
            match found {
                Some(end) => {
                    result.push_str(replacement);
                    if !all {
                        result.extend(&chars[end..]);
                        return result;
                    }
                    if end == position {
                        result.extend(chars.get(position));
                        position += 1;
                        after_match = false;
                    } else {
                        position = end;
                        after_match = true;
                    }
                }
                None => {
                    result.extend(chars.get(position));
                    position += 1;
                    after_match = false;
                }
            }
        }
        result
    }
}

/// The end of a match that begins at `start`. Backtracking in the order of preference of a regular expression. `dead` remembers the stars
/// from which no match was found (a property of star and position alone, so it stays valid for later starts until a match is found).
fn match_at(
    tokens: &[Token],
    text: &[char],
    start: usize,
    longest: bool,
    dead: &mut HashSet<(usize, usize)>,
) -> Option<usize> {
    let mut stack = vec![(0usize, start)];
    while let Some((token, position)) = stack.pop() {
        let current = text.get(position);
        match tokens.get(token) {
            None => {
                dead.clear();
                return Some(position);
            }
            Some(Token::Char(c)) if current == Some(c) => stack.push((token + 1, position + 1)),
            Some(Token::One) if current.is_some_and(|c| *c != '\n') => stack.push((token + 1, position + 1)),
            Some(Token::Any) if dead.insert((token, position)) => {
                let more = current.is_some_and(|c| *c != '\n').then_some((token, position + 1));
                let enough = Some((token + 1, position));
                // The last pushed is tried first.
                let order = if longest { [enough, more] } else { [more, enough] };
                stack.extend(order.into_iter().flatten());
            }
            Some(_) => {}
        }
    }
    None
}
