//! The functions of templates: Go's own, and those that docker adds.

use std::cmp::Ordering;

use serde_json::Value;

use super::eval::{Val, go, is_true};
use super::{Result, error};

/// Whether a function changes how a value looks, and nothing else.
pub fn is_formatting(name: &str) -> bool {
    matches!(name, "json" | "lower" | "upper" | "title" | "truncate" | "pad" | "split" | "join" | "slice")
}

/// Calls a function.
pub fn call(name: &str, args: &[Val]) -> Result<Val> {
    let values: Vec<&Value> = args.iter().map(|a| &a.value).collect();
    let value = match (name, values.as_slice()) {
        ("json", [v]) => Value::String(v.to_string()),
        ("lower", [v]) => Value::String(text(name, v)?.to_lowercase()),
        ("upper", [v]) => Value::String(text(name, v)?.to_uppercase()),
        ("title", [v]) => Value::String(title(text(name, v)?)),
        ("join", [list, separator]) => join(list, text(name, separator)?)?,
        ("split", [v, separator]) => {
            text(name, v)?.split(text(name, separator)?).map(|p| Value::String(p.to_owned())).collect()
        }
        ("truncate", [v, n]) => text(name, v)?.chars().take(number(name, n)?).collect::<String>().into(),
        ("pad", [v, before, after]) => {
            let spaces = |n: &Value| number(name, n).map(|n| " ".repeat(n.min(1000)));
            format!("{}{}{}", spaces(before)?, text(name, v)?, spaces(after)?).into()
        }
        ("len", [v]) => len(v)?.into(),
        ("index", [v, keys @ ..]) => keys.iter().try_fold((*v).clone(), |at, key| index(&at, key))?,
        ("slice", [v, from]) => slice(v, number(name, from)?, None)?,
        ("slice", [v, from, to]) => slice(v, number(name, from)?, Some(number(name, to)?))?,
        ("not", [v]) => (!is_true(v)).into(),
        ("and", [.., last]) => (*values.iter().find(|v| !is_true(v)).unwrap_or(last)).clone(),
        ("or", [.., last]) => (*values.iter().find(|v| is_true(v)).unwrap_or(last)).clone(),
        ("eq", [first, others @ ..]) if !others.is_empty() => others.iter().any(|o| o == first).into(),
        ("ne", [a, b]) => (a != b).into(),
        ("lt", [a, b]) => (order(a, b)? == Ordering::Less).into(),
        ("le", [a, b]) => (order(a, b)? != Ordering::Greater).into(),
        ("gt", [a, b]) => (order(a, b)? == Ordering::Greater).into(),
        ("ge", [a, b]) => (order(a, b)? != Ordering::Less).into(),
        ("print", _) => values.iter().map(|v| go(v)).collect::<String>().into(),
        ("println", _) => format!("{}\n", values.iter().map(|v| go(v)).collect::<Vec<_>>().join(" ")).into(),
        ("printf", [format, rest @ ..]) => printf(text(name, format)?, rest)?.into(),
        (
            "json" | "lower" | "upper" | "title" | "join" | "split" | "truncate" | "pad" | "len" | "index" | "slice"
            | "not" | "and" | "or" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "printf",
            _,
        ) => return error(format!("{name} does not take {} arguments", args.len())),
        _ => {
            return error(format!(
                "there is no function {name}: known are json, lower, upper, title, join, split, truncate, pad, len, index, \
                 slice, eq, ne, lt, le, gt, ge, and, or, not, print, printf, println"
            ));
        }
    };
    Ok(Val::new(value))
}

fn text<'a>(function: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().map_or_else(|| error(format!("{function}: {} is not a string", go(value))), Ok)
}

fn number(function: &str, value: &Value) -> Result<usize> {
    let found = value.as_u64().and_then(|n| usize::try_from(n).ok());
    found.map_or_else(|| error(format!("{function}: {} is not a number of characters", go(value))), Ok)
}

fn title(text: &str) -> String {
    let mut start = true;
    let upper = |c: char| -> String {
        let shown = if start { c.to_uppercase().collect() } else { c.to_string() };
        start = c.is_whitespace();
        shown
    };
    text.chars().map(upper).collect()
}

fn join(list: &Value, separator: &str) -> Result<Value> {
    match list {
        Value::Array(items) => Ok(items.iter().map(go).collect::<Vec<_>>().join(separator).into()),
        Value::Null => Ok(String::new().into()),
        other => error(format!("join: {} is not a list", go(other))),
    }
}

fn len(value: &Value) -> Result<usize> {
    match value {
        Value::Array(items) => Ok(items.len()),
        Value::Object(map) => Ok(map.len()),
        Value::String(text) => Ok(text.len()),
        Value::Null => Ok(0),
        other => error(format!("len: {other} has no length")),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value> {
    match (value, key) {
        (Value::Object(map), Value::String(key)) => Ok(map.get(key).cloned().unwrap_or_else(|| "".into())),
        (Value::Array(items), Value::Number(at)) => {
            let found = at.as_u64().and_then(|n| items.get(usize::try_from(n).ok()?));
            found.cloned().map_or_else(|| error(format!("index: {at} is out of range: it has {}", items.len())), Ok)
        }
        (Value::Null, Value::String(_)) => Ok("".into()),
        (Value::Null, _) => error("index: it is out of range: there is no such list"),
        _ => error(format!("index: {} has no {}", go(value), go(key))),
    }
}

fn slice(value: &Value, from: usize, to: Option<usize>) -> Result<Value> {
    let range = |len: usize| from..to.unwrap_or(len);
    let found = match value {
        Value::Array(items) => items.get(range(items.len())).map(|part| Value::Array(part.to_vec())),
        Value::String(text) => text.get(range(text.len())).map(|part| Value::String(part.to_owned())),
        other => return error(format!("slice: {} is neither a list nor a string", go(other))),
    };
    found.map_or_else(|| error("slice: it is out of range"), Ok)
}

fn order(a: &Value, b: &Value) -> Result<Ordering> {
    let found = match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    };
    found.map_or_else(|| error(format!("{} and {} can't be compared", go(a), go(b))), Ok)
}

fn printf(format: &str, args: &[&Value]) -> Result<String> {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let left = chars.as_str().starts_with('-');
        let width: String = chars.as_str().trim_start_matches('-').chars().take_while(char::is_ascii_digit).collect();
        (0..width.len() + usize::from(left)).for_each(|_| _ = chars.next());
        let width = width.parse::<u16>().map_or(0, usize::from);
        let verb = match chars.next() {
            Some('%') => {
                out.push('%');
                continue;
            }
            Some(verb) => verb,
            None => return error("printf: the format ends with %"),
        };
        let Some(arg) = args.next() else { return error(format!("printf: there is no value for %{verb}")) };
        let shown = match verb {
            's' | 'v' | 'd' => go(arg),
            'q' => Value::String(go(arg)).to_string(),
            other => {
                return error(format!(
                    "printf: %{other} is not supported: use %s, %d, %q or %v, with a width if need be"
                ));
            }
        };
        let padding = " ".repeat(width.saturating_sub(shown.chars().count()));
        out.push_str(&if left { shown + &padding } else { padding + &shown });
    }
    Ok(out)
}
