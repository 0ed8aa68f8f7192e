//! The system call filter: [`profile`] compiled to a BPF program.
//!
//! The numbers of one machine become ranges with one action each, and the ranges a binary search tree of jumps: about
//! 100 instructions instead of the 1,500 of a list. The kernel emulates the program for every number when it is
//! installed, so the length decides what a container's start costs (80 µs against 1 ms).
//!
//! Invariants: a machine that is neither ours nor our 32-bit mode is killed; arguments are compared as the 32-bit values
//! that the kernel itself takes from them; x32 numbers are above all known ones, so they fail with ENOSYS.

mod profile;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use libc::sock_filter;

use crate::sys::check;

const LD: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const NOTIFY: u32 = 0x7fc0_0000;

const fn errno(code: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | code as u32
}

/// Offsets in `struct seccomp_data`; of an argument, the low half (both our machines are little endian).
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const fn offset_arg(index: u32) -> u32 {
    16 + 8 * index
}

/// What to do with ids that the kernel does not know, where only one is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pretend {
    /// Nothing special: the kernel answers.
    Off,
    /// Ask the helper, which records owners, counts, and says success.
    Notify,
    /// Say success (kernels before 5.0, or where a listener exists already).
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Return(u32),
    Socket,
    Personality,
    Clone,
    /// Arguments `first..first + count` are ids; pretend unless all are 0 or -1.
    Ids(u32, u32, u32),
}

/// AUDIT_ARCH value and column of the table: the machine itself, then its 32-bit mode.
#[cfg(target_arch = "x86_64")]
const MACHINES: [(u32, usize); 2] = [(0xc000_003e, 0), (0x4000_0003, 1)];
#[cfg(target_arch = "aarch64")]
const MACHINES: [(u32, usize); 2] = [(0xc000_00b7, 2), (0x4000_0028, 3)];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINES: [(u32, usize); 0] = [];

/// Whether kiln has a filter for this machine.
pub const SUPPORTED: bool = !MACHINES.is_empty();

fn ins(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn ret(value: u32) -> sock_filter {
    ins(RET, value, 0, 0)
}

/// Compiles the filter for a process with these capabilities (bit mask).
pub fn compile(capabilities: u64, pretend: Pretend) -> Vec<sock_filter> {
    let mut program = vec![ins(LD, OFFSET_ARCH, 0, 0)];
    for (arch, column) in MACHINES {
        let body = machine(&actions(column, capabilities, pretend));
        // Skip the body unless it is for this machine. Bodies are longer than a conditional jump reaches.
        program.push(ins(JEQ, arch, 1, 0));
        program.push(ins(JA, body.len() as u32, 0, 0));
        program.extend(body);
    }
    program.push(ret(KILL));
    program
}

/// A filter beside the other, which says success to every call that waits for the disk.
pub fn volatile() -> Vec<sock_filter> {
    let mut program = vec![ins(LD, OFFSET_ARCH, 0, 0)];
    for (arch, column) in MACHINES {
        let known = table::TABLE.iter().filter(|(name, _)| profile::WAITS_FOR_DISK.contains(name));
        let numbers: Vec<u32> = known.filter_map(|(_, numbers)| u32::try_from(numbers[column]).ok()).collect();
        program.push(ins(JEQ, arch, 0, numbers.len() as u8 + 3));
        program.push(ins(LD, OFFSET_NR, 0, 0));
        for (i, number) in numbers.iter().enumerate() {
            program.push(ins(JEQ, *number, (numbers.len() - i) as u8, 0));
        }
        program.push(ret(ALLOW));
        program.push(ret(errno(0)));
    }
    // What is allowed here is left to the other filter.
    program.push(ret(ALLOW));
    program
}

/// The compiled filter, made once per process.
pub fn cached(capabilities: u64, pretend: Pretend) -> &'static [sock_filter] {
    type Programs = Mutex<BTreeMap<(u64, Pretend), &'static [sock_filter]>>;
    static PROGRAMS: Programs = Mutex::new(BTreeMap::new());
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    // A handful of combinations exist: leaked once, used until the process ends.
    programs.entry((capabilities, pretend)).or_insert_with(|| compile(capabilities, pretend).leak())
}

/// What to do with each number of a machine that is not simply refused.
fn actions(column: usize, capabilities: u64, pretend: Pretend) -> BTreeMap<u32, Action> {
    let numbers: BTreeMap<&str, u32> =
        table::TABLE.iter().filter_map(|(name, numbers)| Some((*name, u32::try_from(numbers[column]).ok()?))).collect();
    let mut actions: BTreeMap<u32, Action> =
        numbers.values().map(|n| (*n, Action::Return(errno(libc::EPERM)))).collect();
    let mut set = |name: &str, action: Action| {
        if let Some(number) = numbers.get(name) {
            actions.insert(*number, action);
        }
    };
    for name in profile::ALLOWED.split_whitespace() {
        set(name, Action::Return(ALLOW));
    }
    set("socket", Action::Socket);
    set("personality", Action::Personality);
    set("clone", Action::Clone);
    // Its flags are in memory where a filter cannot see them; libraries fall back to clone.
    set("clone3", Action::Return(errno(libc::ENOSYS)));
    for (capability, names) in profile::WITH_CAPABILITY {
        if capabilities & (1 << capability) != 0 {
            names.split_whitespace().for_each(|name| set(name, Action::Return(ALLOW)));
        }
    }
    let answer = match pretend {
        Pretend::Off => return actions,
        Pretend::Notify => NOTIFY,
        Pretend::Silent => errno(0),
    };
    for (name, first, count) in profile::TAKES_IDS {
        let ids = Action::Ids(*first, *count, answer);
        // With a helper that records owners, back to root is news, too.
        let all = pretend == Pretend::Notify && name.contains("chown");
        set(name, if all { Action::Return(answer) } else { ids });
    }
    for name in profile::SETS_GROUPS {
        set(name, Action::Return(answer));
    }
    actions
}

/// Ranges that together cover every number: (first number, action).
fn ranges(actions: &BTreeMap<u32, Action>) -> Vec<(u32, Action)> {
    let refuse = Action::Return(errno(libc::EPERM));
    let mut ranges: Vec<(u32, Action)> = Vec::new();
    let mut next = 0;
    let mut push = |first: u32, action: Action| {
        if ranges.last().is_none_or(|(_, last)| *last != action) {
            ranges.push((first, action));
        }
    };
    for (number, action) in actions {
        if *number > next {
            // A hole of a thousand numbers is arm's private range, not calls that the profile refuses.
            let hole = if *number - next > 1000 { Action::Return(errno(libc::ENOSYS)) } else { refuse };
            push(next, hole);
        }
        push(*number, *action);
        next = number + 1;
    }
    push(next, Action::Return(errno(libc::ENOSYS)));
    ranges
}

fn machine(actions: &BTreeMap<u32, Action>) -> Vec<sock_filter> {
    let mut body = vec![ins(LD, OFFSET_NR, 0, 0)];
    tree(&ranges(actions), &mut body, &emit);
    body
}

/// A search tree over ranges; the last leaf takes everything up to the largest number.
fn tree<A: Copy>(ranges: &[(u32, A)], out: &mut Vec<sock_filter>, leaf: &impl Fn(A, &mut Vec<sock_filter>)) {
    match ranges {
        [] => out.push(ret(errno(libc::EPERM))),
        [(_, action)] => leaf(*action, out),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let mut below = Vec::new();
            tree(low, &mut below, leaf);
            if let Ok(distance) = u8::try_from(below.len()) {
                out.push(ins(JGE, high[0].0, distance, 0));
            } else {
                out.push(ins(JGE, high[0].0, 0, 1));
                out.push(ins(JA, below.len() as u32, 0, 0));
            }
            out.extend(below);
            tree(high, out, leaf);
        }
    }
}

fn emit(action: Action, out: &mut Vec<sock_filter>) {
    match action {
        Action::Return(value) => out.push(ret(value)),
        Action::Socket => {
            out.push(ins(LD, offset_arg(0), 0, 0));
            let mut families = Vec::new();
            for (first, last) in profile::FAMILIES {
                families.push((*first, ALLOW));
                families.push((last + 1, errno(libc::EPERM)));
            }
            tree(&families, out, &|value, out| out.push(ret(value)));
        }
        Action::Personality => {
            out.push(ins(LD, offset_arg(0), 0, 0));
            let count = profile::PERSONALITIES.len();
            for (i, value) in profile::PERSONALITIES.iter().enumerate() {
                out.push(ins(JEQ, *value, (count - i) as u8, 0));
            }
            out.push(ret(errno(libc::EPERM)));
            out.push(ret(ALLOW));
        }
        Action::Clone => {
            out.push(ins(LD, offset_arg(0), 0, 0));
            out.push(ins(JSET, profile::NAMESPACE_FLAGS, 0, 1));
            out.push(ret(errno(libc::EPERM)));
            out.push(ret(ALLOW));
        }
        Action::Ids(first, count, answer) => {
            for i in 0..count {
                // Each id takes three instructions; what is left after them is "allow" and "pretend".
                let pretend = 3 * (count - i - 1) + 1;
                out.push(ins(LD, offset_arg(first + i), 0, 0));
                out.push(ins(JEQ, 0, 1, 0));
                out.push(ins(JEQ, u32::MAX, 0, pretend as u8));
            }
            out.push(ret(ALLOW));
            out.push(ret(answer));
        }
    }
}

/// The name of a call that was passed to the helper.
pub fn name_of(arch: u32, nr: u32) -> Option<&'static str> {
    let (_, column) = MACHINES.iter().find(|(a, _)| *a == arch)?;
    table::TABLE.iter().find(|(_, numbers)| numbers[*column] == nr as i32).map(|(name, _)| *name)
}

/// Installs a program for this process. Needs CAP_SYS_ADMIN in its user namespace, or `no_new_privs`. With `listen`,
/// returns the descriptor on which the calls to be answered arrive.
pub fn install(program: &[sock_filter], listen: bool) -> io::Result<Option<OwnedFd>> {
    const SPEC_ALLOW: u64 = 1 << 2;
    const NEW_LISTENER: u64 = 1 << 3;
    const WAIT_KILLABLE_RECV: u64 = 1 << 5;
    let program =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_ptr() as *mut libc::sock_filter };
    let set = |flags: u64| {
        // SAFETY: `program` points to valid instructions for the call.
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
    };
    if !listen {
        // SPEC_ALLOW (no slow-down of branches in the container) is since 4.17 and what runc does.
        return set(SPEC_ALLOW).or_else(|_| set(0)).map(|_| None);
    }
    let fd = set(SPEC_ALLOW | NEW_LISTENER | WAIT_KILLABLE_RECV).or_else(|_| set(SPEC_ALLOW | NEW_LISTENER))?;
    // SAFETY: fresh descriptor, close-on-exec by the kernel.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

#[cfg(test)]
mod tests;
