//! `cynode nodes token …`.

use super::{
    api_client::ApiClient,
    keys::expiry,
    many::Failures,
    print::{self, clean},
};
use crate::{
    api::{
        JoinTokenId,
        nodes::{CreateJoinToken, CreatedJoinToken, JoinTokenList, JoinTokenStatus, JoinTokenView},
        time::Time,
    },
    cli::{ClientFlags, NodeTokenCommand, NodeTokenCreateArgs, NodeTokenRmArgs, OutputFormat},
    exit::{Exit, Failure},
};
use http::Method;

const PATH: &str = "/v1/join-tokens";

/// Runs a subcommand of `cynode nodes token`.
pub(super) fn run(command: NodeTokenCommand) -> Result<(), Failure> {
    match command {
        NodeTokenCommand::Create(args) => create(args),
        NodeTokenCommand::List(client) => list(&client),
        NodeTokenCommand::Rm(args) => remove(&args),
    }
}

fn create(args: NodeTokenCreateArgs) -> Result<(), Failure> {
    let now = Time::now();
    let body = CreateJoinToken {
        expires_at: Some(now.plus(args.expires)),
        uses: Some(args.uses),
        slug: args.slug,
        url: args.url,
        pin: args.no_pin.then_some(false),
    };
    // The gateway would name the field, and this the flag.
    body.check(now).map_err(|problem| {
        let message = match problem.errors.first() {
            Some(error) if error.pointer == "#/expires_at" => format!("--expires {}", error.detail),
            Some(error) => format!(
                "--{} {}",
                error.pointer.trim_start_matches("#/"),
                error.detail
            ),
            None => problem.detail,
        };
        Failure::new(Exit::Invalid, message)
    })?;
    let mut api = ApiClient::from_args(&args.client)?;
    let created: CreatedJoinToken = api.call(Method::POST, PATH, Some(&body))?;
    if args.client.output == OutputFormat::Json {
        return print::json(&created);
    }
    let (token, details) = (clean(&created.token), &created.details);
    print::note("This token is shown only once:");
    print::line(&token)?;
    let slug = details.slug.as_ref();
    let slug = slug.map_or_else(String::new, |slug| format!(" --slug {}", clean(slug)));
    // Without the token: a log of what a script says is no place for it.
    print::note(&format!(
        "\nPut it into a file on the new machine{}, and start there, until {}:\n\n  cynode node --join-file FILE{slug}\n\n\
         Keep the file (0600): the node shows the token at each start.\n",
        number_of_nodes(details.uses),
        details.expires_at
    ));
    Ok(())
}

/// Number of machines for which a token is, where it is not for one.
fn number_of_nodes(uses: u32) -> String {
    match uses {
        1 => String::new(),
        2 => ", and on another one".to_owned(),
        uses => format!(", and on {} others", uses - 1),
    }
}

fn list(client: &ClientFlags) -> Result<(), Failure> {
    let list: JoinTokenList = ApiClient::from_args(client)?.get(PATH)?;
    if client.output == OutputFormat::Json {
        return print::json(&list);
    }
    let now = Time::now();
    let head = [
        "ID", "STATUS", "USED", "SLUG", "NODES", "BY", "CREATED", "EXPIRES",
    ];
    print::table(head, list.tokens.iter().map(|token| row(token, now)))?;
    let is_plain = |token: &JoinTokenView| token.status == JoinTokenStatus::PlainUrl;
    if list.tokens.iter().any(is_plain) {
        print::note(
            "\nA token with a plain URL leads nowhere, since the orchestrator speaks TLS now: remove it (cynode nodes token rm) \
             and create another (cynode nodes token create).",
        );
    }
    Ok(())
}

fn row(token: &JoinTokenView, now: Time) -> [String; 8] {
    let shown = token.nodes.len();
    let more = (token.used as usize).saturating_sub(shown);
    let mut nodes = clean(&token.nodes.join(","));
    if more > 0 {
        nodes += &format!(" and {more} more");
    }
    [
        token.id.to_string(),
        token.status.as_str().replace('_', " "),
        format!("{} of {}", token.used, token.uses),
        clean(token.slug.as_deref().unwrap_or("any")),
        nodes,
        clean(&token.created_by),
        format!("{} ago", print::age(token.created_at)),
        expiry(token.expires_at, now),
    ]
}

fn remove(args: &NodeTokenRmArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let mut failures = Failures::default();
    failures.collect(&args.tokens, |text| {
        let id: JoinTokenId = text.parse().map_err(|_| unknown(text))?;
        api.done(Method::DELETE, &format!("{PATH}/{id}"), None::<&()>)
    });
    failures.finish()
}

fn unknown(text: &str) -> Failure {
    let text = format!(
        "{:?} is not the id of a join token; list them with: cynode nodes token list",
        clean(text)
    );
    Failure::new(Exit::NotFound, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_names_nodes_and_number_of_others() {
        let now = Time::now();
        let mut token = JoinTokenView {
            id: JoinTokenId::new(),
            status: JoinTokenStatus::UsedUp,
            slug: None,
            uses: 3,
            used: 3,
            nodes: vec!["b".to_owned(), "a".to_owned()],
            created_by: "admin".to_owned(),
            created_at: now,
            expires_at: now,
            url: None,
        };
        assert_eq!(
            row(&token, now)[1..6],
            ["used up", "3 of 3", "any", "b,a and 1 more", "admin"]
        );
        assert_eq!(row(&token, now)[7], "expired");
        token.nodes.push("c".to_owned());
        assert_eq!(row(&token, now)[4], "b,a,c");
    }
}
