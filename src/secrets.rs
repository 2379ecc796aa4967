//! Secrets: random ones that cynode generates, and those that an operator hands over in a file or a variable.

use crate::{exit::Failure, terminal};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    env, fs,
    io::{self, Read as _},
    path::Path,
};
use zeroize::Zeroizing;

/// Length of a random secret, in characters.
const SECRET_CHARS: usize = 43;

/// 256 random bits as text that needs no quoting anywhere.
///
/// # Panics
/// When the system has no random numbers; nothing safe could follow.
pub fn random_secret() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    if let Err(error) = getrandom::fill(bytes.as_mut()) {
        panic!("the system gives no random numbers: {error}");
    }
    Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))
}

/// Checks that a text has the form of a [`random_secret`].
pub fn check_random_secret(text: &str) -> Result<(), &'static str> {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if text.len() != SECRET_CHARS || !text.bytes().all(is_allowed) {
        return Err("is no key: 43 letters, digits, '-' and '_'");
    }
    Ok(())
}

/// Reads a secret from a file, or else from the environment; `None` where neither is given. The file `-` is
/// stdin, or a prompt where stdin is a terminal. `flag` names the file in errors.
pub fn read_secret(
    flag: &str,
    file: Option<&Path>,
    variable: &str,
) -> Result<Option<Zeroizing<String>>, Failure> {
    let text = match file {
        Some(path) if path == Path::new("-") => read_secret_from_stdin(flag)
            .map_err(|error| Failure::usage(format!("{flag} - (stdin): {error}")))?,
        Some(path) => Zeroizing::new(
            fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("{flag} {}: {error}", path.display())))?,
        ),
        None => match env::var(variable) {
            Ok(text) => Zeroizing::new(text),
            Err(_) => return Ok(None),
        },
    };
    let text = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if text.is_empty() {
        let what = file.map_or_else(|| variable.to_owned(), |path| path.display().to_string());
        return Err(Failure::usage(format!(
            "{what} is empty; it must hold the secret"
        )));
    }
    Ok(Some(text))
}

fn read_secret_from_stdin(flag: &str) -> io::Result<Zeroizing<String>> {
    if terminal::is_there() {
        return terminal::ask_secret(&format!("Secret for {flag}: "));
    }
    let mut text = Zeroizing::new(String::new());
    io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}
