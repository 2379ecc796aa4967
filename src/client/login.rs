//! `cynode login`, `logout` and `whoami`.

use super::{api_client::ApiClient, confirm::confirm, connection, credentials, print};
use crate::{
    api::auth::{Login, Logout, Tokens, User},
    cli::{ClientFlags, LoginArgs, OutputFormat},
    exit::Failure,
    secrets::read_secret,
    terminal,
    tls::{Cause, Untrusted},
};
use http::Method;

/// Logs in with a password and stores the tokens.
pub fn login(args: LoginArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    connection::warn_if_exposed(&api.url, "your password and output");
    introduce(&mut api)?;
    let password = match read_secret(
        "--password-file",
        args.password_file.as_deref(),
        "CYNODE_PASSWORD",
    )? {
        Some(password) => password.to_string(),
        None if terminal::is_interactive() => {
            let prompt = format!("Password of {} at {}: ", args.handle, api.url);
            terminal::ask_secret(&prompt)?.to_string()
        }
        None => {
            return Err(Failure::usage(
                "there is no terminal to ask at; use --password-file FILE (- reads stdin) or CYNODE_PASSWORD",
            ));
        }
    };
    let body = Login {
        handle: args.handle.clone(),
        password,
    };
    let tokens: Tokens = api.call_anonymous(Method::POST, "/v1/auth/login", Some(&body))?;
    credentials::store(&api.url, &args.handle, tokens, api.trust())?;
    print::note(&format!("Logged in as {} at {}.", args.handle, api.url));
    if api.has_fixed_token() {
        print::note(
            "CYNODE_TOKEN is set and takes precedence over this login; unset it to use the login.",
        );
    }
    Ok(())
}

/// Asks whether the key of the gateway is the right one, where neither a pin nor an authority vouches for it. The
/// password goes nowhere before that.
fn introduce(api: &mut ApiClient) -> Result<(), Failure> {
    let Some(found) = api.unknown_key()? else {
        return Ok(());
    };
    if !terminal::is_interactive() {
        let cause = Cause::UnknownIssuer;
        return Err(connection::not_trusted(
            &api.url,
            &Untrusted { found, cause },
        ));
    }
    let question = format!(
        "{} has a key that no authority vouches for. Its pin:\n\n  {found}\n  (in short: {})\n\nIs this what the \
         orchestrator printed?",
        api.url,
        found.short()
    );
    confirm(&question, false)?;
    api.trust_key(found);
    Ok(())
}

/// Ends the session and removes the stored login; the latter also when the orchestrator is unreachable.
pub fn logout(client: &ClientFlags) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(client)?;
    if api.has_fixed_token() {
        // Only the session of the token ends: the stored login has another one.
        return api.done(Method::POST, "/v1/auth/logout", None::<&()>);
    }
    let login = credentials::load()?
        .logins
        .remove(&api.url)
        .ok_or_else(|| credentials::not_logged_in(&api.url))?;
    let body = Logout {
        refresh_token: Some(login.refresh_token),
    };
    let ended = api.done(Method::POST, "/v1/auth/logout", Some(&body));
    credentials::remove(&api.url)?;
    if let Err(failure) = ended {
        print::note(&format!(
            "the login was removed here, but the session may go on there: {}",
            failure.message
        ));
    }
    Ok(())
}

/// Shows the user of the login.
pub fn whoami(client: &ClientFlags) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(client)?;
    let user: User = api.get("/v1/users/me")?;
    match client.output {
        OutputFormat::Json => print::json(&user),
        OutputFormat::Text => {
            let role = if user.is_admin { " (admin)" } else { "" };
            print::line(&format!(
                "{}{role} at {}",
                print::clean(&user.handle),
                api.url
            ))
        }
    }
}
