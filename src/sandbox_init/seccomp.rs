//! Filter of the system calls that a command in a sandbox can't make.
//!
//! Podman's default profile lets through what its users may need: key rings, user namespaces, sockets to the
//! hypervisor. How much of it differs with podman's release and with the host's settings. So init applies a
//! filter of its own to the command, just before it is executed; the kernel adds it to podman's, and a call
//! has to pass both (seccomp(2)). It is the same on every host, holds for all that the command starts, and
//! can't be taken off.
//!
//! | closed | why |
//! |---|---|
//! | key rings | they outlive a sandbox, count against the user of the host, and are shared between sandboxes |
//! | namespaces and mounts | inside a user namespace a job has every capability, and most of the kernel to attack |
//! | sockets but UNIX, INET, INET6 and NETLINK_ROUTE | AF_VSOCK reaches a hypervisor despite `--network=none`; no other is of use without a network |
//! | `io_uring`, `bpf`, `perf_event_open`, `userfaultfd`, `modify_ldt`, `personality` | large or rarely used, with a history of holes |
//! | project ids and subvolumes (ioctl) | files with them can't be removed by renaming |
//! | limits and priorities of init | a job could end or starve its own PID 1, and with it the report of how it ended |
//!
//! A closed call fails with the errno of a kernel that doesn't have it, so that a program goes on without:
//! `ENOSYS` where libraries fall back on it, and otherwise the errno for callers without permission. A call of another
//! architecture, such as a 32-bit one, ends the process: its numbers mean something else.
//!
//! A filter is a program for the kernel's BPF machine (`linux/filter.h`). [`filter`] puts it together from
//! rules: one block for each call, which loads the number, jumps behind the block where it is another one,
//! tests the arguments, and returns the errno.

use libc::{c_long, sock_filter};
use std::io;

/// Name of the filter in a result's `effective`; another number for every change of what is closed.
pub const NAME: &str = "cynode-1";

/// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const NATIVE: u32 = 0xc000_00f3;
/// First number of the x32 ABI's calls on x86-64.
const X32: u32 = 0x4000_0000;

/// `open_tree_attr`, of Linux 6.15, and `file_setattr`, of 6.17; the same on all architectures.
const SYS_OPEN_TREE_ATTR: c_long = 467;
const SYS_FILE_SETATTR: c_long = 469;

/// All namespaces that a call of the family of clone(2) makes.
const CLONE_NEW: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();
/// Flag of `unshare` alone: for clone(2) it is part of a signal.
const CLONE_NEWTIME: u32 = 0x80;

/// Project ids: FS_IOC_FSSETXATTR.
const FSSETXATTR: u32 = 0x401c_5820;
/// Subvolumes of btrfs: create, snapshot, both in their second form, destroy (2), set flags.
const SUBVOLUMES: [u32; 7] = [
    0x5000_940e,
    0x5000_9401,
    0x5000_9418,
    0x5000_9417,
    0x5000_940f,
    0x5000_943f,
    0x4008_941a,
];

/// Personalities that change nothing: the default one, and the query.
const PERSONALITIES: [u32; 2] = [0, u32::MAX];

/// Condition on a call's arguments under which it is closed; arguments are counted from 0.
enum Test {
    /// The lower half has one of these bits.
    AnyBit(u32, u32),
    /// The lower half is one of these.
    OneOf(u32, Vec<u32>),
    /// The lower half is none of these.
    NoneOf(u32, Vec<u32>),
    /// A pointer that isn't null.
    NotNull(u32),
}

use Test::{AnyBit, NoneOf, NotNull, OneOf};

/// Target of a jump.
#[derive(Clone, Copy)]
enum To {
    Next,
    Skip(u8),
    /// Behind the block.
    End,
}

/// Instruction whose jumps aren't counted yet.
struct Instruction(u32, u32, To, To);

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;

const fn load(offset: u32) -> Instruction {
    Instruction(LOAD, offset, To::Next, To::Next)
}

const fn fail(errno: i32) -> Instruction {
    Instruction(
        RETURN,
        libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(),
        To::Next,
        To::Next,
    )
}

impl Test {
    /// Instructions that continue where the test holds, and jump behind the block where it doesn't. All architectures
    /// here store the lower half first.
    fn instructions(&self) -> Vec<Instruction> {
        let lower = |argument: &u32| load(ARGUMENTS + 8 * argument);
        match self {
            AnyBit(argument, mask) => vec![
                lower(argument),
                Instruction(IF_ANY_BIT, *mask, To::Next, To::End),
            ],
            NoneOf(argument, values) => {
                let differs = |value: &u32| Instruction(IF_EQUAL, *value, To::End, To::Next);
                [lower(argument)]
                    .into_iter()
                    .chain(values.iter().map(differs))
                    .collect()
            }
            OneOf(argument, values) => {
                let mut list = vec![lower(argument)];
                for (value, left) in values.iter().zip((1..=values.len()).rev()) {
                    let found = To::Skip(u8::try_from(left).unwrap_or(u8::MAX));
                    list.push(Instruction(IF_EQUAL, *value, found, To::Next));
                }
                list.push(Instruction(JUMP, 0, To::End, To::End));
                list
            }
            NotNull(argument) => vec![
                lower(argument),
                Instruction(IF_EQUAL, 0, To::Next, To::Skip(2)),
                load(ARGUMENTS + 8 * argument + 4),
                Instruction(IF_EQUAL, 0, To::End, To::Next),
            ],
        }
    }
}

/// Filter under construction.
struct Program(Vec<sock_filter>);

impl Program {
    fn new() -> Self {
        let mut program = Self(Vec::new());
        program.block(vec![
            load(ARCHITECTURE),
            Instruction(IF_EQUAL, NATIVE, To::End, To::Next),
            Instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS, To::Next, To::Next),
        ]);
        if cfg!(target_arch = "x86_64") {
            program.block(vec![
                load(NUMBER),
                Instruction(IF_AT_LEAST, X32, To::Next, To::End),
                fail(libc::ENOSYS),
            ]);
        }
        program
    }

    fn block(&mut self, instructions: Vec<Instruction>) {
        let length = instructions.len();
        for (at, Instruction(code, k, then, or)) in instructions.into_iter().enumerate() {
            let behind = length - at - 1;
            let steps = |to| match to {
                To::Next => 0,
                To::Skip(steps) => usize::from(steps),
                To::End => behind,
            };
            let jump = |to| u8::try_from(steps(to)).unwrap_or(u8::MAX);
            self.0.push(sock_filter {
                code: code as u16,
                jt: if code == JUMP { 0 } else { jump(then) },
                jf: if code == JUMP { 0 } else { jump(or) },
                k: if code == JUMP { steps(then) as u32 } else { k },
            });
        }
    }

    /// Makes these calls fail with `errno` where all tests hold.
    fn close(&mut self, calls: &[c_long], tests: &[Test], errno: i32) {
        for call in calls {
            let number = u32::try_from(*call).unwrap_or(u32::MAX);
            let mut block = vec![
                load(NUMBER),
                Instruction(IF_EQUAL, number, To::Next, To::End),
            ];
            block.extend(tests.iter().flat_map(Test::instructions));
            block.push(fail(errno));
            self.block(block);
        }
    }
}

/// Filter for a command whose init has these threads.
pub(super) fn filter(init: &[u32]) -> Vec<sock_filter> {
    let mut program = Program::new();
    let key_rings = [libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key];
    program.close(&key_rings, &[], libc::ENOSYS);
    close_namespaces(&mut program);
    close_sockets(&mut program);
    let attacked = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_modify_ldt,
    ];
    program.close(&attacked, &[], libc::ENOSYS);
    let other = [NoneOf(0, PERSONALITIES.to_vec())];
    program.close(&[libc::SYS_personality], &other, libc::EPERM);
    let mut requests = SUBVOLUMES.to_vec();
    requests.push(FSSETXATTR);
    program.close(&[libc::SYS_ioctl], &[OneOf(1, requests)], libc::EPERM);
    program.close(&[SYS_FILE_SETATTR], &[], libc::ENOSYS);
    close_init(&mut program, init);
    program.0.push(sock_filter {
        code: RETURN as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    });
    program.0
}

fn close_namespaces(program: &mut Program) {
    // Its flags are in memory, which no filter can read; libraries fall back on clone.
    program.close(&[libc::SYS_clone3], &[], libc::ENOSYS);
    program.close(&[libc::SYS_clone], &[AnyBit(0, CLONE_NEW)], libc::EPERM);
    let flags = [AnyBit(0, CLONE_NEW | CLONE_NEWTIME)];
    program.close(&[libc::SYS_unshare], &flags, libc::EPERM);
    let calls = [
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        SYS_OPEN_TREE_ATTR,
    ];
    program.close(&calls, &[], libc::EPERM);
}

fn close_sockets(program: &mut Program) {
    let known = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let unknown = NoneOf(0, known.map(i32::cast_unsigned).to_vec());
    let calls = [libc::SYS_socket, libc::SYS_socketpair];
    program.close(&calls, &[unknown], libc::EAFNOSUPPORT);
    let netlink = OneOf(0, vec![libc::AF_NETLINK.cast_unsigned()]);
    let other = NoneOf(2, vec![libc::NETLINK_ROUTE.cast_unsigned()]);
    program.close(
        &[libc::SYS_socket],
        &[netlink, other],
        libc::EPROTONOSUPPORT,
    );
}

/// Closes calls that could end init, or keep it from running: on its limits, and on its share of processor and disk.
/// Those on the command's own processes stay open; thread libraries make them by id.
fn close_init(program: &mut Program, init: &[u32]) {
    let first = || OneOf(0, init.to_vec());
    let limits = [first(), NotNull(2)];
    program.close(&[libc::SYS_prlimit64], &limits, libc::EPERM);
    let scheduling = [
        libc::SYS_sched_setparam,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setaffinity,
    ];
    program.close(&scheduling, &[first()], libc::EPERM);
    // On a process, a group, or, with these numbers, on all processes of a user.
    for (call, of_a_user) in [(libc::SYS_setpriority, 2), (libc::SYS_ioprio_set, 3)] {
        program.close(&[call], &[OneOf(1, init.to_vec())], libc::EPERM);
        program.close(&[call], &[OneOf(0, vec![of_a_user])], libc::EPERM);
    }
}

/// Applies a filter to the calling thread and all that it will start; safe between fork and exec.
pub(super) fn apply(filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: system calls; the kernel copies the program, which outlives the call, and changes nothing.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1
            || libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            ) == -1
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
