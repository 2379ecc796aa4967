//! A blocking HTTP/1.1 client that sends exactly what a test says, also what no client should.

use super::{
    DEADLINE,
    stream::{Body, Framing, Lines, SseReader, read_head},
};
use serde_json::Value;
use std::{
    io::{self, BufReader, Read as _, Write as _},
    net::TcpStream,
};

/// An address to call, and the token to show there.
#[derive(Clone)]
pub(crate) struct Api {
    address: String,
    token: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The status code.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

/// An answer of which the head is read.
struct Opened {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

impl Api {
    /// Calls go to `host:port` or `http://host:port`, without a token.
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address
                .trim_start_matches("http://")
                .trim_end_matches('/')
                .to_owned(),
            token: None,
        }
    }

    /// The same address with this token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self {
            address: self.address.clone(),
            token: Some(token.to_owned()),
        }
    }

    /// The same address without a token.
    pub(crate) fn anonymous(&self) -> Self {
        Self {
            address: self.address.clone(),
            token: None,
        }
    }

    /// Where calls go, as `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The token that it shows.
    pub(crate) fn token(&self) -> &str {
        self.token.as_deref().unwrap()
    }

    /// GET.
    pub(crate) fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], b"")
    }

    /// POST of a JSON body.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_raw(path, body.to_string().as_bytes())
    }

    /// POST of any bytes, called JSON.
    pub(crate) fn post_raw(&self, path: &str, body: &[u8]) -> Reply {
        self.call("POST", path, &[("Content-Type", "application/json")], body)
    }

    /// POST without a body.
    pub(crate) fn act(&self, path: &str) -> Reply {
        self.call("POST", path, &[], b"")
    }

    /// Any call, read to its end.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.try_call(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path} at {}: {error}", self.address))
    }

    /// Any call; an error when nothing listens.
    pub(crate) fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let Opened {
            status,
            headers,
            body: mut stream,
        } = self.open(method, path, headers, body)?;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        Ok(Reply {
            status,
            headers,
            body,
        })
    }

    /// Opens a call whose answer is read line by line while it grows; it has to be a success.
    pub(crate) fn lines(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Lines {
        let Opened {
            status,
            body: mut stream,
            ..
        } = self.open(method, path, headers, body).unwrap();
        if status != 200 {
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            panic!("{method} {path}: {status} {text}");
        }
        Lines::new(stream)
    }

    /// Opens a stream of server-sent events, after `last` if there is one.
    pub(crate) fn events(&self, path: &str, last: Option<&str>) -> SseReader {
        let mut headers = vec![("Accept", "text/event-stream")];
        headers.extend(last.map(|id| ("Last-Event-ID", id)));
        SseReader::new(self.lines("GET", path, &headers, b""))
    }

    fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Opened> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        if let Some(token) = &self.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        // A server that refuses a large body does not read it; its answer says why.
        let _ = stream.write_all(body);
        let mut reader = BufReader::new(stream);
        let (line, headers) = read_head(&mut reader)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        let framing = if method == "HEAD" {
            Framing::Length(0)
        } else {
            Framing::of(&headers)
        };
        Ok(Opened {
            status,
            headers,
            body: Body::new(reader, framing),
        })
    }
}

impl Reply {
    /// A whole answer whose body ends with it.
    pub(crate) fn parse(answer: &[u8]) -> Self {
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(answer)));
        let head = String::from_utf8_lossy(&answer[..end]);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let fields = lines.filter_map(|line| line.split_once(':'));
        Self {
            status: status.unwrap().parse().unwrap(),
            headers: fields
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect(),
            body: answer[end + 4..].to_vec(),
        }
    }

    /// A header field's value, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Fails unless the status is this one.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The body as JSON; the status has to be this one.
    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        self.expect(status);
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{}",
            self.text()
        );
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The problem in the body: complete, of this status and kind.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, slug: &str) -> Value {
        self.expect(status);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}",
            self.text()
        );
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(
            problem["type"],
            format!("https://cynode.ai/problems/{slug}"),
            "{problem}"
        );
        assert_eq!(problem["status"], status, "{problem}");
        for field in ["title", "detail", "instance"] {
            assert!(
                problem[field].as_str().is_some_and(|text| !text.is_empty()),
                "{field} of {problem}"
            );
        }
        assert_eq!(
            problem["instance"].as_str(),
            self.header("x-request-id"),
            "the request id"
        );
        assert_eq!(
            self.header("www-authenticate"),
            (status == 401).then_some("Bearer")
        );
        let retry = self.header("retry-after").is_some();
        assert!(
            status == 503 || retry == (status == 429),
            "Retry-After goes with 429, and with 503 where it may pass"
        );
        assert_eq!(
            self.header("allow").is_some(),
            status == 405,
            "Allow goes with 405"
        );
        problem
    }
}
