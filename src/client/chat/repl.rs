//! The conversation at a terminal.

use super::{
    ANSWER_TIMEOUT,
    answer::{self, Answer},
    begin,
    commands::{COMMANDS, Command, Input, SystemChange, parse},
    conversation::Conversation,
    editor::{Entered, Prompt},
    interrupt::Interrupts,
    models, note_cut,
    save::save,
    screen::{Printer, dim},
    state::State,
};
use crate::{
    cli::ChatArgs,
    client::{
        api_client::ApiClient,
        print::{self, clean, note},
    },
    exit::{Exit, Failure},
    inference::chat::Role,
    terminal::EchoOff,
};

/// Number of characters of a message that is shown again.
const MAX_SHOWN_CHARS: usize = 60;

/// A running chat.
struct Chat<'a> {
    api: &'a mut ApiClient,
    conversation: Conversation,
    prompt: Prompt<'a>,
    state: &'a State,
    /// Whether the stored conversation is that of this chat.
    is_stored: bool,
    interrupts: Interrupts,
}

/// Chats until the user leaves.
pub(super) fn run(
    api: &mut ApiClient,
    args: &ChatArgs,
    state: &State,
    earlier: Option<Conversation>,
) -> Result<(), Failure> {
    // Before the first prompt, so that a login that has ended, or a name that is mistyped, shows at once.
    let names = models::list(api)?;
    let conversation = match (earlier, args.wanted_model()) {
        (None, None) => Some(Conversation::new(models::choose(api, &names), None)),
        (earlier, _) => earlier,
    };
    let conversation = begin(api, args, conversation)?;
    models::check(&conversation.model, &names)?;
    let mut prompt = Prompt::new(state)?;
    prompt.set_models(names);
    greet(&conversation, &api.url);
    Chat {
        api,
        conversation,
        prompt,
        state,
        is_stored: args.is_continued,
        interrupts: Interrupts::listen()?,
    }
    .run()
}

fn greet(conversation: &Conversation, url: &str) {
    let model = clean(&conversation.model);
    note(&dim(&format!(
        "{model} at {url}; /help lists the commands, Ctrl-D leaves"
    )));
    let mut messages = conversation.messages().rev();
    if let Some(question) = messages.find(|message| message.role == Role::User) {
        let count = conversation.messages().len();
        let text = clean(&question.content);
        let shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
        let more = if shown.len() < text.len() { "…" } else { "" };
        note(&dim(&format!(
            "goes on after {count} messages; you asked last: {shown}{more}"
        )));
    }
}

impl Chat<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        loop {
            let input = match self.prompt.read()? {
                Entered::Text(text) => parse(&text),
                Entered::Canceled => {
                    note(&dim("Ctrl-D or /exit leaves"));
                    continue;
                }
                Entered::End => return Ok(()),
            };
            let done = match input {
                Input::Nothing => Ok(()),
                Input::Command(Command::Exit) => return Ok(()),
                Input::Command(command) => self.run_command(command),
                Input::Message(message) => self.ask(message),
                Input::Unknown(name) => {
                    note(&format!(
                        "there is no command {}; /help lists those there are, and a space before it makes it a message",
                        clean(&name)
                    ));
                    Ok(())
                }
            };
            match done {
                // The terminal is gone.
                Err(failure) if matches!(failure.exit, Exit::Code(_)) => return Err(failure),
                Err(failure) => note(&format!("error: {}", failure.message)),
                Ok(()) => {}
            }
        }
    }

    /// Asks, and prints the answer as it comes. What came of an answer that stopped is a part of the conversation, as it
    /// is of the screen.
    fn ask(&mut self, message: String) -> Result<(), Failure> {
        self.conversation.ask(message);
        let asked = self.answer();
        let text = asked.as_ref().map(|answer| answer.text.clone());
        self.conversation.answer(text.unwrap_or_default());
        self.store();
        match asked?.failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Answer to the last question, printed.
    fn answer(&mut self) -> Result<Answer, Failure> {
        let request = self.conversation.request()?;
        // Input that is typed meanwhile is for the next prompt. A terminal that can't do this is no reason to fail.
        let _echo_off = EchoOff::keeping_signals().ok();
        let call = self
            .interrupts
            .stoppable(self.api.reconnect(ANSWER_TIMEOUT));
        let mut printer = Printer::start(&self.conversation.model, false);
        let asked = answer::ask(self.api, &request, |part| printer.print(part));
        printer.end()?;
        if call.is_stopped() {
            note(&dim("[stopped]"));
            let text = asked.map(|answer| answer.text).unwrap_or_default();
            return Ok(Answer {
                text,
                ..Answer::default()
            });
        }
        let answer = asked?;
        if answer.failure.is_none() {
            note_cut(&answer);
            printer.statistics(&answer);
        }
        Ok(answer)
    }

    fn run_command(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Help => help(),
            Command::Model(None) => self.show_models(),
            Command::Model(Some(name)) => self.change_model(name),
            Command::System(change) => {
                self.change_system(change);
                Ok(())
            }
            Command::Save(name) => self.save(name.as_deref()),
            Command::Clear => self.clear(),
            // Handled by the loop.
            Command::Exit => Ok(()),
        }
    }

    /// Models as they are now, which are then known to the prompt, too.
    fn models(&mut self) -> Result<Vec<String>, Failure> {
        let call = self
            .interrupts
            .stoppable(self.api.reconnect(ANSWER_TIMEOUT));
        let names = models::list(self.api);
        if call.is_stopped() {
            return Err(Failure::new(Exit::Unreachable, "stopped"));
        }
        let names = names?;
        self.prompt.set_models(names.clone());
        Ok(names)
    }

    fn show_models(&mut self) -> Result<(), Failure> {
        for name in self.models()? {
            let mark = if name == self.conversation.model {
                "*"
            } else {
                " "
            };
            print::line(&format!("{mark} {}", clean(&name)))?;
        }
        Ok(())
    }

    fn change_model(&mut self, name: String) -> Result<(), Failure> {
        models::check(&name, &self.models()?)?;
        note(&format!("{} answers from now on", clean(&name)));
        self.conversation.model = name;
        Ok(())
    }

    fn change_system(&mut self, change: SystemChange) {
        match change {
            SystemChange::Show => {
                let shown = self.conversation.system.as_deref().map(clean);
                note(&shown.unwrap_or_else(|| {
                    "there is no system prompt; set one with /system TEXT".to_owned()
                }));
            }
            SystemChange::Set(text) => {
                self.conversation.system = Some(text);
                note("the system prompt is set");
            }
            SystemChange::Remove => {
                self.conversation.system = None;
                note("the system prompt is removed");
            }
        }
    }

    fn save(&self, name: Option<&str>) -> Result<(), Failure> {
        if self.conversation.is_empty() {
            return Err(Failure::usage("there is nothing to save yet"));
        }
        let path = save(&self.conversation, name)?;
        note(&format!("saved to {}", clean(&path.to_string_lossy())));
        Ok(())
    }

    /// Forgets the conversation, in its stored form, too. That of an earlier chat stays.
    fn clear(&mut self) -> Result<(), Failure> {
        self.conversation.clear();
        if self.is_stored {
            self.state.store(&self.conversation).map_err(|error| {
                Failure::internal(format!(
                    "this chat has forgotten the conversation, but its stored form stays: {error}"
                ))
            })?;
            self.is_stored = false;
        }
        note("a new conversation begins");
        Ok(())
    }

    fn store(&mut self) {
        if self.conversation.is_empty() {
            return;
        }
        self.is_stored = true;
        if let Err(error) = self.state.store(&self.conversation) {
            note(&format!(
                "warning: this conversation can't be continued later: {error}"
            ));
        }
    }
}

fn help() -> Result<(), Failure> {
    for (usage, effect) in COMMANDS {
        print::line(&format!("{usage:<20} {effect}"))?;
    }
    print::line(
        "Ctrl-C stops an answer. The arrow keys bring back what you typed, Ctrl-R searches it.",
    )
}
