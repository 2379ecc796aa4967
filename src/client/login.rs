//! `cynode login`, `logout` and `whoami`.

use super::{api_client::ApiClient, credentials, print};
use crate::{
    api::auth::{Login, Logout, Tokens, User},
    cli::{ClientFlags, LoginArgs, OutputFormat},
    exit::Failure,
    secrets::read_secret,
    terminal,
};
use http::Method;

/// Trades a password for tokens, and keeps those.
pub fn login(args: LoginArgs) -> Result<(), Failure> {
    let gateway = ApiClient::from_args(&args.client)?;
    let password = match read_secret(
        "--password-file",
        args.password_file.as_deref(),
        "CYNODE_PASSWORD",
    )? {
        Some(password) => password.to_string(),
        None if terminal::is_interactive() => {
            let prompt = format!("Password of {} at {}: ", args.handle, gateway.url);
            terminal::ask_secret(&prompt)?.to_string()
        }
        None => {
            return Err(Failure::usage(
                "there is no terminal to ask at; give --password-file FILE (- reads stdin) or CYNODE_PASSWORD",
            ));
        }
    };
    let body = Login {
        handle: args.handle.clone(),
        password,
    };
    let tokens: Tokens = gateway.anonymous(Method::POST, "/v1/auth/login", Some(&body))?;
    credentials::store(&gateway.url, &args.handle, tokens)?;
    print::note(&format!("Logged in as {} at {}.", args.handle, gateway.url));
    if gateway.has_fixed_token() {
        print::note("CYNODE_TOKEN is set and goes before this login; unset it to use the login.");
    }
    Ok(())
}

/// Ends the session there and forgets it here; the latter also when the orchestrator is away.
pub fn logout(client: &ClientFlags) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(client)?;
    if gateway.has_fixed_token() {
        // Its session alone: the login that is kept is another one.
        return gateway.done(Method::POST, "/v1/auth/logout", None::<&()>);
    }
    let login = credentials::load()?
        .logins
        .remove(&gateway.url)
        .ok_or_else(|| credentials::not_logged_in(&gateway.url))?;
    let body = Logout {
        refresh_token: Some(login.refresh_token),
    };
    let ended = gateway.done(Method::POST, "/v1/auth/logout", Some(&body));
    credentials::forget(&gateway.url)?;
    if let Err(failure) = ended {
        print::note(&format!(
            "forgotten here, but not ended there: {}",
            failure.message
        ));
    }
    Ok(())
}

/// Who the tokens stand for.
pub fn whoami(client: &ClientFlags) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(client)?;
    let user: User = gateway.get("/v1/users/me")?;
    match client.output {
        OutputFormat::Json => print::json(&user),
        OutputFormat::Text => {
            let role = if user.is_admin { " (admin)" } else { "" };
            print::line(&format!(
                "{}{role} at {}",
                print::clean(&user.handle),
                gateway.url
            ))
        }
    }
}
