//! Signals by name and number, as Linux numbers them on all machines that cynode runs on.

/// Valid values of a signal, for errors.
pub(super) const EXPECTED: &str =
    "must be the name of a signal, such as INT or SIGTERM, or its number from 1 to 64";
/// Highest number, of the last real-time signal.
const MAX_NUMBER: i32 = 64;
/// Names in the order of their numbers, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// Hangup, which a terminal sends when it is closed.
pub(super) const HUP: i32 = 1;

/// Number of a signal; `None` where there is no such.
pub(super) fn number(signal: &str) -> Option<i32> {
    if let Ok(number) = signal.parse() {
        return (1..=MAX_NUMBER).contains(&number).then_some(number);
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let index = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_linux() {
        for (name, expected) in [
            ("HUP", libc::SIGHUP),
            ("SIGKILL", libc::SIGKILL),
            ("term", libc::SIGTERM),
            ("SIGCHLD", libc::SIGCHLD),
            ("WINCH", libc::SIGWINCH),
            ("SYS", libc::SIGSYS),
            ("15", libc::SIGTERM),
            ("64", 64),
        ] {
            assert_eq!(number(name), Some(expected), "{name}");
        }
        for wrong in [
            "",
            "0",
            "65",
            "-9",
            "SIG",
            "SIGSIGTERM",
            "TERM ",
            "9.0",
            "99999999999",
        ] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
