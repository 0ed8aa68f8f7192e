//! `--call=…,format=json`: the members that `docker buildx build` writes, for the programs that read them.

use base64::Engine as _;
use kiln_engine::build::Checked;
use kiln_engine::dockerfile::{Diagnostic, Source, Span};
use kiln_engine::frontend::{Outline, OutlineArg, OutlineMount, Target};
use serde_json::{Map, Value, json};

/// What `--call=check` found.
pub fn checked(checked: &Checked, source: &Source) -> Value {
    let warning = |w: &Diagnostic| {
        let mut warning = Map::new();
        warning.insert("ruleName".into(), w.rule.map_or("", |r| r.name()).into());
        put(&mut warning, "description", w.rule.map(|r| r.description()));
        put(&mut warning, "url", w.url);
        warning.insert("detail".into(), w.message.as_str().into());
        warning.insert("location".into(), location(w.span, source));
        Value::Object(warning)
    };
    let file = json!({ "filename": source.name(), "language": "Dockerfile", "data": data(source) });
    let warnings: Vec<_> = checked.warnings.iter().map(warning).collect();
    let mut all = json!({ "warnings": warnings, "sources": [file] });
    if let Some(error) = checked.errors.first() {
        all["buildError"] = json!({ "message": error.message, "location": location(error.span, source) });
    } else if let Some(message) = &checked.violation {
        all["buildError"] = json!({ "message": message, "location": {} });
    }
    all
}

/// What `--call=targets` found.
pub fn targets(list: &[Target], source: &Source) -> Value {
    let target = |t: &Target| {
        let mut target = Map::new();
        put(&mut target, "name", Some(t.name.as_str()).filter(|n| !n.is_empty()));
        if t.default {
            target.insert("default".into(), true.into());
        }
        put(&mut target, "description", t.description.as_deref());
        put(&mut target, "base", Some(t.base.as_str()));
        put(&mut target, "platform", t.platform.as_deref());
        target.insert("location".into(), location(t.span, source));
        Value::Object(target)
    };
    let list: Vec<_> = list.iter().map(target).collect();
    json!({ "targets": list, "sources": [data(source)] })
}

/// What `--call=outline` found.
pub fn outline(outline: &Outline, source: &Source) -> Value {
    let arg = |a: &OutlineArg| {
        let mut arg = Map::new();
        arg.insert("name".into(), a.name.as_str().into());
        put(&mut arg, "description", a.description.as_deref());
        put(&mut arg, "value", a.value.as_deref());
        arg.insert("location".into(), location(a.span, source));
        Value::Object(arg)
    };
    let mounts = |list: &[OutlineMount]| -> Vec<Value> {
        list.iter()
            .map(|m| json!({ "name": m.id, "required": m.required, "location": location(m.span, source) }))
            .collect()
    };
    let mut all = Map::new();
    put(&mut all, "name", Some(outline.name.as_str()).filter(|n| !n.is_empty()));
    put(&mut all, "description", outline.description.as_deref());
    all.insert("sources".into(), json!([data(source)]));
    all.insert("args".into(), outline.args.iter().map(arg).collect());
    all.insert("secrets".into(), mounts(&outline.secrets).into());
    all.insert("ssh".into(), mounts(&outline.ssh).into());
    Value::Object(all)
}

/// Absent members are left out.
fn put(map: &mut Map<String, Value>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        map.insert(name.to_owned(), value.into());
    }
}

/// BuildKit's ranges, with lines from 1 and characters from 0, and for people and simple programs file, line and column.
fn location(span: Span, source: &Source) -> Value {
    let (start, end) = (source.line_col(span.start), source.line_col(span.end));
    let position = |at: kiln_engine::dockerfile::LineCol| json!({ "line": at.line, "character": at.column - 1 });
    json!({
        "ranges": [{ "start": position(start), "end": position(end) }],
        "file": source.name(),
        "line": start.line,
        "column": start.column,
    })
}

fn data(source: &Source) -> String {
    base64::engine::general_purpose::STANDARD.encode(source.bytes())
}
