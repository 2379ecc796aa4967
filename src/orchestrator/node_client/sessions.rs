//! Calls about a sandbox at its node: renew, and all those that pass as they come.

use super::{NodeCallError, NodeClient, SILENCE_TIMEOUT};
use crate::{
    api::{
        INSTANCE_HEADER, JobId,
        sandboxes::{RenewSandbox, SessionState},
    },
    http::client::{Call, CallBody, CallError},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Incoming;
use tokio::time::timeout;

/// Call below `/v1/worker/sessions/{job}/`.
pub(in crate::orchestrator) struct SessionCall {
    pub(in crate::orchestrator) method: Method,
    /// Job whose sandbox it is about.
    pub(in crate::orchestrator) job: JobId,
    /// Path below the sandbox, with its query.
    pub(in crate::orchestrator) path: String,
    /// Headers that pass.
    pub(in crate::orchestrator) headers: HeaderMap,
}

impl<'a> NodeClient<'a> {
    /// Gives a sandbox a new lifetime.
    pub(in crate::orchestrator) async fn renew_session(
        &self,
        job: JobId,
        renew: RenewSandbox,
    ) -> Result<SessionState, NodeCallError> {
        let path = format!("sessions/{job}/renew");
        let request = |call: Call<'a>| {
            let call = call.json(&renew);
            async { Ok(call.receive::<SessionState>().await?) }
        };
        let renewed = timeout(SILENCE_TIMEOUT, self.call_to(Method::POST, &path, request));
        let renewed = renewed.await;
        renewed
            .unwrap_or_else(|_| Err(CallError::timed_out(&self.base_url, SILENCE_TIMEOUT).into()))
    }

    /// Passes a call on, and receives the head of an answer of any status. There is no timeout; dropping the answer ends
    /// the call at the node.
    pub(in crate::orchestrator) async fn pass(
        &self,
        call: SessionCall,
        body: CallBody,
    ) -> Result<http::Response<Incoming>, CallError> {
        let token = self.accepted_token(call.job).await?;
        let SessionCall {
            method,
            job,
            path,
            headers,
        } = call;
        let mut request = http::Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        self.forward(&format!("sessions/{job}/{path}"), token, request)
            .await
    }

    /// Sends a request to a path below `/v1/worker/` with this token, and receives the head of an answer of any status.
    pub(super) async fn forward(
        &self,
        path: &str,
        token: &str,
        mut request: http::Request<CallBody>,
    ) -> Result<http::Response<Incoming>, CallError> {
        let url = format!("{}/v1/worker/{path}", self.base_url);
        let mut authorize = || {
            let bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
            let instance = HeaderValue::try_from(self.instance)?;
            *request.uri_mut() = Uri::try_from(&url)?;
            let headers = request.headers_mut();
            headers.insert(header::AUTHORIZATION, bearer);
            headers.insert(INSTANCE_HEADER, instance);
            Ok(())
        };
        authorize().map_err(|error: http::Error| CallError::Malformed {
            reason: error.to_string(),
            // The query may be a command line, and this reaches the log.
            url: url.split('?').next().unwrap_or_default().to_owned(),
        })?;
        self.client.forward(request).await
    }

    /// Token that the node accepts. The body of a call that passes can't be sent twice, so a node that may not know its
    /// newest token yet is asked first.
    async fn accepted_token(&self, job: JobId) -> Result<&str, CallError> {
        let newest = &self.tokens.newest;
        let Some(applied) = &self.tokens.applied else {
            return Ok(newest);
        };
        let call = self.authorized_call_to(Method::GET, &format!("sessions/{job}"), newest);
        let answer = call.probe(SILENCE_TIMEOUT).await?;
        Ok(match answer.status {
            StatusCode::UNAUTHORIZED => applied,
            _ => newest,
        })
    }
}
