//! Go templates, as far as `--format` needs them: fields, pipes, functions, `if`, `range`, `with` and variables, over JSON values.
//!
//! crates.io has one implementation of Go's language (`gtmpl`), which has seen no release for years and does not know docker's
//! functions. What is not supported here is an error that names it, never a silent difference.

mod eval;
mod functions;
mod lex;
mod parse;

use serde_json::Value;

/// A template that was parsed.
#[derive(Debug)]
pub struct Template {
    nodes: Vec<parse::Node>,
}

/// Why a template can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError(pub String);

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

type Result<T, E = TemplateError> = std::result::Result<T, E>;

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self { nodes: parse::parse(text)? })
    }

    /// Fills it in.
    pub fn render(&self, data: &Value) -> Result<String> {
        eval::render(&self.nodes, data, false)
    }

    /// Fills it in with the heads of columns: functions that change a value leave a head as it is.
    pub fn render_heads(&self, heads: &Value) -> Result<String> {
        eval::render(&self.nodes, heads, true)
    }
}

fn error<T>(message: impl Into<String>) -> Result<T> {
    Err(TemplateError(message.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(template: &str, data: &Value) -> Result<String> {
        Template::parse(template)?.render(data)
    }

    #[test]
    fn what_scripts_use() {
        let data = json!({
            "Id": "sha256:abc", "RepoTags": ["a:1", "b:2"], "Size": 1234, "Nothing": null, "On": true,
            "Config": {"Env": ["A=b", "C=d"], "Labels": {"x": "1", "y.z": "2"}, "Cmd": null, "Entrypoint": ["/bin/sh", "-c"]},
        });
        for (template, expected) in [
            ("{{.Id}}", "sha256:abc"),
            ("{{ .Config.Env }}", "[A=b C=d]"),
            ("{{json .Config.Labels}}", r#"{"x":"1","y.z":"2"}"#),
            ("{{.Config.Labels}}", "map[x:1 y.z:2]"),
            ("{{index .RepoTags 0}} {{index .Config.Labels \"y.z\"}}", "a:1 2"),
            ("{{.Config.Labels.x}}|{{.Config.Labels.nope}}", "1|<no value>"),
            ("{{range .Config.Env}}{{println .}}{{end}}", "A=b\nC=d\n"),
            ("{{range $i, $e := .RepoTags}}{{if $i}}, {{end}}{{$i}}={{$e}}{{end}}", "0=a:1, 1=b:2"),
            ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "x=1;y.z=2;"),
            ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
            ("{{join .RepoTags \",\"}} {{len .RepoTags}}", "a:1,b:2 2"),
            ("{{.Config.Entrypoint | json}}", r#"["/bin/sh","-c"]"#),
            ("{{if eq .Size 1234}}yes{{else}}no{{end}}", "yes"),
            ("{{if and .On (gt .Size 1000)}}big{{else if .On}}small{{end}}", "big"),
            ("{{with .Config}}{{index .Env 1}} {{$.Id}}{{end}}", "C=d sha256:abc"),
            ("{{- .Id -}}  \n x", "sha256:abcx"),
            ("a{{/* note */}}b", "ab"),
            (
                "{{upper .Id}} {{title \"hello\"}} {{printf \"%s-%d %q\" .Id .Size \"x\"}}",
                "SHA256:ABC Hello sha256:abc-1234 \"x\"",
            ),
            ("{{index (split .Id \":\") 1}} {{slice .Id 7}}", "abc abc"),
            ("{{printf \"%-4s|%4d|%2s\" \"x\" .Size \"long\"}}", "x   |1234|long"),
            ("{{truncate .Id 3}}|{{pad .Id 1 1}}", "sha| sha256:abc "),
            ("{{$x := .Size}}{{$x}} {{println \"a\" 1}}", "1234 a 1\n"),
            ("{{.Config.Cmd}} {{json .Config.Cmd}} {{.Nothing}}", "[] null <nil>"),
            ("{{json .Id}} {{`raw`}} {{not .On}} {{or .Nothing \"x\"}}", "\"sha256:abc\" raw false x"),
        ] {
            assert_eq!(show(template, &data).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        let data = json!({"Repository": "a", "Tag": "b", "Labels": {}, "List": [1]});
        for (template, expected) in [
            ("{{.Repositry}}", "no field Repositry: there are Labels, List, Repository, Tag"),
            ("{{.Tag.X}}", "Tag is not an object"),
            ("{{.Tag", "not closed"),
            ("{{if .Tag}}x", "{{end}} is missing"),
            ("{{end}}", "without"),
            ("{{frob .Tag}}", "no function frob"),
            ("{{template \"x\"}}", "template is not supported"),
            ("{{index .List 3}}", "out of range"),
            ("{{.Tag | }}", "ends with |"),
            ("{{\"abc}}", "not closed"),
            ("{{len}}", "len"),
            ("{{.Tag .Tag}}", "can't be called"),
        ] {
            let found = show(template, &data).expect_err(template);
            assert!(found.0.contains(expected), "{template}: {found}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = format!("{{{{{}1{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(show(&deep, &json!({})).is_err());
        assert!(show(&"{{if 1}}".repeat(100_000), &json!({})).is_err());
    }
}
