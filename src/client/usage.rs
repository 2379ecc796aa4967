//! `cynode usage`: requests to models and their tokens, as sums.

use super::{
    api_client::ApiClient,
    paths,
    print::{self, clean},
};
use crate::{
    api::usage::{Day, Usage, UsageField, UsageSum},
    cli::{OutputFormat, UsageArgs},
    exit::Failure,
};

/// Shows the use of models.
pub fn usage(args: &UsageArgs) -> Result<(), Failure> {
    let usage = fetch(args)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&usage);
    }
    let fields = &args.by.0;
    let mut head: Vec<&str> = fields.iter().map(|field| title(*field)).collect();
    head.extend(["REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS"]);
    let row = |sum: &UsageSum| {
        let names = fields.iter().map(|field| clean(&name(sum, *field)));
        let counts = [sum.requests, sum.prompt_tokens, sum.completion_tokens];
        names.chain(counts.map(|count| count.to_string())).collect()
    };
    let mut rows: Vec<Vec<String>> = usage.usage.iter().map(row).collect();
    if rows.len() > 1 {
        let mut total = row(&total(&usage.usage));
        for cell in &mut total[..fields.len()] {
            cell.clear();
        }
        "total".clone_into(&mut total[0]);
        rows.push(total);
    }
    print::note(&format!("{} to {}", usage.since, usage.until));
    print::wide_table(&head, rows)
}

/// All sums, fetched page by page.
fn fetch(args: &UsageArgs) -> Result<Usage, Failure> {
    let names: Vec<&str> = args.by.0.iter().map(|field| field.as_str()).collect();
    let day = |day: Option<Day>| day.map(|day| day.to_string());
    let (by, since, until) = (names.join(","), day(args.since), day(args.until));
    let mut api = ApiClient::from_args(&args.client)?;
    let mut all: Option<Usage> = None;
    loop {
        let cursor = all.as_ref().map(|all| all.next_cursor.as_str());
        let path = paths::with_query(
            "/v1/usage",
            &[
                ("by", Some(&by)),
                ("since", since.as_deref()),
                ("until", until.as_deref()),
                ("user", args.user.as_deref()),
                ("limit", Some("200")),
                ("cursor", cursor),
            ],
        );
        let mut page: Usage = api.get(&path)?;
        if let Some(all) = all {
            page.usage.splice(0..0, all.usage);
        }
        if page.next_cursor.is_empty() {
            return Ok(page);
        }
        all = Some(page);
    }
}

fn title(field: UsageField) -> &'static str {
    match field {
        UsageField::Day => "DAY",
        UsageField::User => "USER",
        UsageField::Key => "KEY",
        UsageField::Task => "TASK",
        UsageField::Model => "MODEL",
    }
}

/// Value of a field; `-` where the requests had none.
fn name(sum: &UsageSum, field: UsageField) -> String {
    let name = match field {
        UsageField::Day => sum.day.map(|day| day.to_string()),
        UsageField::User => sum.user.clone(),
        UsageField::Key => sum.key_name.clone(),
        UsageField::Task => sum.task_id.map(|id| id.to_string()),
        UsageField::Model => sum.model.clone(),
    };
    name.unwrap_or_else(|| "-".to_owned())
}

fn total(sums: &[UsageSum]) -> UsageSum {
    let total = |count: fn(&UsageSum) -> u64| sums.iter().map(count).fold(0, u64::saturating_add);
    UsageSum {
        requests: total(|sum| sum.requests),
        prompt_tokens: total(|sum| sum.prompt_tokens),
        completion_tokens: total(|sum| sum.completion_tokens),
        ..UsageSum::default()
    }
}
