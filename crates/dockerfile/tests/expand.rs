//! Variable expansion: the behaviours that BuildKit's own tables pin down.

#![allow(clippy::unwrap_used)]

use kiln_dockerfile::{ExpandMode, expand_heredoc, expand_word, expand_words};
use proptest::prelude::*;

fn variables(name: &str) -> Option<String> {
    let table = [
        ("HOME", "/root"),
        ("NAME", "kiln"),
        ("EMPTY", ""),
        ("WIDE", "한국어"),
        ("LIST", "a  b\tc"),
        ("PATTERN", "o*/"),
        ("URL", "http://h/o/o/f.tar.gz"),
        ("STARS", "a***yy*"),
        ("META", "()[]{}^$.*?|\\x"),
    ];
    table.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
}

fn expand(word: &str) -> Result<String, String> {
    expand_word(word, '\\', &variables, ExpandMode::WORD).map(|e| e.value).map_err(|e| e.to_string())
}

#[test]
fn quotes_and_escapes() {
    let cases = [
        ("plain", "plain"),
        ("so'me qu'otes", "some quotes"),
        ("it\\'s", "it's"),
        ("tab\\there", "tabthere"),
        ("\"tab\\there\"", "tab\\there"),
        ("\"two\\\\one\"", "two\\one"),
        ("'tab\\there'", "tab\\there"),
        ("end\\", "end"),
        ("end\\\\", "end\\"),
        ("\"it's\"", "it's"),
        ("'raw\\'", "raw\\"),
        ("'say \"hi\"'", "say \"hi\""),
        ("\"say \\\"hi\\\"\"", "say \"hi\""),
        ("\\$NAME", "$NAME"),
        ("\"\\$NAME\"", "$NAME"),
        ("'$NAME'", "$NAME"),
        ("''", ""),
        ("a<b<<c", "a<b<<c"),
        ("안녕$NAME", "안녕kiln"),
    ];
    for (word, expected) in cases {
        assert_eq!(expand(word).as_deref(), Ok(expected), "{word}");
    }
    for word in ["it's", "a\\\\'b", "\"open", "\"open\\\"", "'open", "'\\''"] {
        assert!(expand(word).unwrap_err().starts_with("unexpected end of statement"), "{word}");
    }
    let backtick = |word| expand_word(word, '`', &variables, ExpandMode::WORD).unwrap().value;
    assert_eq!(backtick("c:\\dir\\`$NAME`\"x"), "c:\\dir\\$NAME\"x");
    assert_eq!(backtick("\\$NAME"), "\\kiln");
    assert_eq!(backtick("\"`\"\\\""), "\"\\");
}

#[test]
fn references() {
    let cases = [
        ("$HOME", "/root"),
        ("${HOME}x", "/rootx"),
        ("$HOMEx", ""),
        ("$HOME-x", "/root-x"),
        ("a$", "a$"),
        ("a$.b", "a$.b"),
        ("$ b", "$ b"),
        ("$(x)", "$(x)"),
        ("$1x$12", "x"),
        ("$$a$@b$*c$#d$?e$-f$!g", "abcdefg"),
        ("\"$NAME\"'$NAME'", "kiln$NAME"),
        ("$WIDE", "한국어"),
        ("${EMPTY}x", "x"),
        // Default and alternative values, and what is evaluated in them.
        ("${NONE-d}", "d"),
        ("${NONE:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NAME:-d}", "kiln"),
        ("${NAME+alt}", "alt"),
        ("${EMPTY+alt}", "alt"),
        ("${EMPTY:+alt}", ""),
        ("${NONE+alt}", ""),
        ("${NONE:-${HOME}/$NAME}", "/root/kiln"),
        ("${NONE:-'a}b'}", "a}b"),
        ("${NONE:-a\\}b}", "a}b"),
        ("${NONE:-}", ""),
        ("${NAME:+\"$HOME\"}", "/root"),
        ("${NAME?unset}", "kiln"),
        ("${EMPTY?unset}", ""),
        ("something-${V}.linux-amd64${NAME:+-${NAME}}.gz", "something-.linux-amd64-kiln.gz"),
    ];
    for (word, expected) in cases {
        assert_eq!(expand(word).as_deref(), Ok(expected), "{word}");
    }
    let errors = [
        ("${", "syntax error: missing '}'"),
        ("${NAME", "syntax error: missing '}'"),
        ("${NAME:-a", "syntax error: missing '}'"),
        ("${NAME:", "syntax error: missing '}'"),
        ("${NAME:-${HOME}", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${{NAME}}", "syntax error: bad substitution"),
        ("${:NAME}", "syntax error: bad substitution"),
        ("${NAME=x}", "unsupported modifier (=) in substitution"),
        ("${NAME:=x}", "unsupported modifier (:=) in substitution"),
        ("${NAME^^}", "unsupported modifier (^) in substitution"),
        ("${NAME*}", "unsupported modifier (*) in substitution"),
        ("${NONE?}", "NONE: is not allowed to be unset"),
        ("${NONE:?set $NAME}", "NONE: set kiln"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
        ("${NAME/a}", "syntax error: missing '/' in ${}"),
        ("${NAME//}", "syntax error: missing '/' in ${}"),
        ("${NAME/a/b", "syntax error: missing '}'"),
        ("${NAME#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
    ];
    for (word, expected) in errors {
        assert_eq!(expand(word).unwrap_err(), expected, "{word}");
    }
}

#[test]
fn patterns() {
    let cases = [
        ("${URL#*/}", "/h/o/o/f.tar.gz"),
        ("${URL##*/}", "f.tar.gz"),
        ("${URL%.*}", "http://h/o/o/f.tar"),
        ("${URL%%.*}", "http://h/o/o/f"),
        ("${URL%x}", "http://h/o/o/f.tar.gz"),
        ("${URL#}", "http://h/o/o/f.tar.gz"),
        ("${URL#*}", "http://h/o/o/f.tar.gz"),
        ("${URL##*}", ""),
        ("${URL#????}", "://h/o/o/f.tar.gz"),
        ("${STARS%%\\**\\*}", "a"),
        ("${META#()[]{\\}^$.\\*\\?|\\\\}", "x"),
        ("${WIDE#?}", "국어"),
        ("${WIDE%?}", "한국"),
        ("${URL/o/0}", "http://h/0/o/f.tar.gz"),
        ("${URL//o/0}", "http://h/0/0/f.tar.gz"),
        ("${URL//\\//_}", "http:__h_o_o_f.tar.gz"),
        ("${URL//\\//\\/}", "http:\\/\\/h\\/o\\/o\\/f.tar.gz"),
        ("${URL/$PATTERN/X}", "http://h/Xf.tar.gz"),
        ("${URL/t*:/ftp:}", "hftp://h/o/o/f.tar.gz"),
        ("${URL//./$NAME}", "http://h/o/o/fkilntarkilngz"),
        ("${NAME/*/x}", "x"),
        ("${NAME///}", "kiln"),
        ("${NONE//a/b}", ""),
        ("${EMPTY/$EMPTY/w}", "w"),
    ];
    for (word, expected) in cases {
        assert_eq!(expand(word).as_deref(), Ok(expected), "{word}");
    }
}

#[test]
fn splitting() {
    let words = |text: &str| expand_words(text, '\\', &variables).unwrap();
    assert_eq!(words("  a 'b c'  d\\ e "), ["a", "b c", "d e"]);
    assert_eq!(words("$LIST"), ["a", "b", "c"]);
    assert_eq!(words("\"$LIST\" x$LIST"), ["a  b\tc", "xa", "b", "c"]);
    assert_eq!(words("$EMPTY ''"), [] as [&str; 0]);
    assert_eq!(words("x${NONE:-1 2}y"), ["x1", "2y"]);
    assert!(expand_words("'a", '\\', &variables).is_err());
}

#[test]
fn modes_and_names() {
    let result = expand_word("$NAME ${NONE:-$OTHER} $NAME ${HOME}", '\\', &variables, ExpandMode::WORD).unwrap();
    assert_eq!(
        (result.used, result.undefined),
        (vec!["NAME".into(), "HOME".into()], vec!["OTHER".to_string(), "NONE".into()])
    );
    let display = |word| expand_word(word, '\\', &variables, ExpandMode::DISPLAY).unwrap().value;
    assert_eq!(
        display("\"$NAME\" '$NONE' $NONE ${NONE} ${NONE:-x} ${NONE//a/b}"),
        "\"kiln\" '$NONE' $NONE ${NONE} ${NONE:-x} ${NONE//a/b}"
    );
    let heredoc = expand_heredoc("it's \"$NAME\"\n\\$NAME a\\nb\n", &variables).unwrap();
    assert_eq!(heredoc.value, "it's \"kiln\"\n$NAME anb\n");
    let error = expand_word("abc ${NAME=x}", '\\', &variables, ExpandMode::WORD).unwrap_err();
    assert_eq!(error.offset, 4);
}

#[test]
fn nesting_and_size_are_bounded() {
    let deep = format!("{}{}", "${A:-".repeat(100_000), "}".repeat(100_000));
    assert_eq!(expand(&deep).unwrap_err(), "variable references are nested too deeply");
    assert!(expand(&"${A:-".repeat(1_000_000)).is_err());
    let long = "$NAME 'x' ".repeat(200_000);
    assert_eq!(expand(&long).unwrap().len(), 7 * 200_000);
    let value = "ab".repeat(50_000);
    let lookup = |_: &str| Some(value.clone());
    let word = |w: &str| expand_word(w, '\\', &lookup, ExpandMode::WORD).unwrap().value.len();
    assert_eq!(word("${V//b/}"), 50_000);
    assert_eq!(word("${V//a*c/}"), 100_000);
    assert_eq!(word("${V%%*c*c*c}"), 100_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_panics(word in "[$a{}:+?#%/*'\"\\\\<` \u{e9}-]{0,30}", escape in prop_oneof![Just('\\'), Just('`')]) {
        for mode in [ExpandMode::WORD, ExpandMode::HEREDOC, ExpandMode::DISPLAY] {
            if let Err(error) = expand_word(&word, escape, &variables, mode) {
                prop_assert!(error.offset <= word.len());
            }
        }
    }

    #[test]
    fn words_without_syntax_are_unchanged(word in "[a-z0-9_/.:=@-]{0,40}") {
        prop_assert_eq!(expand(&word), Ok(word));
    }
}
