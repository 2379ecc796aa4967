//! A conversation: what the model is sent with each question, and how it is saved.

use crate::{
    exit::{Exit, Failure},
    inference::{
        MAX_REQUEST_BYTES,
        chat::{ChatRequest, Message, Role},
    },
    text::clean,
};
use serde::{Deserialize, Serialize};

/// Version of the stored form.
const VERSION: u32 = 1;

/// Questions and answers so far. Between two questions each question has its answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Conversation {
    version: u32,
    pub(super) model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system: Option<String>,
    messages: Vec<Entry>,
}

/// Message, and the model that wrote it, unless a person did; absent from what older releases have stored, too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    message: Message,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

impl Entry {
    /// Name of the author for people.
    fn author(&self) -> String {
        match (self.message.role, &self.model) {
            (Role::System, _) => "System".to_owned(),
            (Role::User, _) => "You".to_owned(),
            (Role::Assistant, Some(model)) => clean(model),
            (Role::Assistant, None) => "Assistant".to_owned(),
        }
    }
}

impl Conversation {
    pub(super) fn new(model: String, system: Option<String>) -> Self {
        Self {
            version: VERSION,
            model,
            system,
            messages: Vec::new(),
        }
    }

    /// Conversation in its stored form; `None` where another release has written another form.
    pub(super) fn from_json(bytes: &[u8]) -> Option<Self> {
        let conversation: Self = serde_json::from_slice(bytes).ok()?;
        (conversation.version == VERSION).then_some(conversation)
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(Failure::internal)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Conversation as a document for people. Its title has the model, where one wrote all answers.
    pub(super) fn to_markdown(&self) -> String {
        let answers = self.messages.iter();
        let answers = answers.filter(|entry| entry.message.role == Role::Assistant);
        let mut models: Vec<_> = answers.map(|entry| entry.model.as_ref()).collect();
        models.dedup();
        let model = match models[..] {
            [] => Some(&self.model),
            [model] => model,
            _ => None,
        };
        let mut text = match model {
            Some(model) => format!("# Chat with {}\n", clean(model)),
            None => "# Chat\n".to_owned(),
        };
        let system = self.system_message().map(|message| Entry {
            message,
            model: None,
        });
        for entry in system.iter().chain(&self.messages) {
            let (author, content) = (entry.author(), entry.message.content.trim());
            text.push_str(&format!("\n## {author}\n\n{content}\n"));
        }
        text
    }

    pub(super) fn messages(&self) -> impl DoubleEndedIterator<Item = &Message> + ExactSizeIterator {
        self.messages.iter().map(|entry| &entry.message)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Adds a question.
    pub(super) fn ask(&mut self, question: String) {
        self.push(Role::User, question);
    }

    /// Adds the answer to the last question. Without one, the question is taken back: a model that is asked again would
    /// see two in a row.
    pub(super) fn answer(&mut self, answer: String) {
        if answer.trim().is_empty() {
            self.messages.pop();
        } else {
            self.push(Role::Assistant, answer);
        }
    }

    /// Forgets all messages; the system prompt stays.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    /// Body that asks the model for the next answer.
    pub(super) fn request(&self) -> Result<Vec<u8>, Failure> {
        let system = self.system_message();
        let messages = system.iter().chain(self.messages());
        let request = ChatRequest::new(&self.model, messages);
        let body = serde_json::to_vec(&request).map_err(Failure::internal)?;
        if body.len() > MAX_REQUEST_BYTES {
            let text = "the conversation is longer than 10 MiB; begin a new one (at the prompt with /clear), or send less";
            return Err(Failure::new(Exit::Invalid, text));
        }
        Ok(body)
    }

    fn system_message(&self) -> Option<Message> {
        self.system.clone().map(|content| Message {
            role: Role::System,
            content,
        })
    }

    fn push(&mut self, role: Role, content: String) {
        let model = (role == Role::Assistant).then(|| self.model.clone());
        let message = Message { role, content };
        self.messages.push(Entry { message, model });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sent(conversation: &Conversation) -> Value {
        serde_json::from_slice(&conversation.request().unwrap()).unwrap()
    }

    #[test]
    fn request_has_system_prompt_and_history() {
        let mut conversation = Conversation::new("m".to_owned(), Some("be brief".to_owned()));
        conversation.ask("a".to_owned());
        conversation.answer("b".to_owned());
        conversation.ask("c".to_owned());
        let expected = json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true}, "messages": [
                {"role": "system", "content": "be brief"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
            ],
        });
        assert_eq!(sent(&conversation), expected);
        let body = conversation.request().unwrap();
        assert!(body.starts_with(br#"{"model":"m","stream":true"#));
        conversation.system = None;
        conversation.clear();
        assert_eq!(sent(&conversation)["messages"], json!([]));
    }

    #[test]
    fn question_without_answer_is_taken_back() {
        let mut conversation = Conversation::new("m".to_owned(), None);
        conversation.ask("a".to_owned());
        conversation.answer(" \n".to_owned());
        assert!(conversation.is_empty());
    }

    #[test]
    fn too_long_conversation_is_refused_here() {
        let mut conversation = Conversation::new("m".to_owned(), None);
        conversation.ask("x".repeat(MAX_REQUEST_BYTES));
        let failure = conversation.request().unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.contains("/clear"), "{}", failure.message);
    }

    #[test]
    fn stored_form_is_read_again() {
        let mut conversation = Conversation::new("m".to_owned(), Some("s".to_owned()));
        conversation.ask("a".to_owned());
        let stored = conversation.to_json().unwrap();
        assert_eq!(Conversation::from_json(&stored), Some(conversation));
        let newer = json!({"version": VERSION + 1, "model": "m", "messages": []});
        for damaged in [b"".as_slice(), b"{}", newer.to_string().as_bytes()] {
            assert_eq!(Conversation::from_json(damaged), None);
        }
    }

    #[test]
    fn markdown_names_each_author() {
        let mut conversation = Conversation::new("m\u{1b}".to_owned(), Some("s".to_owned()));
        conversation.ask("a\n".to_owned());
        conversation.answer("b".to_owned());
        let expected = "# Chat with m \n\n## System\n\ns\n\n## You\n\na\n\n## m \n\nb\n";
        assert_eq!(conversation.to_markdown(), expected);
        conversation.model = "n".to_owned();
        assert_eq!(conversation.to_markdown(), expected, "n wrote nothing yet");
        conversation.ask("c".to_owned());
        conversation.answer("d".to_owned());
        let text = conversation.to_markdown();
        assert!(text.starts_with("# Chat\n"), "{text}");
        assert!(
            text.ends_with("## m \n\nb\n\n## You\n\nc\n\n## n\n\nd\n"),
            "{text}"
        );
        let stored = conversation.to_json().unwrap();
        assert_eq!(Conversation::from_json(&stored), Some(conversation.clone()));
        assert_eq!(
            sent(&conversation)["messages"][2],
            json!({"role": "assistant", "content": "b"})
        );
    }

    #[test]
    fn older_form_has_no_authors() {
        let message = json!({"role": "assistant", "content": "a"});
        let stored = json!({"version": VERSION, "model": "m", "messages": [message]});
        let conversation = Conversation::from_json(stored.to_string().as_bytes()).unwrap();
        assert_eq!(conversation.to_markdown(), "# Chat\n\n## Assistant\n\na\n");
    }
}
