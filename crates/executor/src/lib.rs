//! One process in namespaces, over mounts: a RUN step of a build, or `kiln run`.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! kiln_executor::helper_main_if_requested(); // first in main, before any thread
//! kiln_executor::rootless::enter()?; // for commands that run containers
//! let executor = kiln_executor::Executor::new(Default::default())?;
//! let root = std::fs::File::open("/path/to/root")?.into();
//! let spec = kiln_executor::ProcessSpec::new(root, ["/bin/true"]);
//! let exit = executor.run(spec, |_started| {}, &kiln_executor::CancelToken::new())?;
//! assert!(exit.success());
//! # Ok(())
//! # }
//! ```
//!
//! How it works: [`Executor`] keeps a small single-threaded helper process (see `helper`), which clones a process per
//! container; that process builds its own view of the world (see `child`) and executes the program. No attached mount,
//! no file and no process outlives a container, however it, the helper or kiln itself ends.
//!
//! Invariants: no image, cache or layer is known here, only descriptors and paths; nothing is printed; paths inside of
//! a root are resolved by `kiln_rootfs::Root` or by `openat2` relative to the root, never by the process's own root.

mod cancel;
mod cgroup;
mod child;
mod emulation;
mod error;
mod executor;
mod helper;
mod net;
mod oom;
mod owner;
mod plan;
mod preflight;
mod pretend;
mod request;
pub mod rootless;
mod seccomp;
mod shortage;
mod spec;
mod stubs;
mod sys;
mod wire;

pub use cancel::{CancelToken, OnCancel};
pub use cgroup::CgroupMode;
pub use emulation::runs_programs_of;
pub use error::{Error, Result, StartError};
pub use executor::{Executor, ExecutorOptions, Exit, NotEnforced, Started};
pub use helper::helper_main_if_requested;
pub use net::default_resolv_conf;
pub use preflight::{Finding, Level, preflight};
pub use pretend::Pretended;
pub use shortage::{Shortage, shortage};
pub use spec::{ExecSpec, Limits, Mount, MountSource, Network, ProcessSpec, Security, Stdio, Terminal, Ulimit, User};

/// This machine as an OCI platform.
pub(crate) fn host_machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => other,
    }
}

/// Makes a test or bench binary able to be its own container helper: expands to code that runs before `main`.
///
/// Needed because the test harness has a `main` of its own, and starts threads.
#[macro_export]
macro_rules! helper_in_tests {
    () => {
        #[used]
        #[unsafe(link_section = ".init_array")]
        static KILN_CONTAINER_HELPER: extern "C" fn() = {
            extern "C" fn start() {
                $crate::helper_main_if_requested();
            }
            start
        };
    };
}
