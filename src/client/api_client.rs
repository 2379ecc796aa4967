//! Client of the User API, with the login that belongs to it.

mod send;
mod trust;

pub(super) use send::Payload;

use super::{
    agent::agent,
    credentials::{self, Credentials, not_logged_in},
    flags::in_flags,
    print::clean,
    warnings,
};
use crate::{
    api::{
        auth::{Refresh, Tokens},
        problem::ProblemBody,
        warning::WithWarnings,
    },
    cli::ClientFlags,
    exit::{Exit, Failure},
    http::{MAX_BODY_BYTES, request::parse_json},
    inference::chat::error_of,
    tls::Trust,
};
use http::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use std::{io::Read, time::Duration};
use trust::{needs_known_key, trust_in};
use ureq::{Agent, Body};

const DEFAULT_URL: &str = "http://127.0.0.1:12080";
/// Time without a byte after which a connection counts as dead, as after a laptop's sleep.
const READ_TIMEOUT: Duration = Duration::from_secs(45);
/// Time for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest error of an answer, in bytes.
const MAX_ERROR_BYTES: u64 = 64 * 1024;

/// Client of one gateway.
#[derive(Clone)]
pub(super) struct ApiClient {
    agent: Agent,
    trust: Trust,
    pub(super) url: String,
    /// Token of `CYNODE_TOKEN`, which stands in for a login.
    fixed_token: Option<String>,
    access_token: Option<String>,
}

impl ApiClient {
    /// Client of the gateway that the flags, the environment or the last login name, in this order.
    pub(super) fn from_args(client: &ClientFlags) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let fixed_token = variable("CYNODE_TOKEN").or_else(|| variable("CYNORK_TOKEN"));
        let named = client
            .gateway_url
            .clone()
            .or_else(|| variable("CYNORK_GATEWAY_URL"));
        // With a token and a gateway there is no need for a login, nor for a directory to keep one. What is remembered
        // of the gateway's key counts all the same.
        let credentials = match (&fixed_token, &named) {
            (Some(_), Some(url)) if needs_known_key(url, &client.trust) => Credentials {
                servers: credentials::known_servers()?,
                ..Credentials::default()
            },
            (Some(_), Some(_)) => Credentials::default(),
            _ => credentials::load()?,
        };
        let url = named
            .or(credentials.current)
            .unwrap_or_else(|| DEFAULT_URL.to_owned());
        let url = url.trim_end_matches('/').to_owned();
        crate::api::nodes::check_url("", &url).map_err(|problem| {
            Failure::usage(format!("the gateway URL {url:?} {}", problem.detail))
        })?;
        let trust = trust_in(&url, &client.trust, &credentials.servers)?;
        let access_token = credentials
            .logins
            .get(&url)
            .map(|login| login.access_token.clone());
        Ok(Self {
            // The gateway sends a keep-alive at least every 15 s on a stream.
            agent: agent(&trust, ANSWER_TIMEOUT, READ_TIMEOUT),
            trust,
            url,
            fixed_token,
            access_token,
        })
    }

    /// Client of a test's own gateway.
    #[cfg(test)]
    pub(super) fn of_test(url: String) -> Self {
        Self {
            agent: agent(&Trust::default(), ANSWER_TIMEOUT, READ_TIMEOUT),
            trust: Trust::default(),
            url,
            fixed_token: Some("token".to_owned()),
            access_token: None,
        }
    }

    /// Same client for a call whose answer may take as long as `limit`.
    pub(super) fn with_patience(&self, limit: Duration) -> Self {
        Self {
            agent: agent(&self.trust, limit, limit),
            ..self.clone()
        }
    }

    /// Gives this client new connections, with `limit` for the head of an answer and between two pieces of it. Another
    /// thread ends the calls that use them, at once, by [`Agent::shutdown`] of the returned agent.
    pub(super) fn reconnect(&mut self, limit: Duration) -> Agent {
        self.agent = agent(&self.trust, limit, limit);
        self.agent.clone()
    }

    /// Token for a call of another protocol, as valid as the last call left it.
    pub(super) fn token(&self) -> Option<&str> {
        self.fixed_token.as_deref().or(self.access_token.as_deref())
    }

    /// Whether `CYNODE_TOKEN` stands in for a login.
    pub(super) fn has_fixed_token(&self) -> bool {
        self.fixed_token.is_some()
    }

    /// Calls without a login; reads the answer as JSON.
    pub(super) fn call_anonymous<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = to_bytes(body)?;
        read_json(self.check_status(self.send(
            &method,
            path,
            None,
            &[],
            Payload::json(body.as_deref()),
        )?)?)
    }

    /// Calls as the user; reads the answer as JSON.
    pub(super) fn call<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = to_bytes(body)?;
        read_json(self.send_authenticated(&method, path, &[], Payload::json(body.as_deref()))?)
    }

    /// Calls as the user; any successful answer will do.
    pub(super) fn done(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), Failure> {
        let body = to_bytes(body)?;
        self.send_authenticated(&method, path, &[], Payload::json(body.as_deref()))
            .map(drop)
    }

    /// Sends a GET as the user; reads the answer as JSON.
    pub(super) fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, None::<&()>)
    }

    /// Sends a GET with additional headers as the user; returns the body as it arrives.
    pub(super) fn stream(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<impl std::io::Read + use<>, Failure> {
        Ok(self
            .send_authenticated(&Method::GET, path, headers, Payload::None)?
            .into_body()
            .into_reader())
    }

    /// Readiness by `/readyz`: the inner `Err` is the reason where the orchestrator is not ready.
    pub(super) fn readiness(&self) -> Result<Result<(), String>, Failure> {
        let mut answer = self.send(&Method::GET, "/readyz", None, &[], Payload::None)?;
        if answer.status().is_success() {
            return Ok(Ok(()));
        }
        let problem = read_problem(answer.body_mut());
        Ok(Err(problem.map_or_else(
            || answer.status().to_string(),
            |problem| problem.detail,
        )))
    }

    /// Calls as the user; fails unless the answer is a success. A body that is read once is sent once: with a token
    /// that has expired meanwhile, such a call fails.
    fn send_authenticated(
        &mut self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Payload<'_>,
    ) -> Result<http::Response<Body>, Failure> {
        let answer = self.exchange(method, path, headers, body)?;
        self.check_status(answer)
    }

    /// Calls as the user; returns any answer but one about the login.
    pub(super) fn exchange(
        &mut self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        mut body: Payload<'_>,
    ) -> Result<http::Response<Body>, Failure> {
        if let Some(token) = &self.fixed_token {
            let answer = self.send(method, path, Some(token), headers, body)?;
            if answer.status() == 401 {
                let text = "the token in CYNODE_TOKEN is invalid or has expired; set another one, or unset it and log in";
                return Err(Failure::new(Exit::NotAllowed, text));
            }
            return Ok(answer);
        }
        let token = self
            .access_token
            .clone()
            .ok_or_else(|| not_logged_in(&self.url))?;
        let answer = self.send(method, path, Some(&token), headers, body.reborrow())?;
        if answer.status() != 401 {
            return Ok(answer);
        }
        let renewed = credentials::renew(&self.url, &token, |refresh_token| {
            let refresh_token = refresh_token.to_owned();
            let body = to_bytes(Some(&Refresh { refresh_token }))?;
            let body = Payload::json(body.as_deref());
            let answer = self.send(&Method::POST, "/v1/auth/refresh", None, &[], body)?;
            Ok(self.check_status(answer).and_then(read_json::<Tokens>))
        })?;
        self.access_token = Some(renewed.access_token.clone());
        self.send(method, path, Some(&renewed.access_token), headers, body)
    }

    /// A successful answer; else the failure, in terms of the command line. Calls of models have the errors of their API.
    pub(super) fn check_status(
        &self,
        mut answer: http::Response<Body>,
    ) -> Result<http::Response<Body>, Failure> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        let body = read_error(answer.body_mut());
        let message = match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(problem) if answer.status().is_server_error() => {
                format!("{} (request {})", problem.detail, problem.instance)
            }
            Ok(problem) => in_flags(&problem),
            Err(_) => error_of(&body).unwrap_or_else(|| {
                format!(
                    "{} answered {}; check that this is a cynode orchestrator",
                    self.url,
                    answer.status()
                )
            }),
        };
        let message = clean(&message);
        Err(Failure::new(exit_of(answer.status()), message))
    }
}

/// Exit code for an answer that is not a success.
pub(super) fn exit_of(status: StatusCode) -> Exit {
    match status.as_u16() {
        401 | 403 => Exit::NotAllowed,
        404 => Exit::NotFound,
        409 | 410 => Exit::Conflict,
        400..=499 => Exit::Invalid,
        _ => Exit::Internal,
    }
}

fn to_bytes(body: Option<&impl Serialize>) -> Result<Option<Vec<u8>>, Failure> {
    body.map(serde_json::to_vec)
        .transpose()
        .map_err(Failure::internal)
}

/// Reads an answer as JSON, and shows its warnings.
pub(super) fn read_json<T: DeserializeOwned>(answer: http::Response<Body>) -> Result<T, Failure> {
    let mut bytes = Vec::new();
    answer
        .into_body()
        .into_reader()
        .take(MAX_BODY_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            Failure::new(Exit::Unreachable, format!("the answer broke off: {error}"))
        })?;
    let WithWarnings { warnings } = serde_json::from_slice(&bytes).unwrap_or_default();
    warnings::show(warnings);
    parse_json(&bytes).map_err(|problem| {
        Failure::internal(format!(
            "the orchestrator sent an answer that this cynode does not understand: {}",
            problem.detail
        ))
    })
}

pub(super) fn read_problem(body: &mut Body) -> Option<ProblemBody> {
    serde_json::from_slice(&read_error(body)).ok()
}

/// Body of an error, as far as it comes.
fn read_error(body: &mut Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = body
        .as_reader()
        .take(MAX_ERROR_BYTES)
        .read_to_end(&mut bytes);
    // A part of it is no document, and reads as an answer that is none of an orchestrator.
    read.map_or_else(|_| Vec::new(), |_| bytes)
}
