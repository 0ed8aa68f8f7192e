//! Filling a template in.

use serde_json::Value;

use super::functions;
use super::parse::{Node, Operand, Pipe};
use super::{Result, error};

/// Fields that hold free keys: one that is not there is no mistake.
const MAPS: [&str; 6] = ["Labels", "ExposedPorts", "Volumes", "Annotations", "annotations", "Data"];
/// Fields that are lists, for how their absence is printed.
const LISTS: [&str; 9] =
    ["Cmd", "Entrypoint", "Env", "OnBuild", "Shell", "RepoTags", "RepoDigests", "Layers", "ArgsEscaped"];

/// A value on its way, and the field that it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Val {
    pub value: Value,
    field: Option<String>,
    absent: bool,
}

impl Val {
    pub fn new(value: Value) -> Self {
        Self { value, field: None, absent: false }
    }
}

/// Renders nodes. With `heads`, functions pass on what they are given.
pub fn render(nodes: &[Node], data: &Value, heads: bool) -> Result<String> {
    let data = Val::new(data.clone());
    let mut state = State { root: data.clone(), variables: Vec::new(), heads, out: String::new() };
    state.nodes(nodes, &data)?;
    Ok(state.out)
}

struct State {
    root: Val,
    variables: Vec<(String, Val)>,
    heads: bool,
    out: String,
}

/// Go's rule for conditions.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// A value as Go prints it.
pub fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

fn shown(val: &Val) -> String {
    let field = val.field.as_deref().unwrap_or_default();
    match &val.value {
        Value::Null if val.absent => "<no value>".to_owned(),
        Value::Null if LISTS.contains(&field) => "[]".to_owned(),
        Value::Null if MAPS.contains(&field) => "map[]".to_owned(),
        value => go(value),
    }
}

impl State {
    fn nodes(&mut self, nodes: &[Node], dot: &Val) -> Result<()> {
        let depth = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Val) -> Result<()> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipe) => {
                let val = self.pipe(pipe, dot)?;
                self.out.push_str(&shown(&val));
            }
            Node::Set { name, value, declare } => {
                let val = self.pipe(value, dot)?;
                match self.variables.iter_mut().rev().find(|(n, _)| n == name && !declare) {
                    Some((_, slot)) => *slot = val,
                    None if *declare => self.variables.push((name.clone(), val)),
                    None => return error(format!("there is no variable ${name}")),
                }
            }
            Node::If { condition, then, otherwise } => {
                let yes = is_true(&self.pipe(condition, dot)?.value);
                self.nodes(if yes { then } else { otherwise }, dot)?;
            }
            Node::With { name, value, body, otherwise } => {
                let val = self.pipe(value, dot)?;
                if !is_true(&val.value) {
                    return self.nodes(otherwise, dot);
                }
                let depth = self.variables.len();
                self.variables.extend(name.iter().map(|n| (n.clone(), val.clone())));
                self.nodes(body, &val)?;
                self.variables.truncate(depth);
            }
            Node::Range { index, value, over, body, otherwise } => {
                let items = self.items(over, dot)?;
                if items.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (key, item) in items {
                    let (key, item) = (Val::new(key), Val::new(item));
                    let depth = self.variables.len();
                    self.variables.extend(index.iter().map(|n| (n.clone(), key.clone())));
                    self.variables.extend(value.iter().map(|n| (n.clone(), item.clone())));
                    self.nodes(body, &item)?;
                    self.variables.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn items(&mut self, over: &Pipe, dot: &Val) -> Result<Vec<(Value, Value)>> {
        Ok(match self.pipe(over, dot)?.value {
            Value::Array(items) => items.into_iter().enumerate().map(|(i, v)| (Value::from(i), v)).collect(),
            Value::Object(map) => map.into_iter().map(|(k, v)| (Value::String(k), v)).collect(),
            Value::Null => Vec::new(),
            other => return error(format!("range can't go over {}", go(&other))),
        })
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Val) -> Result<Val> {
        let mut last: Option<Val> = None;
        for command in &pipe.0 {
            last = Some(self.command(command, last, dot)?);
        }
        last.map_or_else(|| error("a value is missing"), Ok)
    }

    fn command(&mut self, command: &[Operand], piped: Option<Val>, dot: &Val) -> Result<Val> {
        let Some((first, rest)) = command.split_first() else { return error("a value is missing") };
        let Operand::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return error("a value can't be called with arguments: only functions can");
            }
            return self.operand(first, dot);
        };
        let mut args = rest.iter().map(|o| self.operand(o, dot)).collect::<Result<Vec<_>>>()?;
        args.extend(piped);
        if self.heads && functions::is_formatting(name) {
            // What a column's head would become is of no interest: it stays the head.
            let head = args.into_iter().find(|a| a.value.is_string());
            return Ok(head.unwrap_or_else(|| Val::new(Value::String(String::new()))));
        }
        functions::call(name, &args)
    }

    fn operand(&mut self, operand: &Operand, dot: &Val) -> Result<Val> {
        match operand {
            Operand::Literal(value) => Ok(Val::new(value.clone())),
            Operand::Function(name) => functions::call(name, &[]),
            Operand::Group(pipe, fields) => {
                let base = self.pipe(pipe, dot)?;
                walk(base, fields)
            }
            Operand::Path(None, fields) => walk(dot.clone(), fields),
            Operand::Path(Some(name), fields) if name.is_empty() => walk(self.root.clone(), fields),
            Operand::Path(Some(name), fields) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
                found.map_or_else(|| error(format!("there is no variable ${name}")), |v| walk(v, fields))
            }
        }
    }
}

fn walk(mut at: Val, fields: &[String]) -> Result<Val> {
    for field in fields {
        let named = at.field.clone();
        let is_map = named.as_deref().is_some_and(|n| MAPS.contains(&n));
        at = match at.value {
            Value::Object(mut map) => match map.remove(field) {
                Some(value) => Val { value, field: Some(field.clone()), absent: false },
                None if is_map => Val { value: Value::Null, field: None, absent: true },
                None => {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    return error(format!("there is no field {field}: there are {}", known.join(", ")));
                }
            },
            Value::Null => Val { value: Value::Null, field: Some(field.clone()), absent: true },
            _ => {
                let place = named.unwrap_or_else(|| ".".to_owned());
                return error(format!("{place} is not an object: it has no field {field}"));
            }
        };
    }
    Ok(at)
}
