//! Text of a join token: all that a new machine needs to join an orchestrator, in one word.
//!
//! It is `cyj_` and base64url (RFC 4648, section 5, without padding) of a JSON object with short names: the version
//! `v`, the URL of the control plane `u`, the pin of its certificate `p`, if there is one, and the secret `s`, which a
//! registration shows in place of the pre-shared key. The text may come from anybody: it is checked like other input.

use super::validation::MAX_URL_BYTES;
use crate::{secrets::check_random_secret, tls::Pin};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use zeroize::Zeroizing;

/// Beginning of every join token, by which people and scanners of secrets recognize one.
pub const JOIN_PREFIX: &str = "cyj_";
/// Version of the text that this release makes, and the only one that it reads.
const VERSION: u64 = 1;
/// Longest text, in bytes: that of the longest URL, and some more.
const MAX_TEXT_BYTES: usize = 2 * MAX_URL_BYTES;

/// Join token: where a new node registers, and the secret that it shows there.
#[derive(Clone)]
pub struct JoinToken {
    /// URL of the control plane.
    pub url: String,
    /// Pin of its certificate.
    pub pin: Option<Pin>,
    /// Secret in place of the pre-shared key.
    pub secret: Zeroizing<String>,
}

/// Reason for which a text is no join token; it completes "the join token …".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinTokenError {
    /// Other text.
    #[error(
        "does not begin with cyj_; copy the whole token that cynode nodes token create printed"
    )]
    OtherText,
    /// Text that is cut off, or changed.
    #[error("is damaged; copy the whole token again, as cynode nodes token create printed it")]
    Damaged,
    /// Text of another version.
    #[error("was made by a newer cynode; update this one, or ask for the pre-shared key")]
    Newer,
}

/// Version of a text, which decides about the rest.
#[derive(Deserialize)]
struct Envelope {
    v: u64,
}

/// Content of a text that is read.
#[derive(Deserialize)]
struct Content {
    u: String,
    #[serde(default)]
    p: Option<String>,
    s: String,
}

/// Content of a text that is made.
#[derive(Serialize)]
struct ContentRef<'a> {
    v: u64,
    u: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<String>,
    s: &'a str,
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let encoded = text.trim().strip_prefix(JOIN_PREFIX);
        let encoded = encoded.ok_or(JoinTokenError::OtherText)?;
        if encoded.len() > MAX_TEXT_BYTES {
            return Err(JoinTokenError::Damaged);
        }
        let json = URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new);
        let json = json.map_err(|_| JoinTokenError::Damaged)?;
        let version = serde_json::from_slice::<Envelope>(&json);
        if version.map_err(|_| JoinTokenError::Damaged)?.v != VERSION {
            return Err(JoinTokenError::Newer);
        }
        let content = serde_json::from_slice::<Content>(&json);
        let Content { u: url, p, s } = content.map_err(|_| JoinTokenError::Damaged)?;
        let secret = Zeroizing::new(s);
        let is_url = (1..=MAX_URL_BYTES).contains(&url.len())
            && url.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_url || check_random_secret(&secret).is_err() {
            return Err(JoinTokenError::Damaged);
        }
        let pin = p.map(|pin| pin.parse::<Pin>()).transpose();
        Ok(Self {
            url,
            pin: pin.map_err(|_| JoinTokenError::Damaged)?,
            secret,
        })
    }
}

// The text holds the secret: it is for the one person who asked for the token.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = ContentRef {
            v: VERSION,
            u: &self.url,
            p: self.pin.as_ref().map(Pin::to_string),
            s: &self.secret,
        };
        let json = serde_json::to_vec(&content).map(Zeroizing::new);
        let json = json.map_err(|_| fmt::Error)?;
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(json.as_slice()));
        write!(f, "{JOIN_PREFIX}{}", encoded.as_str())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("url", &self.url)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::random_secret;
    use proptest::prelude::*;
    use serde_json::json;

    const URL: &str = "http://192.168.1.5:12082";

    fn token(pin: Option<&str>) -> JoinToken {
        JoinToken {
            url: URL.to_owned(),
            pin: pin.map(|pin| pin.parse().unwrap()),
            secret: random_secret(),
        }
    }

    fn encoded(content: &serde_json::Value) -> String {
        format!(
            "{JOIN_PREFIX}{}",
            URL_SAFE_NO_PAD.encode(content.to_string())
        )
    }

    fn error(text: &str) -> JoinTokenError {
        text.parse::<JoinToken>().unwrap_err()
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = token(None);
        let shown = format!("{token:?}");
        assert!(shown.contains(URL), "{shown}");
        assert!(!shown.contains(token.secret.as_str()), "{shown}");
        assert!(!shown.contains(&token.to_string()), "{shown}");
    }

    #[test]
    fn text_is_one_word_of_shell() {
        let pin = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let text = token(Some(&pin)).to_string();
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        assert!(text.bytes().all(is_plain), "{text}");
        assert!(text.len() < 400, "{text}");
        let read: JoinToken = format!(" {text}\n").parse().unwrap();
        assert_eq!(read.pin.unwrap().to_string(), pin);
    }

    #[test]
    fn hostile_texts_are_refused() {
        let (damaged, secret) = (JoinTokenError::Damaged, "s".repeat(43));
        for text in ["", "cyk_x", "http://box:1", "CYJ_e30"] {
            assert_eq!(error(text), JoinTokenError::OtherText, "{text}");
        }
        let good = json!({"v": 1, "u": URL, "s": secret});
        assert_eq!(encoded(&good).parse::<JoinToken>().unwrap().url, URL);
        for text in ["cyj_", "cyj_é", "cyj_e30=", "cyj_e30", "cyj_bnVsbA"] {
            assert_eq!(error(text), damaged, "{text}");
        }
        assert_eq!(error(&format!("cyj_{}", "A".repeat(1 << 20))), damaged);
        for (field, value) in [
            ("u", json!("")),
            ("u", json!("http://box:1/\u{1b}[2J")),
            ("u", json!(format!("http://box/{}", "x".repeat(3000)))),
            ("u", json!(7)),
            ("p", json!("sha256:0")),
            ("s", json!("short")),
            ("s", json!("\n".repeat(43))),
            ("v", json!("1")),
            ("v", json!(null)),
        ] {
            let mut content = good.clone();
            content[field] = value;
            assert_eq!(error(&encoded(&content)), damaged, "{content}");
        }
        let newer = json!({"v": 2, "url": {"host": "box"}});
        assert_eq!(error(&encoded(&newer)), JoinTokenError::Newer);
    }

    proptest! {
        #[test]
        fn token_is_read_as_written(url in "[!-~]{1,300}", pin in proptest::option::of("[0-9a-f]{64}")) {
            let pin = pin.map(|digits| format!("sha256:{digits}"));
            let token = JoinToken { url, ..token(pin.as_deref()) };
            let read: JoinToken = token.to_string().parse().unwrap();
            prop_assert_eq!(&read.url, &token.url);
            prop_assert_eq!(&read.pin, &token.pin);
            prop_assert_eq!(read.secret.as_str(), token.secret.as_str());
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{JOIN_PREFIX}{text}").parse::<JoinToken>();
            let _ = format!("{JOIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)).parse::<JoinToken>();
        }
    }
}
