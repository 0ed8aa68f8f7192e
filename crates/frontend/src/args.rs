//! Arguments that hold before the first `FROM`: the platform args, and the global `ARG`s.

use std::collections::BTreeMap;

use kiln_dockerfile::{ArgDecl, Dockerfile, ExpandMode, Span, Spanned, expand_word};
use kiln_graph::ProxyEnv;
use kiln_oci::Platform;

use crate::env::Env;
use crate::request::{LowerError, LowerRequest};

/// Whether an arg is a proxy setting: known without an `ARG`, in any case.
pub fn is_proxy_arg(name: &str) -> bool {
    const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
    PROXIES.iter().any(|p| p.eq_ignore_ascii_case(name))
}

/// A global `ARG`.
#[derive(Debug, Clone)]
pub struct GlobalArg {
    /// Its description.
    pub doc: Option<String>,
    /// The instruction.
    pub span: Span,
    /// Its value, if it has one.
    pub value: Option<String>,
    /// Other args that the value was made from.
    pub uses: Vec<String>,
}

/// All of them for one target platform.
#[derive(Debug, Clone, Default)]
pub struct Globals {
    /// What `FROM` can use, and `ARG NAME` in a stage inherits.
    pub env: Env,
    /// What the Dockerfile declares.
    pub declared: BTreeMap<String, GlobalArg>,
}

impl Globals {
    /// Evaluates them for a target platform.
    pub fn new(request: &LowerRequest, target: &Platform) -> Result<Self, LowerError> {
        let mut globals = Self::default();
        for (name, value) in platform_args(request, target) {
            globals.env.set(&name, &value);
        }
        for (arg, instruction) in request.dockerfile.global_arg_decls() {
            globals.declare(request, arg, instruction.span)?;
        }
        Ok(globals)
    }

    /// Whether it has a value that the Dockerfile did not give it.
    pub fn is_predefined(&self, name: &str) -> bool {
        self.env.get(name).is_some() && !self.declared.contains_key(name)
    }

    fn declare(&mut self, request: &LowerRequest, arg: &ArgDecl, span: Span) -> Result<(), LowerError> {
        let mut declared = GlobalArg { doc: arg.doc.clone(), span, value: None, uses: Vec::new() };
        if let Some(value) = request.build_args.get(&arg.name.value) {
            declared.value = Some(value.clone());
        } else if let Some(default) = &arg.default {
            let (value, uses) = self.expand(request.dockerfile, default)?;
            declared.value = Some(value);
            declared.uses = uses;
        }
        if let Some(value) = &declared.value {
            self.env.set(&arg.name.value, value);
        }
        self.declared.insert(arg.name.value.clone(), declared);
        Ok(())
    }

    /// Expands a word of a `FROM` or of a global `ARG`, and says which args it used.
    pub fn expand(&self, dockerfile: &Dockerfile, word: &Spanned<String>) -> Result<(String, Vec<String>), LowerError> {
        let lookup = |name: &str| self.env.get(name).map(str::to_owned);
        let expanded = expand_word(word, dockerfile.escape, &lookup, ExpandMode::WORD)
            .map_err(|e| LowerError::expansion(&dockerfile.source, word, word.span, None, &e))?;
        Ok((expanded.value, expanded.used))
    }
}

/// The args that every Dockerfile has for a target platform: `BUILDPLATFORM`, `TARGETARCH`, …. Build args replace them.
pub fn platform_args(request: &LowerRequest, target: &Platform) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("BUILD", &request.build_platform), ("TARGET", target)] {
        let version = platform.os_version.clone().unwrap_or_default();
        let variant = platform.variant.clone().unwrap_or_default();
        args.insert(format!("{prefix}PLATFORM"), platform.to_string());
        args.insert(format!("{prefix}OS"), platform.os.clone());
        args.insert(format!("{prefix}OSVERSION"), version);
        args.insert(format!("{prefix}ARCH"), platform.architecture.clone());
        args.insert(format!("{prefix}VARIANT"), variant);
    }
    let last = request.dockerfile.stages.last().and_then(|s| s.name.as_ref()).map(|n| n.value.as_str());
    let stage = request.target.as_deref().filter(|t| !t.is_empty()).or(last).unwrap_or("default");
    args.insert("TARGETSTAGE".to_owned(), stage.to_owned());
    for (name, value) in &mut args {
        if let Some(given) = request.build_args.get(name) {
            value.clone_from(given);
        }
    }
    args
}

/// The proxy settings of the steps: the client's, and build args of these names in any case, which win. Programs look
/// for either case, so both are set.
pub fn proxy(request: &LowerRequest) -> ProxyEnv {
    let mut proxy = BTreeMap::new();
    for (name, value) in request.proxy.iter().chain(&request.build_args) {
        if is_proxy_arg(name) {
            proxy.insert(name.to_ascii_uppercase(), value.clone());
            proxy.insert(name.to_ascii_lowercase(), value.clone());
        }
    }
    ProxyEnv(proxy)
}

/// Whether a build arg switches something on.
pub fn is_on(build_args: &BTreeMap<String, String>, name: &str) -> bool {
    build_args.get(name).is_some_and(|v| kiln_dockerfile::parse_bool(v).unwrap_or(!v.is_empty()))
}
