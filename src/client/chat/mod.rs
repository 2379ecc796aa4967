//! `cynode chat`: a conversation with a model at a terminal, or one question.
//!
//! The conversation lives here: the gateway is sent all of it with each question, and keeps none. Answers are streamed;
//! Ctrl-C closes the connection, on which the gateway stops the model.

mod answer;
mod commands;
mod conversation;
mod editor;
mod interrupt;
mod models;
mod question;
mod repl;
mod save;
mod screen;
mod state;
#[cfg(test)]
mod tests;

use self::{answer::Answer, conversation::Conversation, screen::Printer, state::State};
use super::{
    api_client::ApiClient,
    print::{self, note},
};
use crate::{
    cli::ChatArgs,
    exit::{Exit, Failure},
    inference::chat::TokenUsage,
};
use serde::Serialize;
use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

/// Longest silence of an answer; longer than the gateway's own limit for a model, which may think for long.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(11);

/// Answer as a document for programs.
#[derive(Serialize)]
struct AnswerDocument<'a> {
    model: &'a str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning: &'a str,
    finish_reason: Option<&'a str>,
    usage: Option<TokenUsage>,
}

/// Chats, or asks one question.
pub fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let state = if args.no_history {
        State::none()
    } else {
        State::of_user()
    };
    let is_conversation = args.message.is_none()
        && !args.is_json()
        && io::stdin().is_terminal()
        && io::stdout().is_terminal();
    let earlier = if args.is_continued {
        Some(earlier(&state)?)
    } else {
        None
    };
    if is_conversation {
        return repl::run(&mut api, args, &state, earlier);
    }
    let question = question::read(args.message.as_deref())?;
    let mut conversation = begin(&mut api, args, earlier)?;
    ask_once(
        &mut api,
        &mut conversation,
        &state,
        question,
        args.is_json(),
    )
}

/// Conversation that is to go on.
fn earlier(state: &State) -> Result<Conversation, Failure> {
    let found = state.conversation().map_err(|error| {
        Failure::internal(format!("the last conversation can't be read: {error}"))
    })?;
    found.ok_or_else(|| {
        let text = "there is no conversation to continue; begin one without --continue";
        Failure::new(Exit::NotFound, text)
    })
}

/// Conversation as the flags and the earlier one say. A model that was named is not checked here: the gateway does.
fn begin(
    api: &mut ApiClient,
    args: &ChatArgs,
    earlier: Option<Conversation>,
) -> Result<Conversation, Failure> {
    let wanted = args.wanted_model().map(str::to_owned);
    let mut conversation = match (earlier, wanted) {
        (Some(mut earlier), wanted) => {
            earlier.model = wanted.unwrap_or(earlier.model);
            earlier
        }
        (None, Some(model)) => Conversation::new(model, None),
        (None, None) => {
            let names = models::list(api)?;
            Conversation::new(models::choose(api, &names), None)
        }
    };
    if let Some(system) = &args.system {
        conversation.system = Some(system.clone()).filter(|system| !system.trim().is_empty());
    }
    Ok(conversation)
}

/// Asks, and prints the answer. The end of the answer's reader, and a signal, end this process, and with it the call.
fn ask_once(
    api: &mut ApiClient,
    conversation: &mut Conversation,
    state: &State,
    question: String,
    is_json: bool,
) -> Result<(), Failure> {
    conversation.ask(question);
    api.reconnect(ANSWER_TIMEOUT);
    let mut printer = Printer::start(&conversation.model, is_json);
    let answer = answer::ask(api, &conversation.request()?, |part| printer.print(part))?;
    if is_json {
        drop(printer);
    } else {
        printer.end()?;
    }
    if let Some(failure) = answer.failure {
        return Err(failure);
    }
    conversation.answer(answer.text.clone());
    if let Err(error) = state.store(conversation) {
        note(&format!(
            "warning: this conversation can't be continued: {error}"
        ));
    }
    if is_json {
        return print_document(conversation, &answer);
    }
    note_cut(&answer);
    Ok(())
}

fn print_document(conversation: &Conversation, answer: &Answer) -> Result<(), Failure> {
    print::json(&AnswerDocument {
        model: &conversation.model,
        content: &answer.text,
        reasoning: &answer.reasoning,
        finish_reason: answer.finish_reason.as_deref(),
        usage: answer.usage,
    })
}

/// Says where the model had more to say, or said nothing.
fn note_cut(answer: &Answer) {
    if answer.finish_reason.as_deref() == Some("length") {
        note("[the answer is cut at the model's limit of tokens]");
    } else if answer.text.trim().is_empty() {
        note("[the model gave no answer]");
    }
}
