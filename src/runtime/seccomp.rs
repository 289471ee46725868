//! The default system-call filter, as data: what ordinary programs need is allowed, everything else fails with EPERM.
//!
//! The list follows the rule that Docker, containerd and podman follow too: what only an administrator of the machine
//! needs (mounts, modules, the clock, other namespaces …) is allowed with the capability that Linux asks for it, and
//! otherwise not even tried. Names that this machine's libseccomp does not know are skipped by libcontainer.

use serde_json::{Value, json};

use crate::sys::abi;

/// Allowed for everyone.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    // Files
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
    "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat", "ioctl", "lchown",
    "lchown32", "lgetxattr", "link", "linkat", "listmount", "listxattr", "listxattrat", "llistxattr", "_llseek",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat",
    "name_to_handle_at", "newfstatat", "_newselect", "open", "openat", "openat2", "pread64", "preadv", "preadv2",
    "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr",
    "removexattrat", "rename", "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr", "setxattrat",
    "splice", "stat", "stat64", "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync",
    "sync_file_range", "syncfs", "tee", "truncate", "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat",
    "utimensat_time64", "utimes", "vmsplice", "write", "writev", "cachestat",
    // Waiting for files, and asynchronous input and output
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "fanotify_mark", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup",
    "io_submit", "pipe", "pipe2", "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select", "signalfd",
    "signalfd4",
    // Memory
    "brk", "get_mempolicy", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore",
    "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall",
    "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages", "mbind",
    "set_mempolicy", "set_mempolicy_home_node",
    // Processes and threads
    "alarm", "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex",
    "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area",
    "getcpu", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32",
    "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresgid32", "getresuid", "getresuid32",
    "getrlimit", "getrusage", "getsid", "gettid", "getuid", "getuid32", "ioprio_get", "ioprio_set", "kill",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "modify_ldt", "nice", "pause",
    "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "restart_syscall", "riscv_hwprobe", "rseq",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid",
    "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setpgid", "setpriority",
    "setregid", "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32",
    "setrlimit", "setsid", "setuid", "setuid32", "sigaction", "sigaltstack", "signal", "sigpending", "sigprocmask",
    "sigreturn", "sigsuspend", "sysinfo", "tgkill", "times", "tkill", "ugetrlimit", "uname", "vfork",
    "wait4", "waitid", "waitpid", "getrandom", "uretprobe",
    // Debuggers, since Linux 4.8 under the same filter as their target
    "kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
    // Sockets and System V
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "ipc", "listen",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send", "sendmmsg",
    "sendmsg", "sendto", "setsockopt", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "socketcall", "socketpair",
    // Time
    "adjtimex", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer", "gettimeofday", "nanosleep",
    "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
    "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
    "timerfd_settime64",
];

/// Allowed with a capability.
const WITH_CAPABILITY: &[(&str, &[&str])] = &[
    ("CAP_BPF", &["bpf"]),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    (
        "CAP_SYS_MODULE",
        &["delete_module", "finit_module", "init_module"],
    ),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    (
        "CAP_SYS_TIME",
        &["clock_settime", "clock_settime64", "settimeofday", "stime"],
    ),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYSLOG", &["syslog"]),
];

/// Values that `personality` may set: Linux and its 32-bit form, with and without fixed addresses, and the question.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Bits of `clone` that make a namespace.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address family of virtual machines' sockets, which are not bound to a network namespace.
const AF_VSOCK: u64 = 40;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The `linux.seccomp` part of an OCI spec for a container with these capabilities.
#[must_use]
pub fn default_profile(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut rules = vec![json!({"names": ALLOWED, "action": "SCMP_ACT_ALLOW"})];
    for (_, names) in WITH_CAPABILITY
        .iter()
        .filter(|(capability, _)| has(capability))
    {
        rules.push(json!({"names": names, "action": "SCMP_ACT_ALLOW"}));
    }
    for value in PERSONALITIES {
        rules.push(allow_if(
            "personality",
            json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"}),
        ));
    }
    rules.push(allow_if(
        "socket",
        json!({"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}),
    ));
    if !has("CAP_SYS_ADMIN") {
        let none = json!({"index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
        rules.push(allow_if("clone", none));
        // Its flags lie in memory, where a filter cannot look; told that it is unknown, libc takes clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn allow_if(name: &str, condition: Value) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]})
}

/// The machine's architecture and those whose programs it runs too. Each costs every container's start milliseconds of
/// making its filter, so x32 is there only where the kernel has it.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" if abi::has_x32() => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value, name: &str) -> bool {
        let rules = profile["syscalls"].as_array().expect("rules");
        let names = |rule: &Value| {
            rule["names"]
                .as_array()
                .is_some_and(|names| names.contains(&json!(name)))
        };
        rules
            .iter()
            .any(|rule| names(rule) && rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null())
    }

    #[test]
    fn mounting_needs_the_capability_and_reading_does_not() {
        let plain = default_profile(&[]);
        let admin = default_profile(&["CAP_SYS_ADMIN".to_owned()]);
        assert!(!allowed(&plain, "mount") && allowed(&admin, "mount"));
        assert!(allowed(&plain, "read") && allowed(&admin, "read"));
        assert!(!allowed(&plain, "clone") && allowed(&admin, "clone"));
    }

    #[test]
    fn no_call_is_listed_twice_for_everyone() {
        let mut names = ALLOWED.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALLOWED.len());
    }

    #[test]
    fn only_tables_that_the_kernel_has_are_filtered() {
        let profile = default_profile(&[]);
        let named = |name: &str| {
            profile["architectures"]
                .as_array()
                .expect("architectures")
                .contains(&json!(name))
        };
        assert_eq!(named("SCMP_ARCH_X32"), abi::has_x32());
        assert_eq!(named("SCMP_ARCH_X86_64"), cfg!(target_arch = "x86_64"));
    }

    #[test]
    fn io_uring_and_keys_are_for_nobody() {
        for name in [
            "io_uring_setup",
            "keyctl",
            "add_key",
            "userfaultfd",
            "kexec_load",
            "swapon",
        ] {
            assert!(
                !allowed(&default_profile(&["CAP_SYS_ADMIN".to_owned()]), name),
                "{name}"
            );
        }
    }
}
