//! Secrets: making random ones, and reading those that an operator supplies.

use crate::{exit::Failure, terminal};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    io::{self, Read as _},
    path::Path,
};
use zeroize::Zeroizing;

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

/// A secret from `file`, or else from the environment variable. The file `-` is stdin, or a prompt where
/// stdin is a terminal. `None` where neither is given; an error where the secret is empty.
pub fn read_secret(
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
        return terminal::ask_secret(&format!("Secret for {flag}: "));
    }
    let mut text = Zeroizing::new(String::new());
    io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}
