//! A hostile command, for tests: tries what a sandbox must not allow, and prints a line for each try, its name
//! and `refused` with the errno, or `done`. A static binary that is put into a local image.
//!
//! With the argument `legitimate` it tries, in the same form, what must stay possible. With `trees` and directories it
//! fills each with trees that are hard to remove; with `files`, a number and a directory, with files. With `mapped`
//! and a directory it fills the disk with deleted files that it has mapped, and stays. With `fetch`, a host and port, the name
//! of a server, a path and a header it asks for that over HTTPS, as a program does that knows only what variables say.

#![allow(
    unsafe_code,
    clippy::print_stdout,
    reason = "system calls that libraries don't offer, and a command's own output"
)]

mod fetch;
mod mapped;
mod trees;

use std::{env, fs, io};

/// One system call with arguments that name no memory of ours.
macro_rules! call {
    ($name:ident $(, $argument:expr)*) => {
        // SAFETY: no argument is a pointer that the kernel could write to.
        outcome(unsafe { libc::syscall(libc::$name $(, $argument as libc::c_long)*) })
    };
}

fn outcome(answer: libc::c_long) -> io::Result<()> {
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn report(name: &str, outcome: &io::Result<()>) {
    match outcome {
        Ok(()) => println!("{name} done"),
        Err(error) => println!("{name} refused {}", error.raw_os_error().unwrap_or(0)),
    }
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["legitimate"] => return legitimate(),
        ["trees", ref places @ ..] => return places.iter().for_each(|place| trees::grow(place)),
        ["mapped", place] => {
            println!("before");
            report("mapped", &mapped::fill(place));
            loop {
                std::thread::park();
            }
        }
        ["fetch", target, name, path, header] => {
            match fetch::fetch(target, name, path, header) {
                Ok(answer) => println!("{answer}"),
                Err(error) => println!("failed: {error}"),
            }
            return;
        }
        ["files", count, place] => return trees::many_files(count, place),
        _ => {}
    }
    key_rings();
    namespaces();
    sockets();
    kernel();
    files();
    host();
    init();
}

fn key_rings() {
    let name = c"cynode".as_ptr();
    report("keyctl", &call!(SYS_keyctl, 1, name));
    report(
        "add_key",
        &call!(SYS_add_key, c"user".as_ptr(), name, name, 6, -3),
    );
    report(
        "request_key",
        &call!(SYS_request_key, c"user".as_ptr(), name, 0, 0),
    );
}

fn namespaces() {
    let kinds = [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("network", libc::CLONE_NEWNET),
        ("time", 0x80),
    ];
    for (name, flag) in kinds {
        report(&format!("unshare-{name}"), &call!(SYS_unshare, flag));
    }
    report("clone-user", &clone(libc::CLONE_NEWUSER));
    let arguments = [libc::CLONE_NEWUSER as u64, 0, 0, 0, 17, 0, 0, 0];
    report("clone3", &call!(SYS_clone3, arguments.as_ptr(), 64));
    let own = fs::File::open("/proc/self/ns/uts");
    if let Ok(own) = own {
        use std::os::fd::AsRawFd as _;
        report("setns", &call!(SYS_setns, own.as_raw_fd(), 0));
    }
    let tmpfs = c"tmpfs".as_ptr();
    report(
        "mount",
        &call!(SYS_mount, tmpfs, c"/tmp".as_ptr(), tmpfs, 0, 0),
    );
    report("umount", &call!(SYS_umount2, c"/workspace".as_ptr(), 2));
    report("fsopen", &call!(SYS_fsopen, tmpfs, 0));
    report(
        "open_tree",
        &call!(SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 0),
    );
}

/// A child in namespaces of its own, which exits immediately.
fn clone(flags: i32) -> io::Result<()> {
    // SAFETY: without a stack and without shared memory this is fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: ends the child without running anything of its parent's.
        unsafe { libc::_exit(0) };
    }
    outcome(pid)
}

fn sockets() {
    let families = [
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("algorithm", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("bluetooth", 31, libc::SOCK_RAW, 0),
        (
            "netfilter",
            libc::AF_NETLINK,
            libc::SOCK_RAW,
            libc::NETLINK_NETFILTER,
        ),
        (
            "uevent",
            libc::AF_NETLINK,
            libc::SOCK_RAW,
            libc::NETLINK_KOBJECT_UEVENT,
        ),
    ];
    for (name, family, kind, protocol) in families {
        report(
            &format!("socket-{name}"),
            &call!(SYS_socket, family, kind, protocol),
        );
    }
}

fn kernel() {
    let zeros = [0_u64; 32];
    report("io_uring", &call!(SYS_io_uring_setup, 1, zeros.as_ptr()));
    report("bpf", &call!(SYS_bpf, 0, zeros.as_ptr(), 64));
    report(
        "perf",
        &call!(SYS_perf_event_open, zeros.as_ptr(), 0, -1, -1, 0),
    );
    report("userfaultfd", &call!(SYS_userfaultfd, 1));
    #[cfg(target_arch = "x86_64")]
    report("modify_ldt", &call!(SYS_modify_ldt, 1, zeros.as_ptr(), 16));
    report("personality", &call!(SYS_personality, 0x0040_0000));
}

fn files() {
    use std::os::fd::AsRawFd as _;
    let attributes = [0_u32, 0, 0, 7, 0, 0, 0];
    match fs::File::open("/workspace") {
        Ok(workspace) => report(
            "project-id",
            &call!(
                SYS_ioctl,
                workspace.as_raw_fd(),
                0x401c_5820_u32,
                attributes.as_ptr()
            ),
        ),
        Err(error) => report("project-id", &Err(error)),
    }
}

/// Operations for the host only, and objects that a sandbox must not see.
fn host() {
    let device = libc::makedev(1, 1);
    let mode = libc::S_IFCHR | 0o666;
    for place in [c"/workspace/device", c"/tmp/device"] {
        let made = call!(SYS_mknodat, libc::AT_FDCWD, place.as_ptr(), mode, device);
        report("mknod", &made);
    }
    let root = c"/".as_ptr();
    report(
        "remount",
        &call!(SYS_mount, 0, root, 0, libc::MS_REMOUNT, 0),
    );
    for place in [c"/dev/null", c"/etc/hosts", c"/.cynode-init"] {
        let owned = call!(SYS_fchownat, libc::AT_FDCWD, place.as_ptr(), 1234, 1234, 0);
        report(&format!("chown-{}", place.to_string_lossy()), &owned);
    }
    report("chroot", &call!(SYS_chroot, root));
    report("hostname", &call!(SYS_sethostname, c"x".as_ptr(), 1));
    report("kernel-log", &call!(SYS_syslog, 10, 0, 0));
    report("module", &call!(SYS_init_module, root, 1, root));
    report("fanotify", &call!(SYS_fanotify_init, 0, 0));
    report(
        "handle",
        &call!(SYS_open_by_handle_at, libc::AT_FDCWD, root, 0),
    );
    let pidfd = call!(SYS_pidfd_open, 1, 0);
    if pidfd.is_ok() {
        // It is the first descriptor behind the standard ones, in any order of opening.
        for fd in 3..8 {
            report("descriptor-of-init", &call!(SYS_pidfd_getfd, fd, 3, 0));
        }
    }
    for path in [
        "/proc/keys",
        "/proc/kcore",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/dev/kmsg",
        "/dev/mem",
    ] {
        let seen =
            fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut [0]));
        report(&format!("read-{path}"), &seen);
    }
    for path in [
        "/.cynode-init",
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/pids/pids.max",
        "/sys/kernel/uevent_helper",
        "/proc/1/environ",
        "/proc/1/root/x",
    ] {
        let open = fs::OpenOptions::new().write(true).open(path);
        report(&format!("write-{path}"), &open.map(drop));
    }
    // These files exist in the sandbox, too; the host has some of the same name.
    for path in [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/run/.containerenv",
    ] {
        let _ = fs::write(path, "cynode-attack\n");
    }
}

/// Everything that could end PID 1, or starve it.
fn init() {
    let limit = [1_u64, 1];
    let parameter = 0_i32;
    let processor = 1_u64;
    // Init has a second thread, started before the command.
    for thread in 1..=8 {
        if thread == std::process::id()
            || !fs::exists(format!("/proc/1/task/{thread}")).unwrap_or(false)
        {
            continue;
        }
        let name = |what: &str| format!("{what}-{thread}");
        report(
            &name("prlimit"),
            &call!(SYS_prlimit64, thread, 0, limit.as_ptr(), 0),
        );
        report(
            &name("scheduler"),
            &call!(SYS_sched_setscheduler, thread, 5, &raw const parameter),
        );
        report(
            &name("affinity"),
            &call!(SYS_sched_setaffinity, thread, 8, &raw const processor),
        );
        report(&name("priority"), &call!(SYS_setpriority, 0, thread, 19));
        report(&name("ioprio"), &call!(SYS_ioprio_set, 1, thread, 3 << 13));
    }
    report("join-group", &call!(SYS_setpgid, 0, 1));
    report("priority-group", &call!(SYS_setpriority, 1, 1, 19));
    report("priority-user", &call!(SYS_setpriority, 2, 0, 19));
    report("ioprio-user", &call!(SYS_ioprio_set, 3, 0, 3 << 13));
    report("ptrace", &call!(SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0));
    let read = |path| fs::File::open(path).map(drop);
    report("memory", &read("/proc/1/mem"));
    report("descriptor", &read("/proc/1/fd/3"));
}

fn legitimate() {
    let limit = [1024_u64, 1024];
    report("fork", &clone(0));
    report("unshare-files", &call!(SYS_unshare, libc::CLONE_FILES));
    report("unix", &call!(SYS_socket, libc::AF_UNIX, 1, 0));
    report("inet", &call!(SYS_socket, libc::AF_INET, 1, 0));
    report("inet6", &call!(SYS_socket, libc::AF_INET6, 2, 0));
    report("route", &call!(SYS_socket, libc::AF_NETLINK, 3, 0));
    report("own-limit", &call!(SYS_prlimit64, 0, 7, limit.as_ptr(), 0));
    report("limit-of-init", &call!(SYS_prlimit64, 1, 7, 0, 0));
    let own = std::process::id();
    report("own-priority", &call!(SYS_setpriority, 0, own, 5));
    let processors = u64::MAX;
    report(
        "own-affinity",
        &call!(SYS_sched_setaffinity, own, 8, &raw const processors),
    );
    let thread = std::thread::spawn(|| ());
    report(
        "thread",
        &thread.join().map_err(|_| io::ErrorKind::Other.into()),
    );
    report("personality", &call!(SYS_personality, 0xffff_ffff_u32));
    report("group-priority", &call!(SYS_setpriority, 1, 0, 6));
    let batch = 0_i32;
    report(
        "own-scheduler",
        &call!(SYS_sched_setscheduler, 0, 3, &raw const batch),
    );
    report("own-ioprio", &call!(SYS_ioprio_set, 1, 0, 3 << 13));
    report("memfd", &call!(SYS_memfd_create, c"x".as_ptr(), 0));
    report("epoll", &call!(SYS_epoll_create1, 0));
    report("timer", &call!(SYS_timerfd_create, 1, 0));
    report("inotify", &call!(SYS_inotify_init1, 0));
    report("membarrier", &call!(SYS_membarrier, 0, 0, 0));
    report("pidfd", &call!(SYS_pidfd_open, own, 0));
}
