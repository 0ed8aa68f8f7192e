//! The compiled filter against a plain reading of the profile, by interpreting it.

use super::*;

/// Interprets a program for one call.
fn run(program: &[sock_filter], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let load = |offset: u32| match offset {
        OFFSET_NR => nr,
        OFFSET_ARCH => arch,
        _ => {
            let arg = args[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
        }
    };
    let (mut pc, mut acc) = (0usize, 0u32);
    loop {
        let i = program[pc];
        pc += 1;
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LD => acc = load(i.k),
            JA => pc += i.k as usize,
            JEQ => pc += jump(acc == i.k),
            JGE => pc += jump(acc >= i.k),
            JSET => pc += jump(acc & i.k != 0),
            RET => return i.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn number(name: &str, column: usize) -> u32 {
    let row = table::TABLE.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} not in the table"));
    row.1[column] as u32
}

const DOCKER: u64 = crate::child::DOCKER_CAPABILITIES;

#[test]
fn every_name_of_the_profile_is_in_the_sorted_table() {
    assert!(table::TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    let with_cap = profile::WITH_CAPABILITY.iter().flat_map(|(_, names)| names.split_whitespace());
    for name in profile::ALLOWED.split_whitespace().chain(with_cap).chain(["socket", "personality", "clone", "clone3"])
    {
        assert!(table::TABLE.iter().any(|(n, _)| *n == name), "{name}");
    }
}

/// The machine this test is built for agrees with libc.
#[test]
fn numbers_agree_with_libc() {
    let column = MACHINES[0].1;
    for (name, nr) in [
        ("read", libc::SYS_read),
        ("openat", libc::SYS_openat),
        ("clone3", libc::SYS_clone3),
        ("fchownat", libc::SYS_fchownat),
        ("setresuid", libc::SYS_setresuid),
        ("ptrace", libc::SYS_ptrace),
        ("unshare", libc::SYS_unshare),
        ("mount", libc::SYS_mount),
        ("close_range", libc::SYS_close_range),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
        ("io_getevents", libc::SYS_io_getevents),
        ("renameat", libc::SYS_renameat),
    ] {
        assert_eq!(i64::from(number(name, column)), nr, "{name}");
    }
}

#[test]
fn every_number_gets_the_action_of_the_profile() {
    for capabilities in [DOCKER, 0, u64::MAX] {
        let program = compile(capabilities, Pretend::Off);
        for (arch, column) in MACHINES {
            let actions = actions(column, capabilities, Pretend::Off);
            let highest = *actions.keys().filter(|n| **n < 1000).max().unwrap();
            for nr in 0..2000 {
                let expected = match actions.get(&nr) {
                    Some(Action::Return(value)) => *value,
                    Some(_) => continue,
                    None if nr > highest => errno(libc::ENOSYS),
                    None => errno(libc::EPERM),
                };
                assert_eq!(run(&program, arch, nr, [0; 6]), expected, "{arch:#x} {nr}");
            }
            assert_eq!(run(&program, arch, 0x4000_0000, [0; 6]), errno(libc::ENOSYS));
        }
        assert_eq!(run(&program, 0xdead, 0, [0; 6]), KILL);
        assert!(program.len() < 600, "{} instructions", program.len());
    }
}

#[test]
fn arguments_decide_where_docker_lets_them() {
    let program = compile(DOCKER, Pretend::Off);
    let (arch, column) = MACHINES[0];
    let call = |name: &str, arg0: u64| run(&program, arch, number(name, column), [arg0, 0, 0, 0, 0, 0]);
    let eperm = errno(libc::EPERM);
    for family in 0..100u64 {
        let allowed = profile::FAMILIES.iter().any(|(a, b)| (u64::from(*a)..=u64::from(*b)).contains(&family));
        assert_eq!(call("socket", family), if allowed { ALLOW } else { eperm }, "family {family}");
    }
    assert_eq!(call("socket", libc::AF_VSOCK as u64), eperm);
    assert_eq!(call("socket", libc::AF_ALG as u64), eperm);
    // The kernel takes an int: high bits must not make another value of it.
    assert_eq!(call("socket", 0xffff_ffff_0000_0000 | libc::AF_VSOCK as u64), eperm);
    for (value, expected) in
        [(0, ALLOW), (8, ALLOW), (0x20008, ALLOW), (0xffff_ffff, ALLOW), (4, eperm), (0x40000, eperm)]
    {
        assert_eq!(call("personality", value), expected, "personality {value:#x}");
    }
    assert_eq!(call("clone", libc::SIGCHLD as u64), ALLOW);
    for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP]
    {
        assert_eq!(call("clone", flag as u64 | 17), eperm);
    }
    assert_eq!(call("clone3", 0), errno(libc::ENOSYS));
    assert_eq!(call("unshare", 0), eperm);
    assert_eq!(call("chroot", 0), ALLOW);
    assert_eq!(call("setuid", 1000), ALLOW);
    let insecure = compile(u64::MAX, Pretend::Off);
    assert_eq!(run(&insecure, arch, number("unshare", column), [0; 6]), ALLOW);
}

#[test]
fn pretending_answers_only_for_ids_that_are_not_ours() {
    let (arch, column) = MACHINES[0];
    for (pretend, answer) in [(Pretend::Notify, NOTIFY), (Pretend::Silent, errno(0))] {
        let program = compile(DOCKER, pretend);
        let call = |name: &str, args| run(&program, arch, number(name, column), args);
        const NONE: u64 = u32::MAX as u64;
        let to_root = if pretend == Pretend::Notify { NOTIFY } else { ALLOW };
        assert_eq!(call("fchownat", [0, 0, 0, 0, 0, 0]), to_root);
        assert_eq!(call("fchownat", [0, 0, NONE, 0, 0, 0]), to_root);
        assert_eq!(call("fchownat", [9, 9, 0, 42, 0, 0]), answer);
        assert_eq!(call("fchownat", [9, 9, 100, NONE, 0, 0]), answer);
        assert_eq!(call("setresuid", [0, 0, 0, 7, 7, 7]), ALLOW);
        assert_eq!(call("setresuid", [NONE, NONE, 100, 0, 0, 0]), answer);
        assert_eq!(call("setuid", [100, 0, 0, 0, 0, 0]), answer);
        assert_eq!(call("setgroups", [0; 6]), answer);
        assert_eq!(call("read", [0; 6]), ALLOW);
    }
}

#[test]
fn only_calls_that_wait_for_the_disk_are_answered_in_a_volatile_root() {
    let program = volatile();
    for (arch, column) in MACHINES {
        for (name, numbers) in table::TABLE.iter().filter(|(_, numbers)| numbers[column] >= 0) {
            let waits = [
                "arm_sync_file_range",
                "fsync",
                "fdatasync",
                "msync",
                "sync",
                "syncfs",
                "sync_file_range",
                "sync_file_range2",
            ];
            let expected = if waits.contains(name) { errno(0) } else { ALLOW };
            assert_eq!(run(&program, arch, numbers[column] as u32, [0; 6]), expected, "{arch:#x} {name}");
        }
    }
    assert_eq!(run(&program, 0xdead, number("fsync", 0), [0; 6]), ALLOW, "the other filter kills it");
}
