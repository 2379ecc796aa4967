//! `cynode users …` and `cynode audit`, for admins.

use super::{
    api_client::ApiClient,
    confirm::confirm,
    password, paths,
    print::{self, clean},
};
use crate::{
    api::{
        audit::{AuditEntry, AuditEvent, AuditLog},
        auth::User,
        users::{CreateUser, ResetPassword, UserList},
    },
    cli::{
        AuditArgs, ClientFlags, NewPasswordFlags, OutputFormat, UserArgs, UserCreateArgs,
        UserDisableArgs, UsersCommand,
    },
    exit::{Exit, Failure},
    secrets::{random_secret, read_secret},
    terminal,
};
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// Runs a subcommand of `cynode users`.
pub fn users(command: UsersCommand) -> Result<(), Failure> {
    match command {
        UsersCommand::List(client) => list(&client),
        UsersCommand::Create(args) => create(args),
        UsersCommand::Disable(args) => disable(&args),
        UsersCommand::Enable(user) => post_action(&user, "enable"),
        UsersCommand::RevokeSessions(user) => post_action(&user, "revoke_sessions"),
        UsersCommand::ResetPassword(args) => {
            let mut api = ApiClient::from_args(&args.user.client)?;
            let path = action_path(&mut api, &args.user.handle, "reset_password")?;
            let (password, is_new) = new_password(&args.password, &args.user.handle)?;
            let body = ResetPassword {
                password: password.to_string(),
            };
            api.done(Method::POST, &path, Some(&body))?;
            let shown = json!({"handle": args.user.handle});
            print_user(&args.user, shown, is_new.then_some(&*password))
        }
    }
}

fn list(client: &ClientFlags) -> Result<(), Failure> {
    let users = list_all(&mut ApiClient::from_args(client)?)?;
    if client.output == OutputFormat::Json {
        return print::json(&UserList {
            users,
            next_cursor: String::new(),
        });
    }
    let role = |user: &User| if user.is_admin { "admin" } else { "user" };
    let state = |user: &User| if user.is_active { "active" } else { "disabled" };
    let rows = users.iter().map(|user| {
        [
            clean(&user.handle),
            role(user).to_owned(),
            state(user).to_owned(),
            clean(user.email.as_deref().unwrap_or("-")),
        ]
    });
    print::table(["USER", "ROLE", "STATE", "EMAIL"], rows)
}

/// All users, fetched page by page.
fn list_all(api: &mut ApiClient) -> Result<Vec<User>, Failure> {
    let (mut users, mut path) = (Vec::new(), "/v1/users".to_owned());
    loop {
        let page: UserList = api.get(&path)?;
        users.extend(page.users);
        if page.next_cursor.is_empty() {
            return Ok(users);
        }
        path = paths::with_query("/v1/users", &[("cursor", Some(&page.next_cursor))]);
    }
}

fn create(args: UserCreateArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.user.client)?;
    let (password, is_new) = new_password(&args.password, &args.user.handle)?;
    let body = CreateUser {
        handle: args.user.handle.clone(),
        password: password.to_string(),
        email: args.email,
        is_admin: Some(args.admin),
    };
    let user: User = api.call(Method::POST, "/v1/users", Some(&body))?;
    let (handle, is_admin) = (body.handle, body.is_admin == Some(true));
    let role = if is_admin { " as an admin" } else { "" };
    print::note(&format!("{} can log in{role} now.", clean(&handle)));
    let shown = serde_json::to_value(&user).map_err(Failure::internal)?;
    print_user(&args.user, shown, is_new.then_some(&*password))
}

/// Disables a user. Asks first where admins disable themselves: only another admin can enable them again.
fn disable(args: &UserDisableArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.user.client)?;
    let me: User = api.get("/v1/users/me")?;
    if me.handle == args.user.handle {
        let question = format!(
            "You are {}. Disable yourself? You are logged out immediately, and only another admin can enable you again.",
            clean(&me.handle)
        );
        confirm(&question, args.yes)?;
    }
    post_action(&args.user, "disable")
}

fn post_action(user: &UserArgs, action: &str) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&user.client)?;
    let path = action_path(&mut api, &user.handle, action)?;
    api.done(Method::POST, &path, None::<&()>)
}

/// Path of an action on the user with this handle.
fn action_path(api: &mut ApiClient, handle: &str, action: &str) -> Result<String, Failure> {
    let user = list_all(api)?
        .into_iter()
        .find(|user| user.handle == handle);
    let user = user.ok_or_else(|| {
        let text = format!("there is no user {handle:?}; list the users with: cynode users list");
        Failure::new(Exit::NotFound, text)
    })?;
    Ok(format!("/v1/users/{}/{action}", user.id))
}

/// New password for a user, and whether it was generated here.
fn new_password(
    from: &NewPasswordFlags,
    handle: &str,
) -> Result<(Zeroizing<String>, bool), Failure> {
    if from.generate {
        return Ok((random_secret(), true));
    }
    if let Some(file) = &from.new_password_file {
        // With a file there is always a password.
        let password = read_secret("--new-password-file", Some(file), "")?.unwrap_or_default();
        return Ok((password, false));
    }
    if !terminal::is_interactive() {
        return Err(Failure::usage(
            "there is no terminal to ask at; use --generate or --new-password-file FILE",
        ));
    }
    let password = password::ask_new(&format!("New password of {handle}: "))?;
    Ok((password, false))
}

/// Prints a user, and a generated password.
fn print_user(user: &UserArgs, mut shown: Value, password: Option<&String>) -> Result<(), Failure> {
    if user.client.output == OutputFormat::Json {
        if let Some(password) = password {
            shown["password"] = password.as_str().into();
        }
        return print::json(&shown);
    }
    let Some(password) = password else {
        return Ok(());
    };
    print::note("This password is shown only once:");
    print::line(password)
}

/// Shows the audit log.
pub fn audit(args: &AuditArgs) -> Result<(), Failure> {
    let limit = args.limit.to_string();
    let path = paths::with_query(
        "/v1/audit",
        &[
            ("limit", Some(&limit)),
            ("action", args.action.as_deref()),
            ("who", args.who.as_deref()),
            ("cursor", args.cursor.as_deref()),
        ],
    );
    let log: AuditLog = ApiClient::from_args(&args.client)?.get(&path)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&log);
    }
    let head = ["TIME", "ACTOR", "ACTION", "TARGET", "OUTCOME", "ADDRESS"];
    print::table(head, log.events.iter().map(row))?;
    if !log.next_cursor.is_empty() {
        print::note(&format!("More events: --cursor {}", log.next_cursor));
    }
    Ok(())
}

/// Handle or slug of the actor, with the API key by which they called.
fn actor(event: &AuditEvent) -> String {
    let actor = event.actor.as_deref().unwrap_or("-");
    match &event.api_key {
        Some(key) => clean(&format!("{actor} ({key})")),
        None => clean(actor),
    }
}

fn row(entry: &AuditEntry) -> [String; 6] {
    let text = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| clean(text));
    let event = &entry.event;
    let outcome = event.outcome.as_str();
    [
        event.at.to_string(),
        actor(event),
        event.action.as_str().to_owned(),
        text(event.target.as_ref()),
        event.reason.as_ref().map_or_else(
            || outcome.to_owned(),
            |reason| format!("{outcome}: {}", clean(reason)),
        ),
        text(event.address.as_ref()),
    ]
}
