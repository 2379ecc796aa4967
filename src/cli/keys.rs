//! Arguments of `cynode keys` and `cynode usage`.

use super::{ClientFlags, parse_duration};
use crate::api::{
    api_keys::Scope,
    usage::{Day, UsageFields},
};
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum KeysCommand {
    /// Create an API key and show it once
    ///
    /// Programs send it as Authorization: Bearer KEY or as x-api-key: KEY. CYNODE_TOKEN=KEY makes this client use it.
    Create(KeyCreateArgs),
    /// List API keys with their last use (admins: those of all users)
    List(ClientFlags),
    /// Revoke API keys immediately, streams under way included
    Revoke(KeyRevokeArgs),
}

#[derive(Args, Debug)]
pub struct KeyCreateArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name for the key, such as the program that uses it
    pub name: String,
    /// What the key may be used for: inference, tasks, sandboxes or all; repeatable [default: all]
    #[arg(long, value_name = "SCOPE", value_parser = parse_scope)]
    pub scope: Vec<Scope>,
    /// Let the key expire after this time, such as 12h or 90d [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub expires: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct KeyRevokeArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Prefixes of the keys as the list shows them, their names or ids
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
}

#[derive(Args, Debug)]
pub struct UsageArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// First day, such as 2026-01-31, in UTC [default: 29 days before the last]
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    pub since: Option<Day>,
    /// Last day, in UTC [default: today]
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    pub until: Option<Day>,
    /// Sum up by these: day, user, key, task, model; separated by commas
    #[arg(long, value_name = "FIELDS", default_value = "user,key,model", value_parser = parse_fields)]
    pub by: UsageFields,
    /// Show only the use by this user (admins)
    #[arg(long, value_name = "HANDLE")]
    pub user: Option<String>,
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    text.parse()
        .map_err(|_| "expected inference, tasks, sandboxes or all".to_owned())
}

fn parse_day(text: &str) -> Result<Day, String> {
    text.parse()
        .map_err(|()| "expected a day such as 2026-01-31".to_owned())
}

fn parse_fields(text: &str) -> Result<UsageFields, String> {
    text.parse()
        .map_err(|()| format!("expected {}", UsageFields::EXPECTED))
}
