//! `cynode keys …`.

use super::{
    api_client::ApiClient,
    many::Failures,
    paths,
    print::{self, clean},
};
use crate::{
    api::{
        api_keys::{ApiKey, ApiKeyList, CreateApiKey, CreatedApiKey},
        time::Time,
    },
    cli::{ClientFlags, KeyCreateArgs, KeyRevokeArgs, KeysCommand, OutputFormat},
    exit::{Exit, Failure},
};
use http::Method;

/// Runs a subcommand of `cynode keys`.
pub fn keys(command: KeysCommand) -> Result<(), Failure> {
    match command {
        KeysCommand::Create(args) => create(args),
        KeysCommand::List(client) => list(&client),
        KeysCommand::Revoke(args) => revoke(&args),
    }
}

fn create(args: KeyCreateArgs) -> Result<(), Failure> {
    let now = Time::now();
    let body = CreateApiKey {
        name: args.name,
        expires_at: args.expires.map(|time| now.plus(time)),
        scopes: (!args.scope.is_empty()).then_some(args.scope),
    };
    // The gateway would name the field, which has the name of a flag of other commands.
    body.check(now).map_err(|problem| {
        let message = match problem.errors.first() {
            Some(error) if error.pointer == "#/name" => format!("the name {}", error.detail),
            Some(error) => format!("--expires {}", error.detail),
            None => problem.detail,
        };
        Failure::new(Exit::Invalid, message)
    })?;
    let mut api = ApiClient::from_args(&args.client)?;
    let created: CreatedApiKey = api.call(Method::POST, "/v1/keys", Some(&body))?;
    if args.client.output == OutputFormat::Json {
        return print::json(&created);
    }
    print::note("This key is shown only once:");
    print::line(&clean(&created.key))
}

fn list(client: &ClientFlags) -> Result<(), Failure> {
    let keys = list_all(&mut ApiClient::from_args(client)?)?;
    if client.output == OutputFormat::Json {
        return print::json(&ApiKeyList {
            keys,
            next_cursor: String::new(),
        });
    }
    let now = Time::now();
    let head = [
        "KEY",
        "NAME",
        "USER",
        "SCOPES",
        "CREATED",
        "LAST USED",
        "EXPIRES",
    ];
    print::table(head, keys.iter().map(|key| row(key, now)))
}

fn row(key: &ApiKey, now: Time) -> [String; 7] {
    let scopes = key.scopes.iter().map(|scope| scope.as_str());
    let ago = |time: Time| format!("{} ago", print::age(time));
    [
        format!("{}…", clean(&key.prefix)),
        clean(&key.name),
        clean(&key.user),
        scopes.collect::<Vec<_>>().join(","),
        ago(key.created_at),
        key.last_used_at.map_or_else(|| "never".to_owned(), ago),
        key.expires_at
            .map_or_else(|| "never".to_owned(), |end| expiry(end, now)),
    ]
}

/// Time until a key or a token expires, for people.
pub(super) fn expiry(end: Time, now: Time) -> String {
    if end <= now {
        return "expired".to_owned();
    }
    // As long ago as it is ahead.
    let mirrored = now.minus(end.since(now));
    format!("in {}", print::age(mirrored))
}

/// All keys, fetched page by page.
fn list_all(api: &mut ApiClient) -> Result<Vec<ApiKey>, Failure> {
    let (mut keys, mut path) = (Vec::new(), "/v1/keys?limit=200".to_owned());
    loop {
        let page: ApiKeyList = api.get(&path)?;
        keys.extend(page.keys);
        if page.next_cursor.is_empty() {
            return Ok(keys);
        }
        let cursor = Some(page.next_cursor.as_str());
        path = paths::with_query("/v1/keys", &[("limit", Some("200")), ("cursor", cursor)]);
    }
}

fn revoke(args: &KeyRevokeArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let keys = list_all(&mut api)?;
    let mut failures = Failures::default();
    failures.collect(&args.keys, |name| {
        let key = find(&keys, name)?;
        let path = format!("/v1/keys/{}", key.id);
        api.done(Method::DELETE, &path, None::<&()>)
    });
    failures.finish()
}

/// Key of this prefix, id or name, in that order: a name may be that of several.
fn find<'a>(keys: &'a [ApiKey], name: &str) -> Result<&'a ApiKey, Failure> {
    let exact =
        |key: &&ApiKey| key.id.to_string() == name || key.prefix == name.trim_end_matches('…');
    if let Some(key) = keys.iter().find(exact) {
        return Ok(key);
    }
    let named: Vec<&ApiKey> = keys.iter().filter(|key| key.name == name).collect();
    match named[..] {
        [key] => Ok(key),
        [] => {
            let text = format!(
                "there is no API key {:?}; list the keys with: cynode keys list",
                clean(name)
            );
            Err(Failure::new(Exit::NotFound, text))
        }
        _ => {
            let prefixes = named.iter().map(|key| clean(&key.prefix));
            let prefixes = prefixes.collect::<Vec<_>>().join(", ");
            let text = format!(
                "{} keys are named {:?}; name one of {prefixes}",
                named.len(),
                clean(name)
            );
            Err(Failure::new(Exit::Conflict, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiKeyId, api_keys::Scope};
    use std::time::Duration;

    const NOW: Time = Time::from_millis(1_790_000_000_000);

    fn key(name: &str, prefix: &str) -> ApiKey {
        ApiKey {
            id: ApiKeyId::new(),
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            user: "ann".to_owned(),
            scopes: vec![Scope::Inference, Scope::Tasks],
            created_at: NOW,
            expires_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn key_is_found_by_prefix_id_or_name() {
        let keys = [
            key("ci", "cyk_aaaaaaaa"),
            key("cyk_aaaaaaaa", "cyk_bbbbbbbb"),
            key("ci", "cyk_cccccccc"),
        ];
        let id = keys[2].id.to_string();
        for (name, expected) in [
            ("cyk_aaaaaaaa", 0),
            ("cyk_aaaaaaaa…", 0),
            ("cyk_bbbbbbbb", 1),
            (id.as_str(), 2),
        ] {
            assert_eq!(find(&keys, name).unwrap(), &keys[expected], "{name}");
        }
        let ambiguous = find(&keys, "ci").unwrap_err();
        assert_eq!(
            ambiguous.message,
            "2 keys are named \"ci\"; name one of cyk_aaaaaaaa, cyk_cccccccc"
        );
        assert!(find(&keys, "cyk_").is_err());
        assert_eq!(find(&keys[1..], "ci").unwrap(), &keys[2]);
    }

    #[test]
    fn expiry_is_shown_in_one_unit() {
        assert_eq!(expiry(NOW, NOW), "expired");
        let now = Time::now();
        let end = now.plus(Duration::from_hours(50));
        assert_eq!(expiry(end, now), "in 2d");
    }
}
