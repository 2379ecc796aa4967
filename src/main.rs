//! Entry point: parses the command line and runs one role or client command.

use cynode::{
    cli::{self, Cli, Command},
    client, doctor, helpers, roles, terminal,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before the argument parser: a helper, such as PID 1 of a sandbox.
    helpers::run_if_requested();
    let Cli { log, command } = match cli::parse() {
        Ok(cli) => cli,
        Err(failure) => return client::print::failure(&failure),
    };
    if log.is_given() && !command.writes_log() {
        terminal::print_note(cli::LOG_FLAGS_NOTICE);
    }
    let outcome = match command {
        Command::Dev(args) => roles::dev(*args),
        Command::ServeOrchestrator(args) => roles::serve_orchestrator(*args),
        Command::Node(args) => roles::node(*args),
        Command::Worker(args) => roles::worker(*args),
        Command::Run(args) => client::run::run(*args),
        Command::Task(command) => client::task::task(command),
        Command::Sandbox(command) => client::sandbox::sandbox(command),
        Command::Exec(args) => client::sandbox::exec_in_task(*args),
        Command::Shell(args) => client::sandbox::shell_in_task(&args),
        Command::Artifacts(command) => client::artifacts::artifacts(command),
        Command::Images(command) => client::images::images(command),
        Command::Models(args) => client::models::models(args),
        Command::Chat(args) => client::chat::chat(&args),
        Command::Nodes(command) => client::nodes::nodes(command),
        Command::Users(command) => client::users::users(command),
        Command::Keys(command) => client::keys::keys(command),
        Command::Secrets(command) => client::secrets::secrets(command),
        Command::Usage(args) => client::usage::usage(&args),
        Command::Audit(args) => client::users::audit(&args),
        Command::Status(args) => client::nodes::status(&args),
        Command::Login(args) => client::login::login(args),
        Command::Logout(args) => client::login::logout(&args),
        Command::Whoami(args) => client::login::whoami(&args),
        Command::Passwd(args) => client::password::passwd(&args),
        Command::Backup(args) => roles::backup(&args),
        Command::Doctor(args) => doctor::doctor(*args),
        Command::Completions { shell } => client::print::completions(shell),
        Command::Version => client::print::version(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => client::print::failure(&failure),
    }
}
