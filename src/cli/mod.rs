//! The commands of `thinorigin`.

pub(crate) mod args;
mod attach;
mod cache;
mod check;
mod export;
mod info;
mod list;
pub(crate) mod map;
mod read;
mod reading;
mod serve;
mod sockets;

use crate::error::{Error, Result};
use crate::output;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
pub(crate) use reading::settle;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::ExitCode;

/// Parses the command line and runs it. Exit codes: 0 done, 1 failed, 2 usage, 3 refused.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    crate::telemetry::start(cli.verbose, matches!(cli.command, Command::Serve(_)));
    output::exit("thinorigin", run(cli))
}

fn run(cli: Cli) -> Result<()> {
    let json = cli.json;
    match cli.command {
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "thinorigin", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => output::manual(Cli::command(), &dir),
        command => {
            open_many_files();
            runtime()?.block_on(run_async(command, json))
        }
    }
}

/// Has the system allow this process as many open files as it may have at most. A client is one, and so is an extent of an
/// image, and the limit that is usual, 1024, is meant for programs that call select(2).
fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

async fn run_async(command: Command, json: bool) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Info(args) => info::run(args, json).await,
        Command::Map(args) => map::run(args, json).await,
        Command::Check(args) => check::run(args, json).await,
        Command::Cat(_) if json => Err(Error::usage("`cat` writes what the disk holds, which is no JSON")),
        Command::Cat(args) => read::cat(args).await,
        Command::Warm(args) => read::warm(args, json).await,
        Command::List(args) => list::run(args, json).await,
        Command::Attach(args) => attach::attach(args, json).await,
        Command::Attached { daemon } => attach::attached(&daemon, json).await,
        Command::Exports { daemon } => attach::exports(&daemon, json).await,
        Command::Detach(args) => attach::detach(&args).await,
        Command::Cache { command } => cache::run(command, json).await,
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

/// The runtime that both binaries use.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("cannot start the runtime: {error}")))
}
