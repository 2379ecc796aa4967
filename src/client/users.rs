//! `cynode users …` and `cynode audit`, for admins.

use super::{
    api_client::ApiClient,
    confirm::confirm,
    print::{self, clean, percent_encode},
};
use crate::{
    api::{
        audit::{AuditEntry, AuditLog},
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

/// One of the subcommands.
pub fn users(command: UsersCommand) -> Result<(), Failure> {
    match command {
        UsersCommand::List(client) => list(&client),
        UsersCommand::Create(args) => create(args),
        UsersCommand::Disable(args) => disable(&args),
        UsersCommand::Enable(user) => act(&user, "enable"),
        UsersCommand::RevokeSessions(user) => act(&user, "revoke_sessions"),
        UsersCommand::ResetPassword(args) => {
            let mut gateway = ApiClient::from_args(&args.user.client)?;
            let path = path(&mut gateway, &args.user.handle, "reset_password")?;
            let (password, is_new) = new_password(&args.password, &args.user.handle)?;
            let body = ResetPassword {
                password: password.to_string(),
            };
            gateway.done(Method::POST, &path, Some(&body))?;
            let shown = json!({"handle": args.user.handle});
            tell(&args.user, shown, is_new.then_some(&*password))
        }
    }
}

fn list(client: &ClientFlags) -> Result<(), Failure> {
    let users = all(&mut ApiClient::from_args(client)?)?;
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

/// All users, page by page.
fn all(gateway: &mut ApiClient) -> Result<Vec<User>, Failure> {
    let (mut users, mut path) = (Vec::new(), "/v1/users".to_owned());
    loop {
        let page: UserList = gateway.get(&path)?;
        users.extend(page.users);
        if page.next_cursor.is_empty() {
            return Ok(users);
        }
        path = format!("/v1/users?cursor={}", percent_encode(&page.next_cursor));
    }
}

fn create(args: UserCreateArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.user.client)?;
    let (password, is_new) = new_password(&args.password, &args.user.handle)?;
    let body = CreateUser {
        handle: args.user.handle.clone(),
        password: password.to_string(),
        email: args.email,
        is_admin: Some(args.admin),
    };
    let user: User = gateway.call(Method::POST, "/v1/users", Some(&body))?;
    let (handle, is_admin) = (body.handle, body.is_admin == Some(true));
    let role = if is_admin { " as an admin" } else { "" };
    print::note(&format!("{} can log in{role} now.", clean(&handle)));
    let shown = serde_json::to_value(&user).map_err(Failure::internal)?;
    tell(&args.user, shown, is_new.then_some(&*password))
}

/// Asks first where admins disable themselves: only another admin could let them in again.
fn disable(args: &UserDisableArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.user.client)?;
    let me: User = gateway.get("/v1/users/me")?;
    if me.handle == args.user.handle {
        let question = format!(
            "You are {}. Disable yourself? You are logged out at once, and only another admin can enable you again.",
            clean(&me.handle)
        );
        confirm(&question, args.yes)?;
    }
    act(&args.user, "disable")
}

fn act(user: &UserArgs, action: &str) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&user.client)?;
    let path = path(&mut gateway, &user.handle, action)?;
    gateway.done(Method::POST, &path, None::<&()>)
}

/// Where to act on the user of this handle.
fn path(gateway: &mut ApiClient, handle: &str, action: &str) -> Result<String, Failure> {
    let user = all(gateway)?.into_iter().find(|user| user.handle == handle);
    let user = user.ok_or_else(|| {
        let text = format!("there is no user {handle:?}; cynode users list shows who there is");
        Failure::new(Exit::NotFound, text)
    })?;
    Ok(format!("/v1/users/{}/{action}", user.id))
}

/// The password that a user is to have, and whether it was made up here.
fn new_password(
    from: &NewPasswordFlags,
    handle: &str,
) -> Result<(Zeroizing<String>, bool), Failure> {
    if from.generate {
        return Ok((random_secret(), true));
    }
    if let Some(file) = &from.new_password_file {
        // There is none without a file.
        let password = read_secret("--new-password-file", Some(file), "")?.unwrap_or_default();
        return Ok((password, false));
    }
    if !terminal::is_interactive() {
        return Err(Failure::usage(
            "there is no terminal to ask at; give --generate or --new-password-file FILE",
        ));
    }
    let password = terminal::ask_secret(&format!("New password of {handle}: "))?;
    if *terminal::ask_secret("The same again: ")? != *password {
        return Err(Failure::usage(
            "these were two different passwords; try again",
        ));
    }
    Ok((password, false))
}

/// Shows a user, and a password that nobody else knows.
fn tell(user: &UserArgs, mut shown: Value, password: Option<&String>) -> Result<(), Failure> {
    if user.client.output == OutputFormat::Json {
        if let Some(password) = password {
            shown["password"] = password.as_str().into();
        }
        return print::json(&shown);
    }
    let Some(password) = password else {
        return Ok(());
    };
    print::note("This password is shown only now:");
    print::line(password)
}

/// `cynode audit`.
pub fn audit(args: &AuditArgs) -> Result<(), Failure> {
    let mut path = format!("/v1/audit?limit={}", args.limit);
    for (name, value) in [
        ("action", &args.action),
        ("who", &args.who),
        ("cursor", &args.cursor),
    ] {
        if let Some(value) = value {
            path += &format!("&{name}={}", percent_encode(value));
        }
    }
    let log: AuditLog = ApiClient::from_args(&args.client)?.get(&path)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&log);
    }
    let head = ["TIME", "WHO", "WHAT", "TO", "OUTCOME", "FROM"];
    print::table(head, log.events.iter().map(row))?;
    if !log.next_cursor.is_empty() {
        print::note(&format!("There is more: --cursor {}", log.next_cursor));
    }
    Ok(())
}

fn row(entry: &AuditEntry) -> [String; 6] {
    let text = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| clean(text));
    let event = &entry.event;
    let outcome = event.outcome.as_str();
    [
        event.at.to_string(),
        text(event.actor.as_ref()),
        event.action.as_str().to_owned(),
        text(event.target.as_ref()),
        event.reason.as_ref().map_or_else(
            || outcome.to_owned(),
            |reason| format!("{outcome}: {}", clean(reason)),
        ),
        text(event.address.as_ref()),
    ]
}
