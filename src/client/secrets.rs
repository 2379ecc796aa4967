//! `cynode secrets …`.

use super::{
    api_client::{ApiClient, Payload, read_json},
    connection, many, paths,
    print::{self, clean},
};
use crate::{
    api::secrets::{
        MAX_SECRET_BYTES, MIN_MASKED_BYTES, RotatedKey, SecretList, SecretName, SecretOwner,
        SecretView, check_value,
    },
    cli::{ClientFlags, OutputFormat, SecretRmArgs, SecretSetArgs, SecretsCommand},
    exit::{Exit, Failure},
    http::query::encode,
    secrets::exposure_warning,
    terminal,
};
use http::Method;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};
use zeroize::Zeroizing;

const PATH: &str = "/v1/secrets";

/// Runs a subcommand of `cynode secrets`.
pub fn secrets(command: SecretsCommand) -> Result<(), Failure> {
    match command {
        SecretsCommand::Set(args) => set(&args),
        SecretsCommand::List(client) => list(&client),
        SecretsCommand::Rm(args) => remove(&args),
        SecretsCommand::RotateKey(client) => rotate_key(&client),
    }
}

fn set(args: &SecretSetArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    connection::warn_if_exposed(&api.url, "the secret");
    if let Some(warning) = args.from_file.as_deref().and_then(exposure_warning) {
        print::note(&format!("warning: {warning}"));
    }
    let value = value(&args.name, args.from_file.as_deref())?;
    // The gateway would answer that, too, but the value would have been sent.
    check_value(&value).map_err(|problem| Failure::new(Exit::Invalid, problem.detail))?;
    let body = Payload::Bytes(&value, "application/octet-stream");
    let path = path(args.name.as_str(), args.owner);
    let answer = api.exchange(&Method::PUT, &path, &[], body)?;
    let secret: SecretView = read_json(api.check_status(answer)?)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&secret);
    }
    let name = &args.name;
    if value.len() < MIN_MASKED_BYTES {
        print::note(&format!(
            "warning: values shorter than {MIN_MASKED_BYTES} bytes are not masked in output"
        ));
    }
    print::note(&format!(
        "Stored. Give it to a task as the variable {name}: cynode run --secret {name} …"
    ));
    Ok(())
}

/// Path of a secret.
fn path(name: &str, owner: SecretOwner) -> String {
    // A name that is not valid is refused by the gateway.
    let path = format!("{PATH}/{}", encode(name));
    match owner {
        SecretOwner::Me => path,
        SecretOwner::Everyone => paths::with_query(&path, &[("for", Some(owner.as_str()))]),
    }
}

/// Value from a file, or from a prompt.
fn value(name: &SecretName, file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let Some(file) = file else {
        if !terminal::is_interactive() {
            return Err(Failure::usage(
                "there is no terminal to ask at; use --from-file FILE, or --from-file - for stdin",
            ));
        }
        let typed = terminal::ask_secret_line(&format!("Value of {name}: "))?;
        let typed = typed.ok_or_else(|| {
            Failure::usage(
                "the value has several lines, and the prompt takes one; use --from-file FILE, or --from-file - for stdin",
            )
        })?;
        return Ok(Zeroizing::new(typed.as_bytes().to_vec()));
    };
    let read = if file == Path::new("-") {
        read_value(io::stdin().lock())
    } else {
        File::open(file).and_then(read_value)
    };
    read.map_err(|error| Failure::usage(format!("--from-file {}: {error}", file.display())))
}

/// Reads a value: all of it, up to what is one byte too long. The end of its only line is not a part of it.
fn read_value(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // With room for all, so that no copy is left behind by a growing buffer.
    let most = MAX_SECRET_BYTES + 3;
    let mut value = Zeroizing::new(Vec::with_capacity(most + 1));
    from.take(most as u64).read_to_end(&mut value)?;
    let line = value.strip_suffix(b"\n").unwrap_or(&value);
    if !line.contains(&b'\n') {
        let length = line.strip_suffix(b"\r").unwrap_or(line).len();
        value.truncate(length);
    }
    Ok(value)
}

fn list(client: &ClientFlags) -> Result<(), Failure> {
    let list: SecretList = ApiClient::from_args(client)?.get(PATH)?;
    if client.output == OutputFormat::Json {
        return print::json(&list);
    }
    let head = ["NAME", "FOR", "SET BY", "SET"];
    print::table(head, list.secrets.iter().map(row))
}

fn row(secret: &SecretView) -> [String; 4] {
    let owner = if secret.shared {
        SecretOwner::Everyone
    } else {
        SecretOwner::Me
    };
    [
        secret.name.to_string(),
        owner.as_str().to_owned(),
        clean(&secret.set_by),
        format!("{} ago", print::age(secret.updated_at)),
    ]
}

fn remove(args: &SecretRmArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let (output, owner) = (args.client.output, args.owner);
    many::delete(&mut api, output, &args.names, "removed", |name| {
        path(name, owner)
    })
}

fn rotate_key(client: &ClientFlags) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(client)?;
    let rotated: RotatedKey = api.call(Method::POST, "/v1/secrets:rotate-key", None::<&()>)?;
    if client.output == OutputFormat::Json {
        return print::json(&rotated);
    }
    print::note(&format!(
        "Encrypted {} with a new key. Make a new backup: earlier ones need the keys of their time.",
        number_of_secrets(rotated.secrets)
    ));
    if rotated.unreadable > 0 {
        print::note(&format!(
            "{} can't be decrypted with any key of the orchestrator: add the lines of keys/secrets.key in a backup to that file and restart it, or have their users set them again.",
            number_of_secrets(rotated.unreadable)
        ));
    }
    Ok(())
}

fn number_of_secrets(count: u32) -> String {
    match count {
        1 => "1 secret".to_owned(),
        count => format!("{count} secrets"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_only_line_is_left_out() {
        for (text, value) in [
            ("token", "token"),
            ("token\n", "token"),
            ("token\r\n", "token"),
            ("one\ntwo\n", "one\ntwo\n"),
            ("\n", ""),
            ("", ""),
        ] {
            let read = read_value(text.as_bytes()).unwrap();
            assert_eq!(read.as_slice(), value.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn value_that_is_too_long_is_noticed() {
        let longest = "x".repeat(MAX_SECRET_BYTES);
        for (end, is_valid) in [("", true), ("\r\n", true), ("x", false), ("xxxxx", false)] {
            let read = read_value(format!("{longest}{end}").as_bytes()).unwrap();
            assert_eq!(check_value(&read).is_ok(), is_valid, "{end:?}");
        }
    }

    #[test]
    fn path_names_owner_and_no_other_call() {
        assert_eq!(path("A", SecretOwner::Me), "/v1/secrets/A");
        assert_eq!(
            path("A", SecretOwner::Everyone),
            "/v1/secrets/A?for=everyone"
        );
        assert_eq!(path("a/b?c", SecretOwner::Me), "/v1/secrets/a%2Fb%3Fc");
    }
}
