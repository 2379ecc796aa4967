//! The filter, evaluated by a small model of the kernel's BPF machine.

use super::*;
use proptest::prelude::*;

/// Call as the kernel shows it to a filter.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: c_long,
    architecture: u32,
    arguments: [u64; 6],
}

fn call(number: c_long, arguments: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Call {
        number,
        architecture: NATIVE,
        arguments: all,
    }
}

/// Answer of the filter to a call, by the rules of the kernel's BPF machine.
fn evaluate(filter: &[sock_filter], call: Call) -> u32 {
    let mut words = vec![call.number as u32, call.architecture, 0, 0];
    let halves = |argument: &u64| [*argument as u32, (*argument >> 32) as u32];
    words.extend(call.arguments.iter().flat_map(halves));
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = filter[at];
        at += 1;
        let holds = match u32::from(code) {
            LOAD => {
                accumulator = words[k as usize / 4];
                continue;
            }
            RETURN => return k,
            JUMP => {
                at += k as usize;
                continue;
            }
            IF_EQUAL => accumulator == k,
            IF_ANY_BIT => accumulator & k != 0,
            IF_AT_LEAST => accumulator >= k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
/// Threads of init in these tests.
const INIT: [u32; 2] = [1, 7];

#[test]
fn blocked_calls_fail_neighbours_pass() {
    let (perm, nosys) = (errno(libc::EPERM), errno(libc::ENOSYS));
    let family = errno(libc::EAFNOSUPPORT);
    let high = 1 << 40;
    let cases = [
        (call(libc::SYS_keyctl, &[]), nosys),
        (call(libc::SYS_clone3, &[]), nosys),
        (call(libc::SYS_clone, &[17]), ALLOWED),
        (
            call(libc::SYS_clone, &[libc::CLONE_NEWUSER as u64 | 17]),
            perm,
        ),
        (
            call(libc::SYS_clone, &[libc::CLONE_VM as u64 | 0x80]),
            ALLOWED,
        ),
        (
            call(libc::SYS_unshare, &[libc::CLONE_FILES as u64]),
            ALLOWED,
        ),
        (call(libc::SYS_unshare, &[0x80]), perm),
        (call(libc::SYS_unshare, &[libc::CLONE_NEWNET as u64]), perm),
        (call(SYS_OPEN_TREE_ATTR, &[]), perm),
        (call(SYS_FILE_SETATTR, &[]), nosys),
        (call(libc::SYS_socket, &[1, 1, 0]), ALLOWED),
        (call(libc::SYS_socket, &[10, 2, 17]), ALLOWED),
        (call(libc::SYS_socket, &[40, 1, 0]), family),
        (call(libc::SYS_socket, &[17, 3, 0]), family),
        (call(libc::SYS_socket, &[high | 40, 1, 0]), family),
        (call(libc::SYS_socketpair, &[38, 1, 0]), family),
        (call(libc::SYS_socket, &[16, 3, 0]), ALLOWED),
        (
            call(libc::SYS_socket, &[16, 3, 12]),
            errno(libc::EPROTONOSUPPORT),
        ),
        (call(libc::SYS_personality, &[0]), ALLOWED),
        (call(libc::SYS_personality, &[0xffff_ffff]), ALLOWED),
        (call(libc::SYS_personality, &[0x0040_0000]), perm),
        (call(libc::SYS_ioctl, &[3, u64::from(FSSETXATTR)]), perm),
        (
            call(libc::SYS_ioctl, &[3, high | u64::from(FSSETXATTR)]),
            perm,
        ),
        (call(libc::SYS_ioctl, &[3, 0x5000_940e]), perm),
        (call(libc::SYS_ioctl, &[3, 0x4008_941a]), perm),
        (call(libc::SYS_ioctl, &[3, 0x5401]), ALLOWED),
        (call(libc::SYS_prlimit64, &[0, 0, 8]), ALLOWED),
        (call(libc::SYS_prlimit64, &[1, 0, 0]), ALLOWED),
        (call(libc::SYS_prlimit64, &[1, 0, 8]), perm),
        (call(libc::SYS_prlimit64, &[7, 0, high]), perm),
        (call(libc::SYS_prlimit64, &[8, 0, 8]), ALLOWED),
        (call(libc::SYS_sched_setaffinity, &[7, 8]), perm),
        (call(libc::SYS_sched_setaffinity, &[8, 8]), ALLOWED),
        (call(libc::SYS_sched_setscheduler, &[1, 5]), perm),
        (call(libc::SYS_setpriority, &[0, 1]), perm),
        (call(libc::SYS_setpriority, &[0, 0]), ALLOWED),
        (call(libc::SYS_setpriority, &[2, 0]), perm),
        (call(libc::SYS_ioprio_set, &[3, 0]), perm),
        (call(libc::SYS_ioprio_set, &[1, 9]), ALLOWED),
        (call(libc::SYS_read, &[1, 1, 1]), ALLOWED),
    ];
    let filter = filter(&INIT);
    for (call, verdict) in cases {
        assert_eq!(evaluate(&filter, call), verdict, "{call:x?}");
    }
}

#[test]
fn calls_of_another_abi_are_blocked() {
    let filter = filter(&INIT);
    let foreign = Call {
        architecture: 0x4000_0003,
        ..call(libc::SYS_read, &[])
    };
    assert_eq!(evaluate(&filter, foreign), libc::SECCOMP_RET_KILL_PROCESS);
    #[cfg(target_arch = "x86_64")]
    for number in [libc::SYS_read, libc::SYS_keyctl] {
        let x32 = call(number | c_long::from(X32), &[]);
        assert_eq!(evaluate(&filter, x32), errno(libc::ENOSYS));
    }
}

proptest! {
    /// No jump leaves the program, and nothing but these calls depends on arguments.
    #[test]
    fn filter_decides_every_call(number in 0..600_i64, arguments: [u64; 6]) {
        let filter = filter(&INIT);
        let other = [libc::SYS_getpid, libc::SYS_openat, libc::SYS_execve, libc::SYS_mmap, libc::SYS_futex];
        let verdict = evaluate(&filter, call(number, &arguments));
        prop_assert!(verdict == ALLOWED || verdict & 0xffff_0000 == libc::SECCOMP_RET_ERRNO);
        for number in other {
            prop_assert_eq!(evaluate(&filter, call(number, &arguments)), ALLOWED);
        }
    }
}
