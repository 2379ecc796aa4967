//! Use of models, as sums.

use super::{AppState, authenticate, page_size};
use crate::{
    api::{
        api_keys::Scope,
        problem::{Problem, ProblemKind},
        time::Time,
        usage::{Day, UsageFields},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::usage,
    store::{MAX_OFFSET, UsageFilter},
};
use std::sync::Arc;

/// Size of a page of sums where the caller gives none.
pub(super) const DEFAULT_PAGE_SIZE: u32 = 50;
/// Number of days where the caller names no first one.
pub(super) const DEFAULT_DAYS: u32 = 30;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::Scope(Scope::All)).await?;
    let expected = "a day such as 2026-01-31";
    let until = request.query_as("until", expected)?;
    let until = until.unwrap_or_else(|| Day::of(Time::now()));
    let since = request.query_as("since", expected)?;
    let since = since.unwrap_or_else(|| until.minus_days(DEFAULT_DAYS - 1));
    if since > until {
        let detail = format!("query parameter `since` must not be after `until` ({until})");
        return Err(Problem::new(ProblemKind::InvalidRequest, detail).into());
    }
    let by: Option<UsageFields> = request.query_as("by", UsageFields::EXPECTED)?;
    let filter = UsageFilter {
        owner: None,
        handle: request.query("user"),
        since,
        until,
        by: by.unwrap_or_default().0,
        offset: offset(&request)?,
        limit: page_size(&request, DEFAULT_PAGE_SIZE)?,
    };
    response::ok(&usage::list(&state, &caller, filter).await?)
}

/// Number of sums before this page: the cursor of a list that is sorted by names.
fn offset(request: &Request) -> Result<u32, Problem> {
    if request.query("cursor").is_some_and(|text| text.is_empty()) {
        return Ok(0);
    }
    let expected = "the next_cursor of an earlier answer";
    let offset = request.query_if("cursor", expected, |offset| *offset <= MAX_OFFSET)?;
    Ok(offset.unwrap_or(0))
}
