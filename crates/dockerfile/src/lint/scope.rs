//! The variables in force at an instruction, as the frontend would compute them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::ast::{ArgDecl, Dockerfile};
use crate::expand::{ExpandMode, Expanded, expand_word};

use super::LintContext;

/// Variables by name.
pub(super) type Variables = BTreeMap<String, String>;

/// Whether an arg becomes a variable of the steps; some only steer the builder.
pub fn is_in_environment(arg: &str) -> bool {
    !matches!(arg, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// Global scope: what `FROM` may use.
pub(super) struct Globals {
    pub(super) values: Variables,
    /// Names with or without a value.
    pub(super) declared: BTreeSet<String>,
}

impl Globals {
    /// The automatic args and the global `ARG`s. `build_args` is empty for "what if none were given".
    pub(super) fn new(dockerfile: &Dockerfile, context: &LintContext<'_>, build_args: &Variables) -> Globals {
        let mut values = automatic(dockerfile, context);
        for (name, value) in build_args {
            if let Some(slot) = values.get_mut(name) {
                value.clone_into(slot);
            }
        }
        let mut declared: BTreeSet<String> = values.keys().cloned().collect();
        for (arg, _) in dockerfile.global_arg_decls() {
            let value = match (build_args.get(arg.name.as_str()), &arg.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => expand(default, dockerfile.escape, &values).map(|e| e.value),
                (None, None) => None,
            };
            if let Some(value) = value {
                values.insert(arg.name.value.clone(), value);
            }
            declared.insert(arg.name.value.clone());
        }
        Globals { values, declared }
    }
}

fn automatic(dockerfile: &Dockerfile, context: &LintContext<'_>) -> Variables {
    let mut values = context.platform_args.clone();
    if values.is_empty() {
        for side in ["BUILD", "TARGET"] {
            let parts =
                [("PLATFORM", "linux/amd64"), ("OS", "linux"), ("OSVERSION", ""), ("ARCH", "amd64"), ("VARIANT", "")];
            values.extend(parts.iter().map(|(n, v)| (format!("{side}{n}"), (*v).to_owned())));
        }
    }
    let last = dockerfile.stages.last().and_then(|s| s.name.as_ref()).map(|n| n.value.clone());
    let stage = context.target.clone().or(last).unwrap_or_else(|| "default".to_owned());
    values.entry("TARGETSTAGE".to_owned()).or_insert(stage);
    values
}

/// Expands a word; `None` when it cannot be.
pub(super) fn expand(word: &str, escape: char, values: &Variables) -> Option<Expanded> {
    expand_word(word, escape, &|name| values.get(name).cloned(), ExpandMode::WORD).ok()
}

/// The state of a stage while its instructions are followed. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct StageState {
    pub(super) env: Rc<Variables>,
    /// Names that an `ARG` declared, with or without a value.
    pub(super) args: Rc<BTreeSet<String>>,
    /// Nothing is known about the base image's environment.
    pub(super) unknown_base: bool,
    pub(super) workdir_set: bool,
    pub(super) shell_set: bool,
}

impl StageState {
    pub(super) fn set(&mut self, name: String, value: String) {
        if self.env.get(&name) != Some(&value) {
            Rc::make_mut(&mut self.env).insert(name, value);
        }
    }

    /// Follows one name of an `ARG`; `default` is already expanded.
    pub(super) fn declare(&mut self, arg: &ArgDecl, default: Option<String>, given: &Variables, globals: &Globals) {
        let name = &arg.name.value;
        let inherited = || globals.values.get(name).filter(|_| arg.default.is_none()).cloned();
        let value = given.get(name).cloned().or(default).or_else(inherited);
        if let Some(value) = value.filter(|_| is_in_environment(name)) {
            self.set(name.clone(), value);
        }
        if !self.args.contains(name) {
            Rc::make_mut(&mut self.args).insert(name.clone());
        }
    }

    /// Whether a name may be used although the environment does not have it.
    pub(super) fn tolerates(&self, name: &str) -> bool {
        self.args.contains(name) || !is_in_environment(name)
    }
}
