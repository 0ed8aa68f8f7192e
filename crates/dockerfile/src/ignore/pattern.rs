//! One ignore pattern, compiled into the cheapest form that gives the verdict of moby/patternmatcher.
//!
//! A pattern matches a path when it matches the path or one of its parent directories; both are decided in one pass here.

use super::token::{BadPattern, Token, match_flat, parse, rune};

/// Where a path can be cut: at each `/` and at its end.
pub(crate) struct Cuts<'a> {
    pub(crate) path: &'a [u8],
    inline: [usize; 16],
    used: usize,
    spilled: Vec<usize>,
}

impl<'a> Cuts<'a> {
    pub(crate) fn new(path: &'a [u8]) -> Cuts<'a> {
        let mut cuts = Cuts { path, inline: [0; 16], used: 0, spilled: Vec::new() };
        for (i, byte) in path.iter().enumerate() {
            if *byte == b'/' {
                cuts.add(i);
            }
        }
        cuts.add(path.len());
        cuts
    }

    fn add(&mut self, at: usize) {
        if self.used < self.inline.len() {
            self.inline[self.used] = at;
            self.used += 1;
        } else {
            if self.spilled.is_empty() {
                self.spilled.extend(self.inline);
            }
            self.spilled.push(at);
        }
    }

    fn ends(&self) -> &[usize] {
        if self.spilled.is_empty() { &self.inline[..self.used] } else { &self.spilled }
    }

    fn components(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        let mut start = 0;
        self.ends().iter().map(move |end| {
            let component = &self.path[start.min(*end)..*end];
            start = end + 1;
            component
        })
    }
}

/// A pattern for one path component.
#[derive(Debug)]
enum Component {
    Literal(Vec<u8>),
    /// `*`
    Any,
    /// `a*b`, either end possibly empty.
    Around(Vec<u8>, Vec<u8>),
    Glob(Vec<Token>),
}

impl Component {
    fn new(tokens: &[Token]) -> Component {
        let literal = |tokens: &[Token]| {
            let mut bytes = Vec::new();
            for token in tokens {
                let Token::Char(c) = token else { return None };
                bytes.extend(char::from_u32(*c)?.encode_utf8(&mut [0; 4]).as_bytes());
            }
            Some(bytes)
        };
        if let Some(bytes) = literal(tokens) {
            return Component::Literal(bytes);
        }
        let star = tokens.iter().position(|t| *t == Token::Star);
        let around = star.and_then(|s| Some((literal(&tokens[..s])?, literal(&tokens[s + 1..])?)));
        match around {
            Some((before, after)) if before.is_empty() && after.is_empty() => Component::Any,
            Some((before, after)) => Component::Around(before, after),
            None => Component::Glob(tokens.to_vec()),
        }
    }

    fn matches(&self, text: &[u8]) -> bool {
        match self {
            Component::Literal(literal) => text == literal,
            Component::Any => true,
            Component::Around(before, after) => {
                // The ends first: one byte tells most texts apart.
                let plausible = after.is_empty() || text.last() == after.last();
                plausible
                    && text.len() >= before.len() + after.len()
                    && text.starts_with(before)
                    && text.ends_with(after)
            }
            Component::Glob(tokens) => match_flat(tokens, text),
        }
    }
}

#[derive(Debug)]
enum Shape {
    /// No wildcard.
    Exact(Vec<u8>),
    /// `dir/**`: whatever begins so.
    Prefix(Vec<u8>),
    /// `**x` with literal `x`: some cut ends so. With a leading slash the slash may also be the start of the path.
    Suffix(Vec<u8>),
    /// `**/c`: some component.
    Anywhere(Component),
    /// No `**`: the first components.
    Components(Vec<Component>),
    /// Everything else. Paths that do not begin with the literal head cannot match.
    General { head: Vec<u8>, tokens: Vec<Token> },
}

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct Pattern {
    shape: Shape,
}

impl Pattern {
    /// Compiles a cleaned pattern.
    pub(crate) fn new(cleaned: &[u8]) -> Result<Pattern, BadPattern> {
        let tokens = parse(cleaned, true)?;
        let classes = tokens.iter().filter_map(|t| if let Token::Class(c) = t { Some(c) } else { None });
        if classes.flat_map(|c| &c.ranges).any(|(lo, hi)| lo > hi) {
            return Err(BadPattern::new(cleaned));
        }
        Ok(Pattern { shape: shape(cleaned, tokens) })
    }

    /// Whether the pattern matches the path or one of its parents.
    pub(crate) fn matches(&self, cuts: &Cuts<'_>) -> bool {
        let path = cuts.path;
        match &self.shape {
            Shape::Exact(literal) => path.starts_with(literal) && matches!(path.get(literal.len()), None | Some(b'/')),
            Shape::Prefix(prefix) => path.starts_with(prefix),
            Shape::Suffix(suffix) => suffix_matches(suffix, cuts),
            Shape::Anywhere(component) => cuts.components().any(|c| component.matches(c)),
            Shape::Components(list) => {
                list.len() <= cuts.ends().len() && list.iter().zip(cuts.components()).all(|(p, c)| p.matches(c))
            }
            Shape::General { head, tokens } => {
                path.starts_with(head) && Machine::new(tokens).run(path) == Outcome::Matched
            }
        }
    }

    /// Whether some path below `dir` could match, given that neither `dir` nor a parent of it does.
    pub(crate) fn could_match_below(&self, cuts: &Cuts<'_>) -> bool {
        let dir = cuts.path;
        let compatible = |literal: &[u8]| {
            // `dir/` and the literal agree as far as both go.
            let mut with_slash = dir.iter().copied().chain([b'/']);
            literal.iter().take(dir.len() + 1).all(|b| with_slash.next() == Some(*b))
        };
        match &self.shape {
            Shape::Exact(literal) => literal.len() > dir.len() && compatible(literal),
            Shape::Prefix(prefix) => compatible(prefix),
            Shape::Suffix(_) | Shape::Anywhere(_) => true,
            Shape::Components(list) => {
                list.len() > cuts.ends().len() && list.iter().zip(cuts.components()).all(|(p, c)| p.matches(c))
            }
            Shape::General { tokens, .. } => {
                let mut below = dir.to_vec();
                below.push(b'/');
                Machine::new(tokens).run(&below) != Outcome::Dead
            }
        }
    }
}

fn suffix_matches(suffix: &[u8], cuts: &Cuts<'_>) -> bool {
    let path = cuts.path;
    let Some(last) = suffix.last() else { return true };
    cuts.ends().iter().any(|end| {
        let part = &path[..*end];
        // One byte tells most of them apart.
        part.last() == Some(last) && (part.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(part))
    })
}

/// Chooses the form, with the oddities of the original: `**x` without a slash matches names that end in `x`.
fn shape(cleaned: &[u8], mut tokens: Vec<Token>) -> Shape {
    let special = |t: &Token| !matches!(t, Token::Char(_));
    let escaped = cleaned.contains(&b'\\') || cleaned.contains(&b']');
    let wild = tokens.iter().filter(|t| special(t)).count();
    if !escaped && wild == 0 {
        return Shape::Exact(cleaned.to_vec());
    }
    if !escaped && wild == 1 && cleaned.starts_with(b"**") {
        return Shape::Suffix(cleaned[2..].to_vec());
    }
    if !escaped && wild == 1 && tokens.last() == Some(&Token::DeepEnd) {
        let end = cleaned.strip_suffix(b"/").unwrap_or(cleaned).len() - 2;
        return Shape::Prefix(cleaned[..end].to_vec());
    }
    let slash = u32::from(b'/');
    let spans_slash = tokens.iter().any(|t| matches!(t, Token::Class(c) if c.contains(slash)));
    let deep = |t: &Token| matches!(t, Token::DeepSlash | Token::DeepEnd);
    if !spans_slash && !tokens.iter().any(deep) {
        let parts = tokens.split(|t| *t == Token::Char(slash));
        return Shape::Components(parts.map(Component::new).collect());
    }
    let one_component = |tokens: &[Token]| !tokens.iter().any(|t| deep(t) || *t == Token::Char(slash));
    if !spans_slash && tokens.first() == Some(&Token::DeepSlash) && one_component(&tokens[1..]) {
        tokens.remove(0);
        return Shape::Anywhere(Component::new(&tokens));
    }
    let mut head = Vec::new();
    for token in &tokens {
        match token {
            Token::Char(c) => match char::from_u32(*c) {
                Some(c) => head.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                None => break,
            },
            _ => break,
        }
    }
    Shape::General { head, tokens }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The path or a parent of it matched.
    Matched,
    /// Not yet, but a longer path could.
    Open,
    /// Nothing that begins like this can match.
    Dead,
}

/// All positions in the pattern at once: time is at most pattern times path.
struct Machine<'a> {
    tokens: &'a [Token],
    /// Active positions; one past the last token is acceptance.
    active: Vec<bool>,
    /// `DeepSlash` tokens that are swallowing characters and wait for a `/`.
    swallowing: Vec<bool>,
}

impl<'a> Machine<'a> {
    fn new(tokens: &'a [Token]) -> Machine<'a> {
        let mut machine =
            Machine { tokens, active: vec![false; tokens.len() + 1], swallowing: vec![false; tokens.len() + 1] };
        machine.enter(0);
        machine
    }

    /// Activates a position and those reachable from it without a character.
    fn enter(&mut self, position: usize) {
        let mut position = position;
        while !std::mem::replace(&mut self.active[position], true) {
            match self.tokens.get(position) {
                Some(Token::Star | Token::DeepEnd) => position += 1,
                Some(Token::DeepSlash) => {
                    self.swallowing[position] = true;
                    position += 1;
                }
                _ => return,
            }
        }
    }

    fn accepts(&self) -> bool {
        self.active[self.tokens.len()]
    }

    fn run(&mut self, path: &[u8]) -> Outcome {
        let mut rest = path;
        while let Some((c, length)) = rune(rest) {
            let separator = c == u32::from(b'/');
            if separator && self.accepts() {
                return Outcome::Matched;
            }
            rest = &rest[length..];
            let before = std::mem::replace(&mut self.active, vec![false; self.tokens.len() + 1]);
            let swallowing = std::mem::take(&mut self.swallowing);
            self.swallowing = swallowing.clone();
            let mut alive = false;
            for (i, token) in self.tokens.iter().enumerate() {
                if separator && swallowing[i] {
                    self.enter(i + 1);
                }
                alive |= swallowing[i];
                let next = match token {
                    _ if !before[i] => continue,
                    Token::Char(want) if *want == c => i + 1,
                    Token::One if !separator => i + 1,
                    Token::Class(class) if class.contains(c) => i + 1,
                    Token::Star if !separator => i,
                    Token::DeepEnd => i,
                    _ => continue,
                };
                self.enter(next);
                alive = true;
            }
            if !alive {
                return Outcome::Dead;
            }
        }
        if self.accepts() { Outcome::Matched } else { Outcome::Open }
    }
}
