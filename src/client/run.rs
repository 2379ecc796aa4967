//! `cynode run`: a command in a sandbox, as if it ran here.

use super::{
    api_client::ApiClient,
    follow::{FollowMode, follow},
    input::StdinWarning,
    print, task,
};
use crate::{
    api::tasks::{CreateTask, Task},
    cli::{OutputFormat, RunArgs},
    exit::Failure,
};
use http::Method;
use std::sync::mpsc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Creates the task, prints what it prints, and ends as it ends. The first Ctrl-C cancels it, the
/// second leaves it alone.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.client)?;
    let output = args.client.output;
    let create = CreateTask {
        command: Some(args.command),
        ..task::options(args.sandbox)?
    };
    let mut input = StdinWarning::default();
    if args.detach {
        let task: Task = gateway.call(Method::POST, "/v1/tasks", Some(&create))?;
        input.check();
        return match output {
            OutputFormat::Json => print::json(&task),
            OutputFormat::Text => print::line(&task.id.to_string()),
        };
    }
    // Before the task exists, so that no signal falls between its creation and the listening.
    let created = cancel_on_signal(gateway.clone())?;
    let task: Task = gateway.call(Method::POST, "/v1/tasks", Some(&create))?;
    let id = task.id.to_string();
    // The other end goes only with this process.
    let _ = created.send(id.clone());
    input.check();
    let show = match output {
        OutputFormat::Json => FollowMode::Progress,
        OutputFormat::Text => FollowMode::Output,
    };
    let ended = follow(&mut gateway, &id, show);
    input.check();
    if let Err(failure) = &ended
        && failure.message.is_empty()
    {
        // Nobody reads the output any more, so nobody wants the rest of it.
        task::cancel_task(&mut gateway, &id)?;
    }
    let ended = ended.map_err(|failure| match failure.message.as_str() {
        "" => failure,
        message => {
            let text =
                format!("{message}\nThe task goes on; see it again with: cynode task wait {id}");
            Failure::new(failure.exit, text)
        }
    });
    task::finish(&mut gateway, &id, &ended?, output)
}

/// Listens for signals in the background; wants to be told the task's id once there is one.
fn cancel_on_signal(mut gateway: ApiClient) -> Result<mpsc::Sender<String>, Failure> {
    let (created, id) = mpsc::channel::<String>();
    let (first, orders) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    std::thread::spawn(move || runtime.block_on(listen(signals, &first)));
    // A thread of its own: the second signal is heard also while the cancel hangs.
    std::thread::spawn(move || {
        let (Ok(()), Ok(id)) = (orders.recv(), id.recv()) else {
            return;
        };
        if let Err(failure) = task::cancel_task(&mut gateway, &id) {
            print::note(&format!("error: {}", failure.message));
            print::note(&format!(
                "The task goes on; end it with: cynode task cancel {id}"
            ));
            std::process::exit(failure.exit.code().into());
        }
    });
    Ok(created)
}

async fn listen((mut interrupt, mut terminate): (Signal, Signal), first: &mpsc::Sender<()>) {
    let mut heard = 0;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        heard += 1;
        if heard > 1 {
            std::process::exit(130);
        }
        print::note("canceling; a second Ctrl-C leaves the task alone");
        let _ = first.send(());
    }
}
