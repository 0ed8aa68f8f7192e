//! What a vertex is called in progress output, as BuildKit writes it: `[linux/arm64 builder 2/5] RUN make`.

use kiln_oci::Platform;

use crate::env::Env;

/// Where in a stage a step is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The stage's name; empty if there is only one.
    pub stage: String,
    /// Steps of the stage that are shown, its `FROM` included.
    pub total: usize,
    /// How many of them were named.
    pub done: usize,
    /// Whether platforms are shown.
    pub platforms: bool,
}

impl Progress {
    /// Names the next step.
    pub fn next(&mut self, text: &str, platform: &Platform, env: &Env, onbuild: bool) -> String {
        self.done += 1;
        self.name(text, platform, env, onbuild)
    }

    /// Names the current step once more.
    pub fn name(&self, text: &str, platform: &Platform, env: &Env, onbuild: bool) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        let mut name = String::from("[");
        if self.platforms {
            name += &format!("{platform}{} ", cross(platform, env));
        }
        if !self.stage.is_empty() {
            name += &format!("{} ", self.stage);
        }
        let width = self.total.ilog10() as usize + 1;
        name += &format!("{:>width$}/{}] ", self.done, self.total);
        if onbuild {
            name += "ONBUILD ";
        }
        name + text
    }
}

/// `->arm64` in a stage that knows it compiles for another platform than it runs on.
fn cross(runs: &Platform, env: &Env) -> String {
    let parsed = env.get("TARGETPLATFORM").and_then(|p| p.parse::<Platform>().ok());
    let from_parts = || {
        let (os, arch, variant) = (env.get("TARGETOS"), env.get("TARGETARCH"), env.get("TARGETVARIANT"));
        os.or(arch).or(variant)?;
        Some(Platform::new(os.unwrap_or(&runs.os), arch.unwrap_or(&runs.architecture), variant))
    };
    match parsed.or_else(from_parts) {
        Some(target) if target.os != runs.os => format!("->{target}"),
        Some(target) if target.architecture != runs.architecture => match &target.variant {
            Some(variant) => format!("->{}/{variant}", target.architecture),
            None => format!("->{}", target.architecture),
        },
        _ => String::new(),
    }
}

/// The first word in upper case.
pub fn uppercase_command(text: &str) -> String {
    match text.split_once(' ') {
        Some((command, rest)) => format!("{} {rest}", command.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// The first line of a here-document.
pub fn summarize_heredoc(text: &str) -> String {
    let mut lines = text.trim().lines();
    let first = lines.next().unwrap_or("").to_owned();
    if lines.next().is_some() { first + "..." } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_buildkit_writes_them() {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        let mut env = Env::default();
        let mut progress = Progress { stage: "builder".into(), total: 12, done: 0, platforms: false };
        assert_eq!(progress.next("RUN make", &amd64, &env, false), "[builder  1/12] RUN make");
        assert_eq!(progress.next("RUN x", &amd64, &env, true), "[builder  2/12] ONBUILD RUN x");
        assert_eq!(progress.name("LINK x", &amd64, &env, false), "[builder  2/12] LINK x");
        progress.platforms = true;
        progress.stage.clear();
        progress.total = 9;
        assert_eq!(progress.next("RUN y", &amd64, &env, false), "[linux/amd64 3/9] RUN y");
        env.set("TARGETARCH", "arm");
        env.set("TARGETVARIANT", "v7");
        assert_eq!(progress.next("RUN y", &amd64, &env, false), "[linux/amd64->arm/v7 4/9] RUN y");
        env.set("TARGETPLATFORM", "windows/amd64");
        assert_eq!(progress.next("RUN y", &amd64, &env, false), "[linux/amd64->windows/amd64 5/9] RUN y");
        env.set("TARGETPLATFORM", "linux/amd64");
        assert_eq!(progress.next("RUN y", &amd64, &env, false), "[linux/amd64 6/9] RUN y");
        let none = Progress { stage: "a".into(), total: 0, done: 0, platforms: false };
        assert_eq!(none.name("x", &amd64, &env, false), "x");
        assert_eq!(uppercase_command("run make all"), "RUN make all");
        assert_eq!(summarize_heredoc("\n echo a\necho b\n"), "echo a...");
        assert_eq!(summarize_heredoc("echo a\r\n"), "echo a");
    }
}
