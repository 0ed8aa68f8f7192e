//! `update-alternatives --install` calls in maintainer scripts, for bases in which no script runs.
//!
//! This is not a shell: words, quotes, line continuations and variables that were assigned a plain word are understood;
//! a call with anything else in it is left alone.

use std::collections::BTreeMap;

/// One name for one of several files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// Where programs look, `usr/bin/awk`.
    pub link: String,
    /// Its name in `etc/alternatives`.
    pub name: String,
    /// What it stands for.
    pub target: String,
    /// The highest wins.
    pub priority: i64,
}

/// The alternatives that a script installs; slaves have their master's priority.
pub fn parse(script: &str) -> Vec<Alternative> {
    let joined = script.replace("\\\n", " ");
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    let mut found = Vec::new();
    for line in joined.lines() {
        let line = line.trim();
        if let Some((name, value)) = assignment(line) {
            match words(value, &variables).as_deref() {
                Some([value]) => drop(variables.insert(name.to_owned(), value.clone())),
                _ => drop(variables.remove(name)),
            }
            continue;
        }
        let Some(at) = line.find("update-alternatives").filter(|_| !line.starts_with('#')) else { continue };
        if let Some(words) = words(&line[at..], &variables) {
            found.extend(call(&words));
        }
    }
    found
}

/// `NAME=value`, with nothing after it.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let plain = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    plain.then_some((name, value.trim_end_matches(';')))
}

/// The words of a command up to its end; None if one can't be understood.
fn words(text: &str, variables: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(q)) if c == q => quote = None,
            ('$', None | Some('"')) => {
                let braced = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if braced && chars.next() != Some('}') {
                    return None;
                }
                word.get_or_insert_default().push_str(variables.get(&name)?);
            }
            ('`', _) | ('\\', _) => return None,
            (';' | '|' | '&' | '>' | '<' | '#' | '(' | ')', None) => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

fn call(words: &[String]) -> Vec<Alternative> {
    let mut found: Vec<Alternative> = Vec::new();
    let mut rest = words;
    let mut priority = 0;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let (link, name, target) = match (first.as_str(), tail) {
            ("--install", [link, name, target, level, ..]) => {
                let Ok(level) = level.parse() else { return Vec::new() };
                priority = level;
                (link, name, target)
            }
            ("--slave", [link, name, target, ..]) if !found.is_empty() => (link, name, target),
            _ => continue,
        };
        let path =
            |text: &str| text.strip_prefix('/').filter(|p| !p.split('/').any(|part| part == "..")).map(str::to_owned);
        let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        if let (Some(link), Some(target), true) = (path(link), path(target), plain) {
            found.push(Alternative { link, name: name.clone(), target, priority });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(script: &str) -> Vec<String> {
        parse(script).into_iter().map(|a| format!("{} {} {} {}", a.link, a.name, a.target, a.priority)).collect()
    }

    #[test]
    fn real_scripts() {
        let mawk = "case \"$1\" in\n  configure)\n        update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n            --slave /usr/bin/nawk nawk /usr/bin/mawk\n;;\nesac";
        assert_eq!(links(mawk), ["usr/bin/awk awk usr/bin/mawk 5", "usr/bin/nawk nawk usr/bin/mawk 5"]);
        let blas = "arch=x86_64-linux-gnu\nname='libblas.so.3'\nupdate-alternatives --quiet --install \"/usr/lib/$arch/$name\" \"${name}-$arch\" /usr/lib/$arch/blas/libblas.so.3 10 || true";
        assert_eq!(
            links(blas),
            [
                "usr/lib/x86_64-linux-gnu/libblas.so.3 libblas.so.3-x86_64-linux-gnu usr/lib/x86_64-linux-gnu/blas/libblas.so.3 10"
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        for script in [
            "update-alternatives --install /usr/bin/$x x /usr/bin/y 5",
            "update-alternatives --install /usr/bin/x x $(which y) 5",
            "update-alternatives --install /usr/bin/x x /usr/bin/y",
            "update-alternatives --install /../x x /y 5",
            "update-alternatives --install /x ../x /y 5",
            "# update-alternatives --install /x x /y 5",
            "update-alternatives --remove x /y",
            "update-alternatives --install \"/x x /y 5",
        ] {
            assert!(links(script).is_empty(), "{script}");
        }
    }
}
