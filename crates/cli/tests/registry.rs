//! Real registries: Debian's `docker-registry` with and without TLS, passwords and tokens, and other tools that read and
//! write the same images.

mod support;

#[path = "registry/auth.rs"]
mod auth;
#[path = "registry/config.rs"]
mod config;
#[path = "registry/faults.rs"]
mod faults;
#[path = "registry/layers.rs"]
mod layers;
#[path = "registry/room.rs"]
mod room;
#[path = "registry/roundtrip.rs"]
mod roundtrip;
#[path = "registry/streams.rs"]
mod streams;
#[path = "registry/tools.rs"]
mod tools;

use kiln_registry::testing::{DockerRegistry, FaultProxy, RegistryOptions};
use support::{Run, Sandbox};

/// Two layers without a process: one that does not get smaller, one that does.
const IMAGE: &str = "FROM scratch\nCOPY noise /noise\nCOPY text /dir/text\nENV MADE=here\n";

/// A registry behind a fault proxy, and the sandbox of one who uses it.
struct World {
    sandbox: Sandbox,
    registry: DockerRegistry,
    proxy: FaultProxy,
}

impl World {
    fn new() -> Option<Self> {
        Self::with(&RegistryOptions::default())
    }

    fn with(options: &RegistryOptions) -> Option<Self> {
        let registry = DockerRegistry::start(options)?;
        let proxy = FaultProxy::start(&registry.host());
        let sandbox = Sandbox::new(IMAGE)?;
        sandbox.file("noise", noise(1 << 20));
        sandbox.file("text", "hello\n".repeat(1000));
        Some(Self { sandbox, registry, proxy })
    }

    /// A name in the registry.
    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    /// The same, reached through the proxy.
    fn through(&self, rest: &str) -> String {
        format!("{}/{rest}", self.proxy.host())
    }

    /// Builds the image and pushes it.
    fn push(&self, rest: &str) -> String {
        let name = self.name(rest);
        self.sandbox.build(&["-t", &name, "--push"]).ok();
        name
    }

    /// `kiln` of somebody with an empty store.
    fn elsewhere(&self, args: &[&str]) -> Run {
        let all: Vec<&str> = ["--root", "other-store"].iter().chain(args).copied().collect();
        self.sandbox.kiln(&all)
    }

    /// The text file of an image in the other store.
    fn text_of(&self, name: &str) -> String {
        self.sandbox.file("Again", format!("FROM {name}\n"));
        let out = self.sandbox.path("again");
        let _ = std::fs::remove_dir_all(&out);
        self.elsewhere(&["build", "-q", "-f", "ctx/Again", "-o", "type=local,dest=again", "ctx"]).ok();
        std::fs::read_to_string(out.join("dir/text")).expect("the image's file")
    }

    /// Lines like `PUT /v2/…` that begin and hold this.
    fn requests(&self, method: &str, part: &str) -> usize {
        self.proxy.lines().iter().filter(|l| l.starts_with(method) && l.contains(part)).count()
    }
}

/// Bytes that no compression makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn hello() -> String {
    "hello\n".repeat(1000)
}
