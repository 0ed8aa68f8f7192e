//! Which system calls a sandboxed process may make: Docker's default profile (as of November 2026).
//!
//! Everything that is not named here fails with EPERM, except numbers newer than all of the profile's, which fail
//! with ENOSYS so that a C library falls back to what it did before (as runc does).

/// Allowed whatever the arguments, on every machine that has the call. `ptrace` and its like need a kernel of 4.8 or
/// later to be harmless; kiln needs 5.6 anyway.
pub(super) const ALLOWED: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir
fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64
getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid
getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32
getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy
io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv
preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat
rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity
sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid
setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime
utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev process_vm_readv
process_vm_writev ptrace arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls
arch_prctl modify_ldt
";

/// Allowed with a capability: its number and the calls.
pub(super) const WITH_CAPABILITY: &[(u32, &str)] = &[
    (2, "open_by_handle_at"),
    (16, "delete_module init_module finit_module"),
    (17, "iopl ioperm"),
    (18, "chroot"),
    (19, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (20, "acct"),
    (
        21,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (22, "reboot"),
    (23, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (25, "settimeofday stime clock_settime clock_settime64"),
    (26, "vhangup"),
    (34, "syslog"),
    (38, "perf_event_open"),
    (39, "bpf"),
];

/// Address families that `socket` may be called with, as inclusive ranges: among those left out are AF_ALG and AF_VSOCK.
pub(super) const FAMILIES: &[(u32, u32)] =
    &[(0, 11), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 45)];

/// Values that `personality` may be called with: Linux, Linux32 and their variants with UNAME26, and the query.
pub(super) const PERSONALITIES: &[u32] = &[0, 8, 0x20000, 0x20008, 0xffff_ffff];

/// Flags that make a namespace; `clone` may be called without any of them.
pub(super) const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

/// Calls that return when something is on the disk. See `ProcessSpec::volatile`.
pub(super) const WAITS_FOR_DISK: &[&str] =
    &["arm_sync_file_range", "fdatasync", "fsync", "msync", "sync", "sync_file_range", "sync_file_range2", "syncfs"];

/// Calls that take user or group ids: name, index of the first id, number of ids. See `pretend`.
pub(super) const TAKES_IDS: &[(&str, u32, u32)] = &[
    ("chown", 1, 2),
    ("chown32", 1, 2),
    ("lchown", 1, 2),
    ("lchown32", 1, 2),
    ("fchown", 1, 2),
    ("fchown32", 1, 2),
    ("fchownat", 2, 2),
    ("setuid", 0, 1),
    ("setuid32", 0, 1),
    ("setgid", 0, 1),
    ("setgid32", 0, 1),
    ("setreuid", 0, 2),
    ("setreuid32", 0, 2),
    ("setregid", 0, 2),
    ("setregid32", 0, 2),
    ("setresuid", 0, 3),
    ("setresuid32", 0, 3),
    ("setresgid", 0, 3),
    ("setresgid32", 0, 3),
    ("setfsuid", 0, 1),
    ("setfsuid32", 0, 1),
    ("setfsgid", 0, 1),
    ("setfsgid32", 0, 1),
];

/// Calls that fail whatever their arguments where only one id is mapped.
pub(super) const SETS_GROUPS: &[&str] = &["setgroups", "setgroups32"];
