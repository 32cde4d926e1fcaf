//! What both binaries say and how they end.

use crate::error::{Error, Result};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// Turns the outcome of a command into an exit code; an error becomes one sentence on stderr.
pub(crate) fn exit(program: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(program, &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Says a sentence on stderr.
pub(crate) fn note(program: &str, text: &str) {
    #[cfg(test)]
    if listened::heard(|said| said.stderr.push_str(&format!("{program}: {text}\n"))) {
        return;
    }
    // Nothing is left to be done if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{program}: {text}");
}

/// Prints `value` as the one JSON document of a command.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
    line(&text)
}

/// Prints one line for people.
pub(crate) fn line(text: &str) -> Result<()> {
    write_stdout(format!("{text}\n").as_bytes())
}

/// Writes to stdout. A reader that left (`| head`) ends the process quietly, as it would any other filter.
///
/// The standard library's stdout looks for line ends in everything; gibibytes of disk have no use for that.
pub(crate) fn write_stdout(mut bytes: &[u8]) -> Result<()> {
    #[cfg(test)]
    if listened::heard(|said| said.stdout.push_str(&String::from_utf8_lossy(bytes))) {
        return Ok(());
    }
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE) => std::process::exit(0),
            Err(errno) => return Err(Error::io("cannot write", "stdout", &errno.into())),
        }
    }
    Ok(())
}

/// A table for people: a header and rows.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    line(&table.trim_fmt())
}

/// A progress bar over `total` bytes, shown on a terminal only.
pub(crate) fn progress(total: u64, what: &str) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = indicatif::ProgressBar::new(total).with_message(what.to_owned());
    match indicatif::ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Writes manual pages of `command` and its subcommands into `dir`.
pub(crate) fn manual(command: clap::Command, dir: &Path) -> Result<()> {
    clap_mangen::generate_to(command, dir)
        .map_err(|error| Error::io("cannot write manual pages", dir.display(), &error))
}

/// What a command says, for tests that run it in their own process.
#[cfg(test)]
pub(crate) mod listened {
    use std::cell::RefCell;

    #[derive(Debug, Default)]
    pub(crate) struct Said {
        pub(crate) stdout: String,
        pub(crate) stderr: String,
    }

    thread_local! {
        static SAID: RefCell<Option<Said>> = const { RefCell::new(None) };
    }

    /// Runs `run` and listens to what it says on this thread.
    pub(crate) fn to<T>(run: impl FnOnce() -> T) -> (T, Said) {
        SAID.set(Some(Said::default()));
        let outcome = run();
        (outcome, SAID.take().unwrap_or_default())
    }

    /// Whether somebody listens.
    pub(super) fn heard(say: impl FnOnce(&mut Said)) -> bool {
        SAID.with_borrow_mut(|said| said.as_mut().map(say).is_some())
    }
}
