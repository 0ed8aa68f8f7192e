//! Whether programs of another machine run here.
//!
//! The kernel is asked with a program: what binfmt_misc has registered can't be read everywhere (its file system is not mounted in
//! containers), but is used everywhere.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// Whether programs of a platform such as `linux/arm64` can be started, by the processor or by what is registered for them.
///
/// True of platforms that it doesn't know: the first program will tell.
pub fn runs_programs_of(platform: &str) -> bool {
    let host = crate::host_machine();
    let native = |both: [&str; 2]| host.starts_with(both[0]) && platform.starts_with(both[1]);
    if platform == host || native(["linux/amd64", "linux/386"]) || native(["linux/arm64", "linux/arm"]) {
        return true;
    }
    // Whatever else it says, it was not the format.
    elf_head(platform).is_none_or(|head| !start(&head).is_err_and(|e| e.raw_os_error() == Some(libc::ENOEXEC)))
}

/// An ELF file without content. An emulator is chosen by its first 20 bytes; the kernel's own loader refuses it.
fn elf_head(platform: &str) -> Option<Vec<u8>> {
    let (machine, wide, big): (u16, bool, bool) = match platform.split('/').nth(1)? {
        "amd64" => (62, true, false),
        "386" => (3, false, false),
        "arm64" => (183, true, false),
        "arm" => (40, false, false),
        "riscv64" => (243, true, false),
        "s390x" => (22, true, true),
        "ppc64le" => (21, true, false),
        "loong64" => (258, true, false),
        "mips64le" => (8, true, false),
        _ => return None,
    };
    let mut head = vec![0u8; 64];
    head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, if big { 2 } else { 1 }, 1]);
    let executable: u16 = 2;
    for (at, value) in [(16, executable), (18, machine)] {
        let bytes = if big { value.to_be_bytes() } else { value.to_le_bytes() };
        head[at..at + 2].copy_from_slice(&bytes);
    }
    Some(head)
}

fn start(program: &[u8]) -> std::io::Result<()> {
    let memory = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(program)?;
    // A file that is open for writing can't be executed, in memory neither.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let readable = File::open(&path)?;
    drop(file);
    Command::new(format!("/proc/self/fd/{}", readable.as_raw_fd()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_runs_its_own_programs() {
        assert!(runs_programs_of(crate::host_machine()));
        assert!(runs_programs_of("linux/unheard-of"));
    }

    #[test]
    fn the_kernel_is_asked() {
        let listed = std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|mut dir| dir.next().is_some());
        if listed || !crate::host_machine().starts_with("linux/") {
            eprintln!("SKIPPED: this machine may have emulators");
            return;
        }
        assert!(!runs_programs_of("linux/s390x"));
    }
}
