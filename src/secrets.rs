//! Secrets: making random ones, and reading those that an operator supplies.
//!
//! A file of a secret that other users of the machine can read gives one warning: at once to a user of the client, and
//! in the log of a role, which opens after its secrets are read ([`take_exposure_warnings`]).

use crate::{exit::Failure, terminal};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Permissions by which others than the owner of a file read or change it.
const OTHERS_MODE: u32 = 0o077;
/// The same without those of its group, by which a process of another user may be let in.
const STRANGERS_MODE: u32 = 0o007;
/// Directories whose files are not the operator's to close: devices, and what a service manager or a container engine
/// provides.
const PROVIDED_DIRS: [&str; 4] = ["/dev", "/proc", "/run/secrets", "/run/credentials"];

/// Warnings about files of secrets that wait for the log of a role.
static EXPOSURE_WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Length of a [`random_secret`]: 32 bytes in base64 without padding.
const RANDOM_SECRET_CHARS: usize = 43;

/// A secret of 256 random bits, as text that needs no quoting anywhere.
///
/// # Panics
/// When the system returns no random numbers; nothing safe could continue then.
pub fn random_secret() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    if let Err(error) = getrandom::fill(bytes.as_mut()) {
        panic!("the system returned no random numbers: {error}");
    }
    Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))
}

/// Checks that a text has the form of a [`random_secret`]; the error completes "its content …".
pub fn check_random_secret(text: &str) -> Result<(), &'static str> {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if text.len() != RANDOM_SECRET_CHARS || !text.bytes().all(is_valid) {
        return Err("is not a valid key: expected 43 letters, digits, '-' and '_'");
    }
    Ok(())
}

/// A secret from `file`, or else from the environment variable, for a command of a user. The file `-` is stdin, or a
/// prompt where stdin is a terminal. `None` where neither is given; an error where the secret is empty.
pub fn read_secret(
    flag: &str,
    file: Option<&Path>,
    variable: &str,
) -> Result<Option<Zeroizing<String>>, Failure> {
    if let Some(warning) = file.and_then(exposure_warning) {
        terminal::print_note(&format!("warning: {warning}"));
    }
    read(flag, file, variable)
}

/// Same as [`read_secret`], for a role, whose log gets the warning about a file that others can read.
pub fn read_role_secret(
    flag: &str,
    file: Option<&Path>,
    variable: &str,
) -> Result<Option<Zeroizing<String>>, Failure> {
    if let Some(warning) = file.and_then(exposure_warning) {
        let mut warnings = EXPOSURE_WARNINGS.lock();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    read(flag, file, variable)
}

/// Takes the warnings about files of secrets that a role has read.
pub fn take_exposure_warnings() -> Vec<String> {
    std::mem::take(&mut *EXPOSURE_WARNINGS.lock())
}

/// Warning about a file of a secret that others can read; `None` where they can't, and for stdin, pipes and files that
/// are not the operator's to close.
pub fn exposure_warning(path: &Path) -> Option<String> {
    if path == Path::new("-") {
        return None;
    }
    let target = fs::canonicalize(path).ok()?;
    let is_provided = |path: &Path| PROVIDED_DIRS.iter().any(|dir| path.starts_with(dir));
    let given = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    let meta = fs::metadata(&target).ok()?;
    let user = rustix::process::geteuid().as_raw();
    let is_own = meta.uid() == user;
    // A file of another owner is read by way of its group, as mounts of containers and root:GROUP 0640 are.
    let others = if is_own { OTHERS_MODE } else { STRANGERS_MODE };
    let is_exposed = meta.is_file() && meta.mode() & others != 0;
    if !is_exposed || is_provided(&given) || is_provided(&target) {
        return None;
    }
    let (mode, path) = (meta.mode() & 0o777, path.display());
    let fix = if is_own {
        format!("with: chmod 600 {path}")
    } else {
        // Without the first command, this process could not read it any more.
        format!("as root with: chown {user} {path} && chmod 600 {path}")
    };
    Some(format!(
        "other users of this machine may read the secret in {path} (mode {mode:04o}); close it {fix}"
    ))
}

fn read(
    flag: &str,
    file: Option<&Path>,
    variable: &str,
) -> Result<Option<Zeroizing<String>>, Failure> {
    let text = match file {
        Some(path) if path == Path::new("-") => read_stdin(flag)
            .map_err(|error| Failure::usage(format!("{flag} - (stdin): {error}")))?,
        Some(path) => Zeroizing::new(
            std::fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("{flag} {}: {error}", path.display())))?,
        ),
        None => match std::env::var(variable) {
            Ok(text) => Zeroizing::new(text),
            Err(_) => return Ok(None),
        },
    };
    let text = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if text.is_empty() {
        let source = file.map_or_else(|| variable.to_owned(), |path| path.display().to_string());
        return Err(Failure::usage(format!(
            "{source} is empty; it must hold the secret"
        )));
    }
    Ok(Some(text))
}

fn read_stdin(flag: &str) -> io::Result<Zeroizing<String>> {
    if terminal::is_interactive() {
        return terminal::ask_secret(&format!("{}: ", name_of(flag)));
    }
    let mut text = Zeroizing::new(String::new());
    io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}

/// Name of the secret that a flag, variable or setting is for, as a prompt shows it.
fn name_of(flag: &str) -> String {
    let flag = flag.to_ascii_lowercase();
    let has = |word: &str| flag.contains(word);
    let name = if has("psk") {
        "Pre-shared key"
    } else if has("join") {
        "Join token"
    } else if has("new-password") {
        "New password"
    } else if has("password") {
        "Password"
    } else if has("token") {
        "Token"
    } else {
        return format!("Secret for {flag}");
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn prompt_names_secret() {
        for (flag, name) in [
            ("--psk-file", "Pre-shared key"),
            ("CYNODE_PSK_FILE", "Pre-shared key"),
            ("orchestrator.join_file", "Join token"),
            ("--new-password-file", "New password"),
            ("--admin-password-file", "Password"),
            ("--token-file", "Token"),
            ("--other", "Secret for --other"),
        ] {
            assert_eq!(name_of(flag), name);
        }
    }

    #[test]
    fn readable_file_of_secret_is_named() {
        let home = tempfile::tempdir().unwrap();
        let [file, link] = ["secret", "link"].map(|name| home.path().join(name));
        fs::write(&file, "x").unwrap();
        symlink(&file, &link).unwrap();
        for (mode, is_exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            for path in [&file, &link] {
                let warning = exposure_warning(path);
                assert_eq!(warning.is_some(), is_exposed, "{mode:o}: {warning:?}");
                let named = format!("chmod 600 {}", path.display());
                assert!(warning.is_none_or(|text| text.ends_with(&named)));
            }
        }
        for path in [
            "-",
            "/dev/null",
            "/dev/stdin",
            "/proc/self/status",
            "/no/such/file",
        ] {
            assert_eq!(exposure_warning(Path::new(path)), None, "{path}");
        }
    }
}
