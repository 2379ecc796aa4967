//! `cynode passwd`, and prompts for new passwords.

use super::{api_client::ApiClient, print};
use crate::{
    api::users::ChangePassword, cli::PasswdArgs, exit::Failure, secrets::read_secret, terminal,
};
use http::Method;
use zeroize::Zeroizing;

/// Changes the password of the login.
pub fn passwd(args: &PasswdArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let given = read_secret(
        "--password-file",
        args.password_file.as_deref(),
        "CYNODE_PASSWORD",
    )?;
    let has_files = given.is_some() && args.new_password_file.is_some();
    if !has_files && !terminal::is_interactive() {
        return Err(Failure::usage(
            "there is no terminal to ask at; use --password-file FILE and --new-password-file FILE",
        ));
    }
    let current = match given {
        Some(password) => password,
        None => terminal::ask_secret("Current password: ")?,
    };
    let new = match &args.new_password_file {
        // With a file there is always a password.
        Some(file) => read_secret("--new-password-file", Some(file), "")?.unwrap_or_default(),
        None => ask_new("New password: ")?,
    };
    let body = ChangePassword {
        current_password: current.to_string(),
        new_password: new.to_string(),
    };
    api.done(Method::POST, "/v1/users/me/password", Some(&body))?;
    print::note("The password is changed. Your other sessions have ended; this login goes on.");
    Ok(())
}

/// New password, typed twice.
pub(super) fn ask_new(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let password = terminal::ask_secret(prompt)?;
    if *terminal::ask_secret("Repeat the password: ")? != *password {
        return Err(Failure::usage("the passwords differ; try again"));
    }
    Ok(password)
}
